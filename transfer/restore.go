package transfer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nbc/index"
	"nbc/mtime"
	"nbc/transfer/store"
)

// restoring is one run of Restore.
type restoring struct {
	*Build
	o        RestoreOptions
	report   *RestoreReport
	dirs     index.Patterns
	receipt  *receipt // the one that it leaves
	old      *receipt // the one that it found
	tree     *index.Tree
	sources  []index.Source
	format   Format
	newStore bool // the store has no format: nothing was ever saved
	state    State
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
	r.old = b.load()
	if err := b.forget(); err != nil {
		return r.report, err
	}
	r.receipt = &receipt{Name: o.Name, Fallbacks: o.Fallbacks, Tree: o.Tree, Outcome: outcomeFailed}
	err = r.run(ctx, w, names)
	var err2 error
	if m := (miss{}); errors.As(err, &m) {
		r.report.Reason, r.receipt.Outcome, err = m.reason, outcomeMiss, nil
	}
	if r.report.Hit {
		r.receipt.Outcome = outcomeHit
	} else {
		if old := r.old; old != nil {
			// Nothing was touched, so what the old receipt proves is still true.
			r.receipt.Base, r.receipt.BaseStore, r.receipt.BaseData = old.Base, old.BaseStore, old.BaseData
			r.receipt.Files, r.receipt.Probe = old.Files, old.Probe
		}
		if r.receipt.SourceProbe, err2 = probeQuietly(r.root); err2 != nil {
			r.receipt.SourceProbe = 0 // proves nothing: the next restore touches every source
		}
	}
	if err2 = b.keep(r.receipt); err2 != nil {
		// The artifacts are in place and right; only the save will have to read everything, or to be told the name.
		r.warn("%v", err2)
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
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// The tree is looked at as a restore finds it: what is excluded from a save may well be in the way of a restore.
		w.Exclude = index.Patterns{}
		tree, err := w.Walk(gctx, r.root)
		if err != nil {
			return fmt.Errorf("looking at the source tree: %w", err)
		}
		sources, stats, err := hashSources(gctx, r.root, tree, p)
		if err != nil {
			return fmt.Errorf("hashing sources: %w", err)
		}
		r.tree, r.sources = tree, sources
		r.receipt.Sources, r.receipt.SourceStats = sources, stats
		return nil
	})
	g.Go(func() (err error) {
		r.format, err = readFormat(gctx, r.cache.Store)
		if errors.Is(err, store.ErrNotExist) {
			r.newStore = true
			return nil
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
	if err := g.Wait(); err != nil {
		return err
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

// refusal sorts an error of one name: its reason for people, whether it is a fault to be reported if no other name
// helps, and whether another name may be tried at all.
func (r *restoring) refusal(name string, err error) (reason string, fault, goOn bool) {
	var m miss
	switch {
	case isLocal(err):
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

// isLocal tells a refusal of the local file system from one of the store.
func isLocal(err error) bool { var l localError; return errors.As(err, &l) }

// localError marks an error of the tree's file system.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

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
		if r.dirs.Match(s) || r.underRoot(s) {
			return missf("%s is not a file, directory or link", s)
		}
	}
	return nil
}

func (r *restoring) underRoot(p string) bool {
	for q := path.Dir(p); q != "."; q = path.Dir(q) {
		if r.dirs.Match(q) {
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

// restore brings the tree to what c says, in the order of effects that makes a kill harmless at any point:
//
//	stage   new files are written into a work directory; nothing else changes
//	clear   old cache directories are moved into it: from here a build finds no artifacts and is cold
//	times   sources get their recorded times, or now
//	place   new directories are moved in, one by one: one that is still absent is only rebuilt
//	        work directories go; directories get their times
//	receipt
//
// On an error all is taken back in an order with the same property.
func (r *restoring) restore(ctx context.Context, c candidate) error {
	x, p := c.index, r.cache.Progress
	if err := r.state.checkEpoch(ctx, r.cache.Store, "the index of "+c.name, x.Epoch); err != nil {
		return err
	}
	if len(x.Entries) == 0 {
		return missf("it was dropped, or is empty")
	}
	if !r.o.Moved && x.Build.Root != "" && x.Build.Root != r.root {
		return missf("it was saved in %s, this is %s (--moved restores it all the same)", x.Build.Root, r.root)
	}
	changes := mtime.Diff(x.Sources, r.sources)
	if x.Build.Failures >= failuresBeforeMiss && changes.Same() {
		return missf("%d builds in a row failed from it with these sources", x.Build.Failures)
	}
	var roots []string
	for _, root := range x.Roots {
		if r.dirs.Match(root) {
			roots = append(roots, root)
		}
	}
	if len(roots) == 0 {
		return missf("it holds none of these cache directories, only %s", strings.Join(x.Roots, ", "))
	}

	work, err := newWork(r.root)
	if err != nil {
		return err
	}
	list, skipped, err := plan(r.root, r.Build.stat, work, x, roots, r.tree.Roots)
	if err != nil {
		return localError{err}
	}
	if !slices.ContainsFunc(list, func(p *placement) bool { return p.entry != nil }) {
		return missf("no directory of the tree has a place for %s", strings.Join(skipped, ", "))
	}
	s := &staging{index: x, where: map[string]string{}, progress: p}
	for _, pl := range list {
		if pl.entry != nil {
			s.where[pl.root] = pl.staged()
		}
	}
	e := &effects{r: r, work: work, list: list, mover: &mover{}, staging: s, changes: changes}
	if err := e.do(ctx, c); err != nil {
		if err2 := e.undo(); err2 != nil {
			return errors.Join(err, fmt.Errorf("taking the restore back: %w", err2))
		}
		return err
	}
	r.report.Skipped = skipped
	for _, root := range skipped {
		r.warn("%s is not restored: the directory it belongs to is not in the source tree", root)
	}
	return nil
}

// newWork returns the path of a work directory that does not exist yet. Its name is one that walks leave out.
func newWork(root string) (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return filepath.Join(root, index.WorkPrefix+hex.EncodeToString(b[:])), nil
}

// effects are the changes that a restore makes to the tree.
type effects struct {
	r       *restoring
	work    string
	list    []*placement
	mover   *mover // for clear, then for place
	cleared *mover
	staging *staging
	changes mtime.Changes
	times   *mtime.Plan
	now     int64
	placed  bool // everything is in place: what is left is cleaning up
}

func (e *effects) workDirs() []string {
	dirs := []string{e.work}
	for _, p := range e.list {
		if p.work != e.work {
			dirs = append(dirs, p.work)
		}
	}
	return dirs
}

func (e *effects) do(ctx context.Context, c candidate) error {
	r, p := e.r, e.r.cache.Progress
	j := journal{Work: e.workDirs()}
	for _, pl := range e.list {
		if pl.work != e.work {
			j.Filling = append(j.Filling, pl.target)
		}
	}
	slices.Sort(j.Filling)
	crash("journal")
	// Until the first old directory is moved, "Filling" must not be emptied by a recovery: it is named only then.
	if err := r.Build.state.writeJournal(journal{Work: j.Work}); err != nil {
		return localError{fmt.Errorf("writing the journal: %w", err)}
	}
	crash("journal written")
	for _, dir := range j.Work {
		for _, d := range []string{dir, filepath.Join(dir, "new"), filepath.Join(dir, "old")} {
			if err := os.Mkdir(d, 0o700); err != nil {
				return localError{fmt.Errorf("making a work directory: %w", err)}
			}
			crash("work directory")
		}
	}

	// A first look at the clock, before anything is fetched for nothing.
	policy := mtime.Policy{Times: r.o.Times, OnSkew: r.o.OnSkew}
	newest := max(c.index.Newest(), e.changes.Newest())
	now, err := mtime.Probe(e.work)
	if err != nil {
		return localError{err}
	}
	shift, _, ok := policy.Guard(newest, now)
	if !ok {
		return tooNew(newest, now)
	}
	e.staging.shift = shift
	e.staging.keep = newKeeping(r.old, r.tree, c.index, e.staging.selected, shift)

	p.phase("restoring")
	p.TotalBytes.Store(c.index.Bytes())
	if err := e.staging.write(ctx, r.cache); err != nil {
		return err
	}

	for {
		if now, err = mtime.Probe(e.work); err != nil {
			return localError{err}
		}
		if shift != 0 {
			break // the timeline was moved to hours ago
		}
		_, wait, ok := policy.Guard(newest, now)
		if !ok {
			return tooNew(newest, now)
		}
		if wait == 0 {
			break
		}
		r.report.Waited += wait
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	e.now = now
	e.times = mtime.NewPlan(r.root, e.changes, r.tree.Sources, shift)

	if len(j.Filling) > 0 {
		if err := r.Build.state.writeJournal(j); err != nil {
			return localError{fmt.Errorf("writing the journal: %w", err)}
		}
	}
	crash("clear")
	if err := clearOld(e.list, e.mover); err != nil {
		return localError{err}
	}
	e.cleared, e.mover = e.mover, &mover{}
	crash("times")
	if err := e.times.Apply(ctx, r.root, now); err != nil {
		return localError{fmt.Errorf("setting the times of sources: %w", err)}
	}
	crash("merge")
	if err := e.staging.merge(ctx, e.list, e.mover); err != nil {
		return err
	}
	crash("place")
	if err := place(ctx, e.list, e.mover, shift); err != nil {
		return localError{err}
	}
	e.placed = true
	crash("placed")
	return e.finish(ctx, c, shift)
}

// finish cleans up, gives directories the times that all the renaming has changed, and fills in receipt and report.
// The tree is right already: what fails here is a warning.
func (e *effects) finish(ctx context.Context, c candidate, shift int64) error {
	r := e.r
	cleanup := e.removeWork()
	if cleanup != nil {
		r.warn("cleaning up: %v", cleanup)
	}
	for _, p := range e.list {
		if p.entry != nil && p.entry.Kind == index.Dir {
			if err := setRootTime(p, shift); err != nil {
				r.warn("setting the time of %s: %v", p.root, err)
			}
		}
	}
	if err := e.times.ApplyDirs(ctx, r.root, e.now); err != nil {
		r.warn("setting the times of source directories: %v", err)
	}
	crash("directory times")

	rep, rec := r.report, r.receipt
	files := e.staging.stats
	slices.SortStableFunc(files, func(a, b receiptFile) int { return strings.Compare(a.Path, b.Path) })
	rec.Files = lastOfEach(files)
	rec.Restored, rec.Shift = c.name, shift
	rec.Base, rec.BaseStore, rec.BaseData = c.name, r.format.ID, c.data
	var err error
	if rec.SourceStats, err = restat(r.root, rec.Sources); err != nil {
		r.warn("looking at the sources again: %v", err)
		rec.SourceStats = make([]index.Stat, len(rec.Sources)) // equal to none
	}
	for i, st := range rec.SourceStats {
		rec.Sources[i].MTime = st.MTime // what the build tool will see
	}
	for _, p := range e.times.Changed() {
		if i, ok := findSource(rec.Sources, p); ok {
			rec.Sources[i].Unknown, rec.Sources[i].Sum = true, [index.SumSize]byte{}
		}
	}
	rec.Probe, err = probeAfter(r.root, rec)
	if err != nil {
		r.warn("%v", err)
		rec.Files = nil
	}
	rec.SourceProbe = rec.Probe
	// The probe file has changed the time of the tree's own directory once more.
	if err := e.times.ApplyDirs(ctx, r.root, e.now); err != nil {
		r.warn("setting the times of source directories: %v", err)
	}
	if cleanup == nil {
		if err := r.Build.state.removeJournal(); err != nil {
			r.warn("removing the journal: %v", err)
		}
	}

	p := r.cache.Progress
	rep.Files, rep.Bytes, rep.Chunks = len(rec.Files), 0, len(c.index.Chunks)
	for i := range c.index.Entries {
		if en := &c.index.Entries[i]; en.Kind == index.File && e.staging.selected(en.Path) {
			rep.Bytes += en.Size
		}
	}
	rep.Fetched = Traffic{Chunks: int(p.Chunks.Load()), Bytes: p.Transferred.Load()}
	for _, pl := range e.list {
		if pl.entry != nil {
			rep.Roots = append(rep.Roots, pl.root)
		}
	}
	rep.Sources = Sources{
		Unchanged: len(e.changes.Unchanged), Changed: len(e.changes.Changed),
		New: len(e.changes.New), Deleted: len(e.changes.Deleted),
	}
	rep.Shifted = time.Duration(shift)
	return nil
}

// tooNew is the miss of the guard.
func tooNew(newest, now int64) error {
	return missf("its newest file is %v newer than the clock: a build would take changed sources for old ones "+
		"(--on-skew=shift moves the recorded times back)", time.Duration(newest-now).Round(time.Millisecond))
}

// removeWork removes the work directories, and what is in them.
func (e *effects) removeWork() error {
	var errs []error
	for _, dir := range e.workDirs() {
		crash("remove work")
		if err := removeTree(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// undo takes everything back: new directories out first, so that there are no artifacts while the times of the sources
// change back, and old ones in last.
func (e *effects) undo() error {
	var errs []error
	if e.cleared != nil {
		errs = append(errs, e.mover.undo())
	}
	if e.times != nil {
		errs = append(errs, e.times.Undo(e.r.root))
	}
	if errors.Join(errs...) == nil { // else old artifacts beside wrong times could be taken for fresh
		if e.cleared == nil {
			errs = append(errs, e.mover.undo())
		} else {
			errs = append(errs, e.cleared.undo())
		}
	}
	err := errors.Join(append(errs, e.removeWork())...)
	err = errors.Join(err, e.undoDirTimes())
	if err == nil {
		err = e.r.Build.state.removeJournal()
	}
	return err
}

// undoDirTimes gives directories that files were moved out of and into the times that they had.
func (e *effects) undoDirTimes() error {
	var errs []error
	for i := range e.r.tree.Sources {
		s := &e.r.tree.Sources[i]
		if s.Kind != index.Dir {
			continue
		}
		if s.Path == "." || slices.ContainsFunc(e.list, func(p *placement) bool { return path.Dir(p.root) == s.Path }) {
			errs = append(errs, setDirTime(filepath.Join(e.r.root, filepath.FromSlash(s.Path)), s.Stat.MTime))
		}
	}
	return errors.Join(errs...)
}

// lastOfEach keeps the last of those with the same path; the list is sorted stably.
func lastOfEach(list []receiptFile) []receiptFile {
	out := list[:0]
	for i := range list {
		if i+1 == len(list) || list[i+1].Path != list[i].Path {
			out = append(out, list[i])
		}
	}
	return out
}

// probeAfter returns a time of the file system's clock that is newer than every ctime in the receipt, so that none of
// its files is racy. The clock ticks every few milliseconds.
func probeAfter(root string, rec *receipt) (int64, error) {
	var newest int64
	for i := range rec.Files {
		newest = max(newest, rec.Files[i].Stat.CTime)
	}
	for i := range rec.SourceStats {
		newest = max(newest, rec.SourceStats[i].CTime)
	}
	for try := 0; ; try++ {
		now, err := mtime.Probe(root)
		if err != nil || now > newest || try == 20 {
			return now, err
		}
		time.Sleep(time.Millisecond)
	}
}

// probeQuietly is mtime.Probe where the time of the directory itself matters: it is put back.
func probeQuietly(root string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: root, Err: err}
	}
	now, err := mtime.Probe(root)
	if err != nil {
		return 0, err
	}
	return now, setDirTime(root, st.Mtim.Nano())
}

func setDirTime(dir string, ns int64) error {
	ts := []unix.Timespec{{Nsec: utimeOmit}, unix.NsecToTimespec(ns)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: dir, Err: err}
	}
	return nil
}

func findSource(sources []index.Source, path string) (int, bool) {
	return slices.BinarySearchFunc(sources, path, func(s index.Source, p string) int { return strings.Compare(s.Path, p) })
}

// restat looks at the sources again, after their times were set. One that has vanished has a zero Stat, equal to none.
func restat(root string, sources []index.Source) ([]index.Stat, error) {
	stats := make([]index.Stat, len(sources))
	for i := range sources {
		st, err := index.LstatFile(root, sources[i].Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		stats[i] = st
	}
	return stats, nil
}

// hashSources hashes all sources of tree, and returns the Stat of each beside it.
func hashSources(ctx context.Context, root string, tree *index.Tree, p *Progress) ([]index.Source, []index.Stat, error) {
	sources, err := mtime.Hash(ctx, root, tree.Sources, &p.Files)
	if err != nil {
		return nil, nil, err
	}
	stats := make([]index.Stat, len(sources))
	k := 0
	for i := range sources {
		for tree.Sources[k].Path != sources[i].Path {
			k++
		}
		stats[i] = tree.Sources[k].Stat
	}
	return sources, stats, nil
}
