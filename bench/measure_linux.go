package main

import "syscall"

// maxrssUnit is what the kernel counts peak memory in, in bytes.
const maxrssUnit = 1024

func childDiesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
