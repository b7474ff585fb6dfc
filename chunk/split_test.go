package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"
)

// small parameters make many chunks of little content.
var small = Params{Polynomial: DefaultParams().Polynomial, Min: 1 << 10, Max: 8 << 10, Bits: 10}

func split(t testing.TB, s *Splitter) [][]byte {
	t.Helper()
	var chunks [][]byte
	for {
		c, err := s.Next(nil)
		if errors.Is(err, io.EOF) {
			if _, err := s.Next(nil); !errors.Is(err, io.EOF) {
				t.Fatalf("after the end: %v", err)
			}
			return chunks
		}
		if err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, c)
	}
}

// checkChunks says what FORMAT.md says of all chunks of a stream.
func checkChunks(t testing.TB, chunks [][]byte, stream []byte, p Params) {
	t.Helper()
	if !bytes.Equal(slices.Concat(chunks...), stream) {
		t.Fatalf("%d chunks are not the stream", len(chunks))
	}
	for i, c := range chunks {
		if len(c) == 0 || len(c) > p.Max || len(c) < p.Min && i < len(chunks)-1 {
			t.Fatalf("chunk %d of %d has %d bytes, of %d to %d", i, len(chunks), len(c), p.Min, p.Max)
		}
	}
}

// specified cuts as FORMAT.md says, bit by bit: it is what the splitter is compared with.
func specified(stream []byte, p Params) (chunks [][]byte) {
	fingerprint := func(window []byte) (f uint64) {
		for _, b := range window {
			for bit := 7; bit >= 0; bit-- {
				f = f<<1 | uint64(b>>bit&1)
				if f>>53 != 0 {
					f ^= p.Polynomial
				}
			}
		}
		return f
	}
	for len(stream) > 0 {
		n := min(p.Min, len(stream))
		for n < len(stream) && n < p.Max && bits.TrailingZeros64(fingerprint(stream[n-64:n])) < p.Bits {
			n++
		}
		chunks = append(chunks, stream[:n])
		stream = stream[n:]
	}
	return chunks
}

func TestSplitterIsAsSpecified(t *testing.T) {
	other := Params{Polynomial: 0x3da3358b4dc173, Min: 1 << 10, Max: 4 << 10, Bits: 9}
	if err := other.Validate(); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for _, p := range []Params{small, other} {
		for _, stream := range [][]byte{
			noise("a", 100_000),
			slices.Concat(noise("b", 3000), make([]byte, 5000), noise("b", 9000), bytes.Repeat([]byte("text\n"), 3000)),
			make([]byte, 10_000), bytes.Repeat([]byte{1}, 20_000), noise("c", p.Min), noise("c", p.Min-1),
			{7},
			{},
		} {
			got, want := split(t, NewSplitter(bytes.NewReader(stream), p)), specified(stream, p)
			checkChunks(t, got, stream, p)
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%d bytes are cut into %v, want %v", len(stream), lengths(got), lengths(want))
			}
			cuts += len(want)
		}
	}
	if cuts < 100 {
		t.Errorf("only %d chunks were compared", cuts)
	}
}

func lengths(chunks [][]byte) (n []int) {
	for _, c := range chunks {
		n = append(n, len(c))
	}
	return n
}

// stutter reads as many bytes at once as the numbers say, and nothing at all now and then.
type stutter struct {
	r     io.Reader
	steps []byte
	i     int
}

func (s *stutter) Read(p []byte) (int, error) {
	if len(s.steps) > 0 {
		step := int(s.steps[s.i%len(s.steps)])
		s.i++
		if step == 0 && s.i%2 == 0 {
			return 0, nil
		}
		p = p[:min(len(p), 1+step*step)]
	}
	return s.r.Read(p)
}

// TestCutsDoNotDependOnReads: how a stream is read, and what the splitter did before, changes nothing.
func TestCutsDoNotDependOnReads(t *testing.T) {
	s := NewSplitter(bytes.NewReader(nil), small)
	rapid.Check(t, func(rt *rapid.T) {
		stream := noise(rapid.String().Draw(rt, "seed"), rapid.IntRange(0, 60_000).Draw(rt, "bytes"))
		want := split(t, NewSplitter(bytes.NewReader(stream), small))
		checkChunks(t, want, stream, small)
		steps := rapid.SliceOfN(rapid.Byte(), 1, 9).Draw(rt, "steps")
		for name, r := range map[string]io.Reader{
			"one byte":            iotest.OneByteReader(bytes.NewReader(stream)),
			"halves":              iotest.HalfReader(bytes.NewReader(stream)),
			"error with the data": iotest.DataErrReader(bytes.NewReader(stream)),
			"random":              &stutter{r: bytes.NewReader(stream), steps: steps},
		} {
			s.Reset(r)
			if got := split(t, s); !slices.EqualFunc(got, want, bytes.Equal) {
				rt.Fatalf("%s: %v, want %v", name, lengths(got), lengths(want))
			}
		}
		// A stream that is given up in the middle leaves nothing behind.
		s.Reset(bytes.NewReader(stream))
		_, _ = s.Next(nil)
	})
}

// An insertion changes the chunk that it is in, and mostly no other: this is what all the saving rests on.
func TestCutsComeBackAfterAnInsertion(t *testing.T) {
	stream := noise("stream", 8<<20)
	old := map[ID]bool{}
	for _, c := range split(t, NewSplitter(bytes.NewReader(stream), DefaultParams())) {
		old[Sum(c)] = true
	}
	changed := slices.Concat(stream[:3<<20], []byte("inserted"), stream[3<<20:])
	fresh := 0
	for _, c := range split(t, NewSplitter(bytes.NewReader(changed), DefaultParams())) {
		if !old[Sum(c)] {
			fresh++
		}
	}
	if fresh == 0 || fresh > 3 {
		t.Errorf("%d of %d chunks are new", fresh, len(old))
	}
}

func TestAverage(t *testing.T) {
	p := DefaultParams()
	n := len(split(t, NewSplitter(bytes.NewReader(noise("average", 32<<20)), p)))
	if got := 32 << 20 / n; got < p.Average()*85/100 || got > p.Average()*115/100 {
		t.Errorf("the average is %d bytes, Average says %d", got, p.Average())
	}
}

func TestNextUsesTheBuffer(t *testing.T) {
	s := NewSplitter(bytes.NewReader(noise("a", 2<<20)), DefaultParams())
	buf := make([]byte, 0, DefaultParams().Max)
	for {
		c, err := s.Next(buf)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if &c[0] != &buf[:1][0] {
			t.Fatal("a buffer of the largest size is reallocated")
		}
	}
}

// TestNextAfterAReadThatFailed: a failure is never taken for the end, whatever error it is, and it stays.
func TestNextAfterAReadThatFailed(t *testing.T) {
	fault := errors.New("a fault of the disk")
	for _, err := range []error{fault, io.ErrUnexpectedEOF, io.ErrClosedPipe, fmt.Errorf("wrapped: %w", io.EOF)} {
		for _, after := range []int{0, 1, small.Min, 5000, 600 << 10} {
			s := NewSplitter(io.MultiReader(bytes.NewReader(noise("a", after)), iotest.ErrReader(err)), small)
			done := make(chan error, 1)
			go func() {
				for {
					if _, err := s.Next(nil); err != nil {
						done <- err
						return
					}
				}
			}()
			var got error
			select {
			case got = <-done:
			case <-time.After(30 * time.Second):
				t.Fatalf("%v after %d bytes: no end", err, after)
			}
			if errors.Is(got, io.EOF) || !errors.Is(err, io.EOF) && !errors.Is(got, err) {
				t.Errorf("%v after %d bytes: %v", err, after, got)
			}
			if _, again := s.Next(nil); again == nil || again.Error() != got.Error() {
				t.Errorf("%v after %d bytes: %v, and then %v", err, after, got, again)
			}
			s.Reset(bytes.NewReader([]byte("hello")))
			if c := split(t, s); len(c) != 1 || string(c[0]) != "hello" {
				t.Errorf("%v after %d bytes: the next stream is %q", err, after, c)
			}
		}
	}
}

// A reader that fails once and then goes on has lost nobody knows what, so Next does not go on.
func TestNextDoesNotGoOn(t *testing.T) {
	r := io.MultiReader(bytes.NewReader(noise("a", 3000)), iotest.TimeoutReader(iotest.OneByteReader(
		bytes.NewReader(noise("b", 30_000)))))
	s := NewSplitter(r, small)
	for {
		if _, err := s.Next(nil); err == nil {
			continue
		} else if !errors.Is(err, iotest.ErrTimeout) {
			t.Fatal(err)
		}
		break
	}
	for range 3 {
		if c, err := s.Next(nil); !errors.Is(err, iotest.ErrTimeout) {
			t.Fatalf("after a failure: %d bytes, %v", len(c), err)
		}
	}
}

func TestNextWithInvalidParams(t *testing.T) {
	s := NewSplitter(bytes.NewReader(noise("a", 5000)), Params{Min: 1024, Max: 2048, Bits: 10})
	if c, err := s.Next(nil); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", len(c), err)
	}
}

func TestParamsValidate(t *testing.T) {
	p := DefaultParams()
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if err := small.Validate(); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func(p *Params){
		"polynomial 0":                 func(p *Params) { p.Polynomial = 0 },
		"polynomial of degree 52":      func(p *Params) { p.Polynomial >>= 1 },
		"polynomial of degree 54":      func(p *Params) { p.Polynomial <<= 1 },
		"polynomial that is a product": func(p *Params) { p.Polynomial ^= 1 }, // divisible by x
		"min 1023":                     func(p *Params) { p.Min = 1023 },
		"min 0":                        func(p *Params) { p.Min = 0 },
		"min -1":                       func(p *Params) { p.Min = -1 },
		"min above max":                func(p *Params) { p.Min = p.Max + 1 },
		"max above 8 MiB":              func(p *Params) { p.Max = 8<<20 + 1 },
		"7 bits":                       func(p *Params) { p.Bits = 7 },
		"24 bits":                      func(p *Params) { p.Bits = 24 },
		"-1 bits":                      func(p *Params) { p.Bits = -1 },
	} {
		p := DefaultParams()
		edit(&p)
		if err := p.Validate(); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("seed"), 3000, []byte{1, 0, 200}, false)
	f.Add([]byte{}, 20_000, []byte{}, true)
	f.Add(noise("a", 3000), 40_000, []byte{255}, false)
	f.Fuzz(func(t *testing.T, part []byte, n int, steps []byte, random bool) {
		n = max(0, min(n, 1<<18))
		var stream []byte
		switch {
		case random:
			stream = noise(string(part), n)
		case len(part) > 0:
			stream = bytes.Repeat(part, n/len(part)+1)
		}
		want := split(t, NewSplitter(bytes.NewReader(stream), small))
		checkChunks(t, want, stream, small)
		got := split(t, NewSplitter(&stutter{r: bytes.NewReader(stream), steps: steps}, small))
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatalf("read in other pieces it is cut into %v, want %v", lengths(got), lengths(want))
		}
		// A chunk depends on nothing before it.
		if len(want) > 1 {
			rest := split(t, NewSplitter(bytes.NewReader(stream[len(want[0]):]), small))
			if !slices.EqualFunc(rest, want[1:], bytes.Equal) {
				t.Fatalf("without its first chunk it is cut into %v, want %v", lengths(rest), lengths(want[1:]))
			}
		}
	})
}
