// Package chunk names, cuts and encodes pieces of content.
//
// It promises three things. An [ID] is the BLAKE3-256 of a chunk's plain bytes, so a chunk that decodes is the chunk
// that was asked for: [Decode] returns [ErrCorrupt] and never other bytes. A [Splitter] cuts a stream at places that
// depend only on the bytes near them and on [Params], never on how the stream was read. And a [Key], an ID with the
// epoch of its uploader, never gets a new meaning.
//
//	stream --Splitter--> plain chunks --Sum--> ID
//	                          \--------Encode--> stored bytes --Decode(ID)--> the same plain chunk
//
// A store holds an encoded chunk under [Key.Path].
package chunk

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// IDSize is the length of an ID in bytes.
const IDSize = 32

// ID is the BLAKE3-256 of a chunk's plain bytes.
type ID [IDSize]byte

// Sum returns the ID of plain.
func Sum(plain []byte) ID { return blake3.Sum256(plain) }

// String returns the ID as 64 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID is the inverse of [ID.String]. Upper-case digits are refused: one ID has one name.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*IDSize || strings.ToLower(s) != s {
		return id, fmt.Errorf("not a chunk ID: %q", s)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, fmt.Errorf("not a chunk ID: %q", s)
	}
	return id, nil
}

// Key names a stored chunk: what it is, and the epoch in which its uploader worked. The same content uploaded in two
// epochs has two keys, which is what lets a collector delete one of them without racing against the other.
type Key struct {
	ID    ID
	Epoch uint64
}

// Prefix is where all chunks of a store are.
const Prefix = "chunks/"

// String returns "<id>.<epoch>".
func (k Key) String() string { return k.ID.String() + "." + strconv.FormatUint(k.Epoch, 10) }

// Path returns the object's key in a store: "chunks/<hh>/<id>.<epoch>", where hh are the first two digits of the ID.
func (k Key) Path() string {
	s := k.String()
	return Prefix + s[:2] + "/" + s
}

// ParseKey is the inverse of [Key.String]. The epoch is decimal without leading zeros.
func ParseKey(s string) (Key, error) {
	name, epoch, ok := strings.Cut(s, ".")
	if !ok {
		return Key{}, fmt.Errorf("not a chunk key: %q", s)
	}
	id, err := ParseID(name)
	if err != nil {
		return Key{}, fmt.Errorf("not a chunk key: %q", s)
	}
	g, err := strconv.ParseUint(epoch, 10, 64)
	if err != nil || strconv.FormatUint(g, 10) != epoch {
		return Key{}, fmt.Errorf("not a chunk key: %q", s)
	}
	return Key{ID: id, Epoch: g}, nil
}

// ParsePath is the inverse of [Key.Path].
func ParsePath(path string) (Key, error) {
	rest, ok := strings.CutPrefix(path, Prefix)
	if !ok || len(rest) < 3 || rest[2] != '/' || !strings.HasPrefix(rest[3:], rest[:2]) {
		return Key{}, fmt.Errorf("not a chunk's path: %q", path)
	}
	return ParseKey(rest[3:])
}
