package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nbc/index"
)

// workName is the name of work directories. There is one in the source tree while a restore changes it, and one in or
// beside each cache directory on another file system. It is always the same name, so that a second restore in the same
// tree meets the first one's, whatever receipt it uses, and so that one that was killed is found without a journal.
const workName = index.WorkName

// workDir is a work directory. Its lock says that whoever made it is alive.
type workDir struct {
	path string
	file *os.File // has the lock
	// locked is false where the file system has no locks.
	locked bool
}

// makeWork makes the work directory in dir, with the folders "new", where files are staged, and "old", where old ones
// are moved aside. What a restore that was killed has left there is removed first. The error is ErrBusy if another one
// is at work.
func makeWork(dir string) (*workDir, error) {
	path := filepath.Join(dir, workName)
	for try := 0; ; try++ {
		crash("make work")
		err := os.Mkdir(path, 0o700)
		if err == nil {
			crash("work made")
			break
		}
		if !errors.Is(err, fs.ErrExist) || try == 3 {
			return nil, err
		}
		dead, err := openWork(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !dead.locked {
			return nil, errors.Join(fmt.Errorf("%w, or was killed there: remove %s if not", ErrBusy, path), unlock(dead.file))
		}
		if err := dead.remove(); err != nil {
			return nil, err
		}
	}
	// Somebody else may get at the lock before us, think that it is a dead one's, and remove what is then no longer ours.
	w, err := openWork(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"new", "old"} {
		if err := os.Mkdir(filepath.Join(path, sub), 0o700); err != nil {
			return nil, errors.Join(err, w.remove())
		}
		crash("work folder made")
	}
	return w, nil
}

// openWork opens and locks a work directory that is there. The error is ErrBusy if it is somebody's.
func openWork(path string) (*workDir, error) {
	f, err := os.Open(path) // a path of our own
	if err != nil {
		return nil, err
	}
	w := &workDir{path: path, file: f, locked: true}
	if err = lockFile(f, lockAlone); noLocks(err) {
		w.locked, err = false, nil
	}
	var was, now fs.FileInfo
	if err == nil {
		was, err = f.Stat()
	}
	if err == nil {
		now, err = os.Lstat(path)
	}
	if err == nil && !os.SameFile(was, now) {
		err = ErrBusy // it was removed, and another one made, between the opening and the locking
	}
	if err != nil {
		return nil, errors.Join(err, unlock(f))
	}
	return w, nil
}

// removeDead removes the work directory at path unless somebody is at work there. Ours says that it is this state's own,
// so that it is dead also where nothing can be locked.
func removeDead(path string, ours bool) error {
	w, err := openWork(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrBusy):
		return nil
	case err != nil:
		return err
	case !w.locked && !ours:
		return unlock(w.file)
	}
	return w.remove()
}

// noLocks says whether err means that a file system cannot lock.
func noLocks(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBADF)
}

// remove removes the directory and what is in it, and gives the lock free.
func (w *workDir) remove() error {
	crash("remove work")
	defer crash("work removed")
	return errors.Join(removeTree(w.path), unlock(w.file))
}

// sweepClocks removes the clock files that killed processes have left in the tree.
func sweepClocks(tree string) error {
	list, err := os.ReadDir(tree)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Name() != workName && index.Reserved(e.Name()) {
			if err := removeFile(filepath.Join(tree, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
