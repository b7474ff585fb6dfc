package transfer

import (
	"context"
	"sync"
)

// crew runs functions as an errgroup with a limit does, but on goroutines that stay. A call of an S3 client goes some 60
// functions deep and needs 32 KB of stack; a new goroutine for each chunk grows its own from 2 KB, by copying it four
// times, which took 9 % of a cold restore's cpu time.
type crew struct {
	limit  int
	work   chan func() error
	all    sync.WaitGroup
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	size int
	err  error
}

// newCrew returns a crew of at most limit goroutines, and a context that ends with the first error.
func newCrew(ctx context.Context, limit int) (*crew, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &crew{limit: limit, work: make(chan func() error), cancel: cancel}, ctx
}

// Go calls f as soon as one of the crew is free, and returns when it has begun. It may be called concurrently, and not
// after Wait.
func (c *crew) Go(f func() error) {
	select {
	case c.work <- f:
		return
	default:
	}
	c.mu.Lock()
	more := c.size < c.limit
	if more {
		c.size++
	}
	c.mu.Unlock()
	if !more {
		c.work <- f
		return
	}
	c.all.Go(func() {
		c.call(f)
		for f := range c.work {
			c.call(f)
		}
	})
}

func (c *crew) call(f func() error) {
	if err := f(); err != nil {
		c.mu.Lock()
		if c.err == nil {
			c.err = err
			c.cancel(err)
		}
		c.mu.Unlock()
	}
}

// Wait waits for all functions, ends the goroutines, and returns the first error.
func (c *crew) Wait() error {
	close(c.work)
	c.all.Wait()
	c.cancel(c.err)
	return c.err
}
