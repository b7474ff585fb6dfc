package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Socket says how [Listen] makes a socket.
type Socket struct {
	// Path is where it is to be, absolute.
	Path string
	// Mode is its permissions; 0 means 0660. Who may write to a socket may connect to it.
	Mode fs.FileMode
	// Group, unless nil, is the group that it gets.
	Group *uint32
}

// DefaultMode lets the daemon's user and the socket's group connect.
const DefaultMode fs.FileMode = 0o660

// maxSocketPath is what the kernel takes, in bytes, with its NUL: 108 on Linux, 104 elsewhere.
const maxSocketPath = 103

// Listen makes a socket. A socket that a daemon has left there when it was killed is replaced: one that refuses
// connections. One that somebody answers at, or anything that is no socket, is an error. The socket is removed when the
// listener is closed, unless it has been replaced meanwhile.
//
// The folder's lock is held meanwhile, so that of two daemons that begin at the same time one finds the other's socket.
func Listen(s Socket) (net.Listener, error) {
	l, err := listen(s)
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", s.Path, err)
	}
	return l, nil
}

func listen(s Socket) (_ net.Listener, err error) {
	switch {
	case !filepath.IsAbs(s.Path) || filepath.Clean(s.Path) != s.Path:
		return nil, errors.New("the path of a socket is absolute and plain")
	case len(s.Path) > maxSocketPath:
		return nil, fmt.Errorf("the path has %d bytes, sockets have at most %d", len(s.Path), maxSocketPath)
	}
	// All is done by the name in the opened folder, in which no link is followed to elsewhere.
	name := filepath.Base(s.Path)
	dir, err := os.OpenRoot(filepath.Dir(s.Path))
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, dir.Close())
		}
	}()
	lock, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := lockFolder(lock); err != nil {
		return nil, err
	}
	if err := clearStale(dir, name, s.Path); err != nil {
		return nil, err
	}

	// Nobody may connect before owner and mode are right. The umask is the whole process's, but it only takes away, and
	// is back after one system call.
	old := unix.Umask(0o777)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by name it could remove another one's
	defer func() {
		if !keep {
			err = errors.Join(err, l.Close(), dir.Remove(name))
		}
	}()
	info, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("it was replaced by something else")
	}
	if s.Group != nil {
		if err := dir.Lchown(name, -1, int(*s.Group)); err != nil {
			return nil, err
		}
	}
	mode := s.Mode
	if mode == 0 {
		mode = DefaultMode
	}
	if err := dir.Chmod(name, mode.Perm()); err != nil {
		return nil, err
	}
	keep = true
	return &socket{Listener: l, dir: dir, name: name, info: info}, nil
}

// clearStale removes a socket that nobody listens at any more.
func clearStale(dir *os.Root, name, path string) error {
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something that is no socket; it is not replaced")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(errors.New("another daemon answers there"), c.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether another daemon is there: %w", err)
	}
	return dir.Remove(name)
}

// lockPatience is how long another daemon may take to begin.
const lockPatience = 5 * time.Second

// lockFolder takes the lock by which daemons that begin at the same time take turns: two that find a stale socket would
// else each remove the other's. Builds see the folder and can hold its lock as well, and a daemon must not hang silently
// because of that: it says so and ends.
func lockFolder(folder *os.File) error {
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("locking its folder: %w", err)
		case time.Since(begun) > lockPatience:
			return fmt.Errorf("another process holds the lock of %s: let systemd make the socket, or end that process",
				folder.Name())
		}
	}
}

// socket removes its file when it is closed.
type socket struct {
	net.Listener
	dir  *os.Root
	name string
	info fs.FileInfo
	once sync.Once
}

// Close may be called more than once.
func (s *socket) Close() error {
	err := s.Listener.Close()
	s.once.Do(func() {
		if now, err2 := s.dir.Lstat(s.name); err2 == nil && os.SameFile(now, s.info) {
			err = errors.Join(err, s.dir.Remove(s.name))
		}
		err = errors.Join(err, s.dir.Close())
	})
	return err
}

// ErrNotActivated says that no socket was passed to this process.
var ErrNotActivated = errors.New("no socket was passed by systemd")

// firstPassed is the first descriptor that systemd passes.
const firstPassed = 3

// Activated takes over the socket that systemd passed to this process, as sd_listen_fds(3) describes: LISTEN_PID is
// this process, and LISTEN_FDS says how many descriptors there are from 3 on. There must be one, a Unix socket that
// listens: authority is per socket. Without any the error is ErrNotActivated. The variables are removed, so that no
// process that this one starts takes the socket for its own. The socket's file is systemd's, and stays.
func Activated() (net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, ErrNotActivated
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("taking over a socket: LISTEN_FDS is %q", count)
	}
	for i := range n {
		unix.CloseOnExec(firstPassed + i)
	}
	switch n {
	case 0:
		return nil, ErrNotActivated
	case 1:
	default:
		return nil, fmt.Errorf("taking over a socket: systemd passed %d; each needs a daemon of its own", n)
	}
	l, err := takeOver(firstPassed)
	if err != nil {
		return nil, fmt.Errorf("taking over the socket that systemd passed: %w", err)
	}
	return l, nil
}

func takeOver(fd int) (net.Listener, error) {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, err
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	if _, ok := address.(*unix.SockaddrUnix); !ok || listens == 0 {
		return nil, errors.New("it is no Unix socket that listens")
	}
	f := os.NewFile(uintptr(fd), "systemd")
	l, err := net.FileListener(f) // has a descriptor of its own
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok || u.Addr().Network() != "unix" {
		return nil, errors.Join(errors.New("it is no stream"), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}
