package index

import (
	"bytes"
	"testing"
)

// An index is the same bytes whether or not an earlier one was at hand, be it damaged, foreign, or one of other sections.
func TestEncodeAfterIsEncode(t *testing.T) {
	c := newCorpus(1)
	x := c.withSources(c.nodeModules(300))
	plain, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(plain)
	damaged[len(damaged)/2] ^= 1
	next := *x
	next.Build.Saved++
	other, err := newCorpus(2).nodeModules(300).Encode()
	if err != nil {
		t.Fatal(err)
	}
	want, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, old := range map[string][]byte{
		"nothing": nil, "the same": want, "the one before": plain, "another": other, "damaged": damaged,
		"cut off": plain[:len(plain)-1], "a header": plain[:300], "garbage": []byte("what is this"),
	} {
		got, err := next.EncodeAfter(old)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("after %s: %d bytes, %v; want those of Encode", name, len(got), err)
		}
	}
}

func BenchmarkEncodeAfter(b *testing.B) {
	benchmarks(b, func(b *testing.B, x *Index) {
		old, err := x.Encode()
		if err != nil {
			b.Fatal(err)
		}
		x.Build.Saved++
		b.ReportAllocs()
		for b.Loop() {
			if _, err := x.EncodeAfter(old); err != nil {
				b.Fatal(err)
			}
		}
	})
}
