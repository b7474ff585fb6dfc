package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// inFlight bounds the plain bytes of all chunks that were asked for and are not written yet. At an average of 256 KiB
// it has room for the 64 that hide a round trip of 30 ms; twice as much gained nothing.
const inFlight = 16 << 20

// fetcher gets chunks ahead of those who take them. Chunks are asked for in the order in which they are wanted, so the
// bound on the bytes in flight cannot block: what a worker waits for was asked for before anything behind it.
type fetcher struct {
	cache  *Cache
	chunks []index.Chunk
	wanted []int // chunks that will be taken, once each
	bytes  *semaphore.Weighted

	mu    sync.Mutex
	slots map[int]chan stored // of the chunks that are asked for or waited for
}

// stored is a chunk as it came from the store.
type stored struct {
	data []byte
	err  error
}

// maxShared bounds the plain bytes of chunks that are kept because they will be taken once more. Copies of a file, and
// the zeros of a sparse one, are then asked for once; what is beyond the bound is asked for again.
const maxShared = 16 << 20

// shared is a chunk that is taken more than once.
type shared struct {
	done chan struct{} // closed when it is there
	stored
}

func newFetcher(c *Cache, chunks []index.Chunk, wanted []int) *fetcher {
	return &fetcher{
		cache: c, chunks: chunks, wanted: wanted,
		bytes: semaphore.NewWeighted(inFlight),
		slots: map[int]chan stored{},
	}
}

// slot returns where chunk i is handed over. Whoever comes first makes it.
func (f *fetcher) slot(i int) chan stored {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.slots[i]
	if s == nil {
		s = make(chan stored, 1)
		f.slots[i] = s
	}
	return s
}

// repeated says of each wanted chunk whether one that is wanted later is the same.
func (f *fetcher) repeated() []bool {
	again := make([]bool, len(f.wanted))
	last := make(map[chunk.Key]struct{}, len(f.wanted))
	for n := len(f.wanted) - 1; n >= 0; n-- {
		key := f.chunks[f.wanted[n]].Key
		if _, again[n] = last[key]; !again[n] {
			last[key] = struct{}{}
		}
	}
	return again
}

// run asks for all wanted chunks. It returns when the last one is there; the error of one goes to who takes it.
func (f *fetcher) run(ctx context.Context) error {
	g, _ := newCrew(ctx, f.cache.requests())
	defer func() { _ = g.Wait() }() // the functions return nothing but nil
	repeated := f.repeated()
	again := map[chunk.Key]*shared{}
	var kept int64
	for n, i := range f.wanted {
		c := &f.chunks[i]
		length := int64(c.Length)
		if err := f.bytes.Acquire(ctx, length); err != nil {
			return context.Cause(ctx)
		}
		s := again[c.Key]
		waits := s != nil
		switch {
		case waits && !repeated[n]:
			delete(again, c.Key)
			kept -= length
		case !waits && repeated[n] && kept+length <= maxShared:
			s = &shared{done: make(chan struct{})}
			again[c.Key] = s
			kept += length
		}
		slot := f.slot(i)
		g.Go(func() error {
			if waits { // for a function that has begun before
				<-s.done
				slot <- s.stored
				return nil
			}
			data, err := f.cache.getChunk(ctx, *c, false)
			if s != nil {
				s.stored = stored{data, err}
				close(s.done)
			}
			slot <- stored{data, err}
			return nil
		})
	}
	return nil
}

// take waits for chunk i and returns its plain bytes, in buf if it is large enough.
func (f *fetcher) take(ctx context.Context, i int, buf []byte) ([]byte, error) {
	c := f.chunks[i]
	select {
	case s := <-f.slot(i):
		f.mu.Lock()
		delete(f.slots, i)
		f.mu.Unlock()
		defer f.bytes.Release(int64(c.Length))
		if s.err != nil {
			return buf, s.err
		}
		plain, err := chunk.Decode(buf, s.data, c.ID, c.Length)
		if err == nil {
			return plain, nil
		}
		// Once more, from the far store: it may have been damaged on the way, or be a near copy that is.
		data, err2 := f.cache.getChunk(ctx, c, true)
		if err2 != nil {
			return buf, errors.Join(err, err2)
		}
		return chunk.Decode(buf, data, c.ID, c.Length)
	case <-ctx.Done():
		return buf, context.Cause(ctx)
	}
}

// getChunk reads a chunk's stored bytes; fresh passes near copies by.
func (c *Cache) getChunk(ctx context.Context, ch index.Chunk, fresh bool) ([]byte, error) {
	o, err := c.Store.Get(ctx, ch.Path(), store.Read{Max: int64(chunk.MaxEncoded(ch.Length)), Fresh: fresh})
	switch {
	case errors.Is(err, store.ErrNotExist):
		return nil, fmt.Errorf("%w: %s", ErrMissing, ch.Key)
	case errors.Is(err, store.ErrTooLarge):
		return nil, fmt.Errorf("%w: %s: %w", chunk.ErrCorrupt, ch.Key, err)
	case err != nil:
		return nil, fmt.Errorf("reading chunk %s: %w", ch.Key, err)
	}
	if p := c.Progress; !o.Near {
		p.Chunks.Add(1)
		p.Transferred.Add(int64(len(o.Data)))
	}
	return o.Data, nil
}

func isCorrupt(err error) bool { return errors.Is(err, chunk.ErrCorrupt) }
