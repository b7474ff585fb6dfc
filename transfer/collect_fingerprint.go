package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// Fingerprint stands for a chunk key where a false hit does no harm: 8 bytes instead of 40. A collector that takes a
// key for referenced keeps a piece of garbage; a saver that takes one for dead sends a chunk again.
func Fingerprint(k chunk.Key) uint64 {
	return binary.BigEndian.Uint64(k.ID[:8]) ^ k.Epoch*0x9e3779b97f4a7c15
}

const (
	// deadWidth is how many bits of a fingerprint a manifest for savers holds. With 36, a saver that asks for the 4,000
	// chunks of a tree of 890 MB among 4 million dead ones has one false hit in four saves.
	deadWidth = 36
	// maxManifest bounds such an object in bytes. It has room for 4 million keys, at some 15.5 bits each; whole
	// fingerprints would be 4 times as large. One that would be larger is not written: then what was learned before
	// cannot be checked, which is cheaper than to let every save read it.
	maxManifest = 8 << 20

	setMagic = "nbcgcfp1"
	setStart = len(setMagic) + 2 + 8
)

// errManifest says that an object of the collector's is not what it wrote.
var errManifest = errors.New("manifest of a collection is damaged")

// fingerprintSet is an encoded set of numbers of width bits. It is searched as it is: decoded, it would take four times
// the memory. Its bytes are specified in COLLECT.md.
type fingerprintSet struct {
	width, k uint
	count    uint64
	codes    []byte
}

// encodeFingerprints encodes a list that is sorted and has no number twice.
func encodeFingerprints(width uint, list []uint64) []byte {
	n := uint64(len(list))
	k := uint(0)
	if n > 0 {
		// A Rice code is shortest with a k near log2 of 0.69 times the mean gap.
		mean := ^uint64(0) >> (64 - width) / n
		k = uint(max(1, bits.Len64(mean-mean/4))) - 1 // 63 at most
	}
	b := make([]byte, 0, setStart+int(n*uint64(k+3)/8)+chunk.IDSize+8) // an estimate
	b = append(b, setMagic...)
	b = append(b, byte(width), byte(k))
	b = binary.BigEndian.AppendUint64(b, n)
	w := bitWriter{b: b}
	next := uint64(0)
	for _, f := range list {
		gap := f - next
		for q := gap >> k; q > 0; q-- {
			w.write(1, 1)
		}
		w.write(0, 1)
		w.write(gap, k)
		next = f + 1
	}
	b = w.done()
	sum := chunk.Sum(b)
	return append(b, sum[:]...)
}

// decodeFingerprints is the inverse. It returns errManifest for whatever no collector has written.
func decodeFingerprints(data []byte) (fingerprintSet, error) {
	body := len(data) - chunk.IDSize
	if body < setStart || string(data[:len(setMagic)]) != setMagic || chunk.Sum(data[:body]) != chunk.ID(data[body:]) {
		return fingerprintSet{}, errManifest
	}
	s := fingerprintSet{
		width: uint(data[len(setMagic)]), k: uint(data[len(setMagic)+1]),
		count: binary.BigEndian.Uint64(data[len(setMagic)+2:]), codes: data[setStart:body],
	}
	if s.width < 1 || s.width > 64 || s.k >= s.width || s.count > 8*uint64(len(s.codes))/uint64(s.k+1) {
		return fingerprintSet{}, errManifest
	}
	return s, nil
}

// each calls do with every number, in rising order, until it returns false.
func (s fingerprintSet) each(do func(uint64) bool) {
	r := bitReader{b: s.codes, left: 8 * len(s.codes)}
	next := uint64(0)
	for range s.count {
		q := r.ones()
		f := next + (q<<s.k | r.read(s.k))
		if r.left < 0 || !do(f) {
			return
		}
		next = f + 1
	}
}

// intersect calls hit with those of wanted, which is sorted, that are in the set.
func (s fingerprintSet) intersect(wanted []uint64, hit func(uint64)) {
	s.each(func(f uint64) bool {
		for len(wanted) > 0 && wanted[0] < f {
			wanted = wanted[1:]
		}
		if len(wanted) > 0 && wanted[0] == f {
			hit(f)
		}
		return len(wanted) > 0
	})
}

// list returns the numbers.
func (s fingerprintSet) list() []uint64 {
	list := make([]uint64, 0, s.count)
	s.each(func(f uint64) bool {
		list = append(list, f)
		return true
	})
	return list
}

// readFingerprints gets a set of numbers of that width.
func readFingerprints(ctx context.Context, s store.Store, key string, width uint, limit int64) (fingerprintSet, error) {
	o, err := s.Get(ctx, key, store.Read{Max: limit})
	if err != nil {
		return fingerprintSet{}, err
	}
	set, err := decodeFingerprints(o.Data)
	if err == nil && set.width != width {
		err = errManifest
	}
	if err != nil {
		return set, fmt.Errorf("%s: %w", key, err)
	}
	return set, nil
}

// bitWriter appends bits to b, filling each byte from its highest bit.
type bitWriter struct {
	b    []byte
	acc  uint64
	used uint
}

func (w *bitWriter) write(v uint64, n uint) {
	for n > 0 {
		take := min(n, 8-w.used)
		w.acc = w.acc<<take | v>>(n-take)&(1<<take-1)
		n -= take
		if w.used += take; w.used == 8 {
			w.b = append(w.b, byte(w.acc)) // eight bits
			w.acc, w.used = 0, 0
		}
	}
}

// done fills up the last byte with zeros.
func (w *bitWriter) done() []byte {
	if w.used > 0 {
		w.write(0, 8-w.used)
	}
	return w.b
}

// bitReader reads bits of b. Behind the end there are zeros, and left is negative.
type bitReader struct {
	b    []byte
	left int
	acc  uint64
	have uint // bits in acc, from its highest one
}

func (r *bitReader) fill() {
	for r.have <= 56 {
		if len(r.b) > 0 {
			r.acc |= uint64(r.b[0]) << (56 - r.have)
			r.b = r.b[1:]
		}
		r.have += 8
	}
}

func (r *bitReader) skip(n uint) {
	r.acc <<= n
	r.have -= n
	r.left -= int(n) // 64 at most
}

// ones counts one bits, and takes the zero behind them as well.
func (r *bitReader) ones() (n uint64) {
	for {
		r.fill()
		k := uint(bits.LeadingZeros64(^r.acc)) // 64 at most
		if k < r.have {
			r.skip(k + 1)
			return n + uint64(k)
		}
		n += uint64(r.have)
		r.skip(r.have)
	}
}

func (r *bitReader) read(n uint) (v uint64) {
	for n > 0 {
		r.fill()
		take := min(n, 32)
		v = v<<take | r.acc>>(64-take)
		r.skip(take)
		n -= take
	}
	return v
}

// references is a set of the fingerprints of chunk keys, of 8 bytes each, twice that while it grows. It is in 256 parts
// by the first byte of the ID, so that those who add to it seldom wait for each other.
type references struct {
	shards [256]shard
}

type shard struct {
	mu   sync.Mutex
	list []uint64 // sorted when settled
	// seen has a bit for each of list, for the chunks that are in the store.
	seen []uint64
}

// add adds the keys of chunks. It may be called concurrently.
func (r *references) add(chunks []index.Chunk) {
	// Sorted by shard first, so that each lock is taken once.
	var start [257]int
	for i := range chunks {
		start[int(chunks[i].ID[0])+1]++
	}
	for i := range 256 {
		start[i+1] += start[i]
	}
	list, at := make([]uint64, len(chunks)), start
	for i := range chunks {
		b := chunks[i].ID[0]
		list[at[b]] = Fingerprint(chunks[i].Key)
		at[b]++
	}
	for i := range 256 {
		if part := list[start[i]:start[i+1]]; len(part) > 0 {
			r.shards[i].add(part)
		}
	}
}

func (s *shard) add(part []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list)+len(part) > cap(s.list) {
		s.compact()
		if need := len(s.list) + len(part); need > cap(s.list)/4*3 {
			// Half of it stays free after this, so that sorting is rare.
			s.list = append(make([]uint64, 0, need+need/2+64), s.list...)
		}
	}
	s.list = append(s.list, part...)
}

func (s *shard) compact() {
	slices.Sort(s.list)
	s.list = slices.Compact(s.list)
}

// settle ends the adding and begins the asking.
func (r *references) settle() {
	for i := range r.shards {
		s := &r.shards[i]
		s.compact()
		s.list = slices.Clip(slices.Clone(s.list))
		s.seen = make([]uint64, (len(s.list)+63)/64)
	}
}

func (r *references) len() (n int) {
	for i := range r.shards {
		n += len(r.shards[i].list)
	}
	return n
}

// has says whether k is in the set, perhaps wrongly.
func (r *references) has(k chunk.Key) bool {
	_, ok := slices.BinarySearch(r.shards[k.ID[0]].list, Fingerprint(k))
	return ok
}

// see is has, and remembers what it was asked for. It may be called concurrently for IDs that begin differently.
func (r *references) see(k chunk.Key) bool {
	s := &r.shards[k.ID[0]]
	i, ok := slices.BinarySearch(s.list, Fingerprint(k))
	if ok {
		s.seen[i/64] |= 1 << (i % 64)
	}
	return ok
}

// missing says whether k is in the set and was never seen.
func (r *references) missing(k chunk.Key) bool {
	s := &r.shards[k.ID[0]]
	i, ok := slices.BinarySearch(s.list, Fingerprint(k))
	return ok && s.seen[i/64]&(1<<(i%64)) == 0
}

// unseen returns how many were never seen.
func (r *references) unseen() (n int) {
	for i := range r.shards {
		n += len(r.shards[i].list)
		for _, word := range r.shards[i].seen {
			n -= bits.OnesCount64(word)
		}
	}
	return n
}
