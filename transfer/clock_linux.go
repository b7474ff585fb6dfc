package transfer

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// probeUnnamed makes a file without a name in dir, and returns its time.
func probeUnnamed(dir string) (int64, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOENT):
		return 0, fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	case err != nil:
		return 0, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	return st.Mtim.Nano(), nil
}
