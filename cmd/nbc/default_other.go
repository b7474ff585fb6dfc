//go:build !linux

package main

import (
	"os/signal"
	"syscall"
)

// setDefault gives a signal the default action of the Go runtime, which is the system's for the usual ones.
func setDefault(n syscall.Signal) { signal.Reset(n) }
