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

	"golang.org/x/sys/unix"

	"nbc/index"
	"nbc/mtime"
)

// placement is how one cache directory gets from the staging area to its place.
type placement struct {
	root string // path in the tree
	// target is the absolute path that is cleared and filled: that of root, or what it leads to if it is a link.
	target string
	// work is the work directory, on the file system of target: below it "new" is staged and "old" is put aside.
	work string
	name string // in both
	// entry is nil if the index does not hold this root: it is only cleared.
	entry *index.Entry
}

func (p *placement) staged() string { return filepath.Join(p.work, "new", p.name) }
func (p *placement) aside() string  { return filepath.Join(p.work, "old", p.name) }

// plan decides where each cache directory is staged, so that it can be renamed into place: in the tree's own work
// directory, or, for one that is a mount point, on another device, or a link to elsewhere, in a work directory in it.
// Roots whose parent is not a directory of the tree are left out.
func plan(treeRoot string, treeStat index.Stat, work string, x *index.Index, roots, present []string) (list []*placement,
	skipped []string, err error,
) {
	all := slices.Concat(roots, present)
	slices.Sort(all)
	for i, r := range slices.Compact(all) {
		p := &placement{root: r, target: filepath.Join(treeRoot, filepath.FromSlash(r)), work: work}
		p.name = fmt.Sprintf("%d", i)
		if slices.Contains(roots, r) {
			p.entry, _ = x.Find(r)
		}
		if p.entry != nil && !isDir(treeRoot, path.Dir(r)) {
			skipped = append(skipped, r)
			continue
		}
		var st unix.Stat_t
		err := unix.Lstat(p.target, &st)
		if errors.Is(err, unix.ENOENT) {
			list = append(list, p)
			continue
		}
		if err != nil {
			return nil, nil, &fs.PathError{Op: "lstat", Path: p.target, Err: err}
		}
		inside := false
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			to, err := filepath.EvalSymlinks(p.target)
			if err != nil {
				skipped = append(skipped, r) // it leads nowhere
				continue
			}
			if err := unix.Stat(to, &st); err != nil {
				return nil, nil, &fs.PathError{Op: "stat", Path: to, Err: err}
			}
			p.target, inside = to, true
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR &&
			(inside || uint64(st.Dev) != treeStat.Dev || isMountPoint(p.target)) { //nolint:unconvert // int32 on darwin
			p.work = filepath.Join(p.target, filepath.Base(work))
		}
		list = append(list, p)
	}
	return list, skipped, nil
}

// isDir says whether p is a directory of the tree, reached without a link.
func isDir(treeRoot, p string) bool {
	for q := p; q != "."; q = path.Dir(q) {
		fi, err := os.Lstat(filepath.Join(treeRoot, filepath.FromSlash(q)))
		if err != nil || !fi.IsDir() {
			return false
		}
	}
	return true
}

// move is one rename that was done.
type move struct{ from, to string }

// mover renames, and knows how to take it back.
type mover struct {
	done  []move
	made  []string // directories that stand in for ones that could not be renamed
	steps func(point string)
}

// move renames from to to. A directory that cannot be renamed (a mount point, one of an overlay's lower layer) stays,
// and its children are moved one after another. What is named keep is not a child.
func (m *mover) move(from, to, keep string) error {
	err := m.rename(from, to)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fi, err2 := os.Lstat(from)
	if err2 != nil || !fi.IsDir() || !cannotRename(err) {
		return err
	}
	if err := os.Mkdir(to, 0o700); err == nil {
		m.made = append(m.made, to)
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Name() == keep {
			continue
		}
		if err := m.move(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), ""); err != nil {
			return err
		}
	}
	return nil
}

// cannotRename says whether err is one of those that a rename answers with where moving the children still works:
// another device or an overlay's lower layer, a mount point, a directory already there.
func cannotRename(err error) bool {
	return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) ||
		errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EINVAL)
}

// rename is os.Rename for a directory that its owner may not write to as well: moving it changes its "..".
func (m *mover) rename(from, to string) error {
	crash("rename")
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrPermission) {
		fi, err2 := os.Lstat(from)
		if err2 != nil || !fi.IsDir() || fi.Mode().Perm()&0o200 != 0 {
			return err
		}
		if err2 := os.Chmod(from, fi.Mode().Perm()|0o700); err2 != nil { //nolint:gosec // for a moment, for its owner
			return err
		}
		if err = os.Rename(from, to); err == nil {
			err = os.Chmod(to, fi.Mode().Perm())
		} else {
			err = errors.Join(err, os.Chmod(from, fi.Mode().Perm()))
		}
	}
	if err != nil {
		return err
	}
	m.done = append(m.done, move{from, to})
	crash("renamed")
	return nil
}

// undo takes back every move, the last one first.
func (m *mover) undo() error {
	var errs []error
	for _, d := range slices.Backward(m.done) {
		if err := os.Rename(d.to, d.from); err != nil {
			errs = append(errs, err)
		}
	}
	for _, dir := range slices.Backward(m.made) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	m.done, m.made = nil, nil
	return errors.Join(errs...)
}

// clear moves what is at the cache directories aside. From here until they are filled there are no artifacts, and a
// build that starts is a cold one.
func clearOld(list []*placement, m *mover) error {
	for _, p := range list {
		var err error
		if filepath.Dir(p.work) == p.target {
			err = m.moveChildren(p.target, p.aside(), filepath.Base(p.work))
		} else {
			err = m.move(p.target, p.aside(), "")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("moving the old %s aside: %w", p.root, err)
		}
	}
	return nil
}

// moveChildren moves all that is in from, keep excepted, into to, which it makes.
func (m *mover) moveChildren(from, to, keep string) error {
	if err := os.Mkdir(to, 0o700); err == nil {
		m.made = append(m.made, to)
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Name() == keep {
			continue
		}
		if err := m.move(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), ""); err != nil {
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
		if filepath.Dir(p.work) == p.target {
			err = m.moveChildren(p.staged(), p.target, "")
		} else {
			err = m.move(p.staged(), p.target, "")
		}
		if err != nil {
			return fmt.Errorf("placing %s: %w", p.root, err)
		}
		if p.entry.Kind == index.Dir {
			if err := finishRoot(p, shift); err != nil {
				return fmt.Errorf("placing %s: %w", p.root, err)
			}
		}
	}
	return nil
}

func finishRoot(p *placement, shift int64) error {
	if err := os.Chmod(p.target, fs.FileMode(p.entry.Mode)); err != nil {
		return err
	}
	return setRootTime(p, shift)
}

// setRootTime gives a cache directory its recorded time: after everything was moved into it, and out of it.
func setRootTime(p *placement, shift int64) error {
	return setDirTime(p.target, mtime.At(p.entry.MTime, shift))
}
