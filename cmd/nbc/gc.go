package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"nbc/index"
	"nbc/transfer"
)

// defaultGrace is longer than any save takes: what a save that is at work has sent is not collected under its hands,
// which would cost it the sending once more.
const defaultGrace = 24 * time.Hour

func gcCommand(a *app) *cobra.Command {
	o := &a.options
	opts := &o.gc
	opts.Grace = defaultGrace
	cmd := &cobra.Command{
		Use:   "gc [flags]",
		Short: "Delete the chunks that nothing refers to any more",
		Long: `gc deletes what no saved tree needs: chunks of trees that were replaced, dropped
or never finished. It may run at any time, beside builds that restore and save,
and beside other collections; killed anywhere, the next one goes on from there.
It needs the right to list and to delete; nothing else that nbc does needs the
latter.

With --keep-within it first drops the names that were not saved for so long, as
those of branches that are gone, except those that match a --keep. For readers
a dropped name is a miss. A save that comes in between wins.

It relies on conditional writes, which it tries out before it relies on them.
Where a store does not have them, only one gc may run at a time: promise that
with --i-am-the-only-gc. Names cannot be dropped there.`,
		Example: `  nbc gc --dry-run
  nbc gc --keep-within 30d --keep '*/main'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(opts.Keep) > 0 && opts.KeepWithin == 0 {
				return usagef("%s: without --keep-within nothing is dropped", origin(cmd, "keep"))
			}
			l, err := parseStore(o.store)
			if err != nil {
				return usagef("%s: %w", origin(cmd, "store"), err)
			}
			rep := &transfer.CollectReport{Report: a.emptyReport("gc", ""), DryRun: opts.DryRun}
			err = a.collect(cmd, l, *opts, rep)
			if empty := (*emptyStore)(nil); errors.As(err, &empty) {
				rep.Reason, err = empty.Error(), nil
			}
			for _, u := range rep.Unreadable {
				a.console.warn(u.Name + ": " + u.Reason)
			}
			if !o.quiet && err == nil && rep.Epoch > 0 {
				for _, line := range gcLines(rep) {
					a.console.line(line)
				}
			}
			a.report(err, gcSummary(rep), gcJSON{rep, newFailure(err)})
			return nil
		},
	}
	f := cmd.Flags()
	f.Var(&value[string]{&o.store, anything, "", "URL"}, "store",
		"s3://bucket/prefix or a directory (see nbc help stores); by default a directory in your cache directory")
	f.BoolVar(&opts.DryRun, "dry-run", false, "only say what would be done")
	f.Var(&value[time.Duration]{&opts.Grace, age, "24h", "AGE"}, "grace",
		"leave chunks that are younger, for saves that are at work; only their time depends on it")
	f.Var(&value[time.Duration]{&opts.KeepWithin, positiveAge, "", "AGE"}, "keep-within",
		"drop the names that were last saved longer ago, such as 30d")
	f.Var(&list{&opts.Keep, pattern, "PATTERN"}, "keep", "names that are never dropped; may be repeated")
	f.BoolVar(&opts.OnlyCollector, "i-am-the-only-gc", false,
		"no other gc runs: for stores whose conditional writes do not work")
	o.workFlags(f)
	f.BoolVar(&o.json, "json", false, "print one JSON object on stdout")
	return finish(cmd)
}

// collect opens the store, without the near one, and collects.
func (a *app) collect(cmd *cobra.Command, l location, opts transfer.CollectOptions, rep *transfer.CollectReport) error {
	if err := l.missing(); err != nil {
		return err
	}
	sig := listen()
	defer sig.stop()
	err := a.within(sig.working(cmd.Context()), func(ctx context.Context) (err error) {
		s, err := l.open(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		c := &transfer.Cache{
			Store:    s,
			Log:      slog.New(&warnings{console: a.console, said: new(sync.Map)}),
			Progress: new(transfer.Progress),
			Requests: a.options.requests,
			Version:  version(),
		}
		defer a.watch("collecting", c.Progress)()
		r, err := c.Collect(ctx, opts)
		*rep = *r
		return gcHint(err, r)
	})
	a.raise = sig.caught()
	return err
}

// gcHint says what to do about an error that only a collection has.
func gcHint(err error, r *transfer.CollectReport) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, transfer.ErrUnsafe):
		return &hinted{err, "if no other gc runs on this store, and none will, say so: --i-am-the-only-gc"}
	case len(r.Unreadable) == 0:
		return err
	case errors.Is(err, index.ErrVersion):
		return &hinted{err, "use the version of nbc that saved it, or drop it: nbc rm " + quoted(r.Unreadable[0].Name)}
	}
	return &hinted{err, "drop it, or save it again: nbc rm " + quoted(r.Unreadable[0].Name)}
}

// quoted is a name as a shell takes it, and nbc behind it.
func quoted(name string) string {
	text := name
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@=/:") != "" {
		text = "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
	}
	if strings.HasPrefix(name, "-") {
		text = "-- " + text // or it would be a flag
	}
	return text
}

// gcJSON is what --json prints of a collection.
type gcJSON struct {
	*transfer.CollectReport
	failure
}

// gcLines are the report.
func gcLines(r *transfer.CollectReport) []string {
	names := []string{comma(r.Indexes.Kept) + " kept"}
	for _, p := range []struct {
		names []string
		what  string
	}{{r.Indexes.Dropped, "dropped"}, {r.Indexes.Dead, "dead and dropped"}} {
		if len(p.names) > 0 {
			names = append(names, fmt.Sprintf("%s %s (%s)", comma(len(p.names)), p.what, some(p.names)))
		}
	}
	if n := r.Indexes.Tombstones; n > 0 {
		names = append(names, count(n, "tombstone"))
	}
	if n := r.Indexes.Removed; n > 0 {
		names = append(names, count(n, "tombstone")+" removed")
	}
	chunks := []string{amount(r.Kept) + " kept"}
	for _, p := range []struct {
		amount transfer.Amount
		what   string
	}{
		{r.TooRecent, "too recent"},
		{r.Condemned, "condemned"},
		{r.Spared, "spared, as they were saved again meanwhile"},
		{r.Deleted, "deleted"},
	} {
		if p.amount.Chunks > 0 {
			chunks = append(chunks, amount(p.amount)+" "+p.what)
		}
	}
	if r.Missing > 0 {
		chunks = append(chunks, comma(r.Missing)+" missing")
	}
	q := r.Requests
	return []string{
		"names: " + strings.Join(names, ", "),
		"chunks: " + strings.Join(chunks, ", "),
		fmt.Sprintf("requests: %s LIST, %s GET, %s PUT, %s DELETE, %s", comma(q.List), comma(q.Get), comma(q.Put),
			comma(q.Delete), dollars(r.Cost)),
	}
}

// dollars says what requests cost.
func dollars(cost float64) string {
	const least = 0.0001
	if cost < least {
		return fmt.Sprintf("on Amazon S3 less than $%.4f", least)
	}
	return fmt.Sprintf("on Amazon S3 about $%.4f", cost)
}

func amount(a transfer.Amount) string { return fmt.Sprintf("%s (%s)", comma(a.Chunks), size(a.Bytes)) }

func gcSummary(r *transfer.CollectReport) string {
	what := fmt.Sprintf("collected %s (%s)", count(int(r.Deleted.Chunks), "chunk"), size(r.Deleted.Bytes))
	if r.DryRun {
		what = fmt.Sprintf("would collect %s (%s)", count(int(r.Condemned.Chunks), "chunk"), size(r.Condemned.Bytes))
	}
	parts := []string{what}
	if r.Epoch == 0 && r.Reason != "" {
		return r.Reason // there is no store
	}
	if r.Resumed {
		parts = append(parts, "an earlier collection was finished first")
	}
	if r.Reason != "" {
		parts = append(parts, r.Reason)
	}
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}

// age is a duration that may be given in days.
func age(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is not an age such as 30d or 12h", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not an age such as 30d or 12h", s)
	}
	return d, nil
}

func positiveAge(s string) (time.Duration, error) {
	d, err := age(s)
	if err == nil && d == 0 {
		err = fmt.Errorf("%q would drop all names", s)
	}
	return d, err
}
