package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"nbc/chunk"
)

// sample has every kind of entry and source, and something in every field.
func sample() *Index {
	return &Index{
		Epoch: 5,
		Chunks: []Chunk{
			{Key: chunk.Key{ID: chunk.Sum([]byte("one")), Epoch: 5}, Length: 1000},
			{Key: chunk.Key{ID: chunk.Sum([]byte("two")), Epoch: 2}, Length: 30},
		},
		Roots: []string{"app/dist", "report"},
		Entries: []Entry{
			{Path: "app/dist", Kind: Dir, Mode: 0o755, MTime: 1_700_000_000_000_000_001},
			{Path: "app/dist/a", Kind: Dir, Mode: 0o700, MTime: 1_700_000_000_000_000_000},
			{Path: "app/dist/a-b", Kind: File, Mode: 0o755, Size: 1000, MTime: -1},
			{Path: "app/dist/a/main.o", Kind: File, Mode: 0o644, Size: 29, MTime: math.MaxInt64},
			{Path: "app/dist/a/same.o", Kind: HardLink, Target: "app/dist/a-b"},
			{Path: "app/dist/link", Kind: Link, Target: "../\xff\n"},
			{Path: "report", Kind: File, Size: 1, MTime: math.MinInt64},
		},
		Sources: []Source{
			{Path: "-x", Kind: File, Sum: [SumSize]byte{1, 2, 3}, MTime: 1_600_000_000_000_000_000},
			{Path: ".", Kind: Dir, Sum: [SumSize]byte{4}, MTime: 1_600_000_000_000_000_005},
			{Path: "app", Kind: Dir, Unknown: true},
			{Path: "app/l", Kind: Link, Sum: [SumSize]byte{5}, MTime: -5},
		},
		Build: Build{
			Root: "/build/app", Host: "builder", Saved: 1_700_000_000_000_000_009, Patterns: []string{"*/dist", "report"},
			Failures: 1, Version: "0.1.0",
		},
	}
}

// crafted is an encoded index of which every part can be replaced. Hashes and lengths are made to fit afterwards, so
// that a decoder gets past them to what is to be tested.
type crafted struct {
	chunks  chunkSection
	entries entrySection
	sources sourceSection
	build   buildSection
	outputs *outputSection                         // or nil
	plain   [kindOutputs][]byte                    // if set, instead of a section above
	frame   [kindOutputs]func(plain []byte) []byte // if set, makes the stored bytes, with encoding 1
	epoch   uint64
	extra   []row                 // after those of the sections
	edit    func(h *header)       // the last change before the header's own check is added
	edited  func(b []byte) []byte // the last change of all, which hashes do not know
}

func craft(x *Index) *crafted {
	c := &crafted{
		chunks: *x.chunkSection(), entries: *x.entrySection(), sources: *x.sourceSection(), build: *x.buildSection(),
		epoch: x.Epoch,
	}
	if len(x.Outputs.List) > 0 {
		c.outputs = x.Outputs.section()
	}
	return c
}

func (c *crafted) data() []byte {
	h := header{epoch: c.epoch}
	parts := [][]byte{nil} // the header, and the sections
	list := []any{&c.chunks, &c.entries, &c.sources, &c.build}
	if c.outputs != nil || c.plain[kindOutputs-1] != nil {
		list = append(list, c.outputs)
	}
	for i, section := range list {
		plain := c.plain[i]
		if plain == nil {
			var err error
			if plain, err = encMode().Marshal(section); err != nil {
				panic(err)
			}
		}
		r := row{kind: uint16(i + 1), flags: flagsOf(uint16(i + 1)), plain: uint64(len(plain))}
		stored := plain
		if c.frame[i] != nil {
			stored, r.encoding = c.frame[i](plain), zstdOne
		}
		r.stored, r.sum = uint64(len(stored)), blake3.Sum256(stored)
		h.rows = append(h.rows, r)
		parts = append(parts, stored)
	}
	h.rows = append(h.rows, c.extra...)
	if c.edit != nil {
		c.edit(&h)
	}
	parts[0] = h.append(nil)
	data := slices.Concat(parts...) // once: some are large
	if c.edited != nil {
		data = c.edited(data)
	}
	return data
}

// resealed is data with hashes that fit, if it has the shape of an index at all.
func resealed(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) < startSize {
		return data
	}
	end := startSize + int(binary.LittleEndian.Uint16(data[10:]))*rowSize
	if end+sumSize > len(data) {
		return data
	}
	body := data[end+sumSize:]
	for at := startSize; at < end; at += rowSize {
		stored := min(binary.LittleEndian.Uint64(data[at+4:]), uint64(len(body)))
		sum := blake3.Sum256(body[:stored])
		copy(data[at+20:], sum[:])
		body = body[stored:]
	}
	sum := blake3.Sum256(data[:end])
	copy(data[end:], sum[:])
	return data
}

func mustEncode(t testing.TB, x *Index) []byte {
	t.Helper()
	data, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// plainSections are the sections 1 to 5 of a valid index, decompressed; the last one nil if there is none.
func plainSections(t testing.TB, data []byte) (plain [kindOutputs][]byte) {
	t.Helper()
	h, err := readHeader(data)
	if err != nil {
		t.Fatal(err)
	}
	rest := data[h.size():]
	for i := range plain {
		if _, ok := h.outputs(); i == known && !ok {
			break
		}
		plain[i], rest = rest[:h.rows[i].stored], rest[h.rows[i].stored:]
		if h.rows[i].encoding == zstdOne {
			if plain[i], err = decoder().DecodeAll(plain[i], make([]byte, 0, h.rows[i].plain)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return plain
}

// trees draws valid indexes, with names that sort in awkward ways.
func trees(t *rapid.T) *Index {
	name := rapid.OneOf(
		rapid.SampledFrom([]string{
			"a", "a-", "a.", "a0", "ab", "A", "...", "..a", ".nbc", "-", " ", "\n", "\x01", "~", "\u00e4", "\xff", "\xff\xfe",
			strings.Repeat("n", MaxComponent),
		}),
		rapid.StringMatching(`[a-c]{1,3}(-[a-c])?(\.o)?`),
	)
	epoch := rapid.Uint64().Draw(t, "epoch")
	mtime := rapid.OneOf(rapid.Int64Range(start, start+span), rapid.Int64())
	x := &Index{Epoch: epoch}
	seen := map[string]bool{}
	add := func(e Entry) {
		seen[e.Path] = true
		e.Mode = uint16(rapid.IntRange(0, 0o777).Draw(t, "mode"))
		switch e.Kind {
		case File:
			e.Size = rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, 1<<25)).Draw(t, "size")
			e.MTime = mtime.Draw(t, "mtime")
		case Dir:
			e.MTime = mtime.Draw(t, "mtime")
		case Link:
			e.Mode, e.Target = 0, rapid.StringMatching(`[^\x00]{1,20}`).Draw(t, "target")
		}
		x.Entries = append(x.Entries, e)
	}
	for range rapid.IntRange(0, 3).Draw(t, "roots") {
		root := strings.Join(rapid.SliceOfN(name, 1, 3).Draw(t, "root"), "/")
		if slices.ContainsFunc(x.Roots, func(r string) bool {
			return strings.HasPrefix(r+"/", root+"/") || strings.HasPrefix(root+"/", r+"/")
		}) {
			continue
		}
		x.Roots = append(x.Roots, root)
		kind := rapid.SampledFrom([]Kind{Dir, Dir, Dir, File}).Draw(t, "root kind")
		add(Entry{Path: root, Kind: kind})
		dirs := []string{root}
		for range rapid.IntRange(0, 30).Draw(t, "entries") {
			path := rapid.SampledFrom(dirs).Draw(t, "dir") + "/" + name.Draw(t, "name")
			if kind != Dir || seen[path] {
				continue
			}
			e := Entry{Path: path, Kind: rapid.SampledFrom([]Kind{File, File, Dir, Link}).Draw(t, "kind")}
			if add(e); e.Kind == Dir {
				dirs = append(dirs, path)
			}
		}
	}
	slices.Sort(x.Roots)
	slices.SortFunc(x.Entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	for i := range x.Entries {
		e := &x.Entries[i]
		if e.Kind == File && !slices.Contains(x.Roots, e.Path) && rapid.IntRange(0, 3).Draw(t, "hard") == 0 {
			for _, f := range x.Entries[:i] {
				if f.Kind == File {
					*e = Entry{Path: e.Path, Kind: HardLink, Target: f.Path}
				}
			}
		}
	}
	for left := x.Bytes(); left > 0; {
		length := rapid.Int64Range(1, min(left, chunk.MaxSize)).Draw(t, "length")
		left -= length
		x.Chunks = append(x.Chunks, Chunk{
			Key: chunk.Key{
				ID:    chunk.Sum(binary.AppendVarint(nil, left)),
				Epoch: rapid.OneOf(rapid.Just(epoch), rapid.Uint64Range(0, epoch)).Draw(t, "key's epoch"),
			},
			Length: int(length),
		})
	}
	if rapid.Bool().Draw(t, "sources") {
		x.Sources = append(x.Sources, Source{Path: ".", Kind: Dir, MTime: mtime.Draw(t, "mtime")})
		for path := range rapid.MapOf(rapid.Map(rapid.SliceOfN(name, 1, 3),
			func(s []string) string { return strings.Join(s, "/") }), rapid.Just(true)).Draw(t, "sources") {
			s := Source{Path: path, Kind: Kind(rapid.IntRange(1, 3).Draw(t, "kind")), MTime: mtime.Draw(t, "mtime")}
			if s.Unknown = rapid.IntRange(0, 9).Draw(t, "unknown") == 0; !s.Unknown {
				copy(s.Sum[:], rapid.SliceOfN(rapid.Byte(), SumSize, SumSize).Draw(t, "sum"))
			}
			x.Sources = append(x.Sources, s)
		}
		slices.SortFunc(x.Sources, func(a, b Source) int { return strings.Compare(a.Path, b.Path) })
	}
	text := rapid.StringN(0, 20, 100)
	x.Build = Build{
		Root:     rapid.SampledFrom([]string{"", "/", "/build/a b", "/\xff"}).Draw(t, "build root"),
		Host:     text.Draw(t, "host"),
		Saved:    rapid.Int64().Draw(t, "saved"),
		Failures: rapid.Uint64().Draw(t, "failures"),
		Version:  text.Draw(t, "version"),
	}
	if rapid.Bool().Draw(t, "patterns") {
		x.Build.Patterns = []string{"dist", "packages/*/dist", "\xff"}
	}
	if rapid.Bool().Draw(t, "outputs") {
		x.Outputs = drawOutputs(t, x)
	}
	return x
}

// drawOutputs draws outputs, and places in the files of x.
func drawOutputs(t *rapid.T, x *Index) (o Outputs) {
	for i, name := range []string{"bin", "dev", "out"}[:rapid.IntRange(1, 3).Draw(t, "outputs")] {
		hash := strings.Repeat(string(base32[i]), HashSize-2) + rapid.StringMatching(`[0-9a-df-np-sv-z]{2}`).Draw(t, "hash")
		base := hash + "-" + rapid.StringMatching(`[a-z+._?=-]{1,40}`).Draw(t, "name")
		o.List = append(o.List, Output{name, "/nix/store/" + base})
	}
	if rapid.Bool().Draw(t, "patterns") {
		o.NoRewrite = []string{"**/*.jar", "\xff"}
	}
	var begin, end int64
	for i := range x.Entries {
		end += x.Entries[i].Size
		for range rapid.IntRange(0, 3).Draw(t, "occurrences") {
			c := Occurrence{
				Offset: begin + rapid.SampledFrom([]int64{0, 1, 300}).Draw(t, "gap"),
				Output: uint16(rapid.IntRange(0, len(o.List)-1).Draw(t, "output")),
				Named:  rapid.Bool().Draw(t, "named"),
			}
			if c.Offset+o.Length(c) <= end {
				o.Occurrences = append(o.Occurrences, c)
				begin = c.Offset + o.Length(c)
			}
		}
		begin = end
	}
	return o
}

func TestDecodeIsTheInverseOfEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := trees(t)
		data, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		y, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(x, y) {
			t.Fatalf("decoded\n%+v\nof\n%+v", y, x)
		}
		if again, err := y.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("encoded again it has other bytes (%v)", err)
		}
		n, err := PrefixSize(data[:min(len(data), MaxHeader)])
		if err != nil {
			t.Fatal(err)
		}
		epoch, chunks, err := DecodeChunks(data[:n])
		if err != nil || epoch != x.Epoch || !reflect.DeepEqual(chunks, x.Chunks) {
			t.Fatalf("chunks %v of epoch %d, %v; want %v of %d", chunks, epoch, err, x.Chunks, x.Epoch)
		}
	})
}

func TestSample(t *testing.T) {
	for _, x := range []*Index{
		sample(), withOutputs(), {}, {Epoch: math.MaxUint64}, newCorpus(1).goCache(1000), newCorpus(2).nodeModules(3000),
	} {
		y, err := Decode(mustEncode(t, x))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(x, y) {
			t.Errorf("decoded\n%+v\nof\n%+v", y, x)
		}
	}
}

// TestSize holds the format to what it was chosen for. The index of 12,600 files has 4,000 chunks.
func TestSize(t *testing.T) {
	x := newCorpus(1).nodeModules(12_600)
	c := newCorpus(2)
	x.Chunks = nil
	for i, left := 4000, x.Bytes(); i > 0; i-- {
		length := left / int64(i)
		left -= length
		x.Chunks = append(x.Chunks, Chunk{Key: chunk.Key{ID: chunk.ID(c.bytes(chunk.IDSize))}, Length: int(length)})
	}
	if n := len(mustEncode(t, x)); n > 300_000 {
		t.Errorf("12,600 files and 4,000 chunks take %d bytes", n)
	}
	x = newCorpus(1).goCache(12_600) // 33 bytes of a name are a hash, and 8 bytes of a file its share of a chunk's key
	if n := len(mustEncode(t, x)) / len(x.Entries); n > 60 {
		t.Errorf("a file takes %d bytes", n)
	}
}

func TestFirstReadIsEnoughForAGigabyte(t *testing.T) {
	c := newCorpus(1)
	x := c.finish(&Index{
		Epoch: 7, Roots: []string{"f"}, Entries: []Entry{{Path: "f", Kind: File, Size: 7000 * 160 << 10}},
	})
	n, err := PrefixSize(mustEncode(t, x))
	if err != nil || n > FirstRead {
		t.Errorf("%d chunks need %d bytes, %v", len(x.Chunks), n, err)
	}
}

func TestTruncatedIsRefused(t *testing.T) {
	for _, x := range []*Index{sample(), newCorpus(1).nodeModules(300)} {
		data := mustEncode(t, x)
		prefix, err := PrefixSize(data)
		if err != nil {
			t.Fatal(err)
		}
		for n := range data {
			if _, err := Decode(data[:n]); !errors.Is(err, ErrInvalid) {
				t.Fatalf("%d of %d bytes: %v", n, len(data), err)
			}
			_, _, err := DecodeChunks(data[:n])
			if n < prefix && !errors.Is(err, ErrInvalid) || n >= prefix && err != nil {
				t.Fatalf("%d bytes of a prefix of %d: %v", n, prefix, err)
			}
		}
	}
}

func TestFlippedBitIsRefused(t *testing.T) {
	for _, x := range []*Index{sample(), newCorpus(1).nodeModules(200)} {
		data := mustEncode(t, x)
		prefix, err := PrefixSize(data)
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			for bit := range 8 {
				data[i] ^= 1 << bit
				if _, err := Decode(data); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrVersion) {
					t.Fatalf("bit %d of byte %d: %v", bit, i, err)
				}
				if _, _, err := DecodeChunks(data[:prefix]); i < prefix && err == nil {
					t.Fatalf("bit %d of byte %d: chunks decode", bit, i)
				}
				data[i] ^= 1 << bit
			}
		}
	}
}

// TestUnknownSections: what a reader does not know it skips, unless the section says that it must not.
func TestUnknownSections(t *testing.T) {
	for flags, want := range []struct{ decode, chunks error }{
		0:                       {nil, nil},
		flagNeeded:              {ErrVersion, nil},
		flagRefers:              {nil, ErrVersion},
		flagNeeded | flagRefers: {ErrVersion, ErrVersion},
	} {
		for _, kind := range []uint16{kindOutputs + 1, 0x7fff, kindSignature} {
			c := craft(sample())
			// Its encoding and its plain length are of a kind that nobody knows yet.
			c.extra = []row{{kind: kind, flags: uint8(flags), encoding: 9, plain: 1 << 40, sum: blake3.Sum256(nil)}}
			data := c.data()
			x, err := Decode(data)
			if !errors.Is(err, want.decode) {
				t.Errorf("kind %d, flags %d: Decode: %v, want %v", kind, flags, err, want.decode)
			}
			if err == nil && !reflect.DeepEqual(x, sample()) {
				t.Errorf("kind %d, flags %d: decoded %+v", kind, flags, x)
			}
			if _, _, err := DecodeChunks(data); !errors.Is(err, want.chunks) {
				t.Errorf("kind %d, flags %d: DecodeChunks: %v, want %v", kind, flags, err, want.chunks)
			}
		}
	}
}

func TestSkippedSectionIsChecked(t *testing.T) {
	c := craft(sample())
	body := []byte("of a later time")
	c.extra = []row{{kind: 9, stored: uint64(len(body)), sum: blake3.Sum256(body)}}
	data := append(c.data(), body...)
	if _, err := Decode(data); err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if _, err := Decode(data); !errors.Is(err, ErrInvalid) {
		t.Errorf("a changed byte in a skipped section: %v", err)
	}
}

// A section that compresses too well for its readers is stored as it is.
func TestEncodeKeepsToTheRatio(t *testing.T) {
	x := &Index{Roots: []string{"d"}, Entries: []Entry{{Path: "d", Kind: Dir}}}
	for i := range 100_000 {
		x.add(Entry{Path: fmt.Sprintf("d/%06d", i), Kind: File, MTime: start})
	}
	data := mustEncode(t, x)
	h, err := readHeader(data)
	if err != nil {
		t.Fatal(err)
	}
	if r := h.rows[kindEntries-1]; r.encoding != asIs || r.stored < 1_000_000 {
		t.Errorf("%d plain bytes are stored in %d, encoding %d", r.plain, r.stored, r.encoding)
	}
	if _, err := Decode(data); err != nil {
		t.Error(err)
	}
}
