package transfer

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"nbc/chunk"
	"nbc/index"
)

// sortedFingerprints draws a set of numbers of that width, thin or crowded.
func sortedFingerprints(t *rapid.T, width uint) []uint64 {
	limit := ^uint64(0) >> (64 - width)
	if rapid.Bool().Draw(t, "crowded") {
		limit = min(limit, 1000)
	}
	list := rapid.SliceOfN(rapid.Uint64Range(0, limit), 0, 300).Draw(t, "list")
	if rapid.Bool().Draw(t, "ends") {
		list = append(list, 0, ^uint64(0)>>(64-width))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func TestFingerprintSetIsWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.SampledFrom([]uint{deadWidth, 64}).Draw(t, "width")
		list := sortedFingerprints(t, width)
		set, err := decodeFingerprints(encodeFingerprints(width, list))
		if err != nil {
			t.Fatal(err)
		}
		if got := set.list(); !slices.Equal(got, list) || set.width != width {
			t.Fatalf("width %d, got %v, want %v", set.width, got, list)
		}
		wanted := sortedFingerprints(t, width)
		var hits []uint64
		set.intersect(wanted, func(f uint64) { hits = append(hits, f) })
		var want []uint64
		for _, f := range wanted {
			if _, ok := slices.BinarySearch(list, f); ok {
				want = append(want, f)
			}
		}
		if !slices.Equal(hits, want) {
			t.Fatalf("found %v, want %v", hits, want)
		}
	})
}

// What is damaged is refused; what has another hash, too. That is all: only collectors write these objects.
func TestFingerprintSetRefusesDamage(t *testing.T) {
	data := encodeFingerprints(deadWidth, []uint64{1, 5, 1 << 35})
	for i := range data {
		for bit := range 8 {
			bad := slices.Clone(data)
			bad[i] ^= 1 << bit
			if _, err := decodeFingerprints(bad); err == nil {
				t.Fatalf("bit %d of byte %d may be wrong", bit, i)
			}
		}
		if _, err := decodeFingerprints(data[:i]); err == nil {
			t.Fatalf("%d of %d bytes are accepted", i, len(data))
		}
	}
	// With a right hash around wrong contents nothing is read beyond what is there.
	body := data[:len(data)-chunk.IDSize]
	binary.BigEndian.PutUint64(body[len(setMagic)+2:], 24)
	sum := chunk.Sum(body)
	set, err := decodeFingerprints(append(slices.Clone(body), sum[:]...))
	if err == nil && len(set.list()) > 24 {
		t.Fatal("more numbers than it counts")
	}
}

// The size is what the notes say savers pay.
func TestFingerprintSetSize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	list := make([]uint64, 1<<17)
	for i := range list {
		list[i] = r.Uint64() >> (64 - deadWidth)
	}
	slices.Sort(list)
	list = slices.Compact(list)
	perKey := float64(8*len(encodeFingerprints(deadWidth, list))) / float64(len(list))
	if perKey > 20.6 { // 36 - 17 + 1.5 bits
		t.Errorf("%.1f bits for each of %d keys", perKey, len(list))
	}
}

func randomChunks(r *rand.Rand, n int) []index.Chunk {
	list := make([]index.Chunk, n)
	for i := range list {
		for j := 0; j < chunk.IDSize; j += 8 {
			binary.BigEndian.PutUint64(list[i].ID[j:], r.Uint64())
		}
		list[i].Epoch = r.Uint64N(5)
	}
	return list
}

func TestReferences(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	all := randomChunks(r, 40_000)
	in, out := all[:30_000], all[30_000:]
	var refs references
	var wg sync.WaitGroup
	for range 8 { // every key is added by several at once, in parts of all sizes
		list := slices.Clone(in)
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		wg.Go(func() {
			for n := 1; len(list) > 0; n = min(2*n, len(list)) {
				refs.add(list[:n])
				list = list[n:]
			}
		})
	}
	wg.Wait()
	refs.settle()
	if refs.len() != len(in) || refs.unseen() != len(in) {
		t.Fatalf("%d keys, %d unseen; want %d", refs.len(), refs.unseen(), len(in))
	}
	for i, c := range in {
		if !refs.has(c.Key) || !refs.missing(c.Key) {
			t.Fatal("a key is not in the set")
		}
		if i%3 == 0 && (!refs.see(c.Key) || refs.missing(c.Key)) {
			t.Fatal("a key that was seen is missing")
		}
	}
	if want := len(in) - (len(in)+2)/3; refs.unseen() != want {
		t.Fatalf("%d unseen, want %d", refs.unseen(), want)
	}
	for _, c := range out {
		if refs.has(c.Key) || refs.see(c.Key) || refs.missing(c.Key) {
			t.Fatal("a key is in the set that was not added")
		}
	}
}

// The bytes that COLLECT.md shows are those that are written.
func TestExamplesOfTheSpecification(t *testing.T) {
	data, err := os.ReadFile("COLLECT.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(data)), "")
	s := newShelf(t)
	w := &partWriter{cache: s.cache, most: 1000, list: Condemned{Key: "gc/m/2.cond.x"}}
	if err := w.add(t.Context(), condemnedKey{chunk.Key{ID: chunk.Sum([]byte("chunk")), Epoch: 300}, 14}); err != nil {
		t.Fatal(err)
	}
	list, err := w.done(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, example := range []string{
		string(encodeFingerprints(deadWidth, []uint64{1, 5, 1 << 35})), s.objects("gc/m/")[list.part(0)],
	} {
		if h := hex.EncodeToString([]byte(example)); !strings.Contains(text, h) {
			t.Errorf("COLLECT.md does not have %s", h)
		}
	}
}
