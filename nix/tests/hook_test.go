package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestShapes: whatever the derivation looks like, its second build does nothing, and $out is as without nbc.
func TestShapes(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	h.serveAll(t.TempDir())
	files := project(t, "c")
	const phases = `buildPhase = "make prefix=$out"; installPhase = "make prefix=$out install";`
	const spaced = `postBuild = "mkdir -p 'my dir'; [ -e 'my dir/a b' ] || echo x >'my dir/a b'";`
	for _, c := range []struct {
		name       string
		files      tree
		attributes string
		arguments  string
		out        string   // what is in the outputs, where it is not what it is in all other cases
		says       []string // by the second build
	}{
		{name: "own phases without runHook", attributes: `configurePhase = "true";` + phases},
		{name: "dontConfigure", attributes: `dontConfigure = true;`},
		{
			name:       "structured attributes",
			attributes: `__structuredAttrs = true; preBuildPhases = [ "early" ]; early = "true"; ` + spaced,
			arguments:  `cacheDirs = [ "my dir" "build" "no?such/*" ];`,
		},
		{
			name:       "lists of phases",
			attributes: `preInstallPhases = [ "late" ]; late = "true"; preConfigurePhases = "early"; early = ":";` + spaced,
			arguments:  `cacheDirs = [ "my dir" "build" "no?such/*" ]; exclude = [ "*.tmp file" ];`,
		},
		{
			name: "outputs", attributes: `outputs = [ "out" "dev" ]; postInstall = "mkdir $dev; cp words.h $dev";`,
			out: "bin bin/words words.h",
		},
		{
			name:       "structured outputs",
			attributes: `__structuredAttrs = true; outputs = [ "out" "dev" ]; postInstall = "mkdir $dev; cp words.h $dev";`,
			out:        "bin bin/words words.h",
		},
		{
			name:       "sourceRoot is the top",
			attributes: `sourceRoot = "."; unpackPhase = "cp -r $src/* .; chmod -R u+w .";`,
			says:       []string{"none changed of 6;"},
		},
		{
			name:       "sourceRoot is the top, structured",
			attributes: `__structuredAttrs = true; sourceRoot = "."; unpackPhase = "cp -r $src/* .; chmod -R u+w .";`,
			says:       []string{"none changed of 6;"},
		},
		{
			name:       "other directories",
			attributes: `preConfigure = "mkdir -p sub; cd sub"; preBuild = "cd .."; postBuild = "cd /"; preInstall = "cd build/source";`,
		},
		{
			name:       "patched",
			attributes: `patches = [ (builtins.toFile "patch" "sed -i 's/n + 1/n + 7/' count.c") ];`,
		},
		{
			name: "configured",
			files: tree{
				"configure": "#!/bin/sh\necho >config.h\n(echo '#include \"config.h\"'; cat words.in) >words.h\n",
				"words.in":  files["words.h"],
			},
		},
		{name: "odd names", files: tree{"a b.c": "x", "-f": "x", "ü'\"$(x).c": "x", "*.c": "x", "new\nline": "x"}},
		{name: "links", files: tree{"link.h": "-> words.h", "dangling": "-> nowhere", "up": "-> ..", "bin/x": "-> /bin/sh"}},
		{name: "checked", attributes: `doCheck = true; checkPhase = "build/words";`},
		{name: "two hours and no key", arguments: `times = "two-hours"; inputKey = "";`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.in(t)
			src := files.with(c.files).source(t)
			cold := h.built(cc(src, c.name, c.attributes, c.arguments))
			cold.compiles(t, everything)
			cold.says(t, "nbc: miss for "+c.name, "nbc: saved "+c.name)
			cold.saysNot(t, "nbc: warning")
			warm := h.built(cc(src, c.name, c.attributes+again, c.arguments))
			warm.compiles(t, "")
			warm.says(t, append(c.says, "nbc: restored "+c.name, "read 0 files")...)
			warm.saysNot(t, "nbc: warning")
			if c.out == "" {
				c.out = "bin bin/words"
			}
			if got := h.outputs(warm); got != c.out {
				t.Errorf("the outputs have %q, not %q", got, c.out)
			}
		})
	}
}

// outputPaths returns the paths of all outputs of the derivation that was built, sorted.
func (h *host) outputPaths(r ran) []string {
	h.t.Helper()
	drv := regexp.MustCompile(`building '(.*)'`).FindAllStringSubmatch(r.log, -1)
	q := h.run(h.t.Context(), "nix-store", "--query", "--outputs", drv[len(drv)-1][1])
	if q.err != nil {
		h.t.Fatal(q.log)
	}
	paths := strings.Fields(q.out)
	slices.Sort(paths)
	return paths
}

// outputs returns what is in the outputs of a build.
func (h *host) outputs(r ran) string {
	h.t.Helper()
	var names []string
	for _, p := range h.outputPaths(r) {
		names = append(names, strings.Fields(h.shell("cd "+h.physical(p)+"; find . -mindepth 1 -printf '%P\n'"))...)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// TestFailures: a build that fails does so as without nbc, and what it has made is saved once.
func TestFailures(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	h.serveAll(t.TempDir())
	src := project(t, "c").source(t)
	hooks := `failureHook = "echo the failureHook, $exitCode"; exitHook = "echo the exitHook";`
	for _, c := range []struct {
		name, attributes string
		ok               bool
		says, saysNot    []string
	}{
		{
			name: "build", attributes: `postBuild = "exit 7";`,
			says: []string{"failed with exit code 7", "the failureHook, 7", "nbc: saved build"}, saysNot: []string{"exitHook"},
		},
		{
			name: "unset", attributes: `postBuild = "echo $nothing";`,
			says: []string{"failed with exit code 1", "nbc: saved unset"},
		},
		{
			name: "structured", attributes: `__structuredAttrs = true; postBuild = "exit 7";`,
			says: []string{"failed with exit code 7", "the failureHook, 7", "nbc: saved structured"},
		},
		{
			name: "succeedOnFailure", attributes: `succeedOnFailure = true; postBuild = "exit 7";`, ok: true,
			says: []string{"build failed with exit code 7 (ignored)", "the failureHook, 7", "nbc: saved succeedOnFailure"},
		},
		{
			name: "patch", attributes: `patchPhase = "mkdir build; touch build/x; exit 3";`,
			says: []string{"failed with exit code 3", "the failureHook, 3"}, saysNot: []string{"nbc: "},
		},
		{
			name: "install", attributes: `postInstall = "exit 4";`,
			says: []string{"failed with exit code 4", "the failureHook, 4", "nbc: saved install"},
		},
		{
			name: "success", ok: true,
			says: []string{"the exitHook", "nbc: saved success"}, saysNot: []string{"failureHook"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.in(t)
			run := h.failed
			if c.ok {
				run = h.built
			}
			r := run(cc(src, c.name, hooks+c.attributes, ""))
			r.says(t, c.says...)
			r.saysNot(t, append(c.saysNot, "nbc: warning", "setup-hook: line")...)
			if n := strings.Count(r.log, "nbc: saved"); n > 1 {
				t.Errorf("it was saved %d times", n)
			}
		})
	}
}

// TestHook: the hook without wrap, and what it does where it is told nothing, or too much.
func TestHook(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	h.serveAll(t.TempDir())
	src := project(t, "c").source(t)
	hook := func(attributes string) string {
		return fmt.Sprintf(`pkgs.stdenv.mkDerivation ({ name = "words"; src = %s; nativeBuildInputs = [ nbc.hook ];
			makeFlags = [ "prefix=${placeholder "out"}" ]; nbcCacheName = "words"; nbcCacheDirs = "build other"; } // { %s })`,
			src, attributes)
	}
	h.built(hook("")).compiles(t, everything)
	h.built(hook(`n = 1;`)).compiles(t, "")
	h.built(hook(`nbcCacheDirs = [ "build" ]; n = 2;`)).compiles(t, "")
	// A pattern is nbc's, not the shell's.
	h.built(hook(`nbcCacheDirs = "bu?ld x/*"; n = 4;`)).compiles(t, "")
	r := h.built(hook(`nbcInputKey = "k1";`))
	r.compiles(t, everything)
	r.says(t, "nbc: miss for words@k1")
	r = h.built(hook(`nbcFallbackNames = "words none"; nbcCacheName = "new"; `))
	r.compiles(t, "")
	r.says(t, "nbc: restored words for new")
	r = h.built(hook(`nbcRestoreFlags = "--times two-hours --quiet"; nbcSaveFlags = [ "--json" ]; nbcTimeout = "1m";`))
	r.compiles(t, "")
	r.saysNot(t, "nbc: restored")
	r.says(t, `"action":"save"`)

	for _, c := range []struct{ attributes, says string }{
		{`nbcCacheName = "";`, "nbc: cold: nbcCacheName is not set"},
		{`nbcCacheDirs = [ ];`, "nbc: cold: nbcCacheDirs is not set"},
		{`nbcTimes = "never";`, `"never" is neither "recorded" nor "two-hours"`},
		{`nbcCacheDirs = "../up";`, "nbc: "},
		{`nbcCacheName = "line\nfeed";`, "nbc: "},
		{`nbcStore = "unix:/run/none.sock";`, "nbc: cold: no socket /run/none.sock"},
		{`nbcStore = "/proc/store";`, "nbc: warning: "},
		{`nbcStore = "ftp://x";`, "nbc: "},
	} {
		r := h.built(hook(c.attributes))
		r.compiles(t, everything)
		r.says(t, c.says)
		r.saysNot(t, "nbc: saved", "setup-hook: line")
	}

	off := h.built(hook(`dontNbc = true;`))
	off.compiles(t, everything)
	off.saysNot(t, "nbc")
	for _, a := range []string{
		`phases = [ "unpackPhase" "buildPhase" "installPhase" ];`,
		`buildCommand = "unpackPhase; cd source; make prefix=$out install";`,
	} {
		r := h.built(hook(a))
		r.compiles(t, everything)
		r.says(t, "nbc: not used: this derivation has a buildCommand, or phases without nbcRestorePhase")
	}
	r = h.built(hook(`n = 3; phases = [ "unpackPhase" "nbcRestorePhase" "buildPhase" "nbcSavePhase" "installPhase" ];`))
	r.compiles(t, "")
	r.says(t, "nbc: saved words")
	r.saysNot(t, "not used")

	// In a nix-shell it does nothing.
	text := h.run(t.Context(), "nix-instantiate", "--eval", "-E", prelude()+`"${nbc.hook}"`)
	if text.err != nil {
		t.Fatal(text.log)
	}
	script := filepath.Join(h.physical(strings.Trim(text.out, `"`)), "nix-support", "setup-hook")
	if _, err := os.Stat(script); err != nil {
		t.Fatal(err)
	}
	// On macOS there is no socket in a build, and one line says so.
	got := h.shell(fmt.Sprintf(`bash -c 'appendToVar() { :; }; source "$1"; OSTYPE=darwin22
		_nbcReachable unix:/none/s.sock 2>&1 || echo cold' - %s`, script))
	if got != "nbc: cold: no socket /none/s.sock, and on macOS Nix shows none to builds\ncold\n" {
		t.Errorf("on macOS it says %q", got)
	}
	for shell, want := range map[string]string{"impure": "", "pure": "", "": "nbcRestorePhase"} {
		got := h.shell(fmt.Sprintf(`IN_NIX_SHELL=%s bash -euc 'appendToVar() { echo "$2"; }; source "$1"' - %s | head -n 1`,
			shell, script))
		if strings.TrimSpace(got) != want {
			t.Errorf("in a nix-shell that is %q it gives %q", shell, got)
		}
	}
}

// TestWarnings: what the hook cannot reach is warned of when it is evaluated.
func TestWarnings(t *testing.T) {
	h := newHost(t)
	for attributes, warning := range map[string]string{
		"":                           "",
		`phases = [ "buildPhase" ];`: "nbc: words-1 has phases, so its builds stay cold",
		`buildCommand = "";`:         "nbc: words-1 has buildCommand, so its builds stay cold",
	} {
		r := h.run(t.Context(), "nix-instantiate", "-E", prelude()+cc("./.", "words", attributes, ""))
		if r.err != nil {
			t.Fatal(r.log)
		}
		if !strings.Contains(r.log, warning) || warning == "" && strings.Contains(r.log, "nbc: ") {
			t.Errorf("with %q it says %q", attributes, r.log)
		}
	}
	none := `nbc.lib.wrap { cacheName = "x"; cacheDirs = [ ]; } { name = "x"; }`
	r := h.run(t.Context(), "nix-instantiate", "-E", prelude()+none)
	if r.err == nil || !strings.Contains(r.log, "it was not made by stdenv.mkDerivation") {
		t.Errorf("%v\n%s", r.err, r.log)
	}
}
