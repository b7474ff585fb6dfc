package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"nbc/transfer/store"
)

// Gets of chunks travel together. The first one leaves at once. While requests are under way those that come wait,
// until as many wait as are under way, or for a moment: so a restore that wants 64 chunks at any time sends some 30 of
// them at once, 3,000 chunks in a hundred requests, and half of them are always on their way. Waiting costs nothing
// that the chunks before would not have cost.

const (
	// maxBatches bounds the requests for chunks that are under way. Two are enough, until one waits for a slow chunk.
	maxBatches = 16
	// maxWait is for when nothing moves. In so long a restore uses some 20 chunks.
	maxWait = 5 * time.Millisecond
)

// batches sends the Gets of one client.
type batches struct {
	client *Client
	ctx    context.Context // ends with the client
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	queue   []*waiter // in the order in which they came
	away    int       // how many chunks are under way, those nobody waits for any more left out
	running int       // requests
	timer   *time.Timer
	closed  bool
}

// waiter is a Get that waits.
type waiter struct {
	key    string
	read   store.Read
	result chan result // of capacity 1, so that whoever brings it need not wait
	// By batches.mu:
	batch *batch // that it travels with; nil while it is in the queue
	over  bool   // it has its result, or has left
}

type result struct {
	object store.Object
	err    error
}

// batch is a request for chunks that is under way.
type batch struct {
	waiters []*waiter
	live    int // waiters that are not over; by batches.mu, like left
	left    int // waiters that have left
	cancel  context.CancelFunc
}

func (b *batches) begin(c *Client) {
	b.client = c
	b.ctx, b.cancel = context.WithCancel(context.Background())
}

// end ends what is under way and waits for it.
func (b *batches) end() {
	b.mu.Lock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	b.cancel()
	b.all.Wait()
}

// errClosed is what calls after Close get.
var errClosed = errors.New("the store was closed")

func (b *batches) get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	w := &waiter{key: key, read: r, result: make(chan result, 1)}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return store.Object{}, errClosed
	}
	b.queue = append(b.queue, w)
	b.send(false)
	b.mu.Unlock()
	select {
	case res := <-w.result:
		return res.object, res.err
	case <-ctx.Done():
		b.leave(w)
		return store.Object{}, fmt.Errorf("getting %s: %w", key, context.Cause(ctx))
	}
}

// send sends what waits, if it is time. It is called with mu held, whenever something has changed.
func (b *batches) send(late bool) {
	for len(b.queue) > 0 && b.running < maxBatches && !b.closed {
		if b.away > len(b.queue) && !late {
			if b.timer == nil {
				b.timer = time.AfterFunc(maxWait, b.hurry)
			}
			return
		}
		n := min(len(b.queue), maxKeys)
		one := &batch{waiters: b.queue[:n:n], live: n}
		b.queue = b.queue[n:]
		for _, w := range one.waiters {
			w.batch = one
		}
		b.away += n
		b.running++
		var ctx context.Context
		ctx, one.cancel = context.WithCancel(b.ctx)
		b.all.Go(func() { b.run(ctx, one) })
	}
}

// hurry sends what has waited for long enough.
func (b *batches) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = nil
	b.send(true)
}

// leave is for a Get whose caller has gone.
func (b *batches) leave(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.over {
		return
	}
	w.over = true
	if w.batch != nil {
		w.batch.left++
		b.settled(w.batch)
		return
	}
	for i := range b.queue {
		if b.queue[i] == w {
			b.queue = append(b.queue[:i:i], b.queue[i+1:]...)
			return
		}
	}
}

// settled counts a waiter of a batch that is over. It is called with mu held.
func (b *batches) settled(one *batch) {
	b.away--
	if one.live--; one.live == 0 && one.left > 0 {
		one.cancel() // nobody waits for what is still to come
	}
	b.send(false)
}

// bring gives a waiter its result, unless it has gone.
func (b *batches) bring(w *waiter, res result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.over {
		return
	}
	w.over = true
	w.result <- res
	b.settled(w.batch)
}

// waiting returns those of a batch that still wait.
func (b *batches) waiting(one *batch) (list []*waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range one.waiters {
		if !w.over {
			list = append(list, w)
		}
	}
	return list
}

// run asks for the chunks of a batch until each waiter has its result. When a reply breaks off, what has come has come,
// and the rest is asked for again.
func (b *batches) run(ctx context.Context, one *batch) {
	defer func() {
		one.cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.running--
		b.send(false)
	}()
	err := b.client.try(ctx, "getting chunks", func(ctx context.Context) (moved bool, err error) {
		list := b.waiting(one)
		if len(list) == 0 {
			return false, nil
		}
		err = b.fetch(ctx, list)
		return len(b.waiting(one)) < len(list), err
	})
	if err == nil {
		err = errors.New("getting chunks: the reply has not all of them") // fetch has made sure of it
	}
	for _, w := range b.waiting(one) {
		if b.ctx.Err() != nil {
			err = errClosed
		}
		b.bring(w, result{err: err})
	}
}

// fetch makes one request for chunks and brings those that come. It returns nil when all have come, and an error that
// isBusy knows if there was no room for some.
func (b *batches) fetch(ctx context.Context, list []*waiter) (err error) {
	var body []byte
	for _, w := range list {
		body = append(body, w.key...)
		body = append(body, ' ')
		body = strconv.AppendInt(body, w.read.Limit(), 10)
		if w.read.Fresh {
			body = append(body, " fresh"...)
		}
		body = append(body, '\n')
	}
	resp, err := b.client.request(ctx, http.MethodPost, chunksPath, nil, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // after an error its end is not wanted
	lines := bufio.NewReaderSize(resp.Body, maxLine)
	came := make([]bool, len(list))
	var noRoom error
	for missing := len(list); ; {
		var f frame
		if err := readLine(lines, &f); err != nil {
			return err
		}
		switch {
		case f.Beat:
			continue
		case f.End && missing == 0:
			// Reading on to the end of the body lets the connection be used again.
			if _, err := lines.ReadByte(); !errors.Is(err, io.EOF) {
				return &brokenError{fmt.Errorf("%w: something after its end", errProtocol)}
			}
			return noRoom
		case f.End, f.N < 0, f.N >= len(list), came[f.N]:
			return &brokenError{fmt.Errorf("%w: chunk %d of %d, %d missing", errProtocol, f.N, len(list), missing)}
		}
		w := list[f.N]
		came[f.N] = true
		missing--
		if f.Error != nil && f.Error.Retry > 0 {
			noRoom = f.Error // it still waits, and is asked for again
			continue
		}
		b.client.serves()
		if f.Error != nil {
			b.bring(w, result{err: fmt.Errorf("getting %s: nbc daemon: %w", w.key, f.Error)})
			continue
		}
		o := store.Object{Version: f.Version, Size: f.Bytes, Near: f.Near}
		if f.Bytes < 0 || f.Bytes > w.read.Limit() || f.Version == "" {
			return &brokenError{fmt.Errorf("%w: %d bytes of a chunk, version %q", errProtocol, f.Bytes, f.Version)}
		}
		o.Data = make([]byte, f.Bytes)
		if _, err := io.ReadFull(lines, o.Data); err != nil {
			return &brokenError{err}
		}
		b.bring(w, result{object: o})
	}
}
