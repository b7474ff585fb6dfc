package index

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/bmatcuk/doublestar/v4"
	"pgregory.net/rapid"
)

func ExampleCompilePatterns() {
	dirs, err := CompilePatterns([]string{"./dist/", "packages/*/{build,target}"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(dirs.Match("packages/a/target"), dirs.Match("packages/a/src"), dirs.Match("a/dist"))
	// Output: true false false
}

func patterns(t testing.TB, list ...string) Patterns {
	t.Helper()
	p, err := CompilePatterns(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPatternsAreCleaned(t *testing.T) {
	for in, want := range map[string]string{
		"dist":            "dist",
		"dist/":           "dist",
		"dist//":          "dist",
		"a//b/./c/":       "a/b/c",
		"./a/b":           "a/b",
		"a/../b":          "./b",
		"./dist/":         "./dist", // see Strings
		"././dist":        "./dist",
		"./{a,b/c}/":      "{a,b/c}",
		"-x":              "-x",
		"caf\xe9 \n*":     "caf\xe9 \n*",
		"packages/*/dist": "packages/*/dist",
	} {
		p, err := CompilePatterns([]string{in})
		if err != nil {
			t.Errorf("%q is refused: %v", in, err)
			continue
		}
		if got := p.Strings(); !slices.Equal(got, []string{want}) {
			t.Errorf("%q becomes %q, not %q", in, got, want)
		}
	}
}

func TestPatternsThatAreRefused(t *testing.T) {
	for in, why := range map[string]string{
		"":                         "is empty",
		".":                        "tree itself",
		"./":                       "tree itself",
		"a/..":                     "tree itself",
		"{a,.}":                    "tree itself",
		"/":                        "is absolute",
		"/dist":                    "is absolute",
		"{a,}/b":                   "is absolute",
		"..":                       "leads out",
		"../a":                     "leads out",
		"a/../../b":                "leads out",
		"{a,..}/b":                 "leads out",
		`\../b`:                    "leads out",
		`a/\.`:                     "leads out",
		"a\x00b":                   "NUL",
		"[":                        "malformed",
		"a[]":                      "malformed",
		"a[b/c]":                   "malformed",
		"{a":                       "malformed",
		"a}":                       "malformed",
		`a\`:                       "malformed",
		strings.Repeat("{a,b}", 9): "more than 256",
	} {
		if _, err := CompilePatterns([]string{"ok", in}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: the error is %v, not %q", in, err, why)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, no  []string
		anywhere []string // matched by MatchAnywhere alone
	}{
		{
			pattern: "dist", yes: []string{"dist"}, no: []string{".", "dist/a", "dis", "distx"},
			anywhere: []string{"a/dist", "a/b/dist"},
		},
		{pattern: "./dist", yes: []string{"dist"}, no: []string{"a/dist", "./dist"}},
		{pattern: "*.o", yes: []string{"a.o", ".o", "-.o"}, no: []string{"a.oo", "a.o/b"}, anywhere: []string{"x/a.o"}},
		{pattern: "a/*", yes: []string{"a/b", "a/.b"}, no: []string{"a", "a/b/c", "x/a/b"}},
		{pattern: "a/?[^x-z]", yes: []string{"a/bc", "a/éa"}, no: []string{"a/by", "a/b", "a/bcd"}},
		{pattern: "**/dist", yes: []string{"dist", "a/dist", "a/b/dist"}, no: []string{"dist/a", "a/distx"}},
		{
			pattern: "a/**/b/**/c",
			yes:     []string{"a/b/c", "a/x/b/y/z/c", "a/b/b/c"}, no: []string{"a/c", "x/a/b/c", "a/b/c/d"},
		},
		{pattern: "a/**", yes: []string{"a", "a/b", "a/b/c"}, no: []string{"b", "ab"}},
		{pattern: "**", yes: []string{"a", "a/b"}, no: []string{"."}},
		{pattern: "a**b", yes: []string{"ab", "axb"}, no: []string{"a/b"}, anywhere: []string{"x/axb"}},
		{pattern: "{a,b/{c,d}}/x", yes: []string{"a/x", "b/c/x", "b/d/x"}, no: []string{"c/x", "b/x"}},
		{pattern: "x{,y}", yes: []string{"x", "xy"}, no: []string{"xyy"}, anywhere: []string{"a/xy"}},
		{
			pattern: "{[,}],b}c", yes: []string{",c", "}c", "bc", "{[,}],b}c"}, no: []string{"c"},
			anywhere: []string{"a/bc"},
		},
		{pattern: "a[1]", yes: []string{"a1", "a[1]"}, no: []string{"a"}, anywhere: []string{"x/a[1]"}},
		{pattern: "{a,b}/*", yes: []string{"a/x", "{a,b}/*"}, no: []string{"{a,b}/x"}},
		{pattern: `a\*b`, yes: []string{"a*b", `a\*b`}, no: []string{"axb"}, anywhere: []string{"x/a*b"}},
		{pattern: "caf?", yes: []string{"café", "caf\xe9"}, no: []string{"caf"}, anywhere: []string{"x/caf\xe9"}},
		{pattern: "..a", yes: []string{"..a"}, no: []string{"a"}, anywhere: []string{"x/..a"}},
	} {
		p := patterns(t, c.pattern)
		for _, name := range c.yes {
			if !p.Match(name) || !p.MatchAnywhere(name) {
				t.Errorf("%q does not match %q", c.pattern, name)
			}
		}
		for _, name := range c.anywhere {
			if p.Match(name) || !p.MatchAnywhere(name) {
				t.Errorf("%q matches %q: %v, anywhere: %v", c.pattern, name, p.Match(name), p.MatchAnywhere(name))
			}
		}
		for _, name := range c.no {
			if p.Match(name) || p.MatchAnywhere(name) {
				t.Errorf("%q matches %q", c.pattern, name)
			}
		}
	}
	var none Patterns
	if !none.Empty() || none.Match("a") || none.MatchAnywhere("a") || patterns(t, "a").Empty() {
		t.Error("the zero Patterns are not empty")
	}
}

// TestMatchIsDoublestar compares the matching by elements with that of whole paths.
func TestMatchIsDoublestar(t *testing.T) {
	element := rapid.SampledFrom([]string{
		"a", "b", "ab", "*", "?", "**", "a*", "*b", "[ab]", "[^a]", "{a,b}", "{a,b/a}", "{a*,b?}", `\a`, "a?",
	})
	name := rapid.SampledFrom([]string{"a", "b", "ab", "ba", "aab", "c"})
	rapid.Check(t, func(t *rapid.T) {
		pattern := strings.Join(rapid.SliceOfN(element, 1, 5).Draw(t, "pattern"), "/")
		p := strings.Join(rapid.SliceOfN(name, 1, 6).Draw(t, "path"), "/")
		compiled, err := CompilePatterns([]string{pattern})
		if err != nil {
			t.Fatalf("%q is refused: %v", pattern, err)
		}
		// Doublestar is not of one mind about a "**" at the end that stands for nothing: "a/**" matches "a", "a*/**"
		// and "a/**/**" do not. Here they all do.
		want := false
		for oracle := pattern; !want; {
			want = doublestar.MatchUnvalidated(oracle, p)
			shorter, ok := strings.CutSuffix(oracle, "/**")
			if !ok {
				break
			}
			oracle = shorter
		}
		if got := compiled.Match(p); got != want {
			t.Fatalf("%q matches %q: %v, by doublestar: %v", pattern, p, got, want)
		}
		want = compiled.Match(p) || !strings.Contains(pattern, "/") && compiled.Match(path.Base(p))
		if got := compiled.MatchAnywhere(p); got != want {
			t.Fatalf("%q matches %q anywhere: %v", pattern, p, got)
		}
	})
}

// TestPatternsTakeAnything compiles what no one would write. What is accepted means the same when it is compiled again,
// and names nothing outside the tree.
func TestPatternsTakeAnything(t *testing.T) {
	text := rapid.StringOf(rapid.SampledFrom([]rune(`ab./\*?[]{},^-`)))
	name := rapid.StringOfN(rapid.SampledFrom([]rune(`ab./\*`)), 1, 6, -1)
	rapid.Check(t, func(t *rapid.T) {
		p, err := CompilePatterns([]string{text.Draw(t, "pattern")})
		if err != nil {
			return
		}
		again, err := CompilePatterns(p.Strings())
		if err != nil || !slices.Equal(again.Strings(), p.Strings()) {
			t.Fatalf("%q becomes %q: %v", p.Strings(), again.Strings(), err)
		}
		for range 10 {
			n := name.Draw(t, "path")
			if p.Match(n) != again.Match(n) || p.MatchAnywhere(n) != again.MatchAnywhere(n) {
				t.Fatalf("%q and %q differ at %q", p.Strings(), again.Strings(), n)
			}
		}
		names, _ := p.whole.names()
		for _, n := range append(names, "") {
			if n == ".." || n == "." || strings.Contains(n, "/") {
				t.Fatalf("%q leads to %q", p.Strings(), n)
			}
		}
	})
}

func TestManyDeepElementsStayFew(t *testing.T) {
	p := patterns(t, strings.Repeat("**/a/", 20)+"b")
	s := p.whole
	for range 200 {
		s = s.step("a")
	}
	if len(s) > 2*21 {
		t.Errorf("%d states", len(s))
	}
	if !s.match("b") {
		t.Error("b is not matched")
	}
}
