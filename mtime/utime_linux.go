package mtime

import "golang.org/x/sys/unix"

const (
	utimeNow  = unix.UTIME_NOW
	utimeOmit = unix.UTIME_OMIT
)
