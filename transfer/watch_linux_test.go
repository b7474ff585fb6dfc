package transfer

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watchOpens returns a function that tells which files in the directories were opened since. It asks the kernel, not nbc.
func watchOpens(t *testing.T, dirs ...string) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN|unix.IN_EXCL_UNLINK); err != nil {
			t.Fatal(err)
		}
	}
	return func() []string {
		var names []string
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n <= 0 {
				return names
			}
			for b := buf[:n]; len(b) > 0; {
				e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
				name := b[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+int(e.Len)]
				if e.Mask&unix.IN_Q_OVERFLOW != 0 {
					t.Fatal("too many files were opened to be told")
				}
				if e.Mask&unix.IN_ISDIR == 0 {
					names = append(names, unix.ByteSliceToString(name))
				}
				b = b[unix.SizeofInotifyEvent+int(e.Len):]
			}
		}
	}
}
