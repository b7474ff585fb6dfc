package mtime

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"nbc/index"
)

func TestDiff(t *testing.T) {
	one, two := md5Of("1"), md5Of("2")
	is := func(kind index.Kind, sum [index.SumSize]byte) *index.Source {
		return &index.Source{Kind: kind, Sum: sum}
	}
	unknown := func(kind index.Kind) *index.Source { return &index.Source{Kind: kind, Unknown: true} }
	for name, c := range map[string]struct {
		base, now *index.Source
		want      string
	}{
		"same file":              {is(index.File, one), is(index.File, one), "unchanged"},
		"same directory":         {is(index.Dir, one), is(index.Dir, one), "unchanged"},
		"same link":              {is(index.Link, one), is(index.Link, one), "unchanged"},
		"edited":                 {is(index.File, one), is(index.File, two), "changed"},
		"other names":            {is(index.Dir, one), is(index.Dir, two), "changed"},
		"retargeted":             {is(index.Link, one), is(index.Link, two), "changed"},
		"file to link":           {is(index.File, one), is(index.Link, one), "changed"},
		"link to file":           {is(index.Link, one), is(index.File, one), "changed"},
		"directory to file":      {is(index.Dir, one), is(index.File, one), "changed"},
		"unknown before":         {unknown(index.File), is(index.File, one), "changed"},
		"unknown now":            {is(index.File, one), unknown(index.File), "changed"},
		"unknown in both":        {unknown(index.File), unknown(index.File), "changed"},
		"unknown of no bytes":    {unknown(index.File), is(index.File, [index.SumSize]byte{}), "changed"},
		"new":                    {nil, is(index.File, one), "new"},
		"new and unknown":        {nil, unknown(index.File), "new"},
		"deleted":                {is(index.File, one), nil, "deleted"},
		"deleted, it was a link": {is(index.Link, one), nil, "deleted"},
	} {
		// It stands between others, which must not take part.
		base := []index.Source{
			{Path: ".", Kind: index.Dir, Sum: one, MTime: 5},
			{Path: "b", Kind: index.File, Sum: one, MTime: 9},
		}
		now := []index.Source{
			{Path: ".", Kind: index.Dir, Sum: one, MTime: 6},
			{Path: "b", Kind: index.File, Sum: two, MTime: 99},
		}
		if c.base != nil {
			c.base.Path, c.base.MTime = "a", 7
			base = slices.Insert(base, 1, *c.base)
		}
		if c.now != nil {
			c.now.Path, c.now.MTime = "a", 8
			now = slices.Insert(now, 1, *c.now)
		}
		got := Diff(base, now)
		var in []string
		for class, list := range map[string][]index.Source{
			"unchanged": got.Unchanged, "changed": got.Changed, "new": got.New, "deleted": got.Deleted,
		} {
			for _, s := range list {
				switch {
				case s.Path == "a":
					in = append(in, class)
					if recorded := class == "unchanged" || class == "deleted"; recorded != (s.MTime == 7) {
						t.Errorf("%s: it is %s with the time %d", name, class, s.MTime)
					}
				case s.Path == "." && class != "unchanged", s.Path == "b" && class != "changed":
					t.Errorf("%s: %s is %s", name, s.Path, class)
				}
			}
		}
		same(t, name, in, c.want)
		links := c.base != nil && c.base.Kind == index.Link && c.want == "changed"
		if links != (len(got.Links) == 1) || links && got.Links[0] != *c.base {
			t.Errorf("%s: links that are others now: %+v", name, got.Links)
		}
		if newest := got.Newest(); newest != 5 && (c.want != "unchanged" || newest != 7) {
			t.Errorf("%s: the newest time is %d", name, newest)
		}
		if got.Same() {
			t.Errorf("%s: nothing differs", name)
		}
	}
	all := []index.Source{{Path: "a"}, {Path: "b"}}
	if c := Diff(all, all); !c.Same() || len(c.Unchanged) != 2 {
		t.Errorf("equal sources: %+v", c)
	}
	if c := Diff(nil, nil); !c.Same() || c.Newest() != 0 {
		t.Errorf("no sources: %+v", c)
	}
	for _, c := range []Changes{Diff(all, nil), Diff(nil, all)} {
		if c.Same() {
			t.Errorf("%+v is said to be the same", c)
		}
	}
}

// TestDiffIsAPartition puts every source into exactly one class, by its definition.
func TestDiffIsAPartition(t *testing.T) {
	kind := rapid.SampledFrom([]index.Kind{index.File, index.Dir, index.Link})
	list := rapid.Custom(func(t *rapid.T) []index.Source {
		var all []index.Source
		for _, p := range []string{"a", "a-b", "a/b", "b", "c"} {
			if !rapid.Bool().Draw(t, "there") {
				continue
			}
			s := index.Source{Path: p, Kind: kind.Draw(t, "kind"), Unknown: rapid.Bool().Draw(t, "unknown")}
			if !s.Unknown {
				s.Sum[0] = rapid.ByteRange(0, 2).Draw(t, "sum")
			}
			s.MTime = rapid.Int64().Draw(t, "time")
			all = append(all, s)
		}
		return all
	})
	rapid.Check(t, func(t *rapid.T) {
		base, now := list.Draw(t, "base"), list.Draw(t, "now")
		c := Diff(base, now)
		both := len(c.Unchanged) + len(c.Changed)
		if both+len(c.New) != len(now) || both+len(c.Deleted) != len(base) {
			t.Fatalf("not a partition: %+v", c)
		}
		at := func(list []index.Source, path string) *index.Source {
			for i := range list {
				if list[i].Path == path {
					return &list[i]
				}
			}
			return nil
		}
		for _, s := range c.Unchanged {
			b, n := at(base, s.Path), at(now, s.Path)
			if *b != s || b.Kind != n.Kind || b.Sum != n.Sum || b.Unknown || n.Unknown {
				t.Fatalf("%+v is not unchanged", s)
			}
		}
		for _, s := range c.Changed {
			b, n := at(base, s.Path), at(now, s.Path)
			if *n != s || b.Kind == n.Kind && b.Sum == n.Sum && !b.Unknown && !n.Unknown {
				t.Fatalf("%+v is not changed", s)
			}
		}
		for _, s := range c.New {
			if at(base, s.Path) != nil {
				t.Fatalf("%+v is not new", s)
			}
		}
		for _, s := range c.Deleted {
			if at(now, s.Path) != nil {
				t.Fatalf("%+v is not deleted", s)
			}
		}
	})
}
