package index

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"

	"nbc/chunk"
)

// seeds are the published vectors and some broken ones.
func seeds(f *testing.F) [][]byte {
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		f.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		f.Fatal(err)
	}
	var list [][]byte
	for _, v := range v.Vectors {
		data, err := hex.DecodeString(v.Hex)
		if err != nil {
			f.Fatal(err)
		}
		list = append(list, data, data[:len(data)/2])
	}
	return append(list, mustEncode(f, sample()), mustEncode(f, withOutputs()), mustEncode(f, newCorpus(1).nodeModules(50)))
}

// FuzzDecode changes bytes of good indexes. The hashes are made to fit once more, or they would hide all the rest.
func FuzzDecode(f *testing.F) {
	for _, data := range seeds(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		decodeTwice(t, data)
		decodeTwice(t, resealed(data))
	})
}

// FuzzSections makes up the plain sections, so that no frame hides them.
func FuzzSections(f *testing.F) {
	for _, x := range []*Index{{}, sample(), withOutputs(), newCorpus(1).nodeModules(20), newCorpus(1).goCache(300)} {
		p := plainSections(f, mustEncode(f, x))
		f.Add(x.Epoch, p[0], p[1], p[2], p[3], p[4])
	}
	f.Fuzz(func(t *testing.T, epoch uint64, chunks, entries, sources, build, outputs []byte) {
		c := &crafted{epoch: epoch, plain: [kindOutputs][]byte{chunks, entries, sources, build, outputs}}
		for i := range c.plain {
			if c.plain[i] == nil && i < known {
				c.plain[i] = []byte{}
			}
		}
		decodeTwice(t, c.data())
	})
}

// decodeTwice makes sure that what is accepted is valid, and means the same when it is encoded and decoded again.
func decodeTwice(t *testing.T, data []byte) {
	t.Helper()
	kept := bytes.Clone(data)
	x, err := Decode(data)
	epoch, verifyErr := Verify(data)
	if !bytes.Equal(kept, data) {
		t.Fatal("Decode changed what it read")
	}
	if (err == nil) != (verifyErr == nil) || errors.Is(err, ErrVersion) != errors.Is(verifyErr, ErrVersion) {
		t.Fatalf("Decode says %v, Verify %v", err, verifyErr)
	}
	if err == nil && epoch != x.Epoch {
		t.Fatalf("the epoch is %d, Verify says %d", x.Epoch, epoch)
	}
	if err != nil {
		if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrVersion) || x != nil {
			t.Fatalf("Decode: %+v, %v", x, err)
		}
		return
	}
	if err := x.Validate(); err != nil {
		t.Fatalf("decoded: %v", err)
	}
	again := mustEncode(t, x)
	y, err := Decode(again)
	if err != nil || !reflect.DeepEqual(x, y) {
		t.Fatalf("decoded\n%+v\nand again\n%+v, %v", x, y, err)
	}
	if a, b := plainSections(t, data), plainSections(t, again); !reflect.DeepEqual(a, b) {
		t.Fatalf("one content has two forms:\n%x\n%x", a, b)
	}
	chunkEpoch, chunks, err := DecodeChunks(data)
	if errors.Is(err, ErrVersion) {
		return // a section that only a reader of the chunk keys has to know
	}
	if err != nil || chunkEpoch != x.Epoch || !reflect.DeepEqual(chunks, x.Chunks) {
		t.Fatalf("DecodeChunks: %d, %v, %v", chunkEpoch, chunks, err)
	}
	sameSummary(t, data, x)
}

// FuzzDecodeChunks reads prefixes.
func FuzzDecodeChunks(f *testing.F) {
	for _, data := range seeds(f) {
		f.Add(data, len(data))
		if n, err := PrefixSize(data); err == nil {
			f.Add(data, n)
			f.Add(data, n-1)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		data = resealed(data)
		prefix := data[:max(0, min(n, len(data)))]
		need, sizeErr := PrefixSize(prefix)
		epoch, chunks, err := DecodeChunks(prefix)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrVersion) || chunks != nil {
				t.Fatalf("DecodeChunks: %v, %v", chunks, err)
			}
			return
		}
		if sizeErr != nil || need > len(prefix) {
			t.Fatalf("%d bytes are enough, PrefixSize says %d, %v", len(prefix), need, sizeErr)
		}
		for _, c := range chunks {
			if c.Epoch > epoch || c.Length < 1 || c.Length > chunk.MaxSize {
				t.Fatalf("a chunk %v in epoch %d", c, epoch)
			}
		}
		if e, again, err := DecodeChunks(data[:need]); err != nil || e != epoch || !reflect.DeepEqual(again, chunks) {
			t.Fatalf("of what is needed it decodes %v, %v; of more %v", again, err, chunks)
		}
	})
}
