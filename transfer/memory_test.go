package transfer

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"nbc/transfer/store/storetest"
)

// mostMemory runs do and returns how many bytes of objects there were at most, in MB.
func mostMemory(do func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	runtime.GC()
	var most uint64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	do()
	close(stop)
	wg.Wait()
	return most >> 20
}

// Memory is bounded by the requests under way, and not by the tree, however slow the store is.
func TestMemoryDoesNotGrowWithTheTree(t *testing.T) {
	if elsewhere(t) {
		return
	}
	size := 200 << 20
	if testing.Short() {
		size = 100 << 20
	}
	slow := &storetest.Faulty{Store: dirStore(t, t.TempDir()), Fault: func(storetest.Call) storetest.Fault {
		return storetest.Fault{Delay: 20 * time.Millisecond}
	}}
	w := newWorld(t, slow)
	for i := range size >> 20 {
		if i%2 == 0 {
			w.write(fmt.Sprintf("build/%d", i), noise(uint64(i), 1<<20))
		}
	}
	for i := range 2 {
		w.write(fmt.Sprintf("build/large%d", i), noise(uint64(1000+i), size>>2))
	}
	const limit = 120 // MB: 16 or 8 in flight, and buffers of 1 MB for each worker, and as much again of garbage
	if got := mostMemory(func() { w.first() }); got > limit {
		t.Errorf("a save of %d MB takes %d MB", size>>20, got)
	} else {
		t.Logf("save: %d MB", got)
	}
	o := w.again()
	if got := mostMemory(func() { o.hit(RestoreOptions{}) }); got > limit {
		t.Errorf("a restore of %d MB takes %d MB", size>>20, got)
	} else {
		t.Logf("restore: %d MB", got)
	}
}
