package dir

import (
	"crypto/rand"
	"fmt"
	"os"
	"testing"

	"nbc/transfer/store"
)

// chunkSize is near the average of a compressed chunk.
const chunkSize = 44 << 10

// benchDir returns a directory in memory if there is one, so that the benchmarks measure this package and not a disk.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nbc")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

func chunkKey(i int) string { return fmt.Sprintf("chunks/%02x/%064x.1", i%256, i) }

func openBench(b *testing.B) *Store {
	b.Helper()
	s, err := Open(benchDir(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// BenchmarkPut puts chunks as a save does. BenchmarkWriteFile is the limit: it makes the same files in the same
// folders.
func BenchmarkPut(b *testing.B) {
	s := openBench(b)
	data := make([]byte, chunkSize)
	_, _ = rand.Read(data) // never fails
	b.SetBytes(chunkSize)
	i := 0
	for b.Loop() {
		if _, err := s.Put(b.Context(), chunkKey(i%8192), data, store.Condition{}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkWriteFile(b *testing.B) {
	dir := benchDir(b)
	for i := range 256 {
		if err := os.MkdirAll(fmt.Sprintf("%s/chunks/%02x", dir, i), 0o700); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, chunkSize)
	_, _ = rand.Read(data) // never fails
	b.SetBytes(chunkSize)
	i := 0
	for b.Loop() {
		name := dir + "/" + chunkKey(i%8192)
		_ = os.Remove(name) // a replaced file is a new one
		if err := os.WriteFile(name, data, 0o600); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkGet(b *testing.B) {
	s := openBench(b)
	data := make([]byte, chunkSize)
	for i := range 512 {
		if _, err := s.Put(b.Context(), chunkKey(i), data, store.Condition{}); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(chunkSize)
	i := 0
	for b.Loop() {
		if _, err := s.Get(b.Context(), chunkKey(i%512), store.Read{}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkList(b *testing.B) {
	s := openBench(b)
	for i := range 8192 {
		if _, err := s.Put(b.Context(), chunkKey(i), nil, store.Condition{}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		n := 0
		err := s.List(b.Context(), "chunks/", func(store.Info) error {
			n++
			return nil
		})
		if err != nil || n != 8192 {
			b.Fatal(n, err)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/8192, "ns/object")
	}
}
