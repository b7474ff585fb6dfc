package cached

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nbc/chunk"
)

// Near is a directory of chunks' stored bytes. Any number of processes may share it: a copy appears by rename, whole,
// and may be gone at any moment.
//
//	<hh>/<id>             a copy; hh are the first two digits of the ID
//	<hh>/,<random>-<n>    one that is being written, or was when its writer was killed
//
// One file for each chunk is the simplest layout with these properties, and costs little: reading a copy of 44 KB took
// 16 µs where a piece of one large file took 14, writing it 35 µs where appending took 28; a restore spends 300 µs or
// more on each chunk. Nothing is synced: after a power cut a copy may be empty, which is a miss or a second read.
//
// The fields may be set before the first use.
type Near struct {
	// Limit bounds the bytes of all copies; 0 means DefaultLimit. It is kept for each of the 256 folders on its own, so
	// below some 256 MB it is only roughly kept.
	Limit int64
	// Reserve is how many bytes of the file system must be left to others for anything to be written; 0 means
	// DefaultReserve.
	Reserve int64
	// Log gets a warning when copies cannot be written, once a minute at most; nil discards it.
	Log *slog.Logger

	path    string
	perm    fs.FileMode
	root    *os.Root
	folders [folders]folder
	temp    string // begins the names of temporary files: no other Near has the same
	next    atomic.Uint64
	opened  time.Time    // of a clock that is not set back
	full    atomic.Int64 // until how long after opened nothing is written, in nanoseconds; 0 is not at all
}

const (
	// DefaultLimit has room for some 60 saved trees of 650 MB that have nothing in common.
	DefaultLimit = 10 << 30
	// DefaultReserve is what a build should find free: filling the disk would make it fail, which no cache may do.
	DefaultReserve = 1 << 30

	folders = 256
	// tempPrefix begins no ID.
	tempPrefix = ","
	// deadAfter is the age at which a temporary file's writer is dead: writing takes milliseconds.
	deadAfter = time.Hour
	// pauseAfter is how long nothing is written after a failure: long for a build, short for a daemon.
	pauseAfter = time.Minute
)

// folder is one of the directory's folders, which is opened once: resolving it for each file would cost 10 µs of the 25
// that a read takes.
type folder struct {
	mu   sync.Mutex
	root *os.Root
}

// Open opens the near store at path. It makes the directory if there is none, for the user alone; the folders and
// files in it get the permissions of the directory, less the umask, so that a directory of a group can be shared.
func Open(path string) (*Near, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding the near store %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("making the near store: %w", err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("opening the near store: %w", err)
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the near store: %w", err), root.Close())
	}
	return &Near{
		path: abs, perm: info.Mode().Perm(), root: root, temp: tempPrefix + strings.ToLower(rand.Text()[:12]) + "-",
		opened: time.Now(),
	}, nil
}

// Path returns the directory's absolute path.
func (n *Near) Path() string { return n.path }

// Close gives the directory's descriptors back. No call may be under way.
func (n *Near) Close() error {
	var errs []error
	for i := range n.folders {
		if r := n.folders[i].root; r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(append(errs, n.root.Close())...)
}

// open returns the folder for id, which with create is made if need be.
func (n *Near) open(id chunk.ID, create bool) (*os.Root, error) {
	f := &n.folders[id[0]]
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root != nil {
		return f.root, nil
	}
	name := hex.EncodeToString(id[:1])
	root, err := n.root.OpenRoot(name)
	if create && errors.Is(err, fs.ErrNotExist) {
		if err := n.root.Mkdir(name, n.perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		root, err = n.root.OpenRoot(name)
	}
	if err != nil {
		return nil, err
	}
	f.root = root
	return root, nil
}

// forget makes the next open look for the folder again: somebody has removed it. Others may be using the old one, so it
// is left to the garbage collector to close that.
func (n *Near) forget(id chunk.ID, root *os.Root) {
	f := &n.folders[id[0]]
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root == root {
		f.root = nil
	}
}

// touchAfter is how old a copy's time may be when it is read: the order of eviction is as coarse, and of the reads of
// a busy copy one in an hour writes.
const touchAfter = time.Hour

// Copy returns the stored bytes of a chunk if there is a copy. It may be damaged.
func (n *Near) Copy(id chunk.ID) (stored []byte, ok bool) { return n.get(id, maxCopy) }

// get returns the copy of a chunk if there is one of at most limit bytes.
func (n *Near) get(id chunk.ID, limit int64) ([]byte, bool) {
	root, err := n.open(id, false)
	if err != nil {
		return nil, false
	}
	name := id.String()
	// O_NONBLOCK, because opening a pipe that somebody has put there would wait for its writer.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, false
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > limit {
		return nil, false
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, false
	}
	if now := time.Now(); distance(now, info.ModTime()) > touchAfter {
		_ = root.Chtimes(name, time.Time{}, now) // on an error it only looks less used than it is
	}
	return data, true
}

// distance is how far from now a copy was used. A time in the future, from before the clock was set back, is no better
// than one as far in the past: else such a copy would never be evicted.
func distance(now, t time.Time) time.Duration { return now.Sub(t).Abs() }

// put keeps a copy of a chunk's stored bytes, if it can.
func (n *Near) put(id chunk.ID, data []byte) {
	until := n.full.Load()
	if until != 0 && time.Since(n.opened) < time.Duration(until) {
		return
	}
	number := n.next.Add(1)
	if number%spaceEach == 1 || until != 0 {
		if err := n.space(); err != nil {
			n.stop(until, err)
			return
		}
	}
	name := n.temp + strconv.FormatUint(number, 36)
	root, err := n.write(id, name, data)
	if errors.Is(err, fs.ErrNotExist) { // somebody has removed the folder
		n.forget(id, root)
		root, err = n.write(id, name, data)
	}
	if err != nil {
		n.stop(until, err)
		return
	}
	n.full.CompareAndSwap(until, 0)
	if err := root.Rename(name, id.String()); err != nil { // say somebody has put a folder there
		_ = root.Remove(name) // else an eviction does
		return
	}
	if n.due(int64(len(data))) {
		_ = n.evict(root) // what it could not remove, the next one may
	}
}

// write makes a temporary file of data in the folder for id, which it returns.
func (n *Near) write(id chunk.ID, name string, data []byte) (*os.Root, error) {
	root, err := n.open(id, true)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, n.perm&0o666)
	if err != nil {
		return root, err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = root.Remove(name) // else an eviction does
	}
	return root, err
}

// stop gives up writing for a while: what one chunk was refused, the next thousand would be as well, each after some
// system calls. Of those that are refused at the same time, having found the same value of full, one tells.
func (n *Near) stop(found int64, err error) {
	if !n.full.CompareAndSwap(found, int64(time.Since(n.opened)+pauseAfter)) || n.Log == nil {
		return
	}
	n.Log.Warn(fmt.Sprintf("no more chunks are kept in %s: %v", n.path, err))
}

// spaceEach is after how many copies the file system is asked for its free space: 2 MB on average, 1 µs.
const spaceEach = 64

// space returns an error if the file system has less free space than the reserve.
func (n *Near) space() error {
	reserve := n.Reserve
	if reserve == 0 {
		reserve = DefaultReserve
	}
	f, err := n.root.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("asking for free space: %w", err)
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < reserve {
		return fmt.Errorf("less than %d MB of its file system are free", reserve>>20)
	}
	return nil
}
