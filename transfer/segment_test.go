package transfer

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"nbc/chunk"
	"nbc/index"
)

// contentsOf makes contents of files with these sizes.
func contentsOf(names []string, sizes []int64) []content {
	var list []content
	var offset int64
	for i := range names {
		list = append(list, content{entry: &index.Entry{Path: names[i], Kind: index.File, Size: sizes[i]}, offset: offset})
		offset += sizes[i]
	}
	return list
}

func drawContents(t *rapid.T) ([]string, []int64) {
	n := rapid.IntRange(0, 200).Draw(t, "files")
	names, sizes := make([]string, n), make([]int64, n)
	for i := range names {
		names[i] = fmt.Sprintf("dir%d/file%04d", rapid.IntRange(0, 3).Draw(t, "dir"), i)
		sizes[i] = rapid.OneOf(rapid.Int64Range(0, 100), rapid.Int64Range(0, 200<<10), rapid.Int64Range(2<<20, 9<<20)).Draw(t, "size")
	}
	return names, sizes
}

func starts(list []segment) []string {
	var all []string
	for i := range list {
		all = append(all, list[i].files[0].entry.Path)
	}
	return all
}

func TestSegmentsCoverTheContents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files := contentsOf(drawContents(t))
		var all []content
		for _, s := range segments(files) {
			if len(s.files) == 0 || s.offset != s.files[0].offset {
				t.Fatalf("segment %+v", s)
			}
			var size int64
			for _, f := range s.files {
				size += f.entry.Size
			}
			if size != s.size {
				t.Fatalf("%d bytes instead of %d", s.size, size)
			}
			all = append(all, s.files...)
		}
		if !slices.EqualFunc(all, files, func(a, b content) bool { return a.entry == b.entry }) {
			t.Fatal("some files are not in one segment each")
		}
	})
}

// A file that is added, changed or removed moves no boundary that is not its own or its successor's.
func TestSegmentsAreLocal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names, sizes := drawContents(t)
		if len(names) < 3 {
			return
		}
		before := starts(segments(contentsOf(names, sizes)))
		i := rapid.IntRange(1, len(names)-2).Draw(t, "changed")
		removed, next := names[i], names[i+1]
		after := starts(segments(contentsOf(slices.Delete(slices.Clone(names), i, i+1), slices.Delete(slices.Clone(sizes), i, i+1))))
		other := func(p string) bool { return p == removed || p == next }
		if !slices.Equal(slices.DeleteFunc(before, other), slices.DeleteFunc(after, other)) {
			t.Fatalf("without %s: %q, before %q", removed, after, before)
		}
	})
}

// Whatever the base is, what is used of it is exactly the bytes of the segment.
func TestBaseChunksAreThoseOfTheSegment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// A base of files cut at random places.
		x := &index.Index{Epoch: 1}
		var total int64
		for i := range rapid.IntRange(1, 12).Draw(t, "files") {
			size := rapid.Int64Range(0, 6).Draw(t, "size")
			x.Entries = append(x.Entries, index.Entry{Path: fmt.Sprintf("f%02d", i), Kind: index.File, Size: size})
			total += size
		}
		for left := total; left > 0; {
			n := min(left, rapid.Int64Range(1, 9).Draw(t, "chunk"))
			id := chunk.Sum([]byte{byte(left), byte(len(x.Chunks))})
			x.Chunks = append(x.Chunks, index.Chunk{Key: chunk.Key{ID: id, Epoch: 1}, Length: int(n)})
			left -= n
		}
		b := newBase(x)
		// A segment of some of these files, most of them untouched.
		from := rapid.IntRange(0, len(x.Entries)-1).Draw(t, "from")
		to := rapid.IntRange(from, len(x.Entries)-1).Draw(t, "to")
		var s segment
		for i := from; i <= to; i++ {
			if rapid.IntRange(0, 9).Draw(t, "left out") == 0 {
				continue
			}
			e := &x.Entries[i]
			s.files = append(s.files, content{
				entry: e, untouched: rapid.IntRange(0, 9).Draw(t, "touched") > 0, baseOffset: b.offsets[i],
			})
			s.size += e.Size
		}
		unusable := rapid.IntRange(0, 20).Draw(t, "unusable")
		list, ok := b.chunks(&s, func(k chunk.Key) bool { return unusable >= len(x.Chunks) || x.Chunks[unusable].Key != k })
		if !ok {
			return
		}
		// What it says must be what the files are, byte by byte.
		var want, got []int64
		for _, f := range s.files {
			if !f.untouched {
				t.Fatal("a file that was touched is not read")
			}
			for i := range f.entry.Size {
				want = append(want, f.baseOffset+i)
			}
		}
		for _, c := range list {
			if unusable < len(x.Chunks) && x.Chunks[unusable].Key == c.Key {
				t.Fatal("a chunk is used that must not be")
			}
			var pos int64
			for _, o := range x.Chunks {
				if o.Key == c.Key {
					break
				}
				pos += int64(o.Length)
			}
			for i := range c.Length {
				got = append(got, pos+int64(i))
			}
		}
		if !slices.Equal(want, got) {
			t.Fatalf("bytes %v instead of %v", got, want)
		}
	})
	if list, ok := (*base)(nil).chunks(&segment{}, nil); ok || list != nil {
		t.Error("there is no base")
	}
}
