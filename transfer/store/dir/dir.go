// Package dir is the directory store: every object is a file below one directory, under its key.
//
// [Open] opens or makes it. An object appears by the rename of a temporary file, so a reader sees the old one or the
// new one, whole, whatever is killed. Beside the objects there are
//
//	,lock            locked for the moment of a rename or a removal: shared, or alone when a Put has a condition
//	,tmp-<random>/   the temporary files of one open Store, locked for as long as that lives
//
// which no key can name, since keys have no comma. A folder of temporary files whose lock is free belonged to a writer
// that was killed; the first Put of the next Store removes it.
//
// After a power cut, everything but chunks is there if Put had returned, and so is every chunk that was put through
// the same Store before. A chunk that was put later may be empty or torn: readers verify chunks. What is asked of the
// kernel while it hangs, say on a dead network file system, does not stop when a context ends.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"nbc/transfer/store"
)

// chunks is where the objects are that are not made durable one by one: they must be when an index appears.
const chunks = "chunks/"

// Store keeps objects in a directory. [Open] makes one; Close ends it.
type Store struct {
	// NoSync leaves it to the kernel when objects reach the disk. After a power cut indexes may be lost or name chunks
	// that are torn; readers notice. To be set before the first call.
	NoSync bool

	path string
	root *os.Root
	perm fs.FileMode // of folders; files have its bits for reading and writing

	temp tempFolder

	written atomic.Uint64 // counts chunks that were put
	synced  uint64        // the count up to which they are durable; guarded by syncing
	syncing chan struct{} // holds one element while somebody syncs
	syncs   sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// Open returns the store in the directory at path, which it makes if it is absent. New folders get the permissions of
// the one that they are in, less the umask, so that nobody can read more than before.
func Open(path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding the store %s: %w", path, err)
	}
	if err := makeFolders(abs); err != nil {
		return nil, fmt.Errorf("making the store %s: %w", abs, explain(err))
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", abs, explain(err))
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store %s: %w", abs, explain(err)), root.Close())
	}
	return &Store{path: abs, root: root, perm: folderPerm(info), syncing: make(chan struct{}, 1)}, nil
}

// makeFolders makes path and the folders above it, each no wider than the one above.
func makeFolders(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(path)
	if above == path {
		return err
	}
	if err := makeFolders(above); err != nil {
		return err
	}
	info, err = os.Stat(above)
	if err != nil {
		return err
	}
	if err := os.Mkdir(path, folderPerm(info)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// folderPerm is the mode of a folder made in the one that info describes. The owner may always use it.
func folderPerm(info fs.FileInfo) fs.FileMode { return info.Mode().Perm() | 0o700 }

// Path returns the directory's absolute path.
func (s *Store) Path() string { return s.path }

// Close removes the folder of temporary files and waits for a sync that a call left behind when its context ended. No
// call may be under way. A Store that is not closed leaves an empty folder to the next one.
func (s *Store) Close() error {
	s.syncs.Wait()
	return errors.Join(s.temp.remove(s.root), s.root.Close())
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	if err := errors.Join(store.CheckKey(key), r.Check()); err != nil {
		return store.Object{}, err
	}
	o, err := s.get(ctx, key, r)
	if err != nil {
		return store.Object{}, s.failed("getting", key, err)
	}
	return o, nil
}

func (s *Store) get(ctx context.Context, key string, r store.Read) (o store.Object, err error) {
	if ctx.Err() != nil {
		return store.Object{}, context.Cause(ctx)
	}
	// O_NONBLOCK, because opening a pipe that somebody has put there would wait for its writer.
	f, err := s.root.OpenFile(key, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return store.Object{}, s.absent(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return store.Object{}, err
	}
	if !info.Mode().IsRegular() {
		return store.Object{}, fmt.Errorf("not a regular file: %w", store.ErrNotExist)
	}
	offset, n, err := r.Span(info.Size())
	if err != nil {
		return store.Object{}, err
	}
	data := make([]byte, n)
	for piece := data; len(piece) > 0; {
		if ctx.Err() != nil {
			return store.Object{}, context.Cause(ctx)
		}
		k, err := f.ReadAt(piece[:min(len(piece), pieceSize)], offset)
		if k == 0 {
			return store.Object{}, fmt.Errorf("reading at byte %d of %d: %w", offset, info.Size(), err)
		}
		piece, offset = piece[k:], offset+int64(k)
	}
	return store.Object{Data: data, Version: version(info), Size: info.Size()}, nil
}

// pieceSize is how many bytes are read or written before the context is asked again: less than 20 ms of a slow disk.
const pieceSize = 1 << 20

// absent turns what says that there is no file into [store.ErrNotExist], unless the store itself has been removed.
func (s *Store) absent(err error) error {
	if !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if gone := s.gone(); gone != nil {
		return gone
	}
	return store.ErrNotExist
}

// gone returns an error if the directory was removed since it was opened. What is absent from it may be elsewhere.
func (s *Store) gone() error {
	info, err := s.root.Stat(".")
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 0 {
		return fmt.Errorf("%w: its directory was removed", store.ErrUnavailable)
	}
	return nil
}

// version names the state of an object. Put gives every file a random time within the second, so that two of them
// differ even if the kernel's clock has not moved on in between and the second got the first one's inode again.
func version(info fs.FileInfo) string {
	var inode uint64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprintf("%x-%x-%x", inode, info.Size(), info.ModTime().UnixNano())
}

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := store.CheckKey(key); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if err := s.remove(ctx, key); err != nil {
			return s.failed("deleting", key, err)
		}
	}
	return nil
}

func (s *Store) remove(ctx context.Context, key string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := s.root.Lstat(key); err != nil { // so that deleting from an empty store needs no right to write
		if err := s.absent(err); !errors.Is(err, store.ErrNotExist) {
			return err
		}
		return nil
	}
	unlock, err := s.lock(ctx, false)
	if err != nil {
		return err
	}
	defer unlock()
	err = s.root.Remove(key)
	// A folder is not an object. (An empty one is removed; the next Put makes it again.)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

// failed says what was done to which object where, and sorts the error into the kinds of package store.
func (s *Store) failed(doing, key string, err error) error {
	return fmt.Errorf("%s %s in %s: %w", doing, key, s.path, explain(err))
}

// explain leaves out the paths in errors of the file system, which are relative to the store and may be a temporary
// file's, and calls the errors of a network file system that is down an outage.
func explain(err error) error {
	switch e := err.(type) { // what wraps or joins such an error says more than it
	case *fs.PathError:
		err = fmt.Errorf("%s: %w", e.Op, e.Err)
	case *os.LinkError:
		err = fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	for _, down := range []syscall.Errno{
		syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.ENODEV, syscall.ENXIO,
	} {
		if errors.Is(err, down) {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
	}
	return err
}

// control calls do with f's descriptor.
func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	err = conn.Control(func(fd uintptr) { doErr = do(int(fd)) }) // a descriptor is small
	return errors.Join(err, doErr)
}
