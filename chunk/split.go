package chunk

import (
	"errors"
	"fmt"
	"io"

	"github.com/restic/chunker"
)

// Params decide where content is cut. They are recorded in a store's format object and never change afterwards:
// another average size would cut the same content at other places, and nothing would be found again.
type Params struct {
	// Polynomial of the Rabin fingerprint: irreducible, of degree 53, as restic/chunker takes it.
	Polynomial uint64
	// Min and Max bound the size of a chunk in bytes; only the last chunk of a stream may be smaller than Min.
	Min, Max int
	// Bits is how many low bits of the fingerprint are zero at a cut, so the average size is Min + 2^Bits.
	Bits int
}

// DefaultParams cut at 256 KiB on average. A large minimum with few bits beats the usual minimum of a quarter of the
// average: less is scanned, and there are fewer chunks and smaller uploads. bench/README.md has a table of eight choices
// on five pairs of trees. Against 160 KiB (2^16, and a minimum of 96 KiB), a Go build cache of 1.2 GB has 5,687 chunks
// and not 8,194, and a change of 1 % uploads 6.9 MB and not 4.9. Requests are what costs: on S3 a GET is as much as to
// keep 17 KB for a month, and at a round trip of 30 ms that tree is restored in 4.5 s and not 6.1. At 512 KiB that
// upload is twice that of 160 KiB. Chunks under 64 KiB would cost a fifth more bytes, and half the speed of the compressor.
func DefaultParams() Params {
	return Params{Polynomial: defaultPolynomial, Min: 128 << 10, Max: 1 << 20, Bits: 17}
}

// defaultPolynomial is irreducible, and a test has looked: it takes 2 ms, and every restore and save reads the format
// twice.
const defaultPolynomial = 0x37a260098117ad

// Limits of Params that a store may ask for. MaxSize bounds what a reader allocates for one chunk.
const (
	MinSize = 1 << 10
	MaxSize = 8 << 20
)

// Validate says what is wrong with p.
func (p Params) Validate() error {
	pol := chunker.Pol(p.Polynomial)
	switch {
	case pol != defaultPolynomial && (pol.Deg() != 53 || !pol.Irreducible()):
		return fmt.Errorf("chunker polynomial %#x is not irreducible of degree 53", p.Polynomial)
	case p.Min < MinSize || p.Max > MaxSize || p.Min > p.Max:
		return fmt.Errorf("chunk sizes %d to %d are outside %d to %d", p.Min, p.Max, MinSize, MaxSize)
	case p.Bits < 8 || p.Bits > 23:
		return fmt.Errorf("%d bits for a cut are outside 8 to 23", p.Bits)
	}
	return nil
}

// Average returns the expected size of a chunk in bytes, for a stream much longer than that.
func (p Params) Average() int { return p.Min + 1<<p.Bits }

// Splitter cuts one stream after another. It is not safe for concurrent use; it keeps a buffer of 512 KiB, so use
// [Splitter.Reset] instead of making many.
type Splitter struct {
	params  Params
	source  source
	chunker *chunker.Chunker
}

// NewSplitter returns a Splitter for r. The params must be valid.
func NewSplitter(r io.Reader, p Params) *Splitter {
	s := &Splitter{params: p}
	s.source.r = r
	s.chunker = chunker.NewWithBoundaries(&s.source, chunker.Pol(p.Polynomial), uint(p.Min), uint(p.Max))
	s.chunker.SetAverageBits(p.Bits)
	return s
}

// Reset starts a new stream, whether or not the one before was read to its end.
func (s *Splitter) Reset(r io.Reader) {
	s.source = source{r: r}
	s.chunker.ResetWithBoundaries(&s.source, chunker.Pol(s.params.Polynomial), uint(s.params.Min), uint(s.params.Max))
	s.chunker.SetAverageBits(s.params.Bits)
}

// Next appends the next chunk to buf[:0] and returns it, or [io.EOF] after the last one. An empty stream has no
// chunk. A buffer with a capacity of Params.Max is never reallocated. After a read that failed every call returns its
// error, and nothing of the chunk that was being read.
func (s *Splitter) Next(buf []byte) ([]byte, error) {
	if s.source.err != nil {
		return nil, fmt.Errorf("splitting: %w", s.source.err)
	}
	c, err := s.chunker.Next(buf[:0])
	switch {
	case err == nil:
		return c.Data, nil
	case s.source.err != nil:
		return nil, fmt.Errorf("splitting: %w", s.source.err)
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	}
	return nil, fmt.Errorf("splitting: %w", err)
}

// source keeps the error of a read away from the chunker, which would take [io.ErrUnexpectedEOF] for the end of its
// buffer, and read on for ever.
type source struct {
	r   io.Reader
	err error
}

var errRead = errors.New("the stream cannot be read")

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF { // a wrapped EOF is a failure by the rules of io.Reader
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err) // nobody may take it for the end
		}
		s.err, err = err, errRead
	}
	return n, err
}
