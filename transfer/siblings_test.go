package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// withSibling returns a world whose tree was saved under a name, in an epoch before the store's.
func withSibling(t *testing.T, name string) (w *world, first *SaveReport) {
	w = newWorld(t, nil)
	w.put(someTree())
	first = w.saved(SaveOptions{Name: name, Tree: build})
	w.collectGarbage()
	return w, first
}

// collectGarbage begins another epoch.
func (w *world) collectGarbage() {
	w.Helper()
	w.set(keyOf("garbage", 1).Path(), []byte("garbage"))
	c := *w.cache
	rep, err := c.Collect(context.Background(), CollectOptions{OnlyCollector: true})
	w.must(err)
	if rep.Deleted.Chunks == 0 {
		w.Fatalf("nothing was collected: %+v", rep)
	}
}

// counting counts the requests of what comes.
func (w *world) counting() *storetest.Faulty {
	f := &storetest.Faulty{Store: w.cache.Store}
	w.cache.Store = f
	return f
}

// The same tree under two names and in two epochs, saved without a restore: nothing is sent but the index.
func TestSaveFindsTheChunksOfOtherNames(t *testing.T) {
	for _, c := range []struct{ saved, name string }{
		{"app/main", "app/pr-1"},
		{"app/main", "app/feature/deep/er"},
		{"app/main@0c3f", "app/main@77aa"},
		{"app/main@0c3f", "app/main"},
		{"app/main", "app/main@77aa"},
		{"app", "app-2"},
		{"one/main", "another/main"},
	} {
		t.Run(strings.ReplaceAll(c.saved+" "+c.name, "/", ":"), func(t *testing.T) {
			w, first := withSibling(t, c.saved)
			o := newWorld(t, w.cache.Store)
			o.put(someTree())
			f := o.counting()
			rep := o.saved(SaveOptions{Name: c.name, Tree: build})
			index := int64(len(o.get("index/" + strings.TrimPrefix(escaped(t, c.name), "index/"))))
			if rep.Sent.Chunks != 0 || rep.Sent.Bytes != index || first.Sent.Chunks < 5 {
				t.Errorf("the first save sent %+v, this one %+v", first.Sent, rep.Sent)
			}
			// Its own index, the format, the state twice; a listing for each prefix, the other index, the manifest.
			if gets, lists := f.Count(storetest.Get), f.Count(storetest.List); gets > 6+1 || lists > 4 {
				t.Errorf("%d GET, %d LIST", gets, lists)
			}
			other := o.again()
			other.hit(RestoreOptions{Name: c.name})
			if d := differ(below(o.snapshot(), "build"), below(other.snapshot(), "build")); d != "" {
				t.Error(d)
			}
		})
	}
}

func escaped(t *testing.T, name string) string {
	key, err := index.Path(name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A save that was killed has left chunks and no index: they are found by a listing.
func TestSaveFindsChunksWithoutAnIndex(t *testing.T) {
	w, _ := withSibling(t, "n")
	w.must(w.cache.Store.Delete(context.Background(), "index/n"))
	w.set(keyOf("of an epoch that begins at this moment", 3).Path(), []byte("it is left alone"))
	o := newWorld(t, w.cache.Store)
	o.put(someTree())
	f := o.counting()
	if rep := o.saved(SaveOptions{Name: "n", Tree: build}); rep.Sent.Chunks != 0 {
		t.Errorf("%+v", rep.Sent)
	}
	if n := f.Count(storetest.List); n > 3 {
		t.Errorf("%d LIST", n)
	}
	o.again().hit(RestoreOptions{})
}

// Who has a base, or an index of the name, asks for nothing more: a save in the same epoch takes three small GETs.
func TestSaveThatHasABaseLooksForNoSiblings(t *testing.T) {
	w, _ := withSibling(t, "n")
	w.saved(SaveOptions{Name: "main", Tree: build})
	o := newWorld(t, w.cache.Store)
	o.put(someTree())
	o.remove("build")
	o.hit(RestoreOptions{Fallbacks: []string{"main"}})
	o.write("build/new.o", noise(9, 5000))
	f := o.counting()
	o.saved(SaveOptions{})
	if gets, lists := f.Count(storetest.Get), f.Count(storetest.List); gets > 4 || lists != 0 {
		t.Errorf("after a restore: %d GET, %d LIST; want the format, the state twice, and a manifest", gets, lists)
	}
	o = newWorld(t, w.cache.Store)
	o.put(someTree())
	f = o.counting()
	if rep := o.saved(SaveOptions{Name: "n", Tree: build}); f.Count(storetest.List) != 0 || rep.Sent.Chunks > 1 {
		t.Errorf("without a restore: %d LIST, %+v sent", f.Count(storetest.List), rep.Sent)
	}
}

// What a collection has condemned is not to be referred to again, whatever index still does.
func TestSaveTrustsNoDeadSibling(t *testing.T) {
	for _, listed := range []bool{false, true} {
		t.Run(fmt.Sprintf("the chunks are listed %v", listed), func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(someTree())
			w.saved(SaveOptions{Name: "zombie", Tree: build})
			chunks := map[string][]byte{}
			for _, k := range w.keys("chunks/") {
				chunks[k] = w.get(k)
			}
			zombie := w.get("index/zombie")
			w.must(w.cache.Store.Delete(context.Background(), "index/zombie"))
			w.collectGarbage()
			// As a saver that was stopped before the collection puts them, and is not acknowledged.
			if listed {
				for k, data := range chunks {
					w.set(k, data)
				}
			} else {
				w.set("index/zombie", zombie)
			}
			o := newWorld(t, w.cache.Store)
			o.put(someTree())
			if rep := o.saved(SaveOptions{Name: "n", Tree: build}); rep.Sent.Chunks == 0 {
				t.Errorf("%+v", rep.Sent)
			}
			for _, c := range o.index("n").Chunks {
				if c.Epoch != 2 {
					t.Errorf("%s is referred to", c.Key)
				}
			}
			o.again().hit(RestoreOptions{})
		})
	}
}

// A sibling of an epoch that is still to come says that the state was lost.
func TestSaveWithASiblingOfALaterEpoch(t *testing.T) {
	w, _ := withSibling(t, "app/main")
	o := newWorld(t, w.cache.Store)
	o.put(someTree())
	o.saved(SaveOptions{Name: "app/main", Tree: build})
	x := o.index("app/main")
	x.Epoch = 7
	data, err := x.Encode()
	w.must(err)
	w.set("index/app~2fmain", data)
	if _, err := newWorldLike(w).save(SaveOptions{Name: "app/pr-1", Tree: build}); !errors.Is(err, ErrStateLost) {
		t.Errorf("%v", err)
	}
}

func newWorldLike(w *world) *world {
	o := newWorld(w.T, w.cache.Store)
	o.put(someTree())
	return o
}

// A restore that met a damaged chunk: the next save sends it again, though another index refers to it as well.
func TestSaveHealsWhatSiblingsReferTo(t *testing.T) {
	w, _ := withSibling(t, "n")
	w.saved(SaveOptions{Name: "main", Tree: build})
	for _, k := range w.keys("chunks/") {
		w.set(k, []byte("damaged"))
	}
	o := newWorldLike(w)
	o.remove("build")
	if _, err := o.restore(RestoreOptions{}); !isCorrupt(err) {
		t.Fatal(err)
	}
	o.put(someTree())
	o.saved(SaveOptions{Fallbacks: []string{"main"}})
	o.again().hit(RestoreOptions{})
}

// Nothing that goes wrong with siblings ends a save, or holds it up.
func TestSaveWhenSiblingsCannotBeRead(t *testing.T) {
	sibling := func(c storetest.Call) bool {
		return c.Op == storetest.List || c.Op == storetest.Get && (c.Key == "index/app~2fmain" || isManifestKey(c.Key))
	}
	for name, fault := range map[string]storetest.Fault{
		"unavailable": {Before: wrap(store.ErrUnavailable)},
		"refused":     {Before: wrap(store.ErrRefused)},
		"damaged":     {Damage: storetest.FlipBit(300)},
		"cut off":     {Damage: storetest.Truncate(40)},
		"hang":        {Hang: true},
		"slow":        {Delay: time.Hour},
	} {
		for _, only := range []string{"", "index/", "chunks/", "index/app~2fmain", "gc/m/"} {
			t.Run(name+" "+strings.ReplaceAll(only, "/", ":"), func(t *testing.T) {
				w, _ := withSibling(t, "app/main")
				o := newWorldLike(w)
				o.cache.Store = &storetest.Faulty{Store: w.cache.Store, Fault: func(c storetest.Call) storetest.Fault {
					if sibling(c) && strings.HasPrefix(c.Key, only) {
						return fault
					}
					return storetest.Fault{}
				}}
				promptly(t, time.Minute, func() {
					leaks(t, "a save", func() { o.saved(SaveOptions{Name: "app/pr-1", Tree: build}) })
				})
				o.cache.Store = w.cache.Store
				o.again().hit(RestoreOptions{Name: "app/pr-1"})
			})
		}
	}
}

func isManifestKey(key string) bool { return strings.HasPrefix(key, manifestPrefix) }

func TestSiblingPrefixes(t *testing.T) {
	for name, want := range map[string][]string{
		"app":          {"index/app@", "index/"},
		"app@k":        {"index/app@", "index/"},
		"app/main":     {"index/app~2fmain@", "index/app~2f", "index/"},
		"app/pr/1@k@l": {"index/app~2fpr~2f1@k@", "index/app~2fpr~2f", "index/app~2f", "index/"},
		"@k":           {"index/@", "index/"},
		"/a":           {"index/~2fa@", "index/~2f", "index/"},
		"App/größe/1":  {"index/~41pp~2fgr~c3~b6~c3~9fe~2f1@", "index/~41pp~2fgr~c3~b6~c3~9fe~2f", "index/~41pp~2f", "index/"},
	} {
		if got := siblingPrefixes(name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Of many names the most similar ones are read, and of those the newest.
func TestSaveReadsTheNearestSiblings(t *testing.T) {
	w, _ := withSibling(t, "far")
	for i := range 12 {
		w.set(fmt.Sprintf("index/app~2f%d", i), w.get("index/far"))
	}
	w.set("index/app~2fmain@old", w.get("index/far"))
	w.set("index/far2", w.get("index/far"))
	s := &saving{Build: &Build{cache: w.cache}, o: SaveOptions{Name: "app/main@new"}}
	var names []string
	for _, c := range s.listSiblings(context.Background()) {
		names = append(names, c.name)
	}
	if want := []string{
		"app/main@old", "app/11", "app/10", "app/9", "app/8", "app/7", "app/6", "app/5",
	}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// To find siblings takes three round trips, and none once they were found.
func TestSaveFindsSiblingsOverASlowNetwork(t *testing.T) {
	const trip = 30 * time.Millisecond
	w, _ := withSibling(t, "app/main")
	w.cache.Store = &storetest.Faulty{Store: w.cache.Store, Fault: func(storetest.Call) storetest.Fault {
		return storetest.Fault{Delay: trip}
	}}
	times := map[string]time.Duration{}
	for _, name := range []string{"app/new", "app/new", "app/main"} {
		o := newWorldLike(w)
		start := time.Now()
		rep := o.saved(SaveOptions{Name: name, Tree: build})
		times[name] = time.Since(start)
		if rep.Sent.Chunks != 0 {
			t.Errorf("%s: %+v", name, rep.Sent)
		}
	}
	took := time.Hour
	for i := range 3 { // a busy machine pauses now and then
		start := time.Now()
		newWorldLike(w).saved(SaveOptions{Name: fmt.Sprint("app/another", i), Tree: build})
		took = min(took, time.Since(start))
	}
	t.Logf("with an index of the name %v, without one %v", times["app/new"], took)
	if took > times["app/new"]+2*time.Second { // on any machine
		t.Errorf("%v", took)
	}
}
