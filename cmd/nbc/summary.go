package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"nbc/transfer"
)

// This file says in one line each what a restore, a second pass and a save did. The line is always there: a cache that
// is silent when it misses is taken for one that works.

func restoreSummary(r *transfer.RestoreReport) string {
	if !r.Hit {
		return strings.Join([]string{"miss for " + r.Name + ": " + missReason(r), seconds(r.Seconds)}, "; ")
	}
	what := "restored " + r.Used
	if r.Used != r.Name {
		what += " for " + r.Name
	}
	parts := []string{
		fmt.Sprintf("%s: %s, %s", what, count(r.Files, "file"), size(r.Bytes)),
		fmt.Sprintf("fetched %s of %s (%s)", comma(r.Fetched.Chunks), count(r.Chunks, "chunk"), size(r.Fetched.Bytes)),
		"sources: " + sources(r.Sources),
	}
	if n := r.OutputPaths; n.Files > 0 {
		parts = append(parts, "output paths written in "+count(n.Files, "file"))
	}
	if len(r.Skipped) > 0 {
		parts = append(parts, "left out, as their place is gone: "+some(r.Skipped))
	}
	if r.Shifted != 0 {
		parts = append(parts, "times moved back by "+r.Shifted.Abs().Round(time.Second).String())
	}
	if r.Waited > 0 {
		parts = append(parts, "waited "+seconds(r.Waited.Seconds())+" for the clock")
	}
	for _, no := range r.Refused {
		parts = append(parts, fmt.Sprintf("not %s: %s", no.Name, no.Reason))
	}
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}

// missReason says why no name could be used: of each name, unless it is about none of them.
func missReason(r *transfer.RestoreReport) string {
	if len(r.Refused) == 0 {
		return r.Reason
	}
	var all []string
	for _, no := range r.Refused {
		if no.Name == r.Name {
			all = append(all, no.Reason)
		} else {
			all = append(all, no.Name+": "+no.Reason)
		}
	}
	return strings.Join(all, "; ")
}

func sources(s transfer.Sources) string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{s.Changed, "changed"}, {s.New, "new"}, {s.Deleted, "deleted"}} {
		if p.n > 0 {
			parts = append(parts, comma(p.n)+" "+p.what)
		}
	}
	if len(parts) == 0 {
		parts = []string{"none changed"}
	}
	return strings.Join(parts, ", ") + " of " + comma(s.Unchanged+s.Changed+s.New)
}

func saveSummary(r *transfer.SaveReport) string {
	if !r.Saved {
		what := "not saved"
		if r.Name != "" {
			what += " " + r.Name
		}
		if r.Reason != "" {
			what += ": " + r.Reason
		}
		return what + "; " + seconds(r.Seconds)
	}
	parts := []string{
		fmt.Sprintf("saved %s: %s, %s", r.Name, count(r.Files, "file"), size(r.Bytes)),
		fmt.Sprintf("read %s", count(r.Files-r.Untouched, "file")),
		fmt.Sprintf("sent %s of %s (%s)", comma(r.Sent.Chunks), count(r.Chunks, "chunk"), size(r.Sent.Bytes)),
	}
	if n := r.OutputPaths; n.Files > 0 {
		parts = append(parts, "output paths in "+count(n.Files, "file"))
	}
	if n := len(r.Unknown); n > 0 {
		parts = append(parts, fmt.Sprintf("%s changed during the build: %s", count(n, "source"), some(r.Unknown)))
	}
	if r.HashedAfter {
		parts = append(parts, "sources were hashed after the build, as there was no restore")
	}
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}

func timesSummary(r *transfer.TimesReport) string {
	return fmt.Sprintf("times: %s written since the restore, %s back to the recorded time; %s",
		count(r.Files, "file"), comma(r.Restored), seconds(r.Seconds))
}

// some lists what fits into a line.
func some(list []string) string {
	const most = 3
	if len(list) > most {
		return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %s more", comma(len(list)-most))
	}
	return strings.Join(list, ", ")
}

// count is "1 file" or "2 files".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return comma(n) + " " + noun + "s"
}

func comma[N int | int64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

var units = []string{"kB", "MB", "GB", "TB", "PB", "EB"}

// size writes bytes with the units of 1000.
func size(n int64) string {
	if n < 1000 {
		return count(int(n), "byte")
	}
	f, unit := float64(n)/1000, 0
	for f >= 999.5 && unit < len(units)-1 {
		f /= 1000
		unit++
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %s", f, units[unit])
	}
	return fmt.Sprintf("%.0f %s", f, units[unit])
}

func seconds(s float64) string {
	if s < 60 {
		return fmt.Sprintf("%.2fs", s)
	}
	return (time.Duration(s*1e9) * time.Nanosecond).Round(time.Second).String()
}
