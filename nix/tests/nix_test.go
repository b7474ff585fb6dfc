// Package tests builds with a real Nix, in its sandbox, with the nbc of this module behind a real daemon. What these
// builds see of Nixpkgs is a small one, pkgs.nix; setup.sh is its stdenv.
package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"nbc/transfer/store/storetest"
)

// The time that a command and a start may take: far more than any does, so that one which hangs has a name.
const (
	commandTime = 5 * time.Minute
	startTime   = 2 * time.Minute
)

// Where this module is, where nbc was built, and why there can be no builds.
var (
	module string
	bin    string // a directory with bin/nbc
	broken error
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "nbc-nix")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer remove(dir)
		if err := prepare(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func prepare(dir string) error {
	for _, name := range os.Environ() {
		if name, _, _ = strings.Cut(name, "="); strings.HasPrefix(name, "NIX_") || strings.HasPrefix(name, "NBC_") &&
			name != "NBC_REQUIRE" && name != "NBC_VERSITYGW" {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	var err error
	if module, err = filepath.Abs("../.."); err != nil {
		return err
	}
	if _, broken = exec.LookPath("nix-build"); broken != nil {
		return nil
	}
	bin = filepath.Join(dir, "nbc")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(bin, "bin", "nbc"), "nbc/cmd/nbc")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building nbc: %w\n%s", err, out)
	}
	h := &host{dir: filepath.Join(dir, "try")}
	if err := h.configure(); err != nil {
		return err
	}
	try := `derivation { name = "try"; system = builtins.currentSystem; builder = "/bin/bash";
		args = [ "-c" "[[ $NIX_BUILD_TOP = /build ]] && echo > $out" ]; }`
	if r := h.run(context.Background(), "nix-build", "--no-out-link", "-E", try); r.err != nil {
		broken = fmt.Errorf("nix builds nothing in a sandbox here: %w\n%s", r.err, r.log)
	}
	return nil
}

// depend tells go test which files the tests depend on, so that a result from before a change is not taken for a present
// one: it only knows of files that a test itself looks at, while it runs.
var depend = sync.OnceValue(func() error {
	return filepath.WalkDir(module, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != module && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.Type().IsRegular():
			_, err = os.Stat(path)
		}
		return err
	})
})

// remove removes a directory with a Nix store, which is read-only.
func remove(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) // what cannot be removed is seen below
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// need skips a test for which a component is missing, unless NBC_REQUIRE names it: then it fails.
func need(t *testing.T, components ...string) {
	t.Helper()
	for _, c := range components {
		err := broken
		if c != "nix" {
			_, err = exec.LookPath(c)
		}
		storetest.Need(t, c, err)
	}
}

// host is a machine that builds: a Nix store and a daemon of its own.
type host struct {
	dir    string
	open   bool // it builds without a sandbox, and its store is where its name says
	t      *testing.T
	daemon *exec.Cmd
	log    bytes.Buffer // of the daemon; to be read when it has ended
}

// newHost makes a machine without a daemon.
func newHost(t *testing.T) *host {
	t.Helper()
	need(t, "nix")
	if err := depend(); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: filepath.Join(t.TempDir(), "host")}
	if err := h.configure(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the daemon said:\n%s", &h.log)
		}
		remove(h.dir)
	})
	return h
}

// in makes a subtest the one that fails.
func (h *host) in(t *testing.T) {
	parent := h.t
	h.t = t
	t.Cleanup(func() { h.t = parent })
}

// configure writes a nix.conf that knows nothing of this machine but its programs. Builds find the host's folder of
// sockets where a real one is.
func (h *host) configure() error {
	conf := `substituters =
trusted-substituters =
build-users-group =
sandbox = ` + strconv.FormatBool(!h.open) + `
sandbox-fallback = false
sandbox-paths = /bin /usr /lib /lib64? /etc/alternatives? /var/lib/ghc?
extra-sandbox-paths = /run/nbc=` + h.sockets() + `?
experimental-features = nix-command flakes
timeout = 150
`
	if err := os.MkdirAll(h.sockets(), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(h.dir, "conf"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.dir, "conf", "nix.conf"), []byte(conf), 0o644)
}

func (h *host) sockets() string { return filepath.Join(h.dir, "run") }
func (h *host) socket() string  { return filepath.Join(h.sockets(), "nbc.sock") }

// physical returns where a store path is on this machine.
func (h *host) physical(path string) string {
	if h.open {
		return path
	}
	return filepath.Join(h.dir, "root", path)
}

// ran is what came of a command.
type ran struct {
	out, log string
	err      error
}

// run runs a command of Nix on the host's own store.
func (h *host) run(ctx context.Context, name string, args ...string) ran {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	root := filepath.Join(h.dir, "root")
	if !h.open {
		args = append(args, "--store", root)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+filepath.Join(h.dir, "conf"), "HOME="+filepath.Join(h.dir, "home"),
		"XDG_CACHE_HOME=", "XDG_CONFIG_HOME=", "NO_COLOR=1", "TERM=dumb")
	if h.open {
		cmd.Env = append(cmd.Env, "NIX_REMOTE=local", "NIX_STORE_DIR="+root+"/store", "NIX_STATE_DIR="+root+"/state",
			"NIX_LOG_DIR="+root+"/log")
	}
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return ran{strings.TrimSpace(stdout.String()), stderr.String(), err}
}

// serve starts the daemon of the host.
func (h *host) serve(args ...string) {
	h.t.Helper()
	args = append([]string{"daemon", "--listen", "unix:" + h.socket()}, args...)
	cmd := exec.Command(filepath.Join(bin, "bin", "nbc"), args...)
	cmd.Stderr = &h.log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.daemon = cmd
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(h.socket()); err == nil {
			return
		}
		if time.Since(begun) > startTime {
			h.t.Fatal("the daemon does not start")
		}
	}
}

// serveAll starts a daemon that allows everything.
func (h *host) serveAll(store string) {
	h.t.Helper()
	h.serve("--store", store, "--near", filepath.Join(h.dir, "near"), "--allow-read", "**", "--allow-write", "**")
}

// stop ends the daemon.
func (h *host) stop(sig os.Signal) {
	if h.daemon == nil {
		return
	}
	_ = h.daemon.Process.Signal(sig)
	_ = h.daemon.Process.Signal(syscall.SIGCONT) // a test may have stopped it
	_ = h.daemon.Wait()                          // how it ends is no matter here
	h.daemon = nil
}

// signal sends a signal to the daemon.
func (h *host) signal(sig os.Signal) {
	h.t.Helper()
	if err := h.daemon.Process.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
}

// prelude is before every expression.
func prelude() string {
	return fmt.Sprintf(`let
  pkgs = import %s/nix/tests/pkgs.nix { nbc = builtins.path { path = %s; name = "nbc"; }; };
  inherit (pkgs) lib;
  nbc = import %s { inherit pkgs; };
in `, module, bin, module)
}

// build builds the derivation that an expression stands for.
func (h *host) build(expr string) ran {
	h.t.Helper()
	return h.run(h.t.Context(), "nix-build", "--no-out-link", "-E", prelude()+expr)
}

// built is a build that must succeed.
func (h *host) built(expr string) ran {
	h.t.Helper()
	r := h.build(expr)
	if r.err != nil {
		h.t.Fatalf("%v\n%s", r.err, r.log)
	}
	return r
}

// failed is a build that must fail, in the builder and not before.
func (h *host) failed(expr string) ran {
	h.t.Helper()
	r := h.build(expr)
	if exit := (*exec.ExitError)(nil); !errors.As(r.err, &exit) || !strings.Contains(r.log, "failed with exit code") {
		h.t.Fatalf("it should have failed: %v\n%s", r.err, r.log)
	}
	return r
}

// eval returns the value of an expression, which is a text.
func (h *host) eval(expr string) string {
	h.t.Helper()
	r := h.run(h.t.Context(), "nix-instantiate", "--eval", "--strict", "--read-write-mode", "--json", "-E", prelude()+expr)
	if r.err != nil {
		h.t.Fatalf("%v\n%s", r.err, r.log)
	}
	return r.out
}

// tree is a source tree: contents by path.
type tree map[string]string

// project reads an archive of testdata.
func project(t *testing.T, name string) tree {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	files := tree{}
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	return files
}

// with returns the tree with other files.
func (x tree) with(other tree) tree {
	all := maps.Clone(x)
	maps.Copy(all, other)
	return all
}

// sub returns the tree with a text in a file in the place of another one, which is there.
func (x tree) sub(t *testing.T, file, before, after string) tree {
	t.Helper()
	if !strings.Contains(x[file], before) {
		t.Fatalf("%s has no %q: %s", file, before, x[file])
	}
	return x.with(tree{file: strings.ReplaceAll(x[file], before, after)})
}

// source writes the tree to disk, and returns the expression of a source that has it. A file whose contents begin with
// "-> " is a link, one that is in a folder named bin or is named configure can be executed.
func (x tree) source(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	for name, data := range x {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(data, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mode := os.FileMode(0o644)
		if filepath.Base(name) == "configure" {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(data), mode); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf(`(builtins.path { path = /. + %q; name = "source"; })`, dir)
}

// compiled returns what a build compiled and linked, sorted.
func (r ran) compiled() string {
	var units []string
	for line := range strings.Lines(r.log) {
		line = strings.TrimSpace(line)
		switch words := strings.Fields(line); {
		case strings.HasPrefix(line, "cc ") && words[len(words)-1] != "": // the source, or the last object
			units = append(units, words[len(words)-1])
		case strings.HasPrefix(line, "[") && strings.Contains(line, "] Compiling "):
			units = append(units, words[slices.Index(words, "Compiling")+1])
		case strings.HasPrefix(line, "Linking "):
			units = append(units, "link")
		}
	}
	slices.Sort(units)
	return strings.Join(units, " ")
}

// says fails the test if the log lacks a text.
func (r ran) says(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.log, text) {
			t.Errorf("the log lacks %q:\n%s", text, r.log)
		}
	}
}

// saysNot fails the test if the log has a text.
func (r ran) saysNot(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(r.log, text) {
			t.Errorf("the log has %q:\n%s", text, r.log)
		}
	}
}

// compiles fails the test if something else was compiled.
func (r ran) compiles(t *testing.T, units string) {
	t.Helper()
	if got := r.compiled(); got != units {
		t.Errorf("it compiled %q, not %q:\n%s", got, units, r.log)
	}
}

// shell runs a script on this machine, and returns what it prints.
func (h *host) shell(script string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/bin/sh", "-ec", script).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
