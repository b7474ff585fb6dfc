package transfer

import "golang.org/x/sys/unix"

// utimeOmit leaves a time as it is.
const utimeOmit = unix.UTIME_OMIT
