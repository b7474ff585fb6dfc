package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	lockName   = ",lock"
	tempPrefix = ",tmp-"
	// deadAfter is how old a folder of temporary files must be to be removed where a free lock does not prove that its
	// writer is dead: longer than any save.
	deadAfter = 7 * 24 * time.Hour
)

// errNoLocks says that the file system cannot lock files.
var errNoLocks = fmt.Errorf("its file system cannot lock files: %w", errors.ErrUnsupported)

// tryLock takes the lock of an open file, alone or shared, without waiting. It is free again when f is closed, and
// when the process ends in any way.
func tryLock(f *os.File, alone bool) (ok bool, err error) {
	how := syscall.LOCK_SH | syscall.LOCK_NB
	if alone {
		how = syscall.LOCK_EX | syscall.LOCK_NB
	}
	err = control(f, func(fd int) error {
		for {
			if err := syscall.Flock(fd, how); !errors.Is(err, syscall.EINTR) {
				return err
			}
		}
	})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return false, nil
	case errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EOPNOTSUPP),
		errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EBADF):
		return false, errNoLocks
	}
	return false, fmt.Errorf("locking %s: %w", f.Name(), err)
}

// lock takes the store's lock. It is held for a rename or a removal, some ten microseconds, so waiting means asking
// again soon; only a stopped process holds it for longer. Where nothing can be locked a shared lock is not needed: what
// it keeps out, a Put with a condition, is refused there.
func (s *Store) lock(ctx context.Context, alone bool) (unlock func(), err error) {
	f, err := s.openLock()
	if err != nil {
		return nil, err
	}
	unlock = func() { _ = f.Close() } // nothing was written to it
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		ok, err := tryLock(f, alone)
		if ok || errors.Is(err, errNoLocks) && !alone {
			return unlock, nil
		}
		if err != nil {
			unlock()
			return nil, err
		}
		select {
		case <-ctx.Done():
			unlock()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// openLock opens the lock file. Another user's cannot be written, which only some network file systems need.
func (s *Store) openLock() (*os.File, error) {
	f, err := s.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, s.perm&0o666)
	if errors.Is(err, fs.ErrPermission) {
		if f, err := s.root.Open(lockName); err == nil {
			return f, nil
		}
	}
	return f, err
}

// tempFolder is the folder of one Store's temporary files. It is made by the first Put.
type tempFolder struct {
	mu   sync.Mutex
	open *openFolder
	next atomic.Uint64
}

type openFolder struct {
	path string // below the store
	root *os.Root
	lock *os.File // nil where nothing can be locked
}

func (o *openFolder) close() error {
	if o.lock != nil {
		return errors.Join(o.root.Close(), o.lock.Close())
	}
	return o.root.Close()
}

// name returns the folder and a name in it that was not used yet.
func (t *tempFolder) name(ctx context.Context, s *Store) (*openFolder, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		if err := s.clean(ctx); err != nil {
			return nil, "", err
		}
		o, err := s.makeTemp()
		if err != nil {
			return nil, "", err
		}
		t.open = o
	}
	return t.open, strconv.FormatUint(t.next.Add(1), 36), nil
}

// forget gives up a folder that somebody has removed. Others may still be writing to it, and find out; so it is left to
// the garbage collector to close it.
func (t *tempFolder) forget(o *openFolder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == o {
		t.open = nil
	}
}

func (t *tempFolder) remove(root *os.Root) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		return nil
	}
	err := errors.Join(root.RemoveAll(t.open.path), t.open.close())
	t.open = nil
	return err
}

// makeTemp makes and locks a folder for temporary files.
func (s *Store) makeTemp() (*openFolder, error) {
	o := &openFolder{path: tempPrefix + strings.ToLower(rand.Text()[:12])}
	if err := s.root.Mkdir(o.path, s.perm); err != nil {
		return nil, err
	}
	root, err := s.root.OpenRoot(o.path)
	if err != nil {
		return nil, err
	}
	o.root = root
	f, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	// If the lock is not to be had, another writer is just removing the folder, and the Put that wants it begins anew.
	if ok, err := tryLock(f, true); ok {
		o.lock = f
	} else if err := errors.Join(f.Close(), err); err != nil && !errors.Is(err, errNoLocks) {
		return nil, errors.Join(err, root.Close())
	}
	return o, nil
}

// clean removes the temporary files of writers that are dead: those whose lock is free. On network file systems, where
// locks may hold on one machine only, the folder must also be old. A folder that cannot be removed, say because it is
// another user's, is left.
func (s *Store) clean(ctx context.Context) error {
	root, err := s.root.Open(".")
	if err != nil {
		return err
	}
	entries, err := root.ReadDir(-1)
	if err = errors.Join(err, root.Close()); err != nil {
		return err
	}
	_, network, networkErr := s.FileSystem()
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || !e.IsDir() {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f, err := s.root.Open(e.Name())
		if err != nil {
			continue
		}
		ok, lockErr := tryLock(f, true)
		old := false
		if info, err := f.Stat(); err == nil {
			old = time.Since(info.ModTime()) > deadAfter
		}
		if ok && (old || !network && networkErr == nil) || errors.Is(lockErr, errNoLocks) && old {
			_ = s.root.RemoveAll(e.Name())
		}
		_ = f.Close()
	}
	return nil
}
