package index

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strings"

	"github.com/zeebo/blake3"
)

// HashSize is the length of the hash in the name of a store path, in digits of Nix's base 32.
const HashSize = 32

// Limits of what an index says about output paths.
const (
	// MaxOutputs is far above what derivations have.
	MaxOutputs = 256
	// MaxOccurrences bounds the memory for them to 64 MiB.
	MaxOccurrences = 1 << 22
	// MaxStoreName is what Nix allows for the name behind the hash, and for that of an output.
	MaxStoreName = 211
)

// Output is an output of the Nix derivation that the build belongs to.
type Output struct {
	// Name is what the derivation calls it: "out", "dev".
	Name string
	// Path is where it goes: /nix/store/<hash>-<name>, in whatever store directory.
	Path string
}

// Outputs say where output paths stand in artifacts. Such a path is another one in every build that differs in
// anything, so that an artifact that holds it is right only once the new one is put there.
type Outputs struct {
	// List are the outputs of the build that was saved, sorted by name. If there is none, the artifacts were not searched,
	// and the other fields are empty.
	List []Output
	// NoRewrite are the patterns of artifacts that were not searched, as they were given.
	NoRewrite []string
	// Occurrences are the places in the contents, sorted, none overlapping another, each within one file.
	Occurrences []Occurrence
}

// Occurrence is a place in the contents where an output path stands in the file, and its placeholder in the contents.
type Occurrence struct {
	Offset int64  // in the contents, of the first digit of the hash
	Output uint16 // place in Outputs.List
	// Named says that it is the hash, a "-" and the name behind it. Otherwise it is the hash alone.
	Named bool
}

// ParseOutput reads what Nix calls an output and where it goes, as "out=/nix/store/<hash>-<name>".
func ParseOutput(s string) (Output, error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		return Output{}, fmt.Errorf("%q is not of the form NAME=PATH", s)
	}
	o := Output{name, path}
	return o, o.check()
}

// Base returns the last component of the path: hash, "-", name.
func (o Output) Base() string { return o.Path[strings.LastIndexByte(o.Path, '/')+1:] }

// Dir returns the store directory.
func (o Output) Dir() string { return strings.TrimSuffix(o.Path, "/"+o.Base()) }

// Text returns what stands in a file where the output is meant: the hash, or the hash, a "-" and the name.
func (o Output) Text(named bool) string {
	if named {
		return o.Base()
	}
	return o.Base()[:HashSize]
}

// Placeholder returns what stands in the contents instead of Text. It depends on the name of the output and on the
// length alone, so that builds whose output paths differ have the same contents.
func (o Output) Placeholder(named bool) string {
	sum := blake3.Sum256([]byte("nbc output " + o.Name))
	digits := hex.EncodeToString(sum[:])
	p := digits[:HashSize]
	if named {
		p += "-" + strings.Repeat(digits[HashSize:], MaxStoreName/HashSize+1)[:len(o.Base())-HashSize-1]
	}
	return p
}

// check says why o is not an output.
func (o Output) check() error {
	if !storeName(o.Name) {
		return fmt.Errorf("%s is not the name of an output", quote(o.Name))
	}
	base := o.Base()
	switch {
	case len(o.Path) > MaxTarget:
		return fmt.Errorf("a store path of %d bytes", len(o.Path))
	case len(base) < HashSize+2 || base[HashSize] != '-' || strings.Trim(base[:HashSize], base32) != "" ||
		!storeName(base[HashSize+1:]):
		return fmt.Errorf("%s is not a store path: its last part is not a hash of %d digits, \"-\" and a name",
			quote(o.Path), HashSize)
	}
	dir := o.Dir()
	if dir == "" || dir[0] != '/' || checkPath(dir[1:]) != nil {
		return fmt.Errorf("%s is not a store path: it is not in an absolute directory", quote(o.Path))
	}
	return nil
}

// base32 has Nix's digits.
const base32 = "0123456789abcdfghijklmnpqrsvwxyz"

// storeName says whether Nix accepts s as a name.
func storeName(s string) bool {
	return s != "" && len(s) <= MaxStoreName && strings.IndexFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("+-._?=", c)
	}) < 0
}

// CheckOutputs says why list is not a list of outputs as [Outputs] has it.
func CheckOutputs(list []Output) error {
	if len(list) > MaxOutputs {
		return fmt.Errorf("%d outputs, %d are allowed", len(list), MaxOutputs)
	}
	hashes := make(map[string]string, len(list))
	for i, o := range list {
		if err := o.check(); err != nil {
			return err
		}
		if i > 0 && o.Name <= list[i-1].Name {
			return fmt.Errorf("output %s is there twice, or not sorted", quote(o.Name))
		}
		if other, ok := hashes[o.Text(false)]; ok {
			return fmt.Errorf("outputs %s and %s have the same hash", quote(other), quote(o.Name))
		}
		hashes[o.Text(false)] = o.Name
	}
	return nil
}

// Length of an occurrence, in bytes.
func (o *Outputs) Length(c Occurrence) int64 {
	if c.Named {
		return int64(len(o.List[c.Output].Base()))
	}
	return HashSize
}

// check looks at all of o. There are n entries; of each, size tells the size.
func (o *Outputs) check(n int, size func(i int) int64) error {
	if err := CheckOutputs(o.List); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(o.List) == 0 && (len(o.NoRewrite) > 0 || len(o.Occurrences) > 0) {
		return fmt.Errorf("%w: places of output paths, and no outputs", ErrInvalid)
	}
	if len(o.NoRewrite) > MaxPatterns {
		return fmt.Errorf("%w: %d patterns, %d are allowed", ErrInvalid, len(o.NoRewrite), MaxPatterns)
	}
	for _, p := range o.NoRewrite {
		if p == "" || len(p) > MaxPath {
			return fmt.Errorf("%w: pattern %s", ErrInvalid, quote(p))
		}
	}
	if len(o.Occurrences) > MaxOccurrences {
		return fmt.Errorf("%w: output paths at %d places, %d are allowed", ErrInvalid, len(o.Occurrences), MaxOccurrences)
	}
	var end, fileEnd int64 // of the occurrence before, and of the files up to the present one
	next := 0
	for _, c := range o.Occurrences {
		if int(c.Output) >= len(o.List) {
			return fmt.Errorf("%w: the path of output %d, there are %d", ErrInvalid, c.Output, len(o.List))
		}
		if c.Offset < end {
			return fmt.Errorf("%w: the output path at %d overlaps the one before it", ErrInvalid, c.Offset)
		}
		for c.Offset >= fileEnd && next < n {
			fileEnd += size(next)
			next++
		}
		length := o.Length(c)
		if c.Offset > math.MaxInt64-length || c.Offset+length > fileEnd {
			return fmt.Errorf("%w: the output path at %d is not within a file", ErrInvalid, c.Offset)
		}
		end = c.Offset + length
	}
	return nil
}

type outputSection struct {
	_         struct{} `cbor:",toarray"`
	Names     [][]byte
	Paths     [][]byte
	NoRewrite [][]byte
	Uses      []byte // varints: output * 2, and 1 more if it is named
	Gaps      []byte // varints: bytes between the end of the occurrence before, or the start of the contents, and this one
}

func (o *Outputs) section() *outputSection {
	s := &outputSection{NoRewrite: byteStrings(o.NoRewrite)}
	for _, out := range o.List {
		s.Names, s.Paths = append(s.Names, []byte(out.Name)), append(s.Paths, []byte(out.Path))
	}
	var end int64
	for _, c := range o.Occurrences {
		use := uint64(c.Output) << 1
		if c.Named {
			use |= 1
		}
		s.Uses = binary.AppendUvarint(s.Uses, use)
		s.Gaps = binary.AppendUvarint(s.Gaps, uint64(c.Offset-end))
		end = c.Offset + o.Length(c)
	}
	return s
}

// outputs is the inverse of section. What it returns is still to be checked.
func (s *outputSection) outputs() (o Outputs, err error) {
	if len(s.Names) == 0 || len(s.Names) != len(s.Paths) {
		return o, fmt.Errorf("%w: %d outputs with %d paths", ErrInvalid, len(s.Names), len(s.Paths))
	}
	o.NoRewrite = texts(s.NoRewrite)
	names, paths := texts(s.Names), texts(s.Paths)
	o.List = make([]Output, len(names))
	for i := range names {
		o.List[i] = Output{names[i], paths[i]}
	}
	if err := CheckOutputs(o.List); err != nil { // their lengths are added up
		return o, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	n := 0
	for _, b := range s.Uses {
		if b < 0x80 {
			n++
		}
	}
	if n > MaxOccurrences || n > len(s.Gaps) {
		return o, fmt.Errorf("%w: output paths at %d places", ErrInvalid, n)
	}
	o.Occurrences = makeList[Occurrence](n)
	uses, gaps := column{b: s.Uses}, column{b: s.Gaps}
	var end int64
	for i := range o.Occurrences {
		use, gap := uses.next(), gaps.next()
		if use>>1 >= uint64(len(o.List)) {
			return o, fmt.Errorf("%w: the path of output %d, there are %d", ErrInvalid, use>>1, len(o.List))
		}
		if gap > uint64(math.MaxInt64-end) {
			return o, fmt.Errorf("%w: an output path %d bytes behind %d", ErrInvalid, gap, end)
		}
		c := Occurrence{Offset: end + int64(gap), Output: uint16(use >> 1), Named: use&1 != 0}
		o.Occurrences[i] = c
		length := o.Length(c)
		if c.Offset > math.MaxInt64-length {
			return o, fmt.Errorf("%w: the output path at %d is not within a file", ErrInvalid, c.Offset)
		}
		end = c.Offset + length
	}
	if !uses.done() || !gaps.done() {
		return o, fmt.Errorf("%w: the columns of the output paths do not fit together", ErrInvalid)
	}
	return o, nil
}
