// Command bench measures nbc beside its peers: the same trees, the same machine, in turns.
//
//	go run ./bench               # everything; README.md beside this file says how long that takes
//	go run ./bench -quick        # a small corpus and one round, to see whether it works
//	go run ./bench -corpus DIR   # with a tree of one's own
//	go run ./bench -cuts         # another table: where chunks should be cut (cuts.go)
//
// It makes a corpus and its changed versions (corpus.go), starts an S3 server and proxies before it (server.go,
// proxy.go), lets nbc and the peers that it finds on the machine do the work of a build (round.go, peers.go), each
// command in a process that measures it (measure.go), and prints one table (report.go), what of it was to be reached
// (targets.go), and a plot (plot.go). It needs Go and git's checkout of this module, nothing else; what is missing is
// left out and named.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// options are the values of the flags.
type options struct {
	corpus   string
	mb       int
	files    int
	haskell  int
	large    int
	rounds   int
	quick    bool
	tools    string
	nbc      string
	work     string
	keep     string
	jsonFile string
	svgFile  string
	readme   string
	cuts     bool
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "measure": // see measure.go
			os.Exit(measureChild(os.Args[2:]))
		case "send", "receive": // see sdk.go
			if err := sdk(context.Background(), os.Args[1], os.Args[2:], os.Stdin, os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				os.Exit(1)
			}
			return
		}
	}
	var o options
	flag.StringVar(&o.corpus, "corpus", "", "measure with this `directory`, instead of a Go build cache of this module")
	flag.IntVar(&o.mb, "mb", 500, "make a corpus of at least so many `megabytes`")
	flag.IntVar(&o.files, "files", 10000, "and of so many `files`")
	flag.IntVar(&o.haskell, "haskell", 200, "if there is ghc, make so many `megabytes` with it and edit a module; 0 does not")
	flag.IntVar(&o.large, "large", 4, "measure the memory on a tree so many `times` as large as well; 0 does not")
	flag.IntVar(&o.rounds, "rounds", 3, "repeat everything so often, and take medians")
	flag.BoolVar(&o.quick, "quick", false, "a corpus of 30 MB, one round, no Haskell, no large tree")
	flag.StringVar(&o.tools, "tools", "", "only these peers, a comma-separated `list`; nbc is always measured")
	flag.StringVar(&o.nbc, "nbc", "", "measure this `program`, instead of one built from the module")
	flag.StringVar(&o.work, "work", "", "work below this `directory` (default /dev/shm, else that of temporary files)")
	flag.StringVar(&o.keep, "keep", "", "keep the corpora in this `directory`, and use those that are there")
	flag.StringVar(&o.jsonFile, "json", "", "write all measurements to this `file`, or to stdout if it is -")
	flag.StringVar(&o.svgFile, "svg", "", "write the plot to this `file`")
	flag.StringVar(&o.readme, "readme", "", "replace the tables in this `file` (bench/README.md)")
	flag.BoolVar(&o.cuts, "cuts", false, "measure where to cut instead: each choice on pairs of trees")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unknown argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// run does what the flags say; tables go to stdout and news to stderr.
func run(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	if o.quick {
		o.mb, o.files, o.haskell, o.large, o.rounds = 30, 300, 0, 0, 1
	}
	if o.work == "" {
		if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
			o.work = "/dev/shm"
		}
	}
	work, err := os.MkdirTemp(o.work, "nbc-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeAll(work)) }()
	if err := setCredentials(); err != nil {
		return err
	}
	b := &bench{options: o, work: work, log: stderr}
	if b.module, err = moduleRoot(ctx); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if o.cuts {
		if err := b.buildNBC(ctx); err != nil {
			return err
		}
		return b.cuts(ctx, stdout)
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	r, err := b.measureAll(ctx)
	if err != nil {
		return err
	}
	return write(r, o, stdout)
}

// write puts the results where the flags say.
func write(r *results, o options, stdout io.Writer) error {
	text := r.markdown()
	if o.jsonFile != "-" {
		if _, err := io.WriteString(stdout, text); err != nil {
			return err
		}
	}
	if o.jsonFile != "" {
		data, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		data = append(data, '\n')
		if o.jsonFile == "-" {
			_, err = stdout.Write(data)
		} else {
			err = os.WriteFile(o.jsonFile, data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	if o.svgFile != "" {
		if err := os.WriteFile(o.svgFile, []byte(r.plot()), 0o600); err != nil {
			return err
		}
	}
	if o.readme != "" {
		return replaceTables(o.readme, text)
	}
	return nil
}

// The tables in a README stand between these lines.
const (
	tablesBegin = "<!-- made by bench -->"
	tablesEnd   = "<!-- end -->"
)

func replaceTables(file, text string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(data), tablesBegin)
	_, after, ok2 := strings.Cut(rest, tablesEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", file, tablesBegin, tablesEnd)
	}
	text = before + tablesBegin + "\n\n" + text + "\n" + tablesEnd + after
	return os.WriteFile(file, []byte(text), 0o600) // #nosec G703 -- the user's choice
}

// moduleRoot returns the directory of the module that bench belongs to.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := output(ctx, "", nil, "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}")
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	path, dir, _ := strings.Cut(strings.TrimSpace(out), " ")
	if path != "nbc" {
		return "", fmt.Errorf("run it in the module nbc; this is %s", path)
	}
	return filepath.Clean(dir), nil
}
