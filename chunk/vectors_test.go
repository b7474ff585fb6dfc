package chunk

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"strconv"
	"testing"

	"github.com/restic/chunker"
)

var update = flag.Bool("update", false, "fill in the published vectors that have no result yet")

// part of the plain bytes of a vector, as FORMAT.md says.
type part struct {
	Text   string `json:"text,omitempty"`
	XOF    string `json:"xof,omitempty"`
	Repeat string `json:"repeat,omitempty"`
	Bytes  int    `json:"bytes,omitempty"`
}

func plainOf(t *testing.T, parts []part) []byte {
	t.Helper()
	var plain []byte
	for _, p := range parts {
		switch {
		case p.XOF != "":
			plain = append(plain, noise(p.XOF, p.Bytes)...)
		case p.Repeat != "":
			b, err := hex.DecodeString(p.Repeat)
			if err != nil {
				t.Fatal(err)
			}
			plain = append(plain, bytes.Repeat(b, p.Bytes/len(b)+1)[:p.Bytes]...)
		default:
			plain = append(plain, p.Text...)
		}
	}
	return plain
}

type piece struct {
	Length int    `json:"length"`
	ID     string `json:"id"`
}

// splitVectors is the file of published cuts. A change of the code that makes its test fail is wrong, not the file: a
// store that was filled with other cuts would not be used any more.
type splitVectors struct {
	Comment string `json:"comment"`
	Vectors []*struct {
		Name       string  `json:"name"`
		Polynomial string  `json:"polynomial"`
		Min        int     `json:"min"`
		Max        int     `json:"max"`
		Bits       int     `json:"bits"`
		Plain      []part  `json:"plain"`
		Chunks     []piece `json:"chunks"`
	} `json:"vectors"`
}

// storedVectors is the file of published chunks as they are stored.
type storedVectors struct {
	Comment string `json:"comment"`
	Vectors []struct {
		Name   string `json:"name"`
		Plain  []part `json:"plain"`
		Length int    `json:"length"`
		ID     string `json:"id"`
		Stored string `json:"stored"`
	} `json:"vectors"`
}

func readVectors(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func TestSplitVectors(t *testing.T) {
	const file = "testdata/split.json"
	var all splitVectors
	readVectors(t, file, &all)
	if len(all.Vectors) < 6 {
		t.Fatalf("%d vectors", len(all.Vectors))
	}
	for _, v := range all.Vectors {
		pol, err := strconv.ParseUint(v.Polynomial, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		p := Params{Polynomial: pol, Min: v.Min, Max: v.Max, Bits: v.Bits}
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		stream := plainOf(t, v.Plain)
		got := []piece{}
		for _, c := range split(t, NewSplitter(bytes.NewReader(stream), p)) {
			got = append(got, piece{len(c), Sum(c).String()})
		}
		if v.Chunks == nil && *update {
			v.Chunks = got
		}
		if !reflect.DeepEqual(got, v.Chunks) {
			t.Errorf("%s: cut into\n%v\nwant\n%v", v.Name, got, v.Chunks)
		}
	}
	if *update && !t.Failed() {
		b, err := json.MarshalIndent(all, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDefaultParams: the first vectors are of the parameters that new stores get.
func TestDefaultParams(t *testing.T) {
	if pol := chunker.Pol(defaultPolynomial); pol.Deg() != 53 || !pol.Irreducible() {
		t.Error("the polynomial is not what Validate takes it for")
	}
	if p := DefaultParams(); p != (Params{Polynomial: 0x37a260098117ad, Min: 131072, Max: 1048576, Bits: 17}) {
		t.Errorf("%+v are not those of FORMAT.md", p)
	}
}

func TestStoredVectors(t *testing.T) {
	var all storedVectors
	readVectors(t, "testdata/stored.json", &all)
	if len(all.Vectors) < 4 {
		t.Fatalf("%d vectors", len(all.Vectors))
	}
	for _, v := range all.Vectors {
		stored, err := hex.DecodeString(v.Stored)
		if err != nil {
			t.Fatal(err)
		}
		id, err := ParseID(v.ID)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(nil, stored, id, v.Length)
		if err != nil || !bytes.Equal(got, plainOf(t, v.Plain)) {
			t.Errorf("%s: %d bytes, %v", v.Name, len(got), err)
		}
	}
}
