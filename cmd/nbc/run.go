package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

// Exit codes that shells give to commands that they cannot start.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

func runCommand(a *app) *cobra.Command {
	o := &a.options
	cmd := &cobra.Command{
		Use:   "run NAME --dir PATTERN... [flags] -- COMMAND [ARGUMENT...]",
		Short: "Restore, run a build command, and save",
		Long: `run restores what is saved under the cache name NAME, runs the command, and
saves, also when the command failed. The command has the current directory,
the environment, input and output of nbc, and gets its signals; its exit code
becomes that of nbc. Whatever happens to the cache, the command runs: only
wrong use of nbc itself stops it, with exit code 2.`,
		Example: `  nbc run myapp/main --dir build -- make -j4
  nbc run myapp/$BRANCH --fallback myapp/main --dir target --store s3://bucket/nbc -- cargo build`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case dash < 0:
				return &hinted{usagef("no command to run"), "it comes after two dashes: nbc run NAME --dir DIR -- make"}
			case dash == len(args):
				return usagef("no command to run after --")
			case dash == 0:
				return usagef("no cache name before --")
			case dash > 1:
				return usagef("more than a cache name before --: %q", args[1])
			}
			return nameArg(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.needDirs(); err != nil {
				return err
			}
			p, err := a.place(cmd)
			if err != nil {
				return err
			}
			p.private = true
			a.run(cmd.Context(), p, args[0], args[1:])
			return nil
		},
	}
	o.treeFlags(cmd.Flags())
	o.outputFlags(cmd.Flags())
	o.placeFlags(cmd.Flags())
	o.restoreFlags(cmd.Flags())
	o.workFlags(cmd.Flags())
	cmd.Flags().Var(&value[string]{&o.jsonFile, anything, "", "FILE"}, "json-file", "where to write one JSON object")
	return finish(cmd)
}

// runJSON is what --json-file gets.
type runJSON struct {
	Version int          `json:"version"`
	Action  string       `json:"action"`
	Name    string       `json:"name"`
	Command []string     `json:"command"`
	Restore *restoreJSON `json:"restore"`         // null if it did not begin
	Save    *saveJSON    `json:"save"`            // null if there was none
	Error   string       `json:"error,omitempty"` // why the command could not be run
	// ExitCode is the one of the command, and of nbc; 128+N if Signal N ended it.
	ExitCode int `json:"exit_code"`
	Signal   int `json:"signal,omitempty"`
	// Seconds that the command took.
	Seconds float64 `json:"seconds"`
}

// run is one build from restore to save.
func (a *app) run(ctx context.Context, p place, name string, argv []string) {
	sig := listen()
	defer sig.stop()
	out := runJSON{Version: jsonVersion, Action: "run", Name: name, Command: argv}
	defer func() {
		out.ExitCode, out.Signal = a.code, int(a.raise)
		if err := a.writeJSON(out); err != nil {
			a.console.warn("--json-file: " + oneLine(err))
		}
	}()

	s := a.runRestore(sig.working(ctx), p, name, &out)
	if s != nil {
		defer func() {
			if err := s.close(); err != nil {
				a.console.warn(oneLine(err))
			}
		}()
	}
	if n := sig.caught(); n != 0 {
		a.end(n)
		return
	}
	// The command will want the memory.
	debug.FreeOSMemory()

	began := time.Now()
	status, err := runBuild(argv, sig)
	out.Seconds = time.Since(began).Seconds()
	switch {
	case err != nil:
		out.Error = oneLine(err)
		a.console.fail(err, hintStart(err))
		a.code = codeNotFound
		if !notFound(err) {
			a.code = codeCannotRun
		}
		return // nothing was built
	case status.Signaled():
		a.end(status.Signal())
	default:
		a.code = status.ExitStatus()
	}
	if s == nil {
		return // it was said why
	}
	a.runSave(sig.working(ctx), s, name, status.ExitStatus() != 0, &out)
	if n := sig.caught(); n != 0 {
		a.end(n)
	}
}

// end makes a signal what the process ends by.
func (a *app) end(n syscall.Signal) { a.raise, a.code = n, 128+int(n) }

// runRestore restores. Its result is nil when there is nothing that could be saved to later.
func (a *app) runRestore(ctx context.Context, p place, name string, out *runJSON) (s *session) {
	rep := &transfer.RestoreReport{Report: a.emptyReport("restore", name)}
	err := a.within(ctx, func(ctx context.Context) (err error) {
		if s, err = a.open(ctx, p); err != nil {
			return err
		}
		defer a.watch("restoring "+name, s.progress)()
		r, err := s.build.Restore(ctx, a.options.restore(name, p))
		if r != nil {
			rep = r
		}
		return err
	})
	out.Restore = &restoreJSON{rep, newFailure(err)}
	a.tell("not restored "+name, err, restoreSummary(rep))
	return s
}

func (a *app) runSave(ctx context.Context, s *session, name string, failed bool, out *runJSON) {
	rep := &transfer.SaveReport{Report: a.emptyReport("save", name)}
	err := a.within(ctx, func(ctx context.Context) error {
		defer a.watch("saving "+name, s.progress)()
		r, err := a.save(ctx, s, transfer.SaveOptions{Failed: failed})
		if r != nil {
			rep = r
		}
		return err
	})
	out.Save = &saveJSON{rep, newFailure(err)}
	a.tell("not saved "+name, err, saveSummary(rep))
}

// tell prints what became of a part of a run. A failure of the cache is none of the run.
func (a *app) tell(not string, err error, summary string) {
	switch {
	case err != nil:
		a.console.warn(not + ": " + oneLine(err))
		if hint := hintFor(err); hint != "" {
			a.console.line("hint: " + hint)
		}
	case !a.options.quiet:
		a.console.line(summary)
	}
}

// runBuild runs the command to its end. An error says that it could not be started.
func runBuild(argv []string, sig *signals) (syscall.WaitStatus, error) {
	cmd := exec.Command(argv[0], argv[1:]...) // #nosec G204 -- what the user says is what is run
	// Whether a PATH with "." in it is a good idea is not for nbc to say.
	if errors.Is(cmd.Err, exec.ErrDot) {
		cmd.Err = nil
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("running %s: %w", argv[0], cause(err))
	}
	sig.building(cmd.Process)
	err := cmd.Wait()
	sig.built()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, fmt.Errorf("waiting for %s: %w", argv[0], err)
	}
	return status, nil
}

// cause leaves out what the error of a start says twice.
func cause(err error) error {
	var lookup *exec.Error
	var path *fs.PathError
	switch {
	case errors.As(err, &lookup):
		return lookup.Err
	case errors.As(err, &path):
		return path.Err
	}
	return err
}

func notFound(err error) bool {
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
}

// hintStart says what may be wrong with a command that cannot be started.
func hintStart(err error) string {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return "a script needs a first line such as #!/bin/sh"
	case errors.Is(err, fs.ErrPermission):
		return "is it a file that may be executed?"
	}
	return ""
}

// writeJSON writes the object that --json-file asks for.
func (a *app) writeJSON(out runJSON) error {
	if a.options.jsonFile == "" {
		return nil
	}
	data, err := json.Marshal(out)
	if err != nil {
		return err
	}
	return os.WriteFile(a.options.jsonFile, append(data, '\n'), 0o666) // the umask decides
}
