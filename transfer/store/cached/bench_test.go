package cached

import (
	"os"
	"testing"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// benchChunks is about as many chunks as 650 MB have.
const benchChunks = 4096

// openBench returns a near store in memory if there is one, so that the benchmarks measure this package and not a disk.
func openBench(b *testing.B) (*Store, []piece) {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nbc")
	if err != nil {
		dir = b.TempDir()
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	near, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	s := New(near, &storetest.Faulty{Store: storetest.Memory()})
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	list := make([]piece, benchChunks)
	for i := range list {
		list[i] = newPiece(i, 44<<10) // the average of stored chunks
	}
	return s, list
}

// BenchmarkGet reads near copies.
func BenchmarkGet(b *testing.B) {
	s, list := openBench(b)
	for _, p := range list {
		s.near.put(p.id, p.stored)
	}
	b.SetBytes(44 << 10)
	i := 0
	for b.Loop() {
		p := &list[i%len(list)]
		o, err := s.Get(b.Context(), p.key(1), store.Read{})
		if err != nil || !o.Near {
			b.Fatal(o.Near, err)
		}
		i++
	}
}

// BenchmarkPut is what a near copy costs when a chunk was fetched or sent.
func BenchmarkPut(b *testing.B) {
	s, list := openBench(b)
	b.SetBytes(44 << 10)
	i := 0
	for b.Loop() {
		p := &list[i%len(list)]
		s.near.put(p.id, p.stored)
		i++
	}
	if s.near.full.Load() != 0 {
		b.Error("copies were not kept")
	}
}
