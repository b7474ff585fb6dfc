package transfer

import (
	"context"
	"errors"
	"fmt"

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
	slots  map[int]chan stored
	bytes  *semaphore.Weighted
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
	f := &fetcher{
		cache: c, chunks: chunks, wanted: wanted,
		slots: make(map[int]chan stored, len(wanted)),
		bytes: semaphore.NewWeighted(inFlight),
	}
	for _, i := range wanted {
		f.slots[i] = make(chan stored, 1)
	}
	return f
}

// run asks for all wanted chunks. It returns when the last one is there; the error of one goes to who takes it.
func (f *fetcher) run(ctx context.Context) error {
	g, _ := newCrew(ctx, f.cache.requests())
	defer func() { _ = g.Wait() }() // the functions return nothing but nil
	uses := make(map[chunk.Key]int, len(f.wanted))
	for _, i := range f.wanted {
		uses[f.chunks[i].Key]++
	}
	again := map[chunk.Key]*shared{}
	var kept int64
	for _, i := range f.wanted {
		c := &f.chunks[i]
		length := int64(c.Length)
		if err := f.bytes.Acquire(ctx, length); err != nil {
			return context.Cause(ctx)
		}
		uses[c.Key]--
		s := again[c.Key]
		waits := s != nil
		switch left := uses[c.Key]; {
		case waits && left == 0:
			delete(again, c.Key)
			kept -= length
		case !waits && left > 0 && kept+length <= maxShared:
			s = &shared{done: make(chan struct{})}
			again[c.Key] = s
			kept += length
		}
		g.Go(func() error {
			if waits { // for a function that has begun before
				<-s.done
				f.slots[i] <- s.stored
				return nil
			}
			data, err := f.cache.getChunk(ctx, *c, false)
			if s != nil {
				s.stored = stored{data, err}
				close(s.done)
			}
			f.slots[i] <- stored{data, err}
			return nil
		})
	}
	return nil
}

// take waits for chunk i and returns its plain bytes, in buf if it is large enough.
func (f *fetcher) take(ctx context.Context, i int, buf []byte) ([]byte, error) {
	c := f.chunks[i]
	select {
	case s := <-f.slots[i]:
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
