package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"

	"nbc/chunk"
)

// rejected is one way to break one rule of FORMAT.md, by its number.
type rejected struct {
	rule string
	name string
	edit func(c *crafted)
	// err is ErrInvalid, unless set.
	err error
	// text is part of the message, so that it is this rule that the case breaks.
	text string
}

// raw is a case that changes the bytes of a good index.
func raw(rule, name, text string, err error, edit func(b []byte) []byte) rejected {
	return rejected{rule: rule, name: name, text: text, err: err, edit: func(c *crafted) { c.edited = edit }}
}

// columnCases change the column that at points to.
func columnCases(rule, text string, at func(c *crafted) *[]byte, edits map[string]func(b []byte) []byte) []rejected {
	var cases []rejected
	for name, edit := range edits {
		cases = append(cases, rejected{rule: rule, name: name, text: text, edit: func(c *crafted) {
			b := at(c)
			*b = edit(bytes.Clone(*b))
		}})
	}
	return cases
}

// tree is a case of an index that Encode would refuse as well, written past it.
func tree(rule, name, text string, edit func(x *Index)) rejected {
	return rejected{rule: rule, name: name, text: text, edit: func(c *crafted) {
		x := sample()
		edit(x)
		*c = *craft(x)
	}}
}

func cases() []rejected {
	var list []rejected
	add := func(cs ...rejected) { list = append(list, cs...) }

	// The header.
	add(
		raw("H1", "empty", "begin like one", nil, func(b []byte) []byte { return nil }),
		raw("H1", "19 bytes", "begin like one", nil, func(b []byte) []byte { return b[:19] }),
		raw("H1", "other magic", "begin like one", nil, func(b []byte) []byte { b[7] = 'X'; return b }),
		raw("H2", "version 0", "version 0", nil, func(b []byte) []byte { b[8] = 0; return b }),
		raw("H2", "version 2", "version 2", ErrVersion, func(b []byte) []byte { b[8] = 2; return b[:startSize] }),
		raw("H2", "version 256", "version 256", ErrVersion, func(b []byte) []byte { b[8], b[9] = 0, 1; return b }),
		raw("H3", "3 rows", "3 sections", nil, func(b []byte) []byte { b[10] = 3; return b }),
		raw("H3", "65 rows", "65 sections", nil, func(b []byte) []byte { b[10] = 65; return b }),
		raw("H4", "no check", "of a header of", nil, func(b []byte) []byte { return b[:startSize+4*rowSize] }),
		raw("H4", "more rows than bytes", "of a header of", nil, func(b []byte) []byte { b[10] = 64; return b }),
		raw("H5", "other check", "header is damaged", nil,
			func(b []byte) []byte { b[startSize+4*rowSize] ^= 1; return b }),
		raw("H5", "other epoch", "header is damaged", nil, func(b []byte) []byte { b[12] ^= 1; return b }),
	)
	inRow := func(rule, name, text string, err error, i int, edit func(r *row)) {
		add(rejected{rule: rule, name: name, text: text, err: err, edit: func(c *crafted) {
			c.extra = append(c.extra, noRow(100), noRow(101))
			c.edit = func(h *header) { edit(&h.rows[i]) }
		}})
	}
	inRow("H6", "kind 0", "kind 0 in place", nil, 0, func(r *row) { r.kind = 0 })
	inRow("H6", "no build", "kind 5 in place 4", nil, 3, func(r *row) { r.kind = 5 })
	inRow("H6", "kind 4 twice", "kind 4 in place 5", nil, 4, func(r *row) { r.kind = 4 })
	inRow("H6", "unknown kind twice", "kind 100 in place 6", nil, 5, func(r *row) { r.kind = 100 })
	inRow("H6", "not sorted", "kind 99 in place 6", nil, 5, func(r *row) { r.kind = 99 })
	inRow("H7", "flag 4", "flags 0x7", ErrVersion, 0, func(r *row) { r.flags |= 4 })
	inRow("H7", "flag 128 of an unknown kind", "flags 0x80", ErrVersion, 4, func(r *row) { r.flags = 128 })
	inRow("H8", "chunk keys not needed", "flags 0x2", nil, 0, func(r *row) { r.flags = 2 })
	inRow("H8", "entries refer", "flags 0x3", nil, 1, func(r *row) { r.flags = 3 })
	inRow("H9", "encoding 2", "encoding 2", ErrVersion, 1, func(r *row) { r.encoding = 2 })
	inRow("H10", "two lengths", "are stored as", nil, 1, func(r *row) { r.plain++ })
	inRow("H11", "2^28 + 1 bytes", "plain bytes, 268435456 are allowed", nil, 1,
		func(r *row) { r.encoding, r.plain = zstdOne, MaxSection+1 })
	inRow("H11", "2^64 - 1 bytes", "plain bytes, 268435456 are allowed", nil, 1,
		func(r *row) { r.encoding, r.plain = zstdOne, math.MaxUint64 })
	inRow("H11", "ratio", "stored ones", nil, 1,
		func(r *row) { r.encoding, r.plain = zstdOne, 1<<20+MaxRatio*r.stored+1 })
	inRow("H12", "a section of 2^28 bytes", "more than 268435456 bytes", nil, 4, func(r *row) { r.stored = MaxSize })
	inRow("H12", "a section of 2^64 - 1 bytes", "more than 268435456 bytes", nil, 4,
		func(r *row) { r.stored = math.MaxUint64 })
	add(rejected{rule: "H14", name: "2^29 + 1 plain bytes", text: "plain bytes, 536870912 are allowed", edit: func(c *crafted) {
		c.edit = func(h *header) {
			for i, plain := range []uint64{MaxSection, MaxSection - 1000, 1, 1000} {
				h.rows[i].encoding, h.rows[i].plain, h.rows[i].stored = zstdOne, plain, MaxSection/MaxRatio
			}
		}
	}})
	inRow("H13", "a needed section", "section of kind 100", ErrVersion, 4, func(r *row) { r.flags = flagNeeded })

	// The sections.
	add(
		raw("S1", "cut off", "cut off in the section of kind 4", nil, func(b []byte) []byte { return b[:len(b)-1] }),
		raw("S1", "one byte more", "1 bytes after its end", nil, func(b []byte) []byte { return append(b, 0) }),
		raw("S2", "last byte", "section of kind 4 is damaged", nil, func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
	)
	frame := func(name, text string, edit func(plain, frame []byte) []byte) {
		add(rejected{rule: "S3", name: name, text: text, edit: func(c *crafted) {
			c.frame[1] = func(plain []byte) []byte { return edit(plain, encoder().EncodeAll(plain, nil)) }
		}})
	}
	frame("not zstd", "magic", func(plain, frame []byte) []byte { return plain })
	frame("nothing", "unexpected EOF", func(plain, frame []byte) []byte { return nil })
	frame("cut off", "cut off", func(plain, frame []byte) []byte { return frame[:len(frame)-1] })
	frame("bytes after it", "after a zstd frame", func(plain, frame []byte) []byte { return append(frame, 0) })
	frame("two frames", "after a zstd frame", func(plain, frame []byte) []byte {
		return append(encoder().EncodeAll(plain[:40], nil), encoder().EncodeAll(plain[40:], nil)...)
	})
	frame("a skippable frame", "skippable", func(plain, frame []byte) []byte {
		return append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, frame...)
	})
	frame("no content size", "without its size", func(plain, frame []byte) []byte {
		head := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0} // a window of 1 KiB, and one raw block
		return append(binary.LittleEndian.AppendUint32(head, uint32(len(plain)<<3|1))[:9], plain...)
	})
	frame("another content size", "instead of", func(plain, frame []byte) []byte {
		return encoder().EncodeAll(append(plain, 0), nil)
	})
	frame("less content than claimed", "section of kind 2", func(plain, frame []byte) []byte {
		head := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 0} // a content size of 2 bytes, less 256
		binary.LittleEndian.PutUint16(head[5:], uint16(len(plain)-256))
		return append(binary.LittleEndian.AppendUint32(head, 10<<3|1)[:10], plain[:10]...)
	})
	cbor := func(name, text string, i int, plain string) {
		add(rejected{rule: "S4", name: name, text: text, edit: func(c *crafted) { c.plain[i] = []byte(plain) }})
	}
	cbor("nothing", "cut off", 0, "")
	cbor("a map", "major type 5", 0, "\xa0")
	cbor("two columns", "2 columns in place of 3", 0, "\x82\x40\x40")
	cbor("four columns", "4 columns in place of 3", 0, "\x84\x40\x40\x40\x40")
	cbor("a byte after it", "1 bytes after its end", 0, "\x83\x40\x40\x40\x00")
	cbor("a column that is a number", "major type 0", 0, "\x83\x40\x40\x05")
	cbor("a column that is text", "section of kind 1", 0, "\x83\x40\x40\x60")
	cbor("a column that is an array", "major type 4", 0, "\x83\x40\x40\x80")
	cbor("null", "major type 7", 0, "\xf6")
	cbor("a column that is null", "major type 7", 0, "\x83\x40\x40\xf6")
	cbor("a longer length", "deterministic", 0, "\x83\x40\x40\x58\x00")
	cbor("a string without an end", "begins nothing that has a length", 0, "\x83\x40\x40\x5f\x40\xff")
	cbor("an array without an end", "begins nothing that has a length", 0, "\x9f\x40\x40\x40\xff")
	cbor("a tag", "major type 6", 0, "\xc6\x83\x40\x40\x40")
	cbor("a time that is a float", "section of kind 4", 3, "\x87\x40\x40\xf9\x00\x00\x80\x00\x40\x80")
	cbor("negative failures", "section of kind 4", 3, "\x87\x40\x40\x00\x80\x20\x40\x80")
	cbor("a time of 65 bits", "section of kind 4", 3, "\x87\x40\x40\x1b\x80\x00\x00\x00\x00\x00\x00\x00\x80\x00\x40\x80")

	varints := map[string]func(c *crafted) *[]byte{
		"lengths":           func(c *crafted) *[]byte { return &c.chunks.Lengths },
		"ages":              func(c *crafted) *[]byte { return &c.chunks.Ages },
		"shared":            func(c *crafted) *[]byte { return &c.entries.Shared },
		"kinds":             func(c *crafted) *[]byte { return &c.entries.Kinds },
		"sizes":             func(c *crafted) *[]byte { return &c.entries.Sizes },
		"names":             func(c *crafted) *[]byte { return &c.entries.Names },
		"shared of sources": func(c *crafted) *[]byte { return &c.sources.Shared },
	}
	for name, at := range varints {
		add(columnCases("S5", "", at, map[string]func(b []byte) []byte{
			name + " cut off":             func(b []byte) []byte { b[len(b)-1] |= 0x80; return b },
			name + " with an empty group": func(b []byte) []byte { b[len(b)-1] |= 0x80; return append(b, 0) },
			name + " of 65 bits":          func(b []byte) []byte { return append(bytes.Repeat([]byte{0xff}, 9), 2) },
		})...)
		add(columnCases("S6", "", at, map[string]func(b []byte) []byte{
			name + " empty": func(b []byte) []byte { return nil },
			name + " short": func(b []byte) []byte { return b[:len(b)-1] },
			name + " long":  func(b []byte) []byte { return append(b, 1) },
		})...)
	}
	for name, at := range map[string]func(c *crafted) *[]byte{
		"ids":              func(c *crafted) *[]byte { return &c.chunks.IDs },
		"text":             func(c *crafted) *[]byte { return &c.entries.Text },
		"times":            func(c *crafted) *[]byte { return &c.entries.Times },
		"targets":          func(c *crafted) *[]byte { return &c.entries.Targets },
		"text of sources":  func(c *crafted) *[]byte { return &c.sources.Text },
		"kinds of sources": func(c *crafted) *[]byte { return &c.sources.Kinds },
		"times of sources": func(c *crafted) *[]byte { return &c.sources.Times },
		"sums":             func(c *crafted) *[]byte { return &c.sources.Sums },
	} {
		add(columnCases("S6", "", at, map[string]func(b []byte) []byte{
			name + " empty":         func(b []byte) []byte { return nil },
			name + " short by one":  func(b []byte) []byte { return b[:len(b)-1] },
			name + " short by 16":   func(b []byte) []byte { return b[:max(0, len(b)-16)] },
			name + " short by 32":   func(b []byte) []byte { return b[:max(0, len(b)-32)] },
			name + " long by one":   func(b []byte) []byte { return append(b, 'x') },
			name + " long by a NUL": func(b []byte) []byte { return append(b, 0) },
			name + " long by 16":    func(b []byte) []byte { return append(b, make([]byte, 16)...) },
			name + " long by 32":    func(b []byte) []byte { return append(b, make([]byte, 32)...) },
		})...)
	}

	// Chunk keys.
	add(
		rejected{rule: "C1", name: "2^22 + 1 chunks", text: "IDs of", edit: func(c *crafted) {
			c.chunks = chunkSection{
				IDs: make([]byte, 32*(MaxChunks+1)), Lengths: make([]byte, MaxChunks+1), Ages: make([]byte, MaxChunks+1),
			}
		}},
		tree("C1", "a length of 0", "length of 0", func(x *Index) { x.Chunks[0].Length = 0 }),
		tree("C1", "a length of 8 MiB + 1", "8388609", func(x *Index) {
			x.Chunks[0].Length = chunk.MaxSize + 1
			x.Entries[2].Size = chunk.MaxSize + 1
		}),
		tree("C1", "a negative length", "the length", func(x *Index) { x.Chunks[0].Length = math.MinInt }),
		rejected{rule: "C2", name: "an age of 6 at epoch 5", text: "age 6", edit: func(c *crafted) { c.chunks.Ages[0] = 6 }},
	)

	// Paths, in entries and in sources.
	for _, bad := range []struct{ rule, name, path, text string }{
		{"P1", "path of 64 KiB + 1", strings.Repeat("a/", MaxPath/2) + "a", "longer than 65536"},
		{"P2", "starts with /", "/zz", `component ""`},
		{"P2", "ends with /", "zz/", `component ""`},
		{"P2", "//", "zz//a", `component ""`},
		{"P2", "./a", "./a", `component "."`},
		{"P2", "a/.", "zz/.", `component "."`},
		{"P2", "..", "..", `component ".."`},
		{"P2", "../a", "../a", `component ".."`},
		{"P2", "a/../b", "zz/../b", `component ".."`},
		{"P2", "component of 256 bytes", "zz/" + strings.Repeat("c", 256), "longer than 255"},
		{"P3", "work first", ".nbc-work", "nbc's own"},
		{"P3", "probe last", "zz/.nbc-probe-0123456789abcdef", "nbc's own"},
		{"P3", "work inside", "zz/.nbc-work/a", "nbc's own"},
	} {
		add(
			tree(bad.rule, bad.name+", entry", bad.text, func(x *Index) {
				e := x.Entries[len(x.Entries)-1]
				e.Path = bad.path
				x.Roots, x.Entries, x.Chunks = []string{e.Path}, []Entry{e}, nil
			}),
			tree(bad.rule, bad.name+", source", bad.text, func(x *Index) {
				x.Sources = []Source{{Path: ".", Kind: Dir}, {Path: bad.path, Kind: File}}
				if bad.path < "." {
					x.Sources[0], x.Sources[1] = x.Sources[1], x.Sources[0]
				}
			}),
		)
	}
	add(
		tree("P2", "entry .", `component "."`, func(x *Index) {
			*x = Index{Roots: []string{"."}, Entries: []Entry{{Path: ".", Kind: Dir}}}
		}),
		rejected{rule: "P1", name: "2^21 + 1 entries", text: "2097153, 2097152 are allowed", edit: func(c *crafted) {
			c.entries.Text = make([]byte, MaxEntries+1)
		}},
		rejected{rule: "P1", name: "2^21 + 1 sources", text: "2097153, 2097152 are allowed", edit: func(c *crafted) {
			c.sources.Text = make([]byte, MaxSources+1)
		}},
		rejected{rule: "P1", name: "paths of 2^28 bytes", text: "paths of", edit: func(c *crafted) {
			c.sources.Text, c.sources.Shared = nil, nil
			for range MaxPathBytes/MaxPath + 1 {
				c.sources.Text = append(c.sources.Text, "b\x00"...)
				c.sources.Shared = binary.AppendUvarint(c.sources.Shared, MaxPath)
			}
		}},
		rejected{rule: "P1", name: "shares more than any path has", text: "shares 65537 bytes", edit: func(c *crafted) {
			c.sources.Shared = binary.AppendUvarint(nil, MaxPath+1)
			c.sources.Text = []byte("a\x00")
		}},
		rejected{
			rule: "P4", name: "shares more than there is", text: "shares 1 bytes of 0",
			edit: func(c *crafted) { c.entries.Shared[0] = 1 },
		},
		rejected{rule: "P4", name: "shares more than it says", text: "not sorted", edit: func(c *crafted) {
			c.entries.Text = bytes.Replace(c.entries.Text, []byte("\x00-b\x00"), []byte("\x00a-b\x00"), 1)
			c.entries.Shared[2]--
		}},
		rejected{rule: "P4", name: "the same path twice", text: "not sorted", edit: func(c *crafted) {
			c.sources.Text = []byte("-x\x00.\x00\x00app\x00")
			c.sources.Shared = []byte{0, 0, 1, 0}
		}},
		tree("P4", "entries not sorted", "not sorted", func(x *Index) {
			x.Entries[1].Path, x.Entries[3].Path = x.Entries[3].Path, x.Entries[1].Path
		}),
		tree("P4", "a path before its own beginning", "not sorted", func(x *Index) {
			x.Sources[2].Path, x.Sources[3].Path = x.Sources[3].Path, x.Sources[2].Path
		}),
	)

	// Entries.
	file, dir, link, hard := 3, 0, 5, 4
	add(
		rejected{rule: "E1", name: "mode 01000", text: "kind and mode", edit: func(c *crafted) {
			kinds := binary.AppendUvarint(nil, 0o1755<<2|uint64(Dir-1))
			c.entries.Kinds = append(kinds, c.entries.Kinds[2:]...)
		}},
		tree("E1", "mode of a link", "the mode 644", func(x *Index) { x.Entries[link].Mode = 0o644 }),
		tree("E1", "mode of a hard link", "the mode 644", func(x *Index) { x.Entries[hard].Mode = 0o644 }),
		tree("E2", "size 2^63", "size 9223372036854775808", func(x *Index) { x.Entries[file].Size = math.MinInt64 }),
		tree("E2", "sizes above 2^63 - 1", "files of more than", func(x *Index) { x.Entries[file].Size = math.MaxInt64 }),
		tree("E2", "chunks are short", "files have 1030 bytes, chunks 1029", func(x *Index) { x.Chunks[1].Length-- }),
		tree("E2", "no chunks", "files have 1030 bytes, chunks 0", func(x *Index) { x.Chunks = nil }),
		tree("E2", "chunks of no file", "files have 0 bytes, chunks 1030", func(x *Index) { x.Entries, x.Roots = nil, nil }),
		tree("E3", "link to nothing", `a link to ""`, func(x *Index) { x.Entries[link].Target = "" }),
		tree("E3", "link of 4096 bytes", "bytes more", func(x *Index) { x.Entries[link].Target = strings.Repeat("t", 4096) }),
		rejected{
			rule: "E4", name: "hard link to itself", text: "to no file",
			edit: func(c *crafted) { c.entries.Names[0] = 0 },
		},
		rejected{
			rule: "E4", name: "hard link to a directory", text: "to no file",
			edit: func(c *crafted) { c.entries.Names[0] = byte(hard - dir) },
		},
		rejected{
			rule: "E4", name: "hard link to before the first", text: "to no file",
			edit: func(c *crafted) { c.entries.Names[0] = byte(hard + 1) },
		},
		tree("E5", "roots not sorted", "not sorted", func(x *Index) { x.Roots = []string{"report", "app/dist"} }),
		tree("E5", "a root twice", "not sorted", func(x *Index) { x.Roots = []string{"app/dist", "app/dist", "report"} }),
		tree("E5", "a root in a root", "inside root", func(x *Index) {
			x.Roots = []string{"app/dist", "app/dist/a", "report"}
		}),
		tree("E5", "a root in a root, not its neighbour", "inside root", func(x *Index) {
			x.Roots = []string{"app/dist", "app/dist-2", "app/dist/a", "report"}
		}),
		tree("E5", "a root that is no entry", "not an entry", func(x *Index) {
			x.Roots = []string{"app/dist", "other", "report"}
		}),
		tree("E5", "a last root that is no entry", "not an entry", func(x *Index) { x.Roots = append(x.Roots, "zz") }),
		tree("E5", "a root that is a link", "is a link", func(x *Index) {
			x.Entries = append(x.Entries, Entry{Path: "zz", Kind: Link, Target: "/"})
			x.Roots = append(x.Roots, "zz")
		}),
		tree("E5", "a root with a bad path", `component ".."`, func(x *Index) { x.Roots[0] = "../x" }),
		rejected{rule: "E5", name: "2^21 + 1 roots", text: "array of 2097153", edit: func(c *crafted) {
			c.build.Roots = make([][]byte, MaxRoots+1)
		}},
		tree("E6", "no parent at the top", "neither a root", func(x *Index) { x.Roots = x.Roots[:1] }),
		tree("E6", "no parent", "neither a root", func(x *Index) { x.Entries[3].Path = "app/dist/a/b/main.o" }),
		tree("E6", "the parent is a file", "neither a root", func(x *Index) { x.Entries[3].Path = "app/dist/a-b/c" }),
		tree("E6", "the parent is a link", "neither a root", func(x *Index) {
			x.Entries = append(x.Entries[:6:6], Entry{Path: "app/dist/link/a", Kind: Dir}, x.Entries[6])
		}),
		tree("E6", "an earlier directory is as long as the parent", "neither a root", func(x *Index) {
			x.Entries[5].Path = "app/dist/b/link"
		}),
		tree("E6", "the parent has another name", "neither a root", func(x *Index) { x.Entries[3].Path = "app/dist/a.b/c" }),
	)

	// Sources and build.
	for _, kind := range []byte{0, 4, 8, 9, 255} {
		add(rejected{rule: "B1", name: fmt.Sprint("kind ", kind), text: "source", edit: func(c *crafted) {
			if c.sources.Kinds[0] = kind; kind > unknown {
				c.sources.Sums = c.sources.Sums[SumSize:]
			}
		}})
	}
	add(
		tree("B2", "no .", `sources without "."`, func(x *Index) { x.Sources = x.Sources[2:] }),
		tree("B2", ". is a file", "the source tree is a file", func(x *Index) { x.Sources[1].Kind = File }),
		tree("B3", "relative root", "build root", func(x *Index) { x.Build.Root = "build" }),
		tree("B3", "root with a NUL", "build root", func(x *Index) { x.Build.Root = "/b\x00" }),
		tree("B4", "long root", "build root", func(x *Index) { x.Build.Root = "/" + strings.Repeat("r", MaxPath) }),
		tree("B4", "long host", "build host", func(x *Index) { x.Build.Host = strings.Repeat("h", MaxText+1) }),
		tree("B4", "long version", "build version", func(x *Index) { x.Build.Version = strings.Repeat("v", MaxText+1) }),
		tree("B4", "long pattern", "pattern", func(x *Index) { x.Build.Patterns = []string{strings.Repeat("p", MaxPath+1)} }),
		tree("B4", "empty pattern", "pattern", func(x *Index) { x.Build.Patterns = []string{""} }),
		tree("B4", "2^12 + 1 patterns", "array of 4097", func(x *Index) {
			x.Build.Patterns = strings.Split(strings.Repeat("p", MaxPatterns+1), "")
		}),
	)

	// Output paths.
	inOutputs := func(rule, name, text string, err error, edit func(r *row)) {
		add(rejected{rule: rule, name: name, text: text, err: err, edit: func(c *crafted) {
			*c = *craft(withOutputs())
			c.edit = func(h *header) { edit(&h.rows[kindOutputs-1]) }
		}})
	}
	inOutputs("H8", "output paths that refer", "flags 0x3", nil, func(r *row) { r.flags = 3 })
	inOutputs("H8", "output paths that are not needed", "flags 0x0", nil, func(r *row) { r.flags = 0 })
	inOutputs("H9", "encoding 2 of output paths", "encoding 2", ErrVersion, func(r *row) { r.encoding = 2 })
	inOutputs("H10", "two lengths of output paths", "are stored as", nil, func(r *row) { r.plain++ })
	inOutputs("H11", "output paths of 2^28 + 1 bytes", "plain bytes, 268435456 are allowed", nil,
		func(r *row) { r.encoding, r.plain = zstdOne, MaxSection+1 })
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	const hash = "zs2b3c4d5f6g7h8i9j0k1l2m3n4p5q6r"
	add(
		outputColumns("S5", "uses cut off", "fit together", func(s *outputSection) { s.Uses = append(s.Uses, 0x80) }),
		outputColumns("S5", "a use with an empty group", "fit together",
			func(s *outputSection) { s.Uses = append(cut(s.Uses), 0x82, 0) }),
		outputColumns("S5", "a gap of 65 bits", "fit together", func(s *outputSection) {
			s.Uses, s.Gaps = []byte{0}, append(bytes.Repeat([]byte{0xff}, 9), 2)
		}),
		outputColumns("S6", "a use more", "4 places", func(s *outputSection) {
			s.Uses, s.Gaps = append(s.Uses[:3:3], 0), s.Gaps[:3]
		}),
		outputColumns("S6", "a gap more", "fit together", func(s *outputSection) { s.Gaps = append(s.Gaps, 0) }),
		outputColumns("S6", "a gap less", "fit together", func(s *outputSection) { s.Uses = append(s.Uses, 1) }),

		outputColumns("O1", "none", "0 outputs", func(s *outputSection) { *s = outputSection{} }),
		outputColumns("O1", "a path less", "2 outputs with 1 paths", func(s *outputSection) { s.Paths = s.Paths[:1] }),
		outputColumns("O1", "257 outputs", "array of 257", func(s *outputSection) {
			for i := range MaxOutputs - 1 {
				s.Names = append(s.Names, fmt.Appendf(nil, "x%03d", i))
				s.Paths = append(s.Paths, fmt.Appendf(nil, "/nix/store/%032d-x", i))
			}
		}),
		outputColumns("O1", "257 paths", "array of 257", func(s *outputSection) { s.Paths = make([][]byte, MaxOutputs+1) }),
		outputs("O1", "an output twice", "twice", func(o *Outputs) { o.List[1].Name = "dev" }),
		outputs("O1", "not sorted", "not sorted", func(o *Outputs) { o.List[0].Name = "x" }),
		outputs("O1", "the same hash", "the same hash",
			func(o *Outputs) { o.List[0].Path = "/gnu/store/" + hash + "-x" }),
		outputs("O2", "no name", "not the name of an output", func(o *Outputs) { o.List[0].Name = "" }),
		outputs("O2", "a long name", "not the name",
			func(o *Outputs) { o.List[0].Name = strings.Repeat("a", MaxStoreName+1) }),
		outputs("O2", "a name with a slash", "not the name", func(o *Outputs) { o.List[0].Name = "a/b" }),
		outputs("O3", "a short hash", "not a store path",
			func(o *Outputs) { o.List[1].Path = "/nix/store/" + hash[1:] + "-app" }),
		outputs("O3", "a digit that is none", "not a store path",
			func(o *Outputs) { o.List[1].Path = "/nix/store/e" + hash[1:] + "-app" }),
		outputs("O3", "no name behind the hash", "not a store path",
			func(o *Outputs) { o.List[1].Path = "/nix/store/" + hash + "-" }),
		outputs("O3", "a long name behind the hash", "not a store path",
			func(o *Outputs) { o.List[1].Path = "/nix/store/" + hash + "-" + strings.Repeat("a", MaxStoreName+1) }),
		outputs("O3", "a name with a blank", "not a store path",
			func(o *Outputs) { o.List[1].Path = "/nix/store/" + hash + "-a b" }),
		outputs("O3", "a relative store", "not in an absolute",
			func(o *Outputs) { o.List[1].Path = "nix/store/" + hash + "-a" }),
		outputs("O3", "no store", "not in an absolute", func(o *Outputs) { o.List[1].Path = "/" + hash + "-a" }),
		outputs("O3", "a store with ..", "not in an absolute",
			func(o *Outputs) { o.List[1].Path = "/nix/../" + hash + "-a" }),
		outputs("O3", "a long path", "a store path of 4096 bytes", func(o *Outputs) {
			tail := "/" + hash + "-a"
			o.List[1].Path = strings.Repeat("/d", 2048)[:4096-len(tail)] + tail
		}),
		outputs("O4", "an empty pattern", "pattern", func(o *Outputs) { o.NoRewrite[0] = "" }),
		outputs("O4", "a long pattern", "pattern",
			func(o *Outputs) { o.NoRewrite[0] = strings.Repeat("p", MaxPath+1) }),
		outputs("O4", "2^12 + 1 patterns", "array of 4097", func(o *Outputs) {
			o.NoRewrite = strings.Split(strings.Repeat("p", MaxPatterns+1), "")
		}),
		outputColumns("O5", "2^22 + 1 places", "4194305 places", func(s *outputSection) {
			s.Uses, s.Gaps = make([]byte, MaxOccurrences+1), make([]byte, MaxOccurrences+1)
		}),
		outputColumns("O5", "an output that is not there", "output 2", func(s *outputSection) { s.Uses[0] = 4 }),
		outputColumns("O6", "behind the contents", "not within a file", func(s *outputSection) {
			s.Gaps = append(cut(s.Gaps), 0xff, 0x7f)
		}),
		outputColumns("O6", "a gap of 2^63", "bytes behind", func(s *outputSection) {
			s.Uses, s.Gaps = []byte{0}, binary.AppendUvarint(nil, 1<<63)
		}),
		outputColumns("O6", "an end above 2^63", "not within a file", func(s *outputSection) {
			s.Uses, s.Gaps = []byte{0}, binary.AppendUvarint(nil, math.MaxInt64-1)
		}),
		outputs("O6", "across the end of a file", "not within a file",
			func(o *Outputs) { o.Occurrences[3].Offset++ }),
		outputs("O6", "across the end of the contents", "not within a file",
			func(o *Outputs) { o.Occurrences[3].Offset = 1000 }),
	)
	return list
}

// withOutputs is sample with output paths in its first file, and one of them at the end of it.
func withOutputs() *Index {
	x := sample()
	x.Outputs = Outputs{
		List: []Output{
			{"dev", "/nix/store/0c4n1z0xk9l5v6b7r8q9w0x1y2z3a4d5-app-1.0-dev"},
			{"out", "/nix/store/zs2b3c4d5f6g7h8i9j0k1l2m3n4p5q6r-app-1.0"},
		},
		NoRewrite: []string{"*.jar", "\xff"},
		Occurrences: []Occurrence{
			{Offset: 0, Output: 1, Named: true},
			{Offset: 40, Output: 0},
			{Offset: 600, Output: 0, Named: true},
			{Offset: 968, Output: 1},
		},
	}
	return x
}

// outputs is a case of an index with output paths.
func outputs(rule, name, text string, edit func(o *Outputs)) rejected {
	return rejected{rule: rule, name: name, text: text, edit: func(c *crafted) {
		x := withOutputs()
		edit(&x.Outputs)
		*c = *craft(x)
	}}
}

// outputColumns is a case of columns that Encode would never write.
func outputColumns(rule, name, text string, edit func(s *outputSection)) rejected {
	return rejected{rule: rule, name: name, text: text, edit: func(c *crafted) {
		*c = *craft(withOutputs())
		edit(c.outputs)
	}}
}

// noRow is the row of an empty section.
func noRow(kind uint16) row { return row{kind: kind, sum: chunk.Sum(nil)} }

func TestDecodeRejects(t *testing.T) {
	if _, err := Decode(craft(sample()).data()); err != nil {
		t.Fatal(err)
	}
	for _, r := range cases() {
		c := craft(sample())
		r.edit(c)
		data := c.data()
		x, err := Decode(data)
		want := r.err
		if want == nil {
			want = ErrInvalid
		}
		if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), r.text) {
			t.Errorf("%s %s: %v, want %v with %q", r.rule, r.name, err, want, r.text)
		}
		if x != nil {
			t.Errorf("%s %s: an index comes with the error", r.rule, r.name)
		}
		if _, err := Verify(data); !errors.Is(err, want) {
			t.Errorf("%s %s: Verify: %v, want %v", r.rule, r.name, err, want)
		}
		if _, err := VerifyMemory(data); r.rule[0] == 'H' && r.rule != "H13" && !errors.Is(err, want) {
			t.Errorf("%s %s: VerifyMemory: %v, want %v", r.rule, r.name, err, want)
		}
		// A reader of the chunk keys refuses what is wrong with the header and with them, and has no eyes for the rest.
		_, chunks, err := DecodeChunks(data)
		switch own := r.rule[0] == 'H' && r.rule != "H13" || r.rule[0] == 'C'; {
		case own && !errors.Is(err, want):
			t.Errorf("%s %s: DecodeChunks: %v, want %v", r.rule, r.name, err, want)
		case err != nil && chunks != nil:
			t.Errorf("%s %s: chunks come with the error", r.rule, r.name)
		case r.rule[0] == 'P' || r.rule[0] == 'E' && r.rule != "E2" || r.rule[0] == 'B' || r.rule[0] == 'O':
			if err != nil {
				t.Errorf("%s %s: DecodeChunks: %v", r.rule, r.name, err)
			}
		}
		if _, err := PrefixSize(data); r.rule[0] == 'H' && r.rule != "H13" && !errors.Is(err, want) {
			t.Errorf("%s %s: PrefixSize: %v, want %v", r.rule, r.name, err, want)
		}
	}
}

// TestEveryRuleIsTested compares the rules of FORMAT.md with those of the cases.
func TestEveryRuleIsTested(t *testing.T) {
	spec, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^- \*\*([A-Z]\d+)\*\* `).FindAllSubmatch(spec, -1) {
		rules[string(m[1])] = 0
	}
	if len(rules) < 25 {
		t.Fatalf("FORMAT.md has %d rules", len(rules))
	}
	for _, r := range cases() {
		if _, ok := rules[r.rule]; !ok {
			t.Errorf("%s is no rule of FORMAT.md", r.rule)
		}
		rules[r.rule]++
	}
	for rule, n := range rules {
		if n == 0 {
			t.Errorf("rule %s has no case", rule)
		}
	}
}

// TestValidateRejects has what the format cannot express, so that only a writer can get it wrong.
func TestValidateRejects(t *testing.T) {
	var long []string // of more than 2^28 bytes together, each of them good
	for i := range MaxPathBytes/MaxPath + 1 {
		long = append(long, fmt.Sprintf("%0255d", i)+strings.Repeat("/"+strings.Repeat("d", MaxComponent), MaxPath/256-1))
	}
	long = append(long, "the last drop")
	cases := map[string]func(x *Index){
		"key of a later epoch":      func(x *Index) { x.Chunks[0].Epoch = 6 },
		"negative length":           func(x *Index) { x.Chunks[0].Length = -1 },
		"entry with a NUL":          func(x *Index) { x.Entries[3].Path += "\x00" },
		"source with a NUL":         func(x *Index) { x.Sources[3].Path += "\x00" },
		"empty entry path":          func(x *Index) { x.Entries, x.Roots = []Entry{{Kind: Dir}}, []string{""} },
		"empty source path":         func(x *Index) { x.Sources[0].Path = "" },
		"kind 0":                    func(x *Index) { x.Entries[1].Kind = 0 },
		"kind 5":                    func(x *Index) { x.Entries[1].Kind = 5 },
		"negative size":             func(x *Index) { x.Entries[3].Size = -1 },
		"mode 01000":                func(x *Index) { x.Entries[0].Mode = 0o1000 },
		"size of a directory":       func(x *Index) { x.Entries[0].Size = 1 },
		"size of a link":            func(x *Index) { x.Entries[5].Size = 1 },
		"size of a hard link":       func(x *Index) { x.Entries[4].Size = 1 },
		"time of a hard link":       func(x *Index) { x.Entries[4].MTime = 1 },
		"target of a file":          func(x *Index) { x.Entries[3].Target = "app/dist/a-b" },
		"target of a directory":     func(x *Index) { x.Entries[0].Target = "app/dist/a-b" },
		"link with a NUL":           func(x *Index) { x.Entries[5].Target = "a\x00" },
		"hard link to a later file": func(x *Index) { x.Entries[4].Target = "report" },
		"hard link to a directory":  func(x *Index) { x.Entries[4].Target = "app/dist/a" },
		"hard link out of the tree": func(x *Index) { x.Entries[4].Target = "../etc/passwd" },
		"hard link to nothing":      func(x *Index) { x.Entries[4].Target = "" },
		"source is a hard link":     func(x *Index) { x.Sources[0].Kind = HardLink },
		"unknown with a sum":        func(x *Index) { x.Sources[2].Sum[15] = 1 },
		"too many chunks":           func(x *Index) { x.Chunks = make([]Chunk, MaxChunks+1) },
		"too many roots":            func(x *Index) { x.Roots = make([]string, MaxRoots+1) },
		"too many patterns": func(x *Index) {
			x.Build.Patterns = strings.Split(strings.Repeat("p", MaxPatterns+1), "")
		},
		"too many patterns of artifacts": func(x *Index) {
			*x = *withOutputs()
			x.Outputs.NoRewrite = strings.Split(strings.Repeat("p", MaxPatterns+1), "")
		},
		"too many outputs": func(x *Index) {
			*x = *withOutputs()
			for i := range MaxOutputs - 1 {
				o := Output{fmt.Sprintf("x%03d", i), fmt.Sprintf("/nix/store/%032d-x", i)}
				x.Outputs.List = append(x.Outputs.List, o)
			}
		},
		"too many entries": func(x *Index) { x.Entries = make([]Entry, MaxEntries+1) },
		"too many sources": func(x *Index) { x.Sources = make([]Source, MaxSources+1) },
		"entry paths of 2^28 bytes": func(x *Index) {
			*x = Index{Roots: long}
			for _, path := range long {
				x.add(Entry{Path: path, Kind: Dir})
			}
		},
		"output paths without outputs": func(x *Index) {
			*x = *withOutputs()
			x.Outputs.List = nil
		},
		"patterns without outputs": func(x *Index) { x.Outputs.NoRewrite = []string{"a"} },
		"output paths not sorted": func(x *Index) {
			*x = *withOutputs()
			x.Outputs.Occurrences[0].Offset = 200
		},
		"output paths that overlap": func(x *Index) {
			*x = *withOutputs()
			x.Outputs.Occurrences[1].Offset = 39
		},
		"a negative offset": func(x *Index) {
			*x = *withOutputs()
			x.Outputs.Occurrences[0].Offset = -1
		},
		"source paths of 2^28 bytes": func(x *Index) {
			x.Sources = []Source{{Path: ".", Kind: Dir}}
			for _, path := range long {
				x.Sources = append(x.Sources, Source{Path: path, Kind: File})
			}
		},
	}
	for name, edit := range cases {
		x := sample()
		edit(x)
		if err := x.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Validate: %v", name, err)
		}
		if data, err := x.Encode(); !errors.Is(err, ErrInvalid) || data != nil {
			t.Errorf("%s: Encode: %d bytes, %v", name, len(data), err)
		}
	}
}

// TestLimitsAreAllowed: a limit is what is still good.
func TestLimitsAreAllowed(t *testing.T) {
	x := sample()
	deep := strings.Repeat(strings.Repeat("d", MaxComponent)+"/", MaxPath/256) // of 64 KiB, with its last slash
	x.Roots = append(x.Roots, deep[:len(deep)-1])
	x.Entries = append(x.Entries, Entry{Path: x.Roots[2], Kind: Dir, Mode: 0o777})
	// "d" sorts between the roots of the sample.
	x.Roots[1], x.Roots[2] = x.Roots[2], x.Roots[1]
	x.Entries[6], x.Entries[7] = x.Entries[7], x.Entries[6]
	x.Entries[5].Target = strings.Repeat("t", MaxTarget)
	x.Chunks[0].Length = chunk.MaxSize
	x.Entries[2].Size = chunk.MaxSize
	x.Build.Root = "/" + strings.Repeat("r", MaxPath-1)
	x.Build.Host = strings.Repeat("h", MaxText)
	x.Build.Version = strings.Repeat("v", MaxText)
	x.Build.Patterns = strings.Split(strings.Repeat("p", MaxPatterns), "")
	if _, err := Decode(mustEncode(t, x)); err != nil {
		t.Error(err)
	}
	x = &Index{}
	for i := range 1 << 16 {
		x.Roots = append(x.Roots, fmt.Sprintf("%07d", i))
		x.add(Entry{Path: x.Roots[i], Kind: File})
	}
	if _, err := Decode(mustEncode(t, x)); err != nil {
		t.Error(err)
	}
}
