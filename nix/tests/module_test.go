package tests

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// nixos is what the module makes of a configuration.
type nixos struct {
	Nix struct {
		Settings map[string][]string
	}
	Systemd struct {
		Services map[string]*service
		Sockets  map[string]struct {
			ListenStreams, WantedBy []string
			SocketConfig            map[string]any
		}
		Timers map[string]struct{ TimerConfig map[string]any }
	}
}

type service struct {
	Description            string
	Environment            map[string]string
	After, Wants, Requires []string
	ServiceConfig          map[string]any
	StartAt                string
}

// nixos evaluates the module; the package is the nbc of the tests.
func (h *host) nixos(config string) nixos {
	h.t.Helper()
	text := h.eval(`(lib.evalModules {
		specialArgs = {
			inherit pkgs;
			utils.escapeSystemdExecArgs = args: lib.concatStringsSep " " (map builtins.toJSON args);
		};
		modules = [ nbc.nixosModule
			{ services.nbc = { enable = true; package = "` + bin + `"; } // { ` + config + ` }; } ];
	}).config`)
	var c nixos
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		h.t.Fatalf("%v: %s", err, text)
	}
	return c
}

// section writes a section of a unit, a line for each value.
func section(b *strings.Builder, name string, values map[string]any) {
	fmt.Fprintf(b, "[%s]\n", name)
	for key, value := range values {
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		for _, v := range list {
			fmt.Fprintf(b, "%s=%v\n", key, v)
		}
	}
}

func (s *service) unit() string {
	var b strings.Builder
	section(&b, "Unit", map[string]any{
		"Description": s.Description, "After": strings.Join(s.After, " "), "Wants": strings.Join(s.Wants, " "),
		"Requires": strings.Join(s.Requires, " "),
	})
	for name, value := range s.Environment {
		s.ServiceConfig["Environment"] = fmt.Sprintf("%q", name+"="+value)
	}
	section(&b, "Service", s.ServiceConfig)
	return b.String()
}

func TestModule(t *testing.T) {
	h := newHost(t)
	c := h.nixos(`
		store = "s3://bucket/prefix?region=eu-west-1";
		allowRead = [ "**" ]; allowWrite = [ "a b/*" "pr/**" ];
		rules = "write ci uid=0\n";
		credentialsFile = "/run/secrets/aws";
		metrics = "127.0.0.1:9137";
		gc.enable = true; gc.keep = [ "*/main" ]; gc.credentialsFile = "/run/secrets/collector";`)
	if got := fmt.Sprint(c.Nix.Settings["extra-sandbox-paths"]); got != "[/run/nbc?]" {
		t.Errorf("extra-sandbox-paths is %s: without its question mark builds fail where there is no such folder", got)
	}
	daemon, collector, socket := c.Systemd.Services["nbc"], c.Systemd.Services["nbc-gc"], c.Systemd.Sockets["nbc"]
	s := socket.SocketConfig
	if got := fmt.Sprintln(socket.ListenStreams, s["SocketMode"], s["SocketGroup"]); got !=
		"[/run/nbc/nbc.sock] 0660 nixbld\n" {
		t.Errorf("the socket is %s", got)
	}
	if collector.StartAt != "weekly" || c.Systemd.Timers["nbc-gc"].TimerConfig["Persistent"] != true {
		t.Errorf("the collection is not started: %+v", c.Systemd)
	}
	if got := collector.ServiceConfig["LoadCredential"]; fmt.Sprint(got) != "[credentials:/run/secrets/collector]" {
		t.Errorf("the collector's credentials are %v", got)
	}
	if collector.ServiceConfig["User"] != daemon.ServiceConfig["User"] {
		t.Error("a store in a directory would have two owners")
	}
	if daemon.ServiceConfig["PrivateUsers"] == true {
		t.Error("in a user namespace the daemon cannot tell users apart")
	}

	t.Run("verify", func(t *testing.T) {
		need(t, "systemd-analyze")
		dir := t.TempDir()
		var stream strings.Builder
		section(&stream, "Socket", socket.SocketConfig)
		fmt.Fprintf(&stream, "ListenStream=%s\n", socket.ListenStreams[0])
		for name, text := range map[string]string{
			"nbc.service": daemon.unit(), "nbc-gc.service": collector.unit(), "nbc.socket": stream.String(),
			"nbc-gc.timer": "[Timer]\nOnCalendar=" + collector.StartAt + "\nPersistent=true\nRandomizedDelaySec=1h\n",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"nbc.service", "nbc-gc.service", "nbc.socket", "nbc-gc.timer"} {
			verifyUnit(t, dir, name)
		}
	})

	// What the README says for other distributions.
	t.Run("readme", func(t *testing.T) {
		need(t, "systemd-analyze")
		text, err := os.ReadFile(filepath.Join(module, "nix", "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\n    extra-sandbox-paths = /run/nbc?\n") {
			t.Error("it does not say what belongs into nix.conf")
		}
		dir := t.TempDir()
		for _, name := range []string{"nbc.socket", "nbc.service"} {
			_, unit, ok := strings.Cut(string(text), "\n    # /etc/systemd/system/"+name+"\n")
			if !ok {
				t.Fatalf("it has no %s", name)
			}
			unit, _, _ = strings.Cut(unit, "\n\n")
			unit = strings.ReplaceAll(unit, "/usr/local/bin/nbc", filepath.Join(bin, "bin", "nbc"))
			if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(unit, "\n    ", "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		verifyUnit(t, dir, "nbc.socket")
		verifyUnit(t, dir, "nbc.service")
	})

	t.Run("commands", func(t *testing.T) {
		store := t.TempDir()
		c := h.nixos(`store = "` + store + `"; near = "off"; allowRead = [ "a b/*" ]; metrics = "127.0.0.1:0";
			gc.enable = true; gc.keep = [ "*/main" "a b" ]; gc.keepWithin = "7d"; gc.extraFlags = [ "--dry-run" ];`)
		start := func(name, before string) *exec.Cmd {
			cmd := exec.Command("/bin/sh", "-ec", before+"exec "+c.Systemd.Services[name].ServiceConfig["ExecStart"].(string))
			cmd.Stdout, cmd.Stderr = new(strings.Builder), new(strings.Builder)
			return cmd
		}
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		// As systemd starts it.
		cmd := start("nbc", "LISTEN_PID=$$ LISTEN_FDS=1 ")
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		save := exec.CommandContext(t.Context(), filepath.Join(bin, "bin", "nbc"), "restore", "a b/c", "--dir", "x",
			"--store", "unix:"+path, "--state", filepath.Join(t.TempDir(), "receipt"))
		save.Dir = t.TempDir()
		out, err := save.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "no such name") {
			t.Errorf("%v: %s", err, out)
		}
		time.AfterFunc(100*time.Millisecond, func() { _ = cmd.Process.Signal(os.Interrupt) })
		if err := cmd.Wait(); err != nil {
			t.Errorf("nbc daemon: %v\n%s", err, cmd.Stderr)
		}

		cmd = start("nbc-gc", "")
		if err := cmd.Run(); err != nil {
			t.Errorf("nbc gc: %v\n%s", err, cmd.Stderr)
		}
	})

	// Not enabled it does nothing.
	if off := h.nixos(`enable = false;`); len(off.Nix.Settings["extra-sandbox-paths"]) != 0 {
		t.Errorf("it does something without being enabled: %+v", off)
	}
}

// verifyUnit lets systemd look at a unit in dir.
func verifyUnit(t *testing.T, dir, name string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", filepath.Join(dir, name))
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "SYSTEMD_LOG_LEVEL=warning")
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) || strings.Contains(line, "nbc") { // others are of this machine
			t.Errorf("%s: %s", name, line)
		}
	}
	if err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

// TestFlake evaluates the flake offline, as another flake uses it, with the small Nixpkgs in the place of the real one.
func TestFlake(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	h.shell(fmt.Sprintf("mkdir %s/nbc; cd %s; cp -r flake.nix default.nix go.mod go.sum nix %s/nbc", dir, module, dir))
	const user = `{
  inputs.nbc.url = "path:%s/nbc";
  inputs.nixpkgs.url = "path:%s/nix/tests";
  inputs.nbc.inputs.nixpkgs.follows = "nixpkgs";
  outputs = { self, nbc, nixpkgs }: let
    system = "x86_64-linux";
    pkgs = nixpkgs.legacyPackages.${system};
    plain = pkgs.stdenv.mkDerivation { name = "app"; src = ./.; };
    arguments = { cacheName = "app"; cacheDirs = [ "build" ]; };
    overlaid = nbc.overlays.default overlaid pkgs // builtins.removeAttrs pkgs [ "nbc" ];
  in {
    wrapped = nbc.lib.wrap arguments plain;
    overlay = overlaid.nbc.wrap arguments plain;
    key = nbc.lib.inputKey plain;
    names = builtins.mapAttrs (_: p: [ p.default.name p.nbc.name p.hook.name ]) nbc.packages;
    system = (nixpkgs.lib.evalModules {
      specialArgs = { pkgs = pkgs; utils.escapeSystemdExecArgs = toString; };
      modules = [ nbc.nixosModules.default { services.nbc.enable = true; } ];
    }).config.systemd.services.nbc.serviceConfig.ExecStart;
  };
}
`
	if err := os.Mkdir(filepath.Join(dir, "user"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "user", "flake.nix")
	if err := os.WriteFile(file, fmt.Appendf(nil, user, dir, module), 0o644); err != nil {
		t.Fatal(err)
	}
	eval := func(attribute string) string {
		t.Helper()
		r := h.run(t.Context(), "nix", "eval", "--json", "--no-write-lock-file", "path:"+filepath.Dir(file)+"#"+attribute)
		if r.err != nil {
			t.Fatalf("%s: %v\n%s", attribute, r.err, r.log)
		}
		return r.out
	}
	packages := eval("names")
	for _, system := range []string{"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"} {
		if !regexp.MustCompile(`"` + system + `":\["nbc-[^"]+","nbc-[^"]+","nbc-hook"\]`).MatchString(packages) {
			t.Errorf("no package for %s: %s", system, packages)
		}
	}
	key := eval("key")
	if !regexp.MustCompile(`^"[0-9a-z]{32}"$`).MatchString(key) || eval("wrapped.nbcInputKey") != key {
		t.Errorf("the keys are %s and %s", key, eval("wrapped.nbcInputKey"))
	}
	if a, b := eval("wrapped.drvPath"), eval("overlay.drvPath"); a != b {
		t.Errorf("the overlay makes %s, the flake %s", b, a)
	}
	const command = `"/nbc/bin/nbc daemon --store /var/lib/nbc/store --near /var/cache/nbc/near --near-size 10G"`
	if got := eval("system"); got != command {
		t.Errorf("the module runs %s", got)
	}
}
