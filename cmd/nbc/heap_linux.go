//go:build !race

package main

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// adviseHuge asks for huge pages where b is. A kernel that has none refuses, and nothing is lost.
func adviseHuge(b []byte) { _ = unix.Madvise(b, unix.MADV_HUGEPAGE) }

// roomy reports whether memory that is never touched is free: where the system counts it, Go's runtime would end the
// process that cannot have it, and the build with it.
func roomy() bool {
	for _, limit := range []int{unix.RLIMIT_AS, unix.RLIMIT_DATA} {
		var l unix.Rlimit
		if unix.Getrlimit(limit, &l) != nil || l.Cur != unix.RLIM_INFINITY {
			return false
		}
	}
	mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory") // 2: all memory that is asked for is counted
	return err == nil && strings.TrimSpace(string(mode)) != "2"
}
