package index

import (
	"fmt"
	"math"
)

// Summary is what an index tells without its sources, and without its paths taken apart: what a list of many indexes
// wants to know.
type Summary struct {
	Epoch  uint64
	Chunks []Chunk
	// Files counts the entries of kind File, Dirs those of kind Dir, Links those of both kinds of links.
	Files, Dirs, Links int
	// Bytes is the length of the contents.
	Bytes int64
	// Roots are the paths of the cache directories.
	Roots []string
	Build Build
}

// Tombstone reports whether this is what is left of a cache name that was dropped: a save never puts an index without
// entries.
func (s *Summary) Tombstone() bool { return s.Files+s.Dirs+s.Links == 0 }

// SummaryParts says which bytes of an index [DecodeSummary] needs: the first ones up to head, and those from build to
// end. Between them are the sources, which are often the larger part. Data is the start of the index: [MaxHeader] bytes
// of it, or all. The errors are those of [PrefixSize].
func SummaryParts(data []byte) (head, build, end int, err error) {
	h, err := readHeader(data)
	if err != nil {
		return 0, 0, 0, err
	}
	// The lengths are bounded by MaxSize together.
	head = h.size() + int(h.rows[kindChunks-1].stored) + int(h.rows[kindEntries-1].stored)
	build = head + int(h.rows[kindSources-1].stored)
	return head, build, build + int(h.rows[kindBuild-1].stored), nil
}

// DecodeSummary reads the two parts of an index that [SummaryParts] names; head may be longer. The errors are those of
// [Decode], which also looks at the paths, and at how the entries belong together.
func DecodeSummary(head, build []byte) (Summary, error) {
	epoch, list, err := DecodeChunks(head)
	if err != nil {
		return Summary{}, err
	}
	h, err := readHeader(head)
	if err != nil {
		return Summary{}, err
	}
	var (
		entries entrySection
		about   buildSection
	)
	rest := head[h.size()+int(h.rows[kindChunks-1].stored):]
	r := &h.rows[kindEntries-1]
	if uint64(len(rest)) < r.stored {
		return Summary{}, fmt.Errorf("%w: it is cut off in the entries", ErrInvalid)
	}
	for _, part := range []struct {
		row    *row
		stored []byte
		to     section
	}{{r, rest[:r.stored], &entries}, {&h.rows[kindBuild-1], build, &about}} {
		if uint64(len(part.stored)) != part.row.stored {
			return Summary{}, fmt.Errorf("%w: it is cut off in the section of kind %d", ErrInvalid, part.row.kind)
		}
		if err := part.row.verify(part.stored); err != nil {
			return Summary{}, err
		}
		if err := part.row.decode(part.stored, part.to); err != nil {
			return Summary{}, err
		}
	}
	s := Summary{Epoch: epoch, Chunks: list, Roots: texts(about.Roots), Build: about.build()}
	if err := s.Build.check(); err != nil {
		return Summary{}, err
	}
	if err := s.count(&entries); err != nil {
		return Summary{}, err
	}
	return s, nil
}

// count looks at the kinds and the sizes of the entries alone.
func (s *Summary) count(e *entrySection) error {
	kinds, sizes := column{b: e.Kinds}, column{b: e.Sizes}
	for len(kinds.b) > 0 && !kinds.bad {
		switch kind := kinds.next(); Kind(kind&3 + 1) {
		case File:
			size := sizes.next()
			if size > math.MaxInt64-uint64(s.Bytes) {
				return fmt.Errorf("%w: a size of %d bytes", ErrInvalid, size)
			}
			s.Files++
			s.Bytes += int64(size)
		case Dir:
			s.Dirs++
		case Link, HardLink:
			s.Links++
		}
	}
	if !kinds.done() || !sizes.done() {
		return fmt.Errorf("%w: the columns of the entries do not fit together", ErrInvalid)
	}
	if n := s.Files + s.Dirs + s.Links; n > MaxEntries {
		return fmt.Errorf("%w: %d entries, %d are allowed", ErrInvalid, n, MaxEntries)
	}
	var n int64 // MaxChunks * chunk.MaxSize is 2^45
	for i := range s.Chunks {
		n += int64(s.Chunks[i].Length)
	}
	if n != s.Bytes {
		return fmt.Errorf("%w: chunks of %d bytes for contents of %d", ErrInvalid, n, s.Bytes)
	}
	return nil
}
