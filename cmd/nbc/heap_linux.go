//go:build !race

package main

import "golang.org/x/sys/unix"

// adviseHuge asks for huge pages where b is. A kernel that has none refuses, and nothing is lost.
func adviseHuge(b []byte) { _ = unix.Madvise(b, unix.MADV_HUGEPAGE) }
