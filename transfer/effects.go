package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nbc/index"
	"nbc/mtime"
)

// restore brings the tree to what c says, in the order of effects that makes a kill harmless at any point:
//
//	stage   new files are written into a work directory; nothing else changes
//	clear   old cache directories are moved into it: from here a build finds no artifacts and is cold
//	look    they are still what the restore was planned with, or it ends here
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
	if x.Build.Failures >= failuresBeforeMiss && sameSources(x.Sources, r.sources) {
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
	rewrite, err := newRewriting(x, r.o.Outputs, r.o.Tree)
	if err != nil {
		return err
	}
	list, skipped, err := plan(r.root, x, roots, r.tree.Roots)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(p *placement) bool { return p.entry != nil }) {
		return missf("no directory of the tree has a place for %s", strings.Join(skipped, ", "))
	}
	s := newStaging(x, list, rewrite, p)
	e := &effects{r: r, list: list, staging: s, changes: changes}
	e.mover = &mover{ours: e.ours}
	if err := e.do(ctx, c); err != nil {
		if err2 := e.undo(); err2 != nil {
			return local(errors.Join(err, fmt.Errorf("taking the restore back: %w", err2)))
		}
		return err
	}
	r.report.Skipped = skipped
	for _, root := range skipped {
		r.warn("%s is not restored: the directory it belongs to is not in the source tree", root)
	}
	return nil
}

// sameSources says whether two builds had the same sources, as far as that is known. Files that the earlier build has
// changed itself count for nothing.
func sameSources(base, now []index.Source) bool {
	unknown := map[string]bool{}
	for i := range base {
		if base[i].Unknown {
			unknown[base[i].Path] = true
		}
	}
	c := mtime.Diff(base, now)
	return len(c.New) == 0 && len(c.Deleted) == 0 &&
		!slices.ContainsFunc(c.Changed, func(s index.Source) bool { return !s.Unknown && !unknown[s.Path] })
}

// effects are the changes that a restore makes to the tree.
type effects struct {
	r       *restoring
	works   []*workDir
	failed  string // a directory in which a work directory could not be made, or not as a whole
	list    []*placement
	mover   *mover // for clear, then for place
	cleared *mover // nil until all is moved aside and looked at; only after that anything else is changed
	// dirs are directories of sources that work directories were made in, or cache directories moved out of, before that.
	dirs    map[string]index.Stat
	staging *staging
	changes mtime.Changes
	times   *mtime.Plan
	now     int64
}

// ours says whether dir is a directory of artifacts, or in a work directory.
func (e *effects) ours(dir string) bool {
	return slices.ContainsFunc(e.list, func(p *placement) bool { return within(dir, p.target) || within(dir, p.work()) })
}

// begin makes the work directories, after it has noted them in a journal.
func (e *effects) begin() error {
	j := journal{}
	for _, p := range e.list {
		if !slices.Contains(j.Work, p.work()) {
			j.Work = append(j.Work, p.work())
		}
	}
	if err := e.r.Build.state.writeJournal(j); err != nil {
		return local(fmt.Errorf("writing the journal: %w", err))
	}
	e.dirs = map[string]index.Stat{}
	holders := []string{"."}
	for _, p := range e.list {
		holders = append(holders, path.Dir(p.root))
	}
	for _, dir := range holders {
		st, err := index.LstatFile(e.r.root, dir)
		if err != nil {
			return local(err)
		}
		e.dirs[dir] = st
	}
	for _, path := range j.Work {
		dir := filepath.Dir(path)
		w, err := makeWork(dir)
		if errors.Is(err, fs.ErrPermission) && e.ours(dir) {
			// A mount point whose owner may not write to it. It gets the mode that it should have in the end.
			var fi fs.FileInfo
			if fi, err = os.Stat(dir); err == nil {
				err = os.Chmod(dir, fi.Mode().Perm()|0o700) // for its owner
			}
			if err == nil {
				w, err = makeWork(dir)
			}
		}
		if err != nil {
			if !errors.Is(err, ErrBusy) {
				e.failed = dir
			}
			return local(fmt.Errorf("making a work directory: %w", err))
		}
		e.works = append(e.works, w)
	}
	return nil
}

// workPaths returns the directories in which the clocks of the file systems can be asked, that of the tree first.
func (e *effects) workPaths() []string {
	paths := []string{e.r.root}
	for _, w := range e.works {
		if filepath.Dir(w.path) == e.r.root {
			paths[0] = w.path
		} else {
			paths = append(paths, w.path)
		}
	}
	return paths
}

func (e *effects) do(ctx context.Context, c candidate) error {
	r, p := e.r, e.r.cache.Progress
	if err := e.begin(); err != nil {
		return err
	}

	// A first look at the clock, before anything is fetched for nothing.
	policy := mtime.Policy{Times: r.o.Times, OnSkew: r.o.OnSkew}
	newest := max(c.index.Newest(), e.changes.Newest())
	clock := e.workPaths()[0]
	now, err := probe(clock)
	if err != nil {
		return local(err)
	}
	shift, _, ok := policy.Guard(newest, now)
	if !ok {
		return tooNew(newest, now)
	}
	e.staging.shift = shift
	e.staging.keep = newKeeping(r.old, r.tree, c.index, e.staging.rewrite, e.staging.selected, shift)

	p.phase("restoring")
	p.TotalBytes.Store(e.staging.total())
	if err := e.staging.write(ctx, r.cache); err != nil {
		return err
	}

	for {
		if now, err = probe(clock); err != nil {
			return local(err)
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

	crash("clear")
	if err := clearOld(e.list, e.mover); err != nil {
		return local(err)
	}
	crash("look")
	if err := e.looked(ctx); err != nil {
		return err
	}
	e.cleared, e.mover = e.mover, &mover{ours: e.ours}
	e.times = mtime.NewPlan(r.root, e.changes, r.tree.Sources, shift)
	crash("times")
	if err := e.times.Apply(ctx, r.root, now); err != nil {
		return localUnless(ctx, fmt.Errorf("setting the times of sources: %w", err))
	}
	crash("merge")
	if err := e.staging.merge(ctx, e.list, e.mover); err != nil {
		return err
	}
	crash("place")
	if err := place(ctx, e.list, e.mover, shift); err != nil {
		return err
	}
	crash("placed")
	// All is in place and right. What is left is quick, and not worth an end in the middle.
	e.finish(context.WithoutCancel(ctx), c, shift)
	return nil
}

// looked makes sure that what was moved aside is what the restore saw when it looked at the tree: what it keeps is, byte
// for byte, and nothing else came or was changed that would be lost. A build may have been at work since, or another nbc
// where the tree could not be locked. From here on nobody gets at it by its path.
func (e *effects) looked(ctx context.Context) error {
	aside, err := index.CompilePatterns([]string{"old"})
	if err != nil {
		return err
	}
	renamedTo := make(map[string]bool, len(e.mover.done))
	for _, s := range e.mover.done {
		renamedTo[s.to] = true
	}
	was, seen := e.r.tree.Artifacts, make([]bool, len(e.r.tree.Artifacts))
	for _, w := range e.works {
		tree, err := index.Walker{Dirs: aside, NoSources: true}.Walk(ctx, w.path)
		if err != nil {
			return localUnless(ctx, fmt.Errorf("looking at the old artifacts again: %w", err))
		}
		names := map[string]string{}
		for _, p := range e.list {
			if p.work() == w.path {
				names[p.name] = p.root
			}
		}
		place := func(p string) string { // in the tree
			name, rest, _ := strings.Cut(strings.TrimPrefix(p, "old/"), "/")
			return path.Join(names[name], rest)
		}
		for i := range tree.Artifacts {
			f := &tree.Artifacts[i]
			if f.Path == "old" {
				continue
			}
			at := place(f.Path)
			k, ok := slices.BinarySearchFunc(was, at, func(a index.Found, p string) int { return strings.Compare(a.Path, p) })
			switch {
			case ok && e.sameArtifact(&was[k], f, renamedTo[filepath.Join(w.path, filepath.FromSlash(f.Path))]):
				seen[k] = true
			case ok:
				return fmt.Errorf("%w: %s", ErrChanging, at)
			case !slices.Contains(e.r.tree.Skipped, at): // a link that leads nowhere, in place of a cache directory
				return fmt.Errorf("%w: %s is new", ErrChanging, at)
			}
		}
		for _, p := range tree.Skipped {
			if at := place(p); !slices.Contains(e.r.tree.Skipped, at) {
				return fmt.Errorf("%w: %s is new", ErrChanging, at)
			}
		}
	}
	roots := byRoot(e.list)
	for i := range was {
		if !seen[i] && roots.of(was[i].Path) != nil {
			return fmt.Errorf("%w: %s is gone", ErrChanging, was[i].Path)
		}
	}
	return nil
}

// sameArtifact compares what was found at one path before and after it was moved aside, and says by renamed whether it
// was itself renamed. What is kept must be the same in everything that the renaming does not change; of what is not, it
// is enough that nobody has written it anew: hard links get another ctime from each other's renaming, and overlayfs
// copies what is in its lower layers.
func (e *effects) sameArtifact(a, b *index.Found, renamed bool) bool {
	keep := e.staging.keep
	if a.Kind != b.Kind || a.Target != b.Target {
		return false
	}
	was, now := a.Stat, b.Stat
	alike := was.Mode == now.Mode && was.MTime == now.MTime
	if a.Kind == index.Dir {
		if right, ok := keep.dirs[a.Path]; ok && right && !alike {
			keep.dirs[a.Path] = false // it was made anew, for it could not be renamed, or somebody has changed it
		}
		return true
	}
	if !keep.has(a.Path) {
		return alike && was.Size == now.Size
	}
	if renamed {
		was.CTime = now.CTime
		if was.Dev != now.Dev { // a copy, as above
			was.Dev, was.Ino = now.Dev, now.Ino
		}
	}
	return was == now
}

// finish cleans up, gives directories the times that all the renaming has changed, and fills in receipt and report.
// The tree is right already: what fails here is a warning.
func (e *effects) finish(ctx context.Context, c candidate, shift int64) {
	r, rep, rec := e.r, e.r.report, e.r.receipt
	rec.Restored, rec.Shift = c.name, shift
	rec.Base, rec.BaseStore, rec.BaseData = c.name, r.format.ID, c.data
	rec.FileOutputs, rec.FileNoRewrite = e.staging.rewrite.outputs, e.staging.rewrite.noRewrite
	set := e.times.Stats()
	for i := range rec.Sources {
		rec.SourceStats[i] = set[rec.Sources[i].Path]
	}
	if err := e.proveFiles(rec); err != nil {
		r.warn("looking at the artifacts again: %v", err)
		rec.Files = nil
	}
	var err error
	stats := make([]index.Stat, len(rec.Files))
	for i := range rec.Files {
		stats[i] = rec.Files[i].Stat
	}
	if rec.Probe, err = settle(clocks(r.root, e.workPaths(), r.tree.Sources), stats, rec.SourceStats); err != nil {
		r.warn("looking at the clock: %v", err)
	}
	rec.SourceProbe = rec.Probe

	cleanup := e.removeWork()
	if cleanup != nil {
		r.warn("cleaning up: %v", cleanup)
	}
	for _, p := range e.list {
		if p.entry != nil && p.entry.Kind == index.Dir {
			if err := p.finish(shift); err != nil {
				r.warn("setting the time of %s: %v", p.root, err)
			}
		}
	}
	if err := e.times.ApplyDirs(ctx, r.root, e.now); err != nil {
		r.warn("setting the times of source directories: %v", err)
	}
	crash("directory times")
	if cleanup == nil {
		if err := r.Build.state.removeJournal(); err != nil {
			r.warn("removing the journal: %v", err)
		}
	}
	r.proveSources(rec.Sources, rec.SourceStats)

	p := r.cache.Progress
	rep.Files, rep.Bytes, rep.Chunks = len(rec.Files), e.staging.total(), len(c.index.Chunks)
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
	rep.OutputPaths = e.staging.rewritten
}

// proveFiles collects the Stats of the artifacts in place. Of those that were renamed one by one the ctime is another one
// than when they were staged; if anything else is, it is not known what they hold.
func (e *effects) proveFiles(rec *receipt) error {
	files := e.staging.stats
	slices.SortStableFunc(files, func(a, b receiptFile) int { return strings.Compare(a.Path, b.Path) })
	rec.Files = lastOfEach(files)
	paths, err := moved(e.list, e.mover)
	if err != nil {
		return err
	}
	for _, p := range paths {
		i, ok := slices.BinarySearchFunc(rec.Files, p, func(f receiptFile, p string) int { return strings.Compare(f.Path, p) })
		if !ok {
			continue
		}
		st, err := index.LstatFile(e.r.root, p)
		if err != nil {
			return err
		}
		f := &rec.Files[i]
		if f.Stat.CTime = st.CTime; f.Stat != st {
			f.Stat = index.Stat{} // equal to none
		}
	}
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
	for _, w := range e.works {
		errs = append(errs, w.remove())
	}
	e.works = nil
	return errors.Join(errs...)
}

// undo takes everything back: new directories out first, so that there are no artifacts while the times of the sources
// change back, and old ones in last. If one of these steps fails the next ones are left out, for they are right only
// after it: beside new artifacts the sources keep their new times, and beside those times no old artifacts come back.
func (e *effects) undo() error {
	changed, merged := e.changedDirs(), e.cleared != nil
	err := e.takeBack()
	asBefore := err == nil
	err = errors.Join(err, e.removeWork())
	if asBefore { // but for what moving files and work directories has done to the directories that hold them
		err = errors.Join(err, e.undoArtifactDirs(changed, merged), e.undoDirTimes(changed))
	}
	if err == nil {
		err = e.r.Build.state.removeJournal()
	}
	return err
}

func (e *effects) takeBack() error {
	if e.cleared == nil {
		e.cleared = e.mover
	} else if err := e.mover.undo(); err != nil {
		return err
	}
	if e.times != nil {
		if err := e.times.Undo(e.r.root); err != nil {
			return err
		}
	}
	return e.cleared.undo()
}

// changedDirs returns the directories whose times the restore has changed so far by what it did in them, and those that
// it has made anew. Others were moved as they are, if at all: where they are not as they were, somebody else did that.
func (e *effects) changedDirs() map[string]bool {
	dirs := map[string]bool{e.failed: true}
	for _, w := range e.works {
		dirs[filepath.Dir(w.path)] = true
	}
	for _, m := range []*mover{e.cleared, e.mover} {
		if m == nil {
			continue
		}
		for _, s := range m.done {
			switch s.kind {
			case renamed:
				dirs[filepath.Dir(s.from)], dirs[filepath.Dir(s.to)] = true, true
			case made:
				dirs[filepath.Dir(s.to)] = true
			case removed:
				dirs[filepath.Dir(s.from)], dirs[s.from] = true, true
			}
		}
	}
	return dirs
}

// undoArtifactDirs gives the old cache directories, and what is in them, the modes and times that they had: those that
// were changed, or all if what is kept was merged.
func (e *effects) undoArtifactDirs(changed map[string]bool, merged bool) error {
	var errs []error
	roots := byRoot(e.list)
	for i := range e.r.tree.Artifacts {
		a := &e.r.tree.Artifacts[i]
		p := roots.of(a.Path)
		if a.Kind != index.Dir || p == nil {
			continue
		}
		rel := strings.TrimPrefix(a.Path, p.root)
		dir := p.target + filepath.FromSlash(rel)
		if !changed[dir] && !merged {
			continue
		}
		st, err := index.LstatFile(p.target, "."+rel)
		if err == nil && st.SameFile(a.Stat) && st.Mode == a.Stat.Mode && st.MTime == a.Stat.MTime {
			continue
		}
		if err == nil {
			err = os.Chmod(dir, fs.FileMode(a.Stat.Mode&0o777))
		}
		if err == nil {
			err = setDirTime(dir, a.Stat.MTime)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// undoDirTimes gives directories of sources that were changed the times that they had before that.
func (e *effects) undoDirTimes(changed map[string]bool) error {
	var errs []error
	for p, was := range e.dirs {
		dir := filepath.Join(e.r.root, filepath.FromSlash(p))
		if !changed[dir] {
			continue
		}
		st, err := index.LstatFile(e.r.root, p)
		if err == nil && st.MTime != was.MTime {
			err = setDirTime(dir, was.MTime)
		}
		errs = append(errs, err)
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
