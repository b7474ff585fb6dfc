package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers are the packages of the module from the bottom up: what a package may import from the module. A package that
// is not here may not exist; this is the order of the folders in which a reader needs them.
var layers = []struct {
	packages string
	imports  []string
}{
	{"chunk", nil},
	{"index", []string{"chunk"}},
	{"mtime", []string{"chunk", "index"}},
	{"transfer/store", nil},
	{"transfer/store/*", []string{"chunk", "index", "transfer/store"}},
	{"transfer", []string{"chunk", "index", "mtime", "transfer/store"}},
	{"nix", []string{"chunk", "index", "mtime", "transfer/store", "transfer"}},
	{"cmd/nbc", []string{"chunk", "index", "mtime", "transfer/store", "transfer/store/*", "transfer", "nix"}},
	{"cmd/nbc/*", []string{"chunk", "index", "mtime", "transfer/store", "transfer/store/*", "transfer"}},
	{"bench", []string{"chunk", "index", "mtime", "transfer/store", "transfer/store/*", "transfer"}},
	{"bench/*", []string{"chunk", "index", "mtime", "transfer/store", "transfer/store/*", "transfer", "bench/*"}},
}

// modules are the other modules and the packages that may import them; "*" matches every package. What is not here is
// a new dependency, which needs a reason before it gets a line.
var modules = []struct {
	path     string
	packages []string
}{
	{"github.com/aws/", []string{"transfer/store/s3"}},
	{"github.com/bmatcuk/doublestar/", []string{"index"}},
	{"github.com/fxamacker/cbor/", []string{"index", "transfer", "transfer/store/remote"}},
	{"github.com/klauspost/compress/", []string{"chunk", "index", "transfer/store/remote"}},
	{"github.com/prometheus/", []string{"transfer/store/remote", "cmd/nbc"}},
	{"github.com/restic/chunker", []string{"chunk"}},
	{"github.com/spf13/", []string{"cmd/nbc"}},
	{"github.com/vbauerster/mpb/", []string{"cmd/nbc"}},
	{"github.com/zeebo/blake3", []string{"chunk", "index"}},
	{"golang.org/x/sync/", []string{"*"}},
	{"golang.org/x/sys/", []string{"*"}},
	{"golang.org/x/term", []string{"cmd/nbc"}},
}

// testModules are for tests, and for the package that is one.
var testModules = []string{"github.com/rogpeppe/go-internal/", "go.uber.org/goleak", "pgregory.net/rapid"}

const testPackage = "transfer/store/storetest"

// TestImports reads every Go file of the module, of all systems, and checks it against the tables.
func TestImports(t *testing.T) {
	const top = "../.."
	seen := map[string]bool{}
	err := filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if file != top && (name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || nested(file)) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		rel, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		seen[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(pkg, imported, strings.HasSuffix(file, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", filepath.ToSlash(rel), imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range []string{"chunk", "index", "mtime", "transfer", "transfer/store", "cmd/nbc"} {
		if !seen[pkg] {
			t.Errorf("package %s was not found, so the test looks at the wrong place", pkg)
		}
	}
}

// nested reports whether another module begins at dir.
func nested(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// forbidden says why a file of pkg must not import a package, or "".
func forbidden(pkg, imported string, isTest bool) string {
	if rest, ok := strings.CutPrefix(imported, "nbc/"); ok {
		switch {
		case covers(rest, "cmd/*"):
			return "nothing imports a command"
		case isTest:
			// Tests may build upon what is above, as the tests of transfer do on stores; Go itself refuses circles.
			return ""
		}
		for _, l := range layers {
			if !covers(pkg, l.packages) {
				continue
			}
			if slices.ContainsFunc(l.imports, func(p string) bool { return covers(rest, p) }) {
				return ""
			}
			return "a package imports only from lines above it"
		}
		return "package " + pkg + " has no place in the order of layers"
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		return "" // the standard library
	}
	for _, m := range testModules {
		if strings.HasPrefix(imported, m) {
			if isTest || pkg == testPackage {
				return ""
			}
			return "a module for tests must stay out of the binary"
		}
	}
	for _, m := range modules {
		if !strings.HasPrefix(imported, m.path) {
			continue
		}
		if slices.ContainsFunc(m.packages, func(p string) bool { return covers(pkg, p) }) {
			return ""
		}
		return "only for " + strings.Join(m.packages, ", ")
	}
	return "a dependency that nobody gave a reason for"
}

// covers reports whether pkg is what a line of a table means.
func covers(pkg, line string) bool {
	if prefix, ok := strings.CutSuffix(line, "*"); ok {
		return strings.HasPrefix(pkg, prefix)
	}
	return pkg == line
}

func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		pkg, imported string
		test, ok      bool
	}{
		{"index", "nbc/chunk", false, true},
		{"chunk", "nbc/index", false, false},
		{"transfer", "nbc/transfer/store", false, true},
		{"transfer", "nbc/transfer/store/dir", false, false},
		{"transfer", "nbc/transfer/store/dir", true, true},
		{"transfer/store/dir", "nbc/transfer/store", false, true},
		{"transfer/store", "nbc/transfer/store/dir", false, false},
		{"transfer/store/dir", "nbc/transfer", false, false},
		{"mtime", "nbc/transfer/store", false, false},
		{"transfer", "nbc/cmd/nbc", true, false},
		{"cmd/nbc", "nbc/transfer/store/s3", false, true},
		{"somewhere", "nbc/chunk", false, false},
		{"transfer/store/s3", "github.com/aws/aws-sdk-go-v2/config", false, true},
		{"transfer/store/dir", "github.com/aws/smithy-go", false, false},
		{"transfer", "github.com/aws/smithy-go", true, false},
		{"transfer", "github.com/prometheus/client_golang/prometheus", false, false},
		{"chunk", "pgregory.net/rapid", true, true},
		{"chunk", "pgregory.net/rapid", false, false},
		{"transfer/store/storetest", "go.uber.org/goleak", false, true},
		{"chunk", "example.org/new", true, false},
		{"chunk", "encoding/json", false, true},
	} {
		if why := forbidden(c.pkg, c.imported, c.test); (why == "") != c.ok {
			t.Errorf("%s imports %s (test: %v): %q", c.pkg, c.imported, c.test, why)
		}
	}
}
