package chunk_test

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"nbc/chunk"
)

func Example() {
	// Store a chunk under its key …
	plain := []byte(strings.Repeat("all work and no play ", 500))
	key := chunk.Key{ID: chunk.Sum(plain), Epoch: 7}
	stored := chunk.Encode(nil, plain)
	fmt.Println(key.Path(), len(plain), "bytes")

	// … and read it back: only these bytes can come out.
	back, err := chunk.Decode(nil, stored, key.ID, len(plain))
	fmt.Println(string(back[:20]), err)

	stored[len(stored)/2] ^= 1
	_, err = chunk.Decode(nil, stored, key.ID, len(plain))
	fmt.Println(errors.Is(err, chunk.ErrCorrupt))
	// Output:
	// chunks/4c/4c88f2ea94c42314e16c6ac431b77fa958707549c1823e7f6c3ef714ef7d32bf.7 10500 bytes
	// all work and no play <nil>
	// true
}

func ExampleSplitter() {
	stream := strings.NewReader(strings.Repeat("x", 1_500_000))
	params := chunk.DefaultParams()
	s := chunk.NewSplitter(stream, params)
	buf := make([]byte, 0, params.Max)
	for {
		piece, err := s.Next(buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(len(piece), chunk.Sum(piece))
	}
	// Output:
	// 1048576 ee4badf0134a6e1deca8a3e18d8d66fbcd3057d479da8bd77ba54ef3ee1c1782
	// 451424 71e5a29a8e48631a741dc1d20e36186a98b10bbacaabd5af28fcbc9a74925ca8
}

func ExampleParsePath() {
	key, err := chunk.ParsePath("chunks/ea/ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f.7")
	fmt.Println(key.ID == chunk.Sum([]byte("hello")), key.Epoch, err)
	// Output: true 7 <nil>
}
