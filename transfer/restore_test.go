package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbc/chunk"
	"nbc/index"
	"nbc/mtime"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// saved returns a world in which files were saved under the name "n", with dirs as the cache directories.
func savedWorld(t *testing.T, files map[string]string, dirs ...string) *world {
	t.Helper()
	w := newWorld(t, nil)
	w.put(files)
	if len(dirs) == 0 {
		dirs = build.Dirs
	}
	w.saved(SaveOptions{Name: "n", Tree: Tree{Dirs: dirs}})
	return w
}

func TestRestoreSetsTimes(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"same.c": "s", "changed.c": "c", "gone.c": "g", "dir/x": "x", "build/a.o": "a"})
	for _, p := range []string{"same.c", "changed.c", "dir/x", "dir", "build/a.o", "build"} {
		w.touch(p, 1_600_000_000_000_000_123)
	}
	w.first()
	w = w.again()
	w.put(map[string]string{"same.c": "s", "changed.c": "C", "new.c": "n", "dir/x": "x", "build/": ""})
	for _, p := range []string{"same.c", "changed.c", "new.c", "dir/x"} {
		w.touch(p, 1)
	}
	rep := w.hit(RestoreOptions{})
	if rep.Sources != (Sources{Unchanged: 3, Changed: 2, New: 1, Deleted: 1}) {
		t.Errorf("%+v", rep.Sources)
	}
	for _, p := range []string{"same.c", "dir/x", "dir", "build/a.o", "build"} {
		if got := w.stat(p).MTime; got != 1_600_000_000_000_000_123 {
			t.Errorf("%s has the time %d", p, got)
		}
	}
	now, err := probe(w.root)
	w.must(err)
	for _, p := range []string{"changed.c", "new.c", "."} {
		if got := w.stat(p).MTime; got > now || got < now-int64(time.Minute) {
			t.Errorf("%s has the time %d, it is %d now", p, got, now)
		}
	}
	w.clean()
}

// What is in a cache directory and was not put there by nbc is not touched, whatever it is.
func TestRestoreTouchesNothingInTheWay(t *testing.T) {
	for name, test := range map[string]struct {
		do     func(w *world)
		reason string // "" if it is not in the way
	}{
		"a file":            {func(w *world) { w.write("build/theirs", "x") }, "build/theirs was not put there"},
		"a deep file":       {func(w *world) { w.write("build/sub/dir/theirs", "x") }, "build/sub/dir/theirs was not put"},
		"a link":            {func(w *world) { w.write("build/l", "-> x") }, "build/l was not put there"},
		"a file of its own": {func(w *world) { w.write("build", "x") }, "build was not put there"},
		"a socket": {func(w *world) {
			w.must(os.Mkdir(w.path("build"), 0o755))
			w.must(unix.Mknod(w.path("build/s"), unix.S_IFSOCK|0o600, 0))
		}, "build/s is not a file"},
		"a pipe": {func(w *world) {
			w.must(os.Mkdir(w.path("build"), 0o755))
			w.must(unix.Mkfifo(w.path("build/p"), 0o600))
		}, "build/p is not a file"},
		"a pipe as the directory": {func(w *world) { w.must(unix.Mkfifo(w.path("build"), 0o600)) }, "build is not a file"},
		"a link that leads nowhere": {
			func(w *world) { w.write("build", "-> nowhere") }, "build is not a file",
		},
		"a link into the tree": {
			func(w *world) { w.write("src/x", "x"); w.write("build", "-> src") }, "build is not a file",
		},
		"an excluded file":  {func(w *world) { w.write("build/x.log", "x") }, "x.log was not put there"},
		"empty directories": {func(w *world) { w.write("build/a/b/", "") }, ""},
		"another directory": {func(w *world) { w.write("builds/a", "x") }, ""},
		"its own files":     {func(w *world) { w.hit(RestoreOptions{}) }, ""},
		"its own file, touched": {func(w *world) {
			w.hit(RestoreOptions{})
			w.write("build/a.o", "edited")
		}, "build/a.o was not put there by nbc, or was changed since"},
		"its own file, with a new name": {func(w *world) {
			w.hit(RestoreOptions{})
			w.must(os.Rename(w.path("build/a.o"), w.path("build/b.o")))
		}, "build/b.o was not put"},
	} {
		t.Run(name, func(t *testing.T) {
			w := savedWorld(t, map[string]string{"build/a.o": "object", "a.c": "a"}).again()
			w.put(map[string]string{"a.c": "a"})
			test.do(w)
			tree := Tree{Dirs: []string{"build"}, Exclude: []string{"*.log"}}
			if test.reason == "" {
				w.hit(RestoreOptions{Tree: tree})
				return
			}
			was := w.snapshotOfMost()
			w.miss(RestoreOptions{Tree: tree}, test.reason)
			if d := differ(was, w.snapshotOfMost()); d != "" {
				t.Errorf("the miss has touched\n%s", d)
			}
			w.hit(RestoreOptions{Tree: tree, Replace: true})
			if got := below(w.snapshot(), "build"); len(got) != 2 || w.read("build/a.o") != "object" {
				t.Errorf("after --replace: %v", got)
			}
			if strings.Contains(name, "into the tree") && w.read("src/x") != "x" {
				t.Error("a source was replaced")
			}
			w.clean()
		})
	}
}

// snapshotOfMost is a snapshot of a tree that may hold pipes and sockets, which cannot be read: of names and times.
func (w *world) snapshotOfMost() map[string]string {
	w.Helper()
	all := map[string]string{}
	w.must(filepath.WalkDir(w.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			all[p] = fmt.Sprint(fi.Mode(), fi.Size(), fi.ModTime().UnixNano())
		}
		return err
	}))
	return all
}

// Files that are as the new index wants them are moved, not written: they keep their inodes, and nothing is fetched.
func TestRestoreKeepsWhatItHas(t *testing.T) {
	w := newWorld(t, nil)
	w.put(someTree())
	w.first()
	first := w.again()
	first.hit(RestoreOptions{})
	was := map[string]index.Stat{}
	for p := range below(first.snapshot(), "build") {
		was[p] = first.stat(p)
	}
	// Another build's result.
	w.write("build/a.o", "another object a")
	w.write("build/sub/new.o", "new")
	w.must(os.Chmod(w.path("build/b.o"), 0o700))
	w.touch("build/empty", 1_500_000_000_000_000_000)
	w.remove("build/sub/07.o")
	w.write("build/to", "-> b.o")
	w.must(os.Link(w.path("build/sub/08.o"), w.path("build/sub/08b.o")))
	w.first()

	rep := first.hit(RestoreOptions{})
	if d := differ(below(w.snapshot(), "build"), below(first.snapshot(), "build")); d != "" {
		t.Fatalf("restored:\n%s", d)
	}
	kept := 0
	for p := range below(first.snapshot(), "build") {
		st, ok := was[p]
		switch p {
		case "build/a.o", "build/b.o", "build/empty", "build/to", "build/sub/08.o":
			if st.Ino == first.stat(p).Ino {
				t.Errorf("%s was kept", p)
			}
		case "build", "build/sub", "build/sub/new.o", "build/sub/08b.o":
		default:
			// Those that share a chunk with what has changed are not recognised.
			if ok && st.Ino == first.stat(p).Ino {
				kept++
			}
		}
	}
	if kept < 15 || rep.Fetched.Chunks >= rep.Chunks {
		t.Errorf("%d kept, %d chunks fetched of %d", kept, rep.Fetched.Chunks, rep.Chunks)
	}
	// The receipt proves kept files as well as written ones.
	if save := first.saved(SaveOptions{}); save.Untouched != save.Files-1-1 { // a link, and a hard link
		t.Errorf("%+v", save)
	}
	first.hit(RestoreOptions{})
	first.clean()
}

func TestRestoreSkipsDirectoriesWithoutAPlace(t *testing.T) {
	w := savedWorld(t, map[string]string{
		"packages/a/src": "a", "packages/a/dist/x": "xa", "packages/gone/src": "g", "packages/gone/dist/x": "xg",
	}, "packages/*/dist")
	w = w.again()
	w.put(map[string]string{"packages/a/src": "a"})
	tree := Tree{Dirs: []string{"packages/*/dist"}}
	rep := w.hit(RestoreOptions{Tree: tree})
	if !slices.Equal(rep.Roots, []string{"packages/a/dist"}) || !slices.Equal(rep.Skipped, []string{"packages/gone/dist"}) ||
		len(rep.Warnings) != 1 || rep.Files != 1 || rep.Bytes != 2 {
		t.Errorf("%+v", rep)
	}
	if _, err := os.Lstat(w.path("packages/gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("packages/gone: %v", err)
	}
	// A link in the place of the parent is none.
	w = w.again()
	w.put(map[string]string{"elsewhere/": "", "packages/a": "-> ../elsewhere"})
	w.miss(RestoreOptions{Tree: tree}, "has a place for packages/a/dist, packages/gone/dist")
	w.clean()
}

func TestRestoreOnlySomeDirectories(t *testing.T) {
	w := savedWorld(t, map[string]string{"a/x": noise(1, 300<<10), "b/y": noise(2, 300<<10), "c.lock": "c"}, "a", "b", "c.lock")
	other := w.again()
	rep := other.hit(RestoreOptions{Tree: Tree{Dirs: []string{"b", "c.lock"}}})
	if d := differ(below(w.snapshot(), "b", "c.lock"), below(other.snapshot(), "a", "b", "c.lock")); d != "" {
		t.Error(d)
	}
	if rep.Fetched.Chunks >= rep.Chunks || rep.Files != 2 {
		t.Errorf("%+v", rep)
	}
	other.again().miss(RestoreOptions{Tree: Tree{Dirs: []string{"d"}}}, "it holds none of these cache directories, only a, b")
}

// A cache directory that the index does not hold is cleared, so that artifacts of two builds are never mixed.
func TestRestoreClearsDirectoriesThatTheIndexLacks(t *testing.T) {
	both := Tree{Dirs: []string{"a", "b"}}
	w := savedWorld(t, map[string]string{"a/x": "x", "b/y": "y"}, "a", "b")
	w.hit(RestoreOptions{Tree: both})
	other := w.again()
	other.put(map[string]string{"a/x": "another x"})
	other.saved(SaveOptions{Name: "other", Tree: both})
	w.hit(RestoreOptions{Name: "other", Tree: both})
	if got := below(w.snapshot(), "a", "b"); len(got) != 2 || w.read("a/x") != "another x" {
		t.Errorf("%v", got)
	}
}

func TestRestoreHardLinks(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a/file": noise(1, 100<<10), "a/other": "o", "b/": "", "c/": ""})
	for _, l := range []string{"a/second", "b/third", "b/fourth", "c/fifth"} {
		w.must(os.Link(w.path("a/file"), w.path(l)))
	}
	w.must(os.Link(w.path("a/file"), w.path("root"))) // a cache directory that is a file, and one of the names
	all := []string{"a", "b", "c", "root"}
	rep := w.saved(SaveOptions{Name: "n", Tree: Tree{Dirs: all}})
	if rep.Bytes != 2*100<<10+1 { // root is saved on its own, since it may be restored without the others
		t.Errorf("%d bytes", rep.Bytes)
	}
	for _, dirs := range [][]string{all, {"b", "c"}, {"c"}, {"b"}, {"a", "c"}, {"root", "b"}} {
		other := w.again()
		rep := other.hit(RestoreOptions{Tree: Tree{Dirs: dirs}})
		want, got := below(w.snapshot(), dirs...), below(other.snapshot(), all...)
		for p := range want {
			if w.read2(p) != other.read2(p) || w.stat(p).MTime != other.stat(p).MTime || w.stat(p).Mode != other.stat(p).Mode {
				t.Errorf("%q restored %s as %s", dirs, p, got[p])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%q restored %v", dirs, got)
		}
		if slices.Contains(dirs, "b") && other.stat("b/third").Ino != other.stat("b/fourth").Ino {
			t.Errorf("%q: two names have become two files", dirs)
		}
		if slices.Contains(dirs, "b") && slices.Contains(dirs, "c") && other.stat("b/third").Ino != other.stat("c/fifth").Ino {
			t.Errorf("%q: names in two directories have become two files", dirs)
		}
		save := other.saved(SaveOptions{Name: fmt.Sprint(dirs), Tree: Tree{Dirs: dirs}})
		if save.Files != rep.Files {
			t.Errorf("%q: %d files restored, %d saved", dirs, rep.Files, save.Files)
		}
		other.clean()
	}
}

// read2 is read for directories as well.
func (w *world) read2(p string) string {
	if fi, err := os.Stat(w.path(p)); err == nil && fi.IsDir() {
		return "directory"
	}
	return w.read(p)
}

func TestRestoreInAnotherDirectory(t *testing.T) {
	w := savedWorld(t, map[string]string{"build/a.o": "object"})
	other := w.again()
	var rep *RestoreReport
	restore := func(moved bool) error {
		return other.in(func(b *Build) (err error) {
			rep, err = b.Restore(context.Background(), RestoreOptions{Name: "n", Tree: build, Moved: moved})
			return err
		})
	}
	w.must(restore(false))
	if rep.Hit || !strings.Contains(rep.Reason, "it was saved in "+w.index("n").Build.Root) {
		t.Errorf("%+v", rep)
	}
	w.must(restore(true))
	if !rep.Hit {
		t.Errorf("%+v", rep)
	}
}

func TestRestoreTakesTheFirstNameThatWorks(t *testing.T) {
	w := savedWorld(t, someTree())
	w.set("index/good", w.get("index/n"))
	w.set("index/garbage", []byte("garbage"))
	w.set("index/newer", append([]byte("nbcindex\xff\xff"), make([]byte, 100)...))
	empty := &index.Index{Epoch: 1}
	data, err := empty.Encode()
	w.must(err)
	w.set("index/dropped", data)
	s := &storetest.Faulty{Store: w.cache.Store, Fault: func(c storetest.Call) storetest.Fault {
		if c.Key == "index/secret" {
			return storetest.Fault{Before: fmt.Errorf("403: %w", store.ErrRefused)}
		}
		return storetest.Fault{}
	}}
	bad := []string{"garbage", "newer", "dropped", "secret"}
	other := newWorld(t, s)
	rep := other.hit(RestoreOptions{Name: "absent", Fallbacks: append(bad, "good", "never")})
	reasons := map[string]string{
		"absent": "no such name", "garbage": "not a valid index", "newer": "newer nbc", "dropped": "it was dropped", "secret": "403",
	}
	if rep.Used != "good" || len(rep.Refused) != 5 {
		t.Errorf("%+v", rep)
	}
	for _, r := range rep.Refused {
		if !strings.Contains(r.Reason, reasons[r.Name]) {
			t.Errorf("%s: %s", r.Name, r.Reason)
		}
	}
	// Without a name that works: a fault is an error, all others together are a miss.
	other = newWorld(t, s)
	for name, want := range map[string]error{
		"garbage": index.ErrInvalid, "newer": index.ErrVersion, "secret": store.ErrRefused, "dropped": nil, "absent": nil,
	} {
		rep, err := other.restore(RestoreOptions{Name: name, Fallbacks: []string{"absent too"}})
		if rep.Hit || want == nil && err != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v, %+v", name, err, rep)
		}
		if err == nil && !strings.Contains(rep.Reason, reasons[name]) {
			t.Errorf("%s: %s", name, rep.Reason)
		}
	}
}

// Absent, refused and unreachable are three different things, and none is taken for another.
func TestRestoreTellsOutagesFromMisses(t *testing.T) {
	w := savedWorld(t, someTree())
	for _, key := range []string{FormatPath, StatePath, "index/n", "chunks/"} {
		for _, kind := range []error{store.ErrUnavailable, store.ErrRefused} {
			s := &storetest.Faulty{Store: w.cache.Store, Fault: func(c storetest.Call) storetest.Fault {
				if strings.HasPrefix(c.Key, key) {
					return storetest.Fault{Before: fmt.Errorf("fault: %w", kind)}
				}
				return storetest.Fault{}
			}}
			other := newWorld(t, s)
			other.put(map[string]string{"a.c": "a"})
			was := other.snapshot()
			_, err := other.restore(RestoreOptions{})
			if !errors.Is(err, kind) || errors.Is(err, ErrLocal) {
				t.Errorf("%s: %v", key, err)
			}
			other.same(was)
			if r := other.receipt(); r == nil || r.Outcome != outcomeFailed || r.Absent || len(r.Sources) != 2 {
				t.Errorf("%s: receipt %+v", key, r)
			}
			other.clean()
		}
	}
}

// Errors of the tree are none of the store's, although the kernel has the same words for them.
func TestRestoreTellsTheTreeFromTheStore(t *testing.T) {
	if !asOther(t) {
		return
	}
	w := savedWorld(t, someTree()).again()
	w.put(map[string]string{"a.c": "a", "secret.c": "s", "dir/x": "x"})
	fallback := RestoreOptions{Fallbacks: []string{"n", "n"}}
	for name, test := range map[string]struct{ do, undo func() error }{
		"a source": {
			func() error { return os.Chmod(w.path("secret.c"), 0) }, func() error { return os.Chmod(w.path("secret.c"), 0o644) },
		},
		"a directory": {
			func() error { return os.Chmod(w.path("dir"), 0) }, func() error { return os.Chmod(w.path("dir"), 0o755) },
		},
		"the tree": {func() error { return os.Chmod(w.root, 0o555) }, func() error { return os.Chmod(w.root, 0o755) }},
	} {
		w.must(test.do())
		rep, err := w.restore(fallback)
		w.must(test.undo())
		if !errors.Is(err, ErrLocal) || !errors.Is(err, fs.ErrPermission) || len(rep.Refused) > 0 {
			t.Errorf("%s: %v, %+v", name, err, rep.Refused)
		}
	}
	if _, err := os.Lstat(w.path("build")); err == nil {
		t.Error("something was restored")
	}
	w.clean()
	w.hit(fallback)
}

// A chunk that is missing or damaged: the next name is used, and the next save sends it again, also when everything else
// says that the store has it.
func TestSaveHealsWhatARestoreFoundMissing(t *testing.T) {
	for name, damage := range map[string]func(w *world, key string){
		"missing":  func(w *world, key string) { w.must(w.cache.Store.Delete(context.Background(), key)) },
		"empty":    func(w *world, key string) { w.set(key, nil) },
		"cut off":  func(w *world, key string) { w.set(key, w.get(key)[:10]) },
		"longer":   func(w *world, key string) { w.set(key, append(w.get(key), 0)) },
		"huge":     func(w *world, key string) { w.set(key, make([]byte, 3<<20)) },
		"garbage":  func(w *world, key string) { w.set(key, []byte("garbage")) },
		"one bit":  func(w *world, key string) { w.set(key, storetest.FlipBit(12345)(w.get(key))) },
		"another":  func(w *world, key string) { w.set(key, chunk.Encode(nil, []byte("another chunk"))) },
		"the same": func(*world, string) {},
	} {
		t.Run(name, func(t *testing.T) {
			w := savedWorld(t, someTree())
			w.set("index/main", w.get("index/n")) // the fallback has other chunks
			w.write(bigFile, noise(99, 200<<10))
			w.saved(SaveOptions{Name: "n", Tree: build, Fallbacks: []string{"main"}})
			x := w.index("n")
			hurt := x.Chunks[slices.IndexFunc(x.Chunks, func(c index.Chunk) bool {
				return !slices.ContainsFunc(w.index("main").Chunks, func(m index.Chunk) bool { return m.Key == c.Key })
			})]
			damage(w, hurt.Path())
			want := w.snapshot()

			other := w.again()
			other.put(map[string]string{"a.c": "source a"})
			rep := other.hit(RestoreOptions{Fallbacks: []string{"main"}})
			if name == "the same" {
				if rep.Used != "n" {
					t.Errorf("used %s", rep.Used)
				}
				return
			}
			if rep.Used != "main" || !strings.Contains(rep.Refused[0].Reason, "a part of \""+bigFile) {
				t.Errorf("%+v", rep)
			}
			if r := other.receipt(); !slices.Equal(r.Damaged, []string{"n"}) {
				t.Errorf("damaged: %q", r.Damaged)
			}
			other.clean()
			// The build comes to the same result as the one that was lost.
			other.write(bigFile, noise(99, 200<<10))
			other.saved(SaveOptions{})
			again := w.again()
			again.put(map[string]string{"a.c": "source a"})
			if rep := again.hit(RestoreOptions{}); rep.Used != "n" {
				t.Errorf("%+v", rep)
			}
			if again.read(bigFile) != noise(99, 200<<10) {
				t.Error("another file")
			}

			// Without a fallback it is an error that names the file, and the tree is as it was.
			damage(w, other.index("n").Chunks[slices.IndexFunc(other.index("n").Chunks, func(c index.Chunk) bool {
				return c.ID == hurt.ID
			})].Path())
			third := w.again()
			third.put(map[string]string{"a.c": "source a"})
			was := third.snapshot()
			_, err := third.restore(RestoreOptions{})
			if !errors.Is(err, ErrMissing) && !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), bigFile) {
				t.Errorf("%v", err)
			}
			third.same(was)
			third.clean()
			_ = want
			// And a cold build heals it.
			third.put(someTree())
			third.write(bigFile, noise(99, 200<<10))
			third.saved(SaveOptions{})
			w.again().hit(RestoreOptions{})
		})
	}
}

// An index whose chunks have gone since it was read may have been replaced: it is read once more.
func TestRestoreReadsTheIndexAgain(t *testing.T) {
	w := savedWorld(t, someTree())
	old, first := w.get("index/n"), w.index("n")
	w.write(bigFile, noise(99, 200<<10))
	w.first()
	newer := w.get("index/n")
	want := w.snapshot()
	for _, c := range first.Chunks {
		if !slices.ContainsFunc(w.index("n").Chunks, func(n index.Chunk) bool { return n.Key == c.Key }) {
			w.must(w.cache.Store.Delete(context.Background(), c.Path()))
		}
	}
	w.set("index/n", old)
	reads := 0
	s := w.cache.Store
	other := newWorld(t, &storetest.Faulty{Store: s, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Get && strings.HasPrefix(c.Key, "chunks/") && reads == 0 {
			reads++
			w.set("index/n", newer)
		}
		return storetest.Fault{}
	}})
	other.cache.Requests = 1
	other.hit(RestoreOptions{})
	if d := differ(below(want, "build"), below(other.snapshot(), "build")); d != "" {
		t.Error(d)
	}
	other.clean()
}

func TestRestoreGuardsAgainstClocksThatRunAhead(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a.c": "a", "same.c": "s", "build/a.o": "object", "build/old.o": "old"})
	now, err := probe(w.root)
	w.must(err)
	ahead := now + int64(time.Hour)
	w.touch("build/a.o", ahead)
	w.touch("build/old.o", ahead-int64(time.Minute))
	w.touch("same.c", ahead-int64(2*time.Minute))
	w.first()
	fresh := func() *world {
		o := w.again()
		o.put(map[string]string{"a.c": "A", "same.c": "s"})
		return o
	}
	o := fresh()
	was := o.snapshot()
	o.miss(RestoreOptions{}, "newer than the clock")
	o.same(was)
	o.clean()
	for name, opts := range map[string]RestoreOptions{
		"shift": {OnSkew: mtime.Shift}, "two hours": {Times: mtime.TwoHours},
	} {
		o = fresh()
		rep := o.hit(opts)
		a, old, same, changed := o.stat("build/a.o").MTime, o.stat("build/old.o").MTime, o.stat("same.c").MTime, o.stat("a.c").MTime
		if a-old != int64(time.Minute) || old-same != int64(time.Minute) || changed <= a || rep.Shifted >= 0 {
			t.Errorf("%s: %d %d %d %d, %v", name, a, old, same, changed, rep.Shifted)
		}
		if age := time.Duration(changed - a); age < 2*time.Hour || age > 2*time.Hour+time.Minute {
			t.Errorf("%s: the newest is %v old", name, age)
		}
		if rep := o.saved(SaveOptions{Name: "another", Tree: build}); rep.Untouched != 2 {
			t.Errorf("%s: %+v", name, rep)
		}
	}
	// Two seconds are waited for, or more, if a busy machine needs them to save and to look.
	w.touch("build/a.o", now)
	w.touch("build/old.o", now)
	for ahead := 2 * time.Second; ; ahead *= 2 {
		began := time.Now()
		now, err = probe(w.root)
		w.must(err)
		w.touch("same.c", now+int64(ahead))
		w.saved(SaveOptions{Name: "n", Tree: build})
		o = fresh()
		rep := o.hit(RestoreOptions{})
		if rep.Waited <= 0 && time.Since(began) > ahead && ahead < 8*time.Second {
			continue
		}
		if rep.Waited <= 0 || o.stat("a.c").MTime <= o.stat("same.c").MTime {
			t.Errorf("waited %v", rep.Waited)
		}
		break
	}
	// The wait ends with the context.
	now, err = probe(w.root)
	w.must(err)
	w.touch("same.c", now+int64(8*time.Second))
	w.saved(SaveOptions{Name: "n", Tree: build})
	o = fresh()
	was = o.snapshot()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	promptly(t, 5*time.Second, func() {
		if _, err := o.restoreIn(ctx, RestoreOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	o.same(was)
	o.clean()
}

// A source that is written to while a restore is under way gets the present, and counts as unknown: nobody can tell
// which bytes the build reads.
func TestRestoreWhileSourcesChange(t *testing.T) {
	for _, step := range []string{"work made", "clear", "times", "merge", "placed", "finish root", "receipt"} {
		for name, change := range map[string]func(w *world){
			"written": func(w *world) { w.write("a.c", "B") },
			"written, time put back": func(w *world) {
				was := w.stat("a.c")
				w.write("a.c", "B")
				w.touch("a.c", was.MTime)
			},
			"replaced": func(w *world) { w.write("new", "B"); w.must(os.Rename(w.path("new"), w.path("a.c"))) },
		} {
			t.Run(name+" at "+step, func(t *testing.T) {
				w := savedWorld(t, map[string]string{"a.c": "A", "b.c": "b", "build/a.o": "object A"})
				w.tick()
				w = w.again()
				w.put(map[string]string{"a.c": "A", "b.c": "b"})
				w.touch("a.c", 1)
				w.touch("b.c", 1)
				at(t, step, func() { w.tick(); change(w) })
				w.hit(RestoreOptions{})
				if step != "receipt" && !strings.Contains(name, "put back") && w.stat("a.c").MTime <= w.stat("build/a.o").MTime {
					t.Error("a.c is older than what was built from another one")
				}
				w.write("build/a.o", "object B")
				w.tick()
				rep := w.saved(SaveOptions{})
				x := w.index("n")
				i, _ := findSource(x.Sources, "a.c")
				if !x.Sources[i].Unknown {
					t.Errorf("a.c is known: %+v; %+v", x.Sources[i], rep)
				}
				if i, _ := findSource(x.Sources, "b.c"); x.Sources[i].Unknown {
					t.Error("b.c is unknown")
				}
			})
		}
	}
}

// Whenever a restore is stopped, the tree is as it was before, times included, or as it should be.
func TestRestoreStoppedAtEveryStep(t *testing.T) {
	saved := newWorld(t, nil)
	saved.put(someTree())
	saved.put(map[string]string{"other/x": "x", "other/y/z": "z", "single": "a file", "linked/q": "q"})
	dirs := Tree{Dirs: []string{"build", "other", "single", "linked"}}
	saved.saved(SaveOptions{Name: "n", Tree: dirs})
	older := newWorld(t, saved.cache.Store)
	older.put(someTree())
	older.put(map[string]string{"other/x": "older x", "other/w/v": "v", "single": "an older file", "linked/o": "o"})
	older.must(os.Chmod(older.path("other/w"), 0o755))
	older.saved(SaveOptions{Name: "older", Tree: dirs})
	for name, prepare := range map[string]func(w *world){
		"fresh tree": func(*world) {},
		"older tree": func(w *world) {
			w.must(os.Symlink(t.TempDir(), w.path("linked")))
			w.hit(RestoreOptions{Name: "older", Tree: dirs})
		},
		"replace": func(w *world) {
			w.put(map[string]string{"build/theirs": "t", "other": "a file", "single/dir/x": "x"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			stopped := 0
			for n := 0; ; n++ {
				w := saved.again()
				w.put(map[string]string{"a.c": "edited", "b.c": "source b", "lib/c.c": "source c", "new.c": "n"})
				for _, p := range []string{"a.c", "b.c", "lib", "new.c", "."} {
					w.touch(p, 1_000_000_000)
				}
				prepare(w)
				was, target := w.snapshot(), ""
				if to, err := filepath.EvalSymlinks(w.path("linked")); err == nil {
					target = to
				}
				wasTarget := map[string]string{}
				if target != "" {
					wasTarget = snapshot(t, target)
				}
				ctx, cancel := context.WithCancelCause(context.Background())
				stop := errors.New("stopped by the test")
				steps, at := 0, ""
				old := crash
				crash = func(step string) {
					if steps == n {
						at = step
						cancel(stop)
					}
					steps++
				}
				files := descriptors(t)
				rep, err := w.restoreIn(ctx, RestoreOptions{Tree: dirs, Replace: name == "replace"})
				crash = old
				cancel(nil)
				if got := descriptors(t); got > files {
					t.Fatalf("stopped at %q (%d): %d descriptors are left open", at, n, got-files)
				}
				w.clean()
				if err == nil && !rep.Hit {
					t.Fatalf("stopped at %q (%d): %+v", at, n, rep)
				}
				if err != nil {
					stopped++
					if !errors.Is(err, stop) && !errors.Is(err, context.Canceled) {
						t.Fatalf("stopped at %q (%d): %v", at, n, err)
					}
					if d := differ(was, w.snapshot()); d != "" {
						t.Fatalf("stopped at %q (%d):\n%s", at, n, d)
					}
					if target != "" {
						if d := differ(wasTarget, snapshot(t, target)); d != "" {
							t.Fatalf("stopped at %q (%d), behind the link:\n%s", at, n, d)
						}
					}
				} else {
					checkRestored(w, saved, dirs)
				}
				if steps <= n {
					break
				}
			}
			if stopped < 10 {
				t.Errorf("stopped %d times only", stopped)
			}
		})
	}
}

// checkRestored fails unless w's cache directories are those of saved.
func checkRestored(w, saved *world, tree Tree) {
	w.Helper()
	for _, d := range tree.Dirs {
		a, err := filepath.EvalSymlinks(saved.path(d))
		w.must(err)
		b, err := filepath.EvalSymlinks(w.path(d))
		w.must(err)
		if d := differ(snapshot(w, a), snapshot(w, b)); d != "" {
			w.Fatalf("restored:\n%s", d)
		}
	}
}

func TestRestoreWhereTheReceiptCannotBeRemoved(t *testing.T) {
	if !asOther(t) {
		return
	}
	w := savedWorld(t, map[string]string{"build/a.o": "object", "a.c": "a"})
	w.hit(RestoreOptions{})
	w.must(os.Chmod(filepath.Dir(w.state), 0o500))
	was := w.snapshot()
	_, err := w.restore(RestoreOptions{})
	w.must(os.Chmod(filepath.Dir(w.state), 0o700))
	if !errors.Is(err, ErrLocal) || !strings.Contains(err.Error(), "removing the old receipt") {
		t.Errorf("%v", err)
	}
	w.same(was)
	// The old receipt speaks of an earlier build. It proves nothing that is not so.
	w.write("a.c", "edited since")
	w.write("build/a.o", "another object")
	rep := w.saved(SaveOptions{})
	if !slices.Equal(rep.Unknown, []string{"a.c"}) {
		t.Errorf("%+v", rep)
	}
}

func TestOpenRefuses(t *testing.T) {
	w := newWorld(t, nil)
	w.write("file", "")
	for name, test := range map[string]struct {
		root, state string
		want        error
	}{
		"no tree":                {w.path("absent"), w.state, ErrUsage},
		"a file":                 {w.path("file"), w.state, ErrUsage},
		"a receipt in the tree":  {w.root, w.path("receipt"), ErrUsage},
		"a state that is a file": {w.root, w.path("file") + "/x/receipt", ErrUsage},
		"a state below a file":   {w.root, filepath.Join(t.TempDir(), "f", "x"), nil},
	} {
		b, err := w.cache.Open(test.root, test.state, false)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			w.must(b.Close())
		}
	}
	b := w.open(false)
	if _, err := w.cache.Open(w.root, w.state, false); !errors.Is(err, ErrBusy) {
		t.Errorf("twice: %v", err)
	}
	w.must(b.Close())
	w.must(w.in(func(*Build) error { return nil }))
}

func TestOpenWhereTheStateCannotBeWritten(t *testing.T) {
	if !asOther(t) {
		return
	}
	w := newWorld(t, nil)
	w.must(os.MkdirAll(filepath.Dir(w.state), 0o700))
	w.must(os.Chmod(filepath.Dir(w.state), 0o500))
	_, err := w.cache.Open(w.root, w.state, true)
	if !errors.Is(err, ErrLocal) || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
	w.must(os.Chmod(filepath.Dir(w.state), 0o700))

	// The default is somewhere else then.
	home := t.TempDir()
	t.Setenv("XDG_STATE_HOME", home)
	t.Setenv("TMPDIR", t.TempDir())
	path, err := DefaultState(w.root)
	if err != nil || filepath.Dir(path) != filepath.Join(home, "nbc") {
		t.Errorf("%s, %v", path, err)
	}
	w.must(os.Chmod(filepath.Join(home, "nbc"), 0o500))
	path, err = DefaultState(w.root)
	if err != nil || !within(path, os.TempDir()) {
		t.Errorf("%s, %v", path, err)
	}
	w.must(os.Chmod(filepath.Join(home, "nbc"), 0o700))
	w.must(os.Chmod(filepath.Dir(path), 0o777))
	t.Setenv("XDG_STATE_HOME", "/proc/nothing")
	if path, err := DefaultState(w.root); err == nil {
		t.Errorf("a directory that others can write to is used: %s", path)
	}
}

// A restore by another receipt in the same tree finds the first one's work directory.
func TestRestoreTwiceAtOnceInOneTree(t *testing.T) {
	w := savedWorld(t, someTree()).again()
	second := *w
	second.state = filepath.Join(t.TempDir(), "another")
	met := false
	at(t, "clear", func() {
		met = true
		was := w.snapshot()
		if _, err := second.restore(RestoreOptions{}); !errors.Is(err, ErrBusy) {
			t.Errorf("%v", err)
		}
		if d := differ(below(was, "a.c"), below(w.snapshot(), "a.c")); d != "" {
			t.Error(d)
		}
	})
	w.hit(RestoreOptions{})
	if !met {
		t.Fatal("they did not meet")
	}
	w.clean()
	second.miss(RestoreOptions{}, "was not put there by nbc")
}

// What a killed restore has left is found without its journal, and what is somebody's is not touched with one.
func TestRestoreCleansUpAfterAnother(t *testing.T) {
	w := savedWorld(t, someTree()).again()
	left := map[string]string{
		".nbc-work/old/0/a.o": "old", ".nbc-work/new/1": "new", ".nbc-probe-0123456789abcdef": "x",
	}
	w.put(left)
	w.hit(RestoreOptions{})
	w.clean()

	w.put(left)
	other := filepath.Join(t.TempDir(), workName)
	w.must(os.MkdirAll(filepath.Join(other, "new"), 0o700))
	w.in(func(b *Build) error {
		return b.state.writeJournal(journal{Work: []string{w.path(workName), other, "/nonexistent/.nbc-work"}})
	})
	alive, err := openWork(other)
	w.must(err)
	log := w.logged()
	w.must(w.in(func(*Build) error { return nil }))
	if !strings.Contains(log.String(), "cleaned up") {
		t.Errorf("log: %s", log)
	}
	if _, err := os.Lstat(w.path(workName)); err == nil {
		t.Error("the dead one is still there")
	}
	if _, err := os.Lstat(filepath.Join(other, "new")); err != nil {
		t.Errorf("the one that is alive is gone: %v", err)
	}
	w.must(alive.remove())

	for _, bad := range []string{"", "garbage", `{"version":2,"work":["/etc"]}`} {
		w.must(os.WriteFile(w.state+".journal", []byte(bad), 0o600))
		w.must(os.WriteFile(w.state+".tmp", []byte("x"), 0o600))
		w.must(os.WriteFile(w.state+".journal.tmp", []byte("x"), 0o600))
		w.must(w.in(func(*Build) error { return nil }))
		w.clean()
	}
}
