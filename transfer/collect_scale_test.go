package transfer

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/dir"
)

var (
	scaleChunks = flag.Int("gc-chunks", 100_000, "how many chunks to collect among")
	scaleShare  = flag.Int("gc-refs", 4, "how many indexes refer to a chunk on average")
)

// perIndex is how many chunks there are for each index.
const perIndex = 1000

// arithmetic is a store of chunks and indexes that nobody has put there: what is asked for is made up, always the same.
// Each tenth chunk is garbage; the others are each referred to by an index of their own, and at random by some more.
// Objects below gc/ are real.
type arithmetic struct {
	chunks, indexes int
	real            store.Store
	// lost is the path of a chunk that is not there, if any.
	lost string

	mu     sync.Mutex
	recent map[int][]byte // indexes that were made last
	order  []int

	deleted atomic.Int64
}

// key of chunk i. IDs rise with i.
func (a *arithmetic) key(i int) chunk.Key {
	k := chunk.Key{Epoch: 1}
	step := math.MaxUint64 / uint64(a.chunks)
	r := rand.NewPCG(uint64(i), 1)
	binary.BigEndian.PutUint64(k.ID[:], uint64(i)*step+r.Uint64()%step)
	for at := 8; at < len(k.ID); at += 8 {
		binary.BigEndian.PutUint64(k.ID[at:], r.Uint64())
	}
	return k
}

func garbage(i int) bool { return i%10 == 9 }

// index makes the bytes of index j.
func (a *arithmetic) index(j int) []byte {
	a.mu.Lock()
	data, ok := a.recent[j]
	a.mu.Unlock()
	if ok {
		return data
	}
	f := index.Entry{Path: "f", Kind: index.File}
	x := &index.Index{Epoch: 1, Roots: []string{"f"}}
	add := func(i int) {
		if !garbage(i) {
			x.Chunks = append(x.Chunks, index.Chunk{Key: a.key(i), Length: 100_000})
			f.Size += 100_000
		}
	}
	for i := j * perIndex; i < min(a.chunks, (j+1)*perIndex); i++ {
		add(i)
	}
	r := rand.New(rand.NewPCG(uint64(j), 2))
	for range (*scaleShare - 1) * perIndex {
		add(r.IntN(a.chunks))
	}
	x.Entries = []index.Entry{f}
	data, err := x.Encode()
	if err != nil {
		panic(err) // it is the same every time
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recent[j] = data
	if a.order = append(a.order, j); len(a.order) > 128 {
		delete(a.recent, a.order[0])
		a.order = a.order[1:]
	}
	return data
}

func (a *arithmetic) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	name, ok := strings.CutPrefix(key, index.Prefix)
	if !ok {
		return a.real.Get(ctx, key, r)
	}
	j, err := strconv.Atoi(name)
	if err != nil {
		return store.Object{}, store.ErrNotExist
	}
	data := a.index(j)
	offset, n, err := r.Span(int64(len(data)))
	if err != nil {
		return store.Object{}, err
	}
	return store.Object{Data: append([]byte(nil), data[offset:offset+n]...), Version: "1", Size: int64(len(data))}, nil
}

func (a *arithmetic) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	return a.real.Put(ctx, key, data, c)
}

func (a *arithmetic) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	switch {
	case prefix == index.Prefix:
		for j := range a.indexes {
			// The size of most; that of one or the other is told wrongly, which only the order of reads depends on.
			if err := yield(store.Info{Key: fmt.Sprintf("%s%07d", prefix, j), Size: 130_000, Version: "1"}); err != nil {
				return err
			}
		}
		return nil
	case !strings.HasPrefix(prefix, chunk.Prefix):
		return a.real.List(ctx, prefix, yield)
	}
	from, to := 0, a.chunks
	if hh := strings.Trim(prefix[len(chunk.Prefix):], "/"); hh != "" {
		b, err := hex.DecodeString(hh)
		if err != nil {
			return err
		}
		step := math.MaxUint64 / uint64(a.chunks)
		from = int(uint64(b[0]) << 56 / step)
		to = int(min(uint64(a.chunks), uint64(b[0]+1)<<56/step+1))
		if b[0] == 255 {
			to = a.chunks
		}
	}
	for i := from; i < to; i++ {
		path := a.key(i).Path()
		if !strings.HasPrefix(path, prefix) || path == a.lost {
			continue
		}
		if err := yield(store.Info{Key: path, Size: 45_000, Version: "1"}); err != nil {
			return err
		}
	}
	return nil
}

func (a *arithmetic) Delete(ctx context.Context, keys ...string) error {
	if strings.HasPrefix(keys[0], chunk.Prefix) {
		a.deleted.Add(int64(len(keys)))
		return nil
	}
	return a.real.Delete(ctx, keys...)
}

// peak returns the most memory that this process had, in bytes.
func peak(t *testing.T) int64 {
	data, err := os.ReadFile("/proc/self/status")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// cpu returns how long this process was running on a core.
func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// make makes everything up once, and returns what that takes of one core.
func (a *arithmetic) make(t *testing.T) time.Duration {
	t.Helper()
	begun := cpu(t)
	if err := a.List(t.Context(), chunk.Prefix, func(store.Info) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for j := range a.indexes {
		group.Go(func() error { a.index(j); return nil })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return cpu(t) - begun
}

// madeUp is a store that makes its objects up, with as many chunks as the flags say, and what it takes to make all of
// them up, once.
func madeUp(t *testing.T) (a *arithmetic, making time.Duration) {
	t.Helper()
	real, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	real.NoSync = true
	t.Cleanup(func() {
		if err := real.Close(); err != nil {
			t.Error(err)
		}
	})
	n := *scaleChunks
	a = &arithmetic{chunks: n, indexes: (n + perIndex - 1) / perIndex, real: real, recent: map[int][]byte{}}
	if _, err := writableFormat(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	(&shelf{t: t, store: real}).probed()
	return a, a.make(t)
}

// measure does something among many chunks and tells what it took. It returns the growth of Go's memory in bytes.
func measure(t *testing.T, a *arithmetic, making time.Duration, do func() Requests) (grown int64) {
	t.Helper()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, begun := time.Now(), cpu(t)
	r := do()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	t.Logf("%d chunks, %d indexes, %d references: %v; %v of one core, of which about %v to make them up", a.chunks,
		a.indexes, a.chunks**scaleShare, took.Round(time.Millisecond), (cpu(t) - begun).Round(time.Millisecond),
		making.Round(time.Millisecond))
	t.Logf("memory: %d MB resident at most, %d MB of Go's own before, %d MB after; requests: %+v, $%.4f", peak(t)>>20,
		before.Sys>>20, after.Sys>>20, r, r.cost())
	return int64(after.Sys) - int64(before.Sys)
}

// TestCheckScale checks many chunks, of which one is missing. COLLECT.md has what it says for 10 million.
func TestCheckScale(t *testing.T) {
	a, making := madeUp(t)
	const lost = 12
	a.lost = a.key(lost).Path()
	var r *CheckReport
	files := 0
	grown := measure(t, a, making, func() Requests {
		var err error
		r, err = (&Cache{Store: a}).Check(t.Context(), CheckOptions{}, func(BrokenFile) error { files++; return nil })
		if !errors.Is(err, ErrMissing) {
			t.Error(err)
		}
		return r.Requests
	})
	if r.Chunks != int64(a.chunks-a.chunks/10) || r.Names != a.indexes || len(r.Broken) == 0 || files != len(r.Broken) {
		t.Errorf("%+v, %d files", r, files)
	}
	// As a collection, and the chunk keys a second time, as something is broken.
	pages := int64(a.chunks/page + a.indexes/page + 1)
	if r.Requests.List > pages+256+10 || r.Requests.Get > int64(4*a.indexes+len(r.Broken)+20) {
		t.Errorf("%+v", r.Requests)
	}
	if grown > int64(16*a.chunks)+200<<20 {
		t.Errorf("%d MB of memory", grown>>20)
	}
}

// TestScale collects among many chunks. COLLECT.md has what it says for 1 and 10 million.
func TestScale(t *testing.T) {
	a, making := madeUp(t)
	n := a.chunks
	var r *CollectReport
	grown := measure(t, a, making, func() Requests {
		var err error
		if r, err = (&Cache{Store: a}).Collect(t.Context(), CollectOptions{}); err != nil {
			t.Fatal(err)
		}
		return r.Requests
	})
	dead := int64(n / 10)
	if r.Deleted.Chunks != dead || a.deleted.Load() != dead || r.Kept.Chunks != int64(n)-dead || r.Missing != 0 {
		t.Errorf("%+v", r)
	}
	// A listing for each 1000 chunks and index, and for each of 256 folders; each index in two parts, once; deletes
	// of 1000; a few objects of the collector's own.
	pages := int64(n/page + 2*(a.indexes/page+1))
	if r.Requests.List > pages+256+10 || r.Requests.Get > int64(2*a.indexes)+20+dead/partKeys ||
		r.Requests.Delete > dead/page+10 || r.Requests.Put > 60+dead/partKeys {
		t.Errorf("%+v", r.Requests)
	}
	// 8 bytes for each live chunk, twice while they are gathered; the rest does not grow with the store.
	if grown > int64(16*n)+200<<20 {
		t.Errorf("%d MB of memory", grown>>20)
	}
}
