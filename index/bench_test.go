package index

import (
	"fmt"
	"testing"
)

// benchmarks calls f with trees of the sizes that the format is made for. Sources are as many as the entries.
func benchmarks(b *testing.B, f func(b *testing.B, x *Index)) {
	for _, n := range []int{12_600, 100_000} {
		b.Run(fmt.Sprintf("gocache/%d", n), func(b *testing.B) { f(b, newCorpus(1).goCache(n)) })
		b.Run(fmt.Sprintf("node_modules/%d", n), func(b *testing.B) { f(b, newCorpus(1).nodeModules(n)) })
		b.Run(fmt.Sprintf("node_modules+sources/%d", n), func(b *testing.B) {
			c := newCorpus(1)
			f(b, c.withSources(c.nodeModules(n)))
		})
	}
}

// report adds the size of the index: in all, and of the entries without chunk keys and sources.
func report(b *testing.B, x *Index, data []byte) {
	h, err := readHeader(data)
	if err != nil {
		b.Fatal(err)
	}
	files := float64(len(x.Entries))
	b.ReportMetric(float64(len(data)), "B")
	b.ReportMetric(float64(h.rows[kindEntries-1].stored)/files, "B/entry")
	b.ReportMetric(float64(uint64(len(data))-h.rows[kindSources-1].stored)/files, "B/file")
	if len(x.Sources) > 0 {
		b.ReportMetric(float64(h.rows[kindSources-1].stored)/float64(len(x.Sources)), "B/source")
	}
}

func BenchmarkEncode(b *testing.B) {
	benchmarks(b, func(b *testing.B, x *Index) {
		b.ReportAllocs()
		var data []byte
		for b.Loop() {
			var err error
			if data, err = x.Encode(); err != nil {
				b.Fatal(err)
			}
		}
		report(b, x, data)
	})
}

func BenchmarkDecode(b *testing.B) {
	benchmarks(b, func(b *testing.B, x *Index) {
		data, err := x.Encode()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(data); err != nil {
				b.Fatal(err)
			}
		}
		report(b, x, data)
	})
}

func BenchmarkDecodeChunks(b *testing.B) {
	benchmarks(b, func(b *testing.B, x *Index) {
		data, err := x.Encode()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := DecodeChunks(data); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(x.Chunks)), "chunks")
	})
}
