package tests

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackage: package.nix has what Nixpkgs builds the program from, offline: the source, and the hash of the modules.
func TestPackage(t *testing.T) {
	need(t, "nix", "go")
	h := newHost(t)
	var p struct {
		Src, VendorHash string
		Ldflags         []string
	}
	text := h.eval(`let p = pkgs.callPackage ` + module + `/nix/package.nix { release = "1.2.3"; };
		in { src = "${p.src}"; inherit (p) vendorHash ldflags; }`)
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	src, vendor := filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "vendor")
	if err := os.CopyFS(src, os.DirFS(h.physical(p.Src))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "bench", "nix", "cmd/nbc/main_test.go"} {
		if _, err := os.Stat(filepath.Join(src, name)); err == nil {
			t.Errorf("%s is in the source, so that a change to it builds nbc again", name)
		}
	}
	command := func(dir string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		// All that a sandbox without a network has.
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOPROXY=off", "CGO_ENABLED=0", "GOTOOLCHAIN=local")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	command(src, "go", "mod", "vendor", "-o", vendor)
	r := h.run(t.Context(), "nix", "hash", "path", "--type", "sha256", "--sri", vendor)
	if r.err != nil {
		t.Fatalf("%v\n%s", r.err, r.log)
	}
	if r.out != p.VendorHash {
		t.Fatalf("the modules have changed: in package.nix, vendorHash is to be %q", r.out)
	}
	if err := os.Rename(vendor, filepath.Join(src, "vendor")); err != nil {
		t.Fatal(err)
	}
	command(src, "go", "list", "-mod=vendor", "-deps", "./cmd/nbc")

	program := filepath.Join(t.TempDir(), "nbc")
	command(module, "go", "build", "-ldflags", strings.Join(p.Ldflags, " "), "-o", program, "./cmd/nbc")
	if out := command(module, program, "version"); !strings.HasPrefix(out, "nbc 1.2.3 ") {
		t.Errorf("its version is %q", out)
	}
}
