package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"nbc/index"
	"nbc/transfer/store"
)

// DropOptions say which cache names to drop.
type DropOptions struct {
	// Names are cache names, with Glob also patterns of them as [CollectOptions.Keep] has them.
	Names []string
	Glob  bool
	// DryRun finds out what would be dropped, and changes nothing.
	DryRun bool
	// Force takes a name that is not there, or a pattern that nothing matches, for dropped.
	Force bool
}

// DropReport is what was dropped, or with DryRun would be.
type DropReport struct {
	Report
	DryRun bool `json:"dry_run,omitempty"`
	// Dropped are the names that are gone now. What only they refer to is left to the next collection.
	Dropped []string `json:"dropped"`
	// Absent are names that were not there, or had been dropped already, and patterns that nothing matched.
	Absent []string `json:"absent,omitempty"`
	// Failed are those that are still there, and why.
	Failed []Refusal `json:"failed,omitempty"`
}

// Drop drops cache names, each as [Cache.DropIndex] does, in a store whose conditional writes let it: the error is
// [ErrUnsafe] otherwise, and nothing is done. All names are tried; then the error is that of the first one that failed,
// in their order, else store.ErrNotExist if one was not there, unless Force is set. The report is never nil.
func (c *Cache) Drop(ctx context.Context, o DropOptions) (*DropReport, error) {
	mine := c.working("dropping names")
	r := &DropReport{
		Report: Report{Version: ReportVersion, Action: "rm"}, DryRun: o.DryRun, Dropped: []string{},
	}
	start := mine.now()
	defer func() { r.Seconds = mine.now().Sub(start).Seconds() }()
	names, err := mine.toDrop(ctx, o, r)
	if err != nil {
		return r, err
	}
	if len(names) > 0 && !o.DryRun {
		g := &collection{cache: mine, report: new(CollectReport)}
		if err := g.learnConditions(ctx, c.Store); err != nil {
			return r, err
		}
		if err := g.conditions.dropping(); err != nil {
			return r, err
		}
		mine.Progress.phase("dropping names")
	}
	errs := make([]error, len(names))
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(mine.requests())
	for i, name := range names {
		group.Go(func() error {
			var err error
			if o.DryRun {
				err = mine.droppable(gctx, name)
			} else {
				err = mine.DropIndex(gctx, name)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				r.Dropped = append(r.Dropped, name)
			case errors.Is(err, store.ErrNotExist):
				if !o.Glob {
					r.Absent = append(r.Absent, name)
				}
			default:
				errs[i] = err
				r.Failed = append(r.Failed, Refusal{name, err.Error()})
			}
			return context.Cause(gctx)
		})
	}
	err = group.Wait()
	if o.Glob {
		here := slices.Clone(r.Dropped)
		for _, f := range r.Failed {
			here = append(here, f.Name)
		}
		r.Absent = unmatched(o.Names, here)
	}
	slices.Sort(r.Dropped)
	slices.Sort(r.Absent)
	slices.SortFunc(r.Failed, func(a, b Refusal) int { return strings.Compare(a.Name, b.Name) })
	if err != nil {
		return r, err
	}
	for _, err := range errs {
		if err != nil {
			return r, err
		}
	}
	if o.Force {
		return r, nil
	}
	return r, absentError(r.Absent)
}

// toDrop returns the names that it is about, each once.
func (c *Cache) toDrop(ctx context.Context, o DropOptions, r *DropReport) ([]string, error) {
	sel, err := selectNames(o.Names)
	if err != nil && o.Glob {
		return nil, err
	}
	if len(o.Names) == 0 {
		return nil, fmt.Errorf("%w: no name to drop", ErrUsage)
	}
	if !o.Glob {
		for _, name := range o.Names {
			if _, err := index.Path(name); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUsage, err)
			}
		}
	}
	f, err := readFormat(ctx, c.Store)
	switch {
	case errors.Is(err, store.ErrNotExist):
		r.Absent = slices.Compact(slices.Sorted(slices.Values(o.Names)))
		if o.Force {
			return nil, nil
		}
		return nil, absentError(r.Absent)
	case err != nil:
		return nil, err
	case f.MinWriter > writerLevel:
		return nil, fmt.Errorf("%w: writers of level %d or later only, this nbc has %d", ErrFormat, f.MinWriter, writerLevel)
	}
	if !o.Glob {
		return slices.Compact(slices.Sorted(slices.Values(o.Names))), nil
	}
	list, err := c.listNames(ctx, sel)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].name
	}
	return names, nil
}

// unmatched returns the patterns that none of the names matches. Their syntax was looked at before.
func unmatched(patterns, names []string) []string {
	var list []string
	for _, p := range patterns {
		sel, err := selectNames([]string{p})
		if err == nil && !slices.ContainsFunc(names, sel.has) {
			list = append(list, p)
		}
	}
	return list
}

// droppable says whether DropIndex would have something to drop: its error is store.ErrNotExist if not.
func (c *Cache) droppable(ctx context.Context, name string) error {
	key, err := index.Path(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	x, err := (&collection{cache: c}).readIndex(ctx, store.Info{Key: key})
	switch {
	case errors.Is(err, index.ErrInvalid), errors.Is(err, index.ErrVersion):
		return nil
	case err != nil:
		return fmt.Errorf("reading the index of %s: %w", name, err)
	case x.tombstone:
		return fmt.Errorf("%s was dropped already: %w", name, store.ErrNotExist)
	}
	return nil
}
