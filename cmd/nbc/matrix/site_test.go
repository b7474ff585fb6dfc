package matrix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// nbc is the program under test, which TestMain builds.
var nbc string

// commandTime is how long one command may take: far more than any does, so that one which hangs has a name.
const commandTime = 3 * time.Minute

// site is the place on disk where one tool's builds happen.
type site struct {
	tool    *tool
	project *project
	root    string
	env     []string
}

// tree is the one that is deleted before each build, here the one that is edited in place.
func (s *site) tree() string  { return filepath.Join(s.root, "tree") }
func (s *site) here() string  { return filepath.Join(s.root, "here") }
func (s *site) state() string { return filepath.Join(s.root, "state") }
func (s *site) log() string   { return filepath.Join(s.root, "units") }

// newSite makes wrappers for the compilers, and an environment in which tools see no settings of who runs the test.
func newSite(t *testing.T, x *tool, programs map[string]string) *site {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{tool: x, root: root, project: readProject(t, x.project)}
	for _, dir := range []string{"bin", "tool"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const script = "#!/bin/sh\nprintf '%%s\\n' \"$*\" >> \"$UNITS\"\nexec %s\"$@\"\n"
	wrap := map[string]string{"rustc-wrapper": ""}
	for _, name := range wrapped {
		if path := programs[name]; path != "" {
			wrap[name] = "'" + path + "' "
		}
	}
	for name, command := range wrap {
		text := fmt.Sprintf(script, command)
		if err := os.WriteFile(filepath.Join(root, "bin", name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "NBC_"), strings.HasPrefix(name, "XDG_"), strings.HasPrefix(name, "LC_"),
			strings.HasPrefix(name, "DUNE_"), strings.HasPrefix(name, "CARGO_TARGET_"), strings.HasPrefix(name, "NINJA_"),
			strings.HasPrefix(name, "GHC_"), strings.HasPrefix(name, "CMAKE_"), strings.HasPrefix(name, "CARGO_BUILD_"):
			continue
		case slices.Contains([]string{
			"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "LANG", "PATH", "RUSTFLAGS",
			"RUSTC", "RUSTC_WRAPPER", "CARGO_INCREMENTAL", "OCAMLPARAM", "OCAMLPATH", "SOURCE_DATE_EPOCH", "TZ",
		}, name):
			continue
		}
		s.env = append(s.env, v)
	}
	// A proxy that refuses keeps tools from asking anybody but this machine.
	s.env = append(s.env, "LANG=C.UTF-8", "NO_COLOR=1", "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"),
		"UNITS="+s.log(), "BIN="+filepath.Join(root, "bin"), "TOOL="+filepath.Join(root, "tool"),
		"XDG_STATE_HOME="+s.state(), "XDG_CACHE_HOME="+filepath.Join(root, "cache"), "CARGO_NET_OFFLINE=true",
		"http_proxy=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1", "no_proxy=")
	for name, path := range programs {
		s.env = append(s.env, strings.ToUpper(name)+"="+path)
	}
	if x.files != "" {
		lay(t, filepath.Join(root, "tool"), readFiles(t, x.files), false)
	}
	if x.prepare != "" {
		if out, code := s.sh(t, filepath.Join(root, "tool"), x.prepare); code != 0 {
			t.Fatalf("preparing: exit code %d\n%s", code, out)
		}
	}
	return s
}

// command runs a program in dir, and returns what it printed and its exit code.
func (s *site) command(t *testing.T, dir string, argv ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, s.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A compiler that was left behind would keep the pipe open.
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return out.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, &out)
	}
	return out.String(), 0
}

// shell returns the command that runs a script.
func shell(script string) []string { return []string{"/bin/sh", "-ec", script} }

func (s *site) sh(t *testing.T, dir, script string) (string, int) {
	t.Helper()
	return s.command(t, dir, shell(script)...)
}

// measure returns what the tool built while do ran; do returns what was printed.
func (s *site) measure(t *testing.T, do func() string) []string {
	t.Helper()
	if err := os.WriteFile(s.log(), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	printed := do()
	log, err := os.ReadFile(s.log())
	if err != nil {
		t.Fatal(err)
	}
	return s.tool.units(string(log), printed)
}

// print runs the program that was built in dir.
func (s *site) print(t *testing.T, dir string) string {
	t.Helper()
	out, code := s.sh(t, dir, s.tool.output)
	if code != 0 {
		t.Fatalf("the program ended with exit code %d\n%s", code, out)
	}
	return out
}

// clean is a clean build, which is made once.
type clean struct {
	mu   sync.Mutex
	done bool
	out  string // of the program
}

// cleans are all of them, by the script and the state: some rows have both in common.
var cleans sync.Map

// cleanOutput returns what the program prints after a build of x without any cache.
func (s *site) cleanOutput(t *testing.T, x state) string {
	t.Helper()
	script := s.tool.clean
	if script == "" {
		script = s.tool.configure + "\n" + s.tool.build + "\n"
	}
	v, _ := cleans.LoadOrStore(script+x.key(), new(clean))
	c := v.(*clean)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return c.out
	}
	dir := filepath.Join(s.root, "clean")
	lay(t, dir, x, false)
	if err := os.WriteFile(s.log(), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	out, code := s.sh(t, dir, script)
	if code != 0 {
		t.Fatalf("a clean build ends with exit code %d\n%s", code, out)
	}
	if s.tool.clean == "" {
		out = s.print(t, dir)
	}
	c.out, c.done = out, true
	return out
}

// How nbc reports, as far as it is looked at here.
type (
	restoreReport struct {
		Hit     bool          `json:"hit"`
		Reason  string        `json:"reason"`
		Shifted time.Duration `json:"shifted_ns"`
		Waited  time.Duration `json:"waited_ns"`
	}
	saveReport struct {
		Saved   bool     `json:"saved"`
		Reason  string   `json:"reason"`
		Unknown []string `json:"unknown_sources"`
	}
)

// built is one build with nbc.
type built struct {
	units   []string
	failed  bool
	printed string // by the build and by nbc
	restore restoreReport
	save    saveReport
}

// hooks are what else happens in a build.
type hooks struct {
	flags  []string // of the restore
	before string   // a script that is run when the build has begun
	after  string   // a script that is run when it is over, before the save
	aged   func()   // called before the save
}

// build restores, builds and saves in the tree, with nbc run if the tool has no configure step and nothing else is to
// happen, else with one command after another.
func (s *site) build(t *testing.T, h hooks) built {
	t.Helper()
	// Another machine builds each time.
	if err := os.RemoveAll(s.state()); err != nil {
		t.Fatal(err)
	}
	place := []string{"--store", filepath.Join(s.root, "store")}
	tree := slices.Clone(place)
	for _, dir := range s.tool.dirs {
		tree = append(tree, "--dir", dir)
	}
	tree = append(tree, h.flags...)
	script := h.before + "\n" + s.tool.build + "\n" + h.after
	var b built
	b.units = s.measure(t, func() string {
		if s.tool.configure == "" && h.aged == nil {
			report := filepath.Join(s.root, "report")
			argv := append([]string{nbc, "run", "matrix", "--json-file", report}, tree...)
			argv = append(append(argv, "--"), shell(script)...)
			out, code := s.command(t, s.tree(), argv...)
			b.failed, b.printed = code != 0, out
			data, err := os.ReadFile(report)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var r struct {
				Restore *restoreReport
				Save    *saveReport
			}
			if err := json.Unmarshal(data, &r); err != nil {
				t.Fatal(err)
			}
			if r.Restore == nil || r.Save == nil {
				t.Fatalf("no restore or no save: %s\n%s", data, out)
			}
			b.restore, b.save = *r.Restore, *r.Save
			return out
		}

		b.printed = s.step(t, append([]string{"restore", "matrix"}, tree...), &b.restore)
		if s.tool.configure != "" {
			out, code := s.sh(t, s.tree(), s.tool.configure)
			b.printed += out
			if code != 0 {
				t.Fatalf("configure ended with exit code %d\n%s", code, b.printed)
			}
			b.printed += s.step(t, append([]string{"times"}, place...), nil)
		}
		out, code := s.sh(t, s.tree(), script)
		b.printed += out
		b.failed = code != 0
		save := append([]string{"save"}, place...)
		if b.failed {
			save = append(save, "--failed")
		}
		if h.aged != nil {
			h.aged()
			if _, err := os.Stat(s.state()); os.IsNotExist(err) {
				save = append([]string{"save", "matrix"}, tree...)
			}
		}
		b.printed += s.step(t, save, &b.save)
		return b.printed
	})
	return b
}

// step runs one verb of nbc, and decodes what it prints on stdout.
func (s *site) step(t *testing.T, args []string, report any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, nbc, append(args, "--json")...)
	cmd.Dir, cmd.Env = s.tree(), s.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("nbc %q: %v\n%s", args, err, &stderr)
	}
	if report != nil {
		if err := json.Unmarshal(stdout.Bytes(), report); err != nil {
			t.Fatalf("nbc %q: %v: %s", args, err, &stdout)
		}
	}
	return stderr.String()
}
