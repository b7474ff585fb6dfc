package transfer

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"nbc/chunk"
	"nbc/transfer/store"
)

// FormatPath is the key of the object that says how a store is written. FORMAT.md beside package chunk specifies it.
const FormatPath = "format"

const (
	formatVersion = 1
	formatHash    = "blake3-256"
	formatZstd    = "zstd"
	// writerLevel is raised when writers of this version keep a rule that older ones do not know, so that a store can
	// be closed to those (Format.MinWriter).
	writerLevel = 1
	// maxSmall bounds the small JSON objects, so that garbage in their place is not read for ever.
	maxSmall = 1 << 20
)

// Format says how a store is written: how content is cut, named and compressed. It is created by the first save and
// never changed.
type Format struct {
	Version int `json:"version"`
	// ID tells this store from every other one, and from one that was at the same place before and was emptied: 16
	// random bytes in hexadecimal. What a receipt knows of chunks is worth nothing in a store with another ID.
	ID          string `json:"id"`
	Hash        string `json:"hash"`
	Compression string `json:"compression"`
	// MinWriter is the oldest writer level that may write; an older client may still read.
	MinWriter int           `json:"min_writer"`
	Chunker   FormatChunker `json:"chunker"`
}

// FormatChunker is chunk.Params as JSON. The polynomial is hexadecimal text, since JSON's numbers have 53 bits.
type FormatChunker struct {
	Polynomial string `json:"polynomial"`
	Min        int    `json:"min"`
	Max        int    `json:"max"`
	Bits       int    `json:"bits"`
}

// NewFormat is what a new store gets.
func NewFormat() Format {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	p := chunk.DefaultParams()
	return Format{
		Version: formatVersion, ID: hex.EncodeToString(id[:]), Hash: formatHash, Compression: formatZstd, MinWriter: writerLevel,
		Chunker: FormatChunker{Polynomial: fmt.Sprintf("%#x", p.Polynomial), Min: p.Min, Max: p.Max, Bits: p.Bits},
	}
}

// Params returns how the store's content is cut.
func (f Format) Params() (chunk.Params, error) {
	pol, err := strconv.ParseUint(f.Chunker.Polynomial, 0, 64)
	if err != nil {
		return chunk.Params{}, fmt.Errorf("%w: chunker polynomial %q", ErrFormat, f.Chunker.Polynomial)
	}
	p := chunk.Params{Polynomial: pol, Min: f.Chunker.Min, Max: f.Chunker.Max, Bits: f.Chunker.Bits}
	if err := p.Validate(); err != nil {
		return chunk.Params{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return p, nil
}

// parseFormat refuses whatever this version cannot read.
func parseFormat(data []byte) (Format, error) {
	var f Format
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("%w: object %q: %w", ErrFormat, FormatPath, err)
	}
	switch {
	case f.Version != formatVersion:
		return f, fmt.Errorf("%w: version %d, this nbc knows %d", ErrFormat, f.Version, formatVersion)
	case len(f.ID) != 32 || strings.Trim(f.ID, "0123456789abcdef") != "":
		return f, fmt.Errorf("%w: ID %q", ErrFormat, f.ID)
	case f.Hash != formatHash:
		return f, fmt.Errorf("%w: hash %q, this nbc knows %q", ErrFormat, f.Hash, formatHash)
	case f.Compression != formatZstd:
		return f, fmt.Errorf("%w: compression %q, this nbc knows %q", ErrFormat, f.Compression, formatZstd)
	}
	_, err := f.Params()
	return f, err
}

// readFormat returns the store's format. A store without one is new: store.ErrNotExist.
func readFormat(ctx context.Context, s store.Store) (Format, error) {
	o, err := s.Get(ctx, FormatPath, store.Read{Max: maxSmall})
	if errors.Is(err, store.ErrTooLarge) {
		return Format{}, fmt.Errorf("%w: object %q: %w", ErrFormat, FormatPath, err)
	}
	if err != nil {
		return Format{}, fmt.Errorf("reading the store's format: %w", err)
	}
	return parseFormat(o.Data)
}

// writableFormat returns the store's format for a writer, and creates it in a new store. Of two first writers at once the
// later one wins: that is found out by reading it again, or, where both have read their own, by a receipt with the ID
// that lost, which is then of no use.
func writableFormat(ctx context.Context, s store.Store) (Format, error) {
	f, err := readFormat(ctx, s)
	if errors.Is(err, store.ErrNotExist) {
		data, err := json.MarshalIndent(NewFormat(), "", "  ")
		if err != nil {
			return Format{}, err
		}
		if _, err := s.Put(ctx, FormatPath, append(bytes.TrimSpace(data), '\n'), store.Condition{}); err != nil {
			return Format{}, fmt.Errorf("creating the store's format: %w", err)
		}
		if f, err = readFormat(ctx, s); err != nil {
			return Format{}, err
		}
	} else if err != nil {
		return Format{}, err
	}
	if f.MinWriter > writerLevel {
		return f, fmt.Errorf("%w: writers of level %d or later only, this nbc has %d", ErrFormat, f.MinWriter, writerLevel)
	}
	return f, nil
}
