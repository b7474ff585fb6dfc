package index

import (
	"bytes"
	"strings"
	"testing"
)

// An index is the same bytes whether or not an earlier one was at hand, whatever of it is different.
func TestEncodeAfterIsEncode(t *testing.T) {
	c := newCorpus(1)
	x := c.withSources(c.nodeModules(300))
	x.Outputs = Outputs{List: []Output{{"out", "/nix/store/" + strings.Repeat("0", 32) + "-a"}}, NoRewrite: []string{"*.x"}}
	old, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	was, err := Decode(old)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(x *Index){
		"nothing":       func(*Index) {},
		"the build":     func(x *Index) { x.Build.Saved++ },
		"the epoch":     func(x *Index) { x.Epoch++ },
		"a chunk":       func(x *Index) { x.Chunks[0].ID[31] ^= 1 },
		"a chunk's age": func(x *Index) { x.Chunks[0].Epoch-- },
		"a time":        func(x *Index) { x.Entries[len(x.Entries)-1].MTime++ },
		"a mode":        func(x *Index) { x.Entries[len(x.Entries)-1].Mode ^= 1 },
		"a source":      func(x *Index) { x.Sources[1].Sum[0] ^= 1 },
		"an output":     func(x *Index) { x.Outputs.List[0].Path += "b" },
		"an exception":  func(x *Index) { x.Outputs.NoRewrite = nil },
		"no outputs":    func(x *Index) { x.Outputs = Outputs{} },
	} {
		next, err := Decode(old)
		if err != nil {
			t.Fatal(err)
		}
		change(next)
		want, err := next.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := next.EncodeAfter(was, old)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want the %d of Encode", name, len(got), err, len(want))
		}
		if bytes.Equal(got, old) != (name == "nothing") {
			t.Errorf("%s: the old bytes: %v", name, bytes.Equal(got, old))
		}
	}
}

func BenchmarkEncodeAfter(b *testing.B) {
	benchmarks(b, func(b *testing.B, x *Index) {
		old, err := x.Encode()
		if err != nil {
			b.Fatal(err)
		}
		was, err := Decode(old)
		if err != nil {
			b.Fatal(err)
		}
		x.Build.Saved++
		b.ReportAllocs()
		for b.Loop() {
			if _, err := x.EncodeAfter(was, old); err != nil {
				b.Fatal(err)
			}
		}
	})
}
