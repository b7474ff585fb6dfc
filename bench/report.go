package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

// results are everything that was measured. Their JSON has a version, which changes when a field changes its meaning.
type results struct {
	Version int `json:"version"`
	// Machine says where it was measured, Tools with what.
	Machine string   `json:"machine"`
	Tools   []string `json:"tools"`
	Missing []string `json:"missing,omitempty"`
	Rounds  int      `json:"rounds"`
	Corpus  corpus   `json:"corpus"`
	Big     corpus   `json:"few_big_files"`
	Haskell corpus   `json:"haskell"`
	Facts   facts    `json:"facts"`
	Samples []sample `json:"samples"`
	Targets []target `json:"targets"`
}

const resultsVersion = 1

func (b *bench) results(ctx context.Context) *results {
	r := &results{
		Version: resultsVersion, Machine: machine(), Missing: b.missing, Rounds: b.rounds, Corpus: b.main, Big: b.big,
		Haskell: b.before, Facts: b.facts, Samples: b.samples,
	}
	for _, args := range [][]string{
		{b.nbc, "--version"},
		{"aws", "--version"},
		{"zstd", "--version"},
		{"restic", "version"},
		{"borg", "--version"},
		{"casync", "--version"},
		{"desync", "--version"},
		{"cp", "--version"},
	} {
		if out, err := output(ctx, "", nil, args...); err == nil {
			line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
			r.Tools = append(r.Tools, strings.Trim(line, "* "))
		}
	}
	r.Targets = r.targets()
	return r
}

// machine describes this one without naming it.
func machine() string {
	what := fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return what
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return what + ", " + strings.TrimSpace(value)
		}
	}
	return what
}

// row is what a tool needed for a work: the medians of all rounds, and what round 0 has counted.
type row struct {
	work, tool string
	wall, cpu  float64 // seconds
	rss        int64   // bytes, the most of all rounds
	counted    sample
}

// rows returns what was measured in the order in which it was measured first.
func (r *results) rows() []row {
	type key struct{ work, tool string }
	var order []key
	all := map[key][]sample{}
	for _, s := range r.Samples {
		k := key{s.Work, s.Tool}
		if all[k] == nil {
			order = append(order, k)
		}
		all[k] = append(all[k], s)
	}
	var works []string
	for _, k := range order {
		if !slices.Contains(works, k.work) {
			works = append(works, k.work)
		}
	}
	rank := func(tool string) int { return slices.Index(toolOrder, tool) }
	slices.SortStableFunc(order, func(a, b key) int {
		if a.work != b.work {
			return slices.Index(works, a.work) - slices.Index(works, b.work)
		}
		return rank(a.tool) - rank(b.tool)
	})
	var rows []row
	for _, k := range order {
		w := row{work: k.work, tool: k.tool}
		var walls, cpus []float64
		for _, s := range all[k] {
			w.rss = max(w.rss, s.RSS)
			if s.Round == 0 {
				w.counted = s
				if len(all[k]) > 1 {
					continue // its times are those of the counting proxy
				}
			}
			walls, cpus = append(walls, s.Wall), append(cpus, s.CPU)
		}
		w.wall, w.cpu = median(walls), median(cpus)
		rows = append(rows, w)
	}
	return rows
}

// toolOrder is the order of rows.
var toolOrder = []string{nbcS3, nbcDir, oldWay, oldSDK, restic, borg, casync, desync, cpName, findName}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// besides says which of nbc's stores a tool is compared with, where both were measured.
func besides(tool string) string {
	switch tool {
	case nbcS3, oldWay, oldSDK, restic:
		return nbcS3
	}
	return nbcDir
}

// beside returns nbc's row that w is compared with.
func beside(rows []row, w row) (row, bool) {
	var other row
	found := false
	for _, x := range rows {
		if x.work != w.work || x.tool != nbcS3 && x.tool != nbcDir {
			continue
		}
		if x.tool == besides(w.tool) {
			return x, true
		}
		other, found = x, true
	}
	return other, found
}

// markdown returns both tables.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %s.\n\n", r.Machine, strings.Join(r.Tools, "; "))
	fmt.Fprintf(&b, "Corpus: %s, %d MB in %d files; %d of them differ in the changed version.", r.Corpus.What,
		r.Corpus.Bytes/1e6, r.Corpus.Files, r.Facts.Changed)
	fmt.Fprintf(&b, " Its index has %d KB, and %d KB if the files' names are numbers instead of hashes.",
		r.Facts.IndexBytes/1000, r.Facts.IndexNumbered/1000)
	fmt.Fprintf(&b, " Few big files: %d MB in %d.", r.Big.Bytes/1e6, r.Big.Files)
	if r.Haskell.Files > 0 {
		fmt.Fprintf(&b, " Haskell: %s, %d MB in %d files.", r.Haskell.What, r.Haskell.Bytes/1e6, r.Haskell.Files)
	}
	fmt.Fprintf(&b, " Medians of %d rounds.", r.Rounds)
	if len(r.Missing) > 0 {
		fmt.Fprintf(&b, " Not on this machine: %s.", strings.Join(r.Missing, ", "))
	}
	b.WriteString("\n\n| work | tool | wall s | × nbc | cpu s | × nbc | peak MB | MB sent | MB received | requests |")
	b.WriteString(" MB stored |\n")
	b.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	rows := r.rows()
	last := ""
	for _, w := range rows {
		work := ""
		if w.work != last {
			work, last = w.work, w.work
		}
		wall, cpu := "", ""
		if n, ok := beside(rows, w); ok && n.tool != w.tool {
			wall, cpu = ratio(w.wall, n.wall), ratio(w.cpu, n.cpu)
		}
		c := w.counted
		fmt.Fprintf(&b, "| %s | %s | %.3f | %s | %.3f | %s | %d | %s | %s | %s | %s |\n", work, w.tool, w.wall, wall,
			w.cpu, cpu, (w.rss+5e5)/1e6, megabytes(c.Sent), megabytes(c.Received), count(c.Requests), megabytes(c.Stored))
	}
	b.WriteString("\n| to reach | at most | measured | | cpu time |\n|---|--:|--:|---|--:|\n")
	for _, t := range r.Targets {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", t.What, t.limit(), t.measured(), t.verdict(), t.cpu())
	}
	return b.String()
}

func ratio(a, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}

func megabytes(n int64) string {
	switch {
	case n == 0:
		return ""
	case n < 10e6:
		return fmt.Sprintf("%.2f", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f", float64(n)/1e6)
}

func count(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
