package transfer

import (
	"bytes"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount tells what a rename cannot cross: a file system, and a place where one is mounted.
type mount struct {
	major, minor uint32
	id           uint64 // 0 where the kernel does not tell, before version 5.8: then a bind mount looks like its tree
}

// mountOf returns that of a directory.
func mountOf(dir string) (mount, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_TYPE|unix.STATX_MNT_ID, &st)
	if err != nil {
		return mount{}, &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	m := mount{major: st.Dev_major, minor: st.Dev_minor}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		m.id = st.Mnt_id
	}
	return m, nil
}

// mountPoints returns where something is mounted, as absolute paths; nothing, where the kernel does not tell.
func mountPoints() []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var list []string
	for line := range bytes.Lines(data) {
		if fields := strings.Fields(string(line)); len(fields) > 4 {
			list = append(list, unescapeMount(fields[4]))
		}
	}
	return list
}

// unescapeMount undoes the kernel's writing of blanks and backslashes as three octal digits.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// renameNoReplace is rename where nothing is at to.
func renameNoReplace(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // the kernel's own number
		return renameAfterLook(from, to) // a file system that does not know the flag
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
