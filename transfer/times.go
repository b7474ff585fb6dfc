package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
		return rep, fmt.Errorf("looking at the source tree: %w", err)
	}
	sources, err := mtime.Rehash(ctx, b.root, r.Sources, r.SourceStats, r.SourceProbe, tree.Sources, &p.Files)
	if err != nil {
		return rep, fmt.Errorf("hashing sources: %w", err)
	}
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
		if err := plan.Apply(ctx, b.root, 0); err != nil {
			return rep, errors.Join(fmt.Errorf("setting the times of sources: %w", err), plan.Undo(b.root))
		}
	}
	return rep, b.updateSources(r, sources)
}

// updateSources puts what is known of the sources now into the receipt.
func (b *Build) updateSources(r *receipt, sources []index.Source) error {
	stats, err := restat(b.root, sources)
	if err != nil {
		return fmt.Errorf("looking at the sources again: %w", err)
	}
	for i, st := range stats {
		sources[i].MTime = st.MTime
	}
	r.Sources, r.SourceStats = sources, stats
	if r.SourceProbe, err = probeQuietly(b.root); err != nil {
		r.SourceProbe = 0 // proves nothing: the next restore touches every source
	}
	return b.keep(r)
}
