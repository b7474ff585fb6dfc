//go:build darwin || freebsd

package dir

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FileSystem says whether the store is on a file system that other machines may write to, where locks may or may not
// work, and what that is called.
func (s *Store) FileSystem() (name string, network bool, err error) {
	f, err := s.root.Open(".")
	if err != nil {
		return "", false, fmt.Errorf("finding the file system of %s: %w", s.path, explain(err))
	}
	var st unix.Statfs_t
	err = errors.Join(control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }), f.Close())
	if err != nil {
		return "", false, fmt.Errorf("finding the file system of %s: %w", s.path, err)
	}
	return unix.ByteSliceToString(st.Fstypename[:]), st.Flags&unix.MNT_LOCAL == 0, nil
}

// syncFileSystem writes out all that the kernel holds back: of every file system, since one alone cannot be named here.
func syncFileSystem(*os.File) error {
	return unix.Sync()
}
