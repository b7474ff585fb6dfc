package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbc/transfer/store/storetest"
)

// cc is the wrapped build of a C program; attributes are added to its own, and arguments to those of wrap.
func cc(src, name, attributes, arguments string) string {
	return fmt.Sprintf(`nbc.lib.wrap ({ cacheName = "%s"; cacheDirs = [ "build" ]; } // { %s })
(pkgs.stdenv.mkDerivation ({
  pname = "words";
  version = "1";
  src = %s;
  makeFlags = [ "prefix=${placeholder "out"}" ];
} // { %s }))`, name, arguments, src, attributes)
}

// ghc is that of a Haskell program.
func ghc(src, name, attributes, arguments string) string {
	return fmt.Sprintf(`nbc.lib.wrap ({ cacheName = "%s"; cacheDirs = [ "dist" ]; } // { %s })
(pkgs.stdenv.mkDerivation ({
  pname = "words";
  version = "1";
  src = %s;
  buildPhase = "mkdir -p dist; ghc --make -v1 -outputdir dist -isrc -o dist/words src/Main.hs";
  installPhase = "mkdir -p $out/bin; cp dist/words $out/bin";
} // { %s }))`, name, arguments, src, attributes)
}

// everything is all units of the C program, everyModule those of the Haskell program.
const (
	everything  = "build/count.o count.c greet.c main.c"
	everyModule = "Count Greet Main link"
)

// again makes it another build of the same sources with the same inputs, which has another output path.
const again = `version = "2";`

// output runs the program that was built.
func (h *host) output(r ran) string {
	h.t.Helper()
	return h.shell(h.physical(r.out) + "/bin/words")
}

func TestIncremental(t *testing.T) {
	need(t, "make", "gcc", "ghc")
	// edit is a file, and a text in it with another one.
	type edit [3]string
	for _, l := range []struct {
		project   string
		build     func(src, name, attributes, arguments string) string
		all       string // what is compiled at first
		edit      edit
		edited    string // what is compiled then
		other     edit
		broken    edit   // does not compile
		attempted string // what is compiled of both
		mended    string // what is compiled when only that is undone
	}{
		{
			"c", cc, everything,
			edit{"count.c", "n + 1", "n + 2"},
			"build/count.o count.c",
			edit{"greet.c", "hello", "good morning"},
			edit{"count.c", "n + 2", "nothing"},
			"count.c greet.c",
			"build/count.o count.c",
		},
		{
			"haskell", ghc, everyModule,
			edit{"src/Count.hs", "n + 1", "n + 2"},
			"Count link",
			edit{"src/Greet.hs", "hello", "good morning"},
			edit{"src/Main.hs", "count 3", "nothing"},
			"Greet Main",
			"Main link",
		},
	} {
		t.Run(l.project, func(t *testing.T) {
			h := newHost(t)
			h.serveAll(t.TempDir())
			files := project(t, l.project)
			with := func(x tree, e edit) tree { return x.sub(t, e[0], e[1], e[2]) }
			build := func(files tree, attributes string) string {
				return l.build(files.source(t), "words/main", attributes, "")
			}

			r := h.built(build(files, ""))
			r.compiles(t, l.all)
			r.says(t, "nbc: miss for words/main@", "nbc: saved words/main@")

			r = h.built(build(files, again))
			r.compiles(t, "")
			r.says(t, "nbc: restored words/main@", "sources: none changed")
			if got := h.output(r); got != "hello\n4\n" {
				t.Errorf("it prints %q", got)
			}

			edited := with(files, l.edit)
			r = h.built(build(edited, ""))
			r.compiles(t, l.edited)
			r.says(t, "sources: 1 changed")
			if got := h.output(r); got != "hello\n5\n" {
				t.Errorf("it prints %q", got)
			}

			// A build that fails keeps what it has made.
			r = h.failed(build(with(with(edited, l.other), l.broken), ""))
			r.compiles(t, l.attempted)
			r.says(t, "nbc: saved words/main@")
			r = h.built(build(with(edited, l.other), ""))
			r.compiles(t, l.mended)
			if got := h.output(r); got != "good morning\n5\n" {
				t.Errorf("it prints %q", got)
			}
		})
	}
}

func TestTwoHosts(t *testing.T) {
	need(t, "make", "gcc")
	url := storetest.S3(t)
	one, two := newHost(t), newHost(t)
	one.serveAll(url)
	two.serveAll(url)
	files := project(t, "c")
	one.built(cc(files.source(t), "words", "", "")).compiles(t, everything)
	two.built(cc(files.source(t), "words", "", "")).compiles(t, "")
	edited := files.sub(t, "greet.c", "hello", "good day")
	two.built(cc(edited.source(t), "words", "", "")).compiles(t, "build/count.o greet.c")
	one.built(cc(edited.source(t), "words", again, "")).compiles(t, "")
}

// TestWithout: whatever becomes of the cache, the build succeeds and says why it is cold.
func TestWithout(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	src := project(t, "c").source(t)
	cold := func(name, attributes string, says ...string) {
		t.Helper()
		r := h.built(cc(src, name, attributes, ""))
		r.compiles(t, everything)
		r.says(t, says...)
	}
	// Nobody has made a socket, or even its folder.
	cold("words", `a = 1;`, "nbc: cold: no socket /run/nbc/nbc.sock: is nbc daemon running?")
	if err := os.Remove(h.sockets()); err != nil {
		t.Fatal(err)
	}
	cold("words", `a = 2;`, "nbc: cold: no socket /run/nbc/nbc.sock: /run/nbc is not in Nix's extra-sandbox-paths")
	if err := h.configure(); err != nil {
		t.Fatal(err)
	}

	// No rule allows anything.
	h.serve("--store", t.TempDir())
	begun := time.Now()
	cold("words", `a = 3;`, "nbc: warning: ", "allows nothing to uid", "nbc: hint: whoever runs nbc daemon can allow it")
	usual := time.Since(begun) // as busy as the machine is
	h.stop(syscall.SIGTERM)

	// The socket is there, and the daemon is not.
	h.serveAll(t.TempDir())
	h.stop(syscall.SIGKILL)
	cold("words", `a = 4;`, "nbc: warning: ", "nbc daemon at /run/nbc/nbc.sock")
	if err := os.Remove(h.socket()); err != nil {
		t.Fatal(err)
	}

	// The store cannot be reached.
	t.Setenv("AWS_ACCESS_KEY_ID", "none")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "none")
	h.serve("--store", "s3://bucket?region=eu-west-1&path-style=true&endpoint=http://127.0.0.1:1", "--near", "off",
		"--allow-read", "**", "--allow-write", "**")
	r := h.built(cc(src, "words", `a = 5;`, ""))
	r.compiles(t, everything)
	r.says(t, "nbc: warning: ", "nbc daemon: its store could not be reached", "nbc: hint: ")
	// Where it is, is nothing for the build's log, which may be read by everybody.
	r.saysNot(t, "127.0.0.1:1", "bucket")

	// The daemon says nothing. That costs a build 20 seconds, and not 15 for each of its steps.
	h.stop(syscall.SIGTERM)
	h.serveAll(t.TempDir())
	h.signal(syscall.SIGSTOP)
	begun = time.Now()
	cold("words", `a = 6;`, "nbc: warning: ", "nbc daemon at /run/nbc/nbc.sock")
	if took := time.Since(begun); took > 30*time.Second+2*usual {
		t.Errorf("a silent daemon cost the build %v", took)
	}
	h.signal(syscall.SIGCONT)
}

// TestKilled: the daemon goes in the middle of a build, and comes back in the middle of another.
func TestKilled(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	store := t.TempDir()
	h.serveAll(store)
	files := project(t, "c")

	// The build waits in its sandbox until the daemon is gone: it has the same folder.
	begun := filepath.Join(h.sockets(), "begun")
	ended := make(chan ran)
	build := func(attributes string, meanwhile func()) ran {
		t.Helper()
		go func() {
			ended <- h.build(cc(files.source(t), "words", attributes+`preBuild = "touch /run/nbc/begun
				while [ -e /run/nbc/begun ]; do sleep 0.02; done";`, ""))
		}()
		for wait := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(begun); err == nil {
				break
			}
			if time.Since(wait) > startTime {
				t.Error("the build does not begin")
				break
			}
		}
		meanwhile()
		if err := os.Remove(begun); err != nil {
			t.Error(err)
		}
		r := <-ended
		if r.err != nil {
			t.Fatalf("%v\n%s", r.err, r.log)
		}
		return r
	}
	r := build(`version = "2";`, func() { h.stop(syscall.SIGKILL) })
	r.compiles(t, everything) // preBuild is an input
	r.says(t, "nbc: miss for words@", "nbc: warning: ", "Running phase: installPhase")

	h.serveAll(store)
	r = build(`version = "3";`, func() { h.stop(syscall.SIGKILL); h.serveAll(store) })
	r.compiles(t, everything)
	r.says(t, "nbc: saved words@")
	r = build(`version = "4";`, func() { h.stop(syscall.SIGKILL) })
	r.compiles(t, "")
	r.says(t, "nbc: restored words@", "nbc: warning: ", "Running phase: installPhase")
}

// TestOutputPaths: artifacts that hold the paths of the outputs hold those of this build when they are restored: nothing
// is compiled or stored again, and Nix finds the right references.
func TestOutputPaths(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	h.serveAll(t.TempDir())
	src := project(t, "c").source(t)
	const both = `outputs = [ "out" "dev" ]; makeFlags = [ "prefix=${placeholder "out"}" "dev=${placeholder "dev"}" ];
		postInstall = "mkdir $dev; cp words.h $dev";`
	for _, structured := range []string{"", "__structuredAttrs = true;"} {
		var paths []string
		for n := range 3 {
			r := h.built(cc(src, "words"+fmt.Sprint(len(structured)), fmt.Sprintf(`version = "%d";`, n)+both+structured, ""))
			if n == 0 {
				r.compiles(t, everything)
			} else {
				r.compiles(t, "")
				r.says(t, "output paths written in ", "sent 0 of ")
			}
			paths = append(paths, h.outputPaths(r)...)
			program := h.physical(r.out) + "/bin/words"
			for i, p := range paths {
				found := h.shell(fmt.Sprintf("grep -cF %s %s || true", p, program)) == "1\n"
				if now := i >= len(paths)-2; found != now {
					t.Errorf("build %d: that %s stands in the program is %v", n, p, found)
				}
			}
			q := h.run(t.Context(), "nix-store", "--query", "--references", r.out)
			got, want := strings.Fields(q.out), paths[len(paths)-2:]
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("build %d refers to %q, not to %q: %s", n, got, want, q.log)
			}
		}
	}
	// One that must not be changed is not.
	h.built(cc(src, "kept", "", `noRewrite = [ "greet.o" ];`)).compiles(t, everything)
	h.built(cc(src, "kept", again, `noRewrite = [ "greet.o" ];`)).says(t, "output paths written in 1 file;")
}

// TestRules: a pull request reads what the main branch has saved and cannot write it.
func TestRules(t *testing.T) {
	need(t, "make", "gcc")
	h := newHost(t)
	store := t.TempDir()
	h.serveAll(store)
	files := project(t, "c")
	h.built(cc(files.source(t), "words/main", "", ""))
	h.stop(syscall.SIGTERM)

	h.serve("--store", store, "--allow-read", "words/*", "--allow-write", "words/pr-*")
	edited := files.sub(t, "count.c", "n + 1", "n + 2")
	pr := func(n int) string {
		return cc(edited.source(t), fmt.Sprint("words/pr-", n), fmt.Sprintf(`version = "%d";`, n),
			`fallbackNames = [ "words/main" ];`)
	}
	r := h.built(pr(3))
	r.compiles(t, "build/count.o count.c")
	if !regexp.MustCompile(`nbc: restored words/main@\w+ for words/pr-3@`).MatchString(r.log) {
		t.Errorf("it does not say what it restored:\n%s", r.log)
	}
	r.says(t, "nbc: saved words/pr-3@")
	h.built(cc(edited.source(t), "words/pr-3", `version = "5";`, "")).compiles(t, "")

	before := snapshot(t, store) + chunksOf(t, store)
	r = h.built(cc(edited.source(t), "words/main", `version = "6";`, ""))
	r.compiles(t, "build/count.o count.c")
	r.says(t, "nbc: warning: ", "does not allow", `to write "words/main@`, "nbc: hint: ")
	// Also its chunks: it is asked before anything is sent.
	if after := snapshot(t, store) + chunksOf(t, store); after != before {
		t.Errorf("the store has changed:\n%s\n%s", before, after)
	}

	// The daemon's log says for which derivation that was, as whom the build connected, and what was refused.
	h.stop(syscall.SIGTERM)
	refusal := regexp.MustCompile(`(?m)^.*key=index/words~2fmain@.* uid=\d+ pid=\d+ derivation=\w+-words-6\.drv .*does not allow.*$`)
	if !refusal.MatchString(h.log.String()) {
		t.Errorf("the log of the daemon does not have the refusal:\n%s", &h.log)
	}
}

// chunksOf returns the names of the chunks.
func chunksOf(t *testing.T, store string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(store, "chunks", "*", "*"))
	if err != nil || len(list) == 0 {
		t.Fatal(err, list)
	}
	return strings.Join(list, "\n")
}

// snapshot returns the names of the indexes with their times.
func snapshot(t *testing.T, store string) string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(store, "index"))
	if err != nil || len(list) == 0 {
		t.Fatal(err, list)
	}
	var b strings.Builder
	for _, e := range list {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, e.Name(), info.ModTime().Format(time.RFC3339Nano), info.Size())
	}
	return b.String()
}
