package index

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestPath(t *testing.T) {
	for name, want := range map[string]string{
		"myapp/main":                          "index/myapp~2fmain",
		".hidden":                             "index/~2ehidden",
		"größe 2":                             "index/gr~c3~b6~c3~9fe~202",
		"..":                                  "index/~2e.",
		"a.b-c_d+e@f=g":                       "index/a.b-c_d+e@f=g",
		"~":                                   "index/~7e",
		"A~2fb":                               "index/~41~7e2fb",
		"App":                                 "index/~41pp",
		strings.Repeat("n", 240):              "index/" + strings.Repeat("n", 240),
		strings.Repeat("/", 79) + "abc":       "index/" + strings.Repeat("~2f", 79) + "abc",
		"../../etc/passwd":                    "index/~2e.~2f..~2fetc~2fpasswd",
		"user@host:repo?x=1&y=2#main%20 <>|*": "index/user@host~3arepo~3fx=1~26y=2~23main~2520~20~3c~3e~7c~2a",
	} {
		got, err := Path(name)
		if err != nil || got != want {
			t.Errorf("Path(%q) = %q, %v; want %q", name, got, err, want)
		}
		if back, err := ParsePath(want); err != nil || back != name {
			t.Errorf("ParsePath(%q) = %q, %v; want %q", want, back, err, name)
		}
	}
	for _, name := range []string{
		"", "a\x00", "a\nb", "\x7f", "a\u0085", "\xff", "a\xc3", strings.Repeat("n", 241), strings.Repeat("/", 81),
	} {
		if got, err := Path(name); err == nil {
			t.Errorf("Path(%q) = %q; want an error", name, got)
		}
	}
	for _, path := range []string{
		"", "index", "index/", "chunks/a", "index/a/b", "index/.a", "index/a b", "index/~", "index/~2", "index/a~2",
		"index/~2F", "index/~61", "index/~zz", "index/~ff", "index/~00", "index/~+2", "index/ä", "index/~~7e",
		"index/" + strings.Repeat("n", 241), "index/App", "Index/a", "/index/a",
	} {
		if got, err := ParsePath(path); err == nil {
			t.Errorf("ParsePath(%q) = %q; want an error", path, got)
		}
	}
}

func TestPathRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z./~ %]{1,80}`)).Draw(t, "name")
		path, err := Path(name)
		if err != nil {
			return
		}
		element := strings.TrimPrefix(path, Prefix)
		if element == "" || len(element) > maxEscaped || element[0] == '.' || strings.Trim(element,
			"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@=~") != "" {
			t.Fatalf("Path(%q) = %q is not one element of a store's key", name, path)
		}
		if back, err := ParsePath(path); err != nil || back != name {
			t.Fatalf("Path(%q) = %q, and back %q, %v", name, path, back, err)
		}
	})
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"index/a~2fb", "index/~2e.", "index/~c3~b6", "index/~", "index/a.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		name, err := ParsePath(path)
		if err != nil {
			return
		}
		if again, err := Path(name); err != nil || again != path || !utf8.ValidString(name) {
			t.Errorf("ParsePath(%q) = %q, and back %q, %v", path, name, again, err)
		}
	})
}

func TestCutInputKey(t *testing.T) {
	for name, want := range map[string]struct {
		bare, key string
		found     bool
	}{
		"app/main":          {"app/main", "", false},
		"app/main@4f2c":     {"app/main", "4f2c", true},
		"app/main@":         {"app/main", "", true},
		"a@b@c":             {"a@b", "c", true},
		"@app":              {"", "app", true},
		"@scope/package":    {"@scope/package", "", false},
		"@scope/package@4f": {"@scope/package", "4f", true},
		"app@corp/secret":   {"app@corp/secret", "", false},
	} {
		if bare, key, found := CutInputKey(name); bare != want.bare || key != want.key || found != want.found {
			t.Errorf("%s: %q, %q, %v", name, bare, key, found)
		}
	}
}
