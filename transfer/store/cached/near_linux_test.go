package cached

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// asNobody calls do as a user who may do nothing that is not for everyone.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		do()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody = 65534
	if err := unix.Setfsuid(nobody); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setfsuid(0); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}

// TestOtherOwner uses a directory that belongs to somebody else, as far as its permissions allow.
func TestOtherOwner(t *testing.T) {
	readable, unreadable, fresh := newPiece(1, 1000), newPiece(2, 1000), newPiece(3, 1000)
	for _, c := range []struct {
		name string
		mode os.FileMode
		near bool // what is readable is read near
	}{{"readable", 0o755, true}, {"searchable", 0o711, true}, {"closed", 0o700, false}} {
		t.Run(c.name, func(t *testing.T) {
			if os.Geteuid() != 0 && c.mode == 0o700 {
				t.Skip("needs another user")
			}
			top := t.TempDir()
			dir := filepath.Join(top, "near")
			theirs, _ := open(t, dir)
			theirs.near.perm = 0o755
			for _, p := range []piece{readable, unreadable} {
				put(t, theirs, p.key(1), p.stored)
			}
			file := filepath.Join(dir, unreadable.file())
			err := errors.Join(os.Chmod(filepath.Join(dir, readable.file()), 0o644), os.Chmod(file, 0),
				os.Chmod(filepath.Dir(file), 0o555), os.Chmod(dir, c.mode), os.Chmod(top, 0o755),
				os.Chmod(filepath.Dir(top), 0o755))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.Chmod(filepath.Dir(file), 0o755) }() // so that it can be removed
			ours, far := open(t, dir)
			var said bytes.Buffer
			ours.near.Log = slog.New(slog.NewTextHandler(&said, nil))
			for _, p := range []piece{readable, unreadable, fresh} {
				put(t, far, p.key(1), p.stored)
			}
			asNobody(t, func() {
				wantGet(t, ours, readable.key(1), store.Read{}, readable.stored, c.near)
				for range 2 {
					wantGet(t, ours, unreadable.key(1), store.Read{}, unreadable.stored, false)
					if os.Geteuid() == 0 {
						wantGet(t, ours, fresh.key(1), store.Read{}, fresh.stored, false)
					}
				}
			})
			if n := strings.Count(said.String(), "level=WARN"); n != 1 || !strings.Contains(said.String(), "permission denied") {
				t.Errorf("it said %q", said.String())
			}
		})
	}
}

// TestFullDisk runs itself in namespaces of its own, where it may mount a small tmpfs.
func TestFullDisk(t *testing.T) {
	if path := os.Getenv("NBC_TEST_TMPFS"); path != "" {
		fullDisk(t, path)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), "NBC_TEST_TMPFS="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil && !strings.Contains(string(output), "--- SKIP"):
	case errors.As(err, &exit):
		t.Errorf("in namespaces of its own: %v\n%s", err, output)
	default:
		storetest.Need(t, "tmpfs", fmt.Errorf("mounting: %v\n%s", err, output))
	}
}

func fullDisk(t *testing.T, path string) {
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Unmount(path, unix.MNT_DETACH) }()
	var said bytes.Buffer
	again := func() *Store {
		s, _ := open(t, path)
		said.Reset()
		s.near.Log = slog.New(slog.NewTextHandler(&said, nil))
		return s
	}
	const count, size = 40, 50_000
	fill := func(s *Store) {
		t.Helper()
		for i := range count {
			p := newPiece(i, size)
			put(t, s, p.key(1), p.stored)
		}
	}
	// wantKept checks that all copies are whole, and how many there are.
	wantKept := func(s *Store, from, to int) {
		t.Helper()
		near := 0
		for i := range count {
			p := newPiece(i, size)
			o, err := s.Get(t.Context(), p.key(1), store.Read{})
			if err != nil || !bytes.Equal(o.Data, p.stored) {
				t.Fatalf("Get: %d bytes, %v", len(o.Data), err)
			}
			if o.Near {
				near++
			}
		}
		if near < from || near > to {
			t.Errorf("%d copies are near, want %d to %d", near, from, to)
		}
		if files := walk(t, path); len(files) != near {
			t.Errorf("beside %d copies there is something else: %q", near, files)
		}
	}
	wantSaid := func(what string) {
		t.Helper()
		if n := strings.Count(said.String(), "level=WARN"); n != 1 || !strings.Contains(said.String(), what) {
			t.Errorf("it said %q, want one warning of %q", said.String(), what)
		}
	}

	s := again()
	fill(s)
	wantSaid("no space left on device")
	wantKept(s, 10, 20)

	s = again()
	s.near.Reserve = 100_000
	fill(s)
	wantSaid("free")
	kept := len(walk(t, path))

	// When there is space again it is used, after a while and in the same process.
	s.near.Reserve = 1
	if err := os.Remove(filepath.Join(path, walk(t, path)[0])); err != nil {
		t.Fatal(err)
	}
	was := len(walk(t, path))
	fill(s)
	if n := len(walk(t, path)); was >= kept || n != was {
		t.Errorf("%d copies, %d without some, and %d at once", kept, was, n)
	}
	s.near.opened = s.near.opened.Add(-pauseAfter)
	fill(s)
	wantKept(s, was+1, kept+1)

	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s = again()
	fill(s)
	wantSaid("read-only file system")
	wantKept(s, 10, 20)
}
