package transfer

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

const makefile = `objects = build/main.o build/util.o build/text.o
build/prog: $(objects)
	gcc -o $@ $(objects)
build/%.o: %.c Makefile
	@mkdir -p build
	gcc -c -MMD -o $@ $<
-include build/*.d
`

func realSources() map[string]string {
	return map[string]string{
		"Makefile": makefile,
		"main.c":   "#include <stdio.h>\n#include \"util.h\"\nint main(void) { printf(\"%d %s\\n\", add(1, 2), text()); return 0; }\n",
		"util.h":   "int add(int, int);\nconst char *text(void);\n#define ONE 1\n",
		"util.c":   "#include \"util.h\"\nint add(int a, int b) { return a + b + ONE; }\n",
		"text.c":   "#include \"util.h\"\nconst char *text(void) { return \"one\"; }\n",
	}
}

// realResult runs make, and then the program.
func realResult(t testing.TB, root string) string {
	t.Helper()
	cmd := exec.Command("make", "-s")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	out, err := exec.Command(filepath.Join(root, "build", "prog")).CombinedOutput()
	if err != nil {
		t.Fatalf("the program: %v\n%s", err, out)
	}
	return string(out)
}

// The same as TestKilledAtEverySystemCall with GNU make and gcc, at fewer places.
func TestKilledWithRealMake(t *testing.T) {
	needCommand(t, "make")
	needCommand(t, "gcc")
	needTrace(t)
	t.Parallel()
	saved := newSite(t, "", realSources())
	defer saved.close()
	saved.tree = build
	if got := realResult(t, saved.root); got != "4 one\n" {
		t.Fatalf("a clean build says %q", got)
	}
	saved.first()
	now := realSources()
	now["util.h"] = "int add(int, int);\nconst char *text(void);\n#define ONE 10\n"
	now["text.c"] = "#include \"util.h\"\nconst char *text(void) { return \"two\"; }\n"
	const want = "13 two\n"
	step := 5
	if testing.Short() {
		step = 40
	}
	kills := 0
	for n := 0; ; n += step {
		s := newSite(t, saved.store, now)
		s.tree = build
		for p := range now {
			s.touch(p, 1_000_000_000)
		}
		s.reopen()
		j := job{Do: "restore", Root: s.root, State: s.state, Store: s.store, Restore: s.options("n")}
		var last point
		r, died := j.trace(t, s.base, scene{}.decide(func(p point) verdict {
			last = p
			return verdict{kill: p.n == n}
		}))
		when := fmt.Sprintf("killed before %v", last)
		if got := realResult(t, s.root); got != want {
			t.Fatalf("%s: the build without another restore says %q, want %q", when, got, want)
		}
		if _, err := s.restore(s.options("n")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if got := realResult(t, s.root); got != want {
			t.Fatalf("%s: the next build says %q, want %q", when, got, want)
		}
		s.saved(SaveOptions{})
		s.clean()
		s.reopen()
		s.close()
		if !died {
			if !r.Hit {
				t.Errorf("%+v", r)
			}
			break
		}
		kills++
	}
	t.Logf("%d kills", kills)
}
