package matrix

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbc/transfer/store/storetest"
)

var update = flag.Bool("update", false, "write MATRIX.md; tools that are not measured keep their lines")

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "nbc-matrix-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	nbc = filepath.Join(dir, "nbc")
	build := exec.Command("go", "build", "-o", nbc, "nbc/cmd/nbc")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released, and it starts sooner
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building nbc: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// find returns the path of every program that a row needs. If one is missing the test ends: as skipped, unless it is
// required.
func find(t *testing.T, needs []string) map[string]string {
	t.Helper()
	programs := map[string]string{}
	for _, name := range needs {
		c := components[name]
		list := c.programs
		if c.variable != "" && os.Getenv(c.variable) != "" {
			list = []string{os.Getenv(c.variable)}
		}
		for _, p := range list {
			if path, err := exec.LookPath(p); err == nil {
				programs[name] = path
				break
			}
		}
		if programs[name] != "" {
			continue
		}
		storetest.Need(t, name, exec.ErrNotFound)
	}
	return programs
}

// cell is one step of one row: how many units were built, and how many are the minimum.
type cell struct {
	step         string
	built, least int
}

// row is what a tool's builds came to, by chain.
type row struct {
	tool     *tool
	versions string
	cells    map[string][]cell
}

// TestMatrix is the matrix: every chain of every tool.
func TestMatrix(t *testing.T) {
	rows := make([]row, len(tools))
	t.Run("tools", func(t *testing.T) {
		for i, x := range tools {
			t.Run(x.name, func(t *testing.T) {
				t.Parallel()
				programs := find(t, x.needs)
				s := newSite(t, x, programs)
				r := row{tool: x, cells: map[string][]cell{}}
				var versions []string
				for _, name := range x.needs {
					versions = append(versions, name+" "+components[name].number(programs[name]))
				}
				r.versions = strings.Join(versions, ", ")
				plan := mainChain(s.project)
				least := s.inPlace(t, plan)
				for _, old := range []bool{true, false} {
					name := "now"
					if old {
						name = "old"
					}
					t.Run(name, func(t *testing.T) { r.cells[name] = s.mainChain(t, plan, least, old) })
				}
				t.Run("aged", func(t *testing.T) { r.cells["aged"] = s.agedChain(t, least) })
				t.Run("skew", func(t *testing.T) { r.cells["skew"] = s.skewChain(t, least) })
				if !t.Failed() {
					rows[i] = r
				}
			})
		}
	})
	if !t.Failed() {
		document(t, rows)
	}
}
