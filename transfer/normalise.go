package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"nbc/index"
)

// This file is the saving half of what is done about output paths: they are found while files are read, and what is cut
// into chunks has placeholders instead, so that two builds that differ in nothing else have the same chunks. The other
// half, rewrite.go, puts the paths of the next build there.

// sortOutputs returns list as an index has it.
func sortOutputs(list []index.Output) ([]index.Output, error) {
	list = slices.SortedFunc(slices.Values(list), func(a, b index.Output) int { return strings.Compare(a.Name, b.Name) })
	if err := index.CheckOutputs(list); err != nil {
		return nil, fmt.Errorf("%w: output paths: %w", ErrUsage, err)
	}
	return list, nil
}

// noRewrite returns a function that says whether an artifact is left as it is: a pattern matches it, or a directory
// that it is in.
func (t Tree) noRewrite() (func(p string) bool, error) {
	patterns, err := index.CompilePatterns(t.NoRewrite)
	if err != nil {
		return nil, fmt.Errorf("%w: artifacts that are not rewritten: %w", ErrUsage, err)
	}
	if patterns.Empty() {
		return func(string) bool { return false }, nil
	}
	return func(p string) bool {
		for ; p != "." && p != "/"; p = path.Dir(p) {
			if patterns.MatchAnywhere(p) {
				return true
			}
		}
		return false
	}, nil
}

// finder finds output paths in bytes.
//
// It looks at two bytes at a time: those with which a hash would end if it began at the present place. They say how far
// away the next place is where one can begin, most of the time 31 bytes, for all outputs at once (Wu and Manber's
// variant of the Boyer-Moore search). So it costs a small part of what cutting and compressing cost.
type finder struct {
	hashes []string
	tails  []string // what follows the hash where the name is there as well
	shift  [1 << 16]uint8
}

func newFinder(outputs []index.Output) *finder {
	f := &finder{}
	const most = index.HashSize - 1
	for i := range f.shift {
		f.shift[i] = most
	}
	for _, o := range outputs {
		hash := o.Text(false)
		f.hashes, f.tails = append(f.hashes, hash), append(f.tails, o.Base()[index.HashSize:])
		for i := range most {
			pair := uint16(hash[i]) | uint16(hash[i+1])<<8
			f.shift[pair] = min(f.shift[pair], uint8(most-1-i))
		}
	}
	return f
}

// longest returns the length of the longest text that is searched for, in bytes.
func (f *finder) longest() int {
	n := 0
	for _, t := range f.tails {
		n = max(n, index.HashSize+len(t))
	}
	return n
}

// next returns the first place at or behind i, and before limit, at which an output path stands in b.
func (f *finder) next(b []byte, i, limit int) (c index.Occurrence, ok bool) {
	for limit = min(limit, len(b)-index.HashSize+1); i < limit; {
		end := b[i+index.HashSize-2 : i+index.HashSize]
		if s := f.shift[binary.LittleEndian.Uint16(end)]; s > 0 {
			i += int(s)
			continue
		}
		at := b[i : i+index.HashSize]
		for k, hash := range f.hashes {
			if string(at) == hash {
				rest := b[i+index.HashSize:]
				tail := f.tails[k]
				named := len(rest) >= len(tail) && string(rest[:len(tail)]) == tail
				return index.Occurrence{Offset: int64(i), Output: uint16(k), Named: named}, true
			}
		}
		i++
	}
	return c, false
}

// finding is what a save does about output paths. Nil does nothing.
type finding struct {
	*finder
	outputs      []index.Output
	placeholders []texts
	skip         func(p string) bool // --no-rewrite
	places       atomic.Int64        // found so far
}

// texts are the two forms of an output in a file, or of its placeholder: without and with the name.
type texts [2]string

func (t texts) of(c index.Occurrence) string {
	if c.Named {
		return t[1]
	}
	return t[0]
}

func placeholders(outputs []index.Output) []texts {
	list := make([]texts, len(outputs))
	for i, o := range outputs {
		list[i] = texts{o.Placeholder(false), o.Placeholder(true)}
	}
	return list
}

func newFinding(outputs []index.Output, skip func(p string) bool) *finding {
	if len(outputs) == 0 {
		return nil
	}
	return &finding{finder: newFinder(outputs), outputs: outputs, placeholders: placeholders(outputs), skip: skip}
}

// reader returns what is read of s: its files one after another, with placeholders where f finds something. What it
// finds, and does not look into, is noted in s. It works in the memory of normalBytes.
func (f *finding) reader(s *segment, r *contentReader, memory []byte) io.Reader {
	if f == nil {
		return r
	}
	return &normalReader{in: r, find: f, segment: s, memory: memory}
}

// memory makes what reader needs, to be used for one reader after another.
func (f *finding) memory() []byte {
	if f == nil {
		return nil
	}
	return make([]byte, normalBytes)
}

// normalise puts placeholders into a part of the contents that was read at offset, where places say that it was found
// to have output paths.
func (f *finding) normalise(part []byte, offset int64, places []index.Occurrence) error {
	if f == nil {
		return nil
	}
	return replace(part, offset, places,
		func(c index.Occurrence) string { return f.outputs[c.Output].Text(c.Named) },
		func(c index.Occurrence) string { return f.placeholders[c.Output].of(c) })
}

// normalBytes is how much a normalReader reads at a time: 256 KiB stay in a core's cache until the splitter has read
// them, and are long against the longest output path, whose length is searched twice at their ends.
const normalBytes = 256 << 10

// normalReader reads normalised bytes. A place is within one file: what two files have at their end and start together
// is none.
type normalReader struct {
	in      *contentReader
	find    *finding
	segment *segment
	memory  []byte

	file   *content // the one that is read
	asIs   bool     // it is not searched
	left   int64    // bytes of it that are not in buf yet
	buf    []byte   // in memory
	ready  int      // bytes of buf that have been searched
	offset int64    // of buf[0] in the contents
}

func (r *normalReader) Read(b []byte) (int, error) {
	for r.ready == 0 {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.buf[:r.ready])
	r.buf, r.ready, r.offset = r.buf[n:], r.ready-n, r.offset+int64(n)
	return n, nil
}

// fill reads on, and searches what it has read. Where a file goes on, what is less than the longest text from the end
// waits for the next time.
func (r *normalReader) fill() error {
	begins := r.left == 0
	if begins {
		if !r.next() {
			return io.EOF
		}
	}
	r.buf = r.memory[:copy(r.memory, r.buf)]
	for r.left > 0 && len(r.buf) < len(r.memory) {
		n, err := r.in.Read(r.memory[len(r.buf):])
		if err != nil {
			return err
		}
		r.buf, r.left = r.memory[:len(r.buf)+n], r.left-int64(n)
	}
	if begins && !r.asIs {
		switch sealed(r.buf) {
		case compressed:
			r.asIs = true
			r.segment.sealed = append(r.segment.sealed, r.file.entry.Path)
		case verified:
			r.asIs = true
		}
	}
	if r.asIs {
		r.ready = len(r.buf)
		return nil
	}
	return r.search()
}

// next begins the next file that has bytes.
func (r *normalReader) next() bool {
	for i := range r.in.files {
		if f := &r.in.files[i]; f.entry.Size > 0 {
			r.file, r.asIs = f, r.find.skip(f.entry.Path)
			r.left, r.offset, r.buf = f.entry.Size, f.offset, nil
			return true
		}
	}
	return false
}

// search puts placeholders into buf.
func (r *normalReader) search() error {
	limit := len(r.buf)
	if r.left > 0 {
		limit -= r.find.longest() - 1
	}
	r.ready = limit
	for i := 0; ; {
		c, ok := r.find.next(r.buf, i, limit)
		if !ok {
			return nil
		}
		i = int(c.Offset) + copy(r.buf[c.Offset:], r.find.placeholders[c.Output].of(c))
		r.ready = max(r.ready, i)
		c.Offset += r.offset
		r.segment.places = append(r.segment.places, c)
		if r.find.places.Add(1) > index.MaxOccurrences {
			return fmt.Errorf("output paths stand at more than %d places, now in %s: --no-rewrite leaves files as they are",
				index.MaxOccurrences, r.file.entry.Path)
		}
	}
}

// seal says why bytes of a file cannot be replaced by others.
type seal uint8

const (
	open seal = iota
	// compressed is a file in which an output path cannot be seen, or, where it can be, must not be replaced: readers
	// would find that a checksum does not fit.
	compressed
	// verified is a file whose reader compares what stands in it with what it was made from, by hashes of its own, and
	// makes it again: an old output path is no harm there, and a new one would look like damage.
	verified
)

// seals are the first bytes of such files. ELF files, archives of objects (ar), GHC's and OCaml's interfaces and Java
// classes hold no checksum of their own bytes that anybody looks at.
var seals = []struct {
	magic string
	seal  seal
}{
	{"PK\x03\x04", compressed}, // zip, jar, wheel: CRC-32 of each member
	{"PK\x05\x06", compressed},
	{"\x1f\x8b", compressed}, // gzip
	{"\xfd7zXZ\x00", compressed},
	{"\x28\xb5\x2f\xfd", compressed}, // zstd
	{"BZh", compressed},
	{"\x04\x22\x4d\x18", compressed},         // lz4
	{"7z\xbc\xaf\x27\x1c", compressed},       // 7-Zip
	{"hsqs", compressed},                     // SquashFS
	{"070702", compressed},                   // cpio with checksums
	{"\x89PNG", compressed},                  // CRC-32 of each block
	{"\x37\x7f\x06\x82", compressed},         // SQLite's log, checksums of each page: without them it is dropped
	{"\x37\x7f\x06\x83", compressed},         //
	{"\xca\xfe\xba\xbe\x00\x00", compressed}, // Mach-O for several machines, see machO
	{"RSIC", verified},                       // rustc's incremental compilation: its fingerprints of what it has read
}

// sealed looks at the first bytes of a file.
func sealed(b []byte) seal {
	for _, s := range seals {
		if len(b) >= len(s.magic) && string(b[:len(s.magic)]) == s.magic && !javaClass(b) {
			return s.seal
		}
	}
	const ustar = 257 // where a tar's header has its magic; the header has a checksum of the name in it
	if len(b) > ustar+5 && string(b[ustar:ustar+5]) == "ustar" || machO(b) {
		return compressed
	}
	return open
}

// javaClass tells a class from a Mach-O for several machines: after the magic, the one has a version from 45 on in its
// last two bytes, and the other the number of machines.
func javaClass(b []byte) bool {
	return len(b) >= 8 && string(b[:4]) == "\xca\xfe\xba\xbe" && binary.BigEndian.Uint16(b[6:]) >= 45
}

// machO says whether b begins a Mach-O program or library, which is signed page by page: the kernel of a Mac kills what
// does not fit. Objects are not signed.
func machO(b []byte) bool {
	if len(b) < 16 || string(b[:4]) != "\xcf\xfa\xed\xfe" {
		return false
	}
	switch binary.LittleEndian.Uint32(b[12:]) {
	case 2, 6, 8: // a program, a dynamic library, a bundle
		return true
	}
	return false
}

// placesIn returns those of x within length bytes from offset on, as they are in the contents. It is a part of x's own.
func placesIn(x *index.Index, offset, length int64) []index.Occurrence {
	at := func(o int64) int {
		i, _ := slices.BinarySearchFunc(x.Outputs.Occurrences, o, func(c index.Occurrence, o int64) int {
			switch {
			case c.Offset < o:
				return -1
			case c.Offset > o:
				return 1
			}
			return 0
		})
		return i
	}
	if len(x.Outputs.Occurrences) == 0 {
		return nil
	}
	return x.Outputs.Occurrences[at(offset):at(offset+length)]
}

// errPlaceholder says that bytes are not those that a place should have.
var errPlaceholder = errors.New("no placeholder")

// replace replaces was by now in part, a part of the contents that begins at offset, at those of places that it has
// anything of. It returns errPlaceholder if something else stands there.
func replace(part []byte, offset int64, places []index.Occurrence, was, now func(index.Occurrence) string) error {
	// A place that begins before the part is the last one that does.
	i, _ := slices.BinarySearchFunc(places, offset, func(c index.Occurrence, o int64) int {
		if c.Offset < o {
			return -1
		}
		return 1
	})
	for _, c := range places[max(0, i-1):] {
		from := c.Offset - offset
		if from >= int64(len(part)) {
			break
		}
		old, text := was(c), now(c)
		if from < 0 {
			cut := min(-from, int64(len(old)))
			old, text, from = old[cut:], text[cut:], 0
		}
		n := min(int64(len(old)), int64(len(part))-from)
		if string(part[from:from+n]) != old[:n] {
			return errPlaceholder
		}
		copy(part[from:], text[:n])
	}
	return nil
}
