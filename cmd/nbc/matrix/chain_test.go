package matrix

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// step is one build of a chain.
type step struct {
	name string
	// sources are those that the build begins with.
	sources state
	// during is what the sources are changed to when the build has begun; they are put back before the save. late is
	// what they are changed to after the build, and before the save.
	during, late state
	fails        bool
}

// at returns the sources that are compiled.
func (s step) at() state {
	if s.during != nil {
		return s.during
	}
	return s.sources
}

// mainSteps are the steps of the main chain by the edits that lead to them. "-EDIT" takes one back.
var mainSteps = []struct {
	name, edit   string
	during, late string // edits
	fails        bool
}{
	{name: "cold"},
	{name: "same"},
	{name: "leaf", edit: "leaf"},
	{name: "interface", edit: "iface"},
	{name: "same"},
	{name: "reverted", edit: "-leaf"},
	{name: "deleted, added", edit: "deladd"},
	{name: "same"},
	{name: "swapped", edit: "swap"},
	{name: "link", edit: "retarget"},
	{name: "broken", edit: "broken", fails: true},
	{name: "broken, fixed", edit: "fixed"},
	{name: "same"},
	{name: "edited during", during: "edit"},
	{name: "put back"},
	{name: "edited after", late: "edit"},
	{name: "kept", edit: "edit"},
	{name: "same"},
	{name: "configured", edit: "config"},
	{name: "same"},
}

// mainChain returns the steps that the project knows the edits of.
func mainChain(p *project) []step {
	var steps []step
	at := p.base
	for _, s := range mainSteps {
		if s.edit != "" && !p.has(strings.TrimPrefix(s.edit, "-")) {
			continue
		}
		if s.name == "same" && steps[len(steps)-1].name == "same" {
			continue // the edit before it was left out
		}
		x := step{name: s.name, fails: s.fails}
		if s.edit != "" {
			at = p.with(at, s.edit)
		}
		x.sources = at
		if s.during != "" {
			x.during = p.with(at, s.during)
		}
		if s.late != "" {
			x.late = p.with(at, s.late)
		}
		steps = append(steps, x)
	}
	return steps
}

// inPlace builds all steps in one tree that is edited in place, and returns what the tool builds: the minimum.
func (s *site) inPlace(t *testing.T, plan []step) (least [][]string) {
	t.Helper()
	at := s.project.base
	lay(t, s.here(), at, false)
	to := func(next state) {
		edit(t, s.here(), at, next)
		at = next
	}
	for _, p := range plan {
		to(p.at())
		units := s.measure(t, func() string {
			out, code := s.sh(t, s.here(), s.tool.configure+"\n"+s.tool.build)
			if (code != 0) != p.fails {
				t.Fatalf("%s: in place, exit code %d\n%s", p.name, code, out)
			}
			return out
		})
		least = append(least, units)
		if !p.fails {
			if got, want := s.print(t, s.here()), s.cleanOutput(t, p.at()); got != want {
				t.Fatalf("%s: in place, the program prints\n%swhen built clean\n%s", p.name, got, want)
			}
		}
		to(p.sources)
		if p.late != nil {
			to(p.late)
		}
	}
	return least
}

// mainChain builds all steps with nbc, in a new tree each.
func (s *site) mainChain(t *testing.T, plan []step, least [][]string, old bool) []cell {
	s.empty(t)
	var cells []cell
	var before, leastBefore []string
	for i, p := range plan {
		lay(t, s.tree(), p.sources, old)
		var h hooks
		if p.during != nil {
			h.before = s.overlay(t, "during", p.sources, p.during)
			h.after = s.overlay(t, "back", p.during, p.sources)
		}
		if p.late != nil {
			h.after = s.overlay(t, "late", p.sources, p.late)
		}
		b := s.build(t, h)
		// How far a build comes that fails is chance, for cargo at least: what it leaves is up to the next one.
		b.units = append(b.units, before...)
		need := append(slices.Clone(least[i]), leastBefore...)
		before, leastBefore = nil, nil
		if p.fails {
			before, leastBefore = b.units, need
			b.units, need = nil, nil
		}
		c := s.check(t, i, p, b, need)
		if !p.fails {
			cells = append(cells, c)
		}
		if b.restore.Hit != (i > 0) || !b.save.Saved {
			t.Errorf("step %d, %s: hit %v, saved %v\n%s", i+1, p.name, b.restore.Hit, b.save.Saved, b.printed)
		}
		var changed []string
		for _, other := range []state{p.during, p.late} {
			for path := range other {
				if other[path] != p.sources[path] {
					changed = append(changed, path)
				}
			}
		}
		// The tree's own directory changes when a tool makes a file in it, as cargo does.
		unknown := slices.DeleteFunc(b.save.Unknown, func(path string) bool { return path == "." })
		if !slices.Equal(unknown, changed) {
			t.Errorf("step %d, %s: sources that changed during the build: %q, want %q", i+1, p.name, unknown, changed)
		}
	}
	return cells
}

// check compares a build with the minimum, and the program with one from a clean build.
func (s *site) check(t *testing.T, i int, p step, b built, least []string) cell {
	t.Helper()
	if b.failed != p.fails {
		t.Fatalf("step %d, %s: the build failed: %v\n%s", i+1, p.name, b.failed, b.printed)
	}
	slices.Sort(b.units)
	slices.Sort(least)
	if !slices.Equal(b.units, least) {
		t.Errorf("step %d, %s: built %q, while the minimum is %q\n%s", i+1, p.name, b.units, least, b.printed)
	}
	if !b.failed {
		if got, want := s.print(t, s.tree()), s.cleanOutput(t, p.at()); got != want {
			t.Errorf("step %d, %s: WRONG: the program prints\n%swhen built clean\n%s\n%s", i+1, p.name, got, want, b.printed)
		}
	}
	return cell{p.name, len(b.units), len(least)}
}

// overlay writes what is different in another state into a directory, and returns a script that copies it over.
func (s *site) overlay(t *testing.T, name string, from, to state) string {
	t.Helper()
	dir := filepath.Join(s.root, name)
	files := maps.Clone(to)
	maps.DeleteFunc(files, func(path string, f file) bool { return from[path] == f })
	lay(t, dir, files, false)
	return `cp -R "` + dir + `/." .`
}

// empty empties the store.
func (s *site) empty(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(s.root, "store")); err != nil {
		t.Fatal(err)
	}
}

// The main chain begins with cold, same, leaf and interface: what the shorter chains are compared with.
const (
	cold = iota
	same
	leaf
	interfaceStep
)

// agedChain restores each tree three hours after it was saved, as far as that can be told from its times.
func (s *site) agedChain(t *testing.T, least [][]string) []cell {
	const age = -int64(3 * time.Hour)
	return s.shortChain(t, least, []variant{
		{at: cold, age: func(int64) int64 { return age }},
		{at: same, age: func(int64) int64 { return age }},
		{at: leaf, age: func(int64) int64 { return age }, order: true},
		{at: interfaceStep},
		{at: same, sources: interfaceStep, name: "same"},
	})
}

// skewChain restores trees from a machine with a clock that is ten minutes ahead.
func (s *site) skewChain(t *testing.T, least [][]string) []cell {
	ahead := func(newest int64) int64 { return time.Now().Add(10*time.Minute).UnixNano() - newest }
	return s.shortChain(t, least, []variant{
		{at: cold, age: ahead},
		{at: cold, miss: "newer than the clock", age: ahead, name: "same: a miss"},
		{at: same, flags: []string{"--on-skew=shift"}, name: "same, shift"},
		{at: leaf, age: ahead, order: true},
		{at: interfaceStep, flags: []string{"--times=two-hours"}, order: true, name: "interface, two-hours"},
		{at: same, sources: interfaceStep, name: "same"},
	})
}

// variant is a step of a short chain.
type variant struct {
	name string
	// at is the step of the main chain that the sources and the minimum are from; sources, if it is not 0, another one
	// for the sources.
	at, sources int
	flags       []string
	// miss is what the reason of a miss says, if there has to be one.
	miss string
	// age moves the times of the whole tree before it is saved; see shift.
	age func(newest int64) int64
	// order says that age and flags are right only for tools that ask which file is older: others build without them.
	order bool
}

// shortChain builds with the sources of old trees.
func (s *site) shortChain(t *testing.T, least [][]string, list []variant) []cell {
	s.empty(t)
	steps := mainChain(s.project)
	var cells []cell
	for i, v := range list {
		if v.order && s.tool.equality {
			v.age, v.flags = nil, nil
		}
		p := steps[max(v.at, v.sources)]
		if v.name != "" {
			p.name = v.name
		}
		lay(t, s.tree(), p.sources, true)
		h := hooks{flags: v.flags}
		if v.age != nil {
			h.aged = func() {
				moved := shift(t, s.tree(), v.age)
				if slices.ContainsFunc(moved, s.isSource) {
					// The receipt takes a source with another time for changed, and would be right. Without it the save
					// believes what it sees.
					if err := os.RemoveAll(s.state()); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		b := s.build(t, h)
		cells = append(cells, s.check(t, i, p, b, least[v.at]))
		if b.restore.Hit != (i > 0 && v.miss == "") || !strings.Contains(b.restore.Reason, v.miss) || !b.save.Saved {
			t.Errorf("step %d, %s: hit %v, saved %v, reason %q\n%s", i+1, p.name, b.restore.Hit, b.save.Saved,
				b.restore.Reason, b.printed)
		}
		if shifted := b.restore.Shifted != 0; shifted != (len(v.flags) > 0) || b.restore.Shifted > 0 {
			t.Errorf("step %d, %s: shifted by %v\n%s", i+1, p.name, b.restore.Shifted, b.printed)
		}
	}
	return cells
}

// isSource reports whether a file of the tree is in none of the cache directories.
func (s *site) isSource(path string) bool {
	return !slices.ContainsFunc(s.tool.dirs, func(dir string) bool { return strings.HasPrefix(path, dir+"/") })
}
