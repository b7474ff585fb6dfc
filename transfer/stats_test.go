package transfer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/dir"
	"nbc/transfer/store/storetest"
)

// TestStatsCount compares what Stats says of random stores with a plain count.
func TestStatsCount(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 5))
		s := newShelf(t)
		stored := map[string]int64{}
		for i := range 40 {
			name, g := fmt.Sprint("c", i%30), uint64(1+i/30) // some contents in two epochs
			s.chunk(name, g)
			stored[fmt.Sprintf("%s.%d", name, g)] = int64(len(chunk.Encode(nil, plainOf(name))))
		}
		users := map[string][]string{}
		var original int64
		names := 1 + rng.IntN(9)
		for i := range names {
			var refs []string
			for range 1 + rng.IntN(20) {
				j := rng.IntN(40)
				refs = append(refs, fmt.Sprintf("c%d.%d", j%30, 1+j/30))
			}
			name := fmt.Sprint("n", i)
			s.put(index.Prefix+name, indexOf(t, 2, refs...))
			for _, c := range refs {
				if !slices.Contains(users[c], name) {
					users[c] = append(users[c], name)
				}
				original += int64(len(plainOf(cut(c))))
			}
		}
		r, err := s.cache.Stats(t.Context(), StatsOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var total StatsTotals
		var unreferenced Amount
		rows := map[string]*NameStats{}
		for i := range names {
			rows[fmt.Sprint("n", i)] = &NameStats{}
		}
		sharing := map[int]int64{}
		for c, size := range stored {
			if len(users[c]) == 0 {
				unreferenced.add(size)
				continue
			}
			total.Chunks++
			total.Stored += size
			total.Deduplicated += int64(len(plainOf(cut(c))))
			for _, n := range users[c] {
				rows[n].Stored.add(size)
				if len(users[c]) == 1 {
					rows[n].Unique.add(size)
				}
			}
			sharing[len(users[c])]++
		}
		if r.Totals.Original != original || r.Totals.Chunks != total.Chunks || r.Totals.Stored != total.Stored ||
			r.Totals.Deduplicated != total.Deduplicated || r.Unreferenced != unreferenced || r.Missing != 0 {
			t.Errorf("seed %d: %+v, unreferenced %+v; want %+v, %+v, original %d", seed, r.Totals, r.Unreferenced, total,
				unreferenced, original)
		}
		if r.Count != names || len(r.Names) != names {
			t.Errorf("seed %d: %d names, %d rows, want %d", seed, r.Count, len(r.Names), names)
		}
		for _, n := range r.Names {
			if want := rows[n.Name]; n.Stored != want.Stored || n.Unique != want.Unique {
				t.Errorf("seed %d: %s: %+v, %+v; want %+v", seed, n.Name, n.Stored, n.Unique, want)
			}
			if sh := n.Shared(); sh.Bytes != n.Stored.Bytes-n.Unique.Bytes {
				t.Errorf("shared %+v", sh)
			}
		}
		for _, c := range r.Sharing {
			var want int64
			for n := c.From; n <= c.To; n++ {
				want += sharing[n]
			}
			if c.Chunks != want {
				t.Errorf("seed %d: %d chunks of %d to %d names, want %d", seed, c.Chunks, c.From, c.To, want)
			}
		}
		var sized, grown int64
		for _, c := range r.Sizes {
			sized += c.Bytes
		}
		for _, d := range r.Growth {
			grown += d.Chunks
		}
		if sized != total.Deduplicated || grown != int64(len(stored)) {
			t.Errorf("seed %d: sizes of %d bytes, growth of %d chunks", seed, sized, grown)
		}

		// One name alone is counted against all others.
		one, err := s.cache.Stats(t.Context(), StatsOptions{Patterns: []string{"n0"}})
		if err != nil || len(one.Names) != 1 || one.Totals != r.Totals || one.Names[0].Unique != rows["n0"].Unique {
			t.Errorf("seed %d: n0 alone: %+v, %v", seed, one, err)
		}
	}
}

// cut returns the content of a chunk that is called "content.epoch".
func cut(c string) string { return c[:len(c)-2] }

func TestStatsTellsWhatIsWrong(t *testing.T) {
	s := newShelf(t)
	if r, err := (&Cache{Store: storetest.Memory()}).Stats(t.Context(), StatsOptions{}); err != nil || r.Reason == "" {
		t.Errorf("a new store: %+v, %v", r, err)
	}
	s.save("good", 1, "a.1", "b.1")
	s.save("gone", 1, "c.1")
	if err := s.cache.DropIndex(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	s.save("lacks", 1, "a.1", "d.1")
	if err := s.store.Delete(t.Context(), keyOf("d", 1).Path()); err != nil {
		t.Fatal(err)
	}
	s.put(index.Prefix+"bad", []byte("x"))
	s.put("chunks/README", []byte("not a chunk"))
	s.later = time.Hour
	r, err := s.cache.Stats(t.Context(), StatsOptions{Patterns: []string{"good", "lacks", "gone"}, Grace: 2 * time.Hour})
	if !errors.Is(err, index.ErrInvalid) || !errors.Is(err, store.ErrNotExist) {
		t.Error(err)
	}
	if len(r.Unreadable) != 1 || r.Unreadable[0].Name != "bad" || r.Tombstones != 1 || r.Count != 2 || r.Missing != 1 ||
		!slices.Equal(r.Absent, []string{"gone"}) || len(r.Names) != 2 || r.Names[1].Missing != 1 {
		t.Errorf("%+v", r)
	}
	if r.Unreferenced.Chunks != 1 || r.TooRecent != r.Unreferenced {
		t.Errorf("unreferenced %+v, too recent %+v", r.Unreferenced, r.TooRecent)
	}
	if r, _ := s.cache.Stats(t.Context(), StatsOptions{Grace: time.Minute}); r.TooRecent.Chunks != 0 {
		t.Errorf("too recent %+v", r.TooRecent)
	}
}

// TestStatsBesideASave: what was put after the listing is not missing.
func TestStatsBesideASave(t *testing.T) {
	s := newShelf(t)
	s.save("a", 1, "x.1")
	s.cache.Store = afterList{s.store, chunk.Prefix, func() { s.save("a", 1, "x.1", "y.1") }}
	r, err := s.cache.Stats(t.Context(), StatsOptions{})
	if err != nil || r.Missing != 0 || r.Names[0].Chunks != 2 || r.Names[0].Stored.Chunks != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// afterList calls then after a listing.
type afterList struct {
	store.Store
	prefix string
	then   func()
}

func (a afterList) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	err := a.Store.List(ctx, prefix, yield)
	if prefix == a.prefix {
		a.then()
	}
	return err
}

// TestStatsScale counts a store that is made up; COLLECT.md has what it says for 1 and 10 million chunks.
func TestStatsScale(t *testing.T) {
	real, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	real.NoSync = true
	defer func() {
		if err := real.Close(); err != nil {
			t.Error(err)
		}
	}()
	n := *scaleChunks
	a := &arithmetic{chunks: n, indexes: (n + perIndex - 1) / perIndex, real: real, recent: map[int][]byte{}}
	if _, err := writableFormat(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	making := a.make(t)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, begun := time.Now(), cpu(t)
	r, err := (&Cache{Store: a}).Stats(t.Context(), StatsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	t.Logf("%d chunks, %d indexes, %d references: %v; %v of one core, of which about %v to make them up", n, a.indexes,
		n**scaleShare, took.Round(time.Millisecond), (cpu(t) - begun).Round(time.Millisecond), making.Round(time.Millisecond))
	t.Logf("memory: %d MB resident at most, %d MB of Go's own before, %d MB after; requests: %+v, $%.4f", peak(t)>>20,
		before.Sys>>20, after.Sys>>20, r.Requests, r.Cost)

	dead := int64(n / 10)
	live := int64(n) - dead
	if r.Unreferenced.Chunks != dead || r.Totals.Chunks != live || r.Missing != 0 || r.Count != a.indexes ||
		r.Totals.Deduplicated != live*100_000 || r.Totals.Stored != live*45_000 {
		t.Errorf("%+v", r)
	}
	var shared, unique int64
	for _, c := range r.Sharing {
		shared += c.Chunks
	}
	for _, x := range r.Names {
		unique += x.Unique.Chunks
	}
	if shared != live || unique != r.Sharing[0].Chunks {
		t.Errorf("%d chunks by sharing, %d unique: %+v", shared, unique, r.Sharing)
	}
	if pages := int64(n/page + a.indexes/page + 1); r.Requests.List > pages+256+10 ||
		r.Requests.Get > int64(3*a.indexes)+10 || r.Requests.Put+r.Requests.Delete > 0 {
		t.Errorf("%+v", r.Requests)
	}
	// 16 bytes for each chunk, half as much again while they grow; the rest does not grow with the store, but for a
	// kilobyte for each name.
	if grown := int64(after.Sys) - int64(before.Sys); grown > int64(28*n+1000*a.indexes)+200<<20 {
		t.Errorf("%d MB of memory", grown>>20)
	}
}
