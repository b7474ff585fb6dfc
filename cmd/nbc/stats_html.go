package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nbc/transfer"
)

//go:embed stats.html
var pageText string

// pageTemplate escapes what it is given by where it stands: names come from whoever may save.
var pageTemplate = template.Must(template.New("stats.html").Parse(pageText))

// page is what the template shows. Widths and heights are in percent, coordinates in those of the SVGs.
type page struct {
	Store, When, Reason string
	Tiles               []tile
	Warnings            []string
	Funnel              []bar
	Freed               []bar
	FreedRest           string
	Sharing, Sizes      []column
	Growth              *curve
	Dots                []dot
	DotMost, DotHalf    string
	DotRest             string
	Rows                []pageRow
	Shown               string
}

// tile is a number worth a glance.
type tile struct{ Label, Value, Note string }

// bar lies. Its second part is behind the first one.
type bar struct {
	Label, Value, Note string
	Width, Rest        float64
}

// column stands.
type column struct {
	Label, Value, Note string
	Height             float64
}

// curve is a line over time.
type curve struct {
	Line, Area        string
	First, Last, Most string
}

// dot is a name: its size to the right, and what of it is its own upward.
type dot struct {
	X, Y  float64
	Title string
}

// pageRow is a row of the table, with the numbers that it is sorted by.
type pageRow struct {
	Name, Age, Files, Size, Stored, Unique, Shared, From string
	Saved, NFiles, NSize, NStored, NUnique, NShared      int64
}

const (
	// freedNames is how many names the plot of what could be freed has: a screen of them.
	freedNames = 20
	// mostDots bounds the page: more could not be told apart.
	mostDots = 2000
)

func newPage(store string, r *transfer.StatsReport, now time.Time) *page {
	p := &page{Store: printable(cmp.Or(store, "the default store")), When: now.Format("2006-01-02 15:04 -0700"), Reason: r.Reason}
	t := r.Totals
	p.Tiles = []tile{
		{"names", comma(r.Count), comma(t.Files) + " files"},
		{"all trees", size(t.Original), "as they were saved"},
		{"in the store", size(t.Stored), count(int(t.Chunks), "chunk")},
		{"ratio", ratio(t.Original, t.Stored), ratio(t.Original, t.Deduplicated) + " by deduplication, " +
			ratio(t.Deduplicated, t.Stored) + " by compression"},
		{"unreferenced", size(r.Unreferenced.Bytes), "waits for nbc gc, or for a save to end"},
	}
	for _, u := range r.Unreadable {
		p.Warnings = append(p.Warnings, printable(u.Name+" cannot be read: "+u.Reason))
	}
	for _, name := range r.Absent {
		p.Warnings = append(p.Warnings, printable(name)+" is not in the store")
	}
	if r.Missing > 0 {
		p.Warnings = append(p.Warnings, count(r.Missing, "chunk")+" missing from the store")
	}
	percent := func(n, of int64) float64 { return 100 * float64(n) / float64(max(1, of)) }
	for _, f := range []struct {
		label string
		n     int64
		note  string
	}{
		{"all trees", t.Original, ""},
		{"each chunk once", t.Deduplicated, "deduplicated " + ratio(t.Original, t.Deduplicated) + " times"},
		{"compressed", t.Stored, ratio(t.Original, t.Stored) + " times in all"},
	} {
		p.Funnel = append(p.Funnel, bar{Label: f.label, Value: size(f.n), Note: f.note, Width: percent(f.n, t.Original)})
	}
	p.names(r, now, percent)
	labels, amounts := sharingClasses(r)
	p.Sharing = columns(labels, amounts, func(a transfer.Amount) int64 { return a.Bytes }, size)
	labels, amounts = sizeClassesOf(r)
	p.Sizes = columns(labels, amounts, func(a transfer.Amount) int64 { return a.Chunks }, comma[int64])
	p.Growth = newCurve(r.Growth)
	return p
}

// names fills what is about single names.
func (p *page) names(r *transfer.StatsReport, now time.Time, percent func(n, of int64) float64) {
	for i := range r.Names {
		n := &r.Names[i]
		shared := n.Shared().Bytes
		p.Rows = append(p.Rows, pageRow{
			Name: printable(n.Name), Age: since(n.When(), now), Files: comma(n.Files), Size: size(n.Bytes),
			Stored: size(n.Stored.Bytes), Unique: size(n.Unique.Bytes), Shared: size(shared),
			From:  printable(from(n.Host, n.Root, n.Failures)),
			Saved: -n.When().Unix(), NFiles: int64(n.Files), NSize: n.Bytes, NStored: n.Stored.Bytes,
			NUnique: n.Unique.Bytes, NShared: shared,
		})
	}
	p.Shown = count(len(r.Names), "name")
	if len(r.Names) != r.Count {
		p.Shown += " of " + comma(r.Count)
	}
	by := make([]*transfer.NameStats, len(r.Names))
	for i := range r.Names {
		by[i] = &r.Names[i]
	}
	slices.SortStableFunc(by, func(a, b *transfer.NameStats) int { return cmp.Compare(b.Unique.Bytes, a.Unique.Bytes) })
	var most int64
	for _, n := range by[:min(len(by), freedNames)] {
		most = max(most, n.Stored.Bytes)
	}
	for _, n := range by[:min(len(by), freedNames)] {
		p.Freed = append(p.Freed, bar{
			Label: printable(n.Name), Value: size(n.Unique.Bytes), Note: size(n.Shared().Bytes) + " shared",
			Width: percent(n.Unique.Bytes, most), Rest: percent(n.Shared().Bytes, most),
		})
	}
	if rest := len(by) - len(p.Freed); rest > 0 {
		var bytes int64
		for _, n := range by[len(p.Freed):] {
			bytes += n.Unique.Bytes
		}
		p.FreedRest = fmt.Sprintf("%s more: %s", count(rest, "name"), size(bytes))
	}

	slices.SortStableFunc(by, func(a, b *transfer.NameStats) int { return cmp.Compare(b.Bytes, a.Bytes) })
	if len(by) > mostDots {
		p.DotRest = fmt.Sprintf("the largest %s names", comma(mostDots))
		by = by[:mostDots]
	}
	var top int64
	for _, n := range by {
		top = max(top, n.Bytes)
	}
	p.DotMost, p.DotHalf = size(top), size(top/2)
	for _, n := range by {
		p.Dots = append(p.Dots, dot{
			X:     dotLeft + dotWidth*float64(n.Bytes)/float64(max(1, top)),
			Y:     dotTop + dotHeight*(1-float64(n.Unique.Bytes)/float64(max(1, n.Stored.Bytes))),
			Title: fmt.Sprintf("%s: %s, %.0f %% of what it takes is its own", printable(n.Name), size(n.Bytes), percent(n.Unique.Bytes, n.Stored.Bytes)),
		})
	}
}

// The frame of the dots in their SVG, which is 640 wide and 300 high.
const (
	dotLeft, dotTop     = 50, 14
	dotWidth, dotHeight = 572, 240
)

// columns are as high as what value says of them.
func columns(
	labels []string, amounts []transfer.Amount, value func(transfer.Amount) int64, text func(int64) string,
) []column {
	var most int64 = 1
	for _, a := range amounts {
		most = max(most, value(a))
	}
	var list []column
	for i, a := range amounts {
		list = append(list, column{
			Label: labels[i], Value: text(value(a)), Note: amount(a), Height: 100 * float64(value(a)) / float64(most),
		})
	}
	return list
}

// newCurve adds up what was put day by day. The SVG is 600 wide and 200 high.
func newCurve(days []transfer.Day) *curve {
	// A store that does not tell times has one day, 1970-01-01.
	var known []transfer.Day
	for _, d := range days {
		if d.Date > "1970-01-01" {
			known = append(known, d)
		}
	}
	if len(known) == 0 {
		return nil
	}
	date := func(d transfer.Day) time.Time {
		t, err := time.Parse(time.DateOnly, d.Date)
		if err != nil {
			return time.Time{} // which it never is: the date was made from a time
		}
		return t
	}
	first, last := date(known[0]), date(known[len(known)-1])
	span := math.Max(1, last.Sub(first).Hours()+24)
	var total, sum int64
	for _, d := range known {
		total += d.Bytes
	}
	var b bytes.Buffer
	fmt.Fprint(&b, "M0,200")
	for _, d := range known {
		begin := date(d).Sub(first).Hours()
		x1, x2 := 600*begin/span, 600*(begin+24)/span
		// Flat until the day begins, and up in the course of it.
		fmt.Fprintf(&b, " L%.1f,%.1f", x1, 200-190*float64(sum)/float64(max(1, total)))
		sum += d.Bytes
		fmt.Fprintf(&b, " L%.1f,%.1f", x2, 200-190*float64(sum)/float64(max(1, total)))
	}
	return &curve{
		Line: b.String(), Area: b.String() + " L600,200 Z",
		First: known[0].Date, Last: known[len(known)-1].Date, Most: size(total),
	}
}

// writePage replaces the file at path by the page, so that a reader finds the old one or the new one.
func writePage(path string, p *page) (err error) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return err
	}
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return os.WriteFile(path, b.Bytes(), 0o666) // a pipe or a device has no old page
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".nbc-stats-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is what matters
		}
	}()
	if _, err := f.Write(b.Bytes()); err != nil {
		_ = f.Close() // as above
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		_ = f.Close() // as above
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
