package matrix

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// makeSite is a place to build with GNU make, in the first row of the matrix.
func makeSite(t *testing.T) *site {
	t.Parallel()
	x := *tools[0]
	return newSite(t, &x, find(t, x.needs))
}

// expect is what one build has to come to.
type expect struct {
	hit    bool
	failed bool
	saved  bool
	units  int    // -1 for any number
	reason string // part of why there was no hit, or no save
}

// buildAnew lays the tree and builds it with a script in the place of the tool's.
func (s *site) buildAnew(t *testing.T, name string, sources state, script string, want expect) built {
	t.Helper()
	lay(t, s.tree(), sources, true)
	tool := *s.tool
	defer func() { s.tool = &tool }()
	changed := tool
	changed.build = script
	s.tool = &changed
	b := s.build(t, hooks{})
	reason := b.restore.Reason + b.save.Reason
	if b.restore.Hit != want.hit || b.failed != want.failed || b.save.Saved != want.saved ||
		want.units >= 0 && len(b.units) != want.units || !strings.Contains(reason, want.reason) {
		t.Fatalf("%s: hit %v, failed %v, saved %v, reason %q, units %q; want %+v\n%s", name, b.restore.Hit, b.failed,
			b.save.Saved, reason, b.units, want, b.printed)
	}
	if !b.failed {
		if got, want := s.print(t, s.tree()), s.cleanOutput(t, sources); got != want {
			t.Fatalf("%s: WRONG: the program prints\n%swhen built clean\n%s\n%s", name, got, want, b.printed)
		}
	}
	return b
}

// TestOutageThenFailure has a good cache, a restore that cannot reach the store, and a build that fails when the store
// is back: what that has built is no reason to lose what was there.
func TestOutageThenFailure(t *testing.T) {
	s := makeSite(t)
	good := s.project.base
	broken := s.project.with(good, "broken")
	build := s.tool.build
	all := len(s.buildAnew(t, "cold", good, build, expect{saved: true, units: -1}).units)

	indexes := filepath.Join(s.root, "store", "index")
	away := filepath.Join(s.root, "away")
	if err := os.Rename(indexes, away); err != nil {
		t.Fatal(err)
	}
	// A link to itself: not a store without indexes, but one where nobody can look for them.
	if err := os.Symlink(indexes, indexes); err != nil {
		t.Fatal(err)
	}
	back := fmt.Sprintf("rm '%s'; mv '%s' '%s'\n", indexes, away, indexes)
	b := s.buildAnew(t, "outage", broken, back+build, expect{
		failed: true, units: -1, reason: "the build failed, and it did not begin with what this name holds",
	})
	if !strings.Contains(b.printed, "not restored") {
		t.Errorf("the outage is not told:\n%s", b.printed)
	}

	s.buildAnew(t, "after it", good, build, expect{hit: true, saved: true, units: 0})
	if all != 8 {
		t.Errorf("a cold build has %d units", all)
	}
}

// TestFailureOfAnAbsentName keeps the progress of a failed build where there was nothing before.
func TestFailureOfAnAbsentName(t *testing.T) {
	s := makeSite(t)
	broken := s.project.with(s.project.base, "broken")
	build := s.tool.build
	first := s.buildAnew(t, "broken", broken, "make CC=gcc -k", expect{failed: true, saved: true, units: -1})
	b := s.buildAnew(t, "fixed", s.project.with(broken, "fixed"), build, expect{hit: true, saved: true, units: 2})
	if slices.Sort(b.units); !slices.Equal(b.units, []string{"a.c", "link"}) {
		t.Errorf("built %q after %q", b.units, first.units)
	}
}

// TestEmptyTree has builds that leave nothing in the cache directory.
func TestEmptyTree(t *testing.T) {
	s := makeSite(t)
	sources := s.project.base
	build := s.tool.build
	s.buildAnew(t, "cold", sources, build, expect{saved: true, units: 8})
	for name, script := range map[string]string{
		"removed": "rm -rf build", "emptied": "rm -rf build; mkdir build", "never made": "rm -rf build; mkdir -p build/sub",
	} {
		lay(t, s.tree(), sources, true)
		x := *s.tool
		x.build = script
		was := s.tool
		s.tool = &x
		b := s.build(t, hooks{})
		s.tool = was
		if !b.restore.Hit || b.failed || b.save.Saved || !strings.Contains(b.save.Reason, "nothing in build") {
			t.Errorf("%s: hit %v, failed %v, saved %v, reason %q\n%s", name, b.restore.Hit, b.failed, b.save.Saved,
				b.save.Reason, b.printed)
		}
	}
	s.buildAnew(t, "after it", sources, build, expect{hit: true, saved: true, units: 0})
}

// TestCacheThatFailsBuilds has an artifact in the cache that breaks every build that starts from it, as one that a
// full disk has cut short. After two such builds the cache is put aside, and a cold build heals it.
func TestCacheThatFailsBuilds(t *testing.T) {
	s := makeSite(t)
	sources := s.project.base
	build := s.tool.build
	s.buildAnew(t, "cold", sources, build+"; echo garbage > build/d.o", expect{saved: true, units: 8})
	fails := expect{hit: true, failed: true, saved: true, units: 1}
	s.buildAnew(t, "fails", sources, build, fails)
	s.buildAnew(t, "fails again", sources, build, fails)
	// With other sources the reason may have been the sources.
	lay(t, s.tree(), s.project.with(sources, "leaf"), true)
	var other restoreReport
	s.step(t, []string{
		"restore", "matrix", "--dir", "build", "--store", filepath.Join(s.root, "store"),
	}, &other)
	if !other.Hit {
		t.Errorf("with other sources: a miss, %s", other.Reason)
	}
	s.buildAnew(t, "put aside", sources, build, expect{
		saved: true, units: 8, reason: "2 builds in a row failed from it with these sources",
	})
	s.buildAnew(t, "healed", sources, build, expect{hit: true, saved: true, units: 0})
}

// TestSuccessEndsTheCount has builds that fail every other time: none is put aside.
func TestSuccessEndsTheCount(t *testing.T) {
	s := makeSite(t)
	sources := s.project.base
	build := s.tool.build
	s.buildAnew(t, "cold", sources, build, expect{saved: true, units: 8})
	for i := range 3 {
		s.buildAnew(t, fmt.Sprintf("fails, %d", i), sources, "false", expect{hit: true, failed: true, saved: true})
		s.buildAnew(t, fmt.Sprintf("succeeds, %d", i), sources, build, expect{hit: true, saved: true})
	}
}

// TestWaitForTheClock restores what is in the future: that is waited for.
func TestWaitForTheClock(t *testing.T) {
	s := makeSite(t)
	const ahead = 8 * time.Second // of which a busy machine saves and lays a tree for some
	lay(t, s.tree(), s.project.base, true)
	s.build(t, hooks{aged: func() {
		shift(t, s.tree(), func(newest int64) int64 { return time.Now().Add(ahead).UnixNano() - newest })
	}})
	began := time.Now()
	b := s.buildAnew(t, "ahead", s.project.base, s.tool.build, expect{hit: true, saved: true})
	if b.restore.Waited <= 0 || b.restore.Waited > ahead || time.Since(began) < b.restore.Waited {
		t.Errorf("waited %v of %v\n%s", b.restore.Waited, time.Since(began), b.printed)
	}
	s.buildAnew(t, "leaf", s.project.with(s.project.base, "leaf"), s.tool.build, expect{hit: true, saved: true, units: 2})
}
