package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbc/transfer/store/dir"
)

// site is a tree, a state and a store in a directory of their own, made anew for each kill.
type site struct {
	*world
	base  string
	store string
	tree  Tree
}

// sourcesNow are those of the build that is killed: since the saved one some were edited, added and removed.
func sourcesNow() map[string]string {
	s := projectSources()
	for _, p := range []string{"src/a.c", "inc/y.h", "src/version.txt"} {
		s[p] = edited(s[p])
	}
	s["src/d.c"] = "d 1\ninclude inc/x.h\n"
	s["current"] = "-> conf/two"
	delete(s, "src/c.c")
	return s
}

// newSite makes a site with a copy of the store, and the sources in the tree.
func newSite(t *testing.T, store string, sources map[string]string) *site {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "nbc-site-") // in memory, if that can be: there are thousands of them
	if err != nil {
		base, err = os.MkdirTemp("", "nbc-site-")
	}
	if err != nil {
		t.Fatal(err)
	}
	// Work directories are told apart from sources of the same name by what the kernel calls them.
	if base, err = filepath.EvalSymlinks(base); err != nil {
		t.Fatal(err)
	}
	s := &site{
		world: &world{T: t, root: filepath.Join(base, "tree"), state: filepath.Join(base, "state", "receipt")},
		base:  base, store: filepath.Join(base, "store"), tree: projectDirs,
	}
	s.must(errors.Join(os.Mkdir(s.root, 0o755), os.Mkdir(s.store, 0o755)))
	if store != "" {
		s.must(linkTree(s.store, store))
	}
	s.cache = &Cache{Store: openDir(t, s.store)}
	s.put(sources)
	return s
}

func openDir(t testing.TB, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s.NoSync = true
	return s
}

func (s *site) close() {
	s.Helper()
	if d, ok := s.cache.Store.(*dir.Store); ok {
		s.must(d.Close())
	}
	s.must(removeTree(s.base))
}

// reopen closes and opens the store, as the next nbc does. In between nothing but objects and locks may be in it.
func (s *site) reopen() {
	s.Helper()
	if d, ok := s.cache.Store.(*dir.Store); ok {
		s.must(d.Close())
	}
	cleanStore(s, s.store)
	s.cache.Store = openDir(s, s.store)
}

// linkTree makes a tree of hard links, where that can be: a store never changes a file in place.
func linkTree(to, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil || strings.HasPrefix(rel, ",") {
			return err
		}
		if d.IsDir() {
			err = os.Mkdir(filepath.Join(to, rel), 0o755)
			if errors.Is(err, fs.ErrExist) {
				return nil
			}
			return err
		}
		if err := os.Link(p, filepath.Join(to, rel)); !errors.Is(err, syscall.EXDEV) {
			return err
		}
		return copyTo(filepath.Join(to, rel), p)
	})
}

// oldTimes gives all sources the time that a Nix build gives them.
func (s *site) oldTimes() {
	s.Helper()
	for p := range sourcesOf(s, s.root) {
		s.touch(p, 1_000_000_000)
	}
	for _, p := range []string{"src", "inc", "conf", "."} {
		s.touch(p, 1_000_000_000)
	}
}

func (s *site) options(name string) RestoreOptions {
	return RestoreOptions{Name: name, Tree: s.tree, Moved: true}
}

// cycle is a whole build in process: restore, build, save.
func (s *site) cycle(when string, replace bool) {
	s.Helper()
	o := s.options("n")
	o.Replace = replace
	if _, err := s.restore(o); err != nil {
		s.Fatalf("%s: restore: %v", when, err)
	}
	project(s.root).check(s, when)
	if rep, err := s.save(SaveOptions{}); err != nil || !rep.Saved {
		s.Fatalf("%s: save: %v, %+v", when, err, rep)
	}
	s.clean()
	s.reopen()
	for _, p := range []string{s.root, s.base} {
		if list, err := filepath.Glob(filepath.Join(p, ".nbc-*")); err != nil || len(list) > 0 {
			s.Fatalf("%s: left: %q, %v", when, list, err)
		}
	}
}

// scene is something that is killed: how it comes about, and what is done.
type scene struct {
	name string
	// before prepares the tree, after the sources of now are in it.
	before func(s *site)
	do     string
	save   SaveOptions
	// cold says that the store is empty.
	cold bool
	// replace is what the restore afterwards is allowed to.
	replace bool
	// named says that the file system has no files without names.
	named bool
}

// decide is what a tracer asks, for all but files without names.
func (sc scene) decide(f func(point) verdict) func(point) verdict {
	return func(p point) verdict {
		switch {
		case p.n >= 0:
			return f(p)
		case sc.named:
			return verdict{errno: syscall.EOPNOTSUPP}
		}
		return verdict{}
	}
}

func scenes() []scene {
	older := func(s *site) {
		// What an earlier build has left in this tree, and its receipt proves.
		s.hit(s.options("older"))
		was := s.read("src/o.c")
		s.write("src/o.c", "o 7\n")
		project(s.root).check(s, "before")
		s.saved(SaveOptions{Name: "mine", Tree: s.tree})
		s.tick()
		s.write("src/b.c", "b 3\ninclude inc/y.h\n")
		// As in the index that is restored next, but not what the object in place was made from.
		s.write("src/o.c", was)
	}
	return []scene{
		{name: "restore into a fresh tree", before: func(*site) {}, do: "restore"},
		{name: "restore over an older tree", before: older, do: "restore"},
		{name: "restore in place of another build", before: func(s *site) {
			s.must(project(s.root).build())
			s.tick()
			s.write("inc/x.h", "x 5\n")
		}, do: "restore", replace: true},
		{name: "restore behind a link", before: func(s *site) {
			s.must(os.MkdirAll(filepath.Join(s.base, "elsewhere"), 0o755))
			s.must(os.Symlink(filepath.Join(s.base, "elsewhere"), s.path("build")))
			older(s)
		}, do: "restore"},
		{name: "restore after one that was killed", before: func(s *site) {
			s.put(map[string]string{
				".nbc-work/old/0/obj/a.o": "old", ".nbc-work/old/2": "1", ".nbc-work/new/1/prog": "new", ".nbc-probe-0123456789abcdef": "",
			})
			s.must(s.in(func(b *Build) error { return nil }))
			s.must(os.WriteFile(s.state+".journal", []byte(`{"version":1,"work":["`+s.path(workName)+`"]}`), 0o600))
			s.must(os.WriteFile(s.state+".tmp", []byte("x"), 0o600))
		}, do: "restore"},
		{
			name: "cold save", before: func(s *site) { s.must(project(s.root).build()) }, do: "save", cold: true,
			save: SaveOptions{Name: "n", Tree: projectDirs},
		},
		{name: "save after a restore", before: func(s *site) {
			s.oldTimes()
			s.hit(s.options("n"))
			project(s.root).check(s, "before")
		}, do: "save"},
		{name: "second pass", before: func(s *site) {
			s.oldTimes()
			s.hit(s.options("n"))
			// A configure step that writes what was there, and what was not.
			s.write("inc/x.h", s.read("inc/x.h"))
			s.write("src/b.c", s.read("src/b.c"))
			s.write("inc/y.h", "y 7\n")
		}, do: "times"},
		{name: "run", before: older, do: "run"},
		{name: "run on a network file system", before: older, do: "run", named: true},
		{name: "first run", before: func(*site) {}, do: "run", cold: true},
	}
}

// template makes the store of all sites: an earlier build, and one still earlier.
func template(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	s := dirStore(t, path)
	for _, name := range []string{"older", "n"} {
		w := newWorld(t, s)
		w.put(projectSources())
		if name == "older" {
			w.write("src/b.c", "b 0\n")
			w.write("src/e.c", "e 0\n")
		}
		project(w.root).check(t, name)
		w.saved(SaveOptions{Name: name, Tree: projectDirs})
	}
	return path
}

func (sc scene) site(t *testing.T, store string) *site {
	t.Helper()
	if sc.cold {
		store = ""
	}
	s := newSite(t, store, sourcesNow())
	if !sc.cold {
		s.oldTimes()
	}
	sc.before(s)
	s.reopen()
	return s
}

func (sc scene) job(s *site) job {
	o := s.options("n")
	o.Replace = sc.replace
	return job{Do: sc.do, Root: s.root, State: s.state, Store: s.store, Restore: o, Save: sc.save}
}

// aftermath is what must hold whenever a child was killed, or came to its end.
func (sc scene) aftermath(s *site, when string, long bool) {
	s.Helper()
	// The build runs without another restore.
	project(s.root).check(s, when+": the build without another restore")
	s.cycle(when+": the next build", sc.replace)
	if !long {
		return
	}
	s.tick()
	s.write("inc/x.h", "x 9\n")
	s.cycle(when+": the build after that", false)
	// What is saved is right elsewhere, too.
	fresh := newSite(s.T, s.store, sourcesOf(s, s.root))
	defer fresh.close()
	fresh.oldTimes()
	if rep, err := fresh.restore(fresh.options("n")); err != nil || !rep.Hit {
		s.Fatalf("%s: elsewhere: %v, %+v", when, err, rep)
	}
	project(fresh.root).check(s, when+": elsewhere")
}

// Killed before, and so after, every system call that changes the tree, the state or the store.
func TestKilledAtEverySystemCall(t *testing.T) {
	needTrace(t)
	sample := sampled(t)
	var kills atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d kills", kills.Load())
		if !t.Failed() && !sample && kills.Load() < 1000 {
			t.Errorf("%d kills only", kills.Load())
		}
	})
	store := template(t)
	for _, sc := range scenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			step := 1
			if sample {
				step = 17
			}
			for n := 0; ; n += step {
				s := sc.site(t, store)
				var last point
				r, died := sc.job(s).trace(t, s.base, sc.decide(func(p point) verdict {
					last = p
					return verdict{kill: p.n == n}
				}))
				if !died && r.Err != "" {
					t.Fatalf("not killed: %+v", r)
				}
				sc.aftermath(s, fmt.Sprintf("killed before %v", last), true)
				s.close()
				if !died {
					if n < 10 {
						t.Errorf("killed %d times only", n)
					}
					t.Logf("%d system calls", last.n+1)
					break
				}
				kills.Add(1)
			}
		})
	}
}

// Killed at any time, without a tracer that stops it.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	store := template(t)
	rounds := 60
	if testing.Short() {
		rounds = 6
	}
	killed := 0
	var usual time.Duration // that a child takes, as other tests leave it time
	for n := range rounds {
		all := scenes()
		sc := all[n%len(all)]
		s := sc.site(t, store)
		if n == 0 {
			start := time.Now()
			if err := sc.job(s).command(t).Run(); err != nil {
				t.Fatal(err)
			}
			usual = time.Since(start)
		}
		cmd := sc.job(s).command(t)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rand.Int64N(int64(usual)))
		time.Sleep(after)
		_ = cmd.Process.Kill() // it may have ended
		err := cmd.Wait()
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			killed++
			usual += usual / 8
		} else if err != nil {
			t.Fatal(err)
		} else {
			usual = max(after, time.Millisecond) // it has taken less
		}
		sc.aftermath(s, fmt.Sprintf("%s, killed after %v", sc.name, after), true)
		s.close()
	}
	t.Logf("%d of %d were killed", killed, rounds)
	if killed < rounds/4 {
		t.Errorf("only %d of %d were killed", killed, rounds)
	}
}
