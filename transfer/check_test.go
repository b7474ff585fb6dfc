package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// check returns the report, and the files that were told of, each "name path chunk problem".
func (s *shelf) check(o CheckOptions) (*CheckReport, []string, error) {
	s.t.Helper()
	var files []string
	r, err := s.cache.Check(context.Background(), o, func(f BrokenFile) error {
		files = append(files, strings.Join([]string{f.Name, f.Path, f.Chunk[:4], f.Problem}, " "))
		return nil
	})
	return r, files, err
}

// broke is the line of a file of indexOf.
func broke(name, chunk string, epoch uint64, problem string) string {
	return strings.Join([]string{name, "f", keyOf(chunk, epoch).String()[:4], problem}, " ")
}

// shelfOfThree has three names, two of which share a chunk.
func shelfOfThree(t *testing.T) *shelf {
	s := newShelf(t)
	s.save("a", 1, "one.1", "two.1")
	s.save("b", 1, "two.1", "three.1")
	s.save("c", 1, "four.1")
	return s
}

// all ways to look.
func checks() map[string]CheckOptions {
	return map[string]CheckOptions{
		"listed":          {},
		"read":            {ReadData: true},
		"sampled":         {ReadData: true, Sample: 1e-9},
		"names":           {Names: []string{"**"}},
		"names, read":     {Names: []string{"a", "b", "c"}, ReadData: true},
		"names, sampled":  {Names: []string{"*"}, ReadData: true, Sample: 1e-9},
		"sampled in full": {ReadData: true, Sample: 100},
	}
}

func TestCheckFindsWhatIsMissing(t *testing.T) {
	for way, o := range checks() {
		t.Run(way, func(t *testing.T) {
			s := shelfOfThree(t)
			before := s.objects("")
			r, files, err := s.check(o)
			if err != nil || len(files) > 0 || r.Names != 3 || r.Chunks != 4 || r.Read.Chunks != 0 && r.Read.Chunks != 4 {
				t.Fatalf("whole: %v, %q, %+v", err, files, r)
			}
			if err := s.store.Delete(context.Background(), keyOf("two", 1).Path()); err != nil {
				t.Fatal(err)
			}
			s.put(keyOf("four", 1).Path(), nil) // a full disk can do that
			r, files, err = s.check(o)
			if want := []string{
				broke("a", "two", 1, "missing"), broke("b", "two", 1, "missing"), broke("c", "four", 1, "damaged"),
			}; !errors.Is(err, ErrMissing) || !slices.Equal(files, want) {
				t.Errorf("%v, %q, want %q", err, files, want)
			}
			if r.Missing != 2 || r.Damaged != 1 || len(r.Broken) != 3 || r.Broken[0] != (BrokenName{"a", 1, 0, 1}) {
				t.Errorf("%+v", r)
			}
			delete(before, keyOf("two", 1).Path())
			before[keyOf("four", 1).Path()] = ""
			if !maps.Equal(before, s.objects("")) {
				t.Error("it changed the store")
			}
		})
	}
}

// Wrong bytes are found by reading, of a chunk and in any part of an index; and by nothing else.
func TestCheckReadsData(t *testing.T) {
	s := shelfOfThree(t)
	stored := s.objects("chunks/")
	s.put(keyOf("three", 1).Path(), []byte(stored[keyOf("two", 1).Path()])) // another chunk's
	if _, _, err := s.check(CheckOptions{}); err != nil {
		t.Errorf("%v", err)
	}
	_, files, err := s.check(CheckOptions{ReadData: true})
	if want := broke("b", "three", 1, "damaged"); !isCorrupt(err) || len(files) != 1 || files[0] != want {
		t.Errorf("%v, %q, want %q", err, files, want)
	}
	s = shelfOfThree(t)
	data := []byte(s.objects("index/")["index/a"])
	data[len(data)-1] ^= 1
	s.put("index/a", data)
	if _, _, err := s.check(CheckOptions{}); err != nil {
		t.Errorf("%v", err)
	}
	r, files, err := s.check(CheckOptions{ReadData: true})
	if !errors.Is(err, index.ErrInvalid) || len(files) > 0 || len(r.Unreadable) != 1 || r.Unreadable[0].Name != "a" {
		t.Errorf("%v, %q, %+v", err, files, r)
	}
}

// A sample is roughly as large as it should be, and another one each time.
func TestCheckSample(t *testing.T) {
	s := newShelf(t)
	var chunks []string
	for i := range 400 {
		chunks = append(chunks, fmt.Sprintf("c%d.1", i))
	}
	s.save("a", 1, chunks...)
	var read []int64
	for range 3 {
		r, _, err := s.check(CheckOptions{ReadData: true, Sample: 25})
		if err != nil || r.Read.Chunks < 40 || r.Read.Chunks > 180 {
			t.Errorf("%v, %+v", err, r.Read)
		}
		read = append(read, r.Read.Bytes)
	}
	if read[0] == read[1] && read[1] == read[2] {
		t.Errorf("three times the same sample: %d", read)
	}
}

// copies is a near store of these chunks.
type copies map[chunk.ID][]byte

func (c copies) Copy(id chunk.ID) ([]byte, bool) {
	data, ok := c[id]
	return data, ok
}

func copiesOf(names ...string) copies {
	c := copies{}
	for _, n := range names {
		c[chunk.Sum(plainOf(n))] = chunk.Encode(nil, plainOf(n))
	}
	return c
}

func TestCheckRepairs(t *testing.T) {
	for way, o := range checks() {
		t.Run(way, func(t *testing.T) {
			s := shelfOfThree(t)
			whole := s.objects("")
			if err := s.store.Delete(context.Background(), keyOf("two", 1).Path()); err != nil {
				t.Fatal(err)
			}
			s.put(keyOf("three", 1).Path(), nil)
			s.put(keyOf("four", 1).Path(), nil)
			near := copiesOf("two", "three", "four")
			near[chunk.Sum(plainOf("four"))] = []byte("this copy is damaged")
			o.Repair = near
			r, files, err := s.check(o)
			if want := broke("c", "four", 1, "damaged"); !isCorrupt(err) || len(files) != 1 || files[0] != want {
				t.Errorf("%v, %q, want %q", err, files, want)
			}
			if r.Repaired != 2 || r.Missing != 0 || r.Damaged != 1 {
				t.Errorf("%+v", r)
			}
			o.Repair = copiesOf("four")
			if r, files, err := s.check(o); err != nil || r.Repaired != 1 || len(files) > 0 {
				t.Errorf("%v, %q, %+v", err, files, r)
			}
			if got := s.objects(""); !maps.Equal(got, whole) {
				t.Error("the store is not as before")
			}
		})
	}
}

// An index whose save was fenced off, and whose chunks were collected, is no damage; and its keys are never put again.
func TestCheckOfADeadIndex(t *testing.T) {
	s := newShelf(t)
	s.probed()
	s.chunk("one", 1)
	s.collect(CollectOptions{})
	s.save("kept", 2, "two.2")
	s.put(index.Prefix+"dead", indexOf(t, 1, "one.1")) // by a saver that was stopped before the collection
	for way, o := range checks() {
		if len(o.Names) > 1 {
			continue
		}
		o.Repair = copiesOf("one", "two")
		r, files, err := s.check(o)
		if err != nil || len(files) > 0 || !slices.Equal(r.Dead, []string{"dead"}) || r.Repaired != 0 {
			t.Errorf("%s: %v, %q, %+v", way, err, files, r)
		}
		if _, ok := s.objects("chunks/")[keyOf("one", 1).Path()]; ok {
			t.Errorf("%s: a dead key was put again", way)
		}
	}
}

// A name that is saved anew while it is checked, and its old chunks collected, is whole.
func TestCheckBesideSavesAndCollections(t *testing.T) {
	for way, o := range checks() {
		t.Run(way, func(t *testing.T) {
			for n := 0; ; n++ {
				s := shelfOfThree(t)
				s.probed()
				inner := *s.cache
				f := &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
					if c.N == n {
						s.save("a", 1, "five.1")
						if _, err := inner.Collect(context.Background(), CollectOptions{}); err != nil {
							t.Error(err)
						}
						st, err := readState(context.Background(), s.store)
						if err != nil {
							t.Error(err)
						}
						s.save("b", st.Epoch, fmt.Sprintf("six.%d", st.Epoch))
					}
					return storetest.Fault{}
				}}
				s.cache.Store = f
				if r, files, err := s.check(o); err != nil || len(files) > 0 {
					t.Fatalf("request %d: %v, %q, %+v", n, err, files, r)
				}
				if f.Calls() <= n {
					break
				}
			}
		})
	}
}

// A chunk that was not asked for, because the index did not refer to it at that moment, is not taken for missing.
func TestCheckOfANameThatIsSavedTwice(t *testing.T) {
	s := newShelf(t)
	s.save("a", 1, "one.1", "two.1")
	reads := 0
	s.cache.Store = &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Get && c.Key == "index/a" {
			switch reads++; reads {
			case 2:
				s.save("a", 1, "one.1")
			case 3:
				s.save("a", 1, "one.1", "two.1")
			}
		}
		return storetest.Fault{}
	}}
	if _, files, err := s.check(CheckOptions{ReadData: true}); err != nil || len(files) > 0 || reads < 4 {
		t.Errorf("%v, %q, read %d times", err, files, reads)
	}
}

// Whatever the store does, a check ends, and an outage is never taken for damage.
func TestCheckWhenTheStoreFailsAtEveryRequest(t *testing.T) {
	for way, o := range checks() {
		t.Run(way, func(t *testing.T) {
			for n := 0; ; n++ {
				s := shelfOfThree(t)
				f := &storetest.Faulty{Store: s.store, Fault: storetest.FailAt(n, wrap(store.ErrUnavailable))}
				s.cache.Store = f
				_, files, err := s.check(o)
				if f.Calls() <= n {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				if !errors.Is(err, store.ErrUnavailable) || len(files) > 0 {
					t.Fatalf("request %d: %v, %q", n, err, files)
				}
			}
		})
	}
}

func TestCheckWithoutWhatItNeeds(t *testing.T) {
	s := shelfOfThree(t)
	r, _, err := s.check(CheckOptions{Names: []string{"a", "none"}})
	if !errors.Is(err, store.ErrNotExist) || !slices.Equal(r.Absent, []string{"none"}) || r.Names != 1 {
		t.Errorf("an absent name: %v, %+v", err, r)
	}
	if _, _, err := s.check(CheckOptions{Sample: 101}); !errors.Is(err, ErrUsage) {
		t.Errorf("too large a sample: %v", err)
	}
	stop := errors.New("stop")
	s.put(keyOf("one", 1).Path(), nil)
	if _, err := s.cache.Check(context.Background(), CheckOptions{}, func(BrokenFile) error { return stop }); err != stop {
		t.Errorf("the caller's error: %v", err)
	}
	s.put(index.Prefix+"a", indexOf(t, 5, "one.5"))
	if _, _, err := s.check(CheckOptions{}); !errors.Is(err, ErrStateLost) {
		t.Errorf("an index of a later epoch: %v", err)
	}
	if _, _, err := (&shelf{t: t, cache: &Cache{Store: storetest.Memory()}}).check(CheckOptions{}); err != nil {
		t.Errorf("an empty store: %v", err)
	}
}

// An index that is wrong about the length of a chunk, as nobody writes who means well, breaks no other name.
func TestCheckOfAWrongLength(t *testing.T) {
	for _, name := range []string{"evil", "wrong"} { // before and behind the other one
		s := newShelf(t)
		s.save("name", 1, "one.1")
		x := &index.Index{
			Epoch: 1, Roots: []string{"f"},
			Entries: []index.Entry{{Path: "f", Kind: index.File, Mode: 0o644, Size: 99}},
			Chunks:  []index.Chunk{{Key: keyOf("one", 1), Length: 99}},
		}
		data, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.put(index.Prefix+name, data)
		r, files, err := s.check(CheckOptions{ReadData: true})
		// It is read with the length of either, and may pass for whole.
		if len(r.Broken) == 1 && r.Broken[0].Name == name && isCorrupt(err) {
			continue
		}
		if err != nil || len(r.Broken) > 0 {
			t.Errorf("%s: %v, %q", name, err, files)
		}
	}
}

func TestCheckProbes(t *testing.T) {
	s := shelfOfThree(t)
	r, _, err := s.check(CheckOptions{Probe: true})
	if err != nil || r.Conditions == nil || !r.Conditions.works() {
		t.Errorf("%v, %+v", err, r.Conditions)
	}
	if _, ok := s.objects("gc/")[conditionsPath]; !ok {
		t.Error("it is not noted")
	}
	s.cache.Store = noConditions{s.store}
	r, _, err = s.check(CheckOptions{Probe: true})
	if !errors.Is(err, ErrUnsafe) || r.Names != 3 || r.Conditions == nil || r.Conditions.works() {
		t.Errorf("without conditional writes: %v, %+v", err, r)
	}
}

// noConditions ignores the conditions of puts, as some stores do.
type noConditions struct{ store.Store }

func (n noConditions) Put(ctx context.Context, key string, data []byte, _ store.Condition) (string, error) {
	return n.Store.Put(ctx, key, data, store.Condition{})
}

// The files that are named are those that have a byte in a bad chunk, and their other names.
func TestBrokenFilesOfAnyTree(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		x := &index.Index{}
		var size int64
		for i := range rapid.IntRange(1, 12).Draw(r, "files") {
			e := index.Entry{Path: fmt.Sprintf("%02d", i), Kind: index.File, Size: rapid.Int64Range(0, 9).Draw(r, "size")}
			if i > 0 && x.Entries[i-1].Kind == index.File && rapid.IntRange(0, 4).Draw(r, "link") == 0 {
				e = index.Entry{Path: e.Path, Kind: index.HardLink, Target: x.Entries[i-1].Path}
			}
			size += e.Size
			x.Entries = append(x.Entries, e)
		}
		var lacks []index.Chunk
		wrong := make([]bool, size)
		for at := int64(0); at < size; {
			n := rapid.Int64Range(1, min(size-at, 12)).Draw(r, "length")
			c := index.Chunk{Key: keyOf(fmt.Sprint(at), 1), Length: int(n)}
			if rapid.Bool().Draw(r, "bad") {
				lacks = append(lacks, c)
				for i := at; i < at+n; i++ {
					wrong[i] = true
				}
			}
			x.Chunks = append(x.Chunks, c)
			at += n
		}
		broken := map[string]bool{}
		var want []string
		var at int64
		for _, e := range x.Entries {
			if slices.Contains(wrong[at:at+e.Size], true) || broken[e.Target] {
				broken[e.Path] = true
				want = append(want, e.Path)
			}
			at += e.Size
		}
		var got []string
		err := brokenFiles(x, lacks, func(path string, _ chunk.Key) error {
			got = append(got, path)
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			r.Fatalf("%q, want %q", got, want)
		}
	})
}
