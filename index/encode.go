package index

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"nbc/chunk"
)

// The plain bytes of the sections are CBOR arrays: one element for each column, that is for one field of all entries.
// Columns of numbers are byte strings of varints. Measured on 100,000 files, against plain CBOR arrays of integers,
// these are read in a fifth of the time (4.6 ms, not 23.6) and are 1 to 3 % smaller; columns framed without CBOR take
// 2.7 ms and the same space, which does not pay for a container of our own. The order of the columns is that of the
// best compression: text first, then what has few values, then the times.

type chunkSection struct {
	_       struct{} `cbor:",toarray"`
	IDs     []byte   // 32 bytes each
	Lengths []byte   // varints
	Ages    []byte   // varints: the index's epoch less the key's, so that no key can be of a later one
}

type entrySection struct {
	_       struct{} `cbor:",toarray"`
	Text    []byte   // of each path what it does not share with the path before it, and a NUL
	Shared  []byte   // varints: how many bytes a path shares with the one before it
	Kinds   []byte   // varints: mode * 4 + kind - 1
	Sizes   []byte   // varints, of files
	Times   []byte   // of files and directories, as appendTimes has them
	Targets []byte   // of links, each with a NUL
	Names   []byte   // varints, of hard links: how many entries before its own the file stands
}

type sourceSection struct {
	_      struct{} `cbor:",toarray"`
	Text   []byte   // as in entrySection
	Shared []byte
	Kinds  []byte // a byte each: the kind, and unknown if it is unknown
	Times  []byte // as appendTimes has them
	Sums   []byte // 16 bytes each, of those that are not unknown
}

// unknown is added to the kind of a source.
const unknown = 4

type buildSection struct {
	_        struct{} `cbor:",toarray"`
	Root     []byte
	Host     []byte
	Saved    int64
	Patterns [][]byte
	Failures uint64
	Version  []byte
	Roots    [][]byte
}

// Encode returns the bytes of x. It returns ErrInvalid, and why, if x breaks a rule of the format.
func (x *Index) Encode() ([]byte, error) { return x.EncodeAfter(nil, nil) }

// EncodeAfter is Encode for an index that is likely to have sections in common with an earlier one, was, which [Decode]
// made of old: those are copied, and not encoded and compressed again. That is most of the work of a save after which
// nothing is different.
func (x *Index) EncodeAfter(was *Index, old []byte) ([]byte, error) {
	if err := x.Validate(); err != nil {
		return nil, fmt.Errorf("encoding an index: %w", err)
	}
	same := x.common(was, old)
	list := []func() any{
		func() any { return x.chunkSection() },
		func() any { return x.entrySection() },
		func() any { return x.sourceSection() },
		func() any { return x.buildSection() },
	}
	if len(x.Outputs.List) > 0 {
		list = append(list, func() any { return x.Outputs.section() })
	}
	h := header{epoch: x.Epoch, rows: make([]row, len(list))}
	stored := make([][]byte, len(list))
	var g errgroup.Group
	for i, section := range list {
		kind := uint16(i + 1)
		if stored[i] = same.stored(kind, &h.rows[i]); stored[i] != nil {
			continue
		}
		g.Go(func() (err error) {
			h.rows[i], stored[i], err = encodeSection(kind, section())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("encoding an index: %w", err)
	}
	size, plain := h.size(), uint64(0)
	for i, s := range stored {
		size += len(s)
		plain += h.rows[i].plain
	}
	if plain > MaxPlain {
		return nil, fmt.Errorf("encoding an index: %w: sections of %d plain bytes, %d are allowed", ErrInvalid, plain, MaxPlain)
	}
	if size > MaxSize {
		return nil, fmt.Errorf("encoding an index: %w: %d bytes, %d are allowed", ErrInvalid, size, MaxSize)
	}
	data := h.append(make([]byte, 0, size))
	for _, s := range stored {
		data = append(data, s...)
	}
	return data, nil
}

// fewBytes is how long a section may be that is not worth the memory of an encoder: where nothing has changed there is only
// one to be encoded, on the build, and making the encoder's tables of 4 MB would take as long as all else.
const fewBytes = 1 << 10

func encodeSection(kind uint16, section any) (row, []byte, error) {
	plain, err := encMode().Marshal(section)
	if err != nil {
		return row{}, nil, err
	}
	if len(plain) > MaxSection {
		return row{}, nil, fmt.Errorf("%w: a section of %d bytes, %d are allowed", ErrInvalid, len(plain), MaxSection)
	}
	r := row{kind: kind, flags: flagsOf(kind), encoding: zstdOne, plain: uint64(len(plain))}
	stored := plain
	if len(plain) > fewBytes {
		stored = encoder().EncodeAll(plain, nil)
	}
	if len(stored) >= len(plain) || r.plain > ratioBound(uint64(len(stored))) {
		r.encoding, stored = asIs, plain
	}
	r.stored, r.sum = uint64(len(stored)), blake3.Sum256(stored)
	return r, stored, nil
}

// common are the sections of an earlier index that another one has as well.
type common map[uint16]struct {
	row
	data []byte
}

// common finds out which those are: what is equal decoded may as well be copied. But for what another writer did not
// compress.
func (x *Index) common(was *Index, old []byte) common {
	if was == nil {
		return nil
	}
	h, err := readHeader(old)
	if err != nil {
		return nil
	}
	c := common{}
	rest := old[h.size():]
	for _, r := range h.rows {
		if uint64(len(rest)) < r.stored {
			break
		}
		switch {
		case r.encoding == asIs && r.plain > fewBytes:
		case r.kind == kindChunks && x.Epoch == was.Epoch && slices.Equal(x.Chunks, was.Chunks),
			r.kind == kindEntries && slices.Equal(x.Entries, was.Entries),
			r.kind == kindSources && slices.Equal(x.Sources, was.Sources),
			r.kind == kindOutputs && slices.Equal(x.Outputs.List, was.Outputs.List) &&
				slices.Equal(x.Outputs.Occurrences, was.Outputs.Occurrences) &&
				slices.Equal(x.Outputs.NoRewrite, was.Outputs.NoRewrite):
			c[r.kind] = struct {
				row
				data []byte
			}{r, rest[:r.stored]}
		}
		rest = rest[r.stored:]
	}
	return c
}

// stored returns the bytes of a section that is common, and fills in its row; or nil.
func (c common) stored(kind uint16, r *row) []byte {
	s, ok := c[kind]
	if !ok {
		return nil
	}
	*r = s.row
	return s.data
}

func (x *Index) chunkSection() *chunkSection {
	s := &chunkSection{IDs: make([]byte, 0, len(x.Chunks)*chunk.IDSize)}
	for i := range x.Chunks {
		c := &x.Chunks[i]
		s.IDs = append(s.IDs, c.ID[:]...)
		s.Lengths = binary.AppendUvarint(s.Lengths, uint64(c.Length))
		s.Ages = binary.AppendUvarint(s.Ages, x.Epoch-c.Epoch)
	}
	return s
}

func (x *Index) entrySection() *entrySection {
	s := &entrySection{}
	times := make([]int64, 0, len(x.Entries))
	prev := ""
	for i := range x.Entries {
		e := &x.Entries[i]
		s.Text, s.Shared = appendPath(s.Text, s.Shared, prev, e.Path)
		prev = e.Path
		s.Kinds = binary.AppendUvarint(s.Kinds, uint64(e.Mode)<<2|uint64(e.Kind-1))
		switch e.Kind {
		case File:
			s.Sizes = binary.AppendUvarint(s.Sizes, uint64(e.Size))
			times = append(times, e.MTime)
		case Dir:
			times = append(times, e.MTime)
		case Link:
			s.Targets = append(append(s.Targets, e.Target...), 0)
			times = append(times, e.MTime)
		case HardLink:
			file, _ := x.hardLink(i) // found by Validate
			s.Names = binary.AppendUvarint(s.Names, uint64(i-file))
		}
	}
	s.Times = appendTimes(nil, times)
	return s
}

func (x *Index) sourceSection() *sourceSection {
	s := &sourceSection{}
	times := make([]int64, len(x.Sources))
	prev := ""
	for i := range x.Sources {
		f := &x.Sources[i]
		s.Text, s.Shared = appendPath(s.Text, s.Shared, prev, f.Path)
		prev = f.Path
		times[i] = f.MTime
		if f.Unknown {
			s.Kinds = append(s.Kinds, byte(f.Kind)+unknown)
		} else {
			s.Kinds = append(s.Kinds, byte(f.Kind))
			s.Sums = append(s.Sums, f.Sum[:]...)
		}
	}
	s.Times = appendTimes(nil, times)
	return s
}

func (x *Index) buildSection() *buildSection {
	b := &x.Build
	return &buildSection{
		Root: []byte(b.Root), Host: []byte(b.Host), Saved: b.Saved, Patterns: byteStrings(b.Patterns),
		Failures: b.Failures, Version: []byte(b.Version), Roots: byteStrings(x.Roots),
	}
}

func byteStrings(list []string) [][]byte {
	out := make([][]byte, len(list))
	for i, s := range list {
		out[i] = []byte(s)
	}
	return out
}

func appendPath(text, lengths []byte, prev, path string) (newText, newLengths []byte) {
	n := shared(prev, path)
	return append(append(text, path[n:]...), 0), binary.AppendUvarint(lengths, uint64(n))
}

// appendTimes appends the differences of consecutive times, zigzagged into 8 bytes each: first the highest bytes of
// all, then the next lower ones, and so on. Nanoseconds are random in their low bytes and alike in the high ones;
// separated, they compress to 5.0 bytes each where varints would take 5.9.
func appendTimes(dst []byte, times []int64) []byte {
	begin, n := len(dst), len(times)
	dst = append(dst, make([]byte, 8*n)...)
	prev := int64(0)
	for i, t := range times {
		d := t - prev // may wrap around, and wraps back when it is added
		prev = t
		z := uint64(d<<1) ^ uint64(d>>63) // the bits are meant
		for plane := range 8 {
			dst[begin+plane*n+i] = byte(z >> (56 - 8*plane))
		}
	}
	return dst
}

// encMode is the deterministic encoding of RFC 8949, section 4.2.1, with empty columns as empty strings.
var encMode = sync.OnceValue(func() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	m, err := o.EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
})

// encoder is shared, and not for speed: its tables take some MB. The level is worth its 30 ms: on 12,600 files the
// fastest level needs 1.7 times the space when names are hashes, and the default one depends on where blocks begin. A
// window of 8 MB found no more in 40,000 files than this one, and took 16 MB when a save is at its largest.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(2<<20),
		zstd.WithSingleSegment(true), // the size of the plain bytes is always in the header
		zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})
