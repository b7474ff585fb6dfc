package tests

import (
	"strings"
	"testing"
)

// TestInputKey: the key of a derivation says nothing of its sources, and everything of its other inputs.
func TestInputKey(t *testing.T) {
	h := newHost(t)
	key := func(attributes string) string {
		t.Helper()
		return h.eval(`nbc.lib.inputKey (let
			fixed = hash: src: derivation { name = "vendor"; inherit src; system = "x"; builder = "x";
				outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputHash = hash; };
			sha = builtins.hashString "sha256";
			file = builtins.toFile;
			library = n: pkgs.stdenv.mkDerivation { name = "library"; inherit n; };
			plain = { pname = "words"; version = "1"; src = file "source" "one"; };
		in pkgs.stdenv.mkDerivation (plain // (` + attributes + `)))`)
	}
	plain := key(`{ }`)
	for _, same := range []string{
		`{ src = file "source" "two"; }`,
		`{ src = ./.; }`,
		`{ src = { outPath = file "x" "x"; name = "x"; rev = "abc"; narHash = "n"; }; }`,
		`{ src = library 1; }`,
		`{ src = null; }`,
		`{ version = "2"; }`,
		`{ name = "words-3"; }`,
		`{ patches = [ (file "patch" "") ]; }`,
		`{ nbcCacheName = "words/pr-1"; nbcCacheDirs = [ "build" ]; }`,
		`{ meta.description = "x"; passthru.x = 1; }`,
	} {
		if strings.Contains(same, "patches") {
			if a, b := key(same), key(`{ patches = [ ]; }`); a != b {
				t.Errorf("%s: the key is %s, not %s", same, a, b)
			}
			continue
		}
		if got := key(same); got != plain {
			t.Errorf("%s: the key is %s, not %s", same, got, plain)
		}
	}
	seen := map[string]string{plain: ""}
	for _, other := range []string{
		`{ buildInputs = [ (library 1) ]; }`,
		`{ buildInputs = [ (library 2) ]; }`,
		`{ makeFlags = [ "CFLAGS=-O2" ]; }`,
		`{ buildPhase = "make all"; }`,
		`{ outputs = [ "out" "dev" ]; }`,
		`{ __structuredAttrs = true; }`,
		`{ vendor = fixed (sha "a") (file "source" "one"); }`,
		`{ vendor = fixed (sha "b") (file "source" "one"); }`,
	} {
		got := key(other)
		if before, ok := seen[got]; ok {
			t.Errorf("%s has the key of %q", other, before)
		}
		seen[got] = other
	}
	// A derivation that fetches dependencies, made from the source, changes with it; what it makes does not.
	vendor := `{ vendor = fixed (sha "a") (file "source" "%"); }`
	if key(strings.Replace(vendor, "%", "one", 1)) != key(strings.Replace(vendor, "%", "two", 1)) {
		t.Error("the key changes with the source, by way of a derivation whose output is fixed")
	}
	// Many sources, and expressions that look at the source.
	many := `srcs = [ (file "a" "%") (file "b" "%") ];`
	if a, b := key(`{ `+many+` }`), key(`{ `+strings.ReplaceAll(many, "%", "x")+` }`); a != b {
		t.Error("the key changes with one of several sources")
	}
	looks := `finalAttrs: { name = "n"; src = { outPath = file "s" "%"; name = "s-%"; rev = "r%"; };
		sourceRoot = "${finalAttrs.src.name}/sub";
		flags = "-X rev=${finalAttrs.src.rev}"; }`
	made := func(x string) string {
		return h.eval(`let file = builtins.toFile; in nbc.lib.inputKey (pkgs.stdenv.mkDerivation (` +
			strings.ReplaceAll(looks, "%", x) + `))`)
	}
	if made("1") != made("2") {
		t.Error("the key changes with the source's name or revision")
	}
}

// TestInputs: a build with other inputs is cold, and says so.
func TestInputs(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	h.serveAll(t.TempDir())
	src := project(t, "c").source(t)
	h.built(cc(src, "words/main", `compiler = "1";`, "")).compiles(t, everything)
	h.built(cc(src, "words/main", `compiler = "1";`+again, "")).compiles(t, "")
	r := h.built(cc(src, "words/pr", `compiler = "2";`, `fallbackNames = [ "words/main" ];`))
	r.compiles(t, everything)
	r.says(t, "nbc: miss for words/pr@", "no such name in the store; words/main@", "but it is saved with other inputs")
	h.built(cc(src, "words/main", `compiler = "1"; version = "3";`, "")).compiles(t, "")
	// Whoever knows better gives the key.
	h.built(cc(src, "words/main", `compiler = "4";`, `inputKey = "mine";`)).compiles(t, everything)
	h.built(cc(src, "words/main", `compiler = "5";`, `inputKey = "mine";`)).compiles(t, "")
}
