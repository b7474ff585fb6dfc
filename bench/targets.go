package main

import (
	"fmt"
	"math"
)

// target is a line of what is to be reached.
type target struct {
	What string `json:"what"`
	// Limit and Measured are in Unit; "×" is a ratio of two medians. Measured is -1 if something for it is missing.
	Limit    float64 `json:"limit"`
	Measured float64 `json:"measured"`
	Unit     string  `json:"unit"`
	Met      bool    `json:"met"`
	// CPU is the ratio of the cpu times, which a busy machine disturbs less; 0 for what is no time.
	CPU float64 `json:"cpu,omitempty"`
}

func (t target) known() bool { return t.Measured >= 0 }

func (t target) limit() string { return format(t.Limit, t.Unit) }

func (t target) measured() string {
	if !t.known() {
		return ""
	}
	return format(t.Measured, t.Unit)
}

func (t target) cpu() string {
	if t.CPU == 0 {
		return ""
	}
	return format(t.CPU, "×")
}

func (t target) verdict() string {
	switch {
	case !t.known():
		return "not measured"
	case t.Met:
		return "met"
	}
	return "**not met**"
}

func format(v float64, unit string) string {
	if unit == "" {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g %s", math.Round(v*1000)/1000, unit)
}

// The sizes that absolute limits are for. Those of another corpus are in proportion.
const (
	usualBytes = 650e6
	usualFiles = 12600
)

// targets computes every line.
func (r *results) targets() []target {
	rows := r.rows()
	find := func(work string, tools ...string) (row, bool) {
		for _, tool := range tools {
			for _, w := range rows {
				if w.work == work && w.tool == tool {
					return w, true
				}
			}
		}
		return row{}, false
	}
	var list []target
	add := func(what string, limit, measured float64, unit string) {
		if math.IsNaN(measured) || math.IsInf(measured, 0) {
			measured = -1
		}
		list = append(list, target{
			What: what, Limit: limit, Measured: measured, Unit: unit, Met: measured >= 0 && measured <= limit,
		})
	}
	// wall adds a ratio of wall times, of the first tool's to the first of the others' that was measured.
	wall := func(what string, limit float64, work, mine, otherWork string, others ...string) {
		a, ok := find(work, mine)
		b, ok2 := find(otherWork, others...)
		v := math.NaN()
		if ok && ok2 {
			v = a.wall / b.wall
		}
		add(what, limit, v, "×")
		if ok && ok2 && b.cpu > 0 {
			list[len(list)-1].CPU = a.cpu / b.cpu
		}
	}
	wall("save, nothing changed: borg's time", 1./8, sameSave, nbcDir, sameSave, borg)
	wall("save, nothing changed: restic's time", 1./12, sameSave, nbcS3, sameSave, restic)
	wall("save, nothing changed: a walk with lstat", 2, sameSave, nbcDir, sameSave, findName)
	wall("save, 1 % changed: borg's time", 1./2, changedSave, nbcDir, changedSave, borg)
	wall("save, 1 % changed: the old way's time", 1./4, changedSave, nbcS3, changedSave, oldWay, oldSDK)
	wall("cold save to S3: the old way's time", 1, coldSave, nbcS3, coldSave, oldWay, oldSDK)
	wall("cold restore from S3, near store filled: the old way's time", 3./4, coldRestore, nbcS3, coldRestore, oldWay,
		oldSDK)
	wall("cold restore from S3: filling the near store", 1.1, coldRestore, nbcS3, noNear, nbcS3)
	wall("warm restore: cp -a of the tree", 1.1, warmRestore, nbcS3, warmRestore, cpName)
	wall("warm restore of few big files: cp -a", 1.6, bigWarm, nbcS3, bigWarm, cpName)
	wall("restore over the version before: cp -a", 1./2, overRestore, nbcS3, overRestore, cpName)

	sent := math.NaN()
	if r.Haskell.Files > 0 {
		sent = float64(r.Facts.HaskellSent) / 1e6
	}
	add("upload after an edit of one module, Haskell, index included", 0.3, sent, "MB")
	add("objects for 650 MB in 12,600 files", 4500, float64(r.Facts.Chunks)*usualBytes/float64(r.Corpus.Bytes), "")
	keys := float64(r.Facts.IndexKeys)
	add("index of 12,600 files without sources, names that are no hashes", 300,
		(keys*usualBytes/float64(r.Corpus.Bytes)+(float64(r.Facts.IndexNumbered)-keys)*usualFiles/float64(r.Corpus.Files))/1e3,
		"KB")

	memory := func(what, work, largeWork string) {
		v, large := math.NaN(), math.NaN()
		if w, ok := find(work, nbcS3); ok {
			v = float64(w.rss) / (1 << 20)
			if l, ok := find(largeWork, nbcS3); ok {
				large = float64(l.rss) / float64(w.rss)
			}
		}
		add("peak memory, "+what, 96, v, "MB")
		add("peak memory, "+what+": on a tree four times as large", 1.2, large, "×")
	}
	memory("cold save", coldSave, largeSave)
	memory("cold restore", coldRestore, largeBack)

	far := math.NaN()
	if a, ok := find(farRestore, nbcS3); ok {
		if b, ok := find(coldRestore, nbcS3); ok {
			far = max(a.wall-b.wall, 0)
		}
	}
	add("cold restore at 30 ms round trip: more than without", 2.5, far, "s")
	miss := math.NaN()
	if w, ok := find(missRestore, nbcS3); ok {
		miss = float64(w.counted.Requests)
	}
	add("requests of a restore that misses, two names", 4, miss, "")
	return list
}
