package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func ExampleWalker() {
	root, err := os.MkdirTemp("", "tree")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(root) }()
	for _, name := range []string{"src/main.c", "packages/a/dist/a.o", "packages/b/dist/b.o"} {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			fmt.Println(err)
			return
		}
	}
	dirs, err := CompilePatterns([]string{"packages/*/dist"})
	if err != nil {
		fmt.Println(err)
		return
	}
	tree, err := Walker{Dirs: dirs}.Walk(context.Background(), root)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(tree.Roots)
	for _, f := range tree.Sources {
		fmt.Println(f.Kind, f.Path)
	}
	// Output:
	// [packages/a/dist packages/b/dist]
	// directory .
	// directory packages
	// directory packages/a
	// directory packages/b
	// directory src
	// file src/main.c
}

// grow makes files in a new tree: "a/" is a directory, "a -> b" a link, anything else a file that holds its own path.
// All may read them, see asNobody.
func grow(t testing.TB, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		name, target, link := strings.Cut(f, " -> ")
		full := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(target, full)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o755)
		default:
			err = os.WriteFile(full, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func walkTree(t testing.TB, w Walker, root string) *Tree {
	t.Helper()
	tree, err := w.Walk(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// paths returns what grow would make of found.
func paths(found []Found) []string {
	var all []string
	for _, f := range found {
		switch f.Kind {
		case Dir:
			all = append(all, f.Path+"/")
		case Link:
			all = append(all, f.Path+" -> "+f.Target)
		default:
			all = append(all, f.Path)
		}
	}
	return all
}

func same(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func TestWalk(t *testing.T) {
	all := []string{
		"+first", "-dash", "README", "a-b/x", "a.c", "a/x", "a0", "empty/", "link -> a/x", "nowhere -> gone",
		"updir -> ..", ".git/config", "a/.git", ".gitignore", ".nbc-work/x", "a/.nbc-probe-00112233445566ff", ".nbc",
		"dist/app", "dist/.git/keep", "dist/.nbc-work/y", "dist/sub/dist/deep", "dist/out -> app",
		"packages/a/dist/lib.a", "packages/a/dist/lib.tmp", "packages/a/src/lib.c", "packages/b/src/lib.c",
		"packages/b/node_modules/.cache/c", "packages/b/node_modules/m.js", "single.bin", "gen/gen.c",
	}
	t.Run("everything is a source", func(t *testing.T) {
		tree := walkTree(t, Walker{}, grow(t, "a/b", ".git/x"))
		same(t, "sources", paths(tree.Sources), "./", "a/", "a/b")
		if tree.Roots != nil || len(tree.Artifacts) > 0 || tree.Skipped != nil {
			t.Errorf("found %+v", tree)
		}
	})
	t.Run("all rules at once", func(t *testing.T) {
		w := Walker{
			// dist is the outermost of the nested matches.
			Dirs:          patterns(t, "dist", "dist/sub", "**/dist", "packages/*/node_modules/.cache", "single.bin"),
			Exclude:       patterns(t, "*.tmp", "dist/sub"),
			IgnoreSources: patterns(t, "node_modules", "./gen", "packages/a/src"),
		}
		tree := walkTree(t, w, grow(t, append(all, "a/gen")...))
		same(t, "roots", tree.Roots, "dist", "packages/a/dist", "packages/b/node_modules/.cache", "single.bin")
		same(t, "artifacts", paths(tree.Artifacts),
			"dist/", "dist/.git/", "dist/.git/keep", "dist/app", "dist/out -> app",
			"packages/a/dist/", "packages/a/dist/lib.a",
			"packages/b/node_modules/.cache/", "packages/b/node_modules/.cache/c", "single.bin")
		same(t, "sources", paths(tree.Sources),
			"+first", "-dash", "./", ".gitignore", ".nbc", "README", "a/", "a-b/", "a-b/x", "a.c", "a/gen", "a/x", "a0",
			"empty/", "link -> a/x", "nowhere -> gone", "packages/", "packages/a/", "packages/b/", "packages/b/src/",
			"packages/b/src/lib.c", "updir -> ..")
	})
	t.Run("without sources", func(t *testing.T) {
		root := grow(t, all...)
		for _, list := range [][]string{
			{"dist", "packages/a/dist"}, {"**/dist", "single.bin"}, {"packages/*/*/.cache"}, {"none/x"},
		} {
			w := Walker{Dirs: patterns(t, list...), IgnoreSources: patterns(t, "packages")}
			full := walkTree(t, w, root)
			w.NoSources = true
			tree := walkTree(t, w, root)
			same(t, "roots", tree.Roots, full.Roots...)
			same(t, "artifacts", paths(tree.Artifacts), paths(full.Artifacts)...)
			if tree.Sources != nil {
				t.Errorf("sources: %q", paths(tree.Sources))
			}
		}
	})
	t.Run("an excluded root is neither", func(t *testing.T) {
		tree := walkTree(t, Walker{Dirs: patterns(t, "dist"), Exclude: patterns(t, "dist")}, grow(t, "dist/a", "b"))
		same(t, "roots", tree.Roots)
		same(t, "sources", paths(tree.Sources), "./", "b")
	})
}

func TestWalkStats(t *testing.T) {
	root := grow(t, "a", "dist/b", "l -> a", "d/")
	if err := os.Link(filepath.Join(root, "a"), filepath.Join(root, "d/hard")); err != nil {
		t.Fatal(err)
	}
	tree := walkTree(t, Walker{Dirs: patterns(t, "dist")}, root)
	for _, f := range append(tree.Sources, tree.Artifacts...) {
		info, err := os.Lstat(filepath.Join(root, f.Path))
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, f.Path), &st); err != nil {
			t.Fatal(err)
		}
		if f.Stat != StatOf(&st) || f.Stat.MTime != info.ModTime().UnixNano() || f.Stat.Size != info.Size() ||
			f.Stat.Mode&0o777 != uint32(info.Mode().Perm()) {
			t.Errorf("%s: %+v is not %+v", f.Path, f.Stat, info)
		}
		again, err := LstatFile(root, f.Path)
		if err != nil || again != f.Stat {
			t.Errorf("%s: LstatFile gives %+v, %v", f.Path, again, err)
		}
		if f.Path == "a" && f.Stat.Links != 2 {
			t.Errorf("a has %d links", f.Stat.Links)
		}
	}
}

func TestWalkOfNothing(t *testing.T) {
	for _, root := range []string{filepath.Join(t.TempDir(), "none"), filepath.Join(grow(t, "file"), "file")} {
		if _, err := (Walker{}).Walk(t.Context(), root); err == nil || !strings.Contains(err.Error(), root) {
			t.Errorf("the error for %s is %v", root, err)
		}
	}
	link := filepath.Join(grow(t, "link -> "+grow(t, "a")), "link")
	same(t, "sources behind a link", paths(walkTree(t, Walker{}, link).Sources), "./", "a")
}

func TestWalkTakesAnyName(t *testing.T) {
	names := []string{
		" ", "a b", "a\nb", "-rf", "--", "\xff\xfe", "caf\xc3\xa9", "cafe\xcc\x81", "*", "[a]", `\`, "\x01\x7f", "~",
		"...", strings.Repeat("n", 255), strings.Repeat("\xff", 255),
	}
	files := slices.Clone(names)
	for _, n := range names {
		files = append(files, "sub/"+n+"/"+n, "dist/"+n+"/"+n)
	}
	// A file system may refuse some, darwin's does those that are not UTF-8.
	if f, err := os.Create(filepath.Join(t.TempDir(), "\xff")); err != nil {
		if runtime.GOOS == "linux" {
			t.Fatal(err)
		}
		t.Skip(err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	tree := walkTree(t, Walker{Dirs: patterns(t, "dist")}, grow(t, files...))
	var want, wantDist []string
	for _, n := range names {
		want = append(want, n, "sub/"+n+"/", "sub/"+n+"/"+n)
		wantDist = append(wantDist, "dist/"+n+"/", "dist/"+n+"/"+n)
	}
	want, wantDist = append(want, "./", "sub/"), append(wantDist, "dist/")
	byPath := func(a, b string) int { return strings.Compare(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/")) }
	slices.SortFunc(want, byPath)
	slices.SortFunc(wantDist, byPath)
	same(t, "sources", paths(tree.Sources), want...)
	same(t, "artifacts", paths(tree.Artifacts), wantDist...)
}

// TestWalkBeyondPathMax uses a path four times as long as the kernel takes.
func TestWalkBeyondPathMax(t *testing.T) {
	root := t.TempDir()
	dir, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	p := "dist"
	for len(p) < 4*unix.PathMax {
		p += "/" + strings.Repeat("d", 1+len(p)%200)
	}
	for i := range len(p) + 1 {
		if i == len(p) || p[i] == '/' {
			name := path.Base(p[:i])
			if err := dir.Mkdir(name, 0o700); err != nil {
				t.Fatal(err)
			}
			next, err := dir.OpenRoot(name)
			if err := errors.Join(err, dir.Close()); err != nil {
				t.Fatal(err)
			}
			dir = next
		}
	}
	defer func() { _ = dir.Close() }()
	if err := errors.Join(dir.WriteFile("file", []byte("deep"), 0o600), dir.Symlink("file", "link")); err != nil {
		t.Fatal(err)
	}

	for _, w := range []Walker{{}, {Dirs: patterns(t, "dist")}} {
		tree := walkTree(t, w, root)
		found := append(tree.Sources, tree.Artifacts...)
		n := len(found)
		same(t, "the deepest", paths(found[n-2:]), p+"/file", p+"/link -> file")
		for _, f := range found {
			if st, err := LstatFile(root, f.Path); err != nil || st != f.Stat {
				t.Fatalf("%d bytes of path: Stat %+v, %v, not %+v", len(f.Path), st, err, f.Stat)
			}
			if f.Kind != Dir {
				continue
			}
			for _, was := range []Stat{f.Stat, {}} {
				d, err := OpenDir(root, f.Path, was)
				if err != nil {
					t.Fatal(err)
				}
				st, err := FstatFile(d)
				if err := errors.Join(err, d.Close()); err != nil || !st.SameFile(f.Stat) {
					t.Fatalf("%d bytes of path: opened another directory, %v", len(f.Path), err)
				}
			}
		}
	}
	file, err := OpenFile(root, p+"/file")
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(file)
	if err := errors.Join(err, file.Close()); err != nil || string(data) != "deep" {
		t.Errorf("read %q, %v", data, err)
	}
	if _, err := OpenFile(root, p+"/link"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("opening a link: %v", err)
	}
	if _, err := OpenFile(root, p+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening nothing: %v", err)
	}
	for n := unix.PathMax - 5; n < unix.PathMax+5; n++ {
		dots := n - len(root) - len("//dist") // all of the path is n bytes long
		if _, err := LstatFile(root, strings.Repeat("./", dots/2)+strings.Repeat("/", dots%2)+"/dist"); err != nil {
			t.Errorf("a path of %d bytes: %v", n, err)
		}
	}
	if _, err := LstatFile(root, strings.Repeat("x", 5000)); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name of 5000 bytes: %v", err)
	}
}

func TestWalkFollowsRootsOnly(t *testing.T) {
	outside := grow(t, "real/a", "real/sub/b", "real/back -> ../real", "file")
	root := grow(t, "src/a", "other -> "+outside, "dangling -> gone", "loop -> loop", "file -> "+outside+"/file",
		"dist -> "+outside+"/real", "in -> src", "deep/up -> ..", "top -> "+filepath.Dir(outside))
	w := Walker{Dirs: patterns(t, "dist", "dangling", "loop", "file", "in", "deep/up")}
	tree := walkTree(t, w, root)
	same(t, "roots", tree.Roots, "dist")
	same(t, "artifacts", paths(tree.Artifacts), "dist/", "dist/a", "dist/back -> ../real", "dist/sub/", "dist/sub/b")
	same(t, "sources", paths(tree.Sources),
		"./", "deep/", "other -> "+outside, "src/", "src/a", "top -> "+filepath.Dir(outside))
	same(t, "skipped", tree.Skipped, "dangling", "deep/up", "file", "in", "loop")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "dist"), &st); err != nil || tree.Artifacts[0].Stat != StatOf(&st) {
		t.Errorf("the Stat of dist is %+v: %v", tree.Artifacts[0].Stat, err)
	}

	// The slow way into a root, for one on which something is mounted when it is opened.
	top, err := open(unix.AT_FDCWD, root, openDirectory)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(top) }()
	for p, follow := range map[string]string{"dist": "dist", "dist/sub": "dist", "src": "", ".": ""} {
		fd, err := openElements(top, p, follow)
		if err != nil {
			t.Errorf("opening %s: %v", p, err)
			continue
		}
		_ = unix.Close(fd)
	}
	for p, follow := range map[string]string{
		"dist": "", "other/real": "dist", "dist/back": "dist", "src/a": "", "none": "",
	} {
		if fd, err := openElements(top, p, follow); !vanished(err) {
			_ = unix.Close(fd)
			t.Errorf("opening %s gives %v", p, err)
		}
	}

	// A tree that is named relatively, or through a link, is the same tree.
	t.Chdir(root)
	same(t, "skipped in .", walkTree(t, w, ".").Skipped, tree.Skipped...)
	link := filepath.Join(grow(t, "link -> "+root), "link")
	same(t, "skipped behind a link", walkTree(t, w, link).Skipped, tree.Skipped...)

	// What leads up to the tree holds the tree.
	above := walkTree(t, Walker{Dirs: patterns(t, "top", "other")}, root)
	if slices.Contains(above.Roots, "top") != !strings.HasPrefix(root, filepath.Dir(outside)+"/") {
		t.Errorf("roots %q", above.Roots)
	}
}

func TestWalkLeavesOutWhatIsNoFile(t *testing.T) {
	// A socket's path is short, so it is made where the process stands.
	root := grow(t, "dist/", "src/a", "ignored/")
	t.Chdir(root)
	for _, name := range []string{"dist/socket", "socket"} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
	}
	for _, name := range []string{"dist/pipe", "src/pipe", "root", "ignored/pipe"} {
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree := walkTree(t, Walker{Dirs: patterns(t, "dist", "root"), IgnoreSources: patterns(t, "ignored")}, root)
	same(t, "skipped", tree.Skipped, "dist/pipe", "dist/socket", "root", "socket", "src/pipe")
	same(t, "roots", tree.Roots, "dist")
	same(t, "artifacts", paths(tree.Artifacts), "dist/")
	same(t, "sources", paths(tree.Sources), "./", "src/", "src/a")

	// Nobody writes to the pipe: a plain open would wait for ever.
	if f, err := OpenFile(root, "dist/pipe"); err == nil {
		_ = f.Close()
		t.Error("a pipe was opened")
	}
	if f, err := OpenFile(root, "dist"); err == nil {
		_ = f.Close()
		t.Error("a directory was opened as a file")
	}
}

// asNobody runs do with the rights of a user who is not root.
func asNobody(t *testing.T, root string, do func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		for p := root; p != filepath.Dir(p) && p != os.TempDir(); p = filepath.Dir(p) {
			if err := os.Chmod(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Setreuid(-1, 65534); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Setreuid(-1, 0); err != nil {
				t.Fatal(err)
			}
		}()
	}
	do()
}

func TestWalkNamesWhatItMustNotRead(t *testing.T) {
	for _, c := range []struct {
		closed, hint string
		mode         os.FileMode
		w            Walker
	}{
		{closed: "src/closed", hint: "--ignore-source"},
		{closed: "src/closed", mode: 0o444, hint: "--ignore-source"}, // can be listed, and no more
		{closed: "src/closed", w: Walker{Dirs: patterns(t, "**/dist"), NoSources: true}, hint: "--ignore-source"},
		{closed: "src/closed", w: Walker{Dirs: patterns(t, "dist"), NoSources: true}},
		{closed: "src/closed", w: Walker{IgnoreSources: patterns(t, "src/closed")}},
		{closed: "src/closed", w: Walker{IgnoreSources: patterns(t, "src"), Dirs: patterns(t, "**/dist")}},
		{closed: "dist/closed", w: Walker{Dirs: patterns(t, "dist")}, hint: "--exclude"},
		{closed: "dist/closed", w: Walker{Dirs: patterns(t, "dist"), Exclude: patterns(t, "closed")}},
		{closed: "dist", w: Walker{Dirs: patterns(t, "dist")}, hint: "--exclude"},
		{closed: ".git", w: Walker{Dirs: patterns(t, "**/dist")}},
	} {
		root := grow(t, "src/closed/x", "dist/closed/x", ".git/x", "a")
		closed := filepath.Join(root, c.closed)
		if err := os.Chmod(closed, c.mode); err != nil {
			t.Fatal(err)
		}
		asNobody(t, root, func() {
			_, err := c.w.Walk(t.Context(), root)
			switch {
			case c.hint == "" && err != nil:
				t.Errorf("%+v: %v", c, err)
			case c.hint != "" && (!errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), c.hint) ||
				!strings.Contains(err.Error(), fmt.Sprintf("%q", c.closed))):
				t.Errorf("%+v: the error is %v", c, err)
			}
		})
		if err := os.Chmod(closed, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWalkIsNeverLedAway replaces directories by links, removes and makes them while walks run: no error, and nothing
// of what the links lead to.
func TestWalkIsNeverLedAway(t *testing.T) {
	outside := grow(t, "secret", "sub/secret")
	root := grow(t, "a/b/sub/f", "a/b/x", "a/c", "dist/b/sub/f", "dist/c")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, dir := range []string{"a", "dist"} {
		wg.Go(func() {
			b, old := filepath.Join(root, dir, "b"), filepath.Join(root, dir, WorkName)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := errors.Join(os.Rename(b, old), os.Symlink(outside, b), os.Remove(b), os.Rename(old, b),
					os.WriteFile(filepath.Join(b, "new"), nil, 0o600), os.Remove(filepath.Join(b, "new"))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 1000 {
		tree, err := Walker{Dirs: patterns(t, "dist")}.Walk(t.Context(), root)
		if err != nil {
			t.Error(err)
			break
		}
		for _, f := range append(tree.Sources, tree.Artifacts...) {
			if path.Base(f.Path) == "secret" {
				t.Fatalf("found %s", f.Path)
			}
		}
		for _, p := range []string{"a/b", "dist/b/sub"} {
			d, err := OpenDir(root, p, Stat{})
			if err != nil {
				continue
			}
			names, err := d.Readdirnames(-1)
			_ = d.Close()
			if err == nil && slices.Contains(names, "secret") {
				t.Fatalf("OpenDir was led away at %s", p)
			}
		}
	}
	close(stop)
	wg.Wait()
}

func TestWalkStops(t *testing.T) {
	root := manyFiles(t, 2000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if tree, err := (Walker{}).Walk(ctx, root); !errors.Is(err, context.Canceled) || tree != nil {
		t.Errorf("the walk gives %v", err)
	}
}

func TestWalkOfManyFiles(t *testing.T) {
	root := manyFiles(t, 20_000)
	if err := os.Mkdir(filepath.Join(root, "flat"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		if err := os.Symlink("x", filepath.Join(root, "flat", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	tree := walkTree(t, Walker{Dirs: patterns(t, "flat")}, root)
	if len(tree.Artifacts) != 5001 {
		t.Errorf("%d artifacts", len(tree.Artifacts))
	}
	var n int
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if !strings.HasPrefix(p, filepath.Join(root, "flat")) {
			n++
		}
		return err
	})
	if err != nil || len(tree.Sources) != n {
		t.Errorf("%d sources of %d: %v", len(tree.Sources), n, err)
	}
	ordered := func(a, b Found) int { return strings.Compare(a.Path, b.Path) }
	if !slices.IsSortedFunc(tree.Sources, ordered) || !slices.IsSortedFunc(tree.Artifacts, ordered) {
		t.Error("not sorted")
	}
}

// TestWalkFindsWhatWasMade compares walks of generated trees with the rules, written down once more for whole paths.
func TestWalkFindsWhatWasMade(t *testing.T) {
	name := rapid.SampledFrom([]string{"a", "b", "a-b", "a.c", "dist", "+", ".git", ".nbc-work", ".nbc-x", "tmp", "a0"})
	pattern := rapid.SampledFrom([]string{
		"dist", "a", "*/dist", "**/dist", "a/**/b", "a*/b", "b/{a,b}", "tmp", "**/tmp/*", "./b",
	})
	list := rapid.SliceOfN(pattern, 0, 3)
	rapid.Check(t, func(rt *rapid.T) {
		root, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		made := map[string]Kind{".": Dir}
		for i := range rapid.IntRange(0, 25).Draw(rt, "files") {
			p := strings.Join(rapid.SliceOfN(name, 1, 4).Draw(rt, "path"), "/")
			full := filepath.Join(root, p)
			if os.MkdirAll(filepath.Dir(full), 0o700) != nil {
				continue // there is a file on the way
			}
			for d := path.Dir(p); d != "."; d = path.Dir(d) {
				made[d] = Dir
			}
			if _, err := os.Lstat(full); err == nil {
				continue
			}
			switch i % 4 {
			case 0:
				made[p], err = Dir, os.Mkdir(full, 0o700)
			case 1:
				made[p], err = Link, os.Symlink("nowhere", full)
			default:
				made[p], err = File, os.WriteFile(full, nil, 0o600)
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		w := Walker{
			Dirs: patterns(t, list.Draw(rt, "dirs")...), Exclude: patterns(t, list.Draw(rt, "exclude")...),
			IgnoreSources: patterns(t, list.Draw(rt, "ignore")...), NoSources: rapid.Bool().Draw(rt, "no sources"),
		}
		var want Tree
		for p, kind := range made {
			want.expect(w, made, p, kind)
		}
		slices.Sort(want.Roots)
		slices.Sort(want.Skipped)
		byPath := func(a, b Found) int { return strings.Compare(a.Path, b.Path) }
		slices.SortFunc(want.Artifacts, byPath)
		slices.SortFunc(want.Sources, byPath)

		got, err := w.Walk(t.Context(), root)
		if err != nil {
			rt.Fatal(err)
		}
		for what, lists := range map[string][2][]string{
			"roots":     {got.Roots, want.Roots},
			"skipped":   {got.Skipped, want.Skipped},
			"artifacts": {paths(got.Artifacts), paths(want.Artifacts)},
			"sources":   {paths(got.Sources), paths(want.Sources)},
		} {
			if !slices.Equal(lists[0], lists[1]) {
				rt.Fatalf("%s:\n got %q\nwant %q", what, lists[0], lists[1])
			}
		}
	})
}

// expect adds the file p to a tree by the documented rules.
func (t *Tree) expect(w Walker, made map[string]Kind, p string, kind Kind) {
	f := Found{Path: p, Kind: kind}
	if kind == Link {
		f.Target = "nowhere"
	}
	root, excluded, ignored := "", false, w.NoSources
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		q := p[:i]
		if Reserved(path.Base(q)) {
			return
		}
		switch {
		case root == "" && w.Dirs.Match(q):
			root = q
		case root == "" && path.Base(q) == ".git":
			return
		}
		if root == "" {
			ignored = ignored || q != "." && w.IgnoreSources.MatchAnywhere(q)
		} else {
			excluded = excluded || w.Exclude.MatchAnywhere(q)
		}
	}
	switch {
	case root != "" && excluded:
	case root != "" && root == p && kind == Link:
		t.Skipped = append(t.Skipped, p)
	case root != "":
		if root == p {
			t.Roots = append(t.Roots, p)
		}
		t.Artifacts = append(t.Artifacts, f)
	case !ignored:
		t.Sources = append(t.Sources, f)
	}
}

// BenchmarkWalk is read beside BenchmarkWalkDir: both look at the 12,600 files of one tree.
func BenchmarkWalk(b *testing.B) {
	root := manyFiles(b, 12_600)
	w := Walker{Dirs: patterns(b, "d0*", "dist"), Exclude: patterns(b, "*.tmp")}
	b.ReportAllocs()
	for b.Loop() {
		walkTree(b, w, root)
	}
}

func BenchmarkWalkDir(b *testing.B) {
	root := manyFiles(b, 12_600)
	b.ReportAllocs()
	for b.Loop() {
		err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
			if err == nil {
				_, err = d.Info()
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenFile(b *testing.B) {
	root := manyFiles(b, 160)
	for b.Loop() {
		f, err := OpenFile(root, "d00/e00/f/file-0.c")
		if err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
}

// manyFiles makes a tree of n files, in directories of 16.
func manyFiles(t testing.TB, n int) string {
	t.Helper()
	root := t.TempDir()
	for i := range n {
		dir := filepath.Join(root, fmt.Sprintf("d%02d/e%02d/f", i/16%30, i/16/30))
		if i%16 == 0 {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d.c", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
