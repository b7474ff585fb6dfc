package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nbc/index"
	"nbc/transfer"
	"nbc/transfer/store"
)

// This file is what the verbs about a whole store share: list, show, diff, rm and stats.

// catalogFlags are for verbs that are about a store, and no source tree.
func (o *options) catalogFlags(f *pflag.FlagSet) {
	f.Var(&value[string]{&o.store, anything, "", "URL"}, "store",
		"s3://bucket/prefix or a directory (see nbc help stores); by default a directory in your cache directory")
}

// catalogWorkFlags come last.
func (o *options) catalogWorkFlags(f *pflag.FlagSet) {
	o.workFlags(f)
	f.BoolVar(&o.json, "json", false, "print one JSON object on stdout")
}

// emptyStore says that the directory of a store is not there. Whoever only asks does not make it.
type emptyStore struct{ path string }

func (e *emptyStore) Error() string { return "nothing was ever saved in " + e.path }

// missing returns an emptyStore if l is a directory that is not there.
func (l location) missing() error {
	if path := l.path(); path != "" {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return &emptyStore{path}
		}
	}
	return nil
}

// catalog opens the store, with the near one before it if chunks may be read, and lets signals end the work. Where doing
// is empty, nothing is said of how far it is.
func (a *app) catalog(
	cmd *cobra.Command, chunks bool, doing string, work func(context.Context, *transfer.Cache) error,
) error {
	l, err := parseStore(a.options.store)
	if err != nil {
		return usagef("%s: %w", origin(cmd, "store"), err)
	}
	if err := l.missing(); err != nil {
		return nameHint(err)
	}
	sig := listen()
	defer sig.stop()
	err = a.within(sig.working(cmd.Context()), func(ctx context.Context) (err error) {
		log := slog.New(&warnings{console: a.console, said: new(sync.Map)})
		var s openedStore
		if chunks {
			s, err = a.openStore(ctx, l, log)
		} else {
			s, err = l.open(ctx)
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		c := &transfer.Cache{
			Store: s, Log: log, Progress: new(transfer.Progress), Requests: a.options.requests, Version: version(),
		}
		if doing != "" {
			defer a.watch(doing, c.Progress)()
		}
		return work(ctx, c)
	})
	a.raise = sig.caught()
	if unread(err) {
		a.raise, err = syscall.SIGPIPE, nil
	}
	return nameHint(err)
}

// nameHint says what to do about a name that is not there.
func nameHint(err error) error {
	var empty *emptyStore
	switch {
	case err == nil:
		return nil
	case errors.As(err, &empty):
		return &absentName{&hinted{err, "is --store right?"}}
	case errors.Is(err, store.ErrNotExist) && !errors.Is(err, transfer.ErrMissing):
		return &absentName{&hinted{err, "nbc list shows what there is"}}
	}
	return err
}

// absentName says that a cache name that was asked for is not in the store.
type absentName struct{ error }

func (e *absentName) Unwrap() error { return e.error }

// unreadableHint says what to do about an index that cannot be read.
func unreadableHint(err error, list []transfer.Refusal) error {
	switch {
	case err == nil || len(list) == 0 || errors.As(err, new(*absentName)):
		return err
	case errors.Is(err, index.ErrVersion):
		return &hinted{err, "use the version of nbc that saved it, or drop it: nbc rm " + quoted(list[0].Name)}
	}
	return &hinted{err, "drop it, or save it again: nbc rm " + quoted(list[0].Name)}
}

// since is how long ago t was, in one unit: 3h, 12d.
func since(t, now time.Time) string {
	d := now.Sub(t)
	if t.Unix() <= 0 {
		return "-"
	}
	const day = 24 * time.Hour
	switch {
	case d < -time.Minute:
		return "future"
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, d/time.Second)) // two clocks are never quite the same
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 1000*day:
		return fmt.Sprintf("%dd", d/day)
	}
	return fmt.Sprintf("%dy", d/(365*day))
}

// from says where a tree was saved.
func from(host, root string, failures uint64) string {
	where := host
	if root != "" {
		where = strings.TrimPrefix(where+":"+root, ":")
	}
	switch {
	case failures == 1:
		where += " (failed)"
	case failures > 1:
		where += fmt.Sprintf(" (failed %d times)", failures)
	}
	return strings.TrimPrefix(where, " ")
}

// nameColumn is the width of a column for names: enough for most, so that one long name does not push all others aside.
func nameColumn(names []string) int {
	const most = 48
	width := len("NAME")
	for _, n := range names {
		width = max(width, min(most, len([]rune(printable(n)))))
	}
	return width
}

// completeNames offers the cache names of a directory store: elsewhere it would take requests over a network with each
// press of a key.
func (a *app) completeNames(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	if fromEnvironment(cmd) != nil {
		return nil, nothing
	}
	l, err := parseStore(a.options.store)
	if err != nil || l.path() == "" {
		return nil, nothing
	}
	if _, err := os.Stat(l.path()); err != nil {
		return nil, nothing
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := l.open(ctx)
	if err != nil {
		return nil, nothing
	}
	defer func() { _ = s.Close() }() // it was only read
	given := map[string]bool{}
	for _, arg := range args {
		given[arg] = true
	}
	var names []string
	_ = s.List(ctx, index.Prefix, func(i store.Info) error { // as many as it can tell
		name, err := index.ParsePath(i.Key)
		if err == nil && !given[name] && strings.HasPrefix(name, start) && printable(name) == name {
			names = append(names, name)
		}
		return nil
	})
	return names, nothing
}

// completeOneName is completeNames for verbs that take one.
func (a *app) completeOneName(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeNames(cmd, args, start)
}

// looked tells of the indexes that a look at all of a store could not read. Where no names were asked for, it is no fault
// that there is no store: that becomes the reason for having found nothing.
func (a *app) looked(args []string, unreadable []transfer.Refusal, reason string, err error) (string, error) {
	var empty *emptyStore
	if errors.As(err, &empty) && len(args) == 0 {
		reason, err = empty.Error(), nil
	}
	for _, u := range unreadable {
		a.console.warn(u.Name + ": " + u.Reason)
	}
	return reason, err
}
