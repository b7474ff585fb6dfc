package index

import "golang.org/x/sys/unix"

// openSearch are the flags for a directory that is only passed through, which needs no permission to list it.
const openSearch = unix.O_PATH
