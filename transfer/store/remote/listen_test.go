package remote

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	path := socketPath(t)
	group := uint32(os.Getgid())
	if os.Getuid() == 0 {
		group = 54321
	}
	l, err := Listen(Socket{Path: path, Mode: 0o606, Group: &group})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode != unix.S_IFSOCK|0o606 || st.Gid != group || st.Uid != uint32(os.Getuid()) {
		t.Errorf("the socket has mode %o, uid %d, gid %d", st.Mode, st.Uid, st.Gid)
	}
	if _, err := Listen(Socket{Path: path}); err == nil || !strings.Contains(err.Error(), "another daemon answers") {
		t.Errorf("a second daemon: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("afterwards the socket is there: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
		t.Errorf("the folder has %v, %v", entries, err)
	}

	// A socket that a killed daemon has left is replaced.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = Listen(Socket{Path: path}); err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if err := unix.Lstat(path, &st); err != nil || st.Mode&0o777 != 0o660 {
		t.Errorf("by default the mode is %o, %v", st.Mode, err)
	}
	// One that has taken the place of ours stays.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := Listen(Socket{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of another daemon: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := filepath.Dir(socketPath(t))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	// A link to a stale socket is still no socket.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	toStale := filepath.Join(dir, "to-stale")
	if err := os.Symlink("stale", toStale); err != nil {
		t.Fatal(err)
	}
	for path, why := range map[string]string{
		"relative":                     "is absolute",
		"/a/../b":                      "is absolute and plain",
		file:                           "no socket",
		link:                           "no socket",
		toStale:                        "no socket",
		dir:                            "no socket",
		filepath.Join(dir, "none/s"):   "no such file",
		"/" + strings.Repeat("x", 103): "has 104 bytes",
	} {
		if l, err := Listen(Socket{Path: path}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("Listen %s: %v, %v", path, l, err)
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file is %q, %v", data, err)
	}
	if target, err := os.Readlink(toStale); err != nil || target != "stale" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
}

// TestListenIsNotHeldUp: builds can lock the folder that they see, and a daemon must not wait for them for ever.
func TestListenIsNotHeldUp(t *testing.T) {
	path := socketPath(t)
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = folder.Close() }()
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		l, err := Listen(Socket{Path: path})
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "holds the lock") {
			t.Errorf("it says %v", err)
		}
	case <-time.After(lockPatience + time.Minute):
		t.Fatal("it waits for a build")
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(Socket{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestListenAtOnce lets many daemons begin over a stale socket: one gets it, and keeps it.
func TestListenAtOnce(t *testing.T) {
	for range 5 {
		path := socketPath(t)
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		stale.SetUnlinkOnClose(false)
		if err := stale.Close(); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var won []net.Listener
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if l, err := Listen(Socket{Path: path}); err == nil {
					mu.Lock()
					won = append(won, l)
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if len(won) != 1 {
			t.Errorf("%d daemons listen at one socket", len(won))
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Errorf("nobody answers: %v", err)
		} else if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, l := range won {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
