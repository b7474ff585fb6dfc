package mtime

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbc/index"
)

// grow makes files in a tree: "a/" is a directory, "a -> b" a link, "a = b" a hard link, anything else a file that
// holds its own path. All may read them, see asNobody.
func grow(t testing.TB, root string, files ...string) {
	t.Helper()
	for _, f := range files {
		name, target, link := strings.Cut(f, " -> ")
		name, first, hard := strings.Cut(name, " = ")
		full := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(target, full)
		case hard:
			err = os.Link(filepath.Join(root, first), full)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o755)
		default:
			err = os.WriteFile(full, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tree returns a new tree, all of whose times are some in the past.
func tree(t testing.TB, files ...string) string {
	t.Helper()
	root := t.TempDir()
	grow(t, root, files...)
	for _, f := range walk(t, root) {
		setMTime(t, root, f.Path, old)
	}
	return root
}

// old is the time of all files in a tree.
const old = 1_000_000_000_123_456_789

func setMTime(t testing.TB, root, path string, ns int64) {
	t.Helper()
	ts := []unix.Timespec{{Nsec: utimeOmit}, unix.NsecToTimespec(ns)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, path), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(path, err)
	}
}

func mtimeOf(t testing.TB, root, path string) int64 {
	t.Helper()
	st, err := index.LstatFile(root, path)
	if err != nil {
		t.Fatal(err)
	}
	return st.MTime
}

func walk(t testing.TB, root string, dirs ...string) []index.Found {
	t.Helper()
	p, err := index.CompilePatterns(dirs)
	if err != nil {
		t.Fatal(err)
	}
	found, err := index.Walker{Dirs: p}.Walk(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return found.Sources
}

func hashTree(t testing.TB, root string, found []index.Found) []index.Source {
	t.Helper()
	sources, err := Hash(t.Context(), root, found, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

func probe(t testing.TB, root string) int64 {
	t.Helper()
	now, err := Probe(root)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// source returns the one at path.
func source(t testing.TB, sources []index.Source, path string) *index.Source {
	t.Helper()
	for i := range sources {
		if sources[i].Path == path {
			return &sources[i]
		}
	}
	t.Fatalf("%s is not there", path)
	return nil
}

func pathsOf(sources []index.Source) []string {
	var all []string
	for _, s := range sources {
		all = append(all, s.Path)
	}
	return all
}

func same(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// asNobody runs do as a user who is not root, and who owns all of the tree but the files not. Whoever runs the test
// without being root owns them all.
func asNobody(t *testing.T, root string, not []string, do func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		const nobody = 65534
		for _, f := range walk(t, root) {
			if !slices.Contains(not, f.Path) {
				if err := os.Lchown(filepath.Join(root, f.Path), nobody, nobody); err != nil {
					t.Fatal(err)
				}
			}
		}
		for p := root; p != filepath.Dir(p) && p != os.TempDir(); p = filepath.Dir(p) {
			if err := os.Chmod(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Setreuid(-1, nobody); err != nil {
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

// replace puts a file with other bytes in the place of path, as editors do.
func replace(t testing.TB, root, path, content string) {
	t.Helper()
	full := filepath.Join(root, path)
	if err := errors.Join(os.WriteFile(full+"~", []byte(content), 0o644), os.Rename(full+"~", full)); err != nil {
		t.Fatal(err)
	}
}

const second = int64(time.Second)
