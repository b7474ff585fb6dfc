package matrix

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const documentFile = "MATRIX.md"

const documentHead = `# What build tools build with nbc

The tests of this folder write this file: ` + "`go test ./cmd/nbc/matrix -update`" + `.

Each tool builds one small project in steps. Before every step the source tree is deleted and written anew; only the
cache survives. A cell says how many units were built with nbc, of how many that had to be: the minimum is what the same
tool builds, in the same step, in a tree that is edited in place and never deleted. The tests require that the units are
the same ones, not only as many, and that after each step the program prints what it prints after a clean build.

`

const documentMain = `
## A chain of builds

In the lines *1970* the fresh sources have the time that Nix gives them, one second after the epoch; in the lines *now*
they have the present, as after a checkout. Each step starts from the sources and the cache of the one before it.

- **cold**: there is no cache. **same**: nothing has changed.
- **leaf**, **interface**: a source changes that no other unit sees, or that several do. **reverted**: the leaf is back.
- **deleted, added**: one source goes and another one comes.
- **swapped**: two sources of the same size exchange their contents. **link**: a source that is a link leads elsewhere.
- **broken, fixed**: one source changes and another one no longer compiles; the cache of the failed build is saved. Then
  that one compiles again. The units of both builds are counted together.
- **edited during**: a source is changed while the build runs, and put back before the cache is saved. **put back**: the
  sources are as they were, so what was built from the edit must go.
- **edited after**: a source is changed after it was compiled, and before the cache is saved. **kept**: the change
  stays, and must not be taken for compiled.
- **configured**: the configure step writes something else than before.

`

const documentAged = `
## Three hours later

All files were three hours older when they were saved. For tools that compare times for equality (clang's precompiled
headers, build scripts of cargo without rerun-if-changed, dune, Elm) only the first two builds are: what they have
written down of times cannot be moved.

`

const documentSkew = `
## From a machine whose clock was ten minutes ahead

A restore without options is a miss that says why, because a source that changes now would be older than what was built
from it. With --on-skew=shift, and with --times=two-hours, all recorded times move back. That is right for tools that
ask which file is older; the others build the last two steps without it, from a cache with the right times.

`

// section is a part of MATRIX.md that ends with a table.
type section struct {
	text string
	head []string // the cells of the table's first line
	// lines returns those of one tool.
	lines func(r row) []string
}

// sections returns the parts of MATRIX.md.
func sections() []section {
	var columns []string
	for _, s := range mainSteps {
		if !s.fails {
			columns = append(columns, s.name)
		}
	}
	aged := []string{"cold", "same", "leaf", "interface", "same"}
	skew := []string{"cold", "same: a miss", "same, shift", "leaf", "interface, two-hours", "same"}
	return []section{
		{documentHead, []string{"tool", "versions", "a unit", "the tool builds again if"}, func(r row) []string {
			return []string{line(r.tool.name, r.versions, r.tool.counts, r.tool.decides)}
		}},
		{documentMain, append([]string{"tool", "sources"}, columns...), func(r row) []string {
			return []string{
				line(append([]string{r.tool.name, "1970"}, r.steps("old", columns)...)...),
				line(append([]string{r.tool.name, "now"}, r.steps("now", columns)...)...),
			}
		}},
		{documentAged, append([]string{"tool"}, aged...), func(r row) []string {
			return []string{line(append([]string{r.tool.name}, r.steps("aged", aged)...)...)}
		}},
		{documentSkew, append([]string{"tool"}, skew...), func(r row) []string {
			return []string{line(append([]string{r.tool.name}, r.steps("skew", skew)...)...)}
		}},
	}
}

func line(cells ...string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

// steps returns the cells of a chain under the columns that they belong to. Steps that a project does not have are
// left out of its chain.
func (r row) steps(chain string, columns []string) []string {
	cells := r.cells[chain]
	list := make([]string, len(columns))
	for i, c := range columns {
		if len(cells) > 0 && cells[0].step == c {
			list[i] = fmt.Sprintf("%d/%d", cells[0].built, cells[0].least)
			cells = cells[1:]
		}
	}
	return list
}

// document writes MATRIX.md, or compares it with what was measured. Tools that were not measured keep their lines; so
// do, in a comparison, those that have another version here, which may well have another minimum.
func document(t *testing.T, rows []row) {
	t.Helper()
	data, err := os.ReadFile(documentFile)
	if err != nil && (!os.IsNotExist(err) || !*update) {
		t.Fatal(err)
	}
	old := strings.Split(string(data), "\n## ")
	all := sections()
	var text strings.Builder
	for i, s := range all {
		text.WriteString(s.text)
		text.WriteString(line(s.head...) + strings.Repeat("|---", len(s.head)) + "|\n")
		for k, r := range rows {
			var keep []string
			if i < len(old) {
				keep = linesOf(old[i], tools[k].name)
			}
			if r.tool != nil && (*update || slices.Equal(linesOf(old[0], r.tool.name), all[0].lines(r))) {
				keep = s.lines(r)
			}
			text.WriteString(strings.Join(keep, ""))
		}
	}
	if text.String() == string(data) {
		return
	}
	if *update {
		if err := os.WriteFile(documentFile, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for l := range strings.Lines(text.String()) {
		if !strings.Contains(string(data), l) {
			t.Errorf("%s lacks a line (-update writes it):\n%s", documentFile, l)
		}
	}
	t.Errorf("%s is not what was measured", documentFile)
}

// linesOf returns the lines of a tool in the old text of a section.
func linesOf(text, tool string) []string {
	var list []string
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "| "+tool+" |") {
			list = append(list, l)
		}
	}
	return list
}

var number = regexp.MustCompile(`\d+(\.\d+)+`)

// number returns the version of a component.
func (c component) number(path string) string {
	return number.FindString(c.printVersion(path))
}
