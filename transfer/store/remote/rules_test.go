package remote

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nbc/index"
)

// What is listed for a peer holds all that it may read, and nothing is asked for that no rule can match.
func TestPrefixes(t *testing.T) {
	peer := Peer{UID: 1000, GID: 100, Known: true}
	for _, c := range []struct {
		rules, prefix string
		want          []string
	}{
		{"", "index/", nil},
		{"write app/**", "index/", nil},
		{"read app/**  uid=1001", "index/", nil},
		{"read **", "index/", []string{"index/"}},
		{"read **", "index/app~2f", []string{"index/app~2f"}},
		{"read app/*", "index/", []string{"index/app~2f"}},
		{"read app/*", "index/app~2", []string{"index/app~2f"}},
		{"read app/*", "index/app~2fmain@", []string{"index/app~2fmain@"}},
		{"read app/*", "index/other", nil},
		{"read App-?", "index/", []string{"index/~41pp-"}},
		{`read a\*b`, "index/", []string{"index/a~2ab"}},
		{"read b/*\nread a\nread a/b\nread ab*\nread c*d", "index/", []string{"index/a", "index/b~2f", "index/c"}},
		{"read b/*\nread *", "index/", []string{"index/"}},
	} {
		if got := allow(t, c.rules).prefixes(peer, c.prefix); !slices.Equal(got, c.want) {
			t.Errorf("%q, %s: %q, want %q", c.rules, c.prefix, got, c.want)
		}
	}
	var many strings.Builder
	for i := range 3 * maxListings {
		fmt.Fprintf(&many, "read %02d/*\n", i)
	}
	if got := allow(t, many.String()).prefixes(peer, "index/"); !slices.Equal(got, []string{"index/"}) {
		t.Errorf("%q", got)
	}
	rapid.Check(t, func(r *rapid.T) {
		name := rapid.StringOfN(rapid.SampledFrom([]rune(`ab/@*?\A.`)), 1, 6, -1).Draw(r, "name")
		var glob string
		for _, c := range name[:rapid.IntRange(0, len(name)).Draw(r, "kept")] {
			glob += rapid.SampledFrom([]string{`\` + string(c), `\` + string(c), "?"}).Draw(r, "character")
		}
		glob += "**"
		rules := Rules{{Right: Reading, Glob: glob}}
		key, err := index.Path(name)
		if err != nil || CheckGlob(glob) != nil || !rules.Allow(peer, Reading, name) {
			r.Skip()
		}
		prefix := key[:rapid.IntRange(len(index.Prefix), len(key)).Draw(r, "prefix")]
		if !slices.ContainsFunc(rules.prefixes(peer, prefix), func(p string) bool { return strings.HasPrefix(key, p) }) {
			r.Fatalf("%q may be read by %q, and %q is not listed by %q", name, glob, key, prefix)
		}
	})
}

func TestAllow(t *testing.T) {
	alice := Peer{UID: 1000, GID: 100, PID: 1, Known: true}
	builder := Peer{UID: 30001, GID: 30000, PID: 2, Known: true}
	for _, c := range []struct {
		rules string
		peer  Peer
		right Right
		name  string
		want  bool
	}{
		{"", alice, Reading, "app", false},
		{"read app", alice, Reading, "app", true},
		{"read app", alice, Writing, "app", false},
		{"write app", alice, Writing, "app", true},
		{"write app", alice, Reading, "app", false}, // to write implies nothing about reading
		{"read app", alice, Reading, "App", false},
		{"read app", alice, Reading, "app2", false},
		{"read app", alice, Reading, "my app", false},

		{"read app/*", alice, Reading, "app/main", true},
		{"read app/*", alice, Reading, "app/", true},
		{"read app/*", alice, Reading, "app", false},
		{"read app/*", alice, Reading, "app/pr/1", false},
		{"read app/**", alice, Reading, "app/pr/1", true},
		{"read app/pr-?", alice, Reading, "app/pr-1", true},
		{"read app/pr-?", alice, Reading, "app/pr-12", false},
		{"read app/pr-?", alice, Reading, "app/pr-ä", true},
		{"read app?main", alice, Reading, "app/main", false},
		{"read app?main", alice, Reading, "app main", true},
		{"read *", alice, Reading, "app/main", false},
		{"read **", alice, Reading, "app/main", true},
		{"read **/main", alice, Reading, "a/b/main", true},
		{"read **/main", alice, Reading, "main", false},
		{`read a\*b`, alice, Reading, "a*b", true},
		{`read a\*b`, alice, Reading, "axb", false},
		{"read [ab]", alice, Reading, "a", false},
		{"read [ab]", alice, Reading, "[ab]", true},
		{"read a.b", alice, Reading, "axb", false},

		// The hash of a Nix build's inputs does not count, and can add nothing.
		{"read app/main", alice, Reading, "app/main@0c3f", true},
		{"read app/main", alice, Reading, "app/main@", true},
		{"read app/main", alice, Reading, "app/main@x/y", false}, // a key has no slash
		{"read app", alice, Reading, "app@corp/secret", false},
		{"write org/@scope/*", alice, Writing, "org/@scope/package", true},
		{"write @scope/**", alice, Writing, "@scope/package@0c3f", true},
		{"read app/main", alice, Reading, "app/main@x@y", false},
		{"read app@main", alice, Reading, "app@main", false},
		{"read app@main", alice, Reading, "app@main@0c3f", true},
		{"read app/main", alice, Reading, "other@app/main", false},
		{"read **", alice, Reading, "@app", false},
		{"write app/pr-*", alice, Writing, "app/main@app/pr-1", false},
		{"write app/pr-*", alice, Writing, "app/main@pr-1", false},

		{"read app uid=1000", alice, Reading, "app", true},
		{"read app uid=1000", builder, Reading, "app", false},
		{"read app uid=1000 uid=30001", builder, Reading, "app", true},
		{"read app gid=30000", builder, Reading, "app", true},
		{"read app gid=30000", alice, Reading, "app", false},
		{"read app uid=1000 gid=30000", alice, Reading, "app", false},
		{"read app uid=1000 gid=100", alice, Reading, "app", true},
		{"read app uid=0", Peer{}, Reading, "app", false}, // nothing is known, which is not root
		{"read app", Peer{}, Reading, "app", true},
		{"read app uid=1000\nread app gid=30000", builder, Reading, "app", true},
		{"# read app", alice, Reading, "app", false},
		{"  read\tapp  # as everybody", alice, Reading, "app", true},
		{"read a#b", alice, Reading, "a#b", true},
	} {
		rules, err := ParseRules(c.rules)
		if err != nil {
			t.Errorf("%q: %v", c.rules, err)
			continue
		}
		if got := rules.Allow(c.peer, c.right, c.name); got != c.want {
			t.Errorf("rules %q: %v may %s %q: %v", c.rules, c.peer, c.right, c.name, got)
		}
		if c.want && !rules.Any(c.peer, c.right) {
			t.Errorf("rules %q: %v may %s nothing", c.rules, c.peer, c.right)
		}
	}
}

func TestAny(t *testing.T) {
	rules, err := ParseRules("read a uid=1\nwrite b")
	if err != nil {
		t.Fatal(err)
	}
	one, two := Peer{UID: 1, Known: true}, Peer{UID: 2, Known: true}
	if !rules.Any(one, Reading) || rules.Any(two, Reading) || !rules.Any(two, Writing) {
		t.Errorf("%v %v %v", rules.Any(one, Reading), rules.Any(two, Reading), rules.Any(two, Writing))
	}
}

func TestParseRules(t *testing.T) {
	rules, err := ParseRules("read a uid=root gid=0 gid=7\r\n\n#\nwrite b/**")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(Rules{
		{Right: Reading, Glob: "a", UIDs: []uint32{0}, GIDs: []uint32{0, 7}}, {Right: Writing, Glob: "b/**"},
	})
	if got := fmt.Sprint(rules); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for text, why := range map[string]string{
		"allow a":                          `line 1: "allow" is neither read nor write`,
		"read":                             "line 1: read what?",
		"read a\nread a b":                 `line 2: "b" is neither uid=USER nor gid=GROUP`,
		"read a user=0":                    "is neither uid=USER",
		"read a uid=":                      "is empty",
		"read a uid=-1":                    "unknown user",
		"read a uid=nobody-has-this-name":  "unknown user",
		"read a gid=nobody-has-this-name":  "unknown group",
		"read a uid=4294967295":            "no number of a user",
		"read a uid=4294967296":            "no number of a user",
		`read a\`:                          "ends in a backslash",
		"read a\x00":                       "bytes that are not text",
		"read a\xff":                       "bytes that are not text",
		strings.Repeat("read a\n", 10_001): "more than 10000 rules",
	} {
		if _, err := ParseRules(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.40q: %v, want %q", text, err, why)
		}
	}
}

// TestMatch compares with regular expressions, which are a different way to say the same.
func TestMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		element := rapid.SampledFrom([]string{"a", "b", "/", "*", "**", "?", `\*`, `\\`, `\a`, ".", "ä", "***"})
		glob := strings.Join(rapid.SliceOfN(element, 0, 8).Draw(t, "glob"), "")
		letter := rapid.SampledFrom([]string{"a", "b", "/", "*", `\`, ".", "ä"})
		name := strings.Join(rapid.SliceOfN(letter, 0, 8).Draw(t, "name"), "")
		if got, want := match(glob, name), expression(glob).MatchString(name); got != want {
			t.Fatalf("match(%q, %q) = %v", glob, name, got)
		}
	})
}

func expression(glob string) *regexp.Regexp {
	var b strings.Builder
	for glob != "" {
		switch {
		case strings.HasPrefix(glob, "**"):
			b.WriteString(".*")
			glob = strings.TrimLeft(glob, "*")
		case glob[0] == '*':
			b.WriteString("[^/]*")
			glob = glob[1:]
		case glob[0] == '?':
			b.WriteString("[^/]")
			glob = glob[1:]
		default:
			if glob[0] == '\\' {
				glob = glob[1:]
			}
			r := []rune(glob)[0]
			b.WriteString(regexp.QuoteMeta(string(r)))
			glob = glob[len(string(r)):]
		}
	}
	return regexp.MustCompile("^(?s:" + b.String() + ")$")
}

// TestMatchIsQuick gives a glob that takes others for ever.
func TestMatchIsQuick(t *testing.T) {
	if match(strings.Repeat("*a", 100)+"b", strings.Repeat("a", 200)) {
		t.Error("it matches")
	}
}

func TestDerivation(t *testing.T) {
	const line = "612 611 254:1 %s %s rw,relatime shared:1 - ext4 /dev/vda rw\n"
	mount := func(root, point string) string { return fmt.Sprintf(line, root, point) }
	const drv = "/nix/store/0c3fxyz-hello-2.12.drv.chroot"
	for _, c := range []struct{ mountinfo, want string }{
		{"", ""},
		{mount("/", "/"), ""},
		{mount("/nix/store", "/nix/store") + mount(drv, "/"), "0c3fxyz-hello-2.12.drv"},
		{mount(drv+"/root", "/"), "0c3fxyz-hello-2.12.drv"},
		{mount(drv, "/mnt"), ""},
		{"garbage\n", ""},
	} {
		if got := derivationOf(c.mountinfo); got != c.want {
			t.Errorf("%q: %q, want %q", c.mountinfo, got, c.want)
		}
	}
	if got := derivation(int32(os.Getpid())); got != "" {
		t.Errorf("this process builds %q", got)
	}
	if got := derivation(-1); got != "" {
		t.Errorf("no process builds %q", got)
	}
}

func TestDefaultsAreConsistent(t *testing.T) {
	l := Limits{Requests: 3, Bytes: 10}.withDefaults()
	if l.ClientRequests > l.Requests || l.ClientBytes > l.Bytes || l.ClientConns > l.Conns {
		t.Errorf("a client is allowed more than all are: %+v", l)
	}
	if slices.Min([]int{l.Conns, l.ClientConns, l.FarRequests}) <= 0 || l.Object <= 0 || l.Idle <= 0 || l.Header <= 0 {
		t.Errorf("%+v", l)
	}
}
