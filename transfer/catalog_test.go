package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// noNames is what List calls first, for tests that lay out no table.
func noNames([]string) error { return nil }

func TestListIsSortedByNameAndReadsLittle(t *testing.T) {
	s := newShelf(t)
	big := &index.Index{Epoch: 1, Roots: []string{"d"}, Entries: []index.Entry{{Path: "d", Kind: index.Dir}}}
	big.Sources = []index.Source{{Path: ".", Kind: index.Dir}}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 30_000 {
		f := index.Source{Path: fmt.Sprintf("f%05d", i), Kind: index.File, MTime: r.Int64()}
		for j := range f.Sum {
			f.Sum[j] = byte(r.Uint32())
		}
		big.Sources = append(big.Sources, f)
	}
	data, err := big.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// Keys sort in another order than names: "~" comes after all letters.
	for _, name := range []string{"zz", "a/b", "a-b", "App", "ab"} {
		key, err := index.Path(name)
		if err != nil {
			t.Fatal(err)
		}
		s.chunk("x", 1)
		s.put(key, indexOf(t, 1, "x.1"))
	}
	s.put(index.Prefix+"large", data)
	counting := &meter{Store: s.store}
	s.cache.Store = counting
	var got []string
	rep, err := s.cache.List(t.Context(), nil, noNames, func(x SavedTree) error {
		got = append(got, x.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"App", "a-b", "a/b", "ab", "large", "zz"}; !slices.Equal(got, want) || rep.Names != len(want) {
		t.Errorf("names %q, %+v", got, rep)
	}
	if most := int64(200 << 10); int64(len(data)) < 2*most || counting.bytes.Load() > most {
		t.Errorf("%d bytes were read, though one index has %d", counting.bytes.Load(), len(data))
	}

	stop := errors.New("enough")
	_, err = s.cache.List(t.Context(), nil, noNames, func(SavedTree) error { return stop })
	if !errors.Is(err, stop) {
		t.Errorf("an error of yield: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.cache.List(ctx, nil, noNames, func(SavedTree) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// meter counts the bytes that are read.
type meter struct {
	store.Store
	bytes atomic.Int64
}

func (m *meter) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	o, err := m.Store.Get(ctx, key, r)
	m.bytes.Add(int64(len(o.Data)))
	return o, err
}

func TestListSaysWhatIsNotThere(t *testing.T) {
	s := newShelf(t)
	s.save("one", 1, "a.1")
	s.save("two", 1, "a.1")
	s.save("gone", 1, "a.1")
	if err := s.cache.DropIndex(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	s.put(index.Prefix+"bad", []byte("x"))
	for _, c := range []struct {
		patterns []string
		names    string
		absent   string
		bad      bool
	}{
		{nil, "one two", "", true},
		{[]string{"t*"}, "two", "", false},
		{[]string{"gone", "one", "none"}, "one", "gone none", false},
		{[]string{"x*"}, "", "", false},
		{[]string{"/abs"}, "", "/abs", false}, // no pattern, and yet a name
	} {
		var names []string
		rep, err := s.cache.List(t.Context(), c.patterns, noNames, func(x SavedTree) error {
			names = append(names, x.Name)
			return nil
		})
		if got := strings.Join(names, " "); got != c.names || strings.Join(rep.Absent, " ") != c.absent {
			t.Errorf("%q: %q, absent %q", c.patterns, got, rep.Absent)
		}
		if errors.Is(err, store.ErrNotExist) != (c.absent != "") || errors.Is(err, index.ErrInvalid) != c.bad ||
			(len(rep.Unreadable) == 1) != c.bad {
			t.Errorf("%q: %v, %+v", c.patterns, err, rep.Unreadable)
		}
	}
	if _, err := s.cache.List(t.Context(), []string{"["}, noNames, nil); !errors.Is(err, ErrUsage) {
		t.Errorf("a malformed pattern: %v", err)
	}
}

func TestDrop(t *testing.T) {
	s := newShelf(t)
	for _, name := range []string{"a", "b", "c1", "c2"} {
		s.save(name, 1, "x.1")
	}
	s.put(index.Prefix+"c3", []byte("not an index"))
	drop := func(o DropOptions) (*DropReport, error) { return s.cache.Drop(context.Background(), o) }

	before := s.objects("")
	rep, err := drop(DropOptions{Names: []string{"c*"}, Glob: true, DryRun: true})
	if err != nil || !slices.Equal(rep.Dropped, []string{"c1", "c2", "c3"}) || !maps.Equal(before, s.objects("")) {
		t.Errorf("dry run: %+v, %v", rep, err)
	}
	rep, err = drop(DropOptions{Names: []string{"a", "a", "none"}})
	if !errors.Is(err, store.ErrNotExist) || !slices.Equal(rep.Dropped, []string{"a"}) ||
		!slices.Equal(rep.Absent, []string{"none"}) {
		t.Errorf("%+v, %v", rep, err)
	}
	rep, err = drop(DropOptions{Names: []string{"a"}, Force: true})
	if err != nil || len(rep.Dropped) > 0 || !slices.Equal(rep.Absent, []string{"a"}) {
		t.Errorf("dropped already: %+v, %v", rep, err)
	}
	rep, err = drop(DropOptions{Names: []string{"c*", "a", "d*"}, Glob: true})
	if !errors.Is(err, store.ErrNotExist) || !slices.Equal(rep.Dropped, []string{"c1", "c2", "c3"}) ||
		!slices.Equal(rep.Absent, []string{"a", "d*"}) {
		t.Errorf("patterns: %+v, %v", rep, err)
	}
	for _, o := range []DropOptions{{}, {Names: []string{""}}, {Names: []string{"["}, Glob: true}} {
		if _, err := drop(o); !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for name, want := range map[string]bool{"a": true, "b": false, "c1": true, "c3": true} {
		o, err := s.store.Get(context.Background(), index.Prefix+name, store.Read{})
		if err != nil {
			t.Fatal(err)
		}
		if x, err := index.Decode(o.Data); err != nil || isTombstone(x) != want {
			t.Errorf("%s: tombstone %v, %v", name, !want, err)
		}
	}

	// Where conditional writes do not work, nothing is dropped.
	before = s.objects("index/")
	bad := goodConditions()
	bad.Drop = Answer{Found: "not atomic"}
	s.note(bad)
	if rep, err := drop(DropOptions{Names: []string{"b"}}); !errors.Is(err, ErrUnsafe) || len(rep.Dropped) > 0 {
		t.Errorf("unsafe: %+v, %v", rep, err)
	}
	if !maps.Equal(before, s.objects("index/")) {
		t.Error("something was dropped")
	}
}

// TestDropLeavesALaterSave: a save between the reading and the writing stays, and is told.
func TestDropLeavesALaterSave(t *testing.T) {
	s := newShelf(t)
	s.save("a", 1, "x.1")
	s.probed()
	later := indexOf(t, 1, "x.1", "y.1")
	s.cache.Store = hook{s.store, func(key string) {
		if key == index.Prefix+"a" {
			s.chunk("y", 1)
			s.put(key, later)
		}
	}}
	rep, err := s.cache.Drop(context.Background(), DropOptions{Names: []string{"a"}})
	if !errors.Is(err, store.ErrConflict) || len(rep.Failed) != 1 || len(rep.Dropped) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if got := s.objects("index/")[index.Prefix+"a"]; got != string(later) {
		t.Error("the later save is lost")
	}
}

// hook calls before ahead of every conditional Put.
type hook struct {
	store.Store
	before func(key string)
}

func (h hook) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	if c.IfVersion != "" {
		h.before(key)
	}
	return h.Store.Put(ctx, key, data, c)
}

// differences are those that Diff finds, by path.
func differences(t *testing.T, c *Cache, o DiffOptions) (map[string]string, *DiffReport, error) {
	t.Helper()
	got := map[string]string{}
	last := ""
	rep, err := c.Diff(t.Context(), o, func(ch Change) error {
		if key := fmt.Sprint(ch.Source, ch.Path); key <= last {
			t.Errorf("%s comes after %s", key, last)
		} else {
			last = key
		}
		text := string(ch.What)
		for _, a := range ch.Aspects {
			text += " " + string(a)
		}
		got[ch.Path] = text
		return nil
	})
	return got, rep, err
}

func TestDiff(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.saved(SaveOptions{Name: "one", Tree: Tree{Dirs: []string{"build"}}})
	w.saved(SaveOptions{Name: "same", Tree: Tree{Dirs: []string{"build"}}})
	w.tick()
	w.write("build/a.o", "object A")
	w.write("build/b.o", "longer than before")
	w.write("build/new.o", "new")
	w.write("build/sub/07.o", noise(7, 20<<10))
	w.write("a.c", "SOURCE a")
	w.write("d.c", "new")
	w.remove("build/empty")
	w.remove("b.c")
	w.remove("build/to")
	w.put(map[string]string{"build/to": "-> b.o"})
	w.remove("build/none")
	w.write("build/none", "a file now")
	w.saved(SaveOptions{Name: "two", Tree: Tree{Dirs: []string{"build"}}})

	got, rep, err := differences(t, w.cache, DiffOptions{From: "one", To: "same"})
	if err != nil || len(got) > 0 || !rep.Same || rep.Fetched.Chunks > 0 {
		t.Errorf("the same tree: %v, %+v, %v", got, rep, err)
	}
	want := map[string]string{
		"build/a.o": "changed content", "build/b.o": "changed content", "build/new.o": "added",
		"build/sub/07.o": "changed content", "build/empty": "deleted", "build/to": "changed target",
		"build/none": "changed kind", "a.c": "changed content", "d.c": "added", "b.c": "deleted",
	}
	got, rep, err = differences(t, w.cache, DiffOptions{From: "one", To: "two"})
	if err != nil || !maps.Equal(got, want) || rep.Same || rep.Artifacts.Changed != 5 || rep.Sources.Added != 1 {
		t.Errorf("%v, %+v, %v", got, rep, err)
	}
	if rep.Fetched.Chunks == 0 || rep.Fetched.Chunks >= rep.FromChunks {
		t.Errorf("fetched %d of %d chunks", rep.Fetched.Chunks, rep.FromChunks)
	}

	// Without a look at the bytes nothing that is different passes for the same.
	got, rep, err = differences(t, w.cache, DiffOptions{From: "one", To: "two", NoFetch: true})
	if err != nil || rep.Fetched.Chunks > 0 || rep.Artifacts.MayDiffer == 0 {
		t.Errorf("no fetch: %+v, %v", rep, err)
	}
	for p, what := range want {
		if got[p] != what && got[p] != string(MayDiffer) {
			t.Errorf("no fetch: %s is %q, not %q", p, got[p], what)
		}
	}

	// A chunk that is missing: what it belongs to may differ, and everything else is told.
	two := w.index("two")
	for i := range two.Chunks {
		if _, ok := find(w.index("one").Chunks, two.Chunks[i].ID); !ok {
			w.must(w.cache.Store.Delete(context.Background(), two.Chunks[i].Path()))
		}
	}
	got, rep, err = differences(t, w.cache, DiffOptions{From: "one", To: "two"})
	if !errors.Is(err, ErrMissing) || rep.Artifacts.MayDiffer == 0 || got["build/new.o"] != "added" || got["a.c"] == "" {
		t.Errorf("a chunk is missing: %v, %+v, %v", got, rep, err)
	}
	if _, _, err := differences(t, w.cache, DiffOptions{From: "one", To: "none"}); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("no such name: %v", err)
	}
}

func find(chunks []index.Chunk, id chunk.ID) (int, bool) {
	i := slices.IndexFunc(chunks, func(c index.Chunk) bool { return c.ID == id })
	return i, i >= 0
}

// TestDiffTellsWhatTheBytesTell compares random trees, cut into chunks at random, in both ways.
func TestDiffTellsWhatTheBytesTell(t *testing.T) {
	decided := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 9))
		s := newShelf(t)
		s.cache.Store = storetest.Memory()
		s.store = s.cache.Store
		if _, err := writableFormat(t.Context(), s.store); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		for i := range 1 + rng.IntN(12) {
			content := make([]byte, rng.IntN(30))
			for j := range content {
				content[j] = "ab"[rng.IntN(2)]
			}
			files[fmt.Sprintf("f%02d", i)] = string(content)
		}
		cuts := rng.Uint64()
		put := func(name string, files map[string]string, cuts uint64) {
			x := &index.Index{Epoch: 1}
			rng := rand.New(rand.NewPCG(cuts, 3))
			var all string
			for _, p := range slices.Sorted(maps.Keys(files)) {
				x.Roots = append(x.Roots, p)
				x.Entries = append(x.Entries, index.Entry{Path: p, Kind: index.File, Size: int64(len(files[p]))})
				all += files[p]
			}
			for len(all) > 0 {
				n := 1 + rng.IntN(min(len(all), 4+rng.IntN(16)))
				k := chunk.Key{ID: chunk.Sum([]byte(all[:n])), Epoch: 1}
				s.put(k.Path(), chunk.Encode(nil, []byte(all[:n])))
				x.Chunks = append(x.Chunks, index.Chunk{Key: k, Length: n})
				all = all[n:]
			}
			data, err := x.Encode()
			if err != nil {
				t.Fatal(err)
			}
			s.put(index.Prefix+name, data)
		}
		put("one", files, cuts)
		other := maps.Clone(files)
		for p := range other {
			switch rng.IntN(6) {
			case 0:
				if b := []byte(other[p]); len(b) > 0 {
					b[rng.IntN(len(b))] = 'x'
					other[p] = string(b)
				}
			case 1:
				if p != "f00" { // an index of nothing is none
					delete(other, p)
				}
			}
		}
		put("two", other, cuts+rng.Uint64N(2))
		want := map[string]string{}
		for p, content := range files {
			if now, ok := other[p]; !ok {
				want[p] = "deleted"
			} else if now != content {
				want[p] = "changed content"
			}
		}
		got, rep, err := differences(t, s.cache, DiffOptions{From: "one", To: "two"})
		if err != nil || !maps.Equal(got, want) || rep.Same != (len(want) == 0) {
			t.Fatalf("seed %d: %v, want %v, %v", seed, got, want, err)
		}
		got, _, err = differences(t, s.cache, DiffOptions{From: "one", To: "two", NoFetch: true})
		if err != nil {
			t.Fatal(err)
		}
		for p := range files {
			switch {
			case got[p] == want[p]:
				decided++
			case got[p] != string(MayDiffer):
				t.Fatalf("seed %d: without fetching, %s is %q, not %q", seed, p, got[p], want[p])
			}
		}
	}
	if decided < 500 {
		t.Errorf("only %d files were decided by their chunks", decided)
	}
}

// TestDiffOfOneChunkAtAnotherPlace: the same chunk holds other bytes of the file.
func TestDiffOfOneChunkAtAnotherPlace(t *testing.T) {
	s := newShelf(t)
	k := chunk.Key{ID: chunk.Sum([]byte("xyz")), Epoch: 1}
	s.put(k.Path(), chunk.Encode(nil, []byte("xyz")))
	for name, sizes := range map[string][]int64{"one": {1, 2, 0}, "two": {0, 2, 1}} {
		x := &index.Index{Epoch: 1, Chunks: []index.Chunk{{Key: k, Length: 3}}}
		for i, size := range sizes {
			p := fmt.Sprint("f", i)
			x.Roots = append(x.Roots, p)
			x.Entries = append(x.Entries, index.Entry{Path: p, Kind: index.File, Size: size})
		}
		data, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.put(index.Prefix+name, data)
	}
	got, _, err := differences(t, s.cache, DiffOptions{From: "one", To: "two"})
	if err != nil || len(got) != 3 || got["f1"] != "changed content" {
		t.Errorf("%v, %v", got, err)
	}
}
