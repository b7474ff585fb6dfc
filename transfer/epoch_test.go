package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"

	"nbc/chunk"
	"nbc/transfer/store/storetest"
)

// collect runs a collection on the world's store. There is something to collect, or no epoch would begin.
func (w *world) collect() {
	w.Helper()
	st, err := readState(context.Background(), w.cache.Store)
	w.must(err)
	garbage := []byte("garbage of an epoch")
	w.set(chunk.Key{ID: chunk.Sum(garbage), Epoch: st.Epoch}.Path(), chunk.Encode(nil, garbage))
	if _, err := w.cache.Collect(context.Background(), CollectOptions{}); err != nil {
		w.Fatal(err)
	}
}

// A collection that runs while a save is at any step costs the save one more round at most, and never a chunk.
func TestSaveBesideACollection(t *testing.T) {
	for _, step := range []string{"chunk", "chunk put", "index", "index put"} {
		for name, prepare := range map[string]func(w *world){
			"cold": func(*world) {},
			"from a base that stays": func(w *world) {
				w.put(someTree())
				w.first()
				w.hit(RestoreOptions{})
			},
			"from a base that is dropped": func(w *world) {
				w.put(someTree())
				w.first()
				w.hit(RestoreOptions{})
				w.must(w.cache.DropIndex(context.Background(), "n"))
			},
			"from a base that was collected": func(w *world) {
				w.put(someTree())
				w.first()
				w.hit(RestoreOptions{})
				w.must(w.cache.DropIndex(context.Background(), "n"))
				w.collect()
			},
		} {
			t.Run(name+" at "+step, func(t *testing.T) {
				w := newWorld(t, nil)
				prepare(w)
				w.put(someTree())
				w.write("build/a.o", "changed")
				collected := false
				at(t, step, func() { collected = true; w.collect() })
				rep := w.saved(SaveOptions{Name: "n", Tree: build})
				if !collected || rep.Rounds > 2 || step == "index" && rep.Rounds != 2 {
					t.Errorf("collected: %v, %+v", collected, rep)
				}
				w.collect()
				w.collect()
				other := w.again()
				other.hit(RestoreOptions{})
				if d := differ(below(w.snapshot(), "build"), below(other.snapshot(), "build")); d != "" {
					t.Error(d)
				}
				// What the receipt knows of chunks is as right as what the store has.
				w.hit(RestoreOptions{})
				if rep := w.saved(SaveOptions{}); rep.Sent.Chunks != 0 {
					t.Errorf("%+v", rep)
				}
				w.collect()
				w.again().hit(RestoreOptions{})
			})
		}
	}
}

// However much was collected since the restore, a save reads the state twice and one manifest, and of all else only the
// store's format.
func TestASaveAfterManyCollections(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	w.hit(RestoreOptions{})
	for n := range 21 {
		if n > 0 {
			w.collect()
		}
		gets := map[string]int{}
		var mu sync.Mutex
		c := *w.cache
		c.Store = &storetest.Faulty{Store: w.cache.Store, Fault: func(c storetest.Call) storetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if c.Op == storetest.Get || c.Op == storetest.List {
				if epoch, kind, ok := parseManifestKey(c.Key); ok && epoch > 0 {
					c.Key = kind
				}
				gets[c.Key]++
			}
			return storetest.Fault{}
		}}
		b, err := c.Open(w.root, w.state+fmt.Sprint(n), false)
		if err != nil {
			t.Fatal(err)
		}
		receipt, err := os.ReadFile(w.state)
		if err == nil {
			err = os.WriteFile(w.state+fmt.Sprint(n), receipt, 0o600)
		}
		w.must(err)
		rep, err := b.Save(context.Background(), SaveOptions{})
		if err := errors.Join(err, b.Close()); err != nil || !rep.Saved || rep.Sent.Chunks > 0 {
			t.Fatalf("after %d collections: %v, %+v", n, err, rep)
		}
		want := map[string]int{FormatPath: 1, StatePath: 2, kindDead: 1}
		if n == 0 {
			delete(want, kindDead)
		}
		if !maps.Equal(gets, want) {
			t.Errorf("after %d collections, %v are read", n, gets)
		}
	}
}

// A chunk that has to be sent again is read at its place in the contents; if that is not what it was, the save begins
// anew.
func TestSaveBesideACollectionAndAChange(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	at(t, "index", func() {
		w.collect() // condemns all that was sent
		w.write("build/sub/05.o", noise(55, 20<<10))
	})
	w.first()
	other := w.again()
	other.hit(RestoreOptions{})
	if d := differ(below(w.snapshot(), "build"), below(other.snapshot(), "build")); d != "" {
		t.Error(d)
	}
}

func TestSaveGivesUpAfterManyCollections(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"build/a.o": "object"})
	old := crash
	crash = func(step string) {
		if step == "index put" {
			w.collect()
		}
	}
	rep, err := w.save(SaveOptions{Name: "n", Tree: build})
	crash = old
	if err == nil || !strings.Contains(err.Error(), "not acknowledged") || rep.Rounds != maxRounds || rep.Saved {
		t.Errorf("%v, %+v", err, rep)
	}
	w.first()
	w.collect()
	w.again().hit(RestoreOptions{})
}

// A base whose manifests cannot be read is not trusted, and that is all.
func TestSaveWithoutManifests(t *testing.T) {
	for name, damage := range map[string]func(w *world, key string){
		"gone":    func(w *world, key string) { w.must(w.cache.Store.Delete(context.Background(), key)) },
		"garbage": func(w *world, key string) { w.set(key, []byte("garbage")) },
		"one bit": func(w *world, key string) { w.set(key, storetest.FlipBit(100)(w.get(key))) },
		"huge":    func(w *world, key string) { w.set(key, make([]byte, 9<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(someTree())
			w.first()
			w.hit(RestoreOptions{})
			w.collect()
			manifests := 0
			for _, key := range w.keys("gc/") {
				if key != StatePath && key != conditionsPath {
					manifests++
					damage(w, key)
				}
			}
			rep := w.saved(SaveOptions{})
			if manifests == 0 || rep.Untouched != 0 || rep.Sent.Chunks != len(w.keys("chunks/"))/2 {
				t.Errorf("%d manifests, %+v, %d chunks", manifests, rep, len(w.keys("chunks/")))
			}
			w.again().hit(RestoreOptions{})
		})
	}
}

// An index or a base of an epoch that the state has never seen: the state was lost, and nobody goes on.
func TestLostStateIsRefused(t *testing.T) {
	for name, lose := range map[string]func(w *world){
		"deleted": func(w *world) { w.must(w.cache.Store.Delete(context.Background(), StatePath)) },
		"garbage": func(w *world) { w.set(StatePath, []byte("{")) },
		"empty":   func(w *world) { w.set(StatePath, nil) },
		"older": func(w *world) {
			w.set(StatePath, []byte(`{"version":1,"epoch":2,"fence":1,"phase":"idle","writer":"x"}`))
		},
		"senseless": func(w *world) {
			w.set(StatePath, []byte(`{"version":1,"epoch":9,"fence":9,"phase":"idle","writer":"x"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(someTree())
			w.first()
			w.collect()
			w.collect()
			w.write("build/a.o", "newer")
			w.first()
			if w.index("n").Epoch != 3 {
				t.Fatalf("epoch %d", w.index("n").Epoch)
			}
			w.hit(RestoreOptions{})
			lose(w)
			was := w.get("index/n")
			if _, err := w.save(SaveOptions{}); !errors.Is(err, ErrStateLost) {
				t.Errorf("save: %v", err)
			}
			other := w.again()
			if _, err := other.restore(RestoreOptions{}); !errors.Is(err, ErrStateLost) {
				t.Errorf("restore: %v", err)
			}
			other.put(someTree())
			if _, err := other.save(SaveOptions{Name: "n", Tree: build}); !errors.Is(err, ErrStateLost) {
				t.Errorf("save without a restore: %v", err)
			}
			if string(w.get("index/n")) != string(was) {
				t.Error("the index was replaced")
			}
		})
	}
	t.Run("newer version", func(t *testing.T) {
		w := newWorld(t, nil)
		w.put(someTree())
		w.set(StatePath, []byte(`{"version":2,"epoch":3,"fence":2}`))
		if _, err := w.save(SaveOptions{Name: "n", Tree: build}); !errors.Is(err, ErrFormat) {
			t.Errorf("save: %v", err)
		}
	})
	t.Run("between index and acknowledgement", func(t *testing.T) {
		w := newWorld(t, nil)
		w.put(someTree())
		w.first()
		w.collect()
		at(t, "index put", func() { w.must(w.cache.Store.Delete(context.Background(), StatePath)) })
		if _, err := w.save(SaveOptions{Name: "n", Tree: build}); !errors.Is(err, ErrStateLost) {
			t.Errorf("save: %v", err)
		}
	})
}

func TestFormatIsCreatedOnceAndRefused(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.miss(RestoreOptions{Replace: true}, "no such name")
	if keys := w.keys(""); len(keys) > 0 {
		t.Errorf("a restore has made %q", keys)
	}
	w.first()
	valid := string(w.get(FormatPath))
	w.first()
	if string(w.get(FormatPath)) != valid {
		t.Error("the format was written again")
	}
	f, err := parseFormat([]byte(valid))
	w.must(err)
	index := w.get("index/n")
	for name, bad := range map[string]string{
		"empty":         "",
		"garbage":       "garbage",
		"version":       strings.Replace(valid, `"version": 1`, `"version": 2`, 1),
		"hash":          strings.Replace(valid, `blake3-256`, `sha256`, 1),
		"compression":   strings.Replace(valid, `zstd`, `xz`, 1),
		"ID":            strings.Replace(valid, f.ID, strings.ToUpper(f.ID[:31])+"G", 1),
		"no ID":         strings.Replace(valid, f.ID, "", 1),
		"polynomial":    strings.Replace(valid, f.Chunker.Polynomial, "0x10", 1),
		"no polynomial": strings.Replace(valid, f.Chunker.Polynomial, "x", 1),
		"sizes":         strings.Replace(valid, fmt.Sprint(f.Chunker.Max), "1", 1),
		"huge chunks":   strings.Replace(valid, fmt.Sprint(f.Chunker.Max), "1000000000", 1),
		"huge":          valid + strings.Repeat(" ", maxSmall),
	} {
		if bad == valid {
			t.Fatalf("%s: nothing is changed", name)
		}
		w.set(FormatPath, []byte(bad))
		if _, err := w.again().restore(RestoreOptions{}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: restore: %v", name, err)
		}
		if _, err := w.save(SaveOptions{Name: "n", Tree: build}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: save: %v", name, err)
		}
		if string(w.get(FormatPath)) != bad || string(w.get("index/n")) != string(index) {
			t.Fatalf("%s: the store was changed", name)
		}
	}
	// A store that is closed to writers of this version can still be read.
	w.set(FormatPath, []byte(strings.Replace(valid, `"min_writer": 1`, `"min_writer": 2`, 1)))
	w.again().hit(RestoreOptions{})
	if _, err := w.save(SaveOptions{Name: "n", Tree: build}); !errors.Is(err, ErrFormat) {
		t.Errorf("min_writer: %v", err)
	}
}

// Of two first savers both find a store that works.
func TestFormatOfTwoFirstSavers(t *testing.T) {
	s := storetest.Memory()
	second := newWorld(t, s)
	second.put(someTree())
	met := false
	w := newWorld(t, &storetest.Faulty{Store: s, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Put && c.Key == FormatPath && !met {
			met = true
			second.saved(SaveOptions{Name: "second", Tree: build})
		}
		return storetest.Fault{}
	}})
	w.put(someTree())
	w.first()
	for _, name := range []string{"n", "second"} {
		newWorld(t, s).hit(RestoreOptions{Name: name})
	}
	if rep := second.saved(SaveOptions{Name: "second", Tree: build}); rep.Base != "" {
		t.Errorf("a receipt with the ID that lost was used: %+v", rep)
	}
	if !met {
		t.Error("they did not meet")
	}
}
