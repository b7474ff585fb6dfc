package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"nbc/chunk"

	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// copyStore returns a store with the same objects.
func copyStore(t testing.TB, from store.Store) store.Store {
	t.Helper()
	to := storetest.Memory()
	err := from.List(context.Background(), "", func(i store.Info) error {
		o, err := from.Get(context.Background(), i.Key, store.Read{})
		if err == nil {
			_, err = to.Put(context.Background(), i.Key, o.Data, store.Condition{})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// smallTree is quick to save and to restore, and has several chunks.
func smallTree() map[string]string {
	return map[string]string{
		"a.c": "source a", "b.c": "source b", "build/a.o": "object a", "build/b.o": noise(1, 150<<10),
		"build/sub/c.o": noise(2, 250<<10), "build/to": "-> a.o", "build/dir/": "",
	}
}

// bench is a store with what two builds have saved under the names "n" and "main", and what it was.
type bench struct {
	store   store.Store
	n, main map[string]string // snapshots of the saved trees
	sources map[string]string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	w := newWorld(t, nil)
	w.put(smallTree())
	b := &bench{store: w.cache.Store, sources: map[string]string{"a.c": "edited", "b.c": "source b"}}
	w.saved(SaveOptions{Name: "main", Tree: build})
	b.main = below(w.snapshot(), "build")
	w.write("build/b.o", noise(3, 150<<10))
	w.write("build/new.o", "new")
	w.first()
	b.n = below(w.snapshot(), "build")
	return b
}

// leaks runs do, and fails if it leaves goroutines or open files behind.
func leaks(t testing.TB, when string, do func()) {
	t.Helper()
	files, routines := descriptors(t), runtime.NumGoroutine()
	do()
	var f, r int
	for range 4000 { // what has ended may take a moment to be gone, and on a busy machine longer
		if f, r = descriptors(t), runtime.NumGoroutine(); f <= files && r <= routines {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("%s: %d files were open, now %d; %d goroutines, now %d\n%s", when, files, f, routines, r,
		buf[:runtime.Stack(buf, true)])
}

// Each request fails once, or is the last one that works, or happens though its reply is lost: in a restore.
func TestRestoreWhenTheStoreFailsAtEveryRequest(t *testing.T) {
	b := newBench(t)
	plain := errors.New("an error of its own kind")
	for name, test := range map[string]struct {
		fault func(n int) func(storetest.Call) storetest.Fault
		err   error
	}{
		"unavailable": {func(n int) func(storetest.Call) storetest.Fault {
			return storetest.FailAt(n, wrap(store.ErrUnavailable))
		}, store.ErrUnavailable},
		"refused":       {func(n int) func(storetest.Call) storetest.Fault { return storetest.FailAt(n, wrap(store.ErrRefused)) }, store.ErrRefused},
		"another error": {func(n int) func(storetest.Call) storetest.Fault { return storetest.FailAt(n, plain) }, plain},
		"an outage": {func(n int) func(storetest.Call) storetest.Fault {
			return storetest.FailFrom(n, wrap(store.ErrUnavailable))
		}, store.ErrUnavailable},
		"lost replies": {func(n int) func(storetest.Call) storetest.Fault {
			return storetest.LoseAt(n, wrap(store.ErrUnavailable))
		}, store.ErrUnavailable},
	} {
		for _, fallbacks := range [][]string{nil, {"main"}} {
			t.Run(fmt.Sprint(name, fallbacks), func(t *testing.T) {
				for n := 0; ; n++ {
					f := &storetest.Faulty{Store: b.store, Fault: test.fault(n)}
					w := newWorld(t, f)
					w.put(b.sources)
					was := w.snapshot()
					leaks(t, fmt.Sprintf("request %d", n), func() {
						rep, err := w.restore(RestoreOptions{Fallbacks: fallbacks})
						switch {
						case err != nil:
							if !errors.Is(err, test.err) || errors.Is(err, ErrLocal) {
								t.Fatalf("request %d: %v", n, err)
							}
							w.same(was)
						case !rep.Hit:
							t.Fatalf("request %d: a fault reads as a miss: %+v", n, rep)
						case rep.Used == "n":
							w.holds(b.n)
						default:
							w.holds(b.main)
						}
					})
					w.clean()
					w.cache.Store = b.store
					w.hit(RestoreOptions{})
					w.holds(b.n)
					if f.Calls() <= n {
						break
					}
				}
			})
		}
	}
}

func wrap(err error) error { return fmt.Errorf("by the test: %w", err) }

// holds fails unless the artifacts are those of a snapshot.
func (w *world) holds(want map[string]string) {
	w.Helper()
	if d := differ(want, below(w.snapshot(), "build")); d != "" {
		w.Fatalf("artifacts:\n%s", d)
	}
}

// The same for a save, cold and after a restore: then the old index is there or the new one, whole, and the next save
// is as if nothing had been.
func TestSaveWhenTheStoreFailsAtEveryRequest(t *testing.T) {
	b := newBench(t)
	for name, fault := range map[string]func(n int) func(storetest.Call) storetest.Fault{
		"unavailable": func(n int) func(storetest.Call) storetest.Fault {
			return storetest.FailAt(n, wrap(store.ErrUnavailable))
		},
		"refused": func(n int) func(storetest.Call) storetest.Fault { return storetest.FailAt(n, wrap(store.ErrRefused)) },
		"an outage": func(n int) func(storetest.Call) storetest.Fault {
			return storetest.FailFrom(n, wrap(store.ErrUnavailable))
		},
		"lost replies": func(n int) func(storetest.Call) storetest.Fault {
			return storetest.LoseAt(n, wrap(store.ErrUnavailable))
		},
		"lost and out": func(n int) func(storetest.Call) storetest.Fault {
			return func(c storetest.Call) storetest.Fault {
				switch {
				case c.N == n:
					return storetest.Fault{After: wrap(store.ErrUnavailable)}
				case c.N > n:
					return storetest.Fault{Before: wrap(store.ErrUnavailable)}
				}
				return storetest.Fault{}
			}
		},
	} {
		for _, cold := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, cold %v", name, cold), func(t *testing.T) {
				for n := 0; ; n++ {
					w := newWorld(t, copyStore(t, b.store))
					if cold {
						w.cache.Store = storetest.Memory()
					}
					healthy := w.cache.Store
					w.put(b.sources)
					o := SaveOptions{Name: "n", Tree: build, Fallbacks: []string{"main"}}
					if !cold {
						w.hit(RestoreOptions{Fallbacks: []string{"main"}})
						o = SaveOptions{}
					}
					w.put(smallTree())
					w.write("build/b.o", noise(uint64(n), 150<<10))
					now := below(w.snapshot(), "build")
					f := &storetest.Faulty{Store: healthy, Fault: fault(n)}
					w.cache.Store = f
					var rep *SaveReport
					var err error
					leaks(t, fmt.Sprintf("request %d", n), func() { rep, err = w.save(o) })
					if (err == nil) != rep.Saved || err != nil && errors.Is(err, ErrLocal) {
						t.Fatalf("request %d: %v, %+v", n, err, rep)
					}
					w.clean()
					// A reader now.
					w.cache.Store = healthy
					other := w.again()
					other.put(b.sources)
					there, err2 := other.restore(RestoreOptions{})
					switch {
					case err2 != nil:
						t.Fatalf("request %d: restore: %v", n, err2)
					case !there.Hit && !(cold && err != nil):
						t.Fatalf("request %d: %+v", n, there)
					case there.Hit && (err == nil || differ(b.n, below(other.snapshot(), "build")) != ""):
						other.holds(now) // the new one; or, after an error, the old one
					}
					// The same save again.
					if err != nil {
						w.saved(o)
					}
					other = w.again()
					other.hit(RestoreOptions{})
					other.holds(now)
					if f.Calls() <= n {
						break
					}
				}
			})
		}
	}
}

// A store that hangs at any request: the deadline ends the work soon, and the tree is as it was.
func TestStoreHangsAtEveryRequest(t *testing.T) {
	b := newBench(t)
	for _, do := range []string{"restore", "save"} {
		t.Run(do, func(t *testing.T) {
			limit := 300 * time.Millisecond // long enough for everything that does not hang
			for n := 0; ; n++ {
				w := newWorld(t, copyStore(t, b.store))
				w.put(b.sources)
				if do == "save" {
					w.hit(RestoreOptions{})
					w.write("build/b.o", noise(uint64(n), 150<<10))
				}
				was, index := w.snapshot(), w.get("index/n")
				healthy := w.cache.Store
				f := &storetest.Faulty{Store: healthy, Fault: storetest.HangAt(n)}
				w.cache.Store = f
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				var err error
				promptly(t, limit+time.Minute, func() {
					leaks(t, fmt.Sprintf("request %d", n), func() {
						if do == "restore" {
							_, err = w.restoreIn(ctx, RestoreOptions{Fallbacks: []string{"main"}})
						} else {
							_, err = w.saveIn(ctx, SaveOptions{})
						}
					})
				})
				cancel()
				if f.Calls() <= n {
					if errors.Is(err, context.DeadlineExceeded) && limit < time.Minute {
						limit *= 2 // nothing has hung, and yet it was not enough: a busy machine
						n--
						continue
					}
					w.must(err)
					break
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("request %d: %v", n, err)
				}
				w.same(was)
				w.clean()
				w.cache.Store = healthy
				if do == "restore" {
					w.hit(RestoreOptions{})
					continue
				}
				if now := w.get("index/n"); string(now) != string(index) {
					w.again().hit(RestoreOptions{}) // it was put, and not acknowledged
				}
				w.saved(SaveOptions{})
			}
		})
	}
}

// A slow drip: every reply takes a while. The two chunks are fetched at the same time: neither comes before both have
// been asked for.
func TestStoreIsSlow(t *testing.T) {
	b := newBench(t)
	var chunks atomic.Int64
	both := make(chan struct{})
	w := newWorld(t, &storetest.Faulty{Store: b.store, Fault: func(c storetest.Call) storetest.Fault {
		if strings.HasPrefix(c.Key, chunk.Prefix) {
			if chunks.Add(1) == 2 {
				close(both)
			}
			select {
			case <-both:
			case <-time.After(20 * time.Second):
				t.Error("a chunk is waited for before the other one is asked for")
			}
		}
		return storetest.Fault{Delay: 60 * time.Millisecond}
	}})
	w.put(b.sources)
	w.hit(RestoreOptions{})
	if n := chunks.Load(); n != 2 {
		t.Errorf("%d chunks were fetched, not 2", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Millisecond)
	defer cancel()
	w = newWorld(t, w.cache.Store)
	w.put(b.sources)
	was := w.snapshot()
	if _, err := w.restoreIn(ctx, RestoreOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	w.same(was)
	w.clean()
}

// damages are what can become of bytes.
func damages() map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"empty":       storetest.Truncate(0),
		"first byte":  storetest.Truncate(1),
		"half":        func(b []byte) []byte { return b[:len(b)/2] },
		"last byte":   storetest.Truncate(-1),
		"first bit":   storetest.FlipBit(0),
		"some bit":    func(b []byte) []byte { return storetest.FlipBit(len(b)*5 + 3)(b) },
		"last bit":    func(b []byte) []byte { return storetest.FlipBit(8*len(b) - 1)(b) },
		"a byte more": func(b []byte) []byte { return append(b, 0) },
		"zeros":       func(b []byte) []byte { return make([]byte, len(b)) },
		"garbage":     func([]byte) []byte { return []byte("<html>503 Service Unavailable</html>") },
		"huge":        func([]byte) []byte { return make([]byte, 4<<20) },
	}
}

// Any object is damaged on the way, once or always: nothing but what was saved is restored, and what is asked for again
// is there.
func TestRestoreWhatIsDamagedOnTheWay(t *testing.T) {
	b := newBench(t)
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			for _, always := range []bool{false, true} {
				for n := 0; ; n++ {
					var mu sync.Mutex
					key := ""
					f := &storetest.Faulty{Store: b.store, Fault: func(c storetest.Call) storetest.Fault {
						mu.Lock()
						defer mu.Unlock()
						if c.N == n {
							key = c.Key
						}
						if c.N == n || always && c.Key == key {
							return storetest.Fault{Damage: damage}
						}
						return storetest.Fault{}
					}}
					w := newWorld(t, f)
					w.put(b.sources)
					was := w.snapshot()
					rep, err := w.restore(RestoreOptions{Fallbacks: []string{"main"}})
					switch {
					case err != nil:
						w.same(was)
						known := errors.Is(err, ErrFormat) || errors.Is(err, ErrStateLost) || errors.Is(err, ErrMissing) ||
							errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, index.ErrInvalid) || errors.Is(err, index.ErrVersion)
						if !known || errors.Is(err, ErrLocal) {
							t.Fatalf("%s: %v", key, err)
						}
					case rep.Used == "n":
						w.holds(b.n)
						if strings.HasPrefix(key, chunk.Prefix) && always {
							t.Fatalf("%s was damaged, and used", key)
						}
					case rep.Used == "main":
						w.holds(b.main)
						if strings.HasPrefix(key, chunk.Prefix) && !always {
							t.Fatalf("%s was damaged once, and not asked for again", key)
						}
					default:
						t.Fatalf("%s: %+v", key, rep)
					}
					w.clean()
					if f.Calls() <= n {
						break
					}
				}
			}
		})
	}
}

// Any object is damaged where it is, chunks and indexes bit by bit: it is found, and the next save heals it.
func TestSaveHealsWhatIsDamaged(t *testing.T) {
	b := newBench(t)
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			s := copyStore(t, b.store)
			w := newWorld(t, s)
			for _, key := range w.keys("") {
				if key == FormatPath || key == StatePath {
					continue // without these nothing can be saved, and that is said: see epoch_test.go
				}
				w := newWorld(t, copyStore(t, s))
				w.set(key, damage(w.get(key)))
				w.put(b.sources)
				rep, err := w.restore(RestoreOptions{Fallbacks: []string{"main"}})
				if err == nil && !rep.Hit {
					t.Fatalf("%s: %+v", key, rep)
				}
				// The build makes what there is to make.
				w.put(smallTree())
				w.write("build/b.o", noise(3, 150<<10))
				w.write("build/new.o", "new")
				want := below(w.snapshot(), "build")
				w.saved(SaveOptions{})
				other := w.again()
				if rep := other.hit(RestoreOptions{}); rep.Used != "n" {
					t.Fatalf("%s: %+v", key, rep)
				}
				other.holds(want)
			}
		})
	}
}

func TestRestoreFindsEveryFlippedBit(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a.c": "a", "build/a.o": "an object of some bytes"})
	w.first()
	want := below(w.snapshot(), "build")
	step := 7
	if testing.Short() {
		step = 101
	}
	for _, key := range w.keys("") {
		if key == FormatPath {
			continue // JSON has blanks that do not matter
		}
		good := w.get(key)
		for n := 0; n < 8*len(good); n += step {
			w.set(key, storetest.FlipBit(n)(slices.Clone(good)))
			other := w.again()
			rep, err := other.restore(RestoreOptions{})
			if err == nil || rep.Hit {
				t.Fatalf("bit %d of %s: %+v", n, key, rep)
			}
			if list, err := os.ReadDir(other.root); err != nil || len(list) > 0 {
				t.Fatalf("bit %d of %s: %v, %v", n, key, list, err)
			}
			w.must(errors.Join(removeTree(other.root), removeTree(filepath.Dir(other.state))))
		}
		for n := range len(good) {
			w.set(key, good[:n])
			if rep, err := w.again().restore(RestoreOptions{}); err == nil || rep.Hit {
				t.Fatalf("%d bytes of %s: %+v", n, key, rep)
			}
		}
		w.set(key, good)
	}
	other := w.again()
	other.hit(RestoreOptions{})
	other.holds(want)
}

// Saves and restores of one name by many at once, each in a tree of its own: every restore gets one of the trees, whole.
func TestManyAtOnceUnderOneName(t *testing.T) {
	s := dirStore(t, t.TempDir())
	const people, rounds = 4, 6
	contents := func(who, round int) map[string]string {
		return map[string]string{
			"build/who": fmt.Sprint(who, " ", round), "build/data": noise(uint64(10*who+round), 200<<10),
			"build/same": noise(0, 100<<10), fmt.Sprintf("build/dir/%d", who): "x",
		}
	}
	whole := func(w *world) bool {
		for who := range people {
			for round := range rounds {
				ok := true
				for p, text := range contents(who, round) {
					data, err := os.ReadFile(w.path(p))
					ok = ok && err == nil && string(data) == text
				}
				if ok {
					return len(below(w.snapshot(), "build")) == 6
				}
			}
		}
		return false
	}
	first := newWorld(t, s)
	first.put(contents(0, 0))
	first.first()
	var worlds []*world
	for range 2 * people {
		worlds = append(worlds, newWorld(t, s))
	}
	var wg sync.WaitGroup
	for who := range people {
		wg.Go(func() {
			w := worlds[who]
			for round := range rounds {
				if err := removeTree(w.path("build")); err != nil {
					t.Error(err)
					return
				}
				w.put(contents(who, round))
				rep, err := w.save(SaveOptions{Name: "n", Tree: build})
				if err != nil || !rep.Saved {
					t.Errorf("save: %v, %+v", err, rep)
				}
			}
		})
		wg.Go(func() {
			w := worlds[people+who]
			for range rounds {
				rep, err := w.restore(RestoreOptions{})
				if err != nil || !rep.Hit || !whole(w) {
					t.Errorf("restore: %v, %+v, %v", err, rep, below(w.snapshot(), "build"))
				}
			}
		})
	}
	wg.Wait()
	last := newWorld(t, s)
	last.hit(RestoreOptions{})
	if !whole(last) {
		t.Error("what is left is none of what was saved")
	}
}

// Restores and saves at once in one tree, each with a receipt of its own: each finds the tree busy or changing, or has
// it to itself. What is saved is always a tree that was there.
func TestManyAtOnceInOneTree(t *testing.T) {
	w := newWorld(t, nil)
	w.put(smallTree())
	w.first()
	old := below(w.snapshot(), "build")
	w.write("build/a.o", "another object")
	w.write("build/sub/c.o", noise(9, 250<<10))
	w.saved(SaveOptions{Name: "other", Tree: build})
	other := below(w.snapshot(), "build")
	other["build"] = old["build"]
	var wg sync.WaitGroup
	for i := range 3 {
		for _, name := range []string{"n", "other"} {
			mine := *w
			mine.state = filepath.Join(t.TempDir(), fmt.Sprint(name, i))
			wg.Go(func() {
				for range 5 {
					_, err := mine.restore(RestoreOptions{Name: name, Replace: true})
					if err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrChanging) && !errors.Is(err, ErrLocal) {
						t.Errorf("restore: %v", err)
					}
				}
			})
		}
		mine := *w
		mine.state = filepath.Join(t.TempDir(), fmt.Sprint("save", i))
		wg.Go(func() {
			for n := range 5 {
				rep, err := mine.save(SaveOptions{Name: fmt.Sprintf("saved-%d-%d", i, n), Tree: build})
				if err != nil && !errors.Is(err, ErrChanging) && !errors.Is(err, ErrLocal) || err == nil && !rep.Saved && rep.Reason == "" {
					t.Errorf("save: %v, %+v", err, rep)
				}
			}
		})
	}
	wg.Wait()
	w.clean()
	trees := []map[string]string{old, other}
	now := below(w.snapshot(), "build")
	if len(now) > 0 {
		now["build"] = old["build"]
	}
	if !slices.ContainsFunc(trees, func(m map[string]string) bool { return maps.Equal(m, now) }) && len(now) > 0 {
		t.Errorf("the tree is a mixture:\n%s", differ(old, now))
	}
	for _, key := range w.keys(index.Prefix + "saved") {
		name, err := index.ParsePath(key)
		w.must(err)
		fresh := w.again()
		fresh.hit(RestoreOptions{Name: name})
		got := below(fresh.snapshot(), "build")
		got["build"] = old["build"] // which gets its mode and time when it is in place
		if !slices.ContainsFunc(trees, func(m map[string]string) bool { return maps.Equal(m, got) }) {
			t.Errorf("%s is a mixture:\n%s", name, differ(old, got))
		}
	}
}

// What a build does between the look at the tree and its clearing is noticed, and nothing of it is lost: what was to be
// kept is not what is there now.
func TestRestoreBesideABuild(t *testing.T) {
	w := newWorld(t, nil)
	w.put(smallTree())
	w.first()
	w.write("build/a.o", "another object")
	w.write("build/sub/c.o", noise(9, 250<<10))
	w.saved(SaveOptions{Name: "other", Tree: build})
	other := below(w.snapshot(), "build")
	builds := map[string]func(){
		"builds anew": func() {
			w.must(removeTree(w.path("build")))
			for p, text := range smallTree() {
				if strings.HasPrefix(p, "build/") {
					w.write(p, text)
				}
			}
		},
		"writes one more": func() { w.write("build/sub/mine.o", "nowhere else") },
		"writes in place, and puts the time back": func() {
			was := w.stat("build/sub/c.o").MTime
			w.write("build/sub/c.o", noise(10, 250<<10))
			w.touch("build/sub/c.o", was)
		},
		"removes one":     func() { w.remove("build/b.o") },
		"removes all":     func() { w.remove("build") },
		"links elsewhere": func() { w.write("build/to", "-> b.o") },
		"makes a directory of it": func() {
			w.remove("build/b.o")
			w.must(os.Mkdir(w.path("build/b.o"), 0o755))
		},
	}
	for what, do := range builds {
		steps := []string{"clear"}
		if what == "builds anew" {
			steps = []string{"make work", "clear"}
		}
		for _, step := range steps {
			w.hit(RestoreOptions{Name: "other", Replace: true})
			w.write("build/a.o", "to be replaced") // and all others can be kept
			var now map[string]string
			at(t, step, func() {
				do()
				now = below(w.snapshot(), "build")
			})
			if rep, err := w.restore(RestoreOptions{Name: "other", Replace: true}); !errors.Is(err, ErrChanging) || rep.Hit {
				t.Errorf("%s, %s: %v, %+v", what, step, err, rep)
			}
			w.clean()
			if d := differ(now, below(w.snapshot(), "build")); d != "" {
				t.Errorf("%s, %s: the tree is not the build's:\n%s", what, step, d)
			}
			w.hit(RestoreOptions{Name: "other", Replace: true})
			if d := differ(other, below(w.snapshot(), "build")); d != "" {
				t.Errorf("%s, %s: restored:\n%s", what, step, d)
			}
		}
	}
}

// What a rename changes is not what somebody else has changed.
func TestSameArtifact(t *testing.T) {
	file := index.Found{Path: "build/a.o", Kind: index.File, Stat: index.Stat{
		Dev: 1, Ino: 2, Mode: unix.S_IFREG | 0o644, Links: 1, Size: 3, MTime: 4, CTime: 5,
	}}
	e := &effects{staging: &staging{}}
	for what, c := range map[string]struct {
		change func(f *index.Found)
		// same if it is kept and a directory above it was renamed, or it itself; or if it is not kept
		moved, itself, other bool
	}{
		"nothing":                {func(*index.Found) {}, true, true, true},
		"ctime":                  {func(f *index.Found) { f.Stat.CTime++ }, false, true, true},
		"copied up by overlayfs": {func(f *index.Found) { f.Stat.Dev, f.Stat.Ino, f.Stat.CTime = 6, 7, 8 }, false, true, true},
		"inode":                  {func(f *index.Found) { f.Stat.Ino++ }, false, false, true},
		"links":                  {func(f *index.Found) { f.Stat.Links++ }, false, false, true},
		"mtime":                  {func(f *index.Found) { f.Stat.MTime++ }, false, false, false},
		"size":                   {func(f *index.Found) { f.Stat.Size++ }, false, false, false},
		"mode":                   {func(f *index.Found) { f.Stat.Mode ^= 0o100 }, false, false, false},
		"kind":                   {func(f *index.Found) { f.Kind = index.Dir }, false, false, false},
		"target":                 {func(f *index.Found) { f.Target = "b.o" }, false, false, false},
	} {
		now := file
		c.change(&now)
		e.staging.keep = &keeping{files: map[string]index.Stat{file.Path: file.Stat}}
		moved, itself := e.sameArtifact(&file, &now, false), e.sameArtifact(&file, &now, true)
		e.staging.keep = &keeping{}
		other := e.sameArtifact(&file, &now, false)
		if moved != c.moved || itself != c.itself || other != c.other {
			t.Errorf("%s: %v, %v, %v", what, moved, itself, other)
		}
	}
}

// Hard links, links to directories, directories that somebody else has touched: a restore over them goes on.
func TestRestoreOverWhatItMayReplace(t *testing.T) {
	over := func(t *testing.T, w *world, tree Tree) {
		t.Helper()
		for i := range 2 {
			if rep, err := w.restore(RestoreOptions{Tree: tree, Replace: true}); err != nil || !rep.Hit {
				t.Errorf("restore %d: %v, %+v", i, err, rep)
			}
			w.clean()
		}
	}
	t.Run("a cache directory that is a file, and a hard link to one in another", func(t *testing.T) {
		w := newWorld(t, nil)
		w.put(map[string]string{"a.c": "a", "build/prog": "object"})
		w.must(os.Link(w.path("build/prog"), w.path("prog")))
		tree := Tree{Dirs: []string{"build", "prog"}}
		w.saved(SaveOptions{Name: "n", Tree: tree})
		over(t, w, tree)
	})
	t.Run("hard links in a directory behind a link", func(t *testing.T) {
		w := newWorld(t, nil)
		out := filepath.Join(t.TempDir(), "out")
		w.must(os.MkdirAll(filepath.Join(out, "deps"), 0o755))
		w.must(os.WriteFile(filepath.Join(out, "deps", "prog-1"), []byte("x"), 0o644))
		w.must(os.Link(filepath.Join(out, "deps", "prog-1"), filepath.Join(out, "prog")))
		w.put(map[string]string{"a.c": "a", "build": "-> " + out})
		w.first()
		w.hit(RestoreOptions{}) // without Replace: what was saved is known
		over(t, w, build)
	})
	t.Run("a link into the tree", func(t *testing.T) {
		w := newWorld(t, nil)
		w.put(map[string]string{"a.c": "a", "src/b.c": "b", "build/a.o": "object"})
		w.first()
		w.remove("build")
		w.write("build", "-> "+w.path("src"))
		over(t, w, build)
		if w.read("src/b.c") != "b" {
			t.Error("the source is another one")
		}
	})
	t.Run("a kept directory gets another mode and time meanwhile", func(t *testing.T) {
		w := newWorld(t, nil)
		w.put(smallTree())
		w.first()
		w.hit(RestoreOptions{Replace: true})
		w.write("build/a.o", "changed")
		want := w.stat("build/sub")
		at(t, "clear", func() {
			w.must(os.Chmod(w.path("build/sub"), 0o700))
			w.touch("build/sub", 12345)
		})
		w.hit(RestoreOptions{Replace: true})
		if got := w.stat("build/sub"); got.Mode != want.Mode || got.MTime != want.MTime {
			t.Errorf("%o %d, want %o %d", got.Mode, got.MTime, want.Mode, want.MTime)
		}
	})
}

// A link that comes in place of a cache directory while a restore is at work is not nbc's to remove.
func TestRestoreWhileALinkComes(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a.c": "a", "src/b.c": "b", "build/a.o": "object"})
	w.first()
	w.remove("build")
	at(t, "clear", func() { w.write("build", "-> src") })
	if rep, err := w.restore(RestoreOptions{}); !errors.Is(err, ErrChanging) {
		t.Errorf("%v, %+v", err, rep)
	}
	if to, err := os.Readlink(w.path("build")); err != nil || to != "src" {
		t.Errorf("%s, %v", to, err)
	}
}

// What a restore that ends early has done to directories of sources is taken back, and nothing that others did.
func TestRestoreStoppedLeavesDirectoryTimes(t *testing.T) {
	w := newWorld(t, nil)
	tree := Tree{Dirs: []string{"p/*/dist"}}
	w.put(map[string]string{"a.c": "a", "p/a/b.c": "b", "p/a/dist/x": "1"})
	w.saved(SaveOptions{Name: "n", Tree: tree})
	w.remove("p/a/dist")
	w.touch(".", 1e18)
	now := map[string]string{}
	at(t, "clear", func() {
		w.write("p/a/new.c", "n")
		w.put(map[string]string{"p/a/dist/mine": "somebody's"})
		now = w.snapshot()
	})
	if rep, err := w.restore(RestoreOptions{Tree: tree}); !errors.Is(err, ErrChanging) {
		t.Errorf("%v, %+v", err, rep)
	}
	got := w.snapshot()
	for _, p := range []string{"p", "p/a/dist", "p/a/dist/mine", "p/a/new.c"} {
		if got[p] != now[p] {
			t.Errorf("%s is %s, was %s", p, got[p], now[p])
		}
	}
	if got := w.stat(".").MTime; got != 1e18 {
		t.Errorf("the tree is of %d", got)
	}
	// The work directory cannot be filled: the tree has its time again all the same.
	w.remove("p/a/dist")
	w.touch(".", 1e18)
	at(t, "work made", func() { w.must(os.Mkdir(w.path(workName+"/new"), 0o700)) })
	if rep, err := w.restore(RestoreOptions{Tree: tree}); !errors.Is(err, ErrLocal) {
		t.Errorf("%v, %+v", err, rep)
	}
	if got := w.stat(".").MTime; got != 1e18 {
		t.Errorf("after a work directory that could not be filled, the tree is of %d", got)
	}
}

// A restore that is stopped before it has set the time of any source takes back none: what a person has written meanwhile
// stays newer than the artifacts, its directory too.
func TestRestoreStoppedBesideAnEdit(t *testing.T) {
	for _, step := range []string{"make work", "clear"} {
		w := newWorld(t, nil)
		w.put(map[string]string{"a.c": "a", "src/b.c": "b", "build/a.o": "object"})
		w.first()
		w.remove("build")
		ctx, stop := context.WithCancel(t.Context())
		var now map[string]string
		at(t, step, func() {
			w.tick()
			w.write("src/c.c", "c")
			now = w.snapshot()
			stop()
		})
		if rep, err := w.restoreIn(ctx, RestoreOptions{}); !errors.Is(err, context.Canceled) || rep.Hit {
			t.Fatalf("%s: %v, %+v", step, err, rep)
		}
		if want, got := now["src"], w.snapshot()["src"]; got != want {
			t.Errorf("%s: src is %s, was %s", step, got, want)
		}
	}
}

// While one nbc looks at the tree, or changes it, another one with another receipt finds it busy, at every step; between
// a restore and a save it does not.
func TestAnotherReceiptInOneTree(t *testing.T) {
	w := newWorld(t, nil)
	w.put(smallTree())
	w.first()
	another := *w
	another.state = filepath.Join(t.TempDir(), "another")
	saving := false
	busy := func() {
		if rep, err := another.restore(RestoreOptions{Replace: true}); !errors.Is(err, ErrBusy) || !errors.Is(err, ErrLocal) {
			t.Errorf("restore: %v, %+v", err, rep)
		}
		if saving {
			another.saved(SaveOptions{Name: "x", Tree: build}) // which changes nothing in the tree
		} else if rep, err := another.save(SaveOptions{Name: "x", Tree: build}); !errors.Is(err, ErrBusy) || !errors.Is(err, ErrLocal) {
			t.Errorf("save: %v, %+v", err, rep)
		}
	}
	for _, step := range []string{"forgotten", "clear", "placed"} {
		met := false
		at(t, step, func() {
			met = true
			if step == "forgotten" { // the tree is not locked yet
				another.hit(RestoreOptions{Replace: true})
			} else {
				busy()
			}
		})
		w.hit(RestoreOptions{Replace: true})
		if !met {
			t.Errorf("it did not come to %s", step)
		}
	}
	another.hit(RestoreOptions{Replace: true})
	w.hit(RestoreOptions{Replace: true})
	w.write("a.c", "source a") // so that there is something for the second pass
	at(t, "second pass", busy)
	w.must(w.in(func(b *Build) error { _, err := b.Times(t.Context()); return err }))
	w.write("build/a.o", "new")
	saving = true
	at(t, "index", busy)
	w.saved(SaveOptions{})
	another.hit(RestoreOptions{Replace: true})
}

// Two saves in one tree, with one receipt: the second finds the tree busy.
func TestSaveTwiceAtOnceInOneTree(t *testing.T) {
	w := newWorld(t, nil)
	w.put(smallTree())
	met := false
	at(t, "chunk", func() {
		met = true
		if _, err := w.cache.Open(w.root, w.state, false); !errors.Is(err, ErrBusy) {
			t.Errorf("%v", err)
		}
	})
	w.first()
	if !met {
		t.Error("they did not meet")
	}
}
