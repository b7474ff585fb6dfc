package mtime

import "nbc/index"

// Changes tells the sources of this build from those of an earlier one. Each list is sorted by path.
type Changes struct {
	// Unchanged are in both, of the same kind and with the same hash, as the earlier build recorded them: with its
	// MTime.
	Unchanged []index.Source
	// Changed are in both, as they are now. A source is changed, too, if it is Unknown in either.
	Changed []index.Source
	// New are only in this one.
	New []index.Source
	// Deleted were only in the earlier one.
	Deleted []index.Source
	// Links are those of Changed that were links in the earlier build, as they were then.
	Links []index.Source
}

// Diff compares the sources of an earlier build with those of this one. Both are sorted by path.
func Diff(base, now []index.Source) Changes {
	var c Changes
	for len(base) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(base) > 0 && base[0].Path < now[0].Path:
			c.Deleted = append(c.Deleted, base[0])
			base = base[1:]
			continue
		case len(base) == 0 || now[0].Path < base[0].Path:
			c.New = append(c.New, now[0])
			now = now[1:]
			continue
		case base[0].Kind == now[0].Kind && base[0].Sum == now[0].Sum && !base[0].Unknown && !now[0].Unknown:
			c.Unchanged = append(c.Unchanged, base[0])
		default:
			c.Changed = append(c.Changed, now[0])
			if base[0].Kind == index.Link {
				c.Links = append(c.Links, base[0])
			}
		}
		base, now = base[1:], now[1:]
	}
	return c
}

// Same reports whether no source differs.
func (c Changes) Same() bool { return len(c.Changed)+len(c.New)+len(c.Deleted) == 0 }

// Newest returns the latest recorded time of an unchanged source, in nanoseconds since 1970, or 0: with that of the
// artifacts it is what [Policy.Guard] looks at.
func (c Changes) Newest() int64 {
	var t int64
	for i := range c.Unchanged {
		t = max(t, c.Unchanged[i].MTime)
	}
	return t
}
