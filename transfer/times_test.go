package transfer

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
)

func (w *world) times() (rep *TimesReport, err error) {
	w.Helper()
	err = w.in(func(b *Build) (err error) { rep, err = b.Times(context.Background()); return err })
	return rep, err
}

const configured = 1_600_000_000_000_000_123

// configuredWorld has a tree that was restored from a build whose configure step has written config.h and others.
func configuredWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, nil)
	w.put(map[string]string{
		"configure": "c", "config.h": "h", "gen/list": "l", "gen/twice": "t", "build/a.o": "a", "link": "-> config.h",
	})
	w.must(os.Link(w.path("gen/twice"), w.path("gen/again")))
	for _, p := range []string{"configure", "config.h", "gen/list", "gen/twice", "gen", "link"} {
		w.touch(p, configured)
	}
	w.first()
	w = w.again()
	w.put(map[string]string{"configure": "c"})
	w.hit(RestoreOptions{})
	return w
}

// What configure writes as it was gets back its time; what it writes otherwise has the present already.
func TestTimesAfterConfigure(t *testing.T) {
	w := configuredWorld(t)
	w.tick()
	w.put(map[string]string{"config.h": "h", "gen/list": "another list", "gen/new": "n", "gen/twice": "t", "link": "-> config.h"})
	w.must(os.Link(w.path("gen/twice"), w.path("gen/again")))
	rep, err := w.times() // config.h, link, and the directory itself
	if err != nil || rep.Name != "n" || rep.Restored != 3 || rep.Files < 5 {
		t.Errorf("%v, %+v", err, rep)
	}
	for p, old := range map[string]bool{
		"configure": true, "config.h": true, "link": true, "gen/list": false, "gen/new": false, "gen/twice": false,
	} {
		if got := w.stat(p).MTime; (got == configured) != old {
			t.Errorf("%s has the time %d", p, got)
		}
	}
	// The save knows what configure wrote before the build.
	w.write("build/a.o", "built")
	save := w.saved(SaveOptions{})
	if len(save.Unknown) > 0 || save.HashedAfter {
		t.Errorf("%+v", save)
	}
	x := w.index("n")
	for _, p := range []string{"config.h", "gen/list", "gen/new"} {
		if i, ok := findSource(x.Sources, p); !ok || x.Sources[i].Unknown || x.Sources[i].MTime != w.stat(p).MTime {
			t.Errorf("%s: %v", p, ok)
		}
	}
	// So the next build, whose configure step writes the same, has nothing to do.
	w = w.again()
	w.put(map[string]string{"configure": "c"})
	w.hit(RestoreOptions{})
	w.put(map[string]string{"config.h": "h", "gen/list": "another list", "gen/new": "n"})
	if rep, err := w.times(); err != nil || rep.Restored < 3 {
		t.Errorf("%v, %+v", err, rep)
	}
	for _, p := range []string{"config.h", "gen/list", "gen/new"} {
		if w.stat(p).MTime >= w.stat("build/a.o").MTime {
			t.Errorf("%s is newer than what was built from it", p)
		}
	}
	w.clean()
}

// Without a restore that has hit no time changes, but what configure wrote is known all the same.
func TestTimesAfterAMiss(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"configure": "c", "edited": "1"})
	w.miss(RestoreOptions{}, "no such name")
	w.put(map[string]string{"config.h": "h", "edited": "2"})
	was := w.snapshot()
	rep, err := w.times()
	if err != nil || rep.Restored != 0 || rep.Files < 2 {
		t.Errorf("%v, %+v", err, rep)
	}
	w.same(was)
	w.write("build/a.o", "a")
	save := w.saved(SaveOptions{})
	if len(slices.DeleteFunc(save.Unknown, func(p string) bool { return p == "." })) > 0 {
		t.Errorf("%+v", save)
	}
	x := w.index("n")
	if i, ok := findSource(x.Sources, "config.h"); !ok || x.Sources[i].Unknown {
		t.Error("config.h is not known")
	}
}

func TestTimesWithoutAReceipt(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"build/a.o": "a"})
	if _, err := w.times(); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("%v", err)
	}
	w.first()
	if _, err := w.times(); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("after a save: %v", err)
	}
}

// What is written while the second pass is under way is unknown: its hash may be that of other bytes.
func TestTimesWhileSourcesChange(t *testing.T) {
	for _, step := range []string{"second pass", "second pass done", "receipt"} {
		for _, p := range []string{"config.h", "gen/list"} {
			t.Run(p+" at "+step, func(t *testing.T) {
				w := configuredWorld(t)
				w.tick()
				w.put(map[string]string{"config.h": "h", "gen/list": "another list"})
				at(t, step, func() {
					was := w.stat(p)
					w.tick()
					w.write(p, "H")
					w.touch(p, was.MTime)
				})
				if _, err := w.times(); err != nil {
					t.Fatal(err)
				}
				w.tick()
				w.write("build/a.o", "built from H")
				w.saved(SaveOptions{})
				x := w.index("n")
				if i, ok := findSource(x.Sources, p); !ok || !x.Sources[i].Unknown {
					t.Errorf("%s is known: %v", p, ok)
				}
			})
		}
	}
}

// An error takes back what was set.
func TestTimesStopped(t *testing.T) {
	w := configuredWorld(t)
	w.tick()
	w.put(map[string]string{"config.h": "h", "gen/list": "l"})
	was := w.snapshot()
	b := w.open(false)
	ctx, cancel := context.WithCancel(context.Background())
	at(t, "second pass", cancel)
	_, err := b.Times(ctx)
	w.must(b.Close())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	w.same(was)
	if rep, err := w.times(); err != nil || rep.Restored == 0 {
		t.Errorf("%v, %+v", err, rep)
	}
}

// A source that is written while the second pass is at work is newer than all artifacts.
func TestTimesOfASourceThatChangesMeanwhile(t *testing.T) {
	w := newWorld(t, nil)
	w.put(map[string]string{"src/a.c": "a", "config.h": "one"})
	w.tick()
	w.put(map[string]string{"build/a.o": "object a"})
	w.first()
	w.hit(RestoreOptions{})
	w.tick()
	w.write("config.h", "one") // as configure does
	at(t, "second pass", func() { w.write("config.h", "two") })
	w.must(w.in(func(b *Build) error { _, err := b.Times(t.Context()); return err }))
	if source, artifact := w.stat("config.h").MTime, w.stat("build/a.o").MTime; source <= artifact {
		t.Errorf("config.h is of %d, build/a.o of %d", source, artifact)
	}
}
