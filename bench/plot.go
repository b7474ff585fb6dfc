package main

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the plot, in pixels.
const (
	plotWidth  = 860
	labelWidth = 190
	barWidth   = 470 // of the longest bar
	barHeight  = 15
	barGap     = 5
	panelGap   = 30
)

// plotted are the works that have peers.
var plotted = []string{
	coldSave, sameSave, changedSave, coldRestore, warmRestore, overRestore, farRestore, bigSave, bigWarm,
}

// style follows the reader's choice of light or dark. The two blues are nbc's, grey is everybody else's; the light part
// of a bar that sticks out is cpu time on the second core.
const style = `
text { font: 12px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 } .small { fill: #57606a }
.nbc { fill: #0969da } .other { fill: #8c959f } .cpu { opacity: .35 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .nbc { fill: #4493f8 } .other { fill: #768390 }
}
`

// plot returns the wall and cpu times as an SVG: a panel for each work, with a scale of its own.
func (r *results) plot() string {
	rows := r.rows()
	var b strings.Builder
	y := 44
	for _, work := range plotted {
		var list []row
		longest := 0.
		for _, w := range rows {
			if w.work == work {
				list = append(list, w)
				longest = max(longest, w.wall, w.cpu)
			}
		}
		if len(list) == 0 || longest == 0 {
			continue
		}
		fmt.Fprintf(&b, `<text class="head" x="0" y="%d">%s</text>`+"\n", y, html.EscapeString(work))
		y += 8
		for _, w := range list {
			class := "other"
			if w.tool == nbcS3 || w.tool == nbcDir {
				class = "nbc"
			}
			text := y + barHeight - 3
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-8, text, html.EscapeString(w.tool))
			length := func(v float64) float64 { return v / longest * barWidth }
			fmt.Fprintf(&b, `<rect class="%s cpu" x="%d" y="%d" width="%.1f" height="%d"/>`, class, labelWidth, y+4,
				length(w.cpu), barHeight-8)
			fmt.Fprintf(&b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`, class, labelWidth, y,
				length(w.wall), barHeight)
			note := fmt.Sprintf("%.2f s, cpu %.2f s", w.wall, w.cpu)
			if n, ok := beside(rows, w); ok && n.tool != w.tool {
				note += ", " + ratio(w.wall, n.wall) + " × nbc"
			}
			fmt.Fprintf(&b, `<text class="small" x="%.1f" y="%d">%s</text>`+"\n", labelWidth+8+length(max(w.wall, w.cpu)), text,
				note)
			y += barHeight + barGap
		}
		y += panelGap - barGap
	}
	title := fmt.Sprintf("%s, %d MB in %d files: wall time (bars) and cpu time (lighter, where it is more)", r.Corpus.What,
		r.Corpus.Bytes/1e6, r.Corpus.Files)
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">`+"\n"+
		"<style>%s</style>\n"+`<text class="small" x="0" y="16">%s</text>`+"\n%s</svg>\n",
		plotWidth, y, plotWidth, y, style, html.EscapeString(title), b.String())
}
