//go:build !linux

package transfer

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// mount tells what a rename cannot cross: a file system.
type mount struct{ dev uint64 }

// mountOf returns that of a directory.
func mountOf(dir string) (mount, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return mount{}, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	return mount{uint64(st.Dev)}, nil // a number without meaning
}

// mountPoints returns nothing: they are not told here.
func mountPoints() []string { return nil }

// renameNoReplace is rename where nothing is at to.
func renameNoReplace(from, to string) error { return renameAfterLook(from, to) }
