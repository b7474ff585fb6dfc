package index

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Stat is what the kernel tells about a file without reading it. Two equal Stats of one path, with a ctime old enough
// to exclude a change within one tick of the clock, prove that the bytes are the same.
type Stat struct {
	Dev, Ino     uint64
	Mode         uint32 // type and permission bits, as in st_mode
	Links        uint32
	Size         int64
	MTime, CTime int64 // nanoseconds since 1970
}

// Kind returns what the file is, or false for sockets, devices and pipes.
func (s Stat) Kind() (Kind, bool) {
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return File, true
	case unix.S_IFDIR:
		return Dir, true
	case unix.S_IFLNK:
		return Link, true
	}
	return 0, false
}

// SameFile reports whether both are of one inode. A file that was replaced under its name is another one.
func (s Stat) SameFile(o Stat) bool { return s.Dev == o.Dev && s.Ino == o.Ino }

// StatOf converts what the system calls return.
func StatOf(st *unix.Stat_t) Stat {
	return Stat{
		Dev:   uint64(st.Dev), // the types differ between systems
		Ino:   st.Ino,
		Mode:  uint32(st.Mode),
		Links: uint32(st.Nlink),
		Size:  st.Size,
		MTime: st.Mtim.Nano(),
		CTime: st.Ctim.Nano(),
	}
}

// OpenFile opens the regular file at path, which is relative to rootDir, for reading. It follows no link in the last
// element (the error is then ELOOP), and does not wait for the writer of a pipe that took the file's place.
//
// Like the other functions here it takes paths longer than the kernel does: what [Walker.Walk] finds can be opened.
func OpenFile(rootDir, path string) (*os.File, error) {
	full := rootDir + "/" + path
	fd, err := open(unix.AT_FDCWD, full, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: full, Err: err}
	}
	st, err := fstat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: full, Err: err}
	}
	if kind, _ := st.Kind(); kind != File {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "open", Path: full, Err: fmt.Errorf("not a regular file")}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// OpenDir opens the directory at path, which is relative to rootDir, without following any link below rootDir. Was is
// its Stat when it was last seen: if path still leads to the same directory by whatever way, one look is enough.
// The caller may give the zero Stat.
func OpenDir(rootDir, path string, was Stat) (*os.File, error) {
	full := rootDir + "/" + path
	fd, err := open(unix.AT_FDCWD, full, openDirectory|unix.O_NOFOLLOW)
	if err == nil {
		st, err := fstat(fd)
		if err == nil && st.SameFile(was) {
			return os.NewFile(uintptr(fd), full), nil
		}
		_ = unix.Close(fd)
	}
	top, err := open(unix.AT_FDCWD, rootDir, openDirectory)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: rootDir, Err: err}
	}
	defer func() { _ = unix.Close(top) }()
	if fd, err = openElements(top, path, ""); err != nil {
		return nil, &os.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// LstatFile returns the Stat of the file at path, which is relative to rootDir; of a link, that of the link itself.
func LstatFile(rootDir, path string) (Stat, error) {
	full := rootDir + "/" + path
	var st Stat
	err := resolve(unix.AT_FDCWD, full, func(dir int, path string) (err error) {
		st, err = lstatAt(dir, path)
		return err
	})
	if err != nil {
		return Stat{}, &os.PathError{Op: "lstat", Path: full, Err: err}
	}
	return st, nil
}

// LstatAt is [LstatFile] for a name in an open directory.
func LstatAt(dir *os.File, name string) (Stat, error) {
	st, err := lstatAt(int(dir.Fd()), name)
	if err != nil {
		return Stat{}, &os.PathError{Op: "lstat", Path: dir.Name() + "/" + name, Err: err}
	}
	return st, nil
}

// FstatFile returns the Stat of an open file.
func FstatFile(f *os.File) (Stat, error) {
	st, err := fstat(int(f.Fd()))
	if err != nil {
		return Stat{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, nil
}

// openDirectory are the flags for a directory that will be listed.
const openDirectory = unix.O_RDONLY | unix.O_DIRECTORY

// open is openat without a limit to the length of path, and again when a signal interrupts it.
func open(dir int, path string, flags int) (fd int, err error) {
	err = resolve(dir, path, func(dir int, path string) error {
		for {
			fd, err = unix.Openat(dir, path, flags|unix.O_CLOEXEC, 0)
			if err != unix.EINTR {
				return err
			}
		}
	})
	return fd, err
}

// openElements opens the directory at path element by element, following no link but the one at the path follow.
func openElements(top int, path, follow string) (int, error) {
	dir, done := top, 0
	for {
		name, _, more := strings.Cut(path[done:], "/")
		done += len(name)
		flags := openDirectory | unix.O_NOFOLLOW
		if more {
			flags = openSearch | unix.O_DIRECTORY | unix.O_NOFOLLOW
		}
		if path[:done] == follow {
			flags &^= unix.O_NOFOLLOW
		}
		next, err := open(dir, name, flags)
		if dir != top {
			_ = unix.Close(dir)
		}
		if err != nil || !more {
			return next, err
		}
		dir = next
		done++
	}
}

// resolve calls do with a directory and a path relative to it that the kernel accepts, which together name the file at
// path relative to dir. Only for a path that is too long it opens directories on the way.
func resolve(dir int, path string, do func(dir int, path string) error) error {
	top := dir
	defer func() {
		if dir != top {
			_ = unix.Close(dir)
		}
	}()
	for len(path) >= unix.PathMax { // which counts a NUL at the end
		cut := strings.LastIndexByte(path[:unix.PathMax-1], '/')
		if cut <= 0 {
			return unix.ENAMETOOLONG
		}
		next, err := open(dir, path[:cut], openSearch|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		if dir != top {
			_ = unix.Close(dir)
		}
		dir, path = next, strings.TrimLeft(path[cut:], "/")
	}
	return do(dir, path)
}

func lstatAt(dir int, name string) (Stat, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			return StatOf(&st), nil
		}
		if err != unix.EINTR {
			return Stat{}, err
		}
	}
}

func fstat(fd int) (Stat, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstat(fd, &st)
		if err == nil {
			return StatOf(&st), nil
		}
		if err != unix.EINTR {
			return Stat{}, err
		}
	}
}
