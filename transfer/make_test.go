package transfer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// project is a source tree with a build that decides by file times alone, as make does: a target is made anew if it is
// absent, or older than something that it was made from. It is in Go, and makes nothing but digests, so that a thousand
// builds take seconds. Its artifacts show what they were made from: a stale one is found in the result.
//
//	src/*.c, inc/*.h   with lines `include inc/x.h`
//	build/obj/*.o      from a source and what build/obj/*.d says it has included
//	build/objects      the list of objects, written when it changes
//	dist/prog          from all objects and the list
//	dist/a.o           another name of build/obj/a.o
//	dist/latest        a link to prog
//	dist/config        from the file that the link current leads to
//	version            a single file that is a cache directory, from src/version.txt
type project string

var projectDirs = Tree{Dirs: []string{"build", "dist", "version"}}

func projectSources() map[string]string {
	return map[string]string{
		"src/a.c": "a 1\ninclude inc/x.h\n", "src/b.c": "b 1\ninclude inc/x.h\ninclude inc/y.h\n", "src/c.c": "c 1\n",
		"src/m.c": "m 1\ninclude inc/x.h\n", "src/n.c": "n 1\n", "src/o.c": "o 1\n", "src/p.c": "p 1\n",
		"inc/x.h": "x 1\n", "inc/y.h": "y 1\n", "src/version.txt": "1", "conf/one": "one\n", "conf/two": "two\n",
		"current": "-> conf/one",
	}
}

// edit changes a source, as an editor does.
func edited(text string) string { return strings.Replace(text, "1", "2", 1) }

func (p project) path(rel string) string { return filepath.Join(string(p), rel) }

// older says whether the target must be made anew.
func (p project) older(target string, from ...string) (bool, error) {
	t, err := os.Lstat(p.path(target))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, f := range from {
		s, err := os.Stat(p.path(f)) // links are followed, as make does
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if t.ModTime().Before(s.ModTime()) {
			return true, nil
		}
	}
	return false, nil
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

func (p project) read(rel string) (string, error) {
	data, err := os.ReadFile(p.path(rel))
	return string(data), err
}

// write makes a target as a whole, so that it is never half a one when the build is killed.
func (p project) write(rel, text string) error {
	if err := os.MkdirAll(filepath.Dir(p.path(rel)), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(p.path(rel)+".part", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(p.path(rel)+".part", p.path(rel))
}

// object makes one object, and returns what it was made from.
func (p project) object(source string) (text string, deps []string, err error) {
	text, err = p.read(source)
	if err != nil {
		return "", nil, err
	}
	parts := []string{source, text}
	for line := range strings.Lines(text) {
		if h, ok := strings.CutPrefix(strings.TrimSpace(line), "include "); ok {
			header, err := p.read(h)
			if err != nil {
				return "", nil, err
			}
			parts, deps = append(parts, header), append(deps, h)
		}
	}
	return digest(parts...), deps, nil
}

// build does what is to be done.
func (p project) build() error {
	sources, err := filepath.Glob(p.path("src/*.c"))
	if err != nil {
		return err
	}
	var objects []string
	for _, s := range sources {
		name := strings.TrimSuffix(filepath.Base(s), ".c")
		source, object, depFile := "src/"+name+".c", "build/obj/"+name+".o", "build/obj/"+name+".d"
		objects = append(objects, object)
		from := []string{source, depFile}
		if deps, err := p.read(depFile); err == nil {
			from = append(from, strings.Fields(deps)...)
		}
		again, err := p.older(object, from...)
		if err != nil {
			return err
		}
		if !again {
			continue
		}
		text, deps, err := p.object(source)
		if err == nil {
			err = p.write(depFile, strings.Join(deps, "\n"))
		}
		if err == nil {
			err = p.write(object, text)
		}
		if err != nil {
			return err
		}
	}
	list := strings.Join(objects, "\n")
	if old, err := p.read("build/objects"); err != nil || old != list {
		if err := p.write("build/objects", list); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		target string
		from   []string
		make   func() (string, error)
	}{
		{"dist/prog", append(objects, "build/objects"), func() (string, error) {
			var b bytes.Buffer
			for _, o := range objects {
				text, err := p.read(o)
				if err != nil {
					return "", err
				}
				fmt.Fprintln(&b, o, text)
			}
			return b.String(), nil
		}},
		{"dist/config", []string{"current"}, func() (string, error) { text, err := p.read("current"); return digest(text), err }},
		{"version", []string{"src/version.txt"}, func() (string, error) { return p.read("src/version.txt") }},
	} {
		again, err := p.older(r.target, r.from...)
		if err != nil || !again {
			if err != nil {
				return err
			}
			continue
		}
		text, err := r.make()
		if err == nil {
			err = p.write(r.target, text)
		}
		if err != nil {
			return err
		}
	}
	if err := p.link("dist/a.o", "build/obj/a.o"); err != nil {
		return err
	}
	if err := os.Symlink("prog", p.path("dist/latest")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// link makes target another name of file, as cargo does with what it has built.
func (p project) link(target, file string) error {
	a, err := os.Stat(p.path(target))
	b, err2 := os.Stat(p.path(file))
	if err2 != nil || err == nil && os.SameFile(a, b) {
		return err2
	}
	if err := errors.Join(removeFile(p.path(target)), removeFile(p.path(target)+".part")); err != nil {
		return err
	}
	return os.Link(p.path(file), p.path(target))
}

// results are what a build is for.
func (p project) results() (map[string]string, error) {
	all := map[string]string{}
	for _, r := range []string{"dist/prog", "dist/config", "dist/a.o", "dist/latest", "version"} {
		text, err := p.read(r)
		if err != nil {
			return nil, err
		}
		all[r] = text
	}
	return all, nil
}

// check builds, and fails unless the results are those of a clean build of the same sources.
func (p project) check(t testing.TB, when string) {
	t.Helper()
	if err := p.build(); err != nil {
		t.Fatalf("%s: the build fails: %v", when, err)
	}
	got, err := p.results()
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	want := cleanResults(t, sourcesOf(t, string(p)))
	if !maps.Equal(got, want) {
		t.Fatalf("%s: WRONG RESULT\ngot  %v\nwant %v", when, got, want)
	}
}

var (
	cleanMutex  sync.Mutex
	cleanBuilds = map[string]map[string]string{}
)

// cleanResults are those of a build of the sources in an empty directory.
func cleanResults(t testing.TB, sources map[string]string) map[string]string {
	t.Helper()
	cleanMutex.Lock()
	defer cleanMutex.Unlock()
	key := fmt.Sprint(sources)
	if r, ok := cleanBuilds[key]; ok {
		return r
	}
	clean := project(t.TempDir())
	for rel, text := range sources {
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, clean.path(rel))
		} else {
			err = clean.write(rel, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := clean.build(); err != nil {
		t.Fatal(err)
	}
	r, err := clean.results()
	if err != nil {
		t.Fatal(err)
	}
	cleanBuilds[key] = r
	return r
}

// sourcesOf reads what is in a tree but not in a cache directory.
func sourcesOf(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if slices.Contains(projectDirs.Dirs, rel) || strings.HasPrefix(d.Name(), ".nbc-") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		switch {
		case d.IsDir():
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			all[rel] = "-> " + to
			return err
		default:
			data, err := os.ReadFile(p)
			all[rel] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The build of these tests is one that would find out: with times that do not say what has changed it is wrong.
func TestProjectIsAsCarelessAsMake(t *testing.T) {
	w := newWorld(t, nil)
	w.put(projectSources())
	p := project(w.root)
	p.check(t, "cold")
	w.tick()
	w.write("inc/y.h", "y 2\n")
	p.check(t, "a header has changed")
	w.tick()
	w.write("current", "-> conf/two")
	w.touch("conf/two", time.Now().UnixNano())
	p.check(t, "a link has changed")
	was := w.stat("src/a.c")
	w.write("src/a.c", edited(w.read("src/a.c")))
	w.touch("src/a.c", was.MTime)
	before := w.read("dist/prog")
	w.must(p.build())
	if w.read("dist/prog") != before {
		t.Error("it has found a change that the times do not tell")
	}
}
