package index

import "fmt"

// Verify says whether [Decode] would take data, and returns the epoch. It needs much less memory, since nothing is kept:
// about [VerifyMemory], where Decode may need many times as much.
func Verify(data []byte) (epoch uint64, err error) {
	p, err := takeApart(data)
	if err != nil {
		return 0, err
	}
	var pieces int64
	if err := verifyAs(p, kindChunks, func(s *chunkSection) error {
		return s.each(p.epoch, func(_, _ int, c Chunk) error {
			pieces += int64(c.Length) // MaxChunks * chunk.MaxSize is 2^45
			return c.check(p.epoch)
		})
	}); err != nil {
		return 0, err
	}
	entries := entryCheck{}
	if err := verifyAs(p, kindBuild, func(s *buildSection) error {
		b := s.build()
		entries.roots = texts(s.Roots)
		return b.check()
	}); err != nil {
		return 0, err
	}
	if err := checkRoots(entries.roots); err != nil {
		return 0, err
	}
	_, outputs := p.outputs()
	var sizes []int64 // if there are places in them
	if err := verifyAs(p, kindEntries, func(s *entrySection) error {
		return s.each(false, func(i, n int, e Entry, _ int) error {
			if outputs && i == 0 {
				sizes = make([]int64, 0, n)
			}
			if outputs {
				sizes = append(sizes, e.Size)
			}
			return entries.add(&e)
		})
	}); err != nil {
		return 0, err
	}
	if err := entries.end(); err != nil {
		return 0, err
	}
	if entries.sum != pieces {
		return 0, fmt.Errorf("%w: files have %d bytes, chunks %d", ErrInvalid, entries.sum, pieces)
	}
	var sources sourceCheck
	if err := verifyAs(p, kindSources, func(s *sourceSection) error {
		return s.each(false, func(_, _ int, f Source) error { return sources.add(&f) })
	}); err != nil {
		return 0, err
	}
	if err := sources.end(); err != nil {
		return 0, err
	}
	if outputs {
		if err := verifyAs(p, kindOutputs, func(s *outputSection) error {
			o, err := s.outputs()
			if err != nil {
				return err
			}
			return o.check(len(sizes), func(i int) int64 { return sizes[i] })
		}); err != nil {
			return 0, err
		}
	}
	return p.epoch, nil
}

// verifyAs reads a section and looks at it.
func verifyAs[S any, P interface {
	*S
	section
}](p *parts, kind int, look func(P) error,
) error {
	_, err := decodeAs(p, kind, func(s P) (struct{}, error) { return struct{}{}, look(s) })
	return err
}

// VerifyMemory returns how many bytes [Verify] may need beside data, of which it reads [MaxHeader] at most. The errors
// are those of [PrefixSize].
func VerifyMemory(data []byte) (int64, error) {
	h, err := readHeader(data)
	if err != nil {
		return 0, err
	}
	// Everything is bounded by MaxSection or a limit on numbers. What counts is what a hostile index takes until it is
	// refused: an empty text in a list is one byte of a section, and an entry without a path three.
	plain := func(kind int) int64 { return int64(h.rows[kind-1].plain) }
	const (
		header = 24 + 16     // of a text in a list as it is read, and as a string
		output = header + 16 // of a name or a path, which is in an Output then
		place  = 16          // of an occurrence, which takes two bytes in its section
		entry  = 3           // bytes at least: a NUL, what it shares, its kind; a good one has 5, as a hard link
	)
	// One section is there at a time, and with it the roots, whose text is copied, and the sizes of the entries.
	one := max(plain(kindChunks), plain(kindEntries), plain(kindSources), plain(kindBuild))
	kept := plain(kindBuild) + header*min(plain(kindBuild), MaxRoots+MaxPatterns)
	if _, ok := h.outputs(); ok {
		p := plain(kindOutputs)
		one = max(one, 2*p+output*min(p, 2*MaxOutputs+MaxPatterns)+place*min(p/2, MaxOccurrences)) // text is copied
		kept += 8 * min(plain(kindEntries)/entry, MaxEntries)
	}
	return one + kept, nil
}
