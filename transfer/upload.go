package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// encodedInFlight bounds the stored bytes that wait for an answer of the store: room for 64 chunks that compress to half
// their size, and for 30 that do not at all. Chunks that are being compressed come on top, one for each core.
const encodedInFlight = 8 << 20

// upload turns segments into chunks in the store.
//
//	segments --scan--> plain chunks --encode--> stored chunks --put--> the store
//	         as many   a fixed number as many   bounded bytes 64 at once
//	         as cores  of buffers     as cores
//
// The number of buffers, one for each scanner and encoder, is what holds a scanner back when encoders fall behind, and the
// bytes in flight hold back the encoders when the store does. Scanners and encoders are apart so that a segment of one large file, which only one
// scanner can cut, is still hashed and compressed by all cores.
type upload struct {
	*saving
	buffers chan []byte

	mu      sync.Mutex
	claimed map[chunk.ID]bool // chunks that this save sends or has sent
}

func newUpload(s *saving) *upload {
	n := 2 * runtime.GOMAXPROCS(0)
	u := &upload{saving: s, buffers: make(chan []byte, n), claimed: map[chunk.ID]bool{}}
	for range n {
		u.buffers <- nil // made when first used
	}
	return u
}

func (u *upload) total(list []*segment) (n int64) {
	for _, s := range list {
		n += s.size
	}
	return n
}

// scanned is a plain chunk on its way to the encoders.
type scanned struct {
	segment *segment
	number  int
	plain   []byte
}

// run reads the files of list and fills in the segments' chunks. All chunks are in the store when it returns nil.
func (u *upload) run(ctx context.Context, list []*segment) error {
	if len(list) == 0 {
		return nil
	}
	cores := runtime.GOMAXPROCS(0)
	g, gctx := errgroup.WithContext(ctx)
	work := make(chan *segment)
	g.Go(func() error {
		defer close(work)
		for _, s := range list {
			select {
			case work <- s:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	plain := make(chan scanned)
	var scanners sync.WaitGroup
	for range min(cores, len(list)) {
		scanners.Add(1)
		g.Go(func() error {
			defer scanners.Done()
			var splitter *chunk.Splitter
			memory := u.find.memory()
			for s := range work {
				r := &contentReader{root: u.root, files: s.files, progress: u.cache.Progress}
				if in := u.find.reader(s, r, memory); splitter == nil {
					splitter = chunk.NewSplitter(in, u.params)
				} else {
					splitter.Reset(in)
				}
				if err := u.scan(gctx, s, splitter, plain); err != nil {
					return errors.Join(err, r.close())
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		scanners.Wait()
		close(plain)
		return nil
	})
	puts, putCtx := newCrew(gctx, u.cache.requests())
	bytes := semaphore.NewWeighted(encodedInFlight + int64(cores*chunk.MaxEncoded(u.params.Max)))
	var encoders sync.WaitGroup
	for range cores {
		encoders.Add(1)
		g.Go(func() error {
			defer encoders.Done()
			scratch := make([]byte, 0, chunk.MaxEncoded(u.params.Max))
			for c := range plain {
				if err := u.encode(putCtx, c, scratch, puts, bytes); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		encoders.Wait() // nothing is added to puts any more
		return puts.Wait()
	})
	err := g.Wait()
	u.buffers = nil // what comes next is in need of memory as well
	return err
}

// scan cuts one segment.
func (u *upload) scan(ctx context.Context, s *segment, splitter *chunk.Splitter, out chan<- scanned) error {
	for n := 0; ; n++ {
		var buf []byte
		select {
		case buf = <-u.buffers:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if buf == nil {
			buf = make([]byte, 0, u.params.Max)
		}
		plain, err := splitter.Next(buf)
		if errors.Is(err, io.EOF) {
			u.buffers <- buf
			return nil
		}
		if err != nil {
			u.buffers <- buf
			return err
		}
		u.mu.Lock()
		s.chunks = append(s.chunks, index.Chunk{Length: len(plain)})
		u.mu.Unlock()
		select {
		case out <- scanned{s, n, plain}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// encode names a chunk, and sends it if the store does not have it. What is sent is copied from scratch, where any chunk
// has room, to where it has just enough: with buffers that were used again a save took 6 MB more, and as long.
func (u *upload) encode(
	ctx context.Context, c scanned, scratch []byte, puts *crew, bytes *semaphore.Weighted,
) error {
	id := chunk.Sum(c.plain)
	u.mu.Lock()
	g, known := u.known[id]
	mine := !known && !u.claimed[id]
	if !known {
		g = u.state.Epoch
		u.claimed[id] = true
	}
	key := chunk.Key{ID: id, Epoch: g}
	c.segment.chunks[c.number].Key = key
	u.mu.Unlock()
	if !mine {
		u.buffers <- c.plain[:0]
		return nil
	}
	size := int64(chunk.MaxEncoded(len(c.plain)))
	if err := bytes.Acquire(ctx, size); err != nil {
		u.buffers <- c.plain[:0]
		return context.Cause(ctx)
	}
	stored := slices.Clone(chunk.Encode(scratch, c.plain))
	u.buffers <- c.plain[:0]
	bytes.Release(size - int64(len(stored)))
	puts.Go(func() error {
		defer bytes.Release(int64(len(stored)))
		return u.put(ctx, key, stored)
	})
	return nil
}

func (u *upload) put(ctx context.Context, key chunk.Key, stored []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	crash("chunk")
	if _, err := u.cache.Store.Put(ctx, key.Path(), stored, store.Condition{}); err != nil {
		return fmt.Errorf("putting chunk %s: %w", key, err)
	}
	crash("chunk put")
	u.cache.Progress.Chunks.Add(1)
	u.cache.Progress.Transferred.Add(int64(len(stored)))
	return nil
}

// again sends those chunks of x once more, under a new epoch, that may not be referred to any longer under their
// present keys. They are read at their place in the contents, and checked: the file may have changed meanwhile.
func (u *upload) again(ctx context.Context, x *index.Index, epoch uint64, refused func(chunk.Key) bool) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(u.cache.requests(), 4*runtime.GOMAXPROCS(0)))
	sent := map[chunk.ID]bool{}
	var pos int64
	for i := range x.Chunks {
		c := &x.Chunks[i]
		at := pos
		pos += int64(c.Length)
		if !refused(c.Key) {
			continue
		}
		c.Key.Epoch = epoch
		if sent[c.ID] {
			continue
		}
		sent[c.ID] = true
		key, length := c.Key, c.Length
		g.Go(func() error {
			plain, err := u.readAt(at, length)
			if err != nil {
				return err
			}
			if err := u.find.normalise(plain, at, x.Outputs.Occurrences); err != nil || chunk.Sum(plain) != key.ID {
				return fmt.Errorf("%w: contents at %d", ErrChanging, at)
			}
			return u.put(gctx, key, chunk.Encode(nil, plain))
		})
	}
	return g.Wait()
}

// readAt reads a piece of the contents.
func (u *upload) readAt(pos int64, length int) ([]byte, error) {
	i, found := slices.BinarySearchFunc(u.files, pos, func(c content, pos int64) int {
		switch {
		case c.offset+c.entry.Size <= pos:
			return -1
		case c.offset > pos:
			return 1
		}
		return 0
	})
	if !found {
		return nil, fmt.Errorf("no file at %d of the contents", pos)
	}
	r := &contentReader{root: u.root, files: u.files[i:], skip: pos - u.files[i].offset, progress: new(Progress)}
	plain := make([]byte, length)
	_, err := io.ReadFull(r, plain)
	if err := errors.Join(err, r.close()); err != nil {
		return nil, fmt.Errorf("reading at %d of the contents: %w", pos, err)
	}
	return plain, nil
}

// contentReader reads files one after another as one stream, and makes sure that each is what the walk saw.
type contentReader struct {
	root     string
	files    []content
	skip     int64 // of the first file
	progress *Progress

	file *os.File
	left int64 // of file
}

func (r *contentReader) Read(b []byte) (int, error) {
	for r.file == nil {
		if len(r.files) == 0 {
			return 0, io.EOF
		}
		if r.files[0].entry.Size == 0 {
			r.files = r.files[1:]
			continue
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	if int64(len(b)) > r.left {
		b = b[:r.left]
	}
	n, err := r.file.Read(b)
	r.left -= int64(n)
	r.progress.Bytes.Add(int64(n))
	if r.left == 0 {
		// Whatever else may have gone wrong with the read, all bytes are there.
		return n, r.done()
	}
	if errors.Is(err, io.EOF) || err == nil && n == 0 {
		return n, fmt.Errorf("%w: %s became shorter", ErrChanging, r.files[0].entry.Path)
	}
	if err != nil {
		return n, local(fmt.Errorf("reading an artifact: %w", err))
	}
	return n, nil
}

// next opens the next file.
func (r *contentReader) next() error {
	f := &r.files[0]
	file, err := index.OpenFile(r.root, f.entry.Path)
	if err != nil {
		if st, err2 := index.LstatFile(r.root, f.entry.Path); err2 != nil || st != *f.stat {
			return fmt.Errorf("%w: %w", ErrChanging, err)
		}
		return local(fmt.Errorf("reading an artifact: %w", err))
	}
	if r.skip > 0 {
		if _, err := file.Seek(r.skip, io.SeekStart); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	r.file, r.left, r.skip = file, f.entry.Size-r.skip, 0
	return nil
}

// done closes a file that was read to its end.
func (r *contentReader) done() error {
	st, err := index.FstatFile(r.file)
	if err := errors.Join(err, r.close()); err != nil {
		return err
	}
	if *r.files[0].stat != st {
		return fmt.Errorf("%w: %s", ErrChanging, r.files[0].entry.Path)
	}
	r.progress.Files.Add(1)
	r.files = r.files[1:]
	return nil
}

func (r *contentReader) close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}
