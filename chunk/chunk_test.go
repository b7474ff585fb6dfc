package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"
)

const helloID = "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f" // BLAKE3 of "hello"

// noise is n bytes that do not compress, the same for the same name.
func noise(name string, n int) []byte {
	h := blake3.New()
	_, _ = h.WriteString(name)
	b := make([]byte, n)
	_, _ = h.Digest().Read(b) // never fails
	return b
}

func TestKey(t *testing.T) {
	id, err := ParseID(helloID)
	if err != nil || id != Sum([]byte("hello")) || id.String() != helloID {
		t.Fatalf("ParseID: %s, %v", id, err)
	}
	k := Key{ID: id, Epoch: 18446744073709551615}
	if s := k.String(); s != helloID+".18446744073709551615" {
		t.Errorf("String: %s", s)
	}
	if s := k.Path(); s != "chunks/ea/"+helloID+".18446744073709551615" {
		t.Errorf("Path: %s", s)
	}
}

func TestKeyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := Key{Epoch: rapid.Uint64().Draw(t, "epoch")}
		copy(k.ID[:], rapid.SliceOfN(rapid.Byte(), IDSize, IDSize).Draw(t, "id"))
		if id, err := ParseID(k.ID.String()); err != nil || id != k.ID {
			t.Fatalf("ParseID(%s) = %s, %v", k.ID, id, err)
		}
		if got, err := ParseKey(k.String()); err != nil || got != k {
			t.Fatalf("ParseKey(%s) = %s, %v", k, got, err)
		}
		if got, err := ParsePath(k.Path()); err != nil || got != k {
			t.Fatalf("ParsePath(%s) = %s, %v", k.Path(), got, err)
		}
	})
}

// badKeys are the texts that are no key, by the rule of FORMAT.md that each breaks.
var badKeys = map[string][]string{
	"K1": {
		"", ".", ".1", helloID[:63] + ".1", helloID + "0.1", strings.ToUpper(helloID) + ".1", "g" + helloID[1:] + ".1",
		" " + helloID[1:] + ".1", "0x" + helloID[2:] + ".1", "\xff" + helloID[1:] + ".1",
	},
	"K2": {
		helloID, helloID + ".", helloID + ".01", helloID + ".00", helloID + ".+1", helloID + ".-1", helloID + ". 1",
		helloID + ".1 ", helloID + ".1.2", helloID + ".0x1", helloID + ".1_0", helloID + ".a",
		helloID + ".18446744073709551616", helloID + ".1\n",
	},
}

func TestParseKeyRefuses(t *testing.T) {
	for rule, list := range badKeys {
		for _, s := range list {
			if k, err := ParseKey(s); err == nil {
				t.Errorf("%s: ParseKey(%q) = %v", rule, s, k)
			}
			if k, err := ParsePath("chunks/ea/" + s); err == nil {
				t.Errorf("%s: ParsePath of %q = %v", rule, s, k)
			}
		}
	}
	for _, s := range []string{
		"", "chunks/", "chunks/ea", "chunks/ea/", "chunks/eb/" + helloID + ".1", "chunks/e/" + helloID + ".1",
		"chunks/ea8/" + helloID + ".1", "chunks/EA/" + helloID + ".1", "chunks//" + helloID + ".1", helloID + ".1",
		"chunks/" + helloID + ".1", "/chunks/ea/" + helloID + ".1", "index/ea/" + helloID + ".1",
		"chunks/ea/ea/" + helloID + ".1",
	} {
		if k, err := ParsePath(s); err == nil {
			t.Errorf("K3: ParsePath(%q) = %v", s, k)
		}
	}
	for _, s := range []string{"", helloID[:62], helloID + "00", strings.ToUpper(helloID), "zz" + helloID[2:]} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("K1: ParseID(%q) = %v", s, id)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("chunks/ea/" + helloID + ".7")
	f.Add("chunks/ea/" + helloID + ".07")
	f.Fuzz(func(t *testing.T, path string) {
		if k, err := ParsePath(path); err == nil && k.Path() != path {
			t.Errorf("ParsePath(%q) is the key of %q", path, k.Path())
		}
	})
}

func TestDecodeIsTheInverseOfEncode(t *testing.T) {
	check := func(t interface{ Fatalf(string, ...any) }, plain []byte) {
		stored := Encode(nil, plain)
		if len(stored) > MaxEncoded(len(plain)) {
			t.Fatalf("%d bytes are stored as %d, more than %d", len(plain), len(stored), MaxEncoded(len(plain)))
		}
		got, err := Decode(nil, stored, Sum(plain), len(plain))
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes come back as %d, %v", len(plain), len(got), err)
		}
		if n, err := FrameSize(stored); err != nil || n != uint64(len(plain)) {
			t.Fatalf("FrameSize of %d bytes: %d, %v", len(plain), n, err)
		}
	}
	for _, n := range []int{
		0, 1, 255, 256, 257, 1023, 1024, 1025, 65791, 65792, 128 << 10, 128<<10 + 1, 655360, MaxSize,
	} {
		check(t, noise("incompressible", n))
		check(t, make([]byte, n))
	}
	rapid.Check(t, func(t *rapid.T) {
		// Pieces of noise, of runs and of what was there before, so that frames have blocks of each type.
		var plain []byte
		for range rapid.IntRange(0, 6).Draw(t, "pieces") {
			n := rapid.IntRange(1, 200_000).Draw(t, "bytes")
			switch rapid.IntRange(0, 2).Draw(t, "piece") {
			case 0:
				plain = append(plain, noise(fmt.Sprint(n), n)...)
			case 1:
				plain = append(plain, bytes.Repeat([]byte{byte(n)}, n)...)
			default:
				plain = append(plain, plain[max(0, len(plain)-n):]...)
			}
		}
		check(t, plain)
	})
}

func TestEncodeAppends(t *testing.T) {
	b := Encode([]byte("before"), []byte("hello"))
	if !bytes.HasPrefix(b, []byte("before")) {
		t.Fatalf("%q", b)
	}
	if got, err := Decode(nil, b[6:], Sum([]byte("hello")), 5); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDecodeUsesTheBuffer(t *testing.T) {
	plain := append(noise("a", 100_000), make([]byte, 100_000)...)
	stored := Encode(nil, plain)
	buf := make([]byte, 7, len(plain))
	got, err := Decode(buf, stored, Sum(plain), len(plain))
	if err != nil || &got[0] != &buf[0] {
		t.Errorf("a buffer that is large enough is not used: %v", err)
	}
	// What lies far behind the size is not the decoder's, and is there for the next chunk.
	large := bytes.Repeat([]byte{0xaa}, 2*len(plain))
	if got, err = Decode(large[:0], stored, Sum(plain), len(plain)); err != nil {
		t.Fatal(err)
	}
	if behind := large[len(plain)+decodeSlack:]; !bytes.Equal(behind, bytes.Repeat([]byte{0xaa}, len(behind))) {
		t.Error("bytes behind the size are changed")
	}
	if &got[0] != &large[0] || cap(got) != cap(large) {
		t.Errorf("of a buffer of %d bytes %d are left", cap(large), cap(got))
	}
}

// frame builds zstd frames by hand.
func frame(descriptor byte, header []byte, blocks ...[]byte) []byte {
	b := append([]byte{0x28, 0xb5, 0x2f, 0xfd, descriptor}, header...)
	for _, block := range blocks {
		b = append(b, block...)
	}
	return b
}

// block is a block of a frame; kind 0 is raw, 1 one byte repeated size times, 2 compressed, 3 reserved.
func block(last bool, kind, size int, content ...byte) []byte {
	h := size<<3 | kind<<1
	if last {
		h |= 1
	}
	return append([]byte{byte(h), byte(h >> 8), byte(h >> 16)}, content...)
}

// TestDecodeRefuses has the rules of FORMAT.md.
func TestDecodeRefuses(t *testing.T) {
	plain := append(noise("a", 3000), make([]byte, 3000)...)
	id, size := Sum(plain), len(plain)
	good := func() []byte { return Encode(nil, plain) }
	raw := block(true, 0, 5, []byte("hello")...)
	hello := frame(0x20, []byte{5}, raw)
	skip := []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}
	helloSum := Sum([]byte("hello"))
	zeros := func(n int) ID { return Sum(make([]byte, n)) }

	type reject struct {
		rule, name, text string
		stored           []byte
		id               ID
		size             int
	}
	cases := []reject{
		{"F1", "a size below 0", "out of bounds", good(), id, -1},
		{
			"F1", "a size above 8 MiB", "out of bounds",
			frame(0xa0, []byte{1, 0, 0x80, 0}, block(true, 1, MaxSize+1, 0)), zeros(MaxSize + 1), MaxSize + 1,
		},
		{
			"F1", "empty blocks without end", "are stored for",
			frame(0x20, []byte{5}, bytes.Repeat(block(false, 0, 0), 100), raw), helloSum, 5,
		},
		{"F2", "nothing", "unexpected EOF", nil, id, size},
		{"F2", "nothing for nothing", "unexpected EOF", nil, Sum(nil), 0},
		{"F2", "the plain bytes", "magic", plain, id, size},
		{"F2", "a byte more", "1 bytes after", append(good(), 0), id, size},
		{"F2", "an empty frame more", "after a zstd frame", append(good(), Encode(nil, nil)...), id, size},
		{
			"F2", "two frames of half each", "after a zstd frame",
			append(Encode(nil, plain[:3000]), Encode(nil, plain[3000:])...), id, size,
		},
		{"F2", "a skippable frame before it", "skippable", append(skip, good()...), id, size},
		{"F2", "a skippable frame after it", "after a zstd frame", append(good(), skip...), id, size},
		{"F2", "no checksum where one is promised", "after a zstd frame", frame(0x24, []byte{5}, raw), helloSum, 5},
		{"F2", "no last block", "cut off", frame(0x20, []byte{5}, block(false, 0, 5, raw[3:]...)), helloSum, 5},
		{"F2", "a reserved block", "unknown type", frame(0x20, []byte{5}, block(true, 3, 5, raw[3:]...)), helloSum, 5},
		{"F2", "a reserved bit", "reserved", frame(0x28, []byte{5}, raw), helloSum, 5},
		{"F3", "no content size", "without its size", frame(0, []byte{0}, raw), helloSum, 5},
		{"F3", "one byte less", "6000 bytes instead of 5999", good(), id, size - 1},
		{"F3", "one byte more", "6000 bytes instead of 6001", good(), id, size + 1},
		{"F3", "size 0", "5 bytes instead of 0", hello, helloSum, 0},
		{
			"F3", "a content size of 2^63", "9223372036854775808 bytes",
			frame(0xe0, []byte{0, 0, 0, 0, 0, 0, 0, 0x80}, block(true, 1, 5, 0)), zeros(5), 5,
		},
		{
			"F3", "a content size of 4 GB", "4294967295 bytes",
			frame(0xa0, []byte{0xff, 0xff, 0xff, 0xff}, block(true, 1, 5, 0)), zeros(5), 5,
		},
		{"F4", "a dictionary", "dictionary", frame(0x21, []byte{9, 5}, raw), helloSum, 5},
		{"F5", "more than it claims", "size", frame(0x20, []byte{5}, block(true, 1, 100_000, 0)), zeros(5), 5},
		{
			"F5", "more than it claims, in blocks", "size",
			frame(0x20, []byte{5}, block(false, 1, 5, 0), block(true, 1, 5, 0)), zeros(5), 5,
		},
		{
			"F5", "a block above 128 KiB", "size",
			frame(0xa0, []byte{0, 0, 0x10, 0}, block(true, 1, 1<<20, 0)), zeros(1 << 20), 1 << 20,
		},
		{"F5", "less than it claims", "size", frame(0x20, []byte{5}, block(true, 0, 4, raw[3:7]...)), helloSum, 5},
		{"F5", "a damaged block", "", frame(0x20, []byte{5}, block(true, 2, 5, raw[3:]...)), helloSum, 5},
		{"F5", "a wrong checksum", "CRC", frame(0x24, []byte{5}, raw, []byte{0, 0, 0, 0}), helloSum, 5},
		{
			"F6", "other bytes", "another ID",
			frame(0x20, []byte{5}, block(true, 0, 5, []byte("Hello")...)), helloSum, 5,
		},
		{"F6", "another ID", "another ID", good(), helloSum, size},
	}
	for n := range good() {
		cases = append(cases, reject{"F2", fmt.Sprintf("the first %d bytes", n), "", good()[:n], id, size})
	}
	rules := map[string]bool{"K1": len(badKeys["K1"]) > 0, "K2": len(badKeys["K2"]) > 0, "K3": true}
	for _, c := range cases {
		got, err := Decode(nil, c.stored, c.id, c.size)
		if !errors.Is(err, ErrCorrupt) || got != nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s %s: %d bytes, %v; want %q", c.rule, c.name, len(got), err, c.text)
		}
		rules[c.rule] = true
	}
	if got, err := Decode(nil, hello, helloSum, 5); err != nil || string(got) != "hello" {
		t.Errorf("the frame that the cases vary: %q, %v", got, err)
	}

	spec, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^- \*\*([A-Z]\d+)\*\* `).FindAllSubmatch(spec, -1)
	if len(found) != len(rules) {
		t.Errorf("FORMAT.md has %d rules, tested are %d", len(found), len(rules))
	}
	for _, m := range found {
		if !rules[string(m[1])] {
			t.Errorf("rule %s of FORMAT.md has no case", m[1])
		}
	}
}

// FrameSize promises more than Decode needs: package index reads by it as well.
func TestFrameSizeRefuses(t *testing.T) {
	raw := block(true, 0, 5, []byte("hello")...)
	if n, err := FrameSize(frame(0x20, []byte{5}, raw)); err != nil || n != 5 {
		t.Errorf("a good frame: %d, %v", n, err)
	}
	for name, stored := range map[string][]byte{
		"nothing":           nil,
		"a dictionary":      frame(0x21, []byte{9, 5}, raw),
		"no content size":   frame(0, []byte{0}, raw),
		"a skippable frame": {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0},
		"no block":          frame(0x20, []byte{5}),
		"half a block":      frame(0x20, []byte{5}, raw[:6]),
		"two last blocks":   frame(0x20, []byte{5}, raw, raw),
		"half a checksum":   frame(0x24, []byte{5}, raw, []byte{1, 2}),
	} {
		if n, err := FrameSize(stored); err == nil {
			t.Errorf("%s: %d", name, n)
		}
	}
}

// A flipped bit is refused, or it is one of the few that mean nothing to a decoder, as the unused one of a frame. In
// no case does it give other bytes.
func TestDecodeOfFlippedBits(t *testing.T) {
	plain := append(append(noise("a", 500), make([]byte, 500)...), strings.Repeat("some text, ", 100)...)
	stored := Encode(nil, plain)
	harmless := 0
	for i := range stored {
		for bit := range 8 {
			stored[i] ^= 1 << bit
			got, err := Decode(nil, stored, Sum(plain), len(plain))
			switch {
			case err == nil && bytes.Equal(got, plain):
				harmless++
			case !errors.Is(err, ErrCorrupt) || got != nil:
				t.Fatalf("bit %d of byte %d: %d bytes, %v", bit, i, len(got), err)
			}
			stored[i] ^= 1 << bit
		}
	}
	if harmless > 8 {
		t.Errorf("%d bits of %d bytes can be flipped", harmless, len(stored))
	}
}

// TestDecodeMemory: small frames that claim or hold much are refused without memory for it.
func TestDecodeMemory(t *testing.T) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	bomb := e.EncodeAll(make([]byte, 100<<20), nil)
	many := frame(0x20, []byte{5}, bytes.Repeat(block(false, 1, 128<<10, 0), 16), block(true, 1, 128<<10, 0))
	window := frame(0xc0, []byte{0xff, 5, 0, 0, 0, 0, 0, 0, 0}, block(true, 0, 5, []byte("hello")...)) // of 3.75 TiB
	if _, err := Decode(nil, Encode(nil, bomb), Sum(bomb), len(bomb)); err != nil {
		t.Fatal(err) // what is made once is made now
	}
	for name, c := range map[string]struct {
		stored []byte
		size   int
	}{
		"100 MB in a frame, 5 are wanted":      {bomb, 5},
		"100 MB in a frame, 64 K are wanted":   {bomb, 64 << 10},
		"2 MB in blocks of a frame of 5":       {many, 5},
		"a window of 3.75 TiB in a frame of 5": {window, 5},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := Decode(nil, c.stored, Sum([]byte("hello")), c.size)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrCorrupt) || got != nil {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: refused after allocating %d bytes", name, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, plain := range [][]byte{nil, []byte("hello"), make([]byte, 1000), noise("a", 300)} {
		f.Add(Encode(nil, plain), len(plain))
	}
	f.Add(frame(0x24, []byte{5}, block(true, 1, 5, 0, 1, 2, 3, 4)), 5)
	f.Fuzz(func(t *testing.T, stored []byte, size int) {
		n, err := FrameSize(stored)
		// An ID that fits is drawn from a decoder that knows no rule but zstd's, so that good frames get past the last one.
		var id ID
		if err == nil && n <= 1<<20 {
			if plain, err := decoder().DecodeAll(stored, make([]byte, 0, n)); err == nil {
				id = Sum(plain)
				size = len(plain)
			}
		}
		got, err := Decode(nil, stored, id, size)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || got != nil {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			return
		}
		if len(got) != size || Sum(got) != id {
			t.Fatalf("%d bytes of %s as %d of %s", len(got), Sum(got), size, id)
		}
		if again, err := Decode(nil, Encode(nil, got), id, size); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("encoded and decoded again it is %d bytes, %v", len(again), err)
		}
	})
}

// FuzzEncode holds MaxEncoded to what it promises.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("hello"), 1)
	f.Add(noise("a", 1000), 200)
	f.Fuzz(func(t *testing.T, part []byte, times int) {
		plain := bytes.Repeat(part, max(1, min(times, 1<<20/(len(part)+1))))
		stored := Encode(nil, plain)
		if len(stored) > MaxEncoded(len(plain)) {
			t.Fatalf("%d bytes are stored as %d", len(plain), len(stored))
		}
		if got, err := Decode(nil, stored, Sum(plain), len(plain)); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes come back as %d, %v", len(plain), len(got), err)
		}
	})
}
