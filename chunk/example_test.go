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
	stream := strings.NewReader(strings.Repeat("x", 1_000_000))
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
	// 655360 fcf7a914845bf9485b8b5df15d0724512f299c54ed17c14dfc32bd40237071e3
	// 344640 063dcd402a480ea740082d440c0263097af0dcf8d85115c7fbe9136189165404
}

func ExampleParsePath() {
	key, err := chunk.ParsePath("chunks/ea/ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f.7")
	fmt.Println(key.ID == chunk.Sum([]byte("hello")), key.Epoch, err)
	// Output: true 7 <nil>
}
