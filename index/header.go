package index

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"
)

// The header is of fixed widths, little-endian, so that a reader finds every section without decoding one:
//
//	magic, version, number of rows, epoch | a row for each section | BLAKE3 of all before it
const (
	magic   = "nbcindex"
	version = 1

	startSize = 20 // of magic (8 bytes), version (2), number of rows (2), epoch (8)
	rowSize   = 52 // of kind (2), flags (1), encoding (1), stored length (8), plain length (8), BLAKE3 (32)
	sumSize   = 32

	// maxSections leaves room for what is not thought of yet; it bounds MaxHeader.
	maxSections = 64
)

// MaxHeader is the largest size of a header in bytes.
const MaxHeader = startSize + maxSections*rowSize + sumSize

// The kinds of sections. Rows are sorted by kind, and the sections themselves stand in the same order, so the chunk
// keys come first and a signature last.
const (
	kindChunks    = 1
	kindEntries   = 2
	kindSources   = 3
	kindBuild     = 4
	kindOutputs   = 5      // in an index that was saved with output paths
	kindSignature = 0xffff // reserved for a signature over the header up to its own row
	known         = 4      // kinds 1 to 4 are in every index
)

// Flags of a section, which tell readers that do not know its kind what to do.
const (
	// flagNeeded says that the index cannot be understood without this section.
	flagNeeded = 1
	// flagRefers says that this section refers to objects of the store: a collector has to know it.
	flagRefers = 2
)

// How the bytes of a section are stored.
const (
	asIs    = 0
	zstdOne = 1 // one zstd frame
)

// row describes one section.
type row struct {
	kind          uint16
	flags         uint8
	encoding      uint8
	stored, plain uint64 // lengths in bytes
	sum           [sumSize]byte
}

type header struct {
	epoch uint64
	rows  []row
}

// size of the header itself, in bytes.
func (h *header) size() int { return startSize + len(h.rows)*rowSize + sumSize }

// flagsOf are the flags of the known kinds. They are fixed, so that one index has one form.
func flagsOf(kind uint16) uint8 {
	if kind == kindChunks {
		return flagNeeded | flagRefers
	}
	return flagNeeded
}

func (h *header) append(dst []byte) []byte {
	begin := len(dst)
	dst = append(dst, magic...)
	dst = binary.LittleEndian.AppendUint16(dst, version)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(h.rows)))
	dst = binary.LittleEndian.AppendUint64(dst, h.epoch)
	for i := range h.rows {
		r := &h.rows[i]
		dst = binary.LittleEndian.AppendUint16(dst, r.kind)
		dst = append(dst, r.flags, r.encoding)
		dst = binary.LittleEndian.AppendUint64(dst, r.stored)
		dst = binary.LittleEndian.AppendUint64(dst, r.plain)
		dst = append(dst, r.sum[:]...)
	}
	sum := blake3.Sum256(dst[begin:])
	return append(dst, sum[:]...)
}

// readHeader reads the header at the start of data, which may be all of an index or a part that holds the header.
// In what it returns, kinds 1 to 4 come first, and everything is within its limit.
func readHeader(data []byte) (*header, error) {
	if len(data) < startSize || string(data[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it does not begin like one", ErrInvalid)
	}
	switch v := binary.LittleEndian.Uint16(data[8:]); {
	case v == 0:
		return nil, fmt.Errorf("%w: version 0", ErrInvalid)
	case v > version:
		return nil, fmt.Errorf("%w: version %d, %d is known", ErrVersion, v, version)
	}
	n := int(binary.LittleEndian.Uint16(data[10:]))
	if n < known || n > maxSections {
		return nil, fmt.Errorf("%w: %d sections", ErrInvalid, n)
	}
	h := &header{epoch: binary.LittleEndian.Uint64(data[12:]), rows: make([]row, n)}
	if len(data) < h.size() {
		return nil, fmt.Errorf("%w: %d bytes of a header of %d", ErrInvalid, len(data), h.size())
	}
	end := h.size() - sumSize
	if blake3.Sum256(data[:end]) != [sumSize]byte(data[end:]) {
		return nil, fmt.Errorf("%w: the header is damaged", ErrInvalid)
	}
	total := uint64(h.size()) // MaxHeader at most
	var plain uint64
	for i := range h.rows {
		b := data[startSize+i*rowSize:]
		r := &h.rows[i]
		*r = row{
			kind:     binary.LittleEndian.Uint16(b),
			flags:    b[2],
			encoding: b[3],
			stored:   binary.LittleEndian.Uint64(b[4:]),
			plain:    binary.LittleEndian.Uint64(b[12:]),
			sum:      [sumSize]byte(b[20:]),
		}
		if i > 0 && r.kind <= h.rows[i-1].kind || i < known && int(r.kind) != i+1 {
			return nil, fmt.Errorf("%w: a section of kind %d in place %d", ErrInvalid, r.kind, i+1)
		}
		if r.stored > MaxSize-total {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrInvalid, MaxSize)
		}
		total += r.stored
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("section of kind %d: %w", r.kind, err)
		}
		if r.kind <= kindOutputs {
			plain += r.plain // MaxSection at most
		}
	}
	if plain > MaxPlain {
		return nil, fmt.Errorf("%w: sections of %d plain bytes, %d are allowed", ErrInvalid, plain, MaxPlain)
	}
	return h, nil
}

// check looks at what a row says about a section of a known kind.
func (r *row) check() error {
	switch {
	case r.flags&^(flagNeeded|flagRefers) != 0:
		return fmt.Errorf("%w: flags %#x", ErrVersion, r.flags)
	case r.kind > kindOutputs:
		return nil // its encoding and its plain length may be of a newer kind as well
	case r.encoding > zstdOne:
		return fmt.Errorf("%w: encoding %d", ErrVersion, r.encoding)
	case r.flags != flagsOf(r.kind):
		return fmt.Errorf("%w: flags %#x", ErrInvalid, r.flags)
	case r.encoding == asIs && r.plain != r.stored:
		return fmt.Errorf("%w: %d bytes as they are are stored as %d", ErrInvalid, r.plain, r.stored)
	case r.plain > MaxSection:
		return fmt.Errorf("%w: %d plain bytes, %d are allowed", ErrInvalid, r.plain, MaxSection)
	case r.plain > ratioBound(r.stored):
		return fmt.Errorf("%w: %d plain bytes of %d stored ones", ErrInvalid, r.plain, r.stored)
	}
	return nil
}

// ratioBound returns how many plain bytes a section of stored bytes may have.
func ratioBound(stored uint64) uint64 { return 1<<20 + MaxRatio*stored }

// outputs returns the place of the section of kindOutputs, if there is one.
func (h *header) outputs() (int, bool) {
	return known, len(h.rows) > known && h.rows[known].kind == kindOutputs
}

// refuse returns ErrVersion if there is a section of an unknown kind with this flag.
func (h *header) refuse(flag uint8) error {
	for i := range h.rows[known:] {
		if r := &h.rows[known+i]; r.kind != kindOutputs && r.flags&flag != 0 {
			return fmt.Errorf("%w: it has a section of kind %d", ErrVersion, r.kind)
		}
	}
	return nil
}
