package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/chunk"
	"nbc/index"
	"nbc/mtime"
	"nbc/transfer/store"
)

// saving is one run of Save.
type saving struct {
	*Build
	o       SaveOptions
	report  *SaveReport
	walker  index.Walker
	receipt *receipt // of this build's restore, or nil
	format  Format
	params  chunk.Params
	state   State

	base  *base
	dead  dead
	known map[chunk.ID]uint64 // chunks that the store has, under which epoch
	find  *finding            // of output paths, or nil

	artifacts []index.Found
	// nothing says that the artifacts are those of the base, every one untouched, and all its chunks can be referred to.
	nothing bool
	entries []index.Entry
	files   []content
	sources []index.Source
	probe   int64
}

// Save stores what the cache directories hold. Chunks go first and the index last, so a reader sees the old tree or the
// new one, whole. On an error the old index is in place, unless the error says that the new one could not be
// acknowledged. That a rule forbids the save is not an error: the report, never nil, says which.
func (b *Build) Save(ctx context.Context, o SaveOptions) (*SaveReport, error) {
	start := b.cache.now()
	s := &saving{Build: b, o: o, report: &SaveReport{Report: Report{Version: ReportVersion, Action: "save", Name: o.Name}}}
	defer func() { s.report.Seconds = b.cache.now().Sub(start).Seconds() }()
	b.cache.Progress.start("saving")
	free, err := b.lockTree(lockShared)
	if err != nil {
		return s.report, err
	}
	defer free()
	if err := s.takeReceipt(); err != nil {
		return s.report, err
	}
	if err := s.begin(ctx); err != nil {
		return s.report, err
	}
	if s.params, err = s.format.Params(); err != nil {
		return s.report, err
	}
	reason, err := s.forbidden(ctx)
	if err != nil || reason != "" {
		s.report.Reason = reason
		return s.report, err
	}
	const attempts = 3
	for try := 1; ; try++ {
		err := s.save(ctx)
		if err == nil {
			break
		}
		if m := (miss{}); errors.As(err, &m) {
			s.report.Reason = m.reason
			return s.report, nil
		}
		if !errors.Is(err, ErrChanging) || try == attempts {
			return s.report, err
		}
	}
	return s.report, nil
}

// takeReceipt finds out what is to be saved, and from which receipt.
func (s *saving) takeReceipt() error {
	r := s.load()
	named := s.o.Name != ""
	if !named {
		if r == nil {
			return fmt.Errorf("%w in this tree: restore first, or name what to save", ErrNoReceipt)
		}
		if r.Outcome == outcomeSaved {
			return fmt.Errorf("%w: the build of the last one was saved already; restore again, or name what to save",
				ErrNoReceipt)
		}
		s.o.Name, s.o.Fallbacks = r.Name, r.Fallbacks
		if len(s.o.Dirs) == 0 {
			s.o.Dirs = r.Tree.Dirs
		}
		if len(s.o.Exclude) == 0 {
			s.o.Exclude = r.Tree.Exclude
		}
		if len(s.o.IgnoreSources) == 0 {
			s.o.IgnoreSources = r.Tree.IgnoreSources
		}
	}
	// Also for a save of its own: what the build before it was given most likely stands in the artifacts, and a save that
	// does not look for it is of no use to a build that has output paths.
	if r != nil && len(s.o.Outputs) == 0 {
		s.o.Outputs, named = r.Outputs, false
	}
	if r != nil && !named && len(s.o.NoRewrite) == 0 {
		s.o.NoRewrite = r.Tree.NoRewrite
	}
	var err error
	if s.o.Outputs, err = sortOutputs(s.o.Outputs); err != nil {
		return err
	}
	if _, err := s.o.noRewrite(); err != nil {
		return err
	}
	s.report.Name = s.o.Name
	if _, err := index.Path(s.o.Name); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	for _, n := range s.o.Fallbacks {
		if _, err := index.Path(n); err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
	}
	if s.walker, err = s.o.walker(); err != nil {
		return err
	}
	s.receipt = r
	return nil
}

// before says whether the receipt knows the sources as they were before the build that is to be saved.
func (s *saving) before() bool {
	r := s.receipt
	return r != nil && r.Outcome != outcomeSaved && len(r.Sources) > 0 &&
		slices.Equal(r.Tree.Dirs, s.o.Dirs) && slices.Equal(r.Tree.IgnoreSources, s.o.IgnoreSources)
}

// forbidden says why a failed build's artifacts are not saved. An outage followed by a failing build must not replace
// a good index: only a build that began with this very name, or with the knowledge that there is none, may.
func (s *saving) forbidden(ctx context.Context) (string, error) {
	if !s.o.Failed {
		return "", nil
	}
	r := s.receipt
	switch {
	case !s.before():
		return "the build failed, and nothing is known of what it began with", nil
	case r.Restored == s.o.Name && r.Store == s.format.ID:
		return "", nil
	case r.Absent && r.Name == s.o.Name && r.Store == s.format.ID:
		return "", nil
	case r.Absent && r.Name == s.o.Name && r.Store == "":
		// The store was new then; this may be another one.
		if _, err := s.cache.readKeys(ctx, s.o.Name); errors.Is(err, store.ErrNotExist) {
			return "", nil
		} else if errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			return "", err
		}
	}
	return "the build failed, and it did not begin with what this name holds", nil
}

// baseUsable says whether the receipt's base speaks of chunks that this store has.
func (s *saving) baseUsable() bool {
	r := s.receipt
	return r != nil && r.BaseData != nil && r.BaseStore == s.format.ID && !slices.Contains(r.Damaged, r.Base)
}

// save is one attempt, with a walk of its own.
func (s *saving) save(ctx context.Context) error {
	s.report.Warnings = nil
	s.dead, s.known, s.base = dead{}, nil, nil
	skip, err := s.o.noRewrite()
	if err != nil {
		return err
	}
	s.find = newFinding(s.o.Outputs, skip)
	if err := s.look(ctx); err != nil {
		return err
	}
	s.report.Untouched, s.report.Bytes = 0, 0
	for i := range s.files {
		s.report.Bytes += s.files[i].entry.Size
	}
	if s.report.Files == 0 {
		return missf("there is nothing in %s", strings.Join(s.o.Dirs, ", "))
	}
	u := newUpload(s)
	list := s.segments()
	var todo []*segment
	for i := range list {
		var ok bool
		if list[i].chunks, ok = s.base.chunks(&list[i], s.usable); ok {
			list[i].places = s.base.places(&list[i])
			s.report.Untouched += len(list[i].files)
		} else {
			todo = append(todo, &list[i])
		}
	}
	s.cache.Progress.TotalBytes.Store(u.total(todo))
	if err := u.run(ctx, todo); err != nil {
		return err
	}
	x := &index.Index{Epoch: s.state.Epoch, Roots: s.report.Roots, Entries: s.entries, Sources: s.sources, Build: s.describe()}
	chunks := 0
	for i := range list {
		chunks += len(list[i].chunks)
	}
	x.Chunks = make([]index.Chunk, 0, chunks)
	for i := range list {
		x.Chunks = append(x.Chunks, list[i].chunks...)
	}
	s.report.Chunks = len(x.Chunks)
	x.Outputs = s.outputPaths(list)
	var data []byte
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.unchanged(gctx) })
	g.Go(func() (err error) {
		data, err = s.encode(x)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	data, err = s.commit(ctx, u, x, data)
	p := s.cache.Progress
	s.report.Sent = Traffic{Chunks: int(p.Chunks.Load()), Bytes: p.Transferred.Load()}
	if err != nil {
		return err
	}
	s.report.Saved = true
	s.settle(data)
	return nil
}

// segments cuts the contents; where they are those of the base and can be reused as a whole there is only one.
func (s *saving) segments() []segment {
	if s.nothing && len(s.files) > 0 {
		all := newSegment(s.files)
		if _, s.nothing = s.base.chunks(&all, s.usable); s.nothing {
			return []segment{all}
		}
	}
	return segments(s.files)
}

// outputPaths describes where output paths were found.
func (s *saving) outputPaths(list []segment) (o index.Outputs) {
	if s.find == nil {
		return o
	}
	o = index.Outputs{List: s.o.Outputs, NoRewrite: s.o.NoRewrite}
	var sealed []string
	for i := range list {
		o.Occurrences = append(o.Occurrences, list[i].places...)
		sealed = append(sealed, list[i].sealed...)
	}
	if len(sealed) > 0 {
		s.warn("output paths are not looked for in files that are compressed or have checksums of themselves: %s%s may "+
			"hold an old one after a restore (--no-rewrite says that this is known)", sealed[0], more(len(sealed)-1))
	}
	// Names of files are not changed: the next build would look for others, and make them.
	var named []string
	for i := range s.entries {
		p := s.entries[i].Path
		if _, ok := s.find.next([]byte(p), 0, len(p)); ok {
			named = append(named, p)
		}
	}
	if len(named) > 0 {
		s.warn("output paths in the names of files stay as they are: in %s%s", named[0], more(len(named)-1))
	}
	s.report.OutputPaths = Places{Places: len(o.Occurrences)}
	next := 0
	for i := range s.files {
		begin := next
		for end := s.files[i].offset + s.files[i].entry.Size; next < len(o.Occurrences) && o.Occurrences[next].Offset < end; {
			next++
		}
		if next > begin {
			s.report.OutputPaths.Files++
		}
	}
	return o
}

// more says that there are n others.
func more(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return " and 1 file more"
	}
	return fmt.Sprintf(" and %d files more", n)
}

// normalisedAlike says whether untouched files have, in this save, the contents that they have in the base: the base was
// searched for the same outputs, with the same exceptions, and since then the restore has put the paths there that this
// save looks for.
func (s *saving) normalisedAlike() bool {
	r, was := s.receipt, &s.base.index.Outputs
	if len(s.o.Outputs) == 0 {
		return len(was.List) == 0
	}
	if !slices.Equal(r.FileOutputs, s.o.Outputs) || !slices.Equal(r.FileNoRewrite, s.o.NoRewrite) ||
		!slices.Equal(was.NoRewrite, s.o.NoRewrite) || len(was.List) != len(s.o.Outputs) {
		return false
	}
	for i, o := range was.List {
		if o.Name != s.o.Outputs[i].Name {
			return false
		}
	}
	return !slices.ContainsFunc(was.Occurrences, func(c index.Occurrence) bool {
		return c.Named && len(was.List[c.Output].Base()) != len(s.o.Outputs[c.Output].Base())
	})
}

func (s *saving) usable(k chunk.Key) bool {
	g, ok := s.known[k.ID]
	return ok && g == k.Epoch
}

// look walks the tree and asks the store, at the same time. What takes the store longer than the tree is waited for, but
// for what the looking for siblings finds late.
func (s *saving) look(ctx context.Context) error {
	var tree *index.Tree
	var others []*index.Index
	g, gctx := errgroup.WithContext(ctx)
	patient, giveUp := context.WithCancel(gctx)
	defer giveUp()
	var patience *time.Timer
	stateRead := make(chan struct{})
	g.Go(func() (err error) {
		if tree, err = s.walker.Walk(gctx, s.root); err != nil {
			return localUnless(gctx, fmt.Errorf("looking at the tree: %w", err))
		}
		// The build may have ended within this tick of the clock. What is read later is read after it, so that a file that
		// is written to once more has another Stat, now and for the next restore.
		if s.probe, err = settle(clocks(s.root, []string{s.root}, tree.Artifacts), statsOf(tree.Artifacts)); err != nil {
			s.probe = 0 // a tree that cannot be written to proves nothing by times; all is read the next time
		}
		err = s.describeSources(gctx, tree)
		patience = time.AfterFunc(siblingPatience(tree), giveUp)
		return err
	})
	g.Go(func() (err error) {
		if s.state, err = readState(gctx, s.cache.Store); err == nil {
			close(stateRead)
		}
		return err
	})
	g.Go(func() (err error) {
		if others, err = s.dedupBases(gctx); err != nil || len(others) > 0 || !s.alone() {
			return err
		}
		select {
		case <-stateRead:
			return s.findSiblings(patient) // from here on it is the only one to know of the state
		case <-gctx.Done():
			return context.Cause(gctx)
		}
	})
	if s.baseUsable() {
		g.Go(func() error {
			x, err := index.Decode(s.receipt.BaseData)
			if err != nil {
				return fmt.Errorf("base of the receipt: %w", err)
			}
			s.base = newBase(x)
			return nil
		})
	}
	err := g.Wait()
	if patience != nil {
		patience.Stop()
	}
	if err != nil {
		return err
	}
	for _, p := range tree.Skipped {
		if !inDirs(s.walker.Dirs, p) {
			continue // among the sources, where a daemon's socket is nothing to be told of at every save
		}
		s.warn("%s is left out: it is not a file, directory or link", p)
	}
	if s.base != nil {
		s.report.Base = s.receipt.Base
		others = append(others, s.base.index) // last: its keys win
	}
	if err := s.learn(ctx, others); err != nil {
		return err
	}
	s.report.Roots, s.artifacts = tree.Roots, tree.Artifacts
	s.describeArtifacts(tree)
	return nil
}

func (s *saving) warn(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	s.report.Warnings = append(s.report.Warnings, text)
	s.cache.log().Warn(text)
}

// learn adds the usable keys of bases to the known ones, those of the last base last.
func (s *saving) learn(ctx context.Context, bases []*index.Index) error {
	var newest uint64
	chunks := 0
	for _, x := range bases {
		newest = max(newest, x.Epoch)
		chunks += len(x.Chunks)
	}
	if s.known == nil { // else there are some of siblings
		s.known = make(map[chunk.ID]uint64, chunks)
	}
	if err := s.state.checkEpoch(ctx, s.cache.Store, "a base", newest); err != nil {
		return err
	}
	// The oldest first: the manifest that tells what died since then tells it of the others as well.
	byAge := slices.SortedFunc(slices.Values(bases), func(a, b *index.Index) int { return cmp.Compare(a.Epoch, b.Epoch) })
	trusted := map[*index.Index]bool{}
	for _, x := range byAge {
		ok, err := s.dead.learn(ctx, s.cache.Store, s.state, x.Epoch)
		if err != nil {
			return err
		}
		trusted[x] = ok
	}
	for _, x := range bases {
		if !trusted[x] {
			continue
		}
		dead := s.dead.among(x.Chunks)
		for _, c := range x.Chunks {
			if !dead[c.Key] {
				s.known[c.ID] = c.Key.Epoch
			}
		}
	}
	return nil
}

// dedupBases reads the chunk keys of indexes that the build was not restored from, but that are likely to have much of
// it: those of the name itself and of its fallbacks. One that is absent, refused or damaged is no help, and no fault;
// one that cannot be reached ends the save, which could not reach the store either.
//
// Where the base is the name's own index none is read: it has nearly all that they could have. After a restore that met
// a damaged chunk none is read either: they may refer to the same chunk, which would then never be sent again. The base,
// if there is one, was restored, so that its chunks are whole.
func (s *saving) dedupBases(ctx context.Context) ([]*index.Index, error) {
	r := s.receipt
	if s.baseUsable() && r.Base == s.o.Name || r != nil && r.Store == s.format.ID && len(r.Damaged) > 0 {
		return nil, nil
	}
	var list []*index.Index
	names := append([]string{s.o.Name}, s.o.Fallbacks...)
	for _, name := range slices.Backward(names) { // so that the name's own keys win
		if s.baseUsable() && r.Base == name || r != nil && r.Store == s.format.ID && r.Absent && r.Name == name {
			continue
		}
		x, err := s.cache.readKeys(ctx, name)
		switch {
		case errors.Is(err, store.ErrNotExist), errors.Is(err, store.ErrRefused), errors.Is(err, index.ErrInvalid),
			errors.Is(err, index.ErrVersion):
			continue
		case err != nil:
			return nil, err
		}
		if len(x.Chunks) > 0 { // or it is a tombstone
			list = append(list, x)
		}
	}
	return list, nil
}

// readKeys reads the epoch and the chunk keys of a name's index, and nothing behind them.
func (c *Cache) readKeys(ctx context.Context, name string) (*index.Index, error) {
	key, err := index.Path(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	var most atomic.Int64
	most.Store(index.MaxSize)
	x, err := c.readKeysWithin(ctx, key, index.FirstRead, &most)
	if err != nil && !errors.Is(err, index.ErrInvalid) && !errors.Is(err, index.ErrVersion) {
		err = fmt.Errorf("reading the chunk keys of %s: %w", name, err)
	}
	return x, err
}

// readKeysWithin reads the chunk keys of the index at key: of its first bytes as many as first, and then, if they take
// more, all of them, less than which left must hold. It takes them off left.
func (c *Cache) readKeysWithin(ctx context.Context, key string, first int64, left *atomic.Int64) (*index.Index, error) {
	o, err := c.Store.Get(ctx, key, store.Read{Length: first})
	if err != nil {
		return nil, err
	}
	need, err := index.PrefixSize(o.Data)
	if err != nil {
		return nil, err
	}
	if left.Add(-int64(need)) < 0 {
		return nil, fmt.Errorf("%w: the chunk keys of %s take %d bytes", store.ErrTooLarge, key, need)
	}
	if need > len(o.Data) {
		if o, err = c.Store.Get(ctx, key, store.Read{Length: int64(need)}); err != nil {
			return nil, err
		}
	}
	epoch, chunks, err := index.DecodeChunks(o.Data)
	if err != nil {
		return nil, err
	}
	return &index.Index{Epoch: epoch, Chunks: chunks}, nil
}

// describeSources says what the artifacts were built from: the hashes from before the build, and which of the sources
// changed since, so that nobody knows which bytes were built.
func (s *saving) describeSources(ctx context.Context, tree *index.Tree) error {
	s.report.Unknown = nil
	if !s.before() {
		s.report.HashedAfter = true
		sources, stats, err := hashSources(ctx, s.root, tree, s.cache.Progress)
		if err != nil {
			return localUnless(ctx, fmt.Errorf("hashing sources: %w", err))
		}
		s.sources = sources
		// If there was a restore that was stopped before it had hashed them, at least it is known which have changed since.
		if r := s.receipt; r != nil && r.Outcome != outcomeSaved && r.SourceProbe != 0 {
			for i := range sources {
				if stats[i].CTime >= r.SourceProbe {
					sources[i].Unknown, sources[i].Sum = true, [index.SumSize]byte{}
					s.report.Unknown = append(s.report.Unknown, sources[i].Path)
				}
			}
		}
		return nil
	}
	r := s.receipt
	sources, err := mtime.Recheck(r.Sources, r.SourceStats, r.SourceProbe, tree.Sources)
	if err != nil {
		return err
	}
	for i := range sources {
		if sources[i].Unknown && !r.Sources[i].Unknown {
			s.report.Unknown = append(s.report.Unknown, sources[i].Path)
		}
	}
	s.sources = sources
	return nil
}

// describeArtifacts turns what the walk found into entries, and says which of the files are untouched.
func (s *saving) describeArtifacts(tree *index.Tree) {
	n := len(tree.Artifacts)
	s.entries = make([]index.Entry, 0, n)
	s.files = make([]content, 0, n)
	find := s.receipt.lookup()
	type inode struct{ dev, ino uint64 }
	first := map[inode]string{}
	var offset int64
	for i := range tree.Artifacts {
		a := &tree.Artifacts[i]
		e := index.Entry{Path: a.Path, Kind: a.Kind, Target: a.Target}
		switch a.Kind {
		case index.Dir:
			e.Mode, e.MTime = uint16(a.Stat.Mode&0o777), a.Stat.MTime
		case index.Link:
			e.MTime = a.Stat.MTime
		case index.File:
			if a.Stat.Links > 1 {
				id := inode{a.Stat.Dev, a.Stat.Ino}
				if target, ok := first[id]; !ok {
					first[id] = a.Path
				} else if _, root := slices.BinarySearch(tree.Roots, a.Path); !root { // which may be restored without the other
					e.Kind, e.Target = index.HardLink, target
					break
				}
			}
			e.Mode, e.MTime, e.Size = uint16(a.Stat.Mode&0o777), a.Stat.MTime, a.Stat.Size
		}
		s.entries = append(s.entries, e)
	}
	alike := s.base != nil && s.normalisedAlike()
	findBase := s.base.lookup()
	untouched, files := 0, 0
	for i := range s.entries {
		e, stat := &s.entries[i], &tree.Artifacts[i].Stat
		proven := false
		if e.Kind != index.Dir {
			files++
			f, ok := find(e.Path)
			proven = ok && alike && f.untouched(*stat, s.receipt.Probe)
		}
		if proven {
			untouched++
		}
		if e.Kind != index.File {
			continue
		}
		c := content{entry: e, stat: stat, offset: offset}
		if proven {
			if n, ok := findBase(e.Path); ok {
				if was := &s.base.index.Entries[n]; was.Kind == index.File && was.Size == e.Size {
					c.untouched, c.baseOffset = true, s.base.offsets[n]
				}
			}
		}
		s.files = append(s.files, c)
		offset += e.Size
	}
	s.report.Files = files
	s.nothing = alike && untouched == files && slices.Equal(s.entries, s.base.index.Entries)
}

// describe says where the index comes from.
func (s *saving) describe() index.Build {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	b := index.Build{
		Root: s.root, Host: host, Saved: s.cache.now().UnixNano(), Patterns: s.o.Dirs, Version: s.cache.Version,
	}
	if s.o.Failed {
		b.Failures = 1
		if s.base != nil && s.receipt.Restored == s.o.Name && sameSources(s.base.index.Sources, s.sources) {
			b.Failures = s.base.index.Build.Failures + 1
		}
	}
	return b
}

// unchanged walks the cache directories once more: what is saved is the tree as it was at one moment, or nothing. For the
// first walk has seen each directory at another time, and files were read after it.
//
// If it found the base, and every file of that untouched, this is known already: the base is a tree as it was at one
// moment, no file was read, and none had changed since the restore when the walk came by. What a build that is still at
// work changes after that is not in this save, as it would not be if it came a moment later.
func (s *saving) unchanged(ctx context.Context) error {
	if s.nothing {
		return nil
	}
	w := s.walker
	w.NoSources = true
	tree, err := w.Walk(ctx, s.root)
	if err != nil {
		return localUnless(ctx, fmt.Errorf("looking at the artifacts again: %w", err))
	}
	was, now := s.artifacts, tree.Artifacts
	for len(was) > 0 && len(now) > 0 && was[0] == now[0] {
		was, now = was[1:], now[1:]
	}
	switch {
	case len(was) > 0 && (len(now) == 0 || was[0].Path <= now[0].Path):
		return fmt.Errorf("%w: %s", ErrChanging, was[0].Path)
	case len(now) > 0:
		return fmt.Errorf("%w: %s", ErrChanging, now[0].Path)
	}
	return nil
}

// maxRounds bounds how many collections in a row a save gives way to.
const maxRounds = 20

// encode returns the bytes of x.
func (s *saving) encode(x *index.Index) ([]byte, error) {
	var was *index.Index
	var old []byte
	if s.base != nil {
		was, old = s.base.index, s.receipt.BaseData
	}
	data, err := x.EncodeAfter(was, old)
	if err != nil {
		// Not %w: index.ErrInvalid would say that what the store holds is damaged, and it is the tree that no index can
		// describe.
		return nil, fmt.Errorf("describing the tree: %v", err)
	}
	return data, nil
}

// commit puts the index, of which data are the bytes, and makes sure that no collector can have missed it. It returns the
// index as it was put.
func (s *saving) commit(ctx context.Context, u *upload, x *index.Index, data []byte) ([]byte, error) {
	key, err := index.Path(s.o.Name)
	if err != nil {
		return nil, err
	}
	st := s.state
	for s.report.Rounds = 1; ; s.report.Rounds++ {
		if st.Epoch > x.Epoch {
			// A collection began since. What it condemned is not to be referred to, not even under keys of our own.
			ok, err := s.dead.learn(ctx, s.cache.Store, st, x.Epoch)
			if err != nil {
				return nil, err
			}
			dead := s.dead.among(x.Chunks)
			if err := u.again(ctx, x, st.Epoch, func(k chunk.Key) bool { return !ok || dead[k] }); err != nil {
				return nil, err
			}
			x.Epoch = st.Epoch
			if data, err = s.encode(x); err != nil {
				return nil, err
			}
		}
		crash("index")
		if _, err := s.cache.Store.Put(ctx, key, data, store.Condition{}); err != nil {
			return nil, fmt.Errorf("putting the index: %w", err)
		}
		crash("index put")
		s.cache.Progress.Transferred.Add(int64(len(data)))
		if st, err = readState(ctx, s.cache.Store); err != nil {
			return nil, fmt.Errorf("the index was put, but not acknowledged: %w", err)
		}
		if st.Epoch < x.Epoch {
			return nil, fmt.Errorf("%w: %s went back from epoch %d to %d", ErrStateLost, StatePath, x.Epoch, st.Epoch)
		}
		if st.Fence < x.Epoch {
			return data, nil
		}
		if s.report.Rounds == maxRounds {
			return nil, fmt.Errorf("the index was put, but not acknowledged: %d collections in a row came between",
				maxRounds)
		}
	}
}

// settle turns the receipt into one that a later restore can use as a proof, and no later save as its own.
func (s *saving) settle(data []byte) {
	files := make([]receiptFile, 0, s.report.Files)
	for i := range s.artifacts {
		if a := &s.artifacts[i]; a.Kind != index.Dir {
			files = append(files, receiptFile{Path: a.Path, Stat: a.Stat})
		}
	}
	r := &receipt{
		Outcome: outcomeSaved, Name: s.o.Name, Fallbacks: s.o.Fallbacks, Tree: s.o.Tree,
		Store: s.format.ID, Base: s.o.Name, BaseStore: s.format.ID, BaseData: data, Files: files, Probe: s.probe,
		Outputs: s.o.Outputs, FileOutputs: s.o.Outputs, FileNoRewrite: s.o.NoRewrite,
	}
	if err := s.keep(r); err != nil {
		s.warn("%v", err)
		if err := s.forget(); err != nil {
			s.warn("%v", err)
		}
	}
}
