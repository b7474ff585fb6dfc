package index

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

// summaryOf reads the summary of an index from exactly the bytes that it needs.
func summaryOf(data []byte) (Summary, error) {
	head, build, end, err := SummaryParts(data[:min(len(data), MaxHeader)])
	if err != nil {
		return Summary{}, err
	}
	if end > len(data) {
		return Summary{}, ErrInvalid
	}
	return DecodeSummary(data[:head], data[build:end])
}

// sameSummary checks that what can be decoded has the summary that belongs to it.
func sameSummary(t testing.TB, data []byte, x *Index) {
	t.Helper()
	got, err := summaryOf(data)
	if err != nil {
		t.Fatalf("an index that can be decoded has no summary: %v", err)
	}
	want := Summary{Epoch: x.Epoch, Chunks: x.Chunks, Bytes: x.Bytes(), Roots: x.Roots, Build: x.Build}
	for _, e := range x.Entries {
		switch e.Kind {
		case File:
			want.Files++
		case Dir:
			want.Dirs++
		case Link, HardLink:
			want.Links++
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("summary %+v, want %+v", got, want)
	}
	if got.Tombstone() != (len(x.Entries) == 0) {
		t.Errorf("an index of %d entries is a tombstone: %v", len(x.Entries), got.Tombstone())
	}
}

func TestSummary(t *testing.T) {
	for name, x := range map[string]*Index{
		"tombstone": {Epoch: 3}, "sample": sample(), "modules": newCorpus(1).nodeModules(500),
		"go": newCorpus(2).goCache(800),
	} {
		t.Run(name, func(t *testing.T) {
			data := mustEncode(t, x)
			sameSummary(t, data, x)
			// What is damaged in a part that is read is noticed; what is damaged in the sources is not looked at.
			head, build, _, err := SummaryParts(data)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range []int{0, 30, head - 1, head, build - 1, build, len(data) - 1} {
				broken := bytes.Clone(data)
				broken[at] ^= 1
				_, err := summaryOf(broken)
				inSources := at >= head && at < build
				if inSources != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
					t.Errorf("byte %d of %d changed: %v", at, len(data), err)
				}
			}
			if _, err := DecodeSummary(data[:head-1], data[build:]); !errors.Is(err, ErrInvalid) {
				t.Errorf("cut off: %v", err)
			}
			if _, err := DecodeSummary(data, data[build:len(data)-1]); !errors.Is(err, ErrInvalid) {
				t.Errorf("cut off at the end: %v", err)
			}
		})
	}
}

// TestSummaryRefusesSizes: sizes that are not those of the chunks.
func TestSummaryRefusesSizes(t *testing.T) {
	x := sample()
	data := mustEncode(t, x)
	p := plainSections(t, data)
	other := sample()
	for i := range other.Entries {
		if other.Entries[i].Kind == File {
			other.Entries[i].Size += 5
			other.Chunks[0].Length += 5
			break
		}
	}
	q := plainSections(t, mustEncode(t, other))
	c := &crafted{epoch: x.Epoch, plain: [kindOutputs][]byte{p[0], q[1], p[2], p[3]}}
	if _, err := summaryOf(c.data()); !errors.Is(err, ErrInvalid) {
		t.Errorf("sizes that do not add up: %v", err)
	}
}
