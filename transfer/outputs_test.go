package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nbc/index"
)

// outputsOf returns the outputs of a build; the seed makes their hashes. Builds with versions of the same length have
// paths of the same length.
func outputsOf(seed uint64, version string) []index.Output {
	hash := func() string {
		b := make([]byte, index.HashSize)
		for i := range b {
			b[i] = "0123456789abcdfghijklmnpqrsvwxyz"[rand.New(rand.NewPCG(seed, uint64(i))).IntN(32)]
		}
		seed += 1000
		return string(b)
	}
	return []index.Output{
		{Name: "dev", Path: "/nix/store/" + hash() + "-app-" + version + "-dev"},
		{Name: "out", Path: "/nix/store/" + hash() + "-app-" + version},
	}
}

var (
	outsA = outputsOf(1, "1.0")
	outsB = outputsOf(2, "1.0")
	outsC = outputsOf(3, "2.0") // of another version, and the same length
	outsD = outputsOf(4, "1.0.1")
)

// dev and out are the paths of a build.
func dev(o []index.Output) string { return o[0].Path }
func out(o []index.Output) string { return o[1].Path }

// translated is what contents become when another build has them: the oracle of all tests here.
func translated(s string, from, to []index.Output) string {
	var all []string
	for _, o := range from {
		all = append(all, regexp.QuoteMeta(o.Text(false))+"("+regexp.QuoteMeta(o.Text(true)[index.HashSize:])+")?")
	}
	return regexp.MustCompile(strings.Join(all, "|")).ReplaceAllStringFunc(s, func(text string) string {
		for i, o := range from {
			if strings.HasPrefix(text, o.Text(false)) {
				return to[i].Text(len(text) > index.HashSize)
			}
		}
		return text
	})
}

// pathTree is a tree whose artifacts hold output paths in all ways, as the build with o has it. It holds parts of a
// hash, too, which are the same in all builds.
func pathTree(o []index.Output) map[string]string {
	if tree, ok := pathTrees[out(o)]; ok {
		return tree
	}
	tree := pathsOf(outsA)
	for p, s := range tree {
		tree[p] = translated(s, outsA, o)
	}
	pathTrees[out(o)] = tree
	return tree
}

var pathTrees = map[string]map[string]string{}

func pathsOf(o []index.Output) map[string]string {
	hash := o[1].Text(false)
	return map[string]string{
		"src":            "source",
		"build/none":     noise(1, 50<<10),
		"build/begin":    o[1].Base() + "/bin",
		"build/end":      "prefix=" + out(o),
		"build/hash":     hash,
		"build/half-1":   "x" + hash[:20], // together with the next one it would be a hash
		"build/half-2":   hash[20:] + "-app",
		"build/both":     out(o) + dev(o) + hash + hash + hash[:31] + hash + o[1].Base()[:len(o[1].Base())-1],
		"build/mangled":  strings.ReplaceAll(o[1].Base(), "-", "zm"),
		"build/link":     "-> " + out(o) + "/lib:" + o[0].Text(false),
		"build/other":    "-> ../src",
		"build/empty":    "",
		"build/long":     noise(2, 700<<10) + out(o) + noise(3, 900<<10) + strings.Repeat("-"+hash, 4_000) + dev(o),
		"build/sub/same": noise(4, 10<<10) + dev(o),
	}
}

// checkTree fails if the tree is not what pathTree says.
func (w *world) checkTree(o []index.Output) {
	w.Helper()
	for p, want := range pathTree(o) {
		if target, ok := strings.CutPrefix(want, "-> "); ok {
			if got, err := os.Readlink(w.path(p)); err != nil || got != target {
				w.Errorf("%s leads to %q, want %q", p, got, target)
			}
		} else if strings.HasPrefix(p, "build/") && w.read(p) != want {
			w.Errorf("%s has other contents", p)
		}
	}
}

// firstWith saves a new tree of a build.
func firstWith(t *testing.T, o []index.Output) *world {
	t.Helper()
	w := newWorld(t, nil)
	w.put(pathTree(o))
	rep := w.saved(SaveOptions{Name: "n", Tree: build, Outputs: o})
	if rep.OutputPaths.Files != 7 || rep.OutputPaths.Places != 4_013 {
		t.Errorf("output paths %+v", rep.OutputPaths)
	}
	return w
}

// What was saved by one build is restored by another one as if that had made it.
func TestOutputPathsAreThoseOfTheNextBuild(t *testing.T) {
	w := firstWith(t, outsA)
	saved := w.snapshot()
	for _, o := range [][]index.Output{outsA, outsB, outsC} {
		other := w.again()
		other.write("src", "source")
		rep := other.hit(RestoreOptions{Outputs: []index.Output{o[1], o[0]}})
		other.checkTree(o)
		if rep.OutputPaths.Files != 8 || rep.OutputPaths.Places != 4_015 {
			t.Errorf("output paths %+v", rep.OutputPaths)
		}
		for p, line := range other.snapshot() {
			if mtime := strings.Fields(line)[1]; p != "." && p != "src" && mtime != strings.Fields(saved[p])[1] {
				t.Errorf("%s: %s, saved as %s", p, line, saved[p])
			}
		}
		other.clean()
	}
}

// Neither a build that took nothing over nor one that did sends anything that differs in the output paths alone.
func TestOutputPathsCostNothing(t *testing.T) {
	w := firstWith(t, outsA)
	cold := w.again()
	cold.put(pathTree(outsC))
	if rep := cold.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsC}); rep.Sent.Chunks != 0 {
		t.Errorf("sent %+v", rep.Sent)
	}
	warm := w.again()
	warm.write("src", "source")
	warm.hit(RestoreOptions{Outputs: outsB})
	rep := warm.saved(SaveOptions{})
	if rep.Sent.Chunks != 0 || rep.Untouched != rep.Files-2 {
		t.Errorf("sent %+v, %d files of %d untouched", rep.Sent, rep.Untouched, rep.Files)
	}
	if !slices.Equal(warm.index("n").Outputs.List, outsB) {
		t.Errorf("outputs %v", warm.index("n").Outputs.List)
	}
	// What was not read is described as well as what was.
	last := w.again()
	last.write("src", "source")
	last.hit(RestoreOptions{Outputs: outsC})
	last.checkTree(outsC)
}

// Where files before it were added, removed and changed, a file that was not read has its places all the same.
func TestOutputPathsOfUntouchedFilesMove(t *testing.T) {
	if elsewhere(t) {
		return
	}
	w := newWorld(t, nil)
	files := map[string]string{}
	for i := range 40 {
		n := uint64(i)
		files[fmt.Sprintf("build/%02d", i)] = noise(n, 300<<10) + out(outsA) + noise(n+100, 100<<10) + dev(outsA)
	}
	w.put(files)
	w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
	w = w.again()
	w.hit(RestoreOptions{Outputs: outsB})
	w.write("build/00", "changed "+out(outsB))
	w.write("build/05a", out(outsB)+out(outsB))
	w.remove("build/20")
	rep := w.saved(SaveOptions{})
	if rep.Untouched < 5 || rep.OutputPaths != (Places{Files: 40, Places: 38*2 + 1 + 2}) {
		t.Errorf("%+v", rep)
	}
	want := map[string]string{"build/00": "changed " + out(outsC), "build/05a": out(outsC) + out(outsC)}
	for p, s := range files {
		if _, ok := want[p]; !ok && p != "build/20" {
			want[p] = translated(s, outsA, outsC)
		}
	}
	w = w.again()
	w.hit(RestoreOptions{Outputs: outsC})
	for p, s := range want {
		if w.read(p) != s {
			t.Errorf("%s has other contents", p)
		}
	}
}

// Restored over an older tree, no file keeps the paths of another build, and only those that hold some are written.
func TestOutputPathsOverAnOlderTree(t *testing.T) {
	w := firstWith(t, outsA)
	w = w.again()
	w.write("src", "source")
	for _, o := range [][]index.Output{outsA, outsA, outsB, outsB, outsC, outsA} {
		before := map[string]index.Stat{}
		for p := range pathTree(o) {
			if st, err := index.LstatFile(w.root, p); err == nil {
				before[p] = st
			}
		}
		old := w.receipt()
		rep := w.hit(RestoreOptions{Outputs: o})
		w.checkTree(o)
		if old == nil {
			continue
		}
		same := slices.Equal(old.Outputs, o)
		for p, st := range before {
			kept := w.stat(p).SameFile(st)
			holds := slices.Contains(strings.Fields("begin end hash both mangled link long same"), path.Base(p))
			if p != "src" && kept != (same || !holds) {
				t.Errorf("%s: kept %v, the same outputs %v", p, kept, same)
			}
		}
		if same != (rep.OutputPaths == Places{}) {
			t.Errorf("output paths written %+v, the same outputs %v", rep.OutputPaths, same)
		}
	}
	// A save makes the receipt one of what it saved.
	w.saved(SaveOptions{})
	w.hit(RestoreOptions{Outputs: outsB})
	w.checkTree(outsB)
	// After a miss the receipt still knows what lies there.
	w.miss(RestoreOptions{Name: "other", Outputs: outsA}, "no such name")
	if rep := w.hit(RestoreOptions{Outputs: outsB}); rep.OutputPaths != (Places{}) {
		t.Errorf("output paths written %+v, where they are", rep.OutputPaths)
	}
	w.checkTree(outsB)
	w.miss(RestoreOptions{Name: "other", Outputs: outsA}, "no such name")
	w.hit(RestoreOptions{Outputs: outsA})
	w.checkTree(outsA)
}

// A save that looks for other paths than the restore wrote reads everything.
func TestSaveWithOtherOutputs(t *testing.T) {
	w := firstWith(t, outsA)
	for name, o := range map[string]SaveOptions{
		"other paths":        {Outputs: outsC},
		"one output less":    {Outputs: outsB[1:]},
		"another name":       {Outputs: []index.Output{outsB[0], {Name: "lib", Path: out(outsB)}}},
		"other exceptions":   {Tree: Tree{NoRewrite: []string{"sub"}}},
		"the same, by a tie": {Outputs: outsB},
	} {
		other := w.again()
		other.hit(RestoreOptions{Outputs: outsB})
		was := other.get("index/n")
		rep := other.saved(o)
		if read := rep.Untouched == 0; read != (name != "the same, by a tie") {
			t.Errorf("%s: %d untouched", name, rep.Untouched)
		}
		w.set("index/n", was)
	}
	// A base that was searched for other outputs, of which none stands in it, proves nothing of these.
	w = newWorld(t, nil)
	w.put(map[string]string{"build/a": dev(outsA), "build/b": "none"})
	w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
	w.hit(RestoreOptions{Outputs: []index.Output{outsB[0], {Name: "lib", Path: out(outsB)}}})
	if rep := w.saved(SaveOptions{}); rep.Untouched != 0 {
		t.Errorf("%d untouched", rep.Untouched)
	}
	// A base that nobody has searched proves nothing of what stands in it.
	w = newWorld(t, nil)
	w.put(pathTree(outsA))
	w.first()
	w.hit(RestoreOptions{})
	if rep := w.saved(SaveOptions{Outputs: outsA}); rep.Untouched != 0 || rep.OutputPaths.Files != 7 {
		t.Errorf("%+v", rep)
	}
	w = w.again()
	w.hit(RestoreOptions{Outputs: outsC})
	w.checkTree(outsC)
}

// What cannot be made right is not restored.
func TestOutputPathsThatDoNotFit(t *testing.T) {
	w := firstWith(t, outsA)
	elsewhere := []index.Output{{Name: "dev", Path: "/gnu" + dev(outsB)}, {Name: "out", Path: "/gnu" + out(outsB)}}
	for _, c := range []struct {
		outputs []index.Output
		reason  string
	}{
		{nil, "it is not known what to write instead (--output-path dev=PATH)"},
		{outsB[:1], `the path of its output "out" stands in it`},
		{outsB[1:], `the path of its output "dev" stands in it`},
		{outsD, "has not the length of"},
		{elsewhere, "its output paths are in /nix/store, those of this build in /gnu/nix/store"},
	} {
		other := w.again()
		other.write("build/mine", "x")
		was := other.snapshot()
		other.miss(RestoreOptions{Outputs: c.outputs, Replace: true}, c.reason)
		if d := differ(beside(was), beside(other.snapshot())); d != "" {
			t.Error(d)
		}
	}
	// The hash alone has one length, and a link any.
	for name, o := range map[string][]index.Output{"longer": outsD, "without": nil} {
		w := newWorld(t, nil)
		w.put(map[string]string{"build/a": "none"})
		if o != nil {
			w.put(map[string]string{"build/a": outsA[1].Text(false) + "/" + outsA[1].Text(false), "build/l": "-> " + out(outsA)})
		}
		w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
		w = w.again()
		w.hit(RestoreOptions{Outputs: o})
		if o != nil {
			to, err := os.Readlink(w.path("build/l"))
			if got := w.read("build/a"); got != o[1].Text(false)+"/"+o[1].Text(false) || to != out(o) || err != nil {
				t.Errorf("%s: %q, %q, %v", name, got, to, err)
			}
		}
	}
	// A link alone is reason enough.
	w = newWorld(t, nil)
	w.put(map[string]string{"build/l": "-> " + out(outsA)})
	w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
	w.again().miss(RestoreOptions{}, "--output-path out=PATH")
	// What was saved without them may hold any.
	w = newWorld(t, nil)
	w.put(pathTree(outsA))
	w.first()
	w.again().miss(RestoreOptions{Outputs: outsA}, "saved without --output-path")
	// The next name may do.
	w.saved(SaveOptions{Name: "m", Tree: build, Outputs: outsA})
	w = w.again()
	if rep := w.hit(RestoreOptions{Outputs: outsB, Fallbacks: []string{"m"}}); rep.Used != "m" {
		t.Errorf("used %s", rep.Used)
	}
	w.checkTree(outsB)
}

func TestWrongOutputs(t *testing.T) {
	w := newWorld(t, nil)
	w.put(pathTree(outsA))
	for _, o := range [][]index.Output{
		{{Name: "out", Path: "/nix/store"}},
		{{Name: "out", Path: "/nix/store/" + strings.Repeat("e", 32) + "-app"}},
		{{Name: "", Path: out(outsA)}},
		{outsA[1], outsA[1]},
		{outsA[1], {Name: "dev", Path: out(outsA)}},
	} {
		if _, err := w.restore(RestoreOptions{Outputs: o, Replace: true}); !errors.Is(err, ErrUsage) {
			t.Errorf("restore with %v: %v", o, err)
		}
		if _, err := w.save(SaveOptions{Name: "n", Tree: build, Outputs: o}); !errors.Is(err, ErrUsage) {
			t.Errorf("save with %v: %v", o, err)
		}
	}
	tree := Tree{Dirs: build.Dirs, NoRewrite: []string{"/abs"}}
	if _, err := w.restore(RestoreOptions{Tree: tree}); !errors.Is(err, ErrUsage) {
		t.Errorf("restore: %v", err)
	}
	if _, err := w.save(SaveOptions{Name: "n", Tree: tree}); !errors.Is(err, ErrUsage) {
		t.Errorf("save: %v", err)
	}
}

// Artifacts that are not to be rewritten are saved as they are, and get back what they held.
func TestNoRewrite(t *testing.T) {
	files := map[string]string{
		"build/a.txt":       out(outsA),
		"build/deep/b.keep": out(outsA) + "b",
		"build/keep/c/d":    "d" + out(outsA),
		"build/keep/l":      "-> " + out(outsA),
	}
	patterns := []string{"*.keep", "build/keep"}
	check := func(w *world, rewritten bool, a []index.Output, hit string) {
		t.Helper()
		for p, s := range files {
			want := s
			if rewritten || p == "build/a.txt" {
				want = translated(s, outsA, a)
			}
			got := ""
			if strings.HasPrefix(s, "-> ") {
				to, err := os.Readlink(w.path(p))
				w.must(err)
				got = "-> " + to
			} else {
				got = w.read(p)
			}
			if got != want {
				t.Errorf("%s: %s holds %q, want %q", hit, p, got, want)
			}
		}
	}
	w := newWorld(t, nil)
	w.put(files)
	tree := Tree{Dirs: build.Dirs, NoRewrite: patterns}
	if rep := w.saved(SaveOptions{Name: "kept", Tree: tree, Outputs: outsA}); rep.OutputPaths != (Places{1, 1}) {
		t.Errorf("%+v", rep.OutputPaths)
	}
	w.saved(SaveOptions{Name: "all", Tree: build, Outputs: outsA})

	kept := w.again()
	kept.hit(RestoreOptions{Name: "kept", Outputs: outsB})
	check(kept, false, outsB, "excepted by the save")
	other := w.again()
	other.hit(RestoreOptions{Name: "all", Tree: tree, Outputs: outsB})
	check(other, false, outsB, "excepted by the restore")
	// The save takes the exceptions over, and reads what the base does not have like this.
	rep := other.saved(SaveOptions{})
	if rep.OutputPaths != (Places{1, 1}) || rep.Untouched != 0 {
		t.Errorf("%+v", rep)
	}
	other = w.again()
	other.hit(RestoreOptions{Name: "all", Tree: tree, Outputs: outsC})
	check(other, false, outsC, "saved with the receipt's exceptions")
	if rep := other.saved(SaveOptions{}); rep.Untouched == 0 {
		t.Errorf("%+v", rep)
	}
	// Over an older tree, with exceptions and without.
	over := w.again()
	w.saved(SaveOptions{Name: "all", Tree: build, Outputs: outsA})
	for i := range 4 {
		if i%2 == 0 {
			over.hit(RestoreOptions{Name: "all", Tree: tree, Outputs: outsB})
			check(over, false, outsB, "with")
		} else {
			over.hit(RestoreOptions{Name: "all", Outputs: outsB})
			check(over, true, outsB, "without")
		}
	}
}

// Files in which nothing can be replaced stay as they are, and the user is told of those that may hold something.
func TestSealedFilesAreToldOf(t *testing.T) {
	w := newWorld(t, nil)
	tar := strings.Repeat("\x00", 257) + "ustar  \x00" + out(outsA)
	files := map[string]string{
		"build/a.jar":   "PK\x03\x04" + out(outsA),
		"build/b.gz":    "\x1f\x8b" + out(outsA),
		"build/c.xz":    "\xfd7zXZ\x00" + out(outsA),
		"build/d.zst":   "\x28\xb5\x2f\xfd" + out(outsA),
		"build/e.tar":   tar,
		"build/g.dylib": "\xcf\xfa\xed\xfe\x0c\x00\x00\x01\x00\x00\x00\x00\x06\x00\x00\x00" + out(outsA),
		"build/rust":    "RSIC" + out(outsA),
	}
	plain := map[string]string{
		"build/f.o":     "\xcf\xfa\xed\xfe\x0c\x00\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00" + out(outsA),
		"build/h.class": "\xca\xfe\xba\xbe\x00\x00\x00\x34" + out(outsA),
		"build/i.a":     "!<arch>\n" + out(outsA),
		"build/j":       "PK" + out(outsA),
		"build/k":       "\x1f", // shorter than any magic
	}
	w.put(files)
	w.put(plain)
	rep := w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
	if len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "build/a.jar and 5 files more") {
		t.Errorf("warnings %q", rep.Warnings)
	}
	if rep.OutputPaths != (Places{4, 4}) {
		t.Errorf("%+v", rep.OutputPaths)
	}
	other := w.again()
	other.hit(RestoreOptions{Outputs: outsB})
	for p, s := range files {
		if other.read(p) != s {
			t.Errorf("%s has other contents", p)
		}
	}
	for p, s := range plain {
		if other.read(p) != translated(s, outsA, outsB) {
			t.Errorf("%s: %q", p, other.read(p))
		}
	}
	tree := Tree{Dirs: build.Dirs, NoRewrite: []string{"*.{jar,gz,xz,zst,tar,dylib}"}}
	if rep := w.saved(SaveOptions{Name: "n", Tree: tree, Outputs: outsA}); len(rep.Warnings) != 0 {
		t.Errorf("warnings %q", rep.Warnings)
	}
	// A save that says nothing of outputs is about those that are known of this tree.
	if rep := w.saved(SaveOptions{Name: "o", Tree: build}); rep.OutputPaths != (Places{4, 4}) || len(rep.Warnings) != 0 {
		t.Errorf("%+v", rep)
	}
	none := newWorld(t, nil)
	none.put(files)
	if rep := none.first(); len(rep.Warnings) != 0 {
		t.Errorf("without outputs: %q", rep.Warnings)
	}
	named := newWorld(t, nil)
	named.put(map[string]string{"build" + out(outsA) + "/bin/app": "x"})
	rep = named.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
	if len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "names of files") {
		t.Errorf("warnings %q", rep.Warnings)
	}
}

// Chunks that have to be sent once more are read once more, and normalised at the same places.
func TestOutputPathsBesideACollection(t *testing.T) {
	w := newWorld(t, nil)
	w.put(pathTree(outsA))
	at(t, "index", w.collect)
	if rep := w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA}); rep.Rounds != 2 {
		t.Fatalf("%+v", rep)
	}
	w.collect()
	other := w.again()
	other.hit(RestoreOptions{Outputs: outsB})
	other.checkTree(outsB)
}

// An index that says that an output path stands where none does is not believed.
func TestHostilePlaces(t *testing.T) {
	for name, edit := range map[string]func(o *index.Outputs){
		"one byte further": func(o *index.Outputs) { o.Occurrences[0].Offset++ },
		"one byte before": func(o *index.Outputs) {
			last := &o.Occurrences[len(o.Occurrences)-1]
			last.Offset--
		},
		"of another output":     func(o *index.Outputs) { o.Occurrences[0].Output ^= 1 },
		"the name of a hash":    func(o *index.Outputs) { o.Occurrences[1].Named = !o.Occurrences[1].Named },
		"another output's name": func(o *index.Outputs) { o.List[0].Name = "bin" },
		"in other bytes": func(o *index.Outputs) {
			o.Occurrences = append(o.Occurrences[:2:2], index.Occurrence{Offset: o.Occurrences[1].Offset + 200_000, Output: 1})
		},
	} {
		w := newWorld(t, nil)
		w.put(map[string]string{
			"build/a": "xx" + dev(outsA) + "xx", "build/b": "hash " + outsA[1].Text(false) + noise(1, 2<<20) + dev(outsA) + "xx",
			"build/c": noise(2, 100),
		})
		w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
		x := w.index("n")
		edit(&x.Outputs)
		data, err := x.Encode()
		w.must(err)
		w.set("index/n", data)
		w = w.again()
		w.put(map[string]string{"build/old": "old"})
		was := w.snapshot()
		given := append([]index.Output{{Name: "bin", Path: dev(outsC)}}, outsB...)
		_, err = w.restore(RestoreOptions{Outputs: given, Replace: true})
		if !errors.Is(err, index.ErrInvalid) || !strings.Contains(err.Error(), "no placeholder") {
			t.Errorf("%s: %v", name, err)
		}
		if d := differ(beside(was), beside(w.snapshot())); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		w.clean()
	}
}

// drawText draws bytes in which output paths, parts of them and what looks like them stand close together.
func drawText(t *rapid.T, o []index.Output) string {
	long := rapid.SampledFrom([]int{10, 10, 1000, 30_000, 400_000}).Draw(t, "noise")
	var b strings.Builder
	for range rapid.IntRange(0, 12).Draw(t, "parts") {
		text := rapid.SampledFrom(o).Draw(t, "output").Text(rapid.Bool().Draw(t, "named"))
		switch rapid.IntRange(0, 5).Draw(t, "part") {
		case 0:
			b.WriteString(noise(rapid.Uint64Range(0, 1000).Draw(t, "seed"), rapid.IntRange(0, long).Draw(t, "bytes")))
		case 1:
			b.WriteString(text[:rapid.IntRange(0, len(text)).Draw(t, "begin")])
		case 2:
			b.WriteString(text[rapid.IntRange(0, len(text)).Draw(t, "end"):])
		case 3:
			b.WriteString(strings.Repeat(text, rapid.IntRange(1, 5).Draw(t, "times")))
		default:
			b.WriteString(text)
		}
	}
	return b.String()
}

// drawOutputs draws outputs whose hashes have few digits, so that they overlap themselves and each other.
func drawOutputs(t *rapid.T) []index.Output {
	var list []index.Output
	seen := map[string]bool{}
	for _, name := range []string{"bin", "dev", "out"}[:rapid.IntRange(1, 3).Draw(t, "outputs")] {
		hash := rapid.OneOf(rapid.StringMatching(`[ab]{32}`), rapid.StringMatching(`(ab){15}[abc]{2}`),
			rapid.StringMatching(`[0-9a-df-np-sv-z]{32}`)).Filter(func(h string) bool { return !seen[h] }).Draw(t, "hash")
		seen[hash] = true
		base := hash + "-" + rapid.SampledFrom([]string{"a", "ab", "app-1.0"}).Draw(t, "name")
		list = append(list, index.Output{Name: name, Path: "/nix/store/" + base})
	}
	return list
}

// What a save reads is, byte for byte, what the oracle makes of it, however the reads fall; and a restore undoes it.
func TestNormalReader(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		was := drawOutputs(t)
		now := slices.Clone(was)
		held := slices.Clone(was) // the placeholders, in the form of outputs
		for i := range now {
			name := was[i].Base()[index.HashSize:]
			now[i].Path = "/nix/store/" + strings.Repeat(string("xyz"[i]), index.HashSize) + strings.Repeat("n", len(name))
			now[i].Path = now[i].Path[:len(now[i].Path)-len(name)] + "-" + strings.Repeat("n", len(name)-1)
			held[i].Path = "/nix/store/" + was[i].Placeholder(true)
		}
		texts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawText(t, was) }), 1, 4).Draw(t, "files")
		var files []content
		var all, want string
		x := &index.Index{}
		for i, s := range texts {
			name := fmt.Sprintf("f%d", i)
			if err := os.WriteFile(dir+"/"+name, []byte(s), 0o644); err != nil {
				t.Fatal(err)
			}
			st, err := index.LstatFile(dir, name)
			if err != nil {
				t.Fatal(err)
			}
			e := index.Entry{Path: name, Kind: index.File, Size: int64(len(s))}
			x.Entries = append(x.Entries, e)
			files = append(files, content{entry: &e, stat: &st, offset: int64(len(all))})
			all += s
			want += translated(s, was, held)
		}
		find := newFinding(was, func(string) bool { return false })
		s := newSegment(files)
		r := &contentReader{root: dir, files: files, progress: new(Progress)}
		in := find.reader(&s, r, make([]byte, rapid.SampledFrom([]int{100, 101, 4096, normalBytes}).Draw(t, "memory")))
		got := make([]byte, 0, len(all))
		for buf := make([]byte, rapid.IntRange(1, 100_000).Draw(t, "read")); ; {
			n, err := in.Read(buf)
			if got = append(got, buf[:n]...); err != nil {
				break
			}
		}
		if string(got) != want {
			t.Fatalf("read %q\nwant %q\nof   %q", got, want, all)
		}
		// The places, cut into parts anywhere.
		w := &rewriting{holders: placeholders(was)}
		for i := range now {
			w.are = append(w.are, [2]string{now[i].Text(false), now[i].Text(true)})
		}
		x.Outputs = index.Outputs{List: was, Occurrences: s.places}
		for i := range files {
			f := &stagedFile{entry: &x.Entries[i], places: placesIn(x, files[i].offset, files[i].entry.Size)}
			part := got[files[i].offset : files[i].offset+files[i].entry.Size]
			for at := 0; at < len(part); {
				n := rapid.IntRange(1, max(1, len(part)/3)).Draw(t, "part")
				end := min(at+n, len(part))
				if err := w.write(part[at:end], files[i].offset+int64(at), f); err != nil {
					t.Fatal(err)
				}
				at = end
			}
			if string(part) != translated(texts[i], was, now) {
				t.Fatalf("restored %q\nof %q", part, texts[i])
			}
		}
	})
}

// The same through a store, with chunk borders, other files and other trees in the way.
func TestOutputPathsInAnyTree(t *testing.T) {
	if elsewhere(t) {
		return
	}
	for seed := range 3 {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		files := map[string]string{}
		for i := range 1 + r.IntN(12) {
			var b strings.Builder
			for range r.IntN(300) {
				switch text := outsA[r.IntN(2)].Text(r.IntN(2) == 0); r.IntN(4) {
				case 0:
					b.WriteString(noise(r.Uint64N(1000), r.IntN(8<<10)))
				case 1:
					b.WriteString(text[:r.IntN(len(text))])
				default:
					b.WriteString(text)
				}
			}
			files[fmt.Sprintf("build/%d/%d", r.IntN(3), i)] = b.String()
		}
		w := newWorld(t, nil)
		w.put(files)
		w.saved(SaveOptions{Name: "n", Tree: build, Outputs: outsA})
		from := outsA
		for _, o := range [][]index.Output{outsB, outsC, outsA} {
			w = w.again()
			w.hit(RestoreOptions{Outputs: o})
			for p, s := range files {
				if w.read(p) != translated(s, from, o) {
					t.Fatalf("seed %d: %s has other contents", seed, p)
				}
			}
			if rep := w.saved(SaveOptions{}); rep.Sent.Chunks != 0 {
				t.Fatalf("seed %d: %+v", seed, rep)
			}
		}
	}
}

// A restore that is cut off in the middle of its writing leaves nothing.
func TestOutputPathsAndACancelledRestore(t *testing.T) {
	w := firstWith(t, outsA)
	other := w.again()
	other.put(map[string]string{"build/old": "old", "src": "s"})
	was := other.snapshot()
	ctx, cancel := context.WithCancel(context.Background())
	at(t, "clear", cancel)
	if _, err := other.restoreIn(ctx, RestoreOptions{Outputs: outsB, Replace: true}); err == nil {
		t.Error("no error")
	}
	if d := differ(beside(was), beside(other.snapshot())); d != "" {
		t.Error(d)
	}
	other.clean()
	if got := slices.Collect(maps.Keys(below(other.snapshot(), "build"))); len(got) != 2 {
		t.Errorf("left: %q", got)
	}
}

// BenchmarkNormalise measures what looking for output paths adds to the reading of a save.
func BenchmarkNormalise(b *testing.B) {
	text := strings.Repeat("static int parse(struct reader *r, const char *name) { return 0; } /* prefix */\n", 1<<12)
	for name, data := range map[string]string{
		"random": noise(1, 1<<20), "text": text, "zeros": strings.Repeat("\x00", 1<<20),
		"base32": strings.Repeat("0c4n1z0xk9l5v6b7r8q9w0x1y2z3a4d5", 1<<15),
	} {
		for _, n := range []int{1, 2, 6} {
			b.Run(fmt.Sprintf("%s-%d", name, n), func(b *testing.B) {
				var outputs []index.Output
				for i := range n {
					outputs = append(outputs, outputsOf(uint64(i), "1.0")[1])
				}
				f := newFinder(outputs)
				buf := []byte(data)
				b.SetBytes(int64(len(buf)))
				for b.Loop() {
					for i := 0; ; i++ {
						c, ok := f.next(buf, i, len(buf))
						if !ok {
							break
						}
						i = int(c.Offset)
					}
				}
			})
		}
	}
}
