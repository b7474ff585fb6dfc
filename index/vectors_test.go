package index

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"nbc/chunk"
)

var update = flag.Bool("update", false, "encode the published vectors that have no bytes yet")

const vectorFile = "testdata/index.json"

// vectors is the file of published vectors. What it says is part of the format: a change of the code that makes a test
// of it fail is wrong, not the file. Bytes are added for new vectors, and never changed.
type vectors struct {
	Comment string    `json:"comment"`
	Vectors []*vector `json:"vectors"`
}

type vector struct {
	Name    string      `json:"name"`
	Comment string      `json:"comment"`
	Index   vectorIndex `json:"index"`
	Hex     string      `json:"hex"`
}

type vectorIndex struct {
	Epoch   uint64         `json:"epoch,string"`
	Chunks  []vectorChunk  `json:"chunks"`
	Roots   []raws         `json:"roots"`
	Entries []vectorEntry  `json:"entries"`
	Sources []vectorSource `json:"sources"`
	Build   struct {
		Root     raws   `json:"root"`
		Host     raws   `json:"host"`
		Saved    int64  `json:"saved,string"`
		Patterns []raws `json:"patterns"`
		Failures uint64 `json:"failures,string"`
		Version  raws   `json:"version"`
	} `json:"build"`
	Outputs *vectorOutputs `json:"outputs,omitempty"`
}

type vectorOutputs struct {
	List []struct {
		Name string `json:"name"`
		Path string `json:"path"`
		// Placeholders of the hash alone, and with its name.
		Placeholders [2]string `json:"placeholders"`
	} `json:"list"`
	NoRewrite   []raws `json:"no_rewrite"`
	Occurrences []struct {
		Offset int64  `json:"offset,string"`
		Output uint16 `json:"output"`
		Named  bool   `json:"named"`
	} `json:"occurrences"`
}

type vectorChunk struct {
	Key    string `json:"key"`
	Length int    `json:"length"`
}

type vectorEntry struct {
	Path   raws   `json:"path"`
	Kind   string `json:"kind"`
	Mode   string `json:"mode,omitempty"`
	Size   int64  `json:"size,omitempty"`
	MTime  int64  `json:"mtime,omitempty,string"`
	Target raws   `json:"target,omitempty"`
}

type vectorSource struct {
	Path    raws   `json:"path"`
	Kind    string `json:"kind"`
	MTime   int64  `json:"mtime,string"`
	Sum     string `json:"sum,omitempty"`
	Unknown bool   `json:"unknown,omitempty"`
}

// raws is a string of bytes; in JSON each is the character of its number, so "ü" is the byte 0xfc.
type raws string

func (r *raws) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	var out []byte
	for _, c := range s {
		if c > 0xff {
			return fmt.Errorf("%q is not a byte", c)
		}
		out = append(out, byte(c))
	}
	*r = raws(out)
	return nil
}

func (r raws) MarshalJSON() ([]byte, error) {
	var out []rune
	for _, c := range []byte(r) {
		out = append(out, rune(c))
	}
	return json.Marshal(string(out))
}

func (v *vectorIndex) index(t *testing.T) *Index {
	kind := func(name string) Kind {
		for k := File; k <= HardLink; k++ {
			if k.String() == name {
				return k
			}
		}
		t.Fatalf("unknown kind %q", name)
		return 0
	}
	x := &Index{Epoch: v.Epoch, Build: Build{
		Root: string(v.Build.Root), Host: string(v.Build.Host), Saved: v.Build.Saved,
		Failures: v.Build.Failures, Version: string(v.Build.Version),
	}}
	for _, p := range v.Build.Patterns {
		x.Build.Patterns = append(x.Build.Patterns, string(p))
	}
	for _, r := range v.Roots {
		x.Roots = append(x.Roots, string(r))
	}
	for _, c := range v.Chunks {
		key, err := chunk.ParseKey(c.Key)
		if err != nil {
			t.Fatal(err)
		}
		x.Chunks = append(x.Chunks, Chunk{Key: key, Length: c.Length})
	}
	for _, e := range v.Entries {
		entry := Entry{Path: string(e.Path), Kind: kind(e.Kind), Size: e.Size, MTime: e.MTime, Target: string(e.Target)}
		if e.Mode != "" {
			if _, err := fmt.Sscanf(e.Mode, "%o", &entry.Mode); err != nil {
				t.Fatal(err)
			}
		}
		x.Entries = append(x.Entries, entry)
	}
	for _, s := range v.Sources {
		source := Source{Path: string(s.Path), Kind: kind(s.Kind), MTime: s.MTime, Unknown: s.Unknown}
		if n, err := hex.Decode(source.Sum[:], []byte(s.Sum)); err != nil || n != SumSize && !s.Unknown {
			t.Fatalf("sum %q: %v", s.Sum, err)
		}
		x.Sources = append(x.Sources, source)
	}
	if v.Outputs == nil {
		return x
	}
	for _, o := range v.Outputs.List {
		out := Output{o.Name, o.Path}
		if got := [2]string{out.Placeholder(false), out.Placeholder(true)}; got != o.Placeholders {
			t.Errorf("placeholders of %v: %q", out, got)
		}
		x.Outputs.List = append(x.Outputs.List, out)
	}
	for _, p := range v.Outputs.NoRewrite {
		x.Outputs.NoRewrite = append(x.Outputs.NoRewrite, string(p))
	}
	for _, c := range v.Outputs.Occurrences {
		x.Outputs.Occurrences = append(x.Outputs.Occurrences, Occurrence{c.Offset, c.Output, c.Named})
	}
	return x
}

func readVectors(t *testing.T) *vectors {
	t.Helper()
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return &v
}

// TestVectors decodes what is published. An encoder may choose other bytes than those, as long as they mean the same.
func TestVectors(t *testing.T) {
	all := readVectors(t)
	if len(all.Vectors) < 4 {
		t.Fatalf("%d vectors", len(all.Vectors))
	}
	for _, v := range all.Vectors {
		want := v.Index.index(t)
		if v.Hex == "" && *update {
			v.Hex = hex.EncodeToString(mustEncode(t, want))
		}
		data, err := hex.DecodeString(v.Hex)
		if err != nil {
			t.Fatal(err)
		}
		x, err := Decode(data)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		if !reflect.DeepEqual(x, want) {
			t.Errorf("%s: decoded\n%+v\nwant\n%+v", v.Name, x, want)
		}
		again := mustEncode(t, want)
		if y, err := Decode(again); err != nil || !reflect.DeepEqual(y, want) {
			t.Errorf("%s: encoded and decoded again it is\n%+v, %v\nwant\n%+v", v.Name, y, err, want)
		}
		// What is compressed is fixed, how it is compressed is not.
		if got, want := plainSections(t, again), plainSections(t, data); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the sections are encoded as\n%x\nwant\n%x", v.Name, got, want)
		}
		epoch, chunks, err := DecodeChunks(data)
		if err != nil || epoch != want.Epoch || !reflect.DeepEqual(chunks, want.Chunks) {
			t.Errorf("%s: chunks %v of epoch %d, %v", v.Name, chunks, epoch, err)
		}
	}
	if *update && !t.Failed() {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "\t")
		if err := e.Encode(all); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExample compares the dump in FORMAT.md, and what stands beside its lines, with the vector of the same name.
func TestExample(t *testing.T) {
	spec, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(spec), "\n## An example\n")
	if !ok {
		t.Fatal("FORMAT.md has no example")
	}
	var dump []byte
	line := regexp.MustCompile(`(?m)^    ([0-9a-f]{3})  ((?:[0-9a-f]{2} ?)+)(?:  .*)?$`)
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		if at := fmt.Sprintf("%03x", len(dump)); at != m[1] {
			t.Errorf("the line of offset %s is at %s", m[1], at)
		}
		b, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		dump = append(dump, b...)
	}
	for _, v := range readVectors(t).Vectors {
		if v.Name == "example" {
			if hex.EncodeToString(dump) != v.Hex {
				t.Errorf("FORMAT.md shows\n%x\nthe vector is\n%s", dump, v.Hex)
			}
			return
		}
	}
	t.Error("there is no vector of the name \"example\"")
}
