// Package index describes saved trees: what files a cache name holds, which chunks their contents are, and which
// sources they were built from.
//
// An [Index] is one object in a store, and the only kind of object there that is ever replaced. [Index.Encode] and
// [Decode] turn it into bytes and back; FORMAT.md in this folder is the specification of those bytes. [Decode] is
// written for hostile input: what it returns has passed [Index.Validate], so every path stays inside its tree, every
// parent is a directory of the index, and sizes add up.
//
//	a tree on disk --Walk--> Entries, Sources --Encode--> index/<name> in a store
package index

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"nbc/chunk"
)

// Kind tells what an entry or a source is.
type Kind uint8

// The kinds. Their numbers are part of the format.
const (
	File     Kind = 1
	Dir      Kind = 2
	Link     Kind = 3 // a symbolic link
	HardLink Kind = 4 // another name of an earlier File; only in entries
)

func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Dir:
		return "directory"
	case Link:
		return "link"
	case HardLink:
		return "hard link"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Index describes one saved tree.
type Index struct {
	// Epoch is the garbage collection epoch that the saver worked in. No chunk key has a higher one.
	Epoch uint64
	// Chunks are the consecutive pieces of the contents: of the bytes of all entries of kind File, in order. The index
	// does not depend on who chose the cuts.
	Chunks []Chunk
	// Roots are the paths of the cache directories that were saved, sorted, none inside another. Each is the path of
	// an entry: a directory, or a single file that was matched as such.
	Roots []string
	// Entries are the artifacts, sorted by path, bytewise. Every entry is a root or lies in one, and its parent is an
	// entry of kind Dir before it.
	Entries []Entry
	// Sources are everything else in the source tree, sorted by path, bytewise. The tree itself is ".".
	Sources []Source
	// Build says where these artifacts come from.
	Build Build
	// Outputs say where the paths stand that the build was to be installed to.
	Outputs Outputs
}

// Chunk is a piece of the contents: where it is stored, and its plain length in bytes.
type Chunk struct {
	chunk.Key
	Length int
}

// Entry is one artifact.
type Entry struct {
	// Path is relative to the source tree, with slashes; any bytes but NUL.
	Path string
	Kind Kind
	// Mode has the nine permission bits; they are 0 for Link and HardLink.
	Mode uint16
	// Size in bytes of a File, else 0.
	Size int64
	// MTime in nanoseconds since 1970, of a Link that of the link itself; 0 for HardLink.
	MTime int64
	// Target is where a Link leads to, as it stands in the link, or the path of the File that a HardLink is another
	// name of.
	Target string
}

// SumSize is the length of a source's hash, an MD5. It tells whether a file changed; it guards against nobody.
const SumSize = 16

// Source is a file, directory or link that artifacts were built from.
type Source struct {
	Path string
	Kind Kind // File, Dir or Link
	// Unknown says that the source changed while the build ran, so that nobody knows which bytes were built. It counts
	// as changed in every later comparison; Sum is then zero.
	Unknown bool
	// Sum is the MD5 of a File's bytes, of a Link's target, or of a Dir's sorted source names with a NUL after each.
	Sum [SumSize]byte
	// MTime is the time that the build tool saw, in nanoseconds since 1970.
	MTime int64
}

// Build says where an index comes from.
type Build struct {
	// Root is the absolute path of the source tree. Some tools write it into their artifacts.
	Root string
	// Host is the name of the machine, for people to read.
	Host string
	// Saved is the saver's clock at the save, in nanoseconds since 1970. Nothing is decided by it.
	Saved int64
	// Patterns are the --dir patterns of the save.
	Patterns []string
	// Failures counts the builds in a row that were restored from this name, had the same sources, and failed. It is 0
	// after a build that succeeded.
	Failures uint64
	// Version of nbc that saved.
	Version string
}

// SavedAt returns Saved as a time.
func (b Build) SavedAt() time.Time { return time.Unix(0, b.Saved) }

// Bytes returns the length of the contents.
func (x *Index) Bytes() int64 {
	var n int64
	for i := range x.Entries {
		n += x.Entries[i].Size
	}
	return n
}

// Newest returns the latest time of any artifact that has one, in nanoseconds since 1970, or 0.
func (x *Index) Newest() int64 {
	var t int64
	for i := range x.Entries {
		t = max(t, x.Entries[i].MTime)
	}
	return t
}

// Find returns the entry at path.
func (x *Index) Find(path string) (*Entry, bool) {
	i, ok := slices.BinarySearchFunc(x.Entries, path, func(e Entry, p string) int { return strings.Compare(e.Path, p) })
	if !ok {
		return nil, false
	}
	return &x.Entries[i], true
}
