package mtime

// From <sys/stat.h>, for golang.org/x/sys/unix does not have them for this system.
const (
	utimeNow  = -1
	utimeOmit = -2
)
