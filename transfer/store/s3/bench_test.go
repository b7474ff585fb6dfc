package s3_test

import (
	"crypto/rand"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbc/transfer/store"
	"nbc/transfer/store/s3"
	"nbc/transfer/store/storetest"
)

const (
	// benchSize is that of a compressed chunk of a source tree, benchWorkers how many connections are used at once.
	benchSize    = 30_000
	benchWorkers = 64
)

// BenchmarkPut and BenchmarkGet show how many objects a second pass, and what each costs this process: its own seconds
// of CPU decide how long a save or a restore takes where the network is near.
func BenchmarkPut(b *testing.B) {
	data := make([]byte, benchSize)
	_, _ = rand.Read(data) // never fails
	bench(b, open(b, storetest.S3(b)), func(s *s3.Store, i int) error {
		_, err := s.Put(b.Context(), fmt.Sprintf("chunks/%02x/%d", i%256, i), data, store.Condition{})
		return err
	})
}

func BenchmarkGet(b *testing.B) {
	s := open(b, storetest.S3(b))
	data := make([]byte, benchSize)
	_, _ = rand.Read(data) // never fails
	const objects = 256
	for i := range objects {
		if _, err := s.Put(b.Context(), fmt.Sprintf("chunks/%d", i), data, store.Condition{}); err != nil {
			b.Fatal(err)
		}
	}
	bench(b, s, func(s *s3.Store, i int) error {
		o, err := s.Get(b.Context(), fmt.Sprintf("chunks/%d", i%objects), store.Read{})
		if err == nil && len(o.Data) != benchSize {
			return fmt.Errorf("%d bytes", len(o.Data))
		}
		return err
	})
}

// bench does one thing b.N times, by benchWorkers at once.
func bench(b *testing.B, s *s3.Store, once func(s *s3.Store, i int) error) {
	b.SetBytes(benchSize)
	before := cpu(b)
	b.ResetTimer()
	work := make(chan int)
	var all sync.WaitGroup
	for range benchWorkers {
		all.Go(func() {
			for i := range work {
				if err := once(s, i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpu is how much time this process, and not the server, has spent computing.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
