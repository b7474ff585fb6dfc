//go:build !race

package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

const (
	// hugeHeap is how much of the heap is to be of huge pages, in bytes: what a restore takes, and most of a save.
	hugeHeap = 64 << 20
	// ballastSize and collectAt are such that the heap is collected when it has grown by 10 MB and a twelfth. Go's default
	// is to let it double, with which a save takes too much, and to begin at 4 MB. With 30 % and no ballast a save that
	// changes nothing was collected ten times, and one of 300,000 files took as long as with this.
	ballastSize = 128 << 20
	collectAt   = 8 // percent
	// collectPlainAt is for a heap without ballast.
	collectPlainAt = 30 // percent
)

// ballast is never touched, so that it takes no memory, but counts as in use when the collector reckons how far the heap
// may grow: https://blog.twitch.tv/en/2019/04/10/go-memory-ballast-how-i-learnt-to-stop-worrying-and-love-the-heap/.
var ballast []byte

// prepareHeap makes the heap fit this process: one that is short is over in a moment. GOGC, where it is set, is left to do
// what it says; and there is no ballast where it would be counted: in GOMEMLIMIT, in a limit of the system, or in the
// metrics of a daemon.
//
// Most of what a short process pays for memory is the first touch of each page, and most of all in a virtual machine:
// up to 20 µs for 4 KB, and a third of a µs for the same in a huge page. With these, and collected less often, a save
// that changes nothing took 0.12 s and not 0.19, a warm restore 1.4 and not 2.0. Linux gives them out unasked where
// /sys/kernel/mm/transparent_hugepage/enabled says "always"; mostly it says "madvise". Go's runtime does not ask for
// them, so this does, for the memory of one large object that is dropped then: what the heap takes next is there.
func prepareHeap(short bool) {
	if os.Getenv("GOGC") != "" {
		return
	}
	if !short || os.Getenv("GOMEMLIMIT") != "" || !roomy() {
		debug.SetGCPercent(collectPlainAt)
		return
	}
	debug.SetGCPercent(-1)
	huge := make([]byte, hugeHeap)
	adviseHuge(huge)
	ballast = make([]byte, ballastSize) // while huge is in use, so that it is elsewhere, and never touched before
	runtime.KeepAlive(huge)
	runtime.GC()
	debug.SetGCPercent(collectAt)
}
