package transfer

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"nbc/index"
	"nbc/mtime"
)

// keeping is the part of an older tree that a restore uses again: files that the receipt proves to be, byte for byte,
// time and mode included, what the new index wants. They are neither fetched nor written.
//
// They do not stay in place while others change around them, though. A build that started then would find artifacts of
// two builds side by side, and a tool that decides by hashes (tsc's .tsbuildinfo, GHC since 9.4) would believe the one
// and not look at the other, whatever the times say. So the order of effects is that of every restore: the old
// directories are moved aside as a whole, and from there what is kept is moved into the staged ones, by whole
// directories where nothing in them differs. All that time a build finds no artifacts. It costs a rename for each kept
// file beside a changed one, a few microseconds.
type keeping struct {
	// files are kept files and links, by path, with their Stats.
	files map[string]index.Stat
	// dirs are directories in which everything is kept, and nothing else is. The value says whether mode and time are
	// already right.
	dirs map[string]bool
	// top are the paths that are moved, sorted: what is in a whole directory moves with it.
	top []string
}

// newKeeping compares what is on disk with what x wants, rewritten by w. Old is the receipt that proves what is on disk,
// and shift what is added to x's times.
func newKeeping(
	old *receipt, tree *index.Tree, x *index.Index, w *rewriting, selected func(string) bool, shift int64,
) *keeping {
	k := &keeping{files: map[string]index.Stat{}, dirs: map[string]bool{}}
	if old == nil || len(old.Files) == 0 || len(old.BaseData) == 0 {
		return k
	}
	was, err := index.Decode(old.BaseData)
	if err != nil {
		return k // in a local copy every doubt is a miss
	}
	asSaved, err := Tree{NoRewrite: old.FileNoRewrite}.noRewrite()
	if err != nil {
		return k // as above
	}
	find := old.lookup()
	before, after := newContents(was), newContents(x)
	linked := map[string]bool{} // files with other names are written anew, all names of them
	for i := range x.Entries {
		if e := &x.Entries[i]; e.Kind == index.HardLink {
			linked[e.Target] = true
		}
	}
	for i := range tree.Artifacts {
		a := &tree.Artifacts[i]
		e, ok := x.Find(a.Path)
		if !ok || e.Kind != a.Kind || a.Kind == index.Dir || !selected(a.Path) || linked[a.Path] || len(a.Path) > maxKeptPath {
			continue
		}
		switch a.Kind {
		case index.Link:
			if target, _ := w.target(e); a.Target != target || a.Stat.MTime != mtime.At(e.MTime, shift) {
				continue
			}
		case index.File:
			f, ok := find(a.Path)
			if !ok || !f.untouched(a.Stat, old.Probe) || a.Stat.Links != 1 || a.Stat.Size != e.Size ||
				a.Stat.Mode&0o7777 != uint32(e.Mode) || a.Stat.MTime != mtime.At(e.MTime, shift) ||
				!sameContents(before, after, a.Path) || !sameOutputs(old, asSaved, before, after, w, a.Path) {
				continue
			}
		}
		k.files[a.Path] = a.Stat
	}
	k.wholeDirs(tree, x, shift)
	return k
}

// maxKeptPath leaves room below PATH_MAX for the work directory's path; what is longer is written anew.
const maxKeptPath = 2048

// wholeDirs finds the directories that can be moved as they are.
func (k *keeping) wholeDirs(tree *index.Tree, x *index.Index, shift int64) {
	// A directory is whole if as many names in it are kept as are on disk, and as there are in the index.
	kept, onDisk, wanted := map[string]int{}, map[string]int{}, map[string]int{}
	for i := range x.Entries {
		wanted[path.Dir(x.Entries[i].Path)]++
	}
	for i := range tree.Artifacts {
		onDisk[path.Dir(tree.Artifacts[i].Path)]++
	}
	for p := range k.files {
		kept[path.Dir(p)]++
	}
	for i := len(tree.Artifacts) - 1; i >= 0; i-- { // children before their parents
		a := &tree.Artifacts[i]
		if a.Kind != index.Dir || kept[a.Path] != onDisk[a.Path] || kept[a.Path] != wanted[a.Path] ||
			len(a.Path) > maxKeptPath {
			continue
		}
		e, ok := x.Find(a.Path)
		if !ok || e.Kind != index.Dir {
			continue
		}
		k.dirs[a.Path] = a.Stat.Mode&0o7777 == uint32(e.Mode) && a.Stat.MTime == mtime.At(e.MTime, shift)
		kept[path.Dir(a.Path)]++
	}
	for p := range k.files {
		if !k.isWhole(path.Dir(p)) {
			k.top = append(k.top, p)
		}
	}
	for p := range k.dirs {
		if !k.isWhole(path.Dir(p)) {
			k.top = append(k.top, p)
		}
	}
	slices.Sort(k.top)
}

func (k *keeping) isWhole(dir string) bool { _, ok := k.dirs[dir]; return ok }

// has says whether the file or link at p is kept.
func (k *keeping) has(p string) bool { _, ok := k.files[p]; return ok }

// merge moves what is kept from where the old directories were put aside into the staged ones, and gives the
// directories that this changes, or that came with other modes or times, those that they should have.
func (s *staging) merge(ctx context.Context, list []*placement, m *mover) error {
	roots := byRoot(list)
	for _, p := range s.keep.top {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pl := roots.of(p)
		if pl == nil {
			continue
		}
		rel := filepath.FromSlash(strings.TrimPrefix(p, pl.root))
		if err := m.rename(pl.aside()+rel, pl.staged()+rel); err != nil {
			return local(fmt.Errorf("keeping %q: %w", p, err))
		}
	}
	s.open = map[string]*stagedDir{}
	defer s.closeAll()
	if err := s.finishDirs(); err != nil {
		return err
	}
	for p, st := range s.keep.files {
		if s.keep.isWhole(path.Dir(p)) {
			s.record(p, st)
			continue
		}
		if err := s.note(p); err != nil { // being renamed has changed its ctime
			return named(p, err)
		}
	}
	return nil
}

// sameOutputs says whether in the file at p, whose contents are the same in both, the output paths stand that w would
// write.
func sameOutputs(old *receipt, asSaved func(string) bool, a, b *contents, w *rewriting, p string) bool {
	pa, pb := placesIn(a.index, a.files[p].offset, a.files[p].size), placesIn(b.index, b.files[p].offset, b.files[p].size)
	if len(pa) != len(pb) {
		return false
	}
	for i := range pa {
		want := w.are
		if w.asSaved(p) {
			want = w.were
		}
		if pa[i].Offset-a.files[p].offset != pb[i].Offset-b.files[p].offset || pa[i].Named != pb[i].Named ||
			old.held(a.index, asSaved, p, pa[i]) != want[pb[i].Output].of(pb[i]) {
			return false
		}
	}
	return true
}

// contents finds the chunks of a file.
type contents struct {
	index  *index.Index
	chunks []index.Chunk
	starts []int64 // of each chunk
	files  map[string]span
}

type span struct{ offset, size int64 }

func newContents(x *index.Index) *contents {
	c := &contents{index: x, chunks: x.Chunks, starts: make([]int64, len(x.Chunks)), files: make(map[string]span, len(x.Entries))}
	var pos int64
	for i := range x.Chunks {
		c.starts[i] = pos
		pos += int64(x.Chunks[i].Length)
	}
	pos = 0
	for i := range x.Entries {
		if e := &x.Entries[i]; e.Kind == index.File {
			c.files[e.Path] = span{pos, e.Size}
			pos += e.Size
		}
	}
	return c
}

// at returns the chunk that holds offset, and the place in it.
func (c *contents) at(offset int64) (number int, rest int64) {
	i := sort.Search(len(c.starts), func(i int) bool { return c.starts[i] > offset }) - 1
	return i, offset - c.starts[i]
}

// sameContents says whether the file at p is made of the same parts of the same chunks in both. Equal bytes in other
// chunks are not recognised: that costs a rewrite.
func sameContents(a, b *contents, p string) bool {
	fa, ok := a.files[p]
	fb, ok2 := b.files[p]
	if !ok || !ok2 || fa.size != fb.size {
		return false
	}
	if fa.size == 0 {
		return true
	}
	i, ra := a.at(fa.offset)
	j, rb := b.at(fb.offset)
	if ra != rb {
		return false
	}
	for left := fa.size + ra; left > 0; i, j = i+1, j+1 {
		if a.chunks[i].ID != b.chunks[j].ID || a.chunks[i].Length != b.chunks[j].Length {
			return false
		}
		left -= int64(a.chunks[i].Length)
	}
	return true
}
