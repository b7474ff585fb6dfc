package matrix

import (
	"fmt"
	"os"
	"regexp"
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

| tool | versions | a unit | the tool builds again if |
|---|---|---|---|
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

// document writes MATRIX.md, or compares its lines with what was measured. A line of other versions is not compared:
// they may well have another minimum.
func document(t *testing.T, rows []row) {
	t.Helper()
	old, err := os.ReadFile(documentFile)
	if err != nil && (!os.IsNotExist(err) || !*update) {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(documentHead)
	for _, r := range rows {
		if r.tool != nil {
			b.WriteString(r.about())
		}
	}
	b.WriteString(documentMain)
	var columns []string
	for _, s := range mainSteps {
		if !s.fails {
			columns = append(columns, s.name)
		}
	}
	table(&b, rows, columns, "old", "now")
	b.WriteString(documentAged)
	table(&b, rows, []string{"cold", "same", "leaf", "interface", "same"}, "aged")
	b.WriteString(documentSkew)
	table(&b, rows, []string{
		"cold", "same: a miss", "same, shift", "leaf", "interface, two-hours", "same",
	}, "skew")
	if !*update {
		for _, r := range rows {
			if r.tool == nil || !strings.Contains(string(old), r.about()) {
				continue
			}
			for line := range strings.Lines(b.String()) {
				if strings.HasPrefix(line, "| "+r.tool.name+" |") && !strings.Contains(string(old), line) {
					t.Errorf("%s does not have this line (-update writes it):\n%s", documentFile, line)
				}
			}
		}
		return
	}
	for i, r := range rows {
		if r.tool == nil {
			t.Fatalf("not written: %s was not measured", tools[i].name)
		}
	}
	if err := os.WriteFile(documentFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (r row) about() string {
	return fmt.Sprintf("| %s | %s | %s | %s |\n", r.tool.name, r.versions, r.tool.counts, r.tool.decides)
}

// table writes a line for each tool and chain, and a column for each step.
func table(b *strings.Builder, rows []row, columns []string, chains ...string) {
	names := map[string]string{"old": "1970", "now": "now"}
	head, rule := "| tool |", "|---|"
	if len(chains) > 1 {
		head, rule = head+" sources |", rule+"---|"
	}
	for _, c := range columns {
		head, rule = head+" "+c+" |", rule+"---|"
	}
	fmt.Fprintf(b, "%s\n%s\n", head, rule)
	for _, r := range rows {
		if r.tool == nil {
			continue
		}
		for _, chain := range chains {
			fmt.Fprintf(b, "| %s |", r.tool.name)
			if len(chains) > 1 {
				fmt.Fprintf(b, " %s |", names[chain])
			}
			cells := r.cells[chain]
			for _, column := range columns {
				text := ""
				// Steps that a project does not have are left out of its cells.
				if len(cells) > 0 && cells[0].step == column {
					text = fmt.Sprintf("%d/%d", cells[0].built, cells[0].least)
					cells = cells[1:]
				}
				fmt.Fprintf(b, " %s |", text)
			}
			b.WriteString("\n")
		}
	}
}

var number = regexp.MustCompile(`\d+(\.\d+)+`)

// number returns the version of a component.
func (c component) number(path string) string {
	return number.FindString(c.printVersion(path))
}
