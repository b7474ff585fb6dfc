package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"nbc/chunk"
)

// FirstRead is how many bytes of an index to ask a store for when only the chunk keys are wanted: enough for 7,000 of
// them, that is for a tree of a gigabyte. [PrefixSize] then tells whether more are needed.
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
	h, err := readHeader(data)
	if err != nil {
		return nil, err
	}
	if err := h.refuse(flagNeeded); err != nil {
		return nil, err
	}
	// All hashes come first, so that damage is found before a decoder meets it.
	stored := make([][]byte, len(h.rows))
	rest := data[h.size():]
	for i := range h.rows {
		r := &h.rows[i]
		if uint64(len(rest)) < r.stored {
			return nil, fmt.Errorf("%w: it is cut off in the section of kind %d", ErrInvalid, r.kind)
		}
		stored[i], rest = rest[:r.stored], rest[r.stored:]
		if err := r.verify(stored[i]); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after its end", ErrInvalid, len(rest))
	}

	var (
		chunks  chunkSection
		entries entrySection
		sources sourceSection
		build   buildSection
	)
	for i, section := range []any{&chunks, &entries, &sources, &build} {
		if err := h.rows[i].decode(stored[i], section); err != nil {
			return nil, err
		}
	}
	x := &Index{Epoch: h.epoch, Roots: texts(build.Roots), Build: build.build()}
	if i, ok := h.outputs(); ok {
		var s outputSection
		if err := h.rows[i].decode(stored[i], &s); err != nil {
			return nil, err
		}
		if x.Outputs, err = s.outputs(); err != nil {
			return nil, err
		}
	}
	if x.Chunks, err = chunks.chunks(h.epoch); err != nil {
		return nil, err
	}
	if x.Entries, err = entries.entries(); err != nil {
		return nil, err
	}
	if x.Sources, err = sources.sources(); err != nil {
		return nil, err
	}
	if err := x.Validate(); err != nil {
		return nil, err
	}
	return x, nil
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

// decode reads the columns of a section of a known kind into section, a pointer to its struct.
func (r *row) decode(stored []byte, section any) error {
	plain, err := r.decompress(stored)
	if err != nil {
		return err
	}
	if err := decMode().Unmarshal(plain, section); err != nil {
		return fmt.Errorf("%w: section of kind %d: %w", ErrInvalid, r.kind, err)
	}
	// One content has one form: numbers in their shortest form, no null in place of an empty string, and so on. That is
	// simplest seen by encoding it again, which takes a few ms for 100,000 files.
	again, err := encMode().Marshal(section)
	if err != nil || !bytes.Equal(again, plain) {
		return fmt.Errorf("%w: section of kind %d is not in its deterministic form", ErrInvalid, r.kind)
	}
	return nil
}

func (s *chunkSection) chunks(epoch uint64) ([]Chunk, error) {
	n := len(s.IDs) / chunk.IDSize
	lengths, ages := column{b: s.Lengths}, column{b: s.Ages}
	if n*chunk.IDSize != len(s.IDs) || n > MaxChunks || n > len(s.Lengths) || n > len(s.Ages) {
		return nil, fmt.Errorf("%w: IDs of %d bytes", ErrInvalid, len(s.IDs))
	}
	chunks := makeList[Chunk](n)
	for i := range chunks {
		age, length := ages.next(), lengths.next()
		if age > epoch || length > chunk.MaxSize {
			return nil, fmt.Errorf("%w: chunk %d has the age %d and the length %d", ErrInvalid, i, age, length)
		}
		chunks[i] = Chunk{
			Key:    chunk.Key{ID: chunk.ID(s.IDs[i*chunk.IDSize:]), Epoch: epoch - age},
			Length: int(length),
		}
	}
	if !lengths.done() || !ages.done() {
		return nil, fmt.Errorf("%w: the columns of the chunks do not fit together", ErrInvalid)
	}
	return chunks, nil
}

func (s *entrySection) entries() ([]Entry, error) {
	paths, err := newPathColumn(s.Text, s.Shared, MaxEntries)
	if err != nil {
		return nil, fmt.Errorf("%w: entries: %w", ErrInvalid, err)
	}
	if paths.count > len(s.Kinds) {
		return nil, fmt.Errorf("%w: entries: %d kinds of %d", ErrInvalid, len(s.Kinds), paths.count)
	}
	var (
		entries      = makeList[Entry](paths.count)
		kinds, sizes = column{b: s.Kinds}, column{b: s.Sizes}
		times, names = newTimeColumn(s.Times), column{b: s.Names}
		targets      = string(s.Targets)
	)
	for i := range entries {
		e := &entries[i]
		if e.Path, err = paths.next(); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrInvalid, i, err)
		}
		kind := kinds.next()
		if kind > 0o777<<2|3 {
			return nil, fmt.Errorf("%w: entry %d: kind and mode %d", ErrInvalid, i, kind)
		}
		e.Kind, e.Mode = Kind(kind&3+1), uint16(kind>>2)
		switch e.Kind {
		case File:
			size := sizes.next()
			if size > math.MaxInt64 {
				return nil, fmt.Errorf("%w: entry %d: size %d", ErrInvalid, i, size)
			}
			e.Size, e.MTime = int64(size), times.next()
		case Dir:
			e.MTime = times.next()
		case Link:
			var ok bool
			if e.Target, targets, ok = strings.Cut(targets, "\x00"); !ok {
				return nil, fmt.Errorf("%w: entry %d: a link without a target", ErrInvalid, i)
			}
			e.MTime = times.next()
		case HardLink:
			back := names.next()
			if back > uint64(i) || entries[uint64(i)-back].Kind != File {
				return nil, fmt.Errorf("%w: entry %d: a hard link to no file", ErrInvalid, i)
			}
			e.Target = entries[uint64(i)-back].Path
		}
	}
	if !paths.done() || !kinds.done() || !sizes.done() || !times.done() || !names.done() || targets != "" {
		return nil, fmt.Errorf("%w: the columns of the entries do not fit together", ErrInvalid)
	}
	return entries, nil
}

func (s *sourceSection) sources() ([]Source, error) {
	paths, err := newPathColumn(s.Text, s.Shared, MaxSources)
	if err != nil {
		return nil, fmt.Errorf("%w: sources: %w", ErrInvalid, err)
	}
	if paths.count != len(s.Kinds) {
		return nil, fmt.Errorf("%w: sources: %d kinds of %d", ErrInvalid, len(s.Kinds), paths.count)
	}
	var (
		sources = makeList[Source](paths.count)
		times   = newTimeColumn(s.Times)
		sums    = s.Sums
	)
	for i := range sources {
		f := &sources[i]
		if f.Path, err = paths.next(); err != nil {
			return nil, fmt.Errorf("%w: source %d: %w", ErrInvalid, i, err)
		}
		f.MTime = times.next()
		if f.Kind = Kind(s.Kinds[i]); f.Kind > unknown {
			f.Kind, f.Unknown = f.Kind-unknown, true
			continue
		}
		if len(sums) < SumSize {
			return nil, fmt.Errorf("%w: source %d: no hash", ErrInvalid, i)
		}
		f.Sum, sums = [SumSize]byte(sums), sums[SumSize:]
	}
	if !paths.done() || !times.done() || len(sums) > 0 {
		return nil, fmt.Errorf("%w: the columns of the sources do not fit together", ErrInvalid)
	}
	return sources, nil
}

func (s *buildSection) build() Build {
	return Build{
		Root: string(s.Root), Host: string(s.Host), Saved: s.Saved, Patterns: texts(s.Patterns),
		Failures: s.Failures, Version: string(s.Version),
	}
}

func texts(list [][]byte) []string {
	out := makeList[string](len(list))
	for i, b := range list {
		out[i] = string(b)
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
	buf    strings.Builder // of its final size from the start, so that the paths can be parts of it
}

// newPathColumn adds up the lengths before it allocates for them.
func newPathColumn(text, lengths []byte, most int) (*pathColumn, error) {
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
	p := &pathColumn{count: count, text: text, shared: column{b: lengths}}
	p.buf.Grow(int(sum)) // MaxPathBytes at most
	return p, nil
}

// next refuses a path that does not follow the one before it, or that shares more with it than it says.
func (p *pathColumn) next() (string, error) {
	n := p.shared.next()
	end := bytes.IndexByte(p.text, 0) // count has made sure of it
	if n > uint64(len(p.prev)) || end == 0 || n < uint64(len(p.prev)) && p.text[0] <= p.prev[n] {
		return "", fmt.Errorf("a path that is not sorted, or shares %d bytes of %d", n, len(p.prev))
	}
	begin := p.buf.Len()
	p.buf.WriteString(p.prev[:n])
	p.buf.Write(p.text[:end])
	p.text = p.text[end+1:]
	p.prev = p.buf.String()[begin:]
	return p.prev, nil
}

func (p *pathColumn) done() bool { return p.shared.done() && len(p.text) == 0 }

// decMode refuses what the sections have no use for.
var decMode = sync.OnceValue(func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   4, // an array of arrays of strings has 2; fewer cannot be set
		MaxArrayElements:  max(MaxRoots, MaxPatterns),
		MaxMapPairs:       16, // there are no maps; fewer cannot be set
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
})

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
