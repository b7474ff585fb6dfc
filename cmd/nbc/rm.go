package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"nbc/index"
	"nbc/transfer"
	"nbc/transfer/store"
)

func rmCommand(a *app) *cobra.Command {
	o := &a.options
	var opts transfer.DropOptions
	cmd := &cobra.Command{
		Use:   "rm NAME... [flags]",
		Short: "Drop cache names",
		Long: `rm drops what is saved under these cache names: for a restore there is nothing
under them any more, until the next save. What takes space are the chunks; the
next nbc gc deletes those that no other name needs. A name whose index cannot
be read can be dropped, too.

It never destroys a save that was acknowledged meanwhile: that stays. For this
it relies on the store's conditional writes as nbc gc does, and tries them out
before, once a week.

All names are tried. One that is not there is an error all the same, unless
--force is given.`,
		Example: `  nbc rm myapp/pr-17
  nbc rm --glob 'myapp/pr-*' --dry-run`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no NAME")
			}
			return nil
		},
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !opts.Glob {
				for _, name := range args {
					if _, err := index.Path(name); err != nil {
						return usageError{err}
					}
				}
			}
			opts.Names = args
			rep := &transfer.DropReport{Report: a.emptyReport("rm", ""), DryRun: opts.DryRun, Dropped: []string{}}
			err := a.catalog(cmd, false, "dropping names", func(ctx context.Context, c *transfer.Cache) error {
				r, err := c.Drop(ctx, opts)
				rep = r
				return err
			})
			if errors.As(err, new(*emptyStore)) {
				rep.Absent = args
				if opts.Force {
					err = nil
				}
			}
			if !o.quiet {
				for _, name := range rep.Dropped {
					a.console.line(rmVerb(rep) + " " + name)
				}
			}
			err = rmHint(err, args, opts.Glob)
			if len(rep.Failed) > 1 || len(rep.Absent) > 0 && len(rep.Failed) > 0 {
				for _, f := range rep.Failed {
					a.console.warn(f.Name + ": " + f.Reason)
				}
			}
			a.report(err, rmSummary(rep), rmJSON{rep, newFailure(err)})
			return nil
		},
	}
	f := cmd.Flags()
	o.catalogFlags(f)
	f.BoolVar(&opts.Glob, "glob", false, "the names are patterns, as those of nbc gc --keep")
	f.BoolVar(&opts.DryRun, "dry-run", false, "only say what would be done")
	f.BoolVarP(&opts.Force, "force", "f", false, "it is no error that a name is not there")
	o.catalogWorkFlags(f)
	return finish(cmd)
}

// rmHint says what to do about an error that only dropping has.
func rmHint(err error, names []string, glob bool) error {
	special := func(name string) bool { return strings.ContainsAny(name, "*?[{") }
	switch {
	case err == nil:
	case errors.Is(err, transfer.ErrUnsafe):
		return &hinted{err, "when nothing is being saved, delete the objects themselves: index/NAME, with ~2f for a slash"}
	case errors.Is(err, store.ErrConflict):
		return &hinted{err, "what was saved meanwhile stays; say it once more to drop that, too"}
	case errors.As(err, new(*absentName)) && !glob:
		for _, name := range names {
			if special(name) {
				return &hinted{err, "for patterns of names there is --glob"}
			}
		}
	case errors.As(err, new(*absentName)):
		return &hinted{err, "nbc list shows what there is; * stands for nothing with a slash in it, as a/** does"}
	}
	return err
}

// rmJSON is what --json prints of it.
type rmJSON struct {
	*transfer.DropReport
	failure
}

func rmVerb(r *transfer.DropReport) string {
	if r.DryRun {
		return "would drop"
	}
	return "dropped"
}

func rmSummary(r *transfer.DropReport) string {
	parts := []string{fmt.Sprintf("%s %s", rmVerb(r), count(len(r.Dropped), "name"))}
	if n := len(r.Absent); n > 0 {
		parts = append(parts, comma(n)+" not there")
	}
	if len(r.Dropped) > 0 {
		parts = append(parts, "nbc gc deletes what no other name needs")
	}
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}
