package transfer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"nbc/index"
	"nbc/transfer/store/storetest"
)

var big = flag.Bool("big", false, "test with trees of many gigabytes, too")

// roundTrip saves dirs, restores them into a fresh tree, and compares. A second save there reads nothing, and a second
// restore moves what is there.
func (w *world) roundTrip(dirs ...string) *world {
	w.Helper()
	tree := Tree{Dirs: dirs}
	w.saved(SaveOptions{Name: "n", Tree: tree})
	other := w.again()
	rep := other.hit(RestoreOptions{Tree: tree})
	want := below(w.snapshot(), rep.Roots...)
	if len(want) == 0 {
		w.Fatal("nothing was saved")
	}
	if d := differ(want, below(other.snapshot(), rep.Roots...)); d != "" {
		w.Fatalf("restored:\n%s", d)
	}
	if rep := other.saved(SaveOptions{}); rep.Sent.Chunks != 0 || rep.Sent.Bytes != int64(len(other.get("index/n"))) {
		w.Fatalf("the second save: %+v", rep)
	}
	other.hit(RestoreOptions{Tree: tree})
	if d := differ(want, below(other.snapshot(), rep.Roots...)); d != "" {
		w.Fatalf("restored once more:\n%s", d)
	}
	other.clean()
	return other
}

var oddNames = []string{
	"with space", "new\nline", "-leading", "--exclude", "tab\t", "back\\slash", "quo\"te", "star*", "[a]", "{a,b}", "~", "$HOME",
	"\xff\xfe not UTF-8", "\x01", "é", "e\u0301", "...", "..a", ".hidden", " ", "con.", "a:b", strings.Repeat("n", 255),
	strings.Repeat("ü", 127), "!", "#", "%2f", ",tmp-x",
}

func TestTreeWithOddNames(t *testing.T) {
	w := newWorld(t, nil)
	for i, name := range oddNames {
		w.write("build/"+name, fmt.Sprint("file ", i))
		w.write("build/dir/"+name+"/"+name, fmt.Sprint("file ", i))
		w.write("build/link/"+name, "-> "+name)
		w.write("src/"+name, "source")
		w.touch("src/"+name, 1_600_000_000_000_000_000)
	}
	w.roundTrip("build")
	w.first()
	other := w.again()
	for _, name := range oddNames {
		other.write("src/"+name, "source")
	}
	if rep := other.hit(RestoreOptions{}); rep.Sources.Unchanged != len(oddNames)+2 {
		t.Errorf("%+v", rep.Sources)
	}
	for _, name := range oddNames {
		if got := other.stat("src/" + name).MTime; got != 1_600_000_000_000_000_000 {
			t.Errorf("%q has the time %d", name, got)
		}
	}
	// As names of cache directories, and of caches.
	for i, name := range oddNames {
		w := newWorld(t, w.cache.Store)
		w.write(name+"/file", "x")
		pattern := strings.NewReplacer(`\`, `\\`, "*", `\*`, "[", `\[`, "{", `\{`, "}", `\}`).Replace(name)
		w.roundTrip(pattern)
		if _, err := index.Path(name); err == nil && len(name) < 60 {
			w.saved(SaveOptions{Name: name, Tree: Tree{Dirs: []string{pattern}}})
			w.again().hit(RestoreOptions{Name: name, Tree: Tree{Dirs: []string{pattern}}})
		} else if i == 0 {
			t.Errorf("%q is no cache name: %v", name, err)
		}
	}
}

func TestTreeOfAllKinds(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{
		"build/empty": "", "build/none/": "", "build/deep/er/and/deeper/": "", "build/file": "x",
		"build/dangling": "-> nowhere", "build/absolute": "-> /etc/hostname", "build/todir": "-> none", "build/up": "-> ../..",
		"build/loop": "-> loop", "build/long": "-> " + strings.Repeat("x/", 2000),
	})
	for mode := range fs.FileMode(0o1000) {
		if mode%37 == 0 || mode&0o700 == mode {
			w.write(fmt.Sprintf("build/modes/%03o", mode), fmt.Sprint(mode))
			w.must(os.Chmod(w.path(fmt.Sprintf("build/modes/%03o", mode)), mode))
			w.write(fmt.Sprintf("build/dirmodes/%03o/x", mode|0o500), "x")
			w.must(os.Chmod(w.path(fmt.Sprintf("build/dirmodes/%03o", mode|0o500)), mode|0o500))
		}
	}
	for i, ns := range []int64{1, 999_999_999, 1_000_000_000, 1_000_000_001, 4_294_967_296_123_456_789} {
		p := fmt.Sprintf("build/times/%d", i)
		w.write(p, "x")
		w.touch(p, ns)
		w.write(p+"d/", "")
		w.touch(p+"d", ns)
	}
	w.must(os.Chmod(w.path("build"), 0o751))
	needRoot(t) // files without permissions are for root
	// What is before the first second after the epoch would mean something else to make.
	w.saved(SaveOptions{Name: "n", Tree: build})
	other := w.again()
	other.miss(RestoreOptions{}, "newer than the clock")
	w.remove("build/times/4")
	w.remove("build/times/4d")
	w.saved(SaveOptions{Name: "n", Tree: build})
	other.hit(RestoreOptions{})
	if got := other.stat("build/times/0").MTime; got != 1_000_000_000 {
		t.Errorf("the time 1 became %d", got)
	}
	for _, p := range []string{"0", "0d", "1", "1d"} {
		w.touch("build/times/"+p, 1_000_000_000)
	}
	w.roundTrip("build")
}

// Sockets, pipes and devices are no artifacts. They are left out, and that is said; not so of those among the sources.
func TestTreeWithSocketsAndPipes(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"build/file": "x", "build/sub/file": "y"})
	w.must(unix.Mknod(w.path("build/socket"), unix.S_IFSOCK|0o600, 0))
	w.must(unix.Mkfifo(w.path("build/sub/pipe"), 0o600))
	w.must(unix.Mkfifo(w.path("pipe"), 0o600)) // among the sources
	left := []string{"build/socket", "build/sub/pipe"}
	if os.Getuid() == 0 && unix.Mknod(w.path("build/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) == nil {
		left = append(left, "build/null")
	}
	log := w.logged()
	promptly(t, time.Minute, func() {
		rep := w.first()
		for _, p := range left {
			if !slices.ContainsFunc(rep.Warnings, func(s string) bool { return strings.HasPrefix(s, p+" is left out") }) {
				t.Errorf("no warning of %s: %q", p, rep.Warnings)
			}
			if !strings.Contains(log.String(), p) {
				t.Errorf("%s is not in the log", p)
			}
		}
		if rep.Files != 2 || len(rep.Warnings) != len(left) {
			t.Errorf("%+v", rep)
		}
	})
	other := w.again()
	other.hit(RestoreOptions{})
	if got := below(other.snapshot(), "build"); len(got) != 4 {
		t.Errorf("%v", got)
	}
}

// Read-only files and directories are moved and removed by their owner, who is not root.
func TestTreeThatIsReadOnly(t *testing.T) {
	if !asOther(t) {
		return
	}
	w := newWorld(t, nil)
	readOnly := func(w *world) {
		for _, p := range []string{"build/sub/deep/file", "build/sub/file", "build/file", "build/sub/deep", "build/sub", "build", "single"} {
			fi, err := os.Stat(w.path(p))
			w.must(err)
			w.must(os.Chmod(w.path(p), fi.Mode().Perm()&^0o222))
		}
	}
	w.put(map[string]string{
		"build/file": "f", "build/sub/file": "g", "build/sub/deep/file": "h", "build/other/x": "x", "single": "s",
		"build/kept/with/file": noise(4, 200<<10),
	})
	readOnly(w)
	dirs := []string{"build", "single"}
	w.roundTrip(dirs...)
	tree := Tree{Dirs: dirs}
	older := w.again()
	older.put(map[string]string{
		"build/file": "older", "build/sub/file": "g", "build/sub/deep/file": "h", "single": "older", "build/kept/with/file": noise(4, 200<<10),
	})
	older.saved(SaveOptions{Name: "older", Tree: tree})
	// Stopped at every step, over an older tree that is read-only as well.
	stopped := 0
	for n := 0; ; n++ {
		o := w.again()
		o.hit(RestoreOptions{Name: "older", Tree: tree})
		readOnly(o)
		o.saved(SaveOptions{Name: "theirs", Tree: tree})
		was := o.snapshot()
		ctx, cancel := context.WithCancel(context.Background())
		steps, at := 0, ""
		old := crash
		crash = func(step string) {
			if steps == n {
				at = step
				cancel()
			}
			steps++
		}
		rep, err := o.restoreIn(ctx, RestoreOptions{Tree: tree})
		crash = old
		cancel()
		o.clean()
		switch {
		case err != nil:
			stopped++
			if d := differ(was, o.snapshot()); d != "" {
				t.Fatalf("stopped at %q (%d), %v:\n%s", at, n, err, d)
			}
		case !rep.Hit:
			t.Fatalf("stopped at %q (%d): %+v", at, n, rep)
		default:
			if d := differ(below(w.snapshot(), dirs...), below(o.snapshot(), dirs...)); d != "" {
				t.Fatalf("stopped at %q (%d):\n%s", at, n, d)
			}
		}
		if steps <= n {
			break
		}
		w.must(removeTree(o.root))
	}
	if stopped < 10 {
		t.Errorf("stopped %d times only", stopped)
	}
	w.must(removeTree(w.root))
}

// sparse makes a file of that size with a few bytes at several places, and holes between.
func (w *world) sparse(p string, size int64) {
	w.Helper()
	w.write(p, "begins")
	f, err := os.OpenFile(w.path(p), os.O_WRONLY, 0)
	w.must(err)
	for _, at := range []int64{size / 3, size/2 + 12345, size - 4} {
		_, err := f.WriteAt([]byte("data"), at)
		w.must(err)
	}
	w.must(f.Close())
}

func TestTreeWithSparseFiles(t *testing.T) {
	if elsewhere(t) {
		return
	}
	size := int64(200 << 20)
	if *big {
		size = 6 << 30
	}
	w := newWorld(t, dirStore(t, t.TempDir()))
	w.sparse("build/sparse", size)
	w.write("build/zeros", string(make([]byte, 1<<20)))
	rep := w.first()
	if rep.Sent.Bytes > 1<<20 {
		t.Errorf("%d bytes were sent", rep.Sent.Bytes)
	}
	other := w.again()
	other.hit(RestoreOptions{})
	var st unix.Stat_t
	w.must(unix.Stat(other.path("build/sparse"), &st))
	if st.Size != size || st.Blocks*512 > 8<<20 {
		t.Errorf("%d bytes take %d on the disk", st.Size, st.Blocks*512)
	}
	if !*big {
		w.sameFile(other, "build/sparse")
	}
	w.sameFile(other, "build/zeros")
}

// sameFile compares a file with that of another tree.
func (w *world) sameFile(o *world, p string) {
	w.Helper()
	if w.read(p) != o.read(p) || w.stat(p).MTime != o.stat(p).MTime || w.stat(p).Mode != o.stat(p).Mode {
		w.Errorf("%s is another file", p)
	}
}

// A file of several gigabytes that do not repeat.
func TestTreeOfGigabytes(t *testing.T) {
	if !*big {
		t.Skip("-big is not given")
	}
	w := newWorld(t, dirStore(t, t.TempDir()))
	w.write("build/", "")
	f, err := os.Create(w.path("build/big"))
	w.must(err)
	r := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 1<<20)
	for range 5 << 10 {
		_, _ = r.Read(buf)
		_, err := f.Write(buf)
		w.must(err)
	}
	w.must(f.Close())
	w.first()
	other := w.again()
	other.hit(RestoreOptions{})
	a, err := os.Open(w.path("build/big"))
	w.must(err)
	b, err := os.Open(other.path("build/big"))
	w.must(err)
	second := make([]byte, 1<<20)
	for i := range 5 << 10 {
		_, err := a.Read(buf)
		w.must(err)
		_, err = b.Read(second)
		w.must(err)
		if string(buf) != string(second) {
			t.Fatalf("another megabyte %d", i)
		}
	}
	w.must(errors.Join(a.Close(), b.Close()))
}

// deepTree makes directories whose path is longer than the kernel takes, with a file in every tenth.
func deepTree(t *testing.T, top string, depth int) {
	t.Helper()
	root, err := os.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		name := fmt.Sprintf("directory-%03d-%s", i, strings.Repeat("x", 30))
		err := root.Mkdir(name, 0o755)
		if err == nil && i%10 == 0 {
			err = errors.Join(
				root.WriteFile("file", []byte(fmt.Sprint("in ", i)), 0o640), root.Symlink("file", "link"),
				root.WriteFile("second", []byte(strings.Repeat("y", i)), 0o600), root.Link("second", "third"))
		}
		var next *os.Root
		if err == nil {
			next, err = root.OpenRoot(name)
		}
		if err = errors.Join(err, root.Close()); err != nil {
			t.Fatal(err)
		}
		root = next
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
}

// deepSnapshot is a snapshot by way of directories alone.
func deepSnapshot(t *testing.T, dir *os.Root, path string, all map[string]string) {
	t.Helper()
	f, err := dir.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	list, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		fi, err := dir.Lstat(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprint(fi.Mode())
		switch {
		case fi.IsDir():
			sub, err := dir.OpenRoot(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			deepSnapshot(t, sub, path+"/"+e.Name(), all)
			if err := sub.Close(); err != nil {
				t.Fatal(err)
			}
			line += fi.ModTime().String()
		case fi.Mode().IsRegular():
			data, err := dir.ReadFile(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprint(fi.ModTime(), string(data))
		}
		all[path+"/"+e.Name()] = line
	}
}

func deepMap(t *testing.T, top string) map[string]string {
	t.Helper()
	root, err := os.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	deepSnapshot(t, root, "", all)
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTreeWithPathsBeyondPathMax(t *testing.T) {
	if !asOther(t) {
		return
	}
	w := newWorld(t, nil)
	w.write("build/", "")
	w.write("src/", "")
	deepTree(t, w.path("build"), 150)
	deepTree(t, w.path("src"), 150)
	w.first()
	want := deepMap(t, w.path("build"))
	other := w.again()
	other.write("src/", "")
	deepTree(t, other.path("src"), 150)
	rep := other.hit(RestoreOptions{})
	if rep.Files != 15*4 || rep.Sources.Changed != 0 || rep.Sources.New != 0 {
		t.Errorf("%+v", rep)
	}
	if d := differ(want, deepMap(t, other.path("build"))); d != "" {
		t.Errorf("restored:\n%.2000s", d)
	}
	if rep := other.saved(SaveOptions{}); rep.Sent.Chunks != 0 || len(rep.Unknown) > 0 {
		t.Errorf("%+v", rep)
	}
	other.hit(RestoreOptions{})
	if d := differ(want, deepMap(t, other.path("build"))); d != "" {
		t.Errorf("restored once more:\n%.2000s", d)
	}
	// A stop takes back what was staged.
	ctx, cancel := context.WithCancel(context.Background())
	at(t, "clear", cancel)
	if _, err := other.restoreIn(ctx, RestoreOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if d := differ(want, deepMap(t, other.path("build"))); d != "" {
		t.Errorf("after a stop:\n%.2000s", d)
	}
	if list, err := os.ReadDir(other.root); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	w.must(errors.Join(removeTree(w.root), removeTree(other.root)))
}

func TestTreeOfManyFiles(t *testing.T) {
	n := 5000
	if *big {
		n = 100_000
	}
	base, err := os.MkdirTemp("/dev/shm", "nbc-many-")
	if err != nil {
		base = t.TempDir()
	}
	defer func() {
		if err := removeTree(base); err != nil {
			t.Error(err)
		}
	}()
	w := newWorld(t, nil)
	w.root = filepath.Join(base, "a")
	for i := range n {
		p := filepath.Join(w.root, fmt.Sprintf("build/%02d/%02d", i%97, i%13))
		if i < 97*13 {
			w.must(os.MkdirAll(p, 0o755))
		}
		w.must(os.WriteFile(filepath.Join(p, fmt.Sprintf("f%06d", i)), []byte(fmt.Sprint(i)), 0o644))
	}
	rep := w.first()
	if rep.Files != n {
		t.Errorf("%d files", rep.Files)
	}
	other := w.again()
	other.root = filepath.Join(base, "b")
	w.must(os.Mkdir(other.root, 0o755))
	start := time.Now()
	other.hit(RestoreOptions{})
	t.Logf("%d files restored in %v", n, time.Since(start))
	if d := differ(w.snapshot(), maps.Collect(maps.All(other.snapshot()))); strings.Count(d, "want") > 1 { // the tree's own time
		t.Errorf("%.1000s", d)
	}
	if rep := other.saved(SaveOptions{}); rep.Untouched != n || rep.Sent.Chunks != 0 {
		t.Errorf("%+v", rep)
	}
}

func TestTreeWithOverlappingPatterns(t *testing.T) {
	files := map[string]string{
		"a/b/c/x": "1", "a/b/y": "2", "a/z": "3", "packages/p/dist/x": "4", "packages/p/dist/dist/y": "5", "packages/q/dist/z": "6",
		"packages/p/src": "7", "deep/er/out/x": "8", "out/y": "9", "single": "10",
	}
	for _, test := range []struct{ dirs, roots []string }{
		{[]string{"a", "a/b", "a/b/c"}, []string{"a"}},
		{[]string{"a/b/c", "a/b"}, []string{"a/b"}},
		{[]string{"packages/*/dist", "packages/p/dist/dist"}, []string{"packages/p/dist", "packages/q/dist"}},
		{[]string{"**/out"}, []string{"deep/er/out", "out"}},
		{[]string{"**/dist", "{a,out}", "s*e"}, []string{"a", "out", "packages/p/dist", "packages/q/dist", "single"}},
		{[]string{"a", "./a/", "a/../a"}, []string{"a"}},
	} {
		w := newWorld(t, nil)
		w.put(files)
		rep := w.saved(SaveOptions{Name: "n", Tree: Tree{Dirs: test.dirs}})
		if !slices.Equal(rep.Roots, test.roots) {
			t.Errorf("%q: %q", test.dirs, rep.Roots)
		}
		other := w.again()
		other.put(map[string]string{"packages/p/src": "7", "packages/q/": "", "deep/er/": "", "a/": ""})
		other.remove("a")
		if slices.Contains(test.roots, "a/b") {
			other.write("a/", "")
		}
		hit := other.hit(RestoreOptions{Tree: Tree{Dirs: test.dirs}})
		if !slices.Equal(hit.Roots, test.roots) {
			t.Errorf("%q: restored %q", test.dirs, hit.Roots)
		}
		if d := differ(below(w.snapshot(), test.roots...), below(other.snapshot(), test.roots...)); d != "" {
			t.Errorf("%q: %s", test.dirs, d)
		}
		if rep := other.saved(SaveOptions{}); rep.Sent.Chunks > 0 || rep.Untouched != rep.Files {
			t.Errorf("%q: %+v", test.dirs, rep)
		}
	}
}

// behind makes the cache directory build something that cannot be renamed, in ways that differ.
func behind(t *testing.T) map[string]func(w *world, p string) {
	t.Helper()
	return map[string]func(w *world, p string){
		"a link": func(w *world, p string) { w.must(os.Symlink(w.TempDir(), w.path(p))) },
		"a link to a link": func(w *world, p string) {
			to := w.TempDir()
			w.must(os.Symlink(to, to+"-link"))
			w.must(os.Symlink(to+"-link", w.path(p)))
			w.Cleanup(func() { _ = os.Remove(to + "-link") })
		},
		"a link to another device": func(w *world, p string) {
			to, err := os.MkdirTemp("/dev/shm", "nbc-device-")
			if err != nil {
				w.Skip("there is no other device")
			}
			w.Cleanup(func() { _ = removeTree(to) })
			w.must(os.Symlink(to, w.path(p)))
		},
		"a mount point": func(w *world, p string) { mountTmpfs(w.T, w.path(p), "size=64m") },
		"a bind mount":  func(w *world, p string) { bind(w, w.TempDir(), p) },
	}
}

func bind(w *world, from, p string) {
	w.Helper()
	needMount(w)
	doMount(w.T, from, w.path(p), "", unix.MS_BIND, "")
}

func TestTreeWithDirectoriesThatCannotBeRenamed(t *testing.T) {
	if elsewhere(t) {
		return
	}
	for name, make := range behind(t) {
		t.Run(name, func(t *testing.T) {
			tree := Tree{Dirs: []string{"build", "plain"}}
			w := newWorld(t, nil)
			w.put(someTree())
			w.put(map[string]string{"plain/x": "x"})
			w.must(os.Chmod(w.path("build"), 0o750))
			w.saved(SaveOptions{Name: "n", Tree: tree})
			want := below(w.snapshot(), "build", "plain")
			w.put(map[string]string{"build/a.o": "older", "build/only/older": "x"})
			w.saved(SaveOptions{Name: "older", Tree: tree})
			wantOlder := below(w.snapshot(), "build", "plain")

			o := w.again()
			make(o, "build")
			link, _ := os.Readlink(o.path("build"))
			inode := func() uint64 {
				var st unix.Stat_t
				o.must(unix.Stat(o.path("build"), &st))
				return st.Ino
			}
			was := inode()
			check := func(want map[string]string) {
				t.Helper()
				to, err := filepath.EvalSymlinks(o.path("build"))
				o.must(err)
				got := below(o.snapshot(), "plain")
				for p, line := range snapshot(t, to) {
					got[filepath.Join("build", p)] = line
				}
				if d := differ(want, got); d != "" {
					t.Fatal(d)
				}
				if now, _ := os.Readlink(o.path("build")); now != link || inode() != was {
					t.Fatal("the directory itself was replaced")
				}
				o.clean()
				if list, err := filepath.Glob(filepath.Join(to, ".nbc-*")); err != nil || len(list) > 0 {
					t.Fatalf("left: %q, %v", list, err)
				}
			}
			o.hit(RestoreOptions{Tree: tree})
			check(want)
			// A file that was moved in alone is proven as well.
			opened := watchOpens(t, o.path("build"), o.path("build/sub"))
			if rep := o.saved(SaveOptions{}); rep.Sent.Chunks != 0 || rep.Untouched != rep.Files-1 {
				t.Errorf("%+v", rep)
			}
			if list := opened(); len(list) > 0 {
				t.Errorf("opened: %q", list)
			}
			o.hit(RestoreOptions{Name: "older", Tree: tree})
			check(wantOlder)
			o.hit(RestoreOptions{Tree: tree})
			check(want)
			// Stopped, it is as before.
			for n := 0; ; n += 5 {
				ctx, cancel := context.WithCancel(context.Background())
				steps := 0
				old := crash
				crash = func(string) {
					if steps == n {
						cancel()
					}
					steps++
				}
				_, err := o.restoreIn(ctx, RestoreOptions{Name: "older", Tree: tree})
				crash = old
				cancel()
				if err != nil {
					check(want)
				} else {
					check(wantOlder)
				}
				// Files that were moved out and in one by one are not proven any more.
				o.hit(RestoreOptions{Tree: tree, Replace: true})
				if steps <= n {
					break
				}
			}
			// What is somebody's is in the way there, too.
			to, err := filepath.EvalSymlinks(o.path("build"))
			o.must(err)
			o.must(os.WriteFile(filepath.Join(to, "theirs"), nil, 0o644))
			o.miss(RestoreOptions{Tree: tree}, "build/theirs was not put there")
			o.hit(RestoreOptions{Tree: tree, Replace: true})
			check(want)
		})
	}
}

// Where the directory above is a mount, there is no renaming from the tree into it.
func TestTreeBelowAMountPoint(t *testing.T) {
	for name, mount := range map[string]func(w *world){
		"a file system": func(w *world) { mountTmpfs(w.T, w.path("packages"), "size=64m") },
		"a bind mount":  func(w *world) { bind(w, w.TempDir(), "packages") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(map[string]string{"packages/a/dist/x": "x", "packages/b/dist/y": "y", "packages/single": "s", "plain/z": "z"})
			dirs := []string{"packages/*/dist", "packages/single", "plain"}
			tree := Tree{Dirs: dirs}
			w.saved(SaveOptions{Name: "n", Tree: tree})
			roots := []string{"packages/a/dist", "packages/b/dist", "packages/single", "plain"}
			o := w.again()
			mount(o)
			o.put(map[string]string{"packages/a/": "", "packages/b/dist/": ""})
			for range 2 {
				o.hit(RestoreOptions{Tree: tree})
				if d := differ(below(w.snapshot(), roots...), below(o.snapshot(), roots...)); d != "" {
					t.Error(d)
				}
				o.clean()
				if rep := o.saved(SaveOptions{}); rep.Untouched != rep.Files {
					t.Errorf("%+v", rep)
				}
			}
		})
	}
}

// What is mounted below a cache directory would be moved away with it.
func TestTreeWithAMountInACacheDirectory(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"build/a": "a", "build/sub dir/b": "b"})
	w.first()
	o := w.again()
	mountTmpfs(t, o.path("build/sub dir"), "size=1m")
	was := o.snapshot()
	o.miss(RestoreOptions{}, "something is mounted in build, at "+o.path("build/sub dir"))
	o.same(was)
	o.clean()
}

// Two cache directories that are one: what is put into the first would be in the second.
func TestTreeWithTwoLinksToOneDirectory(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"a/x": "x", "b/y": "y"})
	tree := Tree{Dirs: []string{"a", "b"}}
	w.saved(SaveOptions{Name: "n", Tree: tree})
	o := w.again()
	to := t.TempDir()
	o.must(errors.Join(os.Symlink(to, o.path("a")), os.Symlink(to, o.path("b"))))
	o.miss(RestoreOptions{Tree: tree}, "a and b lead to the same directory")
	o.must(errors.Join(os.Remove(o.path("b")), os.Mkdir(filepath.Join(to, "sub"), 0o755),
		os.Symlink(filepath.Join(to, "sub"), o.path("b"))))
	o.miss(RestoreOptions{Tree: tree}, "a and b lead to the same directory")
	o.must(os.Remove(o.path("b")))
	o.hit(RestoreOptions{Tree: tree})
}

// In a container the tree is on an overlay, and what an image has brought is in its lower layer.
func TestTreeOnAnOverlay(t *testing.T) {
	lower := newWorld(t, nil)
	lower.put(someTree())
	lower.put(map[string]string{"single": "lower", "build/sub/only lower/deep/x": "x", "build/none/y": "y"})
	lower.must(os.Chmod(lower.path("build/sub"), 0o750))
	tree := Tree{Dirs: []string{"build", "single"}}
	lower.saved(SaveOptions{Name: "lower", Tree: tree})
	w := newWorld(t, lower.cache.Store)
	w.put(someTree())
	w.put(map[string]string{"single": "new", "build/a.o": "new"})
	w.saved(SaveOptions{Name: "n", Tree: tree})
	want := below(w.snapshot(), tree.Dirs...)

	for n := 0; ; n += 7 {
		o := newWorld(t, lower.cache.Store)
		o.root = filepath.Join(t.TempDir(), "merged")
		overlay(t, o.root, lower.root)
		was := o.snapshot()
		o.miss(RestoreOptions{Tree: tree}, "was not put there by nbc")
		o.same(was)
		ctx, cancel := context.WithCancel(context.Background())
		steps, at := 0, ""
		old := crash
		crash = func(step string) {
			if steps == n {
				at = step
				cancel()
			}
			steps++
		}
		_, err := o.restoreIn(ctx, RestoreOptions{Tree: tree, Replace: true})
		crash = old
		cancel()
		o.clean()
		if err != nil {
			if d := differ(was, o.snapshot()); d != "" || at == "" {
				t.Fatalf("stopped at %q (%d), %v:\n%s", at, n, err, d)
			}
			continue
		}
		if d := differ(want, below(o.snapshot(), tree.Dirs...)); d != "" {
			t.Fatalf("restored:\n%s", d)
		}
		if rep := o.saved(SaveOptions{}); rep.Sent.Chunks != 0 || rep.Untouched != rep.Files-1 {
			t.Errorf("%+v", rep)
		}
		o.hit(RestoreOptions{Tree: tree})
		o.hit(RestoreOptions{Name: "lower", Tree: tree})
		if d := differ(below(lower.snapshot(), tree.Dirs...), below(o.snapshot(), tree.Dirs...)); d != "" {
			t.Fatalf("restored:\n%s", d)
		}
		if steps <= n {
			break
		}
	}
}

// A store and a tree on file systems that are full, or that become read-only, for real.
func TestTreeOnAFullDisk(t *testing.T) {
	for size := 64; size <= 1<<12; size *= 2 {
		w := newWorld(t, nil)
		w.put(smallTree())
		w.first()
		want := below(w.snapshot(), "build")
		o := w.again()
		base := t.TempDir()
		mountTmpfs(t, base, fmt.Sprintf("size=%dk", size))
		o.root, o.state = filepath.Join(base, "tree"), filepath.Join(base, "state", "receipt")
		o.must(os.Mkdir(o.root, 0o755))
		o.write("a.c", "edited")
		was := o.snapshot()
		rep, err := o.restore(RestoreOptions{})
		switch {
		case err == nil && rep.Hit:
			o.holds(want)
			if size < 400 {
				t.Errorf("%d KB were enough", size)
			}
		case !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, ErrLocal):
			t.Errorf("%d KB: %v, %+v", size, err, rep)
		default:
			o.same(was)
		}
		o.clean()
		remount(t, base, true)
		_, err = o.cache.Open(o.root, o.state, false)
		if !errors.Is(err, syscall.EROFS) || !errors.Is(err, ErrLocal) {
			t.Errorf("read-only: %v", err)
		}
		remount(t, base, false)
		o.state = filepath.Join(t.TempDir(), "receipt")
		remount(t, base, true)
		was = o.snapshot()
		if _, err := o.restore(RestoreOptions{Replace: true}); !errors.Is(err, syscall.EROFS) || !errors.Is(err, ErrLocal) {
			t.Errorf("read-only tree: %v", err)
		}
		o.same(was)
		// It can be saved all the same; only the next restore has no proof.
		if len(below(was, "build")) > 0 {
			o.saved(SaveOptions{Name: "from a read-only tree", Tree: build})
		}
		remount(t, base, false)
	}
}

func TestSaveToAFullDisk(t *testing.T) {
	base := t.TempDir()
	mountTmpfs(t, base, "size=400k")
	w := newWorld(t, dirStore(t, filepath.Join(base, "store")))
	w.put(smallTree())
	w.remove("build/sub")
	w.first()
	old := below(w.snapshot(), "build")
	w.put(smallTree())
	w.write("build/b.o", noise(77, 150<<10))
	_, err := w.save(SaveOptions{Name: "n", Tree: build})
	if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrLocal) {
		t.Errorf("%v", err)
	}
	o := w.again()
	o.hit(RestoreOptions{})
	o.holds(old)
	w.must(unix.Mount("nbc", base, "", unix.MS_REMOUNT, "size=4m"))
	w.first()
	o = w.again()
	o.hit(RestoreOptions{})
	o.holds(below(w.snapshot(), "build"))
}

// tree draws a tree of artifacts.
func drawTree(t *rapid.T, w *world, top string) {
	name := rapid.OneOf(rapid.StringMatching(`[a-c]{1,3}`), rapid.SampledFrom(oddNames))
	dirs := []string{top}
	var files []string
	w.write(top+"/", "")
	for range rapid.IntRange(0, 25).Draw(t, "files") {
		p := rapid.SampledFrom(dirs).Draw(t, "in") + "/" + name.Draw(t, "name")
		if _, err := os.Lstat(w.path(p)); err == nil || len(p) > 2000 {
			continue
		}
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0, 1:
			w.write(p+"/", "")
			dirs = append(dirs, p)
		case 2:
			w.write(p, "-> "+rapid.SampledFrom([]string{"x", "../..", "/", "a\nb"}).Draw(t, "target"))
		case 3:
			if len(files) > 0 {
				w.must(os.Link(w.path(rapid.SampledFrom(files).Draw(t, "file")), w.path(p)))
				files = append(files, p)
			}
		default:
			size := rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(0, 5000), rapid.IntRange(0, 900<<10)).Draw(t, "size")
			if rapid.Bool().Draw(t, "zeros") {
				w.write(p, string(make([]byte, size)))
			} else {
				w.write(p, noise(rapid.Uint64Range(0, 5).Draw(t, "seed"), size))
			}
			files = append(files, p)
		}
	}
	for _, p := range slices.Backward(append(slices.Clone(dirs), files...)) {
		if rapid.Bool().Draw(t, "touched") {
			w.touch(p, rapid.Int64Range(1e9, 1.7e18).Draw(t, "time"))
		}
		mode := rapid.SampledFrom([]fs.FileMode{0o755, 0o644, 0o600, 0o777, 0o711}).Draw(t, "mode")
		if slices.Contains(dirs, p) {
			mode |= 0o700
		}
		w.must(os.Chmod(w.path(p), mode))
	}
}

// What is saved is what is restored, whatever it is; and what was restored is saved again without reading it, or with
// what was edited meanwhile.
func TestSaveThenRestoreIsTheIdentityOnAnyTree(t *testing.T) {
	if elsewhere(t) {
		return
	}
	disk := dirStore(t, t.TempDir())
	checks := 0
	base := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		checks++
		w := &world{T: t, cache: &Cache{Store: storetest.Memory()}}
		if checks%2 == 0 {
			w.cache.Store = disk
		}
		place := func(name string) *world {
			o := *w
			dir := filepath.Join(base, name)
			w.must(removeTree(dir))
			o.root, o.state = filepath.Join(dir, "tree"), filepath.Join(dir, "state", "receipt")
			w.must(os.MkdirAll(o.root, 0o755))
			return &o
		}
		tree := Tree{Dirs: []string{"one", "two"}}
		a := place("a")
		drawTree(r, a, "one")
		drawTree(r, a, "two")
		a.write("two/never empty", "x")
		a.saved(SaveOptions{Name: "n", Tree: tree})
		want := below(a.snapshot(), tree.Dirs...)

		b := place("b")
		b.hit(RestoreOptions{Tree: tree})
		if d := differ(want, below(b.snapshot(), tree.Dirs...)); d != "" {
			r.Fatalf("restored:\n%s", d)
		}
		rep := b.saved(SaveOptions{})
		if rep.Sent.Chunks != 0 || rep.Sent.Bytes != int64(len(b.get("index/n"))) {
			r.Fatalf("the second save: %+v", rep)
		}

		// Edits, and a save of those.
		for range rapid.IntRange(1, 5).Draw(r, "edits") {
			all := slices.Sorted(maps.Keys(below(b.snapshot(), tree.Dirs...)))
			p := rapid.SampledFrom(all).Draw(r, "path")
			switch fi, err := os.Lstat(b.path(p)); {
			case err != nil:
				r.Fatal(err)
			case fi.IsDir():
				b.write(p+"/edit", noise(rapid.Uint64().Draw(r, "seed"), rapid.IntRange(0, 300<<10).Draw(r, "size")))
			case rapid.Bool().Draw(r, "removed"):
				b.remove(p)
			case fi.Mode().IsRegular():
				was := fi.ModTime().UnixNano()
				b.write(p, noise(rapid.Uint64().Draw(r, "seed"), int(fi.Size())))
				b.touch(p, was)
			}
		}
		b.write("two/never empty", "y")
		b.saved(SaveOptions{Name: "n", Tree: tree})
		want = below(b.snapshot(), tree.Dirs...)
		c := place("c")
		c.hit(RestoreOptions{Tree: tree})
		if d := differ(want, below(c.snapshot(), tree.Dirs...)); d != "" {
			r.Fatalf("after edits:\n%s", d)
		}
		// Over the older tree, some of which is kept.
		a.hit(RestoreOptions{Tree: tree})
		if d := differ(want, below(a.snapshot(), tree.Dirs...)); d != "" {
			r.Fatalf("over an older tree:\n%s", d)
		}
		if rep := a.saved(SaveOptions{}); rep.Sent.Chunks != 0 {
			r.Fatalf("after a restore over an older tree: %+v", rep)
		}
		a.clean()
		b.clean()
		c.clean()
	})
}
