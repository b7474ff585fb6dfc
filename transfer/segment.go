package transfer

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"strings"

	"nbc/chunk"
	"nbc/index"
)

// segmentBytes is the expected length of a segment. At 2 to 16 MB a cold save costs the same; after a change, 2 to 4 MB
// are best: a smaller segment ends more chunks early, of a larger one more is read again. (That was measured with chunks
// of 160 KiB.)
const segmentBytes = 3 << 20

// content is a regular file as a part of the contents.
type content struct {
	entry  *index.Entry
	stat   *index.Stat
	offset int64 // of its first byte in the contents
	// untouched says that its bytes are those that the base has at baseOffset.
	untouched  bool
	baseOffset int64
}

// segment is a run of consecutive files that is split on its own: a chunk ends where it ends.
type segment struct {
	files  []content
	offset int64
	size   int64

	// What comes of it:
	chunks []index.Chunk
	places []index.Occurrence // where output paths stand in its files
	sealed []string           // files in which they cannot be found
}

// segments cuts the contents. Whether a segment begins at a file depends on that file's path and size alone (and on the
// size of the one before it, if that is very large), so a file that is added, changed or removed moves no other
// boundary. The probability is in proportion to the file's size, so that trees of small and of large files give
// segments of the same expected length; a file of that length or more is a segment of its own.
func segments(files []content) []segment {
	var list []segment
	begin := 0
	for i := range files {
		if i > begin && (begins(files[i].entry) || files[i-1].entry.Size >= segmentBytes) {
			list = append(list, newSegment(files[begin:i]))
			begin = i
		}
	}
	if begin < len(files) {
		list = append(list, newSegment(files[begin:]))
	}
	return list
}

func newSegment(files []content) segment {
	s := segment{files: files, offset: files[0].offset}
	for i := range files {
		s.size += files[i].entry.Size
	}
	return s
}

// begins says whether a segment begins at e: with a probability of Size/segmentBytes, by a hash of its path.
func begins(e *index.Entry) bool {
	if e.Size >= segmentBytes {
		return true
	}
	id := chunk.Sum([]byte(e.Path))
	limit, _ := bits.Div64(uint64(e.Size), 0, segmentBytes) // Size/segmentBytes of 2^64
	return binary.BigEndian.Uint64(id[:8]) < limit
}

// base is what a save knows of the index that untouched files came from.
type base struct {
	index *index.Index
	// starts maps the offset of each chunk in the base's contents to its number; the end of the contents, too.
	starts map[int64]int
	// offsets are those of the base's entries in its contents; of one that is no file, where the next file begins.
	offsets []int64
}

func newBase(x *index.Index) *base {
	b := &base{index: x, starts: make(map[int64]int, len(x.Chunks)+1), offsets: make([]int64, len(x.Entries))}
	var pos int64
	for i, c := range x.Chunks {
		b.starts[pos] = i
		pos += int64(c.Length)
	}
	b.starts[pos] = len(x.Chunks)
	pos = 0
	for i := range x.Entries {
		b.offsets[i] = pos
		if e := &x.Entries[i]; e.Kind == index.File {
			pos += e.Size
		}
	}
	return b
}

// lookup returns a function that finds the number of an entry by its path, quickest when it is asked for them in order.
func (b *base) lookup() func(path string) (number int, ok bool) {
	if b == nil {
		return func(string) (int, bool) { return 0, false }
	}
	list, next := b.index.Entries, 0
	return func(path string) (int, bool) {
		if next == len(list) || list[next].Path != path {
			var found bool
			next, found = slices.BinarySearchFunc(list, path, func(e index.Entry, p string) int {
				return strings.Compare(e.Path, p)
			})
			if !found {
				return 0, false
			}
		}
		next++
		return next - 1, true
	}
}

// chunks returns the base's chunks of s, if they can be used as they are, without reading a file: all its files are
// untouched, they lie one after another in the base as well, a chunk of the base begins where they begin and one ends
// where they end, and all those may be referred to.
func (b *base) chunks(s *segment, usable func(chunk.Key) bool) ([]index.Chunk, bool) {
	if b == nil {
		return nil, false
	}
	at := int64(math.MinInt64)
	var from int64
	for i := range s.files {
		f := &s.files[i]
		if !f.untouched {
			return nil, false
		}
		if f.entry.Size == 0 {
			continue // it has no place in the contents
		}
		if at == math.MinInt64 {
			at, from = f.baseOffset, f.baseOffset
		}
		if f.baseOffset != at {
			return nil, false
		}
		at += f.entry.Size
	}
	if s.size == 0 {
		return nil, true
	}
	first, ok1 := b.starts[from]
	end, ok2 := b.starts[at]
	if !ok1 || !ok2 {
		return nil, false
	}
	list := b.index.Chunks[first:end]
	for _, c := range list {
		if !usable(c.Key) {
			return nil, false
		}
	}
	return list, true
}

// places returns where output paths stand in s, all of whose files are untouched.
func (b *base) places(s *segment) (list []index.Occurrence) {
	for i := range s.files {
		f := &s.files[i]
		for _, c := range placesIn(b.index, f.baseOffset, f.entry.Size) {
			c.Offset += f.offset - f.baseOffset
			list = append(list, c)
		}
	}
	return list
}
