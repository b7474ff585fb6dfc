package index

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"nbc/chunk"
)

// corpus makes up trees with the paths, sizes and times of real ones: the same for the same seed.
type corpus struct{ *rand.Rand }

func newCorpus(seed uint64) corpus { return corpus{rand.New(rand.NewPCG(seed, 0))} }

// start and span of a build of ten minutes. Times are random nanoseconds in it, which is the worst there is.
var start = time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC).UnixNano()

const span = int64(10 * time.Minute)

func (c corpus) time() int64 { return start + c.Int64N(span) }

// size of a file: half of them are under 13 KB, one in a hundred is above 800 KB.
func (c corpus) size() int64 { return int64(math.Exp(9.5 + 1.8*c.NormFloat64())) }

func (c corpus) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(c.Uint32())
	}
	return b
}

var words = strings.Fields(`index util lib core types test main error helper parse format config client server node
	stream buffer event async cache token syntax string number object array map set list queue tree graph path file
	read write open close sync lock merge diff patch apply create update delete find filter sort reduce fold scan
	match replace split join trim encode decode hash sign verify random date time zone locale color style layout
	render view model route store state action effect hook context provider consumer router link`)

// word picks few words often, as names do.
func (c corpus) word() string { return words[int(math.Pow(float64(len(words)), c.Float64()))-1] }

// goCache has n files named like those of a Go build cache: 256 directories of names that are hashes.
func (c corpus) goCache(n int) *Index {
	x := &Index{Epoch: 7, Roots: []string{".gocache"}}
	x.add(Entry{Path: ".gocache", Kind: Dir, Mode: 0o755, MTime: c.time()})
	for i := range 256 {
		x.add(Entry{Path: fmt.Sprintf(".gocache/%02x", i), Kind: Dir, Mode: 0o755, MTime: c.time()})
	}
	for range (n - len(x.Entries)) / 2 {
		action, output, t := c.bytes(32), c.bytes(32), c.time()
		x.add(Entry{Path: fmt.Sprintf(".gocache/%02x/%x-a", action[0], action), Kind: File, Mode: 0o644, Size: 175, MTime: t})
		x.add(Entry{
			Path: fmt.Sprintf(".gocache/%02x/%x-d", output[0], output), Kind: File, Mode: 0o644, Size: c.size(),
			MTime: t - c.Int64N(1e6),
		})
	}
	return c.finish(x)
}

// nodeModules has n files named like those of installed packages.
func (c corpus) nodeModules(n int) *Index {
	x := &Index{Epoch: 7, Roots: []string{"node_modules"}}
	x.add(Entry{Path: "node_modules", Kind: Dir, Mode: 0o755, MTime: c.time()})
	seen := map[string]bool{}
	dir := func(path string) bool {
		if seen[path] {
			return false
		}
		seen[path] = true
		x.add(Entry{Path: path, Kind: Dir, Mode: 0o755, MTime: c.time()})
		return true
	}
	for len(x.Entries) < n {
		pkg := "node_modules/" + c.word() + "-" + c.word()
		if c.IntN(4) == 0 {
			scope := "node_modules/@" + c.word()
			dir(scope)
			pkg = scope + "/" + c.word() + "-" + c.word()
		}
		if !dir(pkg) {
			continue
		}
		file := func(path string) {
			if !seen[path] {
				seen[path] = true
				x.add(Entry{Path: path, Kind: File, Mode: 0o644, Size: c.size() / 4, MTime: c.time()})
			}
		}
		file(pkg + "/package.json")
		file(pkg + "/README.md")
		file(pkg + "/LICENSE")
		for range 1 + c.IntN(4) {
			sub := pkg + "/" + c.word()
			if c.IntN(3) == 0 {
				dir(sub)
				sub += "/" + c.word()
			}
			dir(sub)
			for range c.IntN(15) {
				name := sub + "/" + c.word()
				if c.IntN(2) == 0 {
					name += strings.ToUpper(c.word()[:1]) + c.word()[1:]
				}
				file(name + ".js")
				if c.IntN(2) == 0 {
					file(name + ".d.ts")
				}
			}
		}
	}
	return c.finish(x)
}

// withSources gives x one source for each entry.
func (c corpus) withSources(x *Index) *Index {
	x.Sources = append(x.Sources, Source{Path: ".", Kind: Dir, MTime: c.time(), Sum: [SumSize]byte(c.bytes(SumSize))})
	for i := range x.Entries {
		e := &x.Entries[i]
		kind := e.Kind
		if kind == HardLink {
			kind = File
		}
		x.Sources = append(x.Sources, Source{
			Path: "src/" + e.Path, Kind: kind, MTime: c.time(),
			Sum: [SumSize]byte(c.bytes(SumSize)),
		})
	}
	return x
}

func (x *Index) add(e Entry) { x.Entries = append(x.Entries, e) }

// finish sorts the entries and adds the chunks of their contents, of 160 KiB on average.
func (c corpus) finish(x *Index) *Index {
	slices.SortFunc(x.Entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	for left := x.Bytes(); left > 0; {
		length := min(left, int64(96<<10)+int64(c.ExpFloat64()*65536), 640<<10)
		left -= length
		x.Chunks = append(x.Chunks, Chunk{
			Key:    chunk.Key{ID: chunk.ID(c.bytes(chunk.IDSize)), Epoch: x.Epoch - uint64(c.IntN(8)/7)},
			Length: int(length),
		})
	}
	x.Build = Build{
		Root: "/home/builder/project", Host: "builder", Saved: start + span, Patterns: x.Roots, Version: "0.1.0",
	}
	return x
}
