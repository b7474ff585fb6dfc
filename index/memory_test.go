//go:build !race

// What is measured here is memory, which is another one under the race detector, and much of it.

package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// peak returns by how many bytes what is in use of the heap grows while f runs, as far as samples tell. What f drops
// while a collection is under way counts as in use, which is much on a busy machine: the least of some tries is told.
func peak(f func()) int64 {
	inUse := func() int64 {
		runtime.GC()
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	least := int64(math.MaxInt64)
	for range 5 {
		before := inUse()
		most := before
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
					most = max(most, inUse())
				}
			}
		}()
		f()
		close(stop)
		<-stopped
		most = max(most, inUse()) // of what f has left, if there was no time to look while it ran
		least = min(least, most-before)
	}
	return least
}

// TestVerifyMemory: an index whose paths share nearly all they have takes as much memory as the limits allow where it is
// decoded, and hardly any where it is only looked at.
func TestVerifyMemory(t *testing.T) {
	const files = 1 << 17
	x := &Index{Roots: []string{"d"}, Entries: []Entry{{Path: "d", Kind: Dir}}}
	dir := "d"
	for range 3 {
		dir += "/" + strings.Repeat("x", MaxComponent)
		x.Entries = append(x.Entries, Entry{Path: dir, Kind: Dir})
	}
	c := craft(x)
	for i := range files - len(x.Entries) {
		name := fmt.Sprintf("%s/%s%06d", dir, strings.Repeat("y", 200), i)
		prev := x.Entries[len(x.Entries)-1].Path
		x.Entries = append(x.Entries[:1], Entry{Path: name, Kind: File}) // only the last one is of use
		c.entries.Text, c.entries.Shared = appendPath(c.entries.Text, c.entries.Shared, prev, name)
		c.entries.Kinds, c.entries.Sizes = append(c.entries.Kinds, 0), append(c.entries.Sizes, 0)
	}
	c.entries.Times = make([]byte, 8*files)
	data := c.data()

	weight, err := VerifyMemory(data)
	if err != nil {
		t.Fatal(err)
	}
	verified := peak(func() { _, err = Verify(data) })
	if err != nil {
		t.Fatal(err)
	}
	var decoded *Index
	full := peak(func() { decoded, err = Decode(data) })
	if err != nil || len(decoded.Entries) != files {
		t.Fatal(err)
	}
	t.Logf("%d bytes; to decode them took %d MB, to look at them %d MB, of %d", len(data), full>>20, verified>>20, weight>>20)
	if full < 100<<20 {
		t.Errorf("it is not large: %d bytes", full)
	}
	if verified > weight+8<<20 {
		t.Errorf("looking at it took %d bytes, and was to take %d", verified, weight)
	}
}

// TestVerifyMemoryOfLists: what is empty costs a byte of a section and much more memory. However many of it a hostile
// index has, it takes no more than VerifyMemory says, allocated at one time or another.
func TestVerifyMemoryOfLists(t *testing.T) {
	noise := make([]byte, 1<<16) // so that a frame may have so many plain bytes
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	empties := func(n int) [][]byte { return make([][]byte, n) }
	frame := func(plain []byte) []byte { return encoder().EncodeAll(plain, nil) }
	cases := map[string]func(c *crafted){
		"outputs, framed": func(c *crafted) {
			many := empties(MaxRoots)
			c.outputs, c.frame[kindOutputs-1] = &outputSection{Names: many, Paths: many, NoRewrite: many, Uses: noise}, frame
		},
		"outputs": func(c *crafted) {
			c.outputs = &outputSection{Names: empties(MaxOutputs), Paths: empties(MaxOutputs), NoRewrite: empties(MaxPatterns)}
		},
		"patterns that nothing is searched of": func(c *crafted) { c.outputs.NoRewrite = empties(MaxPatterns) },
		"a long pattern":                       func(c *crafted) { c.outputs.NoRewrite = [][]byte{make([]byte, 1<<24)} },
		"places": func(c *crafted) {
			c.outputs.Uses, c.outputs.Gaps = make([]byte, MaxOccurrences), make([]byte, MaxOccurrences)
		},
		"patterns and roots, framed": func(c *crafted) {
			many := empties(MaxRoots)
			c.build, c.frame[kindBuild-1] = buildSection{Root: noise, Patterns: many, Roots: many}, frame
		},
		"roots, framed": func(c *crafted) {
			c.build = buildSection{Root: noise, Patterns: empties(MaxPatterns), Roots: empties(MaxRoots)}
			c.frame[kindBuild-1] = frame
		},
		"roots": func(c *crafted) { c.build.Roots = empties(MaxRoots) },
		"short roots": func(c *crafted) {
			c.build.Roots = empties(MaxRoots)
			for i := range c.build.Roots {
				c.build.Roots[i] = noise[:9]
			}
		},
		// Each has a NUL, what it shares, and its kind; room is made for the sizes of all when the first one is good.
		"entries": func(c *crafted) {
			const n = MaxEntries
			c.build.Roots = [][]byte{[]byte(sample().Entries[0].Path)}
			c.entries.Text = append([]byte(sample().Entries[0].Path), make([]byte, n)...)
			c.entries.Shared, c.entries.Kinds = make([]byte, n), bytes.Repeat([]byte{byte(HardLink - 1)}, n)
			c.entries.Kinds[0] = byte(Dir - 1)
		},
	}
	const slack = 1 << 18 // of the decoder, and of what no list has
	for name, edit := range cases {
		c := craft(withOutputs())
		edit(c)
		data := c.data()
		weight, err := VerifyMemory(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, err = Verify(data)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		took := int64(after.TotalAlloc - before.TotalAlloc)
		t.Logf("%s: %d bytes; to look at them took %d kB, of %d: %v", name, len(data), took>>10, weight>>10, err)
		if took > weight+slack {
			t.Errorf("%s: looking at it took %d bytes, and was to take %d", name, took, weight)
		}
	}
}

// TestMemory feeds small objects that ask for much, and looks at what is allocated.
func TestMemory(t *testing.T) {
	zeros := sync.OnceValue(func() []byte {
		e, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(make([]byte, 200<<20), nil)
	})
	bomb := func([]byte) []byte { return zeros() }
	cases := map[string]func(c *crafted){
		"a frame of 200 MB, as the row says": func(c *crafted) {
			c.frame[1] = bomb
			c.edit = func(h *header) { h.rows[1].plain = 200 << 20 }
		},
		"a frame of 200 MB, a row of 1 MB": func(c *crafted) {
			c.frame[1] = bomb
			c.edit = func(h *header) { h.rows[1].plain = 1 << 20 }
		},
		"a row of 2^63": func(c *crafted) { c.edit = func(h *header) { h.rows[1].plain = 1 << 63 } },
		"an array of 2^32": func(c *crafted) {
			c.plain[3] = []byte{0x87, 0x40, 0x40, 0, 0x9b, 0, 0, 0, 1, 0, 0, 0, 0}
		},
		"a string of 2^32": func(c *crafted) { c.plain[0] = []byte{0x83, 0x5b, 0, 0, 0, 1, 0, 0, 0, 0} },
		"deep arrays":      func(c *crafted) { c.plain[0] = bytes.Repeat([]byte{0x81}, 1<<20) },
		"paths of 64 KiB": func(c *crafted) {
			// 10,000 paths of 64 KiB in 40 KB: 640 MB.
			c.entries = entrySection{}
			prev := ""
			for i := range 10_000 {
				path := strings.Repeat("a/", 32_000) + fmt.Sprintf("%05d", i)
				c.entries.Text, c.entries.Shared = appendPath(c.entries.Text, c.entries.Shared, prev, path)
				c.entries.Kinds = binary.AppendUvarint(c.entries.Kinds, 1)
				prev = path
			}
			c.entries.Times = appendTimes(nil, make([]int64, 10_000))
		},
	}
	if _, err := Decode(mustEncode(t, sample())); err != nil { // what is made once is made now
		t.Fatal(err)
	}
	for name, edit := range cases {
		c := craft(sample())
		edit(c)
		data := c.data()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(data)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
			t.Errorf("%s: %d bytes refused after allocating %d: %v", name, len(data), n, err)
		}
	}
}

// TestLargest: a tree of as many artifacts as are allowed is within the limits that are about bytes.
func TestLargest(t *testing.T) {
	x := &Index{Roots: []string{"d"}, Entries: []Entry{{Path: "d", Kind: Dir}}}
	for i := range MaxEntries - 1 {
		x.Entries = append(x.Entries, Entry{Path: fmt.Sprintf("d/node_modules.%07d.js", i), Kind: File, MTime: int64(i) * 977})
	}
	data := craft(x).data()
	if _, err := Verify(data); err != nil {
		t.Error(err)
	}
	got, err := Decode(data)
	if err != nil || len(got.Entries) != MaxEntries {
		t.Errorf("%d entries, %v", len(got.Entries), err)
	}
	weight, err := VerifyMemory(data)
	if err != nil || weight > 1<<26 {
		t.Errorf("to look at it is to take %d bytes, %v", weight, err)
	}
}
