package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func statsCommand(a *app) *cobra.Command {
	o := &a.options
	var page string
	cmd := &cobra.Command{
		Use:   "stats [PATTERN...] [flags]",
		Short: "Count what a store holds, and what deduplication buys",
		Long: `stats tells for each cache name, or those that a PATTERN matches, how large the
tree is (SIZE), what its chunks take in the store (STORED), which part of that
no other name needs (UNIQUE), so that it is what dropping the name would free,
and the rest (SHARED). Then, of the whole store: how much all trees are, how
much is left of it when each chunk is counted once, and when these are
compressed; what no name refers to, which nbc gc deletes; how large the chunks
are; and how much was put there lately, by the store's clock.

It lists all chunks, and reads a part of each index. What is saved or collected
meanwhile may be counted or not.

With --html it writes the same to a page with plots, in one file that needs
nothing else.`,
		Example: `  nbc stats
  nbc stats --html stats.html 'myapp/*'`,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			rep := &transfer.StatsReport{
				Report: a.emptyReport("stats", ""),
				Names:  []transfer.NameStats{}, Sharing: []transfer.SharedBy{}, Sizes: []transfer.SizeClass{}, Growth: []transfer.Day{},
			}
			opts := transfer.StatsOptions{Patterns: args, Grace: defaultGrace}
			err := a.catalog(cmd, false, "counting", func(ctx context.Context, c *transfer.Cache) error {
				r, err := c.Stats(ctx, opts)
				rep = r
				return err
			})
			rep.Reason, err = a.looked(args, rep.Unreadable, rep.Reason, err)
			err = unreadableHint(err, rep.Unreadable)
			// With these errors the rest was counted.
			counted := err == nil || len(rep.Unreadable) > 0 || len(rep.Absent) > 0
			p := a.printer()
			var printing error
			switch {
			case o.json:
				data, err2 := plainJSON(statsJSON{rep, newFailure(err)})
				printing = errors.Join(err2, p.raw(string(data)+"\n"))
			case counted && rep.Reason == "":
				printing = statsTable(p, rep, time.Now())
			}
			printing = errors.Join(printing, p.flush())
			if page != "" && counted {
				if err2 := writePage(page, newPage(o.store, rep, time.Now())); err2 != nil {
					printing = errors.Join(printing, fmt.Errorf("writing the page: %w", err2))
				}
			}
			if err == nil {
				err = printing
			}
			a.told(err, statsSummary(rep, page))
			return nil
		},
	}
	f := cmd.Flags()
	o.catalogFlags(f)
	f.Var(&value[string]{&page, notEmpty, "", "FILE"}, "html", "write a page with plots, in one file")
	o.catalogWorkFlags(f)
	return finish(cmd)
}

// statsJSON is what --json prints of it.
type statsJSON struct {
	*transfer.StatsReport
	failure
}

// statsTable prints it for people.
func statsTable(p *printer, r *transfer.StatsReport, now time.Time) error {
	names := make([]string, len(r.Names))
	for i := range r.Names {
		names[i] = r.Names[i].Name
	}
	if len(names) > 0 {
		width := nameColumn(names)
		row := func(cells ...any) {
			_ = p.line(fmt.Sprintf("%-*s %6s %9s %10s %10s %10s %10s  %s", append([]any{width}, cells...)...)) // the error stays
		}
		row("NAME", "AGE", "FILES", "SIZE", "STORED", "UNIQUE", "SHARED", "FROM")
		for i := range r.Names {
			n := &r.Names[i]
			where := from(n.Host, n.Root, n.Failures)
			if n.Missing > 0 {
				where += fmt.Sprintf("  %s missing", count(n.Missing, "chunk"))
			}
			row(printable(n.Name), since(n.When(), now), comma(n.Files), size(n.Bytes), size(n.Stored.Bytes),
				size(n.Unique.Bytes), size(n.Shared().Bytes), where)
		}
		_ = p.raw("\n") // as above
	}
	t := r.Totals
	lines := []string{
		fmt.Sprintf("%-14s %14s %14s %14s", "", "ORIGINAL", "DEDUPLICATED", "COMPRESSED"),
		fmt.Sprintf("%-14s %14s %14s %14s", count(r.Count, "name"), size(t.Original), size(t.Deduplicated), size(t.Stored)),
		fmt.Sprintf("%-14s %14s %14s %14s", "ratio", "1.0", ratio(t.Original, t.Deduplicated), ratio(t.Original, t.Stored)),
		"",
		fmt.Sprintf("chunks: %s (%s), %s each on average; indexes: %s", comma(t.Chunks), size(t.Stored),
			size(average(t.Stored, t.Chunks)), size(t.Indexes)),
		"unreferenced: " + unreferenced(r),
		"growth: " + growthText(r, now),
	}
	if r.Missing > 0 {
		lines = append(lines, "missing: "+count(r.Missing, "chunk")+"; see nbc check")
	}
	for _, l := range lines {
		_ = p.line(l) // as above
	}
	if len(r.Sharing) > 0 {
		_ = p.raw("\nchunks by the names that refer to them\n") // as above
		labels, amounts := sharingClasses(r)
		histogram(p, labels, amounts)
		_ = p.raw("\nchunks by size, before compression\n") // as above
		labels, amounts = sizeClassesOf(r)
		histogram(p, labels, amounts)
	}
	return p.flush()
}

// unreferenced says what waits for a collection.
func unreferenced(r *transfer.StatsReport) string {
	text := amount(r.Unreferenced)
	if r.TooRecent.Chunks > 0 {
		text += fmt.Sprintf(", of which %s younger than a day", amount(r.TooRecent))
	}
	if r.Unreferenced.Chunks > r.TooRecent.Chunks {
		text += "; nbc gc deletes " + size(r.Unreferenced.Bytes-r.TooRecent.Bytes)
	}
	return text
}

// growthText says how much was put lately.
func growthText(r *transfer.StatsReport, now time.Time) string {
	var parts []string
	for _, days := range []int{1, 7, 30, 365} {
		first := now.UTC().AddDate(0, 0, 1-days).Format(time.DateOnly)
		var a transfer.Amount
		for _, d := range r.Growth {
			if d.Date >= first {
				a.Chunks += d.Chunks
				a.Bytes += d.Bytes
			}
		}
		when := fmt.Sprintf("in %d days", days)
		if days == 1 {
			when = "today (UTC)"
		}
		parts = append(parts, size(a.Bytes)+" "+when)
	}
	return strings.Join(parts, ", ")
}

// histogram prints a bar for each class.
func histogram(p *printer, labels []string, amounts []transfer.Amount) {
	const width = 40
	most := int64(1)
	for _, a := range amounts {
		most = max(most, a.Chunks)
	}
	for i, a := range amounts {
		bar := strings.Repeat("#", int((a.Chunks*width+most-1)/most))
		_ = p.line(fmt.Sprintf("%18s %11s %10s  %s", labels[i], comma(a.Chunks), size(a.Bytes), bar)) // the error stays
	}
}

// sharingClasses are the chunks by how many names refer to them.
func sharingClasses(r *transfer.StatsReport) (labels []string, amounts []transfer.Amount) {
	for _, c := range r.Sharing {
		label := count(c.From, "name")
		if c.To > c.From {
			label = fmt.Sprintf("%s to %s names", comma(c.From), comma(c.To))
		}
		labels, amounts = append(labels, label), append(amounts, c.Amount)
	}
	return labels, amounts
}

// sizeClassesOf are the chunks by size, with the classes between that have none.
func sizeClassesOf(r *transfer.StatsReport) (labels []string, amounts []transfer.Amount) {
	for i, c := range r.Sizes {
		if i > 0 {
			for at := r.Sizes[i-1].To + 1; at < c.From; at *= 2 {
				labels, amounts = append(labels, binarySize(at)+" to "+binarySize(2*at)), append(amounts, transfer.Amount{})
			}
		}
		labels, amounts = append(labels, binarySize(c.From)+" to "+binarySize(c.To+1)), append(amounts, c.Amount)
	}
	return labels, amounts
}

// binarySize writes a power of two.
func binarySize(n int) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return strconv.Itoa(n)
}

// ratio says how many times a is b.
func ratio(a, b int64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(a)/float64(b))
}

func average(bytes, n int64) int64 {
	if n == 0 {
		return 0
	}
	return bytes / n
}

func statsSummary(r *transfer.StatsReport, page string) string {
	parts := []string{count(r.Count, "name") + ", " + count(int(r.Totals.Chunks), "chunk")}
	if r.Reason != "" {
		parts = []string{r.Reason}
	}
	if n := r.Tombstones; n > 0 {
		parts = append(parts, count(n, "tombstone"))
	}
	if page != "" {
		parts = append(parts, "wrote "+page)
	}
	q := r.Requests
	if q.List+q.Get > 0 {
		parts = append(parts, fmt.Sprintf("%s LIST, %s GET, %s", comma(q.List), comma(q.Get), dollars(r.Cost)))
	}
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}
