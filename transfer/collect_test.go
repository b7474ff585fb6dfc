package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// shelf is a store with chunks and indexes that tests put there without a tree.
type shelf struct {
	t     testing.TB
	store store.Store
	cache *Cache
	// later is added to the clock.
	later time.Duration
}

func newShelf(t testing.TB) *shelf {
	s := &shelf{t: t, store: storetest.Memory()}
	s.cache = &Cache{Store: s.store, Clock: func() time.Time { return time.Now().Add(s.later) }}
	if _, err := writableFormat(context.Background(), s.store); err != nil {
		t.Fatal(err)
	}
	return s
}

// probed notes that the store's conditions work, so that no collection has to try them out.
func (s *shelf) probed() {
	s.t.Helper()
	s.note(goodConditions())
}

// note notes what the store's conditions do.
func (s *shelf) note(c Conditions) {
	s.t.Helper()
	data, err := json.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.put(conditionsPath, data)
}

func goodConditions() Conditions {
	yes := Answer{Works: true}
	return Conditions{Version: conditionsVersion, Time: time.Now(), Create: yes, Swap: yes, Drop: yes, Delete: yes}
}

// plainOf returns the plain bytes of the chunk that a test calls by this name.
func plainOf(name string) []byte { return []byte("the chunk " + name) }

func keyOf(name string, epoch uint64) chunk.Key {
	return chunk.Key{ID: chunk.Sum(plainOf(name)), Epoch: epoch}
}

func (s *shelf) put(key string, data []byte) {
	s.t.Helper()
	if _, err := s.store.Put(context.Background(), key, data, store.Condition{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shelf) chunk(name string, epoch uint64) {
	s.t.Helper()
	s.put(keyOf(name, epoch).Path(), chunk.Encode(nil, plainOf(name)))
}

// indexOf makes an index of one file that is made of these chunks, each "name.epoch".
func indexOf(t testing.TB, epoch uint64, chunks ...string) []byte {
	t.Helper()
	f := index.Entry{Path: "f", Kind: index.File, Mode: 0o644}
	x := &index.Index{Epoch: epoch, Roots: []string{"f"}, Entries: []index.Entry{f}}
	for _, c := range chunks {
		name, g, _ := strings.Cut(c, ".")
		var n uint64
		if _, err := fmt.Sscan(g, &n); err != nil {
			t.Fatal(err)
		}
		x.Chunks = append(x.Chunks, index.Chunk{Key: keyOf(name, n), Length: len(plainOf(name))})
		x.Entries[0].Size += int64(len(plainOf(name)))
	}
	data, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// save puts the chunks and an index of them, as a saver of that epoch would.
func (s *shelf) save(name string, epoch uint64, chunks ...string) {
	s.t.Helper()
	for _, c := range chunks {
		n, g, _ := strings.Cut(c, ".")
		if g == fmt.Sprint(epoch) {
			s.chunk(n, epoch)
		}
	}
	s.put(index.Prefix+name, indexOf(s.t, epoch, chunks...))
}

func (s *shelf) collect(o CollectOptions) *CollectReport {
	s.t.Helper()
	r, err := s.cache.Collect(context.Background(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *shelf) state() State {
	s.t.Helper()
	st, err := readState(context.Background(), s.store)
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// objects returns all objects below prefix.
func (s *shelf) objects(prefix string) map[string]string {
	s.t.Helper()
	all := map[string]string{}
	err := s.store.List(context.Background(), prefix, func(i store.Info) error {
		o, err := s.store.Get(context.Background(), i.Key, store.Read{})
		all[i.Key] = string(o.Data)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// wantChunks checks that these are the chunks in the store.
func (s *shelf) wantChunks(chunks ...string) {
	s.t.Helper()
	var want []string
	for _, c := range chunks {
		name, g, _ := strings.Cut(c, ".")
		want = append(want, chunk.Prefix+keyOf(name, 0).Path()[len(chunk.Prefix):len(chunk.Prefix)+3]+
			chunk.Sum(plainOf(name)).String()+"."+g)
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(s.objects(chunk.Prefix))); !slices.Equal(got, want) {
		s.t.Errorf("chunks are\n%s\nwant %v:\n%s", strings.Join(got, "\n"), chunks, strings.Join(want, "\n"))
	}
}

func TestCollectDeletesWhatNothingRefersTo(t *testing.T) {
	s := newShelf(t)
	s.save("one", 1, "a.1", "b.1")
	s.save("two", 1, "b.1", "c.1", "b.1")
	s.save("one", 1, "b.1", "d.1") // a is left over
	s.chunk("e", 1)                // of a save that was killed
	s.put("chunks/README", []byte("not ours"))
	r := s.collect(CollectOptions{})
	s.put("chunks/README", nil)
	if err := s.store.Delete(context.Background(), "chunks/README"); err != nil {
		t.Fatal(err)
	}
	s.wantChunks("b.1", "c.1", "d.1")
	if r.Kept.Chunks != 3 || r.Condemned.Chunks != 2 || r.Deleted != r.Condemned || r.Deleted.Bytes == 0 ||
		r.Indexes.Kept != 2 || r.Epoch != 2 || r.Reason != "" || r.Missing != 0 || len(r.Warnings) > 0 {
		t.Errorf("report %+v", r)
	}
	st := s.state()
	if st.Epoch != 2 || st.Fence != 1 || st.Phase != idle || len(st.Dead) != 1 || st.Condemned != nil ||
		st.Earlier != nil {
		t.Errorf("state %+v", st)
	}
	if left := len(s.objects("gc/")); left != 3 { // state, probe, one manifest for savers
		t.Errorf("%d objects are left in gc/: %v", left, slices.Sorted(maps.Keys(s.objects("gc/"))))
	}

	before := s.objects("")
	r = s.collect(CollectOptions{})
	if !maps.Equal(before, s.objects("")) || r.Epoch != 2 || r.Condemned.Chunks != 0 {
		t.Errorf("a second collection has changed something: %+v", r)
	}
}

func TestCollectDryRunChangesNothing(t *testing.T) {
	s := newShelf(t)
	s.save("old", 1, "a.1")
	s.save("new", 1, "b.1")
	s.chunk("c", 1)
	s.later = 48 * time.Hour
	before := s.objects("")
	r := s.collect(CollectOptions{DryRun: true, KeepWithin: 24 * time.Hour, Keep: []string{"n*"}})
	if !maps.Equal(before, s.objects("")) {
		t.Error("something has changed")
	}
	if r.Condemned.Chunks != 2 || r.Deleted.Chunks != 0 || !slices.Equal(r.Indexes.Dropped, []string{"old"}) ||
		r.Requests.Put+r.Requests.Delete > 0 {
		t.Errorf("report %+v", r)
	}
	r = s.collect(CollectOptions{KeepWithin: 24 * time.Hour, Keep: []string{"n*"}})
	if r.Deleted.Chunks != 2 || !slices.Equal(r.Indexes.Dropped, []string{"old"}) || r.Indexes.Kept != 1 {
		t.Errorf("report %+v", r)
	}
	s.wantChunks("b.1")
}

func TestCollectGrace(t *testing.T) {
	s := newShelf(t)
	s.save("x", 1, "a.1")
	s.chunk("b", 1)
	r := s.collect(CollectOptions{Grace: time.Hour})
	if r.TooRecent.Chunks != 1 || r.Condemned.Chunks != 0 || r.Epoch != 1 {
		t.Errorf("report %+v", r)
	}
	s.wantChunks("a.1", "b.1")
	s.later = 2 * time.Hour
	if r := s.collect(CollectOptions{Grace: time.Hour}); r.Deleted.Chunks != 1 {
		t.Errorf("report %+v", r)
	}
	s.wantChunks("a.1")
}

// Killed at any request, whether that is lost or its answer, the next collector goes on from there.
func TestCollectIsResumedFromEveryPoint(t *testing.T) {
	down := fmt.Errorf("%w: killed", store.ErrUnavailable)
	for i, fault := range []func(int, error) func(storetest.Call) storetest.Fault{storetest.FailFrom, storetest.LoseAt} {
		resumed := 0
		for n := 0; ; n++ {
			s := newShelf(t)
			s.probed()
			s.save("one", 1, "a.1", "b.1")
			s.save("two", 1, "c.1")
			s.save("two", 1, "d.1")
			s.chunk("e", 1)
			f := &storetest.Faulty{Store: s.store, Fault: fault(n, down)}
			killed := *s.cache
			killed.Store = f
			_, err := killed.Collect(context.Background(), CollectOptions{})
			if f.Calls() > n && err == nil && i == 0 { // that the answer "there is none" was lost is not felt
				t.Fatalf("request %d failed, and there was no error", n)
			}
			// Meanwhile a saver refers to what may be condemned, under the rule; that is allowed to it only if it is not.
			if st := s.state(); st.Epoch == 1 {
				s.save("three", 1, "c.1")
			}
			r := s.collect(CollectOptions{})
			if r.Resumed {
				resumed++
			}
			want := []string{"a.1", "b.1", "d.1"}
			if _, ok := s.objects(index.Prefix)["index/three"]; ok {
				want = append(want, "c.1")
			}
			s.wantChunks(want...)
			if st := s.state(); st.Phase != idle || st.Epoch != 2 {
				t.Errorf("killed at request %d: state %+v", n, st)
			}
			for key := range s.objects(manifestPrefix) {
				if _, kind, _ := parseManifestKey(key); kind != kindDead {
					t.Errorf("killed at request %d: %s is left", n, key)
				}
			}
			if f.Calls() <= n {
				break
			}
			if n > 200 {
				t.Fatal("no end")
			}
		}
		if resumed < 4 {
			t.Errorf("only %d collections were resumed", resumed)
		}
	}
}

// What was saved between the mark and the fence is spared, also if the mark was another collector's.
func TestCollectSparesWhatWasSavedMeanwhile(t *testing.T) {
	for _, other := range []bool{false, true} {
		s := newShelf(t)
		s.probed()
		s.save("one", 1, "a.1")
		s.chunk("b", 1)
		s.chunk("c", 1)
		var once sync.Once
		f := &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
			if c.Op == storetest.Put && c.Key == StatePath {
				// A saver of epoch 1 that has not been told of the fence: its index comes first.
				once.Do(func() { s.save("two", 1, "a.1", "b.1") })
				if other {
					return storetest.Fault{After: store.ErrUnavailable}
				}
			}
			return storetest.Fault{}
		}}
		first := *s.cache
		first.Store = f
		r, err := first.Collect(context.Background(), CollectOptions{})
		if other {
			r, err = s.cache.Collect(context.Background(), CollectOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		s.wantChunks("a.1", "b.1")
		if r.Spared.Chunks != 1 || r.Deleted.Chunks != 1 || r.Resumed != other {
			t.Errorf("report %+v", r)
		}
		// Savers are told of what is dead, and not of what was spared.
		var d dead
		if ok, err := d.learn(context.Background(), s.store, s.state(), 1); err != nil || !ok {
			t.Fatal(ok, err)
		}
		dead := d.among([]index.Chunk{{Key: keyOf("a", 1)}, {Key: keyOf("b", 1)}, {Key: keyOf("c", 1)}})
		if len(dead) != 1 || !dead[keyOf("c", 1)] {
			t.Errorf("dead are %v", dead)
		}
	}
}

func TestCollectStopsAtWhatItCannotRead(t *testing.T) {
	s := newShelf(t)
	s.save("good", 1, "a.1")
	s.chunk("b", 1)
	bad := indexOf(t, 1, "a.1")
	bad[60] ^= 1
	s.put("index/bad", bad)
	s.put("index/.bad.tmp", []byte("no name")) // and no index
	r, err := s.cache.Collect(context.Background(), CollectOptions{})
	if !errors.Is(err, index.ErrInvalid) || len(r.Unreadable) != 1 || r.Unreadable[0].Name != "bad" {
		t.Errorf("%v, %+v", err, r.Unreadable)
	}
	s.wantChunks("a.1", "b.1")
	if err := s.cache.DropIndex(context.Background(), "bad"); err != nil {
		t.Fatal(err)
	}
	if r := s.collect(CollectOptions{}); r.Deleted.Chunks != 1 || r.Indexes.Tombstones != 1 || r.Indexes.Kept != 1 {
		t.Errorf("%+v", r)
	}
	s.wantChunks("a.1")

	// It stops as well, and can be gone on with, after the fence.
	s.chunk("c", 2)
	f := &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Put && c.Key == StatePath {
			s.put("index/bad", bad)
		}
		return storetest.Fault{}
	}}
	c := *s.cache
	c.Store = f
	r, err = c.Collect(context.Background(), CollectOptions{})
	if !errors.Is(err, index.ErrInvalid) || len(r.Unreadable) != 1 {
		t.Errorf("%v, %+v", err, r)
	}
	if st := s.state(); st.Phase != fenced {
		t.Errorf("state %+v", st)
	}
	s.wantChunks("a.1", "c.2")
	if err := s.cache.DropIndex(context.Background(), "bad"); err != nil {
		t.Fatal(err)
	}
	if r := s.collect(CollectOptions{}); !r.Resumed || r.Deleted.Chunks != 1 {
		t.Errorf("%+v", r)
	}
	s.wantChunks("a.1")
}

func TestCollectFindsThatTheStateWasLost(t *testing.T) {
	lose := map[string]func(s *shelf){
		"by an index":    func(s *shelf) { s.save("x", 2, "a.2") },
		"by a chunk":     func(s *shelf) { s.chunk("b", 2) },
		"by manifests":   func(s *shelf) { s.put("gc/m/3.dead.x", nil) },
		"by its version": func(s *shelf) { s.put(StatePath, []byte("{")) },
	}
	for name, f := range lose {
		s := newShelf(t)
		s.save("y", 1, "c.1")
		s.chunk("d", 1)
		f(s)
		before := s.objects(chunk.Prefix)
		_, err := s.cache.Collect(context.Background(), CollectOptions{})
		if !errors.Is(err, ErrStateLost) {
			t.Errorf("%s: %v", name, err)
		}
		if !maps.Equal(before, s.objects(chunk.Prefix)) {
			t.Errorf("%s: chunks have changed", name)
		}
	}
}

// That the epoch goes on while a collector reads is not taken for a state that was lost.
func TestCollectStopsWhenAnotherIsFaster(t *testing.T) {
	for n := 0; ; n++ {
		s := newShelf(t)
		s.probed()
		s.save("x", 1, "a.1")
		s.chunk("b", 1)
		s.collect(CollectOptions{DryRun: true})
		f := &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
			if c.N == n {
				s.collect(CollectOptions{})
				s.save("y", 2, "c.2")
				s.chunk("d", 2)
				s.put("index/late", indexOf(t, 1, "a.1", "b.1")) // of a save that was fenced off
			}
			return storetest.Fault{}
		}}
		c := *s.cache
		c.Store = f
		r, err := c.Collect(context.Background(), CollectOptions{})
		if err != nil {
			t.Fatalf("another collection at request %d: %v", n, err)
		}
		if len(r.Warnings) > 0 {
			t.Errorf("another collection at request %d: %q", n, r.Warnings)
		}
		if f.Calls() <= n {
			if n < 8 {
				t.Errorf("a collection takes only %d requests", n)
			}
			return
		}
		s.collect(CollectOptions{})
		s.wantChunks("a.1", "c.2")
	}
}

// That the manifests of the state that was read are gone, because two collections came between, is not told as a loss; nor
// is what these have deleted.
func TestCollectStopsWhenOthersAreMuchFaster(t *testing.T) {
	for n := 0; ; n++ {
		s := newShelf(t)
		s.probed()
		s.save("x", 1, "a.1")
		s.chunk("b", 1)
		s.collect(CollectOptions{})
		s.chunk("c", 2)
		f := &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
			if c.N == n {
				for range 3 {
					s.chunk("d", s.state().Epoch)
					s.collect(CollectOptions{})
				}
				s.put("index/late", indexOf(t, 2, "a.1", "c.2")) // of a save that was fenced off
			}
			return storetest.Fault{}
		}}
		c := *s.cache
		c.Store = f
		r, err := c.Collect(context.Background(), CollectOptions{})
		if err != nil || len(r.Warnings) > 0 {
			t.Errorf("other collections at request %d: %v, %q", n, err, r.Warnings)
		}
		if f.Calls() <= n {
			return
		}
		s.collect(CollectOptions{})
		s.wantChunks("a.1")
	}
}

func TestCollectManyAtOnce(t *testing.T) {
	for range 8 {
		s := newShelf(t)
		s.probed()
		var want []string
		for i := range 40 {
			s.save(fmt.Sprint("n", i), 1, fmt.Sprintf("k%d.1", i))
			want = append(want, fmt.Sprintf("k%d.1", i))
			s.chunk(fmt.Sprint("g", i), 1)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := s.cache.Collect(context.Background(), CollectOptions{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s.wantChunks(want...)
		if st := s.state(); st.Epoch != 2 || st.Phase != idle {
			t.Errorf("%+v", st)
		}
	}
}

func TestDropIndex(t *testing.T) {
	ctx := context.Background()
	s := newShelf(t)
	s.save("x", 1, "a.1")
	if err := s.cache.DropIndex(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	o, err := s.store.Get(ctx, "index/x", store.Read{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Decode(o.Data)
	if err != nil || !isTombstone(x) || x.Epoch != 1 {
		t.Errorf("%v, %+v", err, x)
	}
	for _, name := range []string{"x", "never"} {
		if err := s.cache.DropIndex(ctx, name); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A save between the read and the drop wins.
	s.save("x", 1, "a.1")
	c := *s.cache
	c.Store = &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Put {
			s.save("x", 1, "b.1")
		}
		return storetest.Fault{}
	}}
	if err := c.DropIndex(ctx, "x"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("%v", err)
	}
	s.collect(CollectOptions{})
	s.wantChunks("b.1")
}

// A save that comes after an index that cannot be read was read, and before it is dropped, stays: whatever request it
// comes ahead of.
func TestDropIndexThatCannotBeRead(t *testing.T) {
	ctx := context.Background()
	for n := 1; ; n++ {
		s := newShelf(t)
		bad := indexOf(t, 1, "a.1")
		bad[60] ^= 1
		s.put("index/x", bad)
		c := *s.cache
		f := &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
			if c.N == n {
				s.save("x", 1, "b.1")
			}
			return storetest.Fault{}
		}}
		c.Store = f
		err := c.DropIndex(ctx, "x")
		if f.Calls() <= n {
			if err != nil || n < 2 {
				t.Errorf("without a save: %v after %d requests", err, n)
			}
			return
		}
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("a save ahead of request %d: %v", n, err)
		}
		s.collect(CollectOptions{})
		s.wantChunks("b.1")
	}
}

// An index that makes up its epoch looks like a lost state to everybody; when it is dropped, that is over.
func TestDropIndexOfAnEpochThatIsMadeUp(t *testing.T) {
	s := newShelf(t)
	s.probed()
	s.save("x", 1, "a.1")
	s.chunk("b", 1)
	s.put("index/evil", indexOf(t, 1<<60, "a.1"))
	_, err := s.cache.Collect(context.Background(), CollectOptions{})
	if !errors.Is(err, ErrStateLost) || !strings.Contains(err.Error(), "the index of evil") {
		t.Errorf("%v", err)
	}
	if err := s.cache.DropIndex(context.Background(), "evil"); err != nil {
		t.Fatal(err)
	}
	if r := s.collect(CollectOptions{}); r.Deleted.Chunks != 1 || r.Indexes.Tombstones != 1 {
		t.Errorf("%+v", r)
	}
	if r, _, err := s.check(CheckOptions{}); err != nil || r.Names != 1 {
		t.Errorf("%v, %+v", err, r)
	}
	s.wantChunks("a.1")
}

// conditional is a store that can delete on a condition.
type conditional struct {
	store.Store
	mu *sync.Mutex
}

func newConditional(s store.Store) conditional { return conditional{s, new(sync.Mutex)} }

func (c conditional) Put(ctx context.Context, key string, data []byte, cond store.Condition) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Store.Put(ctx, key, data, cond)
}

func (c conditional) DeleteIf(ctx context.Context, key, version string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.Get(ctx, key, store.Read{})
	if errors.Is(err, store.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.Version != version {
		return store.ErrConflict
	}
	return c.Delete(ctx, key)
}

func TestCollectDropsOldNames(t *testing.T) {
	s := newShelf(t)
	s.cache.Store = newConditional(s.store)
	for _, name := range []string{"main", "feature+a", "feature+b", "user-x+y"} {
		s.save(name, 1, name+".1")
	}
	s.later = 40 * 24 * time.Hour
	// feature+b is saved once more after it was listed, and user-x+y while it is dropped.
	f := &storetest.Faulty{Store: s.cache.Store, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Get && c.Key == "index/feature+b" {
			s.save("feature+b", 1, "new.1")
		}
		if c.Op == storetest.Put && c.Key == "index/user-x+y" {
			s.save("user-x+y", 1, "newer.1")
		}
		return storetest.Fault{}
	}}
	c := *s.cache
	c.Store = f
	o := CollectOptions{KeepWithin: 30 * 24 * time.Hour, Keep: []string{"main", "nothing"}}
	r, err := c.Collect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Indexes.Dropped, []string{"feature+a"}) || r.Indexes.Kept != 3 || r.Indexes.Tombstones != 1 {
		t.Errorf("%+v", r.Indexes)
	}
	s.wantChunks("main.1", "new.1", "newer.1")
	// The tombstone goes when it is old.
	if r := s.collect(CollectOptions{Grace: 50 * 24 * time.Hour}); r.Indexes.Removed != 0 || r.Indexes.Tombstones != 1 {
		t.Errorf("%+v", r.Indexes)
	}
	r = s.collect(CollectOptions{Grace: time.Hour})
	if r.Indexes.Removed != 1 || r.Indexes.Tombstones != 0 || r.Indexes.Kept != 3 || r.Requests.Delete < 1 {
		t.Errorf("%+v, %+v", r.Indexes, r.Requests)
	}
	if _, ok := s.objects(index.Prefix)["index/feature+a"]; ok {
		t.Error("the tombstone is still there")
	}
}

// TestCollectStopsAtMoreThanAllSectionsMayHave: an index that rule H14 refuses is not an absent one, whose chunks go.
func TestCollectStopsAtMoreThanAllSectionsMayHave(t *testing.T) {
	s := newShelf(t)
	s.save("good", 1, "a.1")
	s.chunk("b", 1)
	heavy := indexOf(t, 1, "b.1")
	const start, row = 20, 52 // bytes before the rows, and of one
	for i, plain := range []uint64{index.MaxSection, index.MaxSection, 1} {
		r := heavy[start+i*row:]
		r[3] = 1 // a frame, of as many bytes as are needed for this many
		binary.LittleEndian.PutUint64(r[4:], plain/index.MaxRatio)
		binary.LittleEndian.PutUint64(r[12:], plain)
	}
	sum := chunk.Sum(heavy[:start+4*row])
	copy(heavy[start+4*row:], sum[:])
	s.put("index/heavy", heavy)
	for range 2 { // and once more, when the collection has begun
		r, err := s.cache.Collect(context.Background(), CollectOptions{})
		if !errors.Is(err, index.ErrInvalid) || !strings.Contains(err.Error(), "plain bytes, 536870912 are allowed") {
			t.Error(err)
		}
		if len(r.Unreadable) != 1 || r.Unreadable[0].Name != "heavy" || len(r.Indexes.Dead) > 0 {
			t.Errorf("%+v", r)
		}
		s.wantChunks("a.1", "b.1")
	}
}

func TestCollectTellsDeadIndexesFromDamagedOnes(t *testing.T) {
	s := newShelf(t)
	s.save("live", 1, "a.1")
	s.chunk("b", 1)
	s.chunk("c", 1)
	s.collect(CollectOptions{})
	// A saver of epoch 1, fenced off, whose last put came late; and a chunk of a live index that somebody has deleted.
	s.put("index/late", indexOf(t, 1, "a.1", "b.1"))
	s.save("hurt", 2, "d.2", "e.2")
	if err := s.store.Delete(context.Background(), keyOf("e", 2).Path()); err != nil {
		t.Fatal(err)
	}
	r := s.collect(CollectOptions{DryRun: true})
	if r.Missing != 2 || !slices.Equal(r.Indexes.Dead, []string{"late"}) || r.Indexes.Kept != 2 || len(r.Warnings) != 1 {
		t.Errorf("%+v", r)
	}
	r = s.collect(CollectOptions{})
	if r.Missing != 2 || !slices.Equal(r.Indexes.Dead, []string{"late"}) || r.Indexes.Kept != 2 ||
		len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "hurt lacks 1") {
		t.Errorf("%+v", r)
	}
	x, err := index.Decode([]byte(s.objects("index/late")["index/late"]))
	if err != nil || !isTombstone(x) {
		t.Errorf("%v, %+v", err, x)
	}
	s.wantChunks("a.1", "d.2")
}

// forgetful is a store whose listings leave out what was put once more meanwhile, as that of a directory may.
type forgetful struct {
	store.Store
	left map[string]bool
}

func (f forgetful) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	return f.Store.List(ctx, prefix, func(i store.Info) error {
		if f.left[i.Key] {
			return nil
		}
		return yield(i)
	})
}

// What a listing leaves out is not taken for missing: no name is said to lack it, or dropped because of it.
func TestWhatAListingLeavesOutIsNotMissing(t *testing.T) {
	s := newShelf(t)
	s.probed()
	s.save("x", 1, "a.1", "b.1", "c.1")
	s.save("y", 1, "a.1", "d.1")
	s.cache.Store = forgetful{s.store, map[string]bool{keyOf("a", 1).Path(): true, keyOf("c", 1).Path(): true}}
	if r := s.collect(CollectOptions{}); r.Missing != 0 || len(r.Warnings) > 0 || r.Indexes.Kept != 2 {
		t.Errorf("collected: %+v", r)
	}
	if r, files, err := s.check(CheckOptions{}); err != nil || len(files) > 0 || r.Missing > 0 {
		t.Errorf("checked: %v, %q, %+v", err, files, r)
	}
	// Where something is missing, what is left out beside it does not hide it.
	if err := s.store.Delete(context.Background(), keyOf("b", 1).Path()); err != nil {
		t.Fatal(err)
	}
	r := s.collect(CollectOptions{})
	if r.Missing != 2 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "x lacks 2") || r.Indexes.Kept != 2 {
		t.Errorf("collected: %+v", r) // c, which is behind b, was not asked for any more
	}
	if r, files, err := s.check(CheckOptions{}); !errors.Is(err, ErrMissing) || len(files) != 1 || r.Missing != 1 {
		t.Errorf("checked: %v, %q, %+v", err, files, r)
	}
}

// A name is dropped as dead only if all that it lacks was collected, and nothing of it is put again under a dead key.
func TestADeadIndexLacksNothingElse(t *testing.T) {
	s := newShelf(t)
	s.probed()
	s.save("live", 1, "a.1")
	s.chunk("b", 1)
	s.collect(CollectOptions{})
	s.put("index/late", indexOf(t, 1, "b.1", "c.1")) // c is in no manifest
	r := s.collect(CollectOptions{})
	if r.Missing != 2 || len(r.Indexes.Dead) > 0 || len(r.Warnings) != 1 || r.Indexes.Kept != 2 {
		t.Errorf("collected: %+v", r)
	}
	k, files, err := s.check(CheckOptions{Repair: copiesOf("b", "c")})
	if !errors.Is(err, ErrMissing) || len(files) != 1 || len(k.Dead) > 0 || k.Repaired > 0 {
		t.Errorf("checked: %v, %q, %+v", err, files, k)
	}
	s.wantChunks("a.1")
}

// Of a store that does not tell how old its objects are, no name is taken for old.
func TestNamesOfUnknownAgeAreKept(t *testing.T) {
	s := newShelf(t)
	s.probed()
	s.save("x", 1, "a.1")
	s.cache.Store = ageless{s.store}
	r := s.collect(CollectOptions{KeepWithin: time.Hour})
	if len(r.Indexes.Dropped) > 0 || r.Indexes.Kept != 1 {
		t.Errorf("%+v", r)
	}
}

// ageless is a store without times.
type ageless struct{ store.Store }

func (a ageless) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	return a.Store.List(ctx, prefix, func(i store.Info) error {
		i.Modified = time.Time{}
		return yield(i)
	})
}

// A manifest that somebody has deleted keeps garbage, and loses nothing.
func TestCollectWithoutItsManifests(t *testing.T) {
	ctx := context.Background()
	for _, kind := range []string{kindCondemned, kindSpared, kindDead} {
		for puts := 1; puts <= 2; puts++ { // of gc/state: fenced, sweeping
			s := newShelf(t)
			s.probed()
			s.save("one", 1, "a.1")
			s.chunk("b", 1)
			s.chunk("c", 1)
			n := 0
			c := *s.cache
			c.Store = &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
				if c.Op == storetest.Put && c.Key == StatePath {
					if n++; n == 1 {
						s.save("two", 1, "b.1")
					}
					if n == puts {
						return storetest.Fault{After: store.ErrUnavailable}
					}
				}
				return storetest.Fault{}
			}}
			if _, err := c.Collect(ctx, CollectOptions{}); err == nil {
				t.Fatal("it was not killed")
			}
			for key := range s.objects(manifestPrefix) {
				if _, k, _ := parseManifestKey(key); k == kind {
					if err := s.store.Delete(ctx, key); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.collect(CollectOptions{})
			if st := s.state(); st.Phase != idle {
				t.Errorf("%s: %+v", kind, st)
			}
			s.save("three", s.state().Epoch, "d."+fmt.Sprint(s.state().Epoch))
			s.collect(CollectOptions{})
			s.wantChunks("a.1", "b.1", "d."+fmt.Sprint(s.state().Epoch))
		}
	}
}

// Whatever was collected, one manifest tells all that died since any base that can be trusted.
func TestManifestsForSavers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		var list []Manifest
		epochs := rapid.Uint64Range(2, 1500).Draw(t, "epochs")
		step := time.Duration(rapid.Int64Range(1, int64(3*24*time.Hour)).Draw(t, "step"))
		for e := uint64(2); e <= epochs; e++ {
			now = now.Add(step)
			next := spans(list, e, now)
			for i := range next {
				next[i].To = e
			}
			list = append(next, Manifest{From: e, To: e, Since: now.Unix()})
		}
		if len(list) > 7 {
			t.Fatalf("%d manifests after %d epochs: %v", len(list), epochs, list)
		}
		for base := epochs - 1; base > 0; base-- {
			best := uint64(0)
			for _, m := range list {
				if m.From <= base+1 && m.From > best {
					best = m.From
				}
			}
			young := epochs-base < keepEpochs || time.Duration(epochs-base)*step < keepTime-step
			if best == 0 && young {
				t.Fatalf("after %d epochs of %v nothing reaches back to %d: %v", epochs, step, base, list)
			}
			if best != 0 && epochs-best+1 > 16*(epochs-base) {
				t.Fatalf("for %d epochs, %d are read: %v", epochs-base, epochs-best+1, list)
			}
		}
	})
}

// A save pays three small Gets, whatever was collected since its base, and however often.
func TestSavePaysThreeSmallGets(t *testing.T) {
	s := newShelf(t)
	s.probed()
	for i := range 30 {
		s.chunk(fmt.Sprint("g", i), uint64(i+1))
		s.collect(CollectOptions{})
	}
	for base := uint64(1); base <= 31; base++ {
		f := &storetest.Faulty{Store: s.store}
		st, err := readState(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		var d dead
		ok, err := d.learn(context.Background(), f, st, base)
		if err != nil || !ok {
			t.Fatalf("base of epoch %d: %v, %v", base, ok, err)
		}
		for _, older := range []uint64{base, base + 1, st.Epoch} {
			if ok, err := d.learn(context.Background(), f, st, older); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		if f.Calls() > 2 { // the third is the state after the index
			t.Errorf("base of epoch %d: %d Gets before the index", base, f.Calls())
		}
		for i := range 30 {
			k := keyOf(fmt.Sprint("g", i), uint64(i+1))
			if dead := d.among([]index.Chunk{{Key: k}}); uint64(i+2) > base && !dead[k] {
				t.Errorf("base of epoch %d: chunk %d is not known to be dead", base, i)
			}
		}
	}
	if n := len(s.objects(manifestPrefix)); n > 14 {
		t.Errorf("%d manifests are left", n)
	}
}

func TestPartsAreWhatWasPut(t *testing.T) {
	s := newShelf(t)
	var want []condemnedKey
	w := &partWriter{cache: s.cache, most: 1000, list: Condemned{Key: manifestKey(2, kindCondemned)}}
	for i := range 1007 {
		k := condemnedKey{keyOf(fmt.Sprint(i), uint64(i)), int64(i) * int64(i)}
		want = append(want, k)
		if err := w.add(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	c, err := w.done(t.Context())
	if err != nil || c.Parts != 2 || c.Count != int64(len(want)) {
		t.Fatalf("%v, %+v", err, c)
	}
	g := &collection{cache: s.cache}
	var got []condemnedKey
	err = g.eachCondemned(t.Context(), c, func(k condemnedKey) error {
		got = append(got, k)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Error("other keys than were put")
	}
	last := []byte(s.objects(c.part(1))[c.part(1)])
	for i := range last {
		bad := bytes.Clone(last)
		bad[i] ^= 1
		if _, err := decodePart(bad); !errors.Is(err, errManifest) {
			t.Fatalf("a change of byte %d is not noticed", i)
		}
		if _, err := decodePart(last[:i]); !errors.Is(err, errManifest) {
			t.Fatalf("%d bytes of %d are accepted", i, len(last))
		}
	}
}

// Of an index only the chunk keys are read, and only once if it has not changed; chunks take a listing for each 1000.
func TestCollectRequests(t *testing.T) {
	s := newShelf(t)
	s.probed()
	for i := range 50 {
		s.save(fmt.Sprint("n", i), 1, fmt.Sprintf("k%d.1", i))
	}
	for i := range 2500 {
		s.chunk(fmt.Sprint("g", i), 1)
	}
	gets := map[string]int{}
	var mu sync.Mutex
	c := *s.cache
	c.Store = &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if c.Op == storetest.Get && strings.HasPrefix(c.Key, index.Prefix) {
			gets[c.Key]++
		}
		return storetest.Fault{}
	}}
	r, err := c.Collect(context.Background(), CollectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(gets) != 50 || slices.Max(slices.Collect(maps.Values(gets))) != 1 {
		t.Errorf("indexes were read: %v", gets)
	}
	// Lists: manifests, indexes twice, 3 of chunks, gc/ at the end; deletes: 3 of chunks, 1 of manifests.
	if r.Requests.List != 7 || r.Requests.Delete != 4 || r.Deleted.Chunks != 2500 || r.Cost <= 0 {
		t.Errorf("%+v", r)
	}
}

// Long listings are cut into parallel ones, and nothing is lost or seen twice.
func TestCollectListsInParallel(t *testing.T) {
	s := newShelf(t)
	s.probed()
	const n = listAlone + 1000
	for i := range n {
		s.put(keyOf(fmt.Sprint(i), 1).Path(), nil)
	}
	r := s.collect(CollectOptions{})
	if r.Deleted.Chunks != n {
		t.Errorf("%d chunks of %d were deleted", r.Deleted.Chunks, n)
	}
	s.wantChunks()
}

func TestStateOfANewStore(t *testing.T) {
	c := &Cache{Store: storetest.Memory()}
	r, err := c.Collect(context.Background(), CollectOptions{})
	if err != nil || r.Reason == "" || r.Epoch != 0 {
		t.Errorf("%v, %+v", err, r)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}
