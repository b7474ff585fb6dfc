package transfer

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sync/errgroup"

	"nbc/index"
	"nbc/transfer/store"
)

// restoring is one run of Restore.
type restoring struct {
	*Build
	o       RestoreOptions
	report  *RestoreReport
	dirs    index.Patterns
	receipt *receipt // the one that it leaves
	old     *receipt // the one that it found
	tree    *index.Tree
	sources []index.Source
	format  Format
	state   State
}

// candidate is an index that may be restored.
type candidate struct {
	name    string
	index   *index.Index
	data    []byte
	version string
}

// miss is an error that stops a restore with a reason that is no fault: the next name may be tried.
type miss struct{ reason string }

func (m miss) Error() string { return m.reason }

func missf(format string, a ...any) error { return miss{fmt.Sprintf(format, a...)} }

// Restore puts back what the cache name, or a fallback, holds, and sets the times of all sources. A miss is not an
// error: the report says why, and nothing in the tree was touched. On an error the tree is as it was; the report,
// never nil, says what is known. It leaves a receipt in every case.
func (b *Build) Restore(ctx context.Context, o RestoreOptions) (*RestoreReport, error) {
	start := b.cache.now()
	r := &restoring{Build: b, o: o, report: &RestoreReport{Report: Report{
		Version: ReportVersion, Action: "restore", Name: o.Name,
	}}}
	defer func() { r.report.Seconds = b.cache.now().Sub(start).Seconds() }()
	names := append([]string{o.Name}, o.Fallbacks...)
	for _, n := range names {
		if _, err := index.Path(n); err != nil {
			return r.report, fmt.Errorf("%w: %w", ErrUsage, err)
		}
	}
	w, err := o.walker()
	if err != nil {
		return r.report, err
	}
	r.dirs = w.Dirs
	if r.o.Outputs, err = sortOutputs(o.Outputs); err != nil {
		return r.report, err
	}
	if _, err := o.noRewrite(); err != nil {
		return r.report, err
	}
	r.receipt = &receipt{
		Name: o.Name, Fallbacks: o.Fallbacks, Tree: o.Tree, Outputs: r.o.Outputs, Outcome: outcomeFailed,
	}
	if r.receipt.SourceProbe, err = probe(r.root); err != nil {
		r.receipt.SourceProbe = 0 // proves nothing
	}
	r.old = b.load()
	if err := b.forget(); err != nil {
		if b.private {
			b.receipt = r.receipt // the save of this build needs none on disk
		}
		return r.report, err
	}
	free, err := b.lockTree(lockAlone)
	if err == nil {
		defer free()
		err = r.run(ctx, w, names)
	}
	if m := (miss{}); errors.As(err, &m) && !errors.Is(err, ErrLocal) {
		r.report.Reason, r.receipt.Outcome, err = m.reason, outcomeMiss, nil
	}
	r.receipt.Silent = silent(ctx, err)
	if r.report.Hit {
		r.receipt.Outcome = outcomeHit
	} else if old := r.old; old != nil {
		// Nothing was touched, so what the old receipt proves is still true.
		r.receipt.Base, r.receipt.BaseStore, r.receipt.BaseData = old.Base, old.BaseStore, old.BaseData
		r.receipt.Files, r.receipt.Probe = old.Files, old.Probe
		r.receipt.FileOutputs, r.receipt.FileNoRewrite = old.FileOutputs, old.FileNoRewrite
	}
	if err := b.keep(r.receipt); err != nil {
		// The artifacts are in place and right; only the save will have to read everything, or to be told the name.
		r.warn("%v", err)
	}
	return r.report, err
}

func (r *restoring) warn(format string, a ...any) {
	s := fmt.Sprintf(format, a...)
	r.report.Warnings = append(r.report.Warnings, s)
	r.cache.log().Warn(s)
}

// walker compiles the patterns of a tree.
func (t Tree) walker() (index.Walker, error) {
	var w index.Walker
	var err error
	if len(t.Dirs) == 0 {
		return w, fmt.Errorf("%w: no cache directory is named", ErrUsage)
	}
	if w.Dirs, err = index.CompilePatterns(t.Dirs); err != nil {
		return w, fmt.Errorf("%w: cache directories: %w", ErrUsage, err)
	}
	if w.Exclude, err = index.CompilePatterns(t.Exclude); err != nil {
		return w, fmt.Errorf("%w: excluded artifacts: %w", ErrUsage, err)
	}
	if w.IgnoreSources, err = index.CompilePatterns(t.IgnoreSources); err != nil {
		return w, fmt.Errorf("%w: ignored sources: %w", ErrUsage, err)
	}
	return w, nil
}

// run looks at the tree and at the store at the same time, and then tries the names in order.
func (r *restoring) run(ctx context.Context, w index.Walker, names []string) error {
	p := r.cache.Progress
	p.start("hashing sources")
	var first candidate
	var firstErr error
	// What the sources are before the build is to be known also when the store cannot be reached: a save may reach it.
	storeCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	tree := make(chan error, 1)
	g, gctx := errgroup.WithContext(storeCtx)
	go func() {
		err := r.look(ctx, w)
		if err != nil {
			stop(err) // a tree that cannot be read needs nothing of the store
		}
		p.phase("waiting for the store")
		tree <- err
	}()
	g.Go(func() (err error) {
		if r.format, err = readFormat(gctx, r.cache.Store); errors.Is(err, store.ErrNotExist) {
			return nil // nothing was ever saved
		}
		return err
	})
	g.Go(func() (err error) {
		r.state, err = readState(gctx, r.cache.Store)
		return err
	})
	g.Go(func() error {
		first, firstErr = r.get(gctx, names[0])
		return nil
	})
	storeErr := g.Wait()
	if err := <-tree; err != nil {
		return err
	}
	if storeErr != nil {
		return storeErr
	}
	// That the name is absent is known from the store itself, whatever comes of the fallbacks.
	r.receipt.Absent = errors.Is(firstErr, store.ErrNotExist)
	r.receipt.Store = r.format.ID

	if err := r.inTheWay(); err != nil {
		return err
	}
	var fault error
	for i, name := range names {
		c, err := first, firstErr
		if i > 0 {
			c, err = r.get(ctx, name)
		}
		if err == nil {
			err = r.try(ctx, c)
		}
		if err == nil {
			r.report.Hit, r.report.Used = true, name
			return nil
		}
		reason, isFault, goOn := r.refusal(name, err)
		if !goOn {
			return err
		}
		if errors.Is(err, store.ErrNotExist) && !isFault {
			reason += r.otherKey(ctx, name)
		}
		r.report.Refused = append(r.report.Refused, Refusal{name, reason})
		if isFault {
			fault = errors.Join(fault, fmt.Errorf("%s: %w", name, err))
		}
	}
	if fault != nil {
		return fault
	}
	reasons := make([]string, len(r.report.Refused))
	for i, f := range r.report.Refused {
		reasons[i] = f.Name + ": " + f.Reason
	}
	return miss{strings.Join(reasons, "; ")}
}

// look finds out what is in the tree.
func (r *restoring) look(ctx context.Context, w index.Walker) error {
	// As a restore finds it: what is excluded from a save may well be in the way of a restore.
	w.Exclude = index.Patterns{}
	tree, err := w.Walk(ctx, r.root)
	if err != nil {
		return localUnless(ctx, fmt.Errorf("looking at the source tree: %w", err))
	}
	// Before they are read, so that a source that is written to afterwards has another Stat.
	settled, err := settle(clocks(r.root, []string{r.root}, tree.Sources), statsOf(tree.Sources))
	if err != nil {
		settled = 0 // proves nothing: the next restore touches every source
	}
	sources, stats, err := hashSources(ctx, r.root, tree, r.cache.Progress)
	if err != nil {
		return localUnless(ctx, fmt.Errorf("hashing sources: %w", err))
	}
	r.tree, r.sources = tree, sources
	r.receipt.Sources, r.receipt.SourceStats, r.receipt.SourceProbe = sources, stats, settled
	return nil
}

// refusal sorts an error of one name: its reason for people, whether it is a fault to be reported if no other name
// helps, and whether another name may be tried at all.
func (r *restoring) refusal(name string, err error) (reason string, fault, goOn bool) {
	var m miss
	switch {
	case errors.Is(err, ErrLocal):
		return "", false, false
	case errors.As(err, &m):
		return m.reason, false, true
	case errors.Is(err, ErrMissing), isCorrupt(err), errors.Is(err, index.ErrInvalid):
		r.receipt.Damaged = append(r.receipt.Damaged, name)
		return err.Error(), true, true
	case errors.Is(err, store.ErrNotExist):
		return "no such name in the store", false, true
	case errors.Is(err, store.ErrRefused):
		return err.Error(), true, true
	case errors.Is(err, index.ErrVersion):
		return err.Error(), true, true
	}
	return "", false, false
}

// get reads and checks the index of a name.
func (r *restoring) get(ctx context.Context, name string) (candidate, error) {
	data, version, err := r.cache.getIndex(ctx, name)
	if err != nil {
		return candidate{}, err
	}
	x, err := index.Decode(data)
	if err != nil {
		return candidate{}, fmt.Errorf("index: %w", err)
	}
	return candidate{name, x, data, version}, nil
}

// getIndex reads the index object of a name.
func (c *Cache) getIndex(ctx context.Context, name string) (data []byte, version string, err error) {
	key, err := index.Path(name)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrUsage, err)
	}
	o, err := c.Store.Get(ctx, key, store.Read{})
	if errors.Is(err, store.ErrTooLarge) {
		return nil, "", fmt.Errorf("%w: %w", index.ErrInvalid, err)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the index: %w", err)
	}
	c.Progress.Transferred.Add(int64(len(o.Data)))
	return o.Data, o.Version, nil
}

// inTheWay refuses to replace artifacts that are not provably nbc's own: checked-in files, or a build's result that is
// nowhere else. Two builds' artifacts are never mixed.
func (r *restoring) inTheWay() error {
	if r.o.Replace {
		return nil
	}
	find := r.old.lookup()
	for i := range r.tree.Artifacts {
		a := &r.tree.Artifacts[i]
		if a.Kind == index.Dir {
			continue
		}
		f, ok := find(a.Path)
		if !ok || !f.untouched(a.Stat, r.old.Probe) {
			return missf("%s was not put there by nbc, or was changed since", a.Path)
		}
	}
	for _, s := range r.tree.Skipped {
		if inDirs(r.dirs, s) {
			return missf("%s is not a file, directory or link", s)
		}
	}
	return nil
}

// inDirs says whether the path p in the tree is a cache directory's, or lies in one.
func inDirs(dirs index.Patterns, p string) bool {
	for q := p; q != "."; q = path.Dir(q) {
		if dirs.Match(q) {
			return true
		}
	}
	return false
}

// failuresBeforeMiss is how many builds in a row may fail from one saved tree, with the same sources, before it is put
// aside: the cache may be the reason, and a cold build tells.
const failuresBeforeMiss = 2

// try restores one index. If a chunk of it is gone, the index may have been replaced, and its chunks collected, since it
// was read: it is read once more.
func (r *restoring) try(ctx context.Context, c candidate) error {
	err := r.restore(ctx, c)
	if !errors.Is(err, ErrMissing) && !isCorrupt(err) {
		return err
	}
	again, err2 := r.get(ctx, c.name)
	if err2 != nil {
		return errors.Join(err, err2)
	}
	if again.version == c.version {
		return err
	}
	return r.restore(ctx, again)
}
