package matrix

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// file is a regular file with its text, or a link with its target.
type file struct {
	text string
	link bool
}

// state is all sources at one moment, by path.
type state map[string]file

// project is what one row of the matrix builds. An archive in testdata has files base/PATH, and for every edit files
// EDIT/PATH; lines of its comment add links ("link EDIT/PATH TARGET"), say what an edit deletes ("delete EDIT/PATH"),
// and which two files change places ("swap PATH PATH").
type project struct {
	base    state
	edits   map[string]state
	deleted map[string][]string
	swapped [2]string
}

// readProject puts archives over one another.
func readProject(t *testing.T, archives []string) *project {
	p := &project{base: state{}, edits: map[string]state{}, deleted: map[string][]string{}}
	add := func(name string, f file) {
		edit, path, _ := strings.Cut(name, "/")
		if edit == "base" {
			p.base[path] = f
			return
		}
		if p.edits[edit] == nil {
			p.edits[edit] = state{}
		}
		p.edits[edit][path] = f
	}
	for _, name := range archives {
		a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			add(f.Name, file{text: string(f.Data)})
		}
		for line := range strings.Lines(string(a.Comment)) {
			switch f := strings.Fields(line); {
			case len(f) == 3 && f[0] == "link":
				add(f[1], file{text: f[2], link: true})
			case len(f) == 2 && f[0] == "delete":
				edit, path, _ := strings.Cut(f[1], "/")
				p.deleted[edit] = append(p.deleted[edit], path)
			case len(f) == 3 && f[0] == "swap":
				p.swapped = [2]string{f[1], f[2]}
			}
		}
	}
	return p
}

// readFiles reads an archive that is not a project.
func readFiles(t *testing.T, archive string) state {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", archive+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	s := state{}
	for _, f := range a.Files {
		s[f.Name] = file{text: string(f.Data)}
	}
	return s
}

// has reports whether the project knows an edit.
func (p *project) has(edit string) bool {
	if edit == "swap" {
		return p.swapped[0] != ""
	}
	return p.edits[edit] != nil
}

// with returns s after an edit. "swap" exchanges the contents of two files, and "-EDIT" takes an edit back.
func (p *project) with(s state, edit string) state {
	s = maps.Clone(s)
	if edit == "swap" {
		a, b := p.swapped[0], p.swapped[1]
		s[a], s[b] = s[b], s[a]
		return s
	}
	if back, ok := strings.CutPrefix(edit, "-"); ok {
		for path := range p.edits[back] {
			s[path] = p.base[path]
		}
		return s
	}
	maps.Copy(s, p.edits[edit])
	for _, path := range p.deleted[edit] {
		delete(s, path)
	}
	return s
}

// lay deletes the tree at dir and writes it anew. Old trees are as Nix makes them: with all times one second after the
// epoch. The others have the present.
func lay(t *testing.T, dir string, s state, old bool) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// In one order: of files with the same time cargo takes the one that the directory lists first for the newest, where a
	// build script does not say what it depends on, and the file systems list in the order in which files were made.
	for _, path := range slices.Sorted(maps.Keys(s)) {
		write(t, filepath.Join(dir, path), s[path])
	}
	if !old {
		return
	}
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return setTime(path, 1e9)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// edit changes the tree at dir from one state to another as a person does: it writes what is different.
func edit(t *testing.T, dir string, from, to state) {
	t.Helper()
	for path := range from {
		if _, ok := to[path]; !ok {
			if err := os.Remove(filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
			// A package without files is none: only the last one to go takes its directories with it.
			for d := filepath.Dir(path); d != "."; d = filepath.Dir(d) {
				if os.Remove(filepath.Join(dir, d)) != nil {
					break
				}
			}
		}
	}
	for path, f := range to {
		if from[path] == f {
			continue
		}
		name := filepath.Join(dir, path)
		if !f.link {
			write(t, name, f)
			continue
		}
		// Most tools look through a link and see an old file; cargo has written down what the link led to, and sees that
		// unchanged. A person has to touch both, and so does nbc.
		touch(t, name)
		write(t, name, f)
		touch(t, name)
	}
}

// touch gives the present to a file, or to what a link leads to.
func touch(t *testing.T, name string) {
	t.Helper()
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, now, 0); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name string, f file) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if f.link {
		if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := os.Symlink(f.text, name); err != nil {
			t.Fatal(err)
		}
		return
	}
	mode := os.FileMode(0o644)
	if strings.HasPrefix(f.text, "#!") {
		mode = 0o755
	}
	if err := os.WriteFile(name, []byte(f.text), mode); err != nil {
		t.Fatal(err)
	}
}

func setTime(path string, ns int64) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(ns)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}

// shift moves the times of a tree as if it had been built at another time: by returns how far, given the newest one.
// Sources of an old tree keep theirs, as those in Nix have always the same. It returns the files that were moved.
func shift(t *testing.T, dir string, by func(newest int64) int64) (moved []string) {
	t.Helper()
	type inode struct{ dev, ino uint64 }
	times := map[string]int64{}
	seen := map[inode]bool{}
	var newest int64
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if id := (inode{st.Dev, st.Ino}); st.Mtim.Sec > 1 && !seen[id] {
			seen[id] = true
			times[path] = st.Mtim.Nano()
			newest = max(newest, times[path])
		}
		return nil
	})
	for _, path := range slices.Backward(slices.Sorted(maps.Keys(times))) {
		if err == nil {
			err = setTime(path, times[path]+by(newest))
		}
		if info, err := os.Lstat(path); err == nil && !info.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			moved = append(moved, rel)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return moved
}

// key names a state.
func (s state) key() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%q %v %q\n", path, s[path].link, s[path].text)
	}
	return b.String()
}
