package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// noise returns n bytes that do not compress, always the same for a seed.
func noise(seed uint64, n int) string {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return string(b)
}

// At these files segments begin, so that a change before one costs nothing behind it.
var (
	bigFile  = segmentStart("build/big-", 200<<10)
	lastFile = segmentStart("build/zz/last-", 100<<10)
)

// segmentStart returns a path at which a segment begins if a file of that size is there.
func segmentStart(prefix string, size int64) string {
	for i := 0; ; i++ {
		p := fmt.Sprint(prefix, i)
		if begins(&index.Entry{Path: p, Size: size}) {
			return p
		}
	}
}

// someTree has sources, and artifacts of several sizes in three segments.
func someTree() map[string]string {
	t := map[string]string{
		"a.c": "source a", "b.c": "source b", "lib/c.c": "source c", "lib/link.c": "-> c.c",
		"build/a.o": "object a", "build/b.o": "object b", "build/empty": "", "build/none/": "", "build/to": "-> a.o",
		bigFile: noise(1, 200<<10), lastFile: noise(2, 100<<10),
	}
	for i := range 40 {
		t[fmt.Sprintf("build/sub/%02d.o", i)] = noise(uint64(100+i), 20<<10)
	}
	return t
}

func TestSaveThenRestoreIsTheIdentity(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.must(os.Link(w.path("build/a.o"), w.path("build/sub/a.o")))
	w.must(os.Chmod(w.path("build/b.o"), 0o755))
	w.must(os.Chmod(w.path("build/sub"), 0o700))
	w.touch("build/a.o", 1_234_567_890_123_456_789)
	w.touch("build", 1_000_000_000_000_000_001)
	w.touch("a.c", 1_700_000_000_000_000_007)
	rep := w.first()
	if rep.Files != 47 || rep.Untouched != 0 || !rep.HashedAfter || rep.Rounds != 1 || rep.Bytes != 1100<<10+16 {
		t.Errorf("save: %+v", rep)
	}
	other := w.again()
	for p, content := range someTree() {
		if !strings.HasPrefix(p, "build/") {
			other.write(p, content)
			other.touch(p, 1)
		}
	}
	hit := other.hit(RestoreOptions{})
	if hit.Files != 47 || hit.Bytes != rep.Bytes || hit.Used != "n" || hit.Sources.Unchanged != 6 {
		t.Errorf("restore: %+v", hit)
	}
	if d := differ(below(w.snapshot(), "build"), below(other.snapshot(), "build")); d != "" {
		t.Errorf("artifacts:\n%s", d)
	}
	if got := other.stat("a.c").MTime; got != 1_700_000_000_000_000_007 {
		t.Errorf("time of a.c: %d", got)
	}
	other.clean()
	w.clean()
}

func TestSaveAfterRestoreReadsNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	w = w.again()
	w.put(map[string]string{"a.c": "source a"})
	w.hit(RestoreOptions{})
	before := len(w.keys("chunks/"))
	opened := watchOpens(t, w.path("build"), w.path("build/sub"), w.path("build/none"))
	rep := w.saved(SaveOptions{})
	if list := opened(); len(list) > 0 {
		t.Errorf("files that were opened: %q", list)
	}
	if rep.Untouched != 45 || rep.Sent.Chunks != 0 || len(w.keys("chunks/")) != before || rep.HashedAfter {
		t.Errorf("%+v", rep)
	}
	if rep.Sent.Bytes != int64(len(w.get("index/n"))) {
		t.Errorf("sent %d bytes, the index has %d", rep.Sent.Bytes, len(w.get("index/n")))
	}
}

// Each part of the rule that says which files need not be read, broken alone: the file is read, and what was written is
// what is restored.
func TestSaveReadsWhatMayHaveChanged(t *testing.T) {
	const path, old, changed = "build/a.o", "object a", "OBJECT A"
	keepTime := func(w *world, do func()) {
		w.Helper()
		was := w.stat(path)
		do()
		w.touch(path, was.MTime)
		if now := w.stat(path); now.MTime != was.MTime || now.Size != was.Size {
			w.Fatalf("%+v became %+v", was, now)
		}
	}
	tamper := func(w *world, change func(r *receipt, f *receiptFile)) {
		w.Helper()
		r := w.receipt()
		f, ok := r.lookup()(path)
		if !ok {
			w.Fatal("not in the receipt")
		}
		change(r, f)
		w.must(r.write(w.state))
	}
	for name, test := range map[string]struct {
		do   func(w *world)
		want string
	}{
		"untouched":                        {func(*world) {}, ""},
		"written, its time put back":       {func(w *world) { keepTime(w, func() { w.write(path, changed) }) }, changed},
		"the same bytes written, time too": {func(w *world) { keepTime(w, func() { w.write(path, old) }) }, old},
		"another file renamed to it": {func(w *world) {
			keepTime(w, func() {
				w.write("build/new", changed)
				w.must(os.Rename(w.path("build/new"), w.path(path)))
			})
		}, changed},
		"mode":               {func(w *world) { w.must(os.Chmod(w.path(path), 0o755)) }, old},
		"another name":       {func(w *world) { w.must(os.Link(w.path(path), w.path("build/z.o"))) }, old},
		"time":               {func(w *world) { w.touch(path, 1e18) }, old},
		"longer":             {func(w *world) { w.write(path, changed+"!") }, changed + "!"},
		"racy":               {func(w *world) { tamper(w, func(r *receipt, f *receiptFile) { r.Probe = f.Stat.CTime }) }, old},
		"clock set back":     {func(w *world) { tamper(w, func(_ *receipt, f *receiptFile) { f.Stat.CTime += 1e9 }) }, old},
		"another device":     {func(w *world) { tamper(w, func(_ *receipt, f *receiptFile) { f.Stat.Dev++ }) }, old},
		"not in the receipt": {func(w *world) { tamper(w, func(_ *receipt, f *receiptFile) { f.Path = "build/a.n" }) }, old},
		"of another size in the base": {func(w *world) {
			tamper(w, func(r *receipt, _ *receiptFile) {
				x, err := index.Decode(r.BaseData)
				w.must(err)
				// The base holds other bytes under the path, so the proof is of no use: it must not be believed.
				e, _ := x.Find(path)
				e.Size--
				e, _ = x.Find("build/b.o")
				e.Size++
				r.BaseData, err = x.Encode()
				w.must(err)
			})
		}, old},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(map[string]string{path: old, "build/b.o": "object b", "a.c": "a"})
			w.first()
			w = w.again()
			w.put(map[string]string{"a.c": "a"})
			w.hit(RestoreOptions{})
			test.do(w)
			opened := watchOpens(t, w.path("build"))
			rep := w.saved(SaveOptions{})
			read := slices.Contains(opened(), "a.o")
			if read != (test.want != "") || (rep.Untouched == rep.Files) == read {
				t.Errorf("read: %v, report %+v", read, rep)
			}
			after := w.snapshot()
			w = w.again()
			w.hit(RestoreOptions{})
			if test.want != "" && w.read(path) != test.want {
				t.Errorf("saved %q, want %q", w.read(path), test.want)
			}
			if d := differ(below(after, "build"), below(w.snapshot(), "build")); d != "" {
				t.Errorf("restored:\n%s", d)
			}
		})
	}
}

// Two builds that write within one tick of the clock, of which a save sees only the first: the second must be read.
func TestSaveBelievesNoFileOfItsOwnTick(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 20 {
		w.write("build/a.o", fmt.Sprintf("object %03d", i))
		w.first()
		r := w.receipt()
		if f, ok := r.lookup()("build/a.o"); !ok || f.Stat.CTime >= r.Probe {
			t.Fatalf("a file that was written just before the save is not proven: %+v, probe %d", f, r.Probe)
		}
		// As fast as can be, and with its time put back.
		was := w.stat("build/a.o")
		w.write("build/a.o", fmt.Sprintf("OBJECT %03d", i))
		w.touch("build/a.o", was.MTime)
		w.saved(SaveOptions{Name: "n", Tree: build})
		other := w.again()
		other.hit(RestoreOptions{})
		if got, want := other.read("build/a.o"), fmt.Sprintf("OBJECT %03d", i); got != want {
			t.Fatalf("saved %q, want %q", got, want)
		}
	}
}

func TestSaveSendsOnlyWhatTheBaseLacks(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	w = w.again()
	w.hit(RestoreOptions{})
	w.write("build/a.o", "another object a")
	w.write("build/new.o", noise(7, 5000))
	w.remove("build/sub/07.o")
	rep := w.saved(SaveOptions{})
	if rep.Sent.Chunks == 0 || rep.Sent.Chunks > 4 || rep.Untouched == 0 || rep.Untouched == rep.Files {
		t.Errorf("%+v", rep)
	}
	other := w.again()
	other.hit(RestoreOptions{})
	if d := differ(below(w.snapshot(), "build"), below(other.snapshot(), "build")); d != "" {
		t.Error(d)
	}
}

func TestSaveUsesChunksOfFallbacks(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.saved(SaveOptions{Name: "main", Tree: build})
	chunks := len(w.keys("chunks/"))
	rep := w.saved(SaveOptions{Name: "mine", Tree: build, Fallbacks: []string{"absent", "main"}})
	if rep.Sent.Chunks != 0 || len(w.keys("chunks/")) != chunks {
		t.Errorf("%+v", rep)
	}
}

// A receipt is for one save. The next one without a name has none; one with a name may use what it proves.
func TestSaveConsumesTheReceipt(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	w.hit(RestoreOptions{})
	w.saved(SaveOptions{})
	if _, err := w.save(SaveOptions{}); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("second save: %v", err)
	}
	rep := w.saved(SaveOptions{Name: "n", Tree: build})
	if rep.Untouched != rep.Files-1 || !rep.HashedAfter { // links are not read anyway
		t.Errorf("save by name: %+v", rep)
	}
	w.hit(RestoreOptions{}) // what was saved is not in the way
	w.saved(SaveOptions{})
}

func TestSaveWithoutReceipt(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	if _, err := w.save(SaveOptions{}); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("no receipt: %v", err)
	}
	w.first()
	w.hit(RestoreOptions{})
	r := w.receipt()
	valid, err := os.ReadFile(w.state)
	w.must(err)
	bad := slices.Clone(valid)
	bad[len(bad)/2] ^= 4
	for name, damage := range map[string]func(){
		"cut off":        func() { w.must(os.WriteFile(w.state, valid[:len(valid)-1], 0o600)) },
		"empty":          func() { w.must(os.WriteFile(w.state, nil, 0o600)) },
		"a bit":          func() { w.must(os.WriteFile(w.state, bad, 0o600)) },
		"another tree's": func() { o := *r; o.RootIno++; w.must(o.write(w.state)) },
		"another path's": func() { o := *r; o.Root += "x"; w.must(o.write(w.state)) },
		"inconsistent":   func() { o := *r; o.SourceStats = o.SourceStats[1:]; w.must(o.write(w.state)) },
		"a directory":    func() { w.must(os.Mkdir(w.state, 0o700)) },
	} {
		w.must(removeTree(w.state))
		damage()
		if _, err := w.save(SaveOptions{}); !errors.Is(err, ErrNoReceipt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A tree that was removed and unpacked anew at the same place is another one.
func TestSaveBelievesNoReceiptOfAnEarlierTree(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	w.hit(RestoreOptions{})
	w.must(os.Rename(w.root, w.root+".old"))
	w.must(os.Mkdir(w.root, 0o755))
	w.put(someTree())
	if _, err := w.save(SaveOptions{}); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("%v", err)
	}
}

func TestSaveOfNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	was := w.get("index/n")
	w.remove("build")
	w.put(map[string]string{"build/dir/": ""})
	rep, err := w.save(SaveOptions{Name: "n", Tree: build})
	if err != nil || rep.Saved || !strings.Contains(rep.Reason, "there is nothing in build") {
		t.Errorf("%v, %+v", err, rep)
	}
	if string(w.get("index/n")) != string(was) {
		t.Error("an empty tree has replaced the index")
	}
}

// A failed build may keep its progress only where it cannot replace something better.
func TestSaveAfterFailedBuild(t *testing.T) {
	outage := fmt.Errorf("no route: %w", store.ErrUnavailable)
	for name, test := range map[string]struct {
		do    func(w *world)
		saved bool
	}{
		"restored from this name": {func(w *world) { w.hit(RestoreOptions{}) }, true},
		"the name is absent": {func(w *world) {
			w.must(w.cache.Store.Delete(context.Background(), "index/n"))
			w.miss(RestoreOptions{}, "no such name")
		}, true},
		"restored from a fallback, the name is absent": {func(w *world) {
			w.set("index/main", w.get("index/n"))
			w.must(w.cache.Store.Delete(context.Background(), "index/n"))
			w.hit(RestoreOptions{Fallbacks: []string{"main"}})
		}, true},
		"restored from a fallback, the name is damaged": {func(w *world) {
			w.set("index/main", w.get("index/n"))
			w.set("index/n", []byte("garbage"))
			w.hit(RestoreOptions{Fallbacks: []string{"main"}})
		}, false},
		"an outage": {func(w *world) {
			s := w.cache.Store
			w.cache.Store = &storetest.Faulty{Store: s, Fault: func(storetest.Call) storetest.Fault {
				return storetest.Fault{Before: outage}
			}}
			if _, err := w.restore(RestoreOptions{}); !errors.Is(err, store.ErrUnavailable) {
				w.Fatal(err)
			}
			w.cache.Store = s
		}, false},
		"a miss for another reason": {func(w *world) {
			w.write("build/foreign", "x")
			w.miss(RestoreOptions{}, "foreign was not put there")
		}, false},
		"saved under another name": {func(w *world) { w.hit(RestoreOptions{}) }, false},
		"no restore":               {func(*world) {}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(someTree())
			w.first()
			w.set("index/other", w.get("index/n"))
			w = w.again()
			w.put(map[string]string{"a.c": "edited"})
			test.do(w)
			w.write("build/a.o", "half an object")
			o := SaveOptions{Failed: true}
			switch name {
			case "saved under another name":
				o.Name, o.Tree = "other", build
			case "no restore":
				o.Name, o.Tree = "n", build
			}
			rep, err := w.save(o)
			if err != nil || rep.Saved != test.saved {
				t.Fatalf("%v, %+v", err, rep)
			}
			if !test.saved && !strings.Contains(rep.Reason, "the build failed") {
				t.Errorf("reason %q", rep.Reason)
			}
			if test.saved && w.index("n").Build.Failures != 1 {
				t.Errorf("failures: %d", w.index("n").Build.Failures)
			}
			// The same build, succeeding.
			if name != "no restore" && name != "saved under another name" && !test.saved {
				w.saved(SaveOptions{})
			}
		})
	}
}

// Two builds in a row that fail from a saved tree, with the same sources, put it aside: the cache may be the reason.
func TestSaveCountsFailures(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a.c": "a", "generated.c": "g", "build/a.o": "object"})
	w.first()
	fail := func() {
		t.Helper()
		w = w.again()
		w.put(map[string]string{"a.c": "a", "generated.c": "g"})
		w.hit(RestoreOptions{})
		w.write("generated.c", "written by the build") // so this source is unknown in the index
		w.write("build/b.o", "more")
		w.saved(SaveOptions{Failed: true})
	}
	fail()
	fail()
	if n := w.index("n").Build.Failures; n != 2 {
		t.Fatalf("failures: %d", n)
	}
	w = w.again()
	w.put(map[string]string{"a.c": "a", "generated.c": "g"})
	w.miss(RestoreOptions{}, "2 builds in a row failed")
	other := w.again()
	other.put(map[string]string{"a.c": "mended", "generated.c": "g"})
	other.hit(RestoreOptions{})
	other.saved(SaveOptions{Failed: true})
	if n := w.index("n").Build.Failures; n != 1 {
		t.Errorf("failures with other sources: %d", n)
	}
	other.hit(RestoreOptions{})
	other.saved(SaveOptions{})
	if n := w.index("n").Build.Failures; n != 0 {
		t.Errorf("failures after a build that succeeded: %d", n)
	}
}

// What was built is recorded with the hashes from before the build; a source that changed meanwhile is unknown, also
// when it was put back.
func TestSaveRecordsSourcesFromBeforeTheBuild(t *testing.T) {
	for name, reach := range map[string]bool{"hit": true, "miss": true, "outage": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(map[string]string{"build/a.o": "object"})
			w.first()
			w = w.again()
			w.put(map[string]string{"a.c": "a", "edited.c": "e", "back.c": "b", "gone.c": "g", "lib/x.c": "x", "l": "-> a.c"})
			for _, p := range []string{"a.c", "edited.c", "back.c"} {
				w.touch(p, 1e18)
			}
			s := w.cache.Store
			if !reach {
				w.cache.Store = &storetest.Faulty{Store: s, Fault: storetest.FailFrom(0, store.ErrUnavailable)}
			}
			o := RestoreOptions{}
			if name == "miss" {
				o.Name = "absent"
			}
			rep, err := w.restore(o)
			if (err != nil) == reach || rep.Hit != (name == "hit") {
				t.Fatalf("%v, %+v", err, rep)
			}
			w.cache.Store = s
			w.write("edited.c", "E")
			was := w.stat("back.c")
			w.write("back.c", "B")
			w.write("back.c", "b")
			w.touch("back.c", was.MTime)
			w.remove("gone.c")
			w.write("lib/new.c", "n")
			w.write("l", "-> edited.c")
			w.write("build/a.o", "another object")
			save := w.saved(SaveOptions{})
			unknown := []string{"back.c", "edited.c", "gone.c", "l", "lib"}
			if name == "hit" {
				unknown = append([]string{"."}, unknown...)
			}
			got := slices.DeleteFunc(slices.Clone(save.Unknown), func(s string) bool { return s == "." })
			if !slices.Equal(got, slices.DeleteFunc(unknown, func(s string) bool { return s == "." })) || save.HashedAfter {
				t.Errorf("unknown: %q, hashed after: %v", save.Unknown, save.HashedAfter)
			}
			x := w.index(cmpOr(o.Name, "n"))
			for _, s := range x.Sources {
				if s.Unknown != slices.Contains(save.Unknown, s.Path) {
					t.Errorf("%q is unknown: %v", s.Path, s.Unknown)
				}
			}
			// So a fresh tree with the sources as they were gets new times for them, and the old one for what is known.
			w = w.again()
			w.put(map[string]string{"a.c": "a", "edited.c": "e", "back.c": "b"})
			for _, p := range []string{"a.c", "edited.c", "back.c"} {
				w.touch(p, 1)
			}
			w.hit(o)
			for p, touched := range map[string]bool{"a.c": false, "edited.c": true, "back.c": true} {
				if newer := w.stat(p).MTime > w.stat("build/a.o").MTime; newer != touched {
					t.Errorf("%s is newer than the artifacts: %v", p, newer)
				}
			}
		})
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// A restore that ended before it had hashed the sources leaves the time of its beginning: what has changed since is
// unknown, whatever the hash says after the build.
func TestSaveAfterARestoreThatWasStopped(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a.c": "a", "b.c": "b", "build/a.o": "object"})
	w.first()
	w.tick()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := w.restoreIn(ctx, RestoreOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if r := w.receipt(); r == nil || len(r.Sources) != 0 {
		t.Fatalf("%+v", r)
	}
	w.tick()
	w.write("b.c", "written while the build ran")
	rep := w.saved(SaveOptions{})
	if !slices.Contains(rep.Unknown, "b.c") || slices.Contains(rep.Unknown, "a.c") || !rep.HashedAfter {
		t.Errorf("%+v", rep)
	}
}

func TestSaveLeavesOut(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.put(map[string]string{"build/x.log": "log", "build/sub/y.log": "log", "build/tmp/z": "z", "notes/n": "n"})
	w.saved(SaveOptions{Name: "n", Tree: Tree{
		Dirs: []string{"build"}, Exclude: []string{"*.log", "build/tmp"}, IgnoreSources: []string{"notes"},
	}})
	x := w.index("n")
	for _, e := range x.Entries {
		if strings.HasSuffix(e.Path, ".log") || strings.Contains(e.Path, "tmp") {
			t.Errorf("%s was saved", e.Path)
		}
	}
	for _, s := range x.Sources {
		if strings.HasPrefix(s.Path, "notes") || strings.HasPrefix(s.Path, "build") {
			t.Errorf("%s is a source", s.Path)
		}
	}
}

func TestSaveRefusesWrongUse(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	for name, o := range map[string]SaveOptions{
		"no directories":  {Name: "n"},
		"a bad name":      {Name: "\x00", Tree: build},
		"a bad fallback":  {Name: "n", Tree: build, Fallbacks: []string{""}},
		"a bad pattern":   {Name: "n", Tree: Tree{Dirs: []string{"/abs"}}},
		"a bad exclusion": {Name: "n", Tree: Tree{Dirs: []string{"build"}, Exclude: []string{"["}}},
		"a bad source":    {Name: "n", Tree: Tree{Dirs: []string{"build"}, IgnoreSources: []string{"["}}},
	} {
		if _, err := w.save(o); !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if keys := w.keys(""); len(keys) > 0 {
		t.Errorf("in the store: %q", keys)
	}
}

// A file that must not be read is named, and the old index stays.
func TestSaveOfUnreadableFile(t *testing.T) {
	if !asOther(t) {
		return
	}
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	was := w.get("index/n")
	for _, p := range []string{"build/a.o", "build/sub"} {
		w.must(os.Chmod(w.path(p), 0))
		_, err := w.save(SaveOptions{Name: "n", Tree: build})
		if !errors.Is(err, os.ErrPermission) || !errors.Is(err, ErrLocal) || !strings.Contains(err.Error(), filepath.Base(p)) {
			t.Errorf("%s: %v", p, err)
		}
		w.must(os.Chmod(w.path(p), 0o755))
	}
	if string(w.get("index/n")) != string(was) {
		t.Error("the index was replaced")
	}
}

// Files that change, grow, shrink or vanish while they are read: what is saved is a tree that was there at one moment.
func TestSaveOfATreeThatChanges(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"written":     func(w *world) { w.write("build/a.o", "OBJECT A") },
		"grows":       func(w *world) { w.write("build/a.o", "object a, and more") },
		"shrinks":     func(w *world) { w.write("build/a.o", "o") },
		"empty grows": func(w *world) { w.write("build/empty", "not any more") },
		"vanishes":    func(w *world) { w.remove("build/a.o") },
		"a link":      func(w *world) { w.remove("build/a.o"); w.write("build/a.o", "-> b.o") },
		"a directory": func(w *world) { w.remove("build/a.o"); w.write("build/a.o/", "") },
		"its folder":  func(w *world) { w.remove("build/sub"); w.write("build/sub", "a file now") },
		"renamed":     func(w *world) { w.must(os.Rename(w.path("build/b.o"), w.path("build/a.o"))) },
	} {
		for _, step := range []string{"chunk", "chunk put"} {
			t.Run(name+" at "+step, func(t *testing.T) {
				w := newWorld(t, nil)
				w.put(someTree())
				at(t, step, func() { change(w) })
				rep := w.first()
				if rep.Files != len(w.snapshot())-countDirs(w.snapshot())-4 {
					t.Errorf("%d files", rep.Files)
				}
				want := below(w.snapshot(), "build")
				w = w.again()
				w.hit(RestoreOptions{})
				if d := differ(want, below(w.snapshot(), "build")); d != "" {
					t.Error(d)
				}
			})
		}
	}
}

func countDirs(all map[string]string) (n int) {
	for _, line := range all {
		if strings.HasPrefix(line, "d") {
			n++
		}
	}
	return n
}

// A tree that was untouched when the walk came by is saved as it was restored, whatever becomes of it afterwards.
func TestSaveOfAnUntouchedTreeThatChanges(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"not":      func(*world) {},
		"written":  func(w *world) { w.write("build/a.o", "OBJECT A") },
		"added":    func(w *world) { w.write("build/late.o", "object") },
		"vanishes": func(w *world) { w.remove("build/a.o") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(someTree())
			w.first()
			w.hit(RestoreOptions{})
			want := below(w.snapshot(), "build")
			at(t, "index", func() { change(w) })
			rep := w.saved(SaveOptions{})
			if rep.Sent.Chunks != 0 || rep.Untouched == 0 {
				t.Errorf("%+v", rep)
			}
			o := w.again()
			o.hit(RestoreOptions{})
			if d := differ(want, below(o.snapshot(), "build")); d != "" {
				t.Error(d)
			}
		})
	}
}

// A store may ask for chunks as large as the format allows.
func TestSaveOfTheLargestChunks(t *testing.T) {
	w := newWorld(t, nil)
	f := NewFormat()
	f.Chunker.Min, f.Chunker.Max, f.Chunker.Bits = chunk.MaxSize, chunk.MaxSize, 20
	data, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	w.set(FormatPath, data)
	w.write("build/large", noise(1, 3*chunk.MaxSize+1))
	if rep := w.first(); rep.Sent.Chunks != 4 {
		t.Errorf("%+v", rep)
	}
}

// One that never holds still is not saved.
func TestSaveOfATreeThatNeverRests(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	was := w.get("index/n")
	var n atomic.Int32
	old := crash
	crash = func(step string) {
		if step == "chunk" {
			w.write("build/a.o", fmt.Sprint("object ", n.Add(1)))
		}
	}
	w.write("build/a.o", "changed")
	_, err := w.save(SaveOptions{Name: "n", Tree: build})
	crash = old
	if !errors.Is(err, ErrChanging) || !strings.Contains(err.Error(), "build/a.o") {
		t.Errorf("%v", err)
	}
	if string(w.get("index/n")) != string(was) {
		t.Error("the index was replaced")
	}
	w.first()
}

// The order in the store: no index refers to what is not there yet.
func TestSavePutsTheIndexLast(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	s := w.cache.Store
	var order []string
	w.cache.Requests = 1
	w.cache.Store = &storetest.Faulty{Store: s, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Put {
			order = append(order, c.Key)
		}
		return storetest.Fault{}
	}}
	w.first()
	for i, key := range order {
		if strings.HasPrefix(key, index.Prefix) != (i == len(order)-1) {
			t.Errorf("put %d of %d is %s", i, len(order), key)
		}
	}
	if len(order) < 5 {
		t.Errorf("puts: %q", order)
	}
}

// Every chunk has the ID of its bytes and is named in the index once it is there; equal contents are sent once.
func TestSaveSendsEqualContentsOnce(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 8 {
		w.write(fmt.Sprintf("build/%d/copy", i), noise(3, 3<<20)) // each a segment of its own
	}
	rep := w.first()
	x := w.index("n")
	ids := map[chunk.Key]bool{}
	for _, c := range x.Chunks {
		ids[c.Key] = true
	}
	if len(x.Chunks) != 8*len(ids) || rep.Sent.Chunks != len(ids) || len(w.keys("chunks/")) != len(ids) {
		t.Errorf("%d chunks, %d different ones, %d sent", len(x.Chunks), len(ids), rep.Sent.Chunks)
	}
}

// That no index can describe the tree is no damage of the store: nothing in there is invalid.
func TestSaveOfWhatNoIndexCanDescribe(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"build/file": "x"})
	w.cache.Version = strings.Repeat("1", index.MaxText+1)
	_, err := w.save(SaveOptions{Name: "n", Tree: build})
	if err == nil || errors.Is(err, index.ErrInvalid) || !strings.Contains(err.Error(), "describing the tree: ") {
		t.Errorf("%v", err)
	}
}
