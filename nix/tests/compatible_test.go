package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbc/transfer/store/storetest"
)

// example is the one of the README of nix-build-cache; only pkgs is another.
const example = `let pkgs = %s;
    add-build-cache =
      import
        %s/nix/nix-build-cache.nix
        {
          inherit pkgs;
          aws-key = "AKIAXXXXXXXXKEY";
          aws-secret = "XXXXXXXXSECRET";
          cache-name = "aeson";
          master-cache = "aeson";
          cache-dirs = [ "dist" ];
          s3-bucket = "aeson-build";%s
        };

in add-build-cache pkgs.haskellPackages.aeson`

// haskell is a Nixpkgs whose aeson is made from a source. Its phases are those of the real one.
func haskell(src, version string) string {
	return fmt.Sprintf(`small // { haskellPackages.aeson = small.stdenv.mkDerivation {
      pname = "aeson";
      version = "%s";
      src = %s;
      preConfigurePhases = [ "compileBuildDriverPhase" ];
      compileBuildDriverPhase = "echo no Setup.hs";
      configurePhase = "mkdir -p dist";
      buildPhase = "ghc --make -v1 -outputdir dist -isrc -o dist/words src/Main.hs; touch dist/left.so dist/left.a";
      preInstallPhases = [ "haddockPhase" ];
      haddockPhase = "echo no documents";
      installPhase = "mkdir -p $out/bin; cp dist/words $out/bin";
    }; }`, version, src)
}

func TestCompatible(t *testing.T) {
	need(t, "ghc")
	h := newHost(t)
	files := project(t, "haskell")
	build := func(files tree, version, more string) string {
		return "let small = pkgs; in " + fmt.Sprintf(example, haskell(files.source(t), version), module, more)
	}

	// Without a daemon the build is cold and says why.
	r := h.built(build(files, "1", ""))
	r.compiles(t, everyModule)
	r.says(t, "nbc: cold: ")

	store := t.TempDir()
	h.serveAll(store)
	h.built(build(files, "2", "")).compiles(t, everyModule)
	r = h.built(build(files, "3", ""))
	r.compiles(t, "")
	r.says(t, "nbc: restored aeson@", "times moved back by")
	edited := files.sub(t, "src/Count.hs", "n + 1", "n + 2")
	h.built(build(edited, "4", "")).compiles(t, "Count link")
	// Shared objects and archives are left out, as they were.
	if got := h.grep("left[.](so|a)", store+"/index"); got != "" {
		t.Errorf("what is named left.so or left.a is in %s", got)
	}
	r = h.built(build(edited, "5", `times = "recorded";`))
	r.compiles(t, "")
	r.saysNot(t, "times moved back")

	// The keys are in no derivation, nor in anything else that was made.
	if got := h.grep("AKIAXXXXXXXXKEY|XXXXXXXXSECRET|AWS_", h.physical("/nix/store/*aeson*")); got != "" {
		t.Errorf("the keys are in %s", got)
	}
	if n := h.shell("ls " + h.physical("/nix/store") + " | grep -c 'aeson.*drv$'"); strings.TrimSpace(n) != "5" {
		t.Errorf("it looked at %s derivations", n)
	}
}

// TestDirect: the build itself speaks to S3, without a daemon and without a sandbox, with credentials from a file.
func TestDirect(t *testing.T) {
	need(t, "ghc")
	h := newHost(t)
	h.open = true
	url := storetest.S3(t)
	bucket := strings.TrimPrefix(url, "s3://")
	credentials := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n",
		os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"))
	if err := os.WriteFile(credentials, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.configure(); err != nil {
		t.Fatal(err)
	}
	files := project(t, "haskell")
	build := func(version, more string) string {
		e := "let small = pkgs; in " + fmt.Sprintf(example, haskell(files.source(t), version), module, "direct = true;"+more)
		return strings.Replace(e, `"aeson-build"`, `"`+bucket+`"`, 1)
	}
	file := `credentials-file = "` + credentials + `";`
	r := h.built(build("1", file))
	r.compiles(t, everyModule)
	r.says(t, "nbc: aeson-1 is built with the network and without a sandbox", "nbc: saved aeson@")
	r = h.built(build("2", file))
	r.says(t, "nbc: restored aeson@")

	environment := filepath.Join(t.TempDir(), "environment")
	if err := os.WriteFile(environment, []byte("AWS_SHARED_CREDENTIALS_FILE="+credentials+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.built(build("3", `environment-file = "`+environment+`";`)).says(t, "nbc: restored aeson@")
	h.built(build("4", `environment-file = "/no/such/file";`)).says(t, "nbc: cold: /no/such/file cannot be read")
	if got := h.grep(os.Getenv("AWS_SECRET_ACCESS_KEY"), filepath.Dir(r.out)); got != "" {
		t.Errorf("the secret is in %s", got)
	}
}

// grep returns the files below a path, in which the shell expands patterns, that have an expression.
func (h *host) grep(expression, path string) string {
	h.t.Helper()
	return h.shell(fmt.Sprintf("grep -rlE -e '%s' %s || [ $? = 1 ]", expression, path))
}
