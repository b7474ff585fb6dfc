package index_test

import (
	"errors"
	"fmt"

	"nbc/chunk"
	"nbc/index"
)

func saved() *index.Index {
	return &index.Index{
		Epoch: 2,
		Chunks: []index.Chunk{
			{Key: chunk.Key{ID: chunk.Sum([]byte("hello")), Epoch: 1}, Length: 5},
		},
		Roots: []string{"dist"},
		Entries: []index.Entry{
			{Path: "dist", Kind: index.Dir, Mode: 0o755, MTime: 1_777_630_000_000_000_000},
			{Path: "dist/hello", Kind: index.File, Mode: 0o644, Size: 5, MTime: 1_777_630_000_123_456_789},
		},
	}
}

func ExampleDecode() {
	data, err := saved().Encode()
	if err != nil {
		fmt.Println(err)
		return
	}
	x, err := index.Decode(data)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range x.Entries {
		fmt.Printf("%03o %s %s, %d bytes\n", e.Mode, e.Kind, e.Path, e.Size)
	}
	_, err = index.Decode(data[:100])
	fmt.Println(errors.Is(err, index.ErrInvalid))
	// Output:
	// 755 directory dist, 0 bytes
	// 644 file dist/hello, 5 bytes
	// true
}

// A garbage collector reads the chunk keys of an index by one request for its first bytes, and a second one only for
// the index of a large tree.
func ExampleDecodeChunks() {
	object, err := saved().Encode()
	if err != nil {
		fmt.Println(err)
		return
	}
	get := func(length int) []byte { return object[:min(length, len(object))] } // a ranged read of a store

	data := get(index.FirstRead)
	n, err := index.PrefixSize(data)
	if err != nil {
		fmt.Println(err)
		return
	}
	if n > len(data) {
		data = get(n)
	}
	epoch, chunks, err := index.DecodeChunks(data)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("epoch", epoch)
	for _, c := range chunks {
		fmt.Println(c.Length, c.Path())
	}
	// Output:
	// epoch 2
	// 5 chunks/ea/ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f.1
}

func ExampleIndex_Validate() {
	x := saved()
	x.Entries[1].Path = "dist/../../.bashrc"
	fmt.Println(x.Validate())
	// Output: not a valid index: entry "dist/../../.bashrc" has the component ".."
}

func ExamplePath() {
	path, err := index.Path("myapp/main")
	fmt.Println(path, err)
	// Output: index/myapp~2fmain <nil>
}
