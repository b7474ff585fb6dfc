package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"nbc/index"
	"nbc/mtime"
)

// Times is the second pass over the times, between the configure step and the build: sources that were written since
// the restore, and that hold what the index had, get the time that the index had. Without it everything that includes
// a generated config.h is built again. Others are left as they are, and are newer than the artifacts already.
//
// It also brings the receipt up to date, so that what configure wrote counts as known to the build.
func (b *Build) Times(ctx context.Context) (*TimesReport, error) {
	start := b.cache.now()
	rep := &TimesReport{Report: Report{Version: ReportVersion, Action: "times"}}
	defer func() { rep.Seconds = b.cache.now().Sub(start).Seconds() }()
	p := b.cache.Progress
	p.start("hashing sources")
	free, err := b.lockTree(lockAlone)
	if err != nil {
		return rep, err
	}
	defer free()
	r := b.load()
	if r == nil || r.Outcome == outcomeSaved {
		return rep, fmt.Errorf("%w in this tree: the second pass goes on where one ended", ErrNoReceipt)
	}
	rep.Name = r.Name
	w, err := r.Tree.walker()
	if err != nil {
		return rep, err
	}
	tree, err := w.Walk(ctx, b.root)
	if err != nil {
		return rep, localUnless(ctx, fmt.Errorf("looking at the source tree: %w", err))
	}
	where := clocks(b.root, []string{b.root}, tree.Sources)
	// Before they are read, so that a source that is written to afterwards has another Stat.
	now, err := settle(where, statsOf(tree.Sources))
	if err != nil {
		return rep, local(fmt.Errorf("looking at the clock: %w", err))
	}
	sources, err := mtime.Rehash(ctx, b.root, r.Sources, r.SourceStats, r.SourceProbe, tree.Sources, &p.Files)
	if err != nil {
		return rep, localUnless(ctx, fmt.Errorf("hashing sources: %w", err))
	}
	stats := statsBeside(sources, tree.Sources)
	was := make(map[string]index.Stat, len(r.Sources))
	for i := range r.Sources {
		was[r.Sources[i].Path] = r.SourceStats[i]
	}
	written := map[string]bool{}
	for i := range tree.Sources {
		f := &tree.Sources[i]
		// An inode with a second name may have got its present time for the sake of that.
		if was[f.Path] != f.Stat && (f.Kind == index.Dir || f.Stat.Links == 1) {
			written[f.Path] = true
		}
	}
	rep.Files = len(written)
	if r.Outcome == outcomeHit {
		x, err := index.Decode(r.BaseData)
		if err != nil {
			return rep, fmt.Errorf("base of the receipt: %w", err)
		}
		// Only what was written since the restore, and is as it was when the index was saved: the times of all others
		// are right.
		same := mtime.Diff(x.Sources, sources).Unchanged
		same = slices.DeleteFunc(same, func(s index.Source) bool { return !written[s.Path] })
		plan := mtime.NewPlan(b.root, mtime.Changes{Unchanged: same}, tree.Sources, r.Shift)
		rep.Restored = len(same)
		crash("second pass")
		if err := plan.Apply(ctx, b.root, now); err != nil {
			return rep, localUnless(ctx, errors.Join(fmt.Errorf("setting the times of sources: %w", err), plan.Undo(b.root)))
		}
		crash("second pass done")
		set := plan.Stats()
		for i := range same {
			if k, ok := findSource(sources, same[i].Path); ok {
				stats[k] = set[same[i].Path]
			}
		}
	}
	b.proveSources(sources, stats)
	r.Sources, r.SourceStats = sources, stats
	if r.SourceProbe, err = settle(where, stats); err != nil {
		r.SourceProbe = 0 // proves nothing: the next restore touches every source
	}
	return rep, b.keep(r)
}

// proveSources makes what is known of sources that of the build that begins now: their times are those of their Stats,
// except that directories are looked at again, and a file with the zero Stat is unknown.
func (b *Build) proveSources(sources []index.Source, stats []index.Stat) {
	for i := range sources {
		s := &sources[i]
		if s.Kind == index.Dir {
			if st, err := index.LstatFile(b.root, s.Path); err == nil {
				stats[i] = st
			}
		} else if stats[i] == (index.Stat{}) {
			s.Unknown, s.Sum = true, [index.SumSize]byte{}
		}
		s.MTime = stats[i].MTime
	}
}

func findSource(sources []index.Source, path string) (int, bool) {
	return slices.BinarySearchFunc(sources, path, func(s index.Source, p string) int { return strings.Compare(s.Path, p) })
}

// hashSources hashes all sources of tree, and returns the Stat of each beside it.
func hashSources(ctx context.Context, root string, tree *index.Tree, p *Progress) ([]index.Source, []index.Stat, error) {
	sources, err := mtime.Hash(ctx, root, tree.Sources, &p.Files)
	if err != nil {
		return nil, nil, err
	}
	return sources, statsBeside(sources, tree.Sources), nil
}

// statsBeside returns the Stats of sources, which are some of found, in the same order.
func statsBeside(sources []index.Source, found []index.Found) []index.Stat {
	stats := make([]index.Stat, len(sources))
	k := 0
	for i := range sources {
		for found[k].Path != sources[i].Path {
			k++
		}
		stats[i] = found[k].Stat
	}
	return stats
}
