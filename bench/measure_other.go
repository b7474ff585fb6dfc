//go:build !linux

package main

import "syscall"

// maxrssUnit is what the kernel counts peak memory in, in bytes.
const maxrssUnit = 1

func childDiesWithParent() *syscall.SysProcAttr { return nil }
