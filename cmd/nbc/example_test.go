package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExample builds the example of the documentation as a user would in fresh checkouts: all of it, nothing, and then
// what each change asks for.
func TestExample(t *testing.T) {
	for _, tool := range []string{"make", "gcc"} {
		if ok, err := condition("needs:" + tool); err != nil {
			t.Fatal(err)
		} else if !ok {
			t.Skip(tool + " is missing")
		}
	}
	home := t.TempDir()
	root := filepath.Join(t.TempDir(), "words")
	edited := map[string]string{}
	for _, step := range []struct {
		what string
		edit string   // the file that gets another line
		made []string // what make must make
	}{
		{"cold", "", []string{"main.o", "order.o", "print.o", "read.o", "table.o", "words"}},
		{"nothing to do", "", nil},
		{"one file", "print.c", []string{"print.o", "words"}},
		{"a header", "table.h", []string{"main.o", "table.o", "words"}},
		{"the header of all", "words.h", []string{"main.o", "order.o", "print.o", "read.o", "table.o", "words"}},
		{"nothing again", "", nil},
	} {
		// A fresh checkout: every file is new, and there is nothing in build.
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(root, os.DirFS("testdata/example")); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(root, "build")); err != nil {
			t.Fatal(err)
		}
		if step.edit != "" {
			edited[step.edit] += "/* " + step.what + " */\n"
		}
		for name, more := range edited {
			f, err := os.OpenFile(filepath.Join(root, name), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(more); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("nbc", "run", "demo", "--dir", "build", "--", "make", "CC=gcc")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME=", "XDG_STATE_HOME=")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", step.what, err, out, stderr.String())
		}
		made := map[string]bool{}
		for line := range strings.Lines(string(out)) {
			if _, rest, ok := strings.Cut(line, "-o build/"); ok {
				made[strings.Fields(rest)[0]] = true
			}
		}
		for _, want := range step.made {
			if !made[want] {
				t.Errorf("%s: %s was not made", step.what, want)
			}
		}
		if len(made) != len(step.made) {
			t.Errorf("%s: made %v, not %v\n%s", step.what, made, step.made, stderr.String())
		}
		words := exec.Command(filepath.Join(root, "build", "words"))
		words.Stdin = strings.NewReader("the cat and the dog")
		if out, err := words.Output(); err != nil || !strings.HasPrefix(string(out), "      2 the\n      1 and\n") {
			t.Errorf("%s: words printed %q, %v", step.what, out, err)
		}
	}
}
