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
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nbc/index"
	"nbc/mtime"
)

// placement is how one cache directory gets from the staging area to its place.
type placement struct {
	root string // path in the tree
	// target is the absolute path that is cleared and filled: that of root, or what it leads to if it is a link.
	target string
	// inside says that target cannot be renamed, so that its children are moved one after another: a mount point, or what
	// a link leads to.
	inside bool
	// dir is the directory that the work directory is made in, on the mount that target is filled on: the tree, or, where
	// a rename from there is not possible, the directory that holds target, or target itself.
	dir  string
	name string // in the work directory
	// entry is nil if the index does not hold this root: it is only cleared.
	entry *index.Entry
}

func (p *placement) work() string   { return filepath.Join(p.dir, workName) }
func (p *placement) staged() string { return filepath.Join(p.work(), "new", p.name) }
func (p *placement) aside() string  { return filepath.Join(p.work(), "old", p.name) }

// places finds the cache directory that a path lies in: by paths in the tree, or by targets.
type places map[string]*placement

func byRoot(list []*placement) places {
	m := make(places, len(list))
	for _, p := range list {
		m[p.root] = p
	}
	return m
}

func byTarget(list []*placement) places {
	m := make(places, len(list))
	for _, p := range list {
		m[p.target] = p
	}
	return m
}

// of returns what at is, or lies in, or nil.
func (m places) of(at string) *placement {
	for {
		if p := m[at]; p != nil {
			return p
		}
		up := path.Dir(at)
		if up == at {
			return nil
		}
		at = up
	}
}

// plan decides where each cache directory is staged, so that it can be renamed into place. Roots are those that the
// index has, present those that are in the tree. Those whose parent is not a directory of the tree are left out, and
// returned as skipped. A directory that cannot be replaced as a whole is a miss.
func plan(tree string, x *index.Index, roots, present []string) (list []*placement, skipped []string, err error) {
	treeMount, err := mountOf(tree)
	if err != nil {
		return nil, nil, local(err)
	}
	wanted := make(map[string]bool, len(roots))
	for _, r := range roots {
		wanted[r] = true
	}
	all := slices.Concat(roots, present)
	slices.Sort(all)
	for i, r := range slices.Compact(all) {
		p := &placement{root: r, target: filepath.Join(tree, filepath.FromSlash(r)), dir: tree, name: strconv.Itoa(i)}
		if wanted[r] {
			p.entry, _ = x.Find(r)
		}
		if !isDir(tree, path.Dir(r)) {
			if p.entry != nil {
				skipped = append(skipped, r)
			}
			continue
		}
		if err := p.locate(tree, treeMount); err != nil {
			return nil, nil, local(err)
		}
		list = append(list, p)
	}
	return list, skipped, conflict(list)
}

// locate finds out where p can be renamed from.
func (p *placement) locate(tree string, treeMount mount) error {
	parent := filepath.Dir(p.target)
	parentMount, err := mountOf(parent)
	if err != nil {
		return err
	}
	if parentMount != treeMount {
		p.dir = parent
	}
	fi, err := os.Lstat(p.target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		// As a walk sees it: only a directory outside the tree counts. Another link is itself what is in the way.
		to, err := filepath.EvalSymlinks(p.target)
		if err != nil || within(to, tree) || within(tree, to) {
			return nil // it leads nowhere
		}
		if fi, err = os.Stat(to); err != nil || !fi.IsDir() {
			return nil // as above
		}
		p.target, p.inside, p.dir = to, true, to
		return nil
	}
	if !fi.IsDir() {
		return nil
	}
	m, err := mountOf(p.target)
	if err != nil {
		return err
	}
	if m != parentMount {
		p.inside, p.dir = true, p.target
	}
	return nil
}

// conflict returns a miss if a cache directory shares its files with another one, by way of links, or if something is
// mounted below one, where it would be moved away with it.
func conflict(list []*placement) error {
	targets := byTarget(list)
	for _, a := range list {
		b := targets[a.target]
		if b == a {
			b = targets.of(path.Dir(a.target))
		}
		if b != nil && b != a {
			return missf("%s and %s lead to the same directory", min(a.root, b.root), max(a.root, b.root))
		}
	}
	for _, m := range mountPoints() {
		if p := targets.of(m); p != nil && m != p.target {
			return missf("something is mounted in %s, at %s", p.root, m)
		}
	}
	return nil
}

// within says whether the absolute path is dir or lies in it.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// isDir says whether p is a directory of the tree, reached without a link.
func isDir(tree, p string) bool {
	for q := p; q != "."; q = path.Dir(q) {
		fi, err := os.Lstat(filepath.Join(tree, filepath.FromSlash(q)))
		if err != nil || !fi.IsDir() {
			return false
		}
	}
	return true
}

// mover moves files, and knows how to take it back.
type mover struct {
	// ours says whether a directory is nbc's own, or holds artifacts: it may get the permission to be written to for the
	// moment of a rename.
	ours func(dir string) bool
	done []step
}

// step is something that a mover did.
type step struct {
	kind     stepKind
	from, to string
}

type stepKind uint8

const (
	renamed stepKind = iota
	made             // the directory to
	removed          // the directory from, which was empty
)

// aside moves from to to. A directory of an overlay's lower layer cannot be renamed: it is made anew, its children are
// moved one after another, and then it is removed.
func (m *mover) aside(from, to string) error {
	err := m.rename(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	if fi, err2 := os.Lstat(from); err2 != nil || !fi.IsDir() {
		return err
	}
	if err := m.mkdir(to); err != nil {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := m.aside(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	crash("remove emptied")
	if err := os.Remove(from); err != nil {
		return err
	}
	m.done = append(m.done, step{kind: removed, from: from})
	crash("emptied removed")
	return nil
}

func (m *mover) mkdir(dir string) error {
	crash("mkdir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	m.done = append(m.done, step{kind: made, to: dir})
	crash("mkdir done")
	return nil
}

// rename moves from to to, where nothing may be: what came there meanwhile is not nbc's to overwrite.
func (m *mover) rename(from, to string) error {
	crash("rename")
	moved, err := m.try(from, to)
	if moved {
		m.done = append(m.done, step{renamed, from, to})
	}
	crash("renamed")
	return err
}

// try renames. A directory that is moved into another one must be writable, since its ".." changes, and so must the two
// that hold it: those that are nbc's to change are made so for the moment.
func (m *mover) try(from, to string) (moved bool, err error) {
	err = renameNoReplace(from, to)
	if !errors.Is(err, fs.ErrPermission) {
		return err == nil, err
	}
	type mode struct {
		dir  string
		perm fs.FileMode
	}
	var was []mode
	for _, dir := range []string{from, filepath.Dir(from), filepath.Dir(to)} {
		fi, err := os.Lstat(dir)
		if err != nil || !fi.IsDir() || fi.Mode().Perm()&0o300 == 0o300 || dir != from && !m.ours(dir) {
			continue
		}
		if err := os.Chmod(dir, fi.Mode().Perm()|0o300); err == nil { // for its owner
			was = append(was, mode{dir, fi.Mode().Perm()})
		}
	}
	if len(was) > 0 {
		err = renameNoReplace(from, to)
	}
	moved = err == nil
	for _, w := range was {
		if moved && w.dir == from {
			w.dir = to
		}
		err = errors.Join(err, os.Chmod(w.dir, w.perm))
	}
	return moved, err
}

// undo takes back every step, the last one first. It goes on after an error, and returns all of them.
func (m *mover) undo() error {
	var errs []error
	for _, s := range slices.Backward(m.done) {
		var err error
		crash("undo")
		switch s.kind {
		case renamed:
			_, err = m.try(s.to, s.from)
		case made:
			err = os.Remove(s.to)
		case removed:
			err = os.Mkdir(s.from, 0o700)
		}
		crash("undone")
		if err != nil {
			errs = append(errs, err)
		}
	}
	m.done = nil
	return errors.Join(errs...)
}

// clear moves what is at the cache directories aside. From here until they are filled there are no artifacts, and a
// build that starts is a cold one.
func clearOld(list []*placement, m *mover) error {
	for _, p := range list {
		var err error
		if p.inside {
			err = m.children(p.target, p.aside(), m.aside)
		} else {
			err = m.aside(p.target, p.aside())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("moving the old %s aside: %w", p.root, err)
		}
	}
	return nil
}

// children moves all that is in from, but nbc's own, into to, which it makes.
func (m *mover) children(from, to string, move func(from, to string) error) error {
	if err := m.mkdir(to); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		if index.Reserved(e.Name()) {
			continue
		}
		if err := move(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// place moves the staged cache directories in, one after another: one that is still absent when nbc is killed is only
// rebuilt. Then it gives the directories themselves their modes and times, which renaming needed or changed.
func place(ctx context.Context, list []*placement, m *mover, shift int64) error {
	for _, p := range list {
		if p.entry == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var err error
		if p.inside {
			err = m.children(p.staged(), p.target, m.rename)
		} else {
			err = m.rename(p.staged(), p.target)
		}
		if err == nil && p.entry.Kind == index.Dir {
			err = p.finish(shift)
		}
		if err != nil {
			return local(fmt.Errorf("placing %s: %w", p.root, err))
		}
	}
	return nil
}

// finish gives the cache directory its recorded mode and time: after everything was moved into it, and out of it.
func (p *placement) finish(shift int64) error {
	crash("finish root")
	defer crash("root finished")
	if err := os.Chmod(p.target, fs.FileMode(p.entry.Mode)); err != nil {
		return err
	}
	return setDirTime(p.target, mtime.At(p.entry.MTime, shift))
}

// moved returns the paths in the tree of the files and links that were renamed one by one: that has changed their ctimes.
func moved(list []*placement, m *mover) ([]string, error) {
	var paths []string
	targets := byTarget(list)
	for _, s := range m.done {
		if s.kind != renamed {
			continue
		}
		p := targets.of(s.to)
		if p == nil || within(s.to, p.work()) {
			continue
		}
		fi, err := os.Lstat(s.to)
		if err != nil {
			return nil, err
		}
		if !fi.IsDir() {
			paths = append(paths, p.root+filepath.ToSlash(strings.TrimPrefix(s.to, p.target)))
		}
	}
	return paths, nil
}

// renameAfterLook is renameNoReplace where the kernel cannot do both at once.
func renameAfterLook(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(from, to)
}
