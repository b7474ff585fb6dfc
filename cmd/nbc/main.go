// Command nbc keeps the intermediate files of builds in a store, so that the next build redoes only what has changed.
//
// Every verb has a file of its own and is thin: it reads its flags, opens the store (open.go, the only place that knows
// all kinds of stores), calls one method of [nbc/transfer], and prints. What is written where: people read stderr, and
// stdout holds what was asked for (print.go), JSON, or nothing. How errors become exit codes and hints stands in
// errors.go.
package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program: it does what args say and returns the exit code.
func run(args []string, stdout io.Writer, stderr *os.File) int {
	// Without this, a write to a pipe that nobody reads any more kills the process, before the command was run or the
	// tree saved. A signal that is caught, and not ignored, is back at its default in a command that is started.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	a := &app{console: newConsole(stderr), stdout: stdout}
	root := rootCommand(a)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	if err != nil {
		a.misused(cmd, err)
	}
	if a.raise != 0 {
		die(a.raise)
	}
	return a.code
}

// app is what the verbs share, and what becomes of the process.
type app struct {
	console *console
	stdout  io.Writer
	options options
	// verb is the command that runs.
	verb *cobra.Command
	// code is the exit code; raise, unless 0, the signal that the process ends by instead.
	code  int
	raise syscall.Signal
}

func rootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "nbc",
		Short: "Keep the intermediate files of builds, so that the next one redoes only what changed",
		Long: `nbc keeps the intermediate files of builds (dist, target, object trees) in a
store: before a build it puts them back and makes the file times say what has
changed; after it, it saves them again. With the cache missing, damaged, slow
or refused, the build just runs cold.

  nbc run myapp/main --dir build -- make

restores, runs the command and saves; or, around a build that is started
elsewhere:

  nbc restore myapp/main --dir build
  make
  nbc save

Everything is told on stderr; stdout holds what was asked for (list and the
like), JSON (--json) or nothing. Each flag has an environment variable, which is named beside it; a flag that is given
wins, a wrong value in either is an error. A list in a variable has one item on
each line. Patterns are relative to the source tree: * and ? match within a
name, ** any number of directories, {a,b} one or the other, a backslash takes
the meaning from the next character.

` + exitCodes,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownVerb,

		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.verb = cmd
			prepareHeap(cmd.Name() != "daemon")
		},

		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("nbc {{.Version}}\n")
	root.AddCommand(
		restoreCommand(a),
		saveCommand(a),
		runCommand(a),
		timesCommand(a),
		listCommand(a),
		showCommand(a),
		diffCommand(a),
		rmCommand(a),
		statsCommand(a),
		gcCommand(a),
		checkCommand(a),
		daemonCommand(a),
		versionCommand(a),
		manCommand(a),
		topic("exit-codes", "The exit codes of nbc", exitCodes),
		topic("stores", "The URLs of stores", storesHelp),
	)
	return root
}

// knownVerb refuses what is no verb, and says which one may have been meant.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usagef("there is no nbc %s", args[0])
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if verbs := cmd.SuggestionsFor(args[0]); len(verbs) > 0 {
		return &hinted{err, "did you mean nbc " + strings.Join(verbs, " or nbc ") + "?"}
	}
	return err
}

// topic is a page of the help that is no command.
func topic(name, short, long string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Long: long}
}

// misused tells of a command line that makes no sense. Nothing has been done, and --best-effort changes nothing: this
// is a mistake of the caller, and not the cache's.
func (a *app) misused(cmd *cobra.Command, err error) {
	if !errors.As(err, new(usageError)) {
		err = usageError{err}
	}
	if a.options.json {
		a.printJSON(struct {
			Version int `json:"version"`
			failure
		}{jsonVersion, newFailure(err)})
	}
	a.console.fail(err, hintUsage(cmd, err))
	a.code = codeOf(err)
}
