package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// cborReader reads the CBOR of a section in its deterministic form, and nothing else: so one content has one form, and
// no second copy of a section is needed to make sure of it. Byte strings that it returns are parts of the section. After
// an error it returns zero values; err is the first one.
type cborReader struct {
	rest []byte
	err  error
}

// The major types of RFC 8949 that sections have.
const (
	majorUint  = 0
	majorInt   = 1 // negative
	majorBytes = 2
	majorArray = 4
)

func (r *cborReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = nil
}

// head reads the start of a value: its major type and its argument, in the fewest bytes.
func (r *cborReader) head() (major byte, n uint64) {
	if r.err != nil {
		return 0, 0
	}
	if len(r.rest) == 0 {
		r.fail(errors.New("it is cut off"))
		return 0, 0
	}
	first := r.rest[0]
	r.rest = r.rest[1:]
	major, n = first>>5, uint64(first&31)
	if n < 24 {
		return major, n
	}
	if n > 27 {
		r.fail(fmt.Errorf("byte %#x begins nothing that has a length", first))
		return 0, 0
	}
	size := 1 << (n - 24)
	if len(r.rest) < size {
		r.fail(errors.New("it is cut off"))
		return 0, 0
	}
	var b [8]byte
	copy(b[8-size:], r.rest[:size])
	r.rest = r.rest[size:]
	n = binary.BigEndian.Uint64(b[:])
	// What fits into half of the bytes is to be written so.
	if size == 1 && n < 24 || size > 1 && n>>(4*size) == 0 {
		r.fail(errors.New("it is not in its deterministic form"))
		return 0, 0
	}
	return major, n
}

// want is head for a value that has this major type.
func (r *cborReader) want(major byte) uint64 {
	got, n := r.head()
	if r.err == nil && got != major {
		r.fail(fmt.Errorf("major type %d in place of %d", got, major))
		return 0
	}
	return n
}

// array begins an array of n values.
func (r *cborReader) array(n uint64) {
	if got := r.want(majorArray); r.err == nil && got != n {
		r.fail(fmt.Errorf("%d columns in place of %d", got, n))
	}
}

func (r *cborReader) bytes() []byte {
	n := r.want(majorBytes)
	if n > uint64(len(r.rest)) {
		r.fail(errors.New("it is cut off"))
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// list reads an array of byte strings, of which each takes a byte at least. There may be so many, which is looked at
// before there is memory for them: an empty one takes 24 bytes of it.
func (r *cborReader) list(most uint64) [][]byte {
	n := r.want(majorArray)
	if n > uint64(len(r.rest)) || n > most {
		r.fail(fmt.Errorf("an array of %d in %d bytes, %d are allowed", n, len(r.rest), most))
		return nil
	}
	list := makeList[[]byte](int(n))
	for i := range list {
		list[i] = r.bytes()
	}
	return list
}

func (r *cborReader) uint() uint64 { return r.want(majorUint) }

func (r *cborReader) int() int64 {
	major, n := r.head()
	switch {
	case r.err != nil:
		return 0
	case major != majorUint && major != majorInt || n > math.MaxInt64:
		r.fail(fmt.Errorf("no number of 64 bits: %d of major type %d", n, major))
		return 0
	case major == majorInt:
		return -1 - int64(n)
	}
	return int64(n)
}

// end says what is wrong with what was read.
func (r *cborReader) end() error {
	if r.err == nil && len(r.rest) > 0 {
		return fmt.Errorf("%d bytes after its end", len(r.rest))
	}
	return r.err
}

// section is what the plain bytes of one are read into.
type section interface{ read(r *cborReader) }

func (s *chunkSection) read(r *cborReader) {
	r.array(3)
	s.IDs, s.Lengths, s.Ages = r.bytes(), r.bytes(), r.bytes()
}

func (s *entrySection) read(r *cborReader) {
	r.array(7)
	for _, column := range []*[]byte{&s.Text, &s.Shared, &s.Kinds, &s.Sizes, &s.Times, &s.Targets, &s.Names} {
		*column = r.bytes()
	}
}

func (s *sourceSection) read(r *cborReader) {
	r.array(5)
	for _, column := range []*[]byte{&s.Text, &s.Shared, &s.Kinds, &s.Times, &s.Sums} {
		*column = r.bytes()
	}
}

func (s *buildSection) read(r *cborReader) {
	r.array(7)
	s.Root, s.Host, s.Saved = r.bytes(), r.bytes(), r.int()
	s.Patterns, s.Failures, s.Version, s.Roots = r.list(MaxPatterns), r.uint(), r.bytes(), r.list(MaxRoots)
}

func (s *outputSection) read(r *cborReader) {
	r.array(5)
	s.Names, s.Paths, s.NoRewrite = r.list(MaxOutputs), r.list(MaxOutputs), r.list(MaxPatterns)
	s.Uses, s.Gaps = r.bytes(), r.bytes()
}
