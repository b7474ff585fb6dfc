package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"nbc/chunk"
)

// FirstRead is how many bytes of an index to ask a store for when only the chunk keys are wanted: enough for 7,000 of
// them, that is for a tree of 1.5 GB. [PrefixSize] then tells whether more are needed.
const FirstRead = 256 << 10

// PrefixSize returns how many bytes of an index, counted from its start, [DecodeChunks] needs. Of data, it reads
// [MaxHeader] bytes at most. It returns ErrInvalid or ErrVersion if data does not begin with a header.
func PrefixSize(data []byte) (int, error) {
	h, err := readHeader(data)
	if err != nil {
		return 0, err
	}
	return h.size() + int(h.rows[0].stored), nil // MaxSize at most
}

// DecodeChunks reads what a collector and a saver want to know of an index: its epoch and its chunks. Data may be the
// whole index or its first [PrefixSize] bytes or more. The errors are those of [Decode]; what comes after the chunk
// keys is not looked at.
func DecodeChunks(data []byte) (epoch uint64, chunks []Chunk, err error) {
	h, err := readHeader(data)
	if err != nil {
		return 0, nil, err
	}
	if err := h.refuse(flagRefers); err != nil {
		return 0, nil, err
	}
	rest := data[h.size():]
	r := &h.rows[0]
	if uint64(len(rest)) < r.stored {
		return 0, nil, fmt.Errorf("%w: it is cut off in the chunk keys", ErrInvalid)
	}
	if err := r.verify(rest[:r.stored]); err != nil {
		return 0, nil, err
	}
	var s chunkSection
	if err := r.decode(rest[:r.stored], &s); err != nil {
		return 0, nil, err
	}
	if chunks, err = s.chunks(h.epoch); err != nil {
		return 0, nil, err
	}
	if _, err := checkChunks(h.epoch, chunks); err != nil {
		return 0, nil, err
	}
	return h.epoch, chunks, nil
}

// Decode is the inverse of [Index.Encode]. It returns ErrInvalid for bytes that are cut off, changed, or hostile, and
// ErrVersion for an index that only a newer nbc can read. What it returns has passed [Index.Validate], and takes
// memory in proportion to data, within the limits of this package. The strings share one piece of memory: clone what
// is kept for long.
func Decode(data []byte) (*Index, error) {
	p, err := takeApart(data)
	if err != nil {
		return nil, err
	}
	x := &Index{Epoch: p.epoch}
	// One section after another, so that the plain bytes of one are there at a time.
	if x.Chunks, err = decodeAs(p, kindChunks, func(s *chunkSection) ([]Chunk, error) { return s.chunks(p.epoch) }); err != nil {
		return nil, err
	}
	if x.Entries, err = decodeAs(p, kindEntries, (*entrySection).entries); err != nil {
		return nil, err
	}
	if x.Sources, err = decodeAs(p, kindSources, (*sourceSection).sources); err != nil {
		return nil, err
	}
	var build buildSection
	if err := p.decode(kindBuild, &build); err != nil {
		return nil, err
	}
	x.Roots, x.Build = texts(build.Roots), build.build()
	if _, ok := p.outputs(); ok {
		if x.Outputs, err = decodeAs(p, kindOutputs, (*outputSection).outputs); err != nil {
			return nil, err
		}
	}
	if err := x.Validate(); err != nil {
		return nil, err
	}
	return x, nil
}

// parts are the header of an index and its sections as they are stored, which are not damaged.
type parts struct {
	*header
	stored [][]byte
}

// takeApart finds the sections of an index. All hashes are compared, so that damage is found before a decoder meets it.
func takeApart(data []byte) (*parts, error) {
	h, err := readHeader(data)
	if err != nil {
		return nil, err
	}
	if err := h.refuse(flagNeeded); err != nil {
		return nil, err
	}
	p := &parts{h, make([][]byte, len(h.rows))}
	rest := data[h.size():]
	for i := range h.rows {
		r := &h.rows[i]
		if uint64(len(rest)) < r.stored {
			return nil, fmt.Errorf("%w: it is cut off in the section of kind %d", ErrInvalid, r.kind)
		}
		p.stored[i], rest = rest[:r.stored], rest[r.stored:]
		if err := r.verify(p.stored[i]); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after its end", ErrInvalid, len(rest))
	}
	return p, nil
}

// decode reads the columns of a section of a kind that is there.
func (p *parts) decode(kind int, s section) error { return p.rows[kind-1].decode(p.stored[kind-1], s) }

// decodeAs reads a section and turns it into what it means.
func decodeAs[S any, T any, P interface {
	*S
	section
}](p *parts, kind int, means func(P) (T, error),
) (T, error) {
	var s S
	if err := p.decode(kind, P(&s)); err != nil {
		var none T
		return none, err
	}
	return means(&s)
}

// verify says whether stored is the section that the row describes.
func (r *row) verify(stored []byte) error {
	if blake3.Sum256(stored) != r.sum {
		return fmt.Errorf("%w: the section of kind %d is damaged", ErrInvalid, r.kind)
	}
	return nil
}

// decompress returns the plain bytes of a section.
func (r *row) decompress(stored []byte) ([]byte, error) {
	if r.encoding != zstdOne {
		return stored, nil
	}
	// The size that the frame claims is compared before anything is allocated for it, and bounds the decoder.
	switch claim, err := chunk.FrameSize(stored); {
	case err != nil:
		return nil, fmt.Errorf("%w: section of kind %d: %w", ErrInvalid, r.kind, err)
	case claim != r.plain:
		return nil, fmt.Errorf("%w: section of kind %d: a frame of %d bytes instead of %d", ErrInvalid, r.kind, claim, r.plain)
	}
	plain, err := decoder().DecodeAll(stored, make([]byte, 0, r.plain))
	if err != nil {
		return nil, fmt.Errorf("%w: section of kind %d: %w", ErrInvalid, r.kind, err)
	}
	if uint64(len(plain)) != r.plain {
		return nil, fmt.Errorf("%w: section of kind %d: %d bytes instead of %d", ErrInvalid, r.kind, len(plain), r.plain)
	}
	return plain, nil
}

// decode reads the columns of a section of a known kind. They are parts of its plain bytes.
func (r *row) decode(stored []byte, s section) error {
	plain, err := r.decompress(stored)
	if err != nil {
		return err
	}
	in := cborReader{rest: plain}
	s.read(&in)
	if err := in.end(); err != nil {
		return fmt.Errorf("%w: section of kind %d: %w", ErrInvalid, r.kind, err)
	}
	return nil
}

func (s *chunkSection) chunks(epoch uint64) ([]Chunk, error) {
	var chunks []Chunk
	err := s.each(epoch, func(i, n int, c Chunk) error {
		if chunks == nil {
			chunks = make([]Chunk, n)
		}
		chunks[i] = c
		return nil
	})
	if err != nil {
		return nil, err
	}
	return chunks, nil
}

// each yields the chunks, n of them.
func (s *chunkSection) each(epoch uint64, yield func(i, n int, c Chunk) error) error {
	n := len(s.IDs) / chunk.IDSize
	lengths, ages := column{b: s.Lengths}, column{b: s.Ages}
	if n*chunk.IDSize != len(s.IDs) || n > MaxChunks || n > len(s.Lengths) || n > len(s.Ages) {
		return fmt.Errorf("%w: IDs of %d bytes", ErrInvalid, len(s.IDs))
	}
	for i := range n {
		age, length := ages.next(), lengths.next()
		if age > epoch || length > chunk.MaxSize {
			return fmt.Errorf("%w: chunk %d has the age %d and the length %d", ErrInvalid, i, age, length)
		}
		c := Chunk{
			Key:    chunk.Key{ID: chunk.ID(s.IDs[i*chunk.IDSize:]), Epoch: epoch - age},
			Length: int(length),
		}
		if err := yield(i, n, c); err != nil {
			return err
		}
	}
	if !lengths.done() || !ages.done() {
		return fmt.Errorf("%w: the columns of the chunks do not fit together", ErrInvalid)
	}
	return nil
}

func (s *entrySection) entries() ([]Entry, error) {
	var entries []Entry
	err := s.each(true, func(i, n int, e Entry, back int) error {
		if entries == nil {
			entries = make([]Entry, n)
		}
		if e.Kind == HardLink {
			e.Target = entries[i-back].Path
		}
		entries[i] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// each yields the entries, n of them. A hard link has no target; it is another name of the file that stands back
// entries before it. The strings share one piece of memory for all of them if they are to be kept.
func (s *entrySection) each(keep bool, yield func(i, n int, e Entry, back int) error) error {
	paths, err := newPathColumn(s.Text, s.Shared, MaxEntries, keep)
	if err != nil {
		return fmt.Errorf("%w: entries: %w", ErrInvalid, err)
	}
	n := paths.count
	if n > len(s.Kinds) {
		return fmt.Errorf("%w: entries: %d kinds of %d", ErrInvalid, len(s.Kinds), n)
	}
	var (
		kinds, sizes = column{b: s.Kinds}, column{b: s.Sizes}
		times, names = newTimeColumn(s.Times), column{b: s.Names}
		targets      = s.Targets
		text         string // of targets
		files        = make([]uint64, (n+63)/64)
	)
	if keep {
		text = string(targets)
	}
	for i := range n {
		var e Entry
		if e.Path, err = paths.next(); err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrInvalid, i, err)
		}
		kind := kinds.next()
		if kind > 0o777<<2|3 {
			return fmt.Errorf("%w: entry %d: kind and mode %d", ErrInvalid, i, kind)
		}
		e.Kind, e.Mode = Kind(kind&3+1), uint16(kind>>2)
		back := 0
		switch e.Kind {
		case File:
			size := sizes.next()
			if size > math.MaxInt64 {
				return fmt.Errorf("%w: entry %d: size %d", ErrInvalid, i, size)
			}
			e.Size, e.MTime = int64(size), times.next()
			files[i/64] |= 1 << (i % 64)
		case Dir:
			e.MTime = times.next()
		case Link:
			end := bytes.IndexByte(targets, 0)
			if end < 0 {
				return fmt.Errorf("%w: entry %d: a link without a target", ErrInvalid, i)
			}
			if keep {
				e.Target = text[len(text)-len(targets):][:end]
			} else {
				e.Target = string(targets[:min(end, MaxTarget+1)])
			}
			targets = targets[end+1:]
			e.MTime = times.next()
		case HardLink:
			far := names.next()
			if far > uint64(i) || files[(uint64(i)-far)/64]>>((uint64(i)-far)%64)&1 == 0 {
				return fmt.Errorf("%w: entry %d: a hard link to no file", ErrInvalid, i)
			}
			back = int(far)
		}
		if err := yield(i, n, e, back); err != nil {
			return err
		}
	}
	if !paths.done() || !kinds.done() || !sizes.done() || !times.done() || !names.done() || len(targets) > 0 {
		return fmt.Errorf("%w: the columns of the entries do not fit together", ErrInvalid)
	}
	return nil
}

func (s *sourceSection) sources() ([]Source, error) {
	var sources []Source
	err := s.each(true, func(i, n int, f Source) error {
		if sources == nil {
			sources = make([]Source, n)
		}
		sources[i] = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sources, nil
}

// each yields the sources, n of them; keep is as for entries.
func (s *sourceSection) each(keep bool, yield func(i, n int, f Source) error) error {
	paths, err := newPathColumn(s.Text, s.Shared, MaxSources, keep)
	if err != nil {
		return fmt.Errorf("%w: sources: %w", ErrInvalid, err)
	}
	n := paths.count
	if n != len(s.Kinds) {
		return fmt.Errorf("%w: sources: %d kinds of %d", ErrInvalid, len(s.Kinds), n)
	}
	times, sums := newTimeColumn(s.Times), s.Sums
	for i := range n {
		var f Source
		if f.Path, err = paths.next(); err != nil {
			return fmt.Errorf("%w: source %d: %w", ErrInvalid, i, err)
		}
		f.MTime = times.next()
		if f.Kind = Kind(s.Kinds[i]); f.Kind > unknown {
			f.Kind, f.Unknown = f.Kind-unknown, true
		} else {
			if len(sums) < SumSize {
				return fmt.Errorf("%w: source %d: no hash", ErrInvalid, i)
			}
			f.Sum, sums = [SumSize]byte(sums), sums[SumSize:]
		}
		if err := yield(i, n, f); err != nil {
			return err
		}
	}
	if !paths.done() || !times.done() || len(sums) > 0 {
		return fmt.Errorf("%w: the columns of the sources do not fit together", ErrInvalid)
	}
	return nil
}

func (s *buildSection) build() Build {
	return Build{
		Root: string(s.Root), Host: string(s.Host), Saved: s.Saved, Patterns: texts(s.Patterns),
		Failures: s.Failures, Version: string(s.Version),
	}
}

// texts makes strings that share one piece of memory, which is no longer than the section that they are from: as pieces
// of their own, short ones take up to 1.6 times as much.
func texts(list [][]byte) []string {
	size := 0
	for _, b := range list {
		size += len(b)
	}
	var all strings.Builder
	all.Grow(size)
	for _, b := range list {
		all.Write(b)
	}
	rest := all.String()
	out := makeList[string](len(list))
	for i, b := range list {
		out[i], rest = rest[:len(b)], rest[len(b):]
	}
	return out
}

// makeList returns nil for no elements, so that an index is equal to what it decodes from.
func makeList[T any](n int) []T {
	if n == 0 {
		return nil
	}
	return make([]T, n)
}

// column is a row of varints. After a number that is cut off or not in its shortest form, it is never done.
type column struct {
	b   []byte
	bad bool
}

func (c *column) next() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 || n > 1 && c.b[n-1] == 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *column) done() bool { return !c.bad && len(c.b) == 0 }

// timeColumn is what appendTimes wrote.
type timeColumn struct {
	b    []byte
	n    int // of times
	i    int
	last int64
}

func newTimeColumn(b []byte) *timeColumn { return &timeColumn{b: b, n: len(b) / 8} }

func (t *timeColumn) next() int64 {
	if t.i++; t.i > t.n {
		return 0
	}
	var z uint64
	for at := t.i - 1; at < 8*t.n; at += t.n {
		z = z<<8 | uint64(t.b[at])
	}
	t.last += int64(z>>1) ^ -int64(z&1) // the bits are meant
	return t.last
}

func (t *timeColumn) done() bool { return t.i == t.n && 8*t.n == len(t.b) }

// pathColumn is a column of sorted paths, of which each leaves out what it shares with the one before it.
type pathColumn struct {
	count  int
	text   []byte
	shared column
	prev   string
	keep   bool
	buf    strings.Builder // of its final size from the start, so that the paths can be parts of it; empty unless keep
}

// newPathColumn adds up the lengths before it allocates for them, which it does if the paths are to be kept.
func newPathColumn(text, lengths []byte, most int, keep bool) (*pathColumn, error) {
	count := bytes.Count(text, []byte{0})
	if count > most {
		return nil, fmt.Errorf("%d, %d are allowed", count, most)
	}
	all := column{b: lengths}
	sum := uint64(len(text) - count)
	for range count {
		n := all.next()
		if n > MaxPath {
			return nil, fmt.Errorf("a path that shares %d bytes", n)
		}
		sum += n // MaxEntries * MaxPath is 2^37
	}
	if !all.done() || sum > MaxPathBytes {
		return nil, fmt.Errorf("%d paths of %d bytes", count, sum)
	}
	p := &pathColumn{count: count, text: text, shared: column{b: lengths}, keep: keep}
	if keep {
		p.buf.Grow(int(sum)) // MaxPathBytes at most
	}
	return p, nil
}

// next refuses a path that does not follow the one before it, or that shares more with it than it says.
func (p *pathColumn) next() (string, error) {
	n := p.shared.next()
	end := bytes.IndexByte(p.text, 0) // count has made sure of it
	if n > uint64(len(p.prev)) || end == 0 || n < uint64(len(p.prev)) && p.text[0] <= p.prev[n] {
		return "", fmt.Errorf("a path that is not sorted, or shares %d bytes of %d", n, len(p.prev))
	}
	if !p.keep {
		if n+uint64(end) > MaxPath {
			return "", fmt.Errorf("a path of %d bytes", n+uint64(end))
		}
		p.prev = p.prev[:n] + string(p.text[:end])
		p.text = p.text[end+1:]
		return p.prev, nil
	}
	begin := p.buf.Len()
	p.buf.WriteString(p.prev[:n])
	p.buf.Write(p.text[:end])
	p.text = p.text[end+1:]
	p.prev = p.buf.String()[begin:]
	return p.prev, nil
}

func (p *pathColumn) done() bool { return p.shared.done() && len(p.text) == 0 }

// decoder never writes past the capacity of the slice that it is given.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(MaxSection),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})
