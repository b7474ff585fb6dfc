package mtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"nbc/index"
)

func Example() {
	root, err := os.MkdirTemp("", "tree")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(root) }()
	for _, name := range []string{"main.c", "util.c"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(name), 0o600); err != nil {
			fmt.Println(err)
			return
		}
	}
	look := func() ([]index.Found, []index.Source, error) {
		tree, err := index.Walker{}.Walk(context.Background(), root)
		if err != nil {
			return nil, nil, err
		}
		sources, err := Hash(context.Background(), root, tree.Sources, nil)
		return tree.Sources, sources, err
	}

	// The build that was saved saw these sources.
	_, base, err := look()
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := range base {
		base[i].MTime = time.Date(2020, 1, 1, 0, 0, 0, 42, time.UTC).UnixNano()
	}

	// This build has another main.c.
	if err := os.WriteFile(filepath.Join(root, "main.c"), []byte("changed"), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	found, sources, err := look()
	if err != nil {
		fmt.Println(err)
		return
	}
	changes := Diff(base, sources)
	now, err := Probe(root)
	if err != nil {
		fmt.Println(err)
		return
	}
	shift, _, ok := Policy{}.Guard(changes.Newest(), now)
	if !ok {
		fmt.Println("a miss")
		return
	}
	if err := NewPlan(root, changes, found, shift).Apply(context.Background(), root, now); err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range []string{"main.c", "util.c"} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			fmt.Println(err)
			return
		}
		if info.ModTime().Equal(time.Unix(0, now)) {
			fmt.Println(name, "now")
		} else {
			fmt.Println(name, info.ModTime().UTC())
		}
	}
	// Output:
	// main.c now
	// util.c 2020-01-01 00:00:00.000000042 +0000 UTC
}

// recorded is the time of the first source of a base; each has another.
const recorded = 1_500_000_000_987_654_321

// baseOf returns the sources of a tree as a build may have recorded them.
func baseOf(t testing.TB, root string) []index.Source {
	t.Helper()
	base := hashTree(t, root, walk(t, root))
	for i := range base {
		base[i].MTime = recorded + int64(i)
	}
	return base
}

// planFor looks at a tree, and plans for it.
func planFor(t testing.TB, root string, base []index.Source, shift int64) (*Plan, []index.Found) {
	t.Helper()
	found := walk(t, root)
	return NewPlan(root, Diff(base, hashTree(t, root, found)), found, shift), found
}

func apply(t testing.TB, p *Plan, root string, now int64) {
	t.Helper()
	if err := p.Apply(t.Context(), root, now); err != nil {
		t.Fatal(err)
	}
}

// touched returns the sources that have the time now, and asserts that all others have their recorded one.
func touched(t testing.TB, root string, base []index.Source, now, shift int64) []string {
	t.Helper()
	var all []string
	for _, f := range walk(t, root) {
		got := mtimeOf(t, root, f.Path)
		right := func(s index.Source) bool { return s.Path == f.Path && At(s.MTime, shift) == got }
		if got == now {
			all = append(all, f.Path)
		} else if !slices.ContainsFunc(base, right) {
			t.Errorf("%s has the time %d", f.Path, got)
		}
	}
	return all
}

func TestApply(t *testing.T) {
	for name, c := range map[string]struct {
		files  []string
		change func(t *testing.T, root string)
		want   []string
	}{
		"nothing": {
			[]string{"a", "d/b", "link -> a", "dangling -> none"},
			func(*testing.T, string) {},
			nil,
		},
		"edited, new, deleted": {
			[]string{"a", "d/b", "d/c", "e/f/g"},
			func(t *testing.T, root string) {
				replace(t, root, "d/b", "anew")
				grow(t, root, "e/new", "n/new")
				if err := os.Remove(filepath.Join(root, "d/c")); err != nil {
					t.Fatal(err)
				}
			},
			[]string{".", "d", "d/b", "e", "e/new", "n", "n/new"},
		},
		"two files swapped": {
			[]string{"a", "b", "c"},
			func(t *testing.T, root string) {
				p := func(name string) string { return filepath.Join(root, name) }
				err := errors.Join(os.Rename(p("a"), p("x")), os.Rename(p("b"), p("a")), os.Rename(p("x"), p("b")))
				if err != nil {
					t.Fatal(err)
				}
			},
			[]string{"a", "b"},
		},
		"a link retargeted to an old file": {
			[]string{"src/a", "src/b", "link -> src/a"},
			relink("link -> src/b"),
			[]string{"link", "src/a", "src/b"},
		},
		"a link that became a file": {
			[]string{"src/a", "src/b", "d/link -> ../src/a"},
			func(t *testing.T, root string) {
				if err := os.Remove(filepath.Join(root, "d/link")); err != nil {
					t.Fatal(err)
				}
				grow(t, root, "d/link")
			},
			[]string{"d/link", "src/a"},
		},
		"a deleted link": {
			[]string{"src/a", "src/b", "d/link -> ./../src/a", "d/e"},
			func(t *testing.T, root string) {
				if err := os.Remove(filepath.Join(root, "d/link")); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"d", "src/a"},
		},
		"a new link to an old file": {
			[]string{"src/a", "src/b"},
			relink("new/link -> ../src/b"),
			[]string{".", "new", "new/link", "src/b"},
		},
		"a link to another link": {
			[]string{"a", "b", "one -> two", "two -> b", "link -> a"},
			relink("link -> ./one"),
			[]string{"a", "b", "link", "one", "two"},
		},
		"a link through a link to a directory": {
			[]string{"a", "v1/x", "v1/y", "v2/x", "current -> v2", "link -> a"},
			relink("link -> current//x"),
			// The link on the way is touched, and what it leads to as well: a tool may look through either.
			[]string{"a", "current", "link", "v2", "v2/x"},
		},
		"a link to another directory": {
			[]string{"v1/x", "v2/x", "v2/sub/y", "v2-not/x", "current -> v1", "through -> current/x"},
			relink("current -> v2"),
			[]string{"current", "v1", "v1/x", "v2", "v2/sub", "v2/sub/y", "v2/x"},
		},
		"a link in a directory that another leads to": {
			[]string{"old/x", "new/x -> ../far/x", "far/x", "far/y", "current -> old"},
			relink("current -> new/"),
			[]string{"current", "far/x", "new", "new/x", "old", "old/x"},
		},
		"a directory that became a link": {
			[]string{"include/x", "other/x"},
			func(t *testing.T, root string) {
				if err := os.RemoveAll(filepath.Join(root, "include")); err != nil {
					t.Fatal(err)
				}
				grow(t, root, "include -> other")
			},
			[]string{"include", "other", "other/x"},
		},
		"a link that became a directory": {
			[]string{"include -> other", "other/x"},
			func(t *testing.T, root string) {
				if err := os.Remove(filepath.Join(root, "include")); err != nil {
					t.Fatal(err)
				}
				grow(t, root, "include/x")
			},
			[]string{"include", "include/x", "other", "other/x"},
		},
		"a link to nothing": {
			[]string{"a", "link -> a"},
			relink("link -> none/../a"),
			[]string{"a", "link"},
		},
		"a link out of the tree, and back by a way nobody knows": {
			[]string{"a", "link -> a", "up -> a"},
			relink("link -> /nowhere/a", "up -> ../x/a"),
			[]string{"a", "link", "up"},
		},
		"a loop": {
			[]string{"a", "link -> a"},
			relink("link -> loop", "loop -> link"),
			[]string{".", "a", "link", "loop"},
		},
		"a link to the tree": {
			[]string{"a", "d/b", "link -> a"},
			relink("link -> d/../."),
			[]string{".", "a", "d", "d/b", "link"},
		},
		"a hard link to an edited file": {
			[]string{"a", "d/b = a", "c"},
			func(t *testing.T, root string) {
				if err := os.WriteFile(filepath.Join(root, "a"), []byte("in place"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			[]string{"a", "d/b"},
		},
		"a new hard link to an old file": {
			[]string{"a", "c"},
			func(t *testing.T, root string) { grow(t, root, "0 = a") },
			[]string{".", "0", "a"},
		},
		"a new name for an old file": {
			[]string{"a", "c"},
			func(t *testing.T, root string) { grow(t, root, "z = a") },
			[]string{".", "a", "z"},
		},
		"a file on a link's way": {
			[]string{"a", "link -> a"},
			relink("link -> a/b"),
			[]string{"a", "link"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, c.files...)
			base := baseOf(t, root)
			c.change(t, root)
			p, _ := planFor(t, root, base, 0)
			now := probe(t, root)
			apply(t, p, root, now)
			same(t, "touched", touched(t, root, base, now, 0), c.want...)
			if c := p.Changed(); c != nil {
				t.Errorf("changed meanwhile: %q", c)
			}
		})
	}
}

// relink puts links in the place of what is there.
func relink(links ...string) func(t *testing.T, root string) {
	return func(t *testing.T, root string) {
		for _, l := range links {
			name, _, _ := strings.Cut(l, " -> ")
			if err := os.Remove(filepath.Join(root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		grow(t, root, links...)
	}
}

func TestApplyThroughAbsoluteLinks(t *testing.T) {
	root := tree(t, "a", "b", "c", "d", "one -> a", "two -> a", "three -> a", "four -> a")
	other := filepath.Join(tree(t), "other")
	if err := os.Symlink(root, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root+"/d", filepath.Join(root, "way")); err != nil {
		t.Fatal(err)
	}
	base := baseOf(t, root)
	relink("four -> way", "one -> "+root+"/b", "two -> "+other+"/c", "three -> "+root+"x/c")(t, root)
	found := walk(t, root)
	changes := Diff(base, hashTree(t, root, found))
	now := probe(t, root)
	apply(t, NewPlan(root, changes, found, 0), root, now)
	same(t, "touched", touched(t, root, base, now, 0), "a", "b", "d", "four", "one", "three", "two", "way")

	// Under its other name the tree knows both.
	found = walk(t, root)
	apply(t, NewPlan(other, changes, found, 0), root, now)
	same(t, "touched", touched(t, root, base, now, 0), "a", "b", "c", "d", "four", "one", "three", "two", "way")
}

// TestApplyToWhatLinksHaveLedTo is about links that led to a place by its absolute path, and about very many of them.
func TestApplyToWhatLinksHaveLedTo(t *testing.T) {
	root := tree(t, "a", "b", "c", "d/e")
	grow(t, root, "one -> "+root+"/b", "two -> "+root+"/d/")
	base := baseOf(t, root)
	relink("one -> c", "two -> none")(t, root)
	p, _ := planFor(t, root, base, 0)
	now := probe(t, root)
	apply(t, p, root, now)
	same(t, "touched", touched(t, root, base, now, 0), "b", "c", "d", "d/e", "one", "two")

	// Too many to be looked for: then all sources may be what they led to.
	_, found := planFor(t, root, base, 0)
	var many []index.Source
	for i := range maxGuesses/len(found) + 1 {
		many = append(many, index.Source{Path: fmt.Sprintf("gone/%07d/link", i), Kind: index.Link})
	}
	changes := Diff(base, hashTree(t, root, found))
	changes.Deleted = many
	now = probe(t, root)
	apply(t, NewPlan(root, changes, found, 0), root, now)
	same(t, "touched", touched(t, root, base, now, 0), ".", "a", "b", "c", "d", "d/e", "one", "two")
}

func TestApplyNeverFollowsLinks(t *testing.T) {
	outside := tree(t, "file", "dir/file")
	root := tree(t, "link -> "+outside+"/file", "dir -> "+outside+"/dir", "new/file", "kept/file")
	base := baseOf(t, root)
	relink("link -> "+outside+"/dir")(t, root)
	p, _ := planFor(t, root, base, 0)
	// Directories are replaced by links after the walk.
	for _, d := range []string{"new", "kept"} {
		if err := os.RemoveAll(filepath.Join(root, d)); err != nil {
			t.Fatal(err)
		}
	}
	relink("new -> "+outside+"/dir", "kept -> "+outside)(t, root)
	now := probe(t, root)
	apply(t, p, root, now)
	for _, path := range []string{"file", "dir", "dir/file"} {
		if got := mtimeOf(t, outside, path); got != old {
			t.Errorf("%s outside of the tree has the time %d", path, got)
		}
	}
	if got := mtimeOf(t, root, "dir"); got != recorded+1 {
		t.Errorf("the unchanged link has the time %d", got)
	}
	same(t, "changed", p.Changed(), "kept/file", "new/file")
}

func TestApplyHardLinks(t *testing.T) {
	root := tree(t, "a", "d/b = a", "z = a", "x", "y = x")
	base := baseOf(t, root)
	source(t, base, "a").MTime = recorded + 100
	source(t, base, "d/b").MTime = recorded + 300
	source(t, base, "z").MTime = recorded + 200
	p, _ := planFor(t, root, base, -50)
	apply(t, p, root, probe(t, root))
	if got := mtimeOf(t, root, "a"); got != recorded+250 {
		t.Errorf("three names with different times get %d", got-recorded)
	}
	if want := source(t, base, "y").MTime - 50; mtimeOf(t, root, "x") != want {
		t.Errorf("two names get %d, not %d", mtimeOf(t, root, "x"), want)
	}
	same(t, "changed", p.Changed())

	// Its first name is given to another file: nobody knows what the inode is now.
	p, _ = planFor(t, root, base, 0)
	replace(t, root, "a", "a")
	now := probe(t, root)
	apply(t, p, root, now)
	for _, path := range []string{"a", "d/b", "z"} {
		if got := mtimeOf(t, root, path); got != now {
			t.Errorf("%s has the time %d, not now", path, got)
		}
	}
	same(t, "changed", p.Changed(), "a", "d/b", "z")
}

func TestApplyShiftsAndClamps(t *testing.T) {
	root := tree(t, "epoch", "negative", "nix", "nix-later", "ns", "zero", "dir/")
	base := baseOf(t, root)
	for path, ns := range map[string]int64{
		"epoch": 0, "negative": -5 * second, "nix": second, "nix-later": second + 1, "ns": old + 7, "dir": -1,
	} {
		source(t, base, path).MTime = ns
	}
	for _, shift := range []int64{0, -1, -2 * int64(time.Hour)} {
		p, _ := planFor(t, root, base, shift)
		apply(t, p, root, probe(t, root))
		for _, s := range base {
			if got := mtimeOf(t, root, s.Path); got != max(s.MTime+shift, second) {
				t.Errorf("with a shift of %d %s gets %d instead of %d", shift, s.Path, got, s.MTime)
			}
		}
	}
}

func TestApplyBeyondPathMax(t *testing.T) {
	root := t.TempDir()
	dir, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * unix.PathMax / 200 {
		name := strings.Repeat("d", 200)
		if err := dir.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := dir.OpenRoot(name)
		if err := errors.Join(err, dir.Close()); err != nil {
			t.Fatal(err)
		}
		dir = next
	}
	defer func() { _ = dir.Close() }()
	if err := errors.Join(dir.WriteFile("edited", []byte("1"), 0o600), dir.WriteFile("same", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	base := baseOf(t, root)
	if err := dir.WriteFile("edited", []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, found := planFor(t, root, base, 0)
	now := probe(t, root)
	apply(t, p, root, now)
	same(t, "touched", touched(t, root, base, now, 0), base[len(base)-2].Path)
	if err := p.Undo(root); err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if got := mtimeOf(t, root, f.Path); got != f.Stat.MTime {
			t.Errorf("%d bytes of path: the time is %d again, it was %d", len(f.Path), got, f.Stat.MTime)
		}
	}
}

// TestApplyToWhatHasChangedSince edits a tree between the walk and Apply, and between two Applies.
func TestApplyToWhatHasChangedSince(t *testing.T) {
	root := tree(t, "between", "edited", "gone", "kept", "link -> kept", "stealthy", "went/x", "mode")
	base := baseOf(t, root)
	p, _ := planFor(t, root, base, 0)
	replace(t, root, "edited", "other")
	// The same size, the same inode, the same time: only the ctime tells.
	if err := os.WriteFile(filepath.Join(root, "stealthy"), []byte("STEALTHY"), 0o600); err != nil {
		t.Fatal(err)
	}
	setMTime(t, root, "stealthy", old)
	relink("link -> mode")(t, root)
	err := errors.Join(os.Remove(filepath.Join(root, "gone")), os.RemoveAll(filepath.Join(root, "went")))
	if err != nil {
		t.Fatal(err)
	}
	now := probe(t, root)
	apply(t, p, root, now)
	same(t, "touched", touched(t, root, base, now, 0), "edited", "link", "stealthy")
	same(t, "changed", p.Changed(), "edited", "gone", "link", "stealthy", "went/x")

	stats := p.Stats()
	for _, f := range walk(t, root) {
		st, ok := stats[f.Path]
		want := f.Kind != index.Dir && !slices.Contains(p.Changed(), f.Path)
		if ok != want || ok && st != f.Stat {
			t.Errorf("%s has the Stat %+v, %v, not %+v", f.Path, st, ok, f.Stat)
		}
	}

	replace(t, root, "between", "other")
	later := probe(t, root)
	apply(t, p, root, later)
	same(t, "touched", touched(t, root, base, later, 0), "between", "edited", "link", "stealthy")
	same(t, "changed", p.Changed(), "between", "edited", "gone", "link", "stealthy", "went/x")

	// What was edited must not look as old as before: the build would not see it.
	replace(t, root, "mode", "since")
	since := mtimeOf(t, root, "mode")
	if err := p.Undo(root); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int64{
		"between": later, "edited": later, "stealthy": later, "link": later, "kept": old, "mode": since,
	} {
		if got := mtimeOf(t, root, path); got != want {
			t.Errorf("after Undo %s has the time %d, not %d", path, got, want)
		}
	}
}

// TestOrderOfARestore calls what a restore calls, with the renames between.
func TestOrderOfARestore(t *testing.T) {
	root := tree(t, "a", "d/b", "d/c", ".nbc-work/art")
	base := baseOf(t, root)
	replace(t, root, "a", "other")
	for _, f := range walk(t, root) {
		setMTime(t, root, f.Path, old+1)
	}
	p, found := planFor(t, root, base, 0)
	now := probe(t, root)
	if err := p.TouchAll(t.Context(), root, now); err != nil {
		t.Fatal(err)
	}
	same(t, "touched", touched(t, root, base, now, 0), pathsOf(base)...)
	later := probe(t, root)
	apply(t, p, root, later)
	same(t, "touched", touched(t, root, base, later, 0), "a")
	if err := os.Rename(filepath.Join(root, ".nbc-work/art"), filepath.Join(root, "d/dist")); err != nil {
		t.Fatal(err)
	}
	if got := mtimeOf(t, root, "d"); got == source(t, base, "d").MTime {
		t.Fatal("a rename does not change the time of a directory")
	}
	if err := p.ApplyDirs(t.Context(), root, later); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, "d/dist"), filepath.Join(root, ".nbc-work/art")); err != nil {
		t.Fatal(err)
	}
	if err := p.ApplyDirs(t.Context(), root, later); err != nil {
		t.Fatal(err)
	}
	same(t, "touched at the end", touched(t, root, base, later, 0), "a")
	same(t, "changed", p.Changed())
	probe(t, root) // which changes the time of the tree
	if err := p.Undo(root); err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if got := mtimeOf(t, root, f.Path); got != f.Stat.MTime {
			t.Errorf("%s has the time %d again, it was %d", f.Path, got, f.Stat.MTime)
		}
	}
}

// TestApplyLeavesAlone shows by the ctime that no call is made for what has its time already, and that a touch always
// is one.
func TestApplyLeavesAlone(t *testing.T) {
	root := tree(t, "right", "wrong", "edited")
	base := baseOf(t, root)
	replace(t, root, "edited", "other")
	for _, path := range []string{"right", "."} {
		setMTime(t, root, path, source(t, base, path).MTime)
	}
	now := probe(t, root)
	setMTime(t, root, ".", source(t, base, ".").MTime)
	setMTime(t, root, "edited", now)
	p, found := planFor(t, root, base, 0)
	for mtimeNow := now; mtimeNow == now; mtimeNow = probe(t, t.TempDir()) { // until the clock has ticked
		time.Sleep(time.Millisecond)
	}
	apply(t, p, root, now)
	for _, f := range found {
		st, err := index.LstatFile(root, f.Path)
		if err != nil {
			t.Fatal(err)
		}
		if set := st.CTime != f.Stat.CTime; set != (f.Path == "wrong" || f.Path == "edited") {
			t.Errorf("%s: its time was set: %v", f.Path, set)
		}
	}
}

// TestApplyFails makes one directory unreadable after the walk, and one file somebody else's.
func TestApplyFails(t *testing.T) {
	t.Run("a directory", func(t *testing.T) {
		root := tree(t, "a", "b/x", "c/x", "d")
		base := baseOf(t, root)
		asNobody(t, root, nil, func() {
			p, found := planFor(t, root, base, 0)
			closed := filepath.Join(root, "b")
			if err := os.Chmod(closed, 0); err != nil {
				t.Fatal(err)
			}
			err := p.Apply(t.Context(), root, probe(t, root))
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), `"b"`) {
				t.Errorf("Apply gives %v", err)
			}
			if err := p.Undo(root); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("Undo gives %v", err)
			}
			if err := os.Chmod(closed, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				if got := mtimeOf(t, root, f.Path); got != f.Stat.MTime {
					t.Errorf("after Undo %s has the time %d", f.Path, got)
				}
			}
		})
	})
	t.Run("a file of another owner", func(t *testing.T) {
		if os.Geteuid() != 0 {
			if slices.Contains(strings.Split(os.Getenv("NBC_REQUIRE"), ","), "root") {
				t.Fatal("root is required")
			}
			t.Skip("only root can make one")
		}
		root := tree(t, "a", "b", "others/right", "others/same", "others/writable", "others/closed")
		base := baseOf(t, root)
		setMTime(t, root, "others/right", source(t, base, "others/right").MTime)
		for _, f := range []string{"writable", "closed"} {
			replace(t, root, "others/"+f, "anew")
		}
		if err := os.Chmod(filepath.Join(root, "others/writable"), 0o666); err != nil {
			t.Fatal(err)
		}
		others := []string{"others/right", "others/same", "others/writable", "others/closed"}
		asNobody(t, root, others, func() {
			now := probe(t, root)
			p, _ := planFor(t, root, base, 0)
			err := p.Apply(t.Context(), root, now)
			if !errors.Is(err, fs.ErrPermission) ||
				!strings.Contains(err.Error(), `"others/closed": neither the file's owner`) {
				t.Errorf("Apply gives %v", err)
			}
			// Without it the next one is in the way.
			if err := os.Remove(filepath.Join(root, "others/closed")); err != nil {
				t.Fatal(err)
			}
			p, _ = planFor(t, root, base, 0)
			err = p.Apply(t.Context(), root, now)
			if !errors.Is(err, fs.ErrPermission) ||
				!strings.Contains(err.Error(), `"others/same": not the file's owner`) {
				t.Errorf("Apply gives %v", err)
			}
			if err := os.Remove(filepath.Join(root, "others/same")); err != nil {
				t.Fatal(err)
			}
			// One that has its time already needs nothing, and one that may be written gets the kernel's present.
			p, _ = planFor(t, root, base, 0)
			if err := p.Apply(t.Context(), root, now); err != nil {
				t.Error(err)
			}
			if got := mtimeOf(t, root, "others/writable"); got < now {
				t.Errorf("others/writable has the time %d at %d", got, now)
			}
		})
	})
}

func TestApplyStops(t *testing.T) {
	root := tree(t, "a", "d/b")
	p, _ := planFor(t, root, baseOf(t, root), 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Apply(ctx, root, probe(t, root)); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply gives %v", err)
	}
	if got := mtimeOf(t, root, "d/b"); got != old {
		t.Errorf("d/b has the time %d", got)
	}
}

// TestApplyIsWhatWasPlanned changes generated trees. Afterwards every source that is as it was has its recorded time,
// and every other one the present; and Undo leaves nothing of it.
func TestApplyIsWhatWasPlanned(t *testing.T) {
	name := rapid.SampledFrom([]string{"a", "b", "a-b", "c", "+"})
	anyPath := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(name, 1, 3).Draw(t, "names"), "/")
	})
	rapid.Check(t, func(rt *rapid.T) {
		root, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		// put makes a file or a directory where that is possible. Links would have effects on others: see TestApply.
		put := func(p, content string) {
			if os.MkdirAll(filepath.Join(root, path.Dir(p)), 0o700) != nil {
				return
			}
			if content == "" {
				_ = os.Mkdir(filepath.Join(root, p), 0o700)
				return
			}
			_ = os.WriteFile(filepath.Join(root, p), []byte(content), 0o600)
		}
		content := rapid.SampledFrom([]string{"", "1", "2", "3"})
		for range rapid.IntRange(0, 12).Draw(rt, "files") {
			put(anyPath.Draw(rt, "path"), content.Draw(rt, "content"))
		}
		base := baseOf(t, root)
		for i := range base {
			base[i].MTime = rapid.Int64Range(-5*second, recorded).Draw(rt, "recorded")
		}
		for range rapid.IntRange(0, 4).Draw(rt, "changes") {
			if rapid.Bool().Draw(rt, "remove") {
				_ = os.RemoveAll(filepath.Join(root, anyPath.Draw(rt, "path"))) // a file may be on the way
			} else {
				put(anyPath.Draw(rt, "path"), content.Draw(rt, "content"))
			}
		}
		shift := rapid.SampledFrom([]int64{0, -1, -int64(shifted)}).Draw(rt, "shift")

		now := probe(t, root)
		p, found := planFor(t, root, base, shift)
		apply(t, p, root, now)
		current := hashTree(t, root, walk(t, root))
		for _, s := range current {
			want := now
			for _, b := range base {
				if b.Path == s.Path && b.Kind == s.Kind && b.Sum == s.Sum {
					want = max(b.MTime+shift, second)
				}
			}
			if s.MTime != want {
				rt.Fatalf("%s has the time %d, not %d", s.Path, s.MTime, want)
			}
		}
		if len(current) != len(found) || p.Changed() != nil {
			rt.Fatalf("%d sources of %d, changed: %q", len(current), len(found), p.Changed())
		}
		if err := p.Undo(root); err != nil {
			rt.Fatal(err)
		}
		for _, f := range found {
			if got := mtimeOf(t, root, f.Path); got != f.Stat.MTime {
				rt.Fatalf("after Undo %s has the time %d", f.Path, got)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	root := b.TempDir()
	for i := range 2000 {
		grow(b, root, fmt.Sprintf("%d/%d", i/20, i))
	}
	base := baseOf(b, root)
	now := probe(b, root)
	found := walk(b, root)
	changes := Diff(base, hashTree(b, root, found))
	for b.Loop() {
		p := NewPlan(root, changes, walk(b, root), 0)
		if err := p.TouchAll(b.Context(), root, now); err != nil {
			b.Fatal(err)
		}
		apply(b, p, root, now)
	}
}
