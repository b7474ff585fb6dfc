package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// samples has for every flag a value that it takes, and one that it refuses if there is one.
var samples = map[string]struct{ good, bad string }{
	"dir":           {"build\npackages/*/dist", "../outside"},
	"exclude":       {"*.log\ntmp", "a["},
	"ignore-source": {"docs\n*.md", "{a"},
	"fallback":      {"main\nmyapp/main", "a\x01b"},
	"output-path":   {"out=/nix/store/0c4n1z0xk9l5v6b7r8q9w0x1y2z3a4d5-app", "out=/usr"},
	"no-rewrite":    {"*.jar", "{"},
	"store":         {"/tmp/store", ""},
	"near":          {"/tmp/near", ""},
	"near-size":     {"500M", "10GB"},
	"source":        {"/tmp", ""},
	"state":         {"/tmp/state", ""},
	"times":         {"two-hours", "three-hours"},
	"on-skew":       {"shift", "hit"},
	"moved":         {"true", "perhaps"},
	"replace":       {"1", "2"},
	"failed":        {"true", "yes"},
	"best-effort":   {"1", "maybe"},
	"timeout":       {"90s", "90"},
	"requests":      {"8", "0"},
	"quiet":         {"true", "a bit"},
	"json":          {"true", "xml"},
	"json-file":     {"/tmp/json", ""},

	"dry-run":          {"true", "perhaps"},
	"grace":            {"2d", "-1h"},
	"keep-within":      {"30d", "0d"},
	"keep":             {"main\n*/main", "{a"},
	"i-am-the-only-gc": {"1", "2"},

	"with-times": {"true", "perhaps"},
	"no-fetch":   {"1", "2"},
	"glob":       {"true", "*"},
	"force":      {"true", "perhaps"},
	"html":       {"/tmp/page.html", ""},
	"artifacts":  {"true", "all"},
	"sources":    {"true", "all"},
	"md5sums":    {"1", "sums"},
	"read-data":  {"true", "perhaps"},
	"sample":     {"5%", "500%"},
	"repair":     {"1", "2"},
	"probe":      {"true", "perhaps"},

	"listen":          {"unix:/run/nbc/nbc.sock", "/run/nbc/nbc.sock"},
	"allow-read":      {"myapp/**\nmain", `a\`},
	"allow-write":     {"pr-*", "a\x01b"},
	"allow-uid":       {"0\nroot", "nobody-has-this-name"},
	"allow-gid":       {"30000", "-1"},
	"rules":           {"/tmp/rules", ""},
	"socket-mode":     {"0666", "rw-rw-rw-"},
	"socket-group":    {"0", "nobody-has-this-name"},
	"metrics":         {"127.0.0.1:9137", ":9137"},
	"drain":           {"5s", "5"},
	"max-connections": {"100", "0"},
	"max-requests":    {"10", "many"},
	"max-bytes":       {"10M", "10MB"},
	"max-wait":        {"3s", "3"},
	"log-format":      {"json", "xml"},
	"log-level":       {"debug", "loud"},
}

// verbs returns every command that has flags with variables.
func verbs(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	all := map[string]*cobra.Command{}
	for _, cmd := range rootCommand(new(app)).Commands() {
		if own(cmd.LocalFlags()) > 0 {
			all[cmd.Name()] = cmd
		}
	}
	if len(all) < 4 {
		t.Fatalf("only %d verbs have flags", len(all))
	}
	return all
}

func own(f *pflag.FlagSet) int {
	n := 0
	f.VisitAll(func(f *pflag.Flag) {
		if hasVariable(f) {
			n++
		}
	})
	return n
}

// TestVariables sets each flag of each verb by its variable and by itself: both must leave the same options, a flag must
// win over its variable, and a wrong value must name the variable.
func TestVariables(t *testing.T) {
	for name, verb := range verbs(t) {
		verb.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !hasVariable(f) {
				return
			}
			t.Run(name+"/"+f.Name, func(t *testing.T) {
				s, ok := samples[f.Name]
				if !ok {
					t.Fatal("this flag has no samples")
				}
				if !strings.Contains(f.Usage, "["+variable(f.Name)+"]") {
					t.Errorf("the help does not name its variable: %s", f.Usage)
				}
				var flags []string
				for _, v := range lines(s.good) {
					flags = append(flags, "--"+f.Name+"="+v)
				}
				byFlag := parse(t, name, flags, nil)
				byVariable := parse(t, name, nil, []string{variable(f.Name) + "=" + s.good})
				if byFlag.err != nil || byVariable.err != nil {
					t.Fatalf("by flag: %v; by variable: %v", byFlag.err, byVariable.err)
				}
				if !reflect.DeepEqual(byFlag, byVariable) {
					t.Errorf("by flag: %+v; by variable: %+v", byFlag, byVariable)
				}
				if reflect.DeepEqual(byFlag, parse(t, name, nil, nil)) {
					t.Error("it changes nothing")
				}
				if empty := parse(t, name, nil, []string{variable(f.Name) + "="}); empty.err != nil {
					t.Errorf("an empty variable is not as none: %v", empty.err)
				}
				if s.bad == "" {
					return
				}
				both := parse(t, name, flags, []string{variable(f.Name) + "=" + s.bad})
				if both.err != nil || !reflect.DeepEqual(both, byFlag) {
					t.Errorf("the flag does not win over its variable: %v, %+v", both.err, both)
				}
				if err := parse(t, name, []string{"--" + f.Name + "=" + s.bad}, nil).err; err == nil ||
					!strings.Contains(err.Error(), "--"+f.Name) {
					t.Errorf("--%s=%q gives error %v", f.Name, s.bad, err)
				}
				if err := parse(t, name, nil, []string{variable(f.Name) + "=" + s.bad}).err; err == nil ||
					!strings.HasPrefix(err.Error(), variable(f.Name)+": ") {
					t.Errorf("%s=%q gives error %v", variable(f.Name), s.bad, err)
				}
			})
		})
	}
}

// parsed is what a verb would do: the options that verbs share, and the values of all its flags as text.
type parsed struct {
	options options
	values  map[string]string
	err     error
}

// parse reads flags and variables as the verb does, without doing anything.
func parse(t *testing.T, verb string, flags, environment []string) parsed {
	t.Helper()
	a := new(app)
	root := rootCommand(a)
	cmd, _, err := root.Find([]string{verb})
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(*cobra.Command, []string) error { return nil }
	for _, kv := range environment {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
		defer os.Unsetenv(k) // Setenv restores it in the end
	}
	root.SetArgs(append([]string{verb}, flags...))
	root.SetOut(new(bytes.Buffer))
	root.SetErr(new(bytes.Buffer))
	err = root.Execute()
	// Defaults of the verbs differ; what is compared is of the same verb.
	values := map[string]string{}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	return parsed{a.options, values, err}
}

// TestFlagsMeanTheSame makes sure that a flag that several verbs have is described the same in all of them.
func TestFlagsMeanTheSame(t *testing.T) {
	usage := map[string]string{}
	for name, verb := range verbs(t) {
		verb.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !hasVariable(f) {
				return
			}
			if u, ok := usage[f.Name]; ok && u != f.Usage {
				t.Errorf("--%s of %s: %q, elsewhere %q", f.Name, name, f.Usage, u)
			}
			usage[f.Name] = f.Usage
		})
	}
	for name := range samples {
		if usage[name] == "" {
			t.Errorf("no verb has --%s", name)
		}
	}
}

func TestTree(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(dir, "src")
	link := filepath.Join(dir, "link")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(src, link); err != nil {
		t.Fatal(err)
	}
	verb := &cobra.Command{}
	for _, c := range []struct {
		root, dir string
		want      []string
	}{
		{src, "build", []string{"build"}},
		{src, "./packages/*/dist/", []string{"./packages/*/dist/"}},
		{src, filepath.Join(src, "build"), []string{"./build"}},
		{src, filepath.Join(src, "*", "dist") + "/", []string{"./*/dist"}},
		{link, filepath.Join(link, "build"), []string{"./build"}},
		{link, filepath.Join(src, "build"), []string{"./build"}},
		{src, filepath.Join(dir, "other"), nil},
		{src, src, nil},
		{src, src + "x", nil},
	} {
		o := &options{dirs: []string{c.dir}}
		got, err := o.tree(verb, c.root, location{})
		if (err == nil) != (c.want != nil) || err == nil && !slices.Equal(got.Dirs, c.want) {
			t.Errorf("--dir %s in %s: %q, %v, want %q", c.dir, c.root, got.Dirs, err, c.want)
		}
		if err != nil && kindOf(err).name != "usage" {
			t.Errorf("--dir %s in %s: error of kind %s", c.dir, c.root, kindOf(err).name)
		}
	}

	o := &options{
		dirs:         []string{"build"},
		ignoreSource: []string{"docs"},
		jsonFile:     filepath.Join(src, "j[1]"),
	}
	got, err := o.tree(verb, src, location{dir: filepath.Join(src, "store")})
	want := []string{"docs", "./store", `./j\[1\]`}
	if err != nil || !slices.Equal(got.IgnoreSources, want) {
		t.Errorf("files of nbc's own in the tree: %q, %v", got.IgnoreSources, err)
	}

	// By default, too; and not in a cache directory, which a restore replaces.
	t.Setenv("XDG_CACHE_HOME", filepath.Join(src, ".cache"))
	for _, c := range []struct {
		l    location
		want string // what is left out of the sources, or "" for an error
		dir  string
	}{
		{location{}, "./.cache/nbc", "build"},
		{location{s3: "s3://bucket"}, "./.cache/nbc-near", "build"},
		{location{}, "", ".cache"},
		{location{}, "", ".*/nbc"},
		{location{s3: "s3://bucket"}, "", ".cache/nbc-*"},
		{location{dir: filepath.Join(link, "build", "store")}, "", "build"},
	} {
		got, err := (&options{dirs: []string{c.dir}}).tree(verb, src, c.l)
		if c.want == "" {
			if err == nil || kindOf(err).name != "usage" || hintFor(err) == "" {
				t.Errorf("%+v in --dir %s: %v", c.l, c.dir, err)
			}
		} else if err != nil || !slices.Equal(got.IgnoreSources, []string{c.want}) {
			t.Errorf("%+v: %q, %v", c.l, got.IgnoreSources, err)
		}
	}
}
