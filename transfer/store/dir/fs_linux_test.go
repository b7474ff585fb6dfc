package dir

import (
	"errors"
	"fmt"
	"io/fs"
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

func TestFileSystem(t *testing.T) {
	for magic, want := range map[uint32]string{
		0x6969: "nfs", 0xff534d42: "cifs", 0x65735546: "fuse", 0x01021997: "9p", 0xef53: "", 0x01021994: "", 0x58465342: "",
	} {
		if name, network := typeName(magic); network != (want != "") || network && name != want {
			t.Errorf("%#x is %q, network %v; want %q", magic, name, network, want)
		}
	}
	s := open(t, t.TempDir())
	if name, _, err := s.FileSystem(); err != nil || name == "" {
		t.Errorf("file system %q, %v", name, err)
	}
}

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

func TestRefused(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	put(t, s, "index/a", "a")
	put(t, s, "chunks/ab/x", "x")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Join(path, "index"), 0), os.Chmod(path, 0o555)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(os.Chmod(path, 0o700), os.Chmod(filepath.Join(path, "index"), 0o700)); err != nil {
			t.Error(err)
		}
	}()
	s = open(t, path)
	asNobody(t, func() {
		_, getErr := s.Get(t.Context(), "index/a", store.Read{})
		_, putErr := s.Put(t.Context(), "chunks/ab/y", nil, store.Condition{})
		_, makeErr := Open(filepath.Join(path, "another"))
		for what, err := range map[string]error{
			"getting index/a": getErr, "putting chunks/ab/y": putErr, "making the store": makeErr,
			"listing index/*":  s.List(t.Context(), "index/", func(store.Info) error { return nil }),
			"deleting index/a": s.Delete(t.Context(), "index/a"),
		} {
			if !errors.Is(err, store.ErrRefused) || errors.Is(err, store.ErrNotExist) {
				t.Errorf("%v, want it refused", err)
				continue
			}
			if !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want it to say %q and where", err, what)
			}
		}
	})
}

// TestFullDisk runs itself in namespaces of its own, where it may mount a small tmpfs.
func TestFullDisk(t *testing.T) {
	if path := os.Getenv("NBC_TEST_TMPFS"); path != "" {
		fullDisk(t, path)
		return
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDisk$", "-test.v") // this test
	cmd.Env = append(os.Environ(), "NBC_TEST_TMPFS="+dir)
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
	s := open(t, path)
	put(t, s, "index/a", "old")
	big := strings.Repeat("x", 2<<20)
	for _, key := range []string{"index/a", "chunks/ab/x"} {
		_, err := s.Put(t.Context(), key, []byte(big), store.Condition{})
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), key) ||
			!strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("Put %s to a full disk: %v", key, err)
		}
	}
	// What was written of them is gone.
	for _, folder := range temps(t, path) {
		if left := names(t, filepath.Join(path, folder)); len(left) != 0 {
			t.Errorf("Puts that found no space left %q", left)
		}
	}
	if o, err := s.Get(t.Context(), "index/a", store.Read{}); err != nil || string(o.Data) != "old" {
		t.Errorf("after a Put that found no space: %q, %v", o.Data, err)
	}
	put(t, s, "index/a", strings.Repeat("y", 500_000))

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if o, err := s.Get(t.Context(), "index/a", store.Read{}); err != nil || len(o.Data) != 500_000 {
		t.Errorf("Get from a read-only disk: %d bytes, %v", len(o.Data), err)
	}
	_, err := s.Put(t.Context(), "index/a", nil, store.Condition{})
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("Put to a read-only disk: %v", err)
	}
	if err := s.Delete(t.Context(), "index/a"); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Delete on a read-only disk: %v", err)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrRefused) {
		t.Errorf("a read-only disk reads as absent or refused: %v", err)
	}
}
