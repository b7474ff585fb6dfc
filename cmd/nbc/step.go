package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"nbc/index"
	"nbc/transfer"
)

// place is where a verb works: its arguments, checked before anything is done.
type place struct {
	root    string
	tree    transfer.Tree
	outputs []index.Output
	store   location
	// private builds begin and end with this process.
	private bool
}

// place checks the flags that all verbs have.
func (a *app) place(cmd *cobra.Command) (place, error) {
	var p place
	var err error
	if p.root, err = a.options.root(cmd); err != nil {
		return p, err
	}
	if p.store, err = parseStore(a.options.store); err != nil {
		return p, usagef("%s: %w", origin(cmd, "store"), err)
	}
	if state := a.options.state; state != "" {
		if rel := insides(p.root, state); len(rel) > 0 {
			return p, usagef("%s: ./%s is in the source tree, where it would be a source", origin(cmd, "state"), rel[0])
		}
	}
	if p.outputs, err = a.options.outputs(cmd); err != nil {
		return p, err
	}
	p.tree, err = a.options.tree(cmd, p.root, p.store)
	return p, err
}

// session is a tree that is open, and the store for it.
type session struct {
	build    *transfer.Build
	store    openedStore
	progress *transfer.Progress
}

// open opens the store and the tree.
func (a *app) open(ctx context.Context, p place) (*session, error) {
	log := slog.New(&warnings{console: a.console, said: new(sync.Map)})
	s, err := a.openStore(ctx, p.store, log)
	if err != nil {
		return nil, err
	}
	cache := &transfer.Cache{
		Store:    s,
		Log:      log,
		Progress: new(transfer.Progress),
		Requests: a.options.requests,
		Version:  version(),
	}
	build, err := cache.Open(p.root, a.options.state, p.private)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &session{build, s, cache.Progress}, nil
}

// save saves, and looks after the store.
func (a *app) save(ctx context.Context, s *session, o transfer.SaveOptions) (*transfer.SaveReport, error) {
	rep, err := s.build.Save(ctx, o)
	if err == nil {
		if text := large(ctx, s.store); text != "" {
			rep.Warnings = append(rep.Warnings, text)
			a.console.warn(text)
			a.console.line("hint: " + largeHint)
		}
	}
	return rep, err
}

func (s *session) close() error { return errors.Join(s.build.Close(), s.store.Close()) }

// within limits work to --timeout, and says so in its error.
func (a *app) within(ctx context.Context, work func(context.Context) error) error {
	if a.options.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.options.timeout)
		defer cancel()
	}
	return because(ctx, a.options.timeout, work(ctx))
}

// step does the one thing that a verb is for, doing as people call it, and lets signals end it.
func (a *app) step(cmd *cobra.Command, p place, doing string, work func(context.Context, *session) error) error {
	sig := listen()
	defer sig.stop()
	err := a.within(sig.working(cmd.Context()), func(ctx context.Context) (err error) {
		s, err := a.open(ctx, p)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		defer a.watch(doing, s.progress)()
		return work(ctx, s)
	})
	a.raise = sig.caught()
	return err
}

// report tells what became of a step: on stderr in a line, with --json on stdout as well.
func (a *app) report(err error, summary string, object any) {
	if a.options.json {
		a.printJSON(object)
	}
	switch {
	case err != nil:
		a.failed(err)
	case !a.options.quiet:
		a.console.line(summary)
	}
}

// failed tells of an error of the cache and sets the exit code.
func (a *app) failed(err error) {
	hint := hintFor(err)
	k := kindOf(err)
	if a.options.bestEffort && k.name != "usage" {
		a.console.warn(oneLine(err))
		if hint != "" {
			a.console.line("hint: " + hint)
		}
		return
	}
	if (k.name == "unavailable" || k.name == "timeout") && a.verb.Flags().Lookup("best-effort") != nil {
		hint = strings.TrimPrefix(hint+"; with --best-effort a build goes on without its cache", "; ")
	}
	a.console.fail(err, hint)
	a.code = k.code
}

// emptyReport is the report of a step that did not come to make one.
func (a *app) emptyReport(action, name string) transfer.Report {
	return transfer.Report{Version: transfer.ReportVersion, Action: action, Name: name}
}
