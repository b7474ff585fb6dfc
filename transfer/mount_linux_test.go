package transfer

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nbc/transfer/store/storetest"
)

// mountProblem says why this process cannot mount anything.
var mountProblem = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "nbc-mount-")
	if err != nil {
		return err
	}
	err = unix.Mount("nbc", dir, "tmpfs", 0, "size=64k")
	if err == nil {
		err = unix.Unmount(dir, 0)
	}
	return errors.Join(err, os.Remove(dir))
})

// mountTmpfs mounts a file system in memory at a new directory, and returns it.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	needMount(t)
	doMount(t, "nbc", dir, "tmpfs", 0, options)
}

func doMount(t *testing.T, what, dir, kind string, flags uintptr, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(what, dir, kind, flags, options); err != nil {
		t.Fatalf("mounting %s at %s: %v", kind, dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
}

// remount changes whether what is mounted at dir may be written to.
func remount(t *testing.T, dir string, readOnly bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("nbc", dir, "", flags, ""); err != nil {
		t.Fatalf("remounting %s: %v", dir, err)
	}
}

// overlay mounts an overlay at dir with what lower holds as its lower layer.
func overlay(t *testing.T, dir, lower string) {
	t.Helper()
	needMount(t)
	layers := filepath.Join(t.TempDir(), "layers")
	mountTmpfs(t, layers, "size=64m") // an upper layer on the overlay of a container is refused
	upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount("nbc", dir, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
	storetest.Need(t, "overlay", err)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
}
