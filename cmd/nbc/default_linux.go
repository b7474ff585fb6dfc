package main

import (
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setDefault gives a signal the system's default action, behind the back of the Go runtime: that would print all its
// goroutines on SIGQUIT, SIGSEGV and the like. There is no core dump: the command may have left one of its own.
func setDefault(n syscall.Signal) {
	signal.Reset(n)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// All zero is the default action, whatever the order of fields is on this architecture.
	var action [16]uintptr
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(n),
		uintptr(unsafe.Pointer(&action)), 0, signalSetSize, 0, 0) // #nosec G103 -- there is no other way to say it
}

// signalSetSize is the size of the kernel's set of 64 signals in bytes.
const signalSetSize = 8
