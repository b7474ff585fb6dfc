package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// objects is n bytes that compress about as object files do, to a fifth: records of few kinds with random fields.
func objects(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+64)
	for len(b) < n {
		b = append(b, fmt.Sprintf("\x00\x00.text.%04d", r.IntN(400))...)
		b = append(b, make([]byte, 24)...)
		b = append(b, byte(r.Uint32()), byte(r.Uint32()), 0, 0, byte(r.Uint32()), 0, 0, 0x48, 0x89)
	}
	return b[:n]
}

func BenchmarkSplit(b *testing.B) {
	data := objects(64 << 20)
	p := DefaultParams()
	buf := make([]byte, 0, p.Max)
	r := bytes.NewReader(data)
	s := NewSplitter(r, p)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	chunks := 0
	for b.Loop() {
		r.Reset(data)
		s.Reset(r)
		for chunks = 0; ; chunks++ {
			if _, err := s.Next(buf); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(len(data))/float64(chunks), "B/chunk")
}

func BenchmarkSum(b *testing.B) {
	data := objects(160 << 10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		Sum(data)
	}
}

// kinds of content: objects compress, what is compressed already does not.
func benchmarks(b *testing.B, f func(b *testing.B, plain []byte)) {
	b.Run("objects", func(b *testing.B) { f(b, objects(160<<10)) })
	b.Run("noise", func(b *testing.B) { f(b, noise("bench", 160<<10)) })
}

func BenchmarkEncode(b *testing.B) {
	benchmarks(b, func(b *testing.B, plain []byte) {
		buf := make([]byte, 0, MaxEncoded(len(plain)))
		b.SetBytes(int64(len(plain)))
		b.ReportAllocs()
		n := 0
		for b.Loop() {
			n = len(Encode(buf, plain))
		}
		b.ReportMetric(float64(n)/float64(len(plain)), "stored/plain")
	})
}

func BenchmarkDecode(b *testing.B) {
	benchmarks(b, func(b *testing.B, plain []byte) {
		stored, id := Encode(nil, plain), Sum(plain)
		buf := make([]byte, 0, len(plain))
		b.SetBytes(int64(len(plain)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(buf, stored, id, len(plain)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
