package transfer

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

func TestCrew(t *testing.T) {
	const limit, calls = 3, 1000
	c, ctx := newCrew(t.Context(), limit)
	var running, most, done atomic.Int64
	var callers errgroup.Group
	for range 4 {
		callers.Go(func() error {
			for range calls {
				c.Go(func() error {
					n := running.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					done.Add(1)
					running.Add(-1)
					return ctx.Err()
				})
			}
			return nil
		})
	}
	if err := callers.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("no function failed, and Wait returns %v", err)
	}
	if done.Load() != 4*calls || most.Load() > limit {
		t.Errorf("%d of %d functions were called, %d at once, %d are allowed", done.Load(), 4*calls, most.Load(), limit)
	}
	if ctx.Err() == nil {
		t.Error("the context outlives the crew")
	}
}

// TestCrewGoesOn after an error: whoever still calls Go is not left waiting.
func TestCrewGoesOn(t *testing.T) {
	first := errors.New("first")
	c, ctx := newCrew(t.Context(), 1)
	c.Go(func() error { return first })
	called := 0
	for range 10 {
		c.Go(func() error {
			called++
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}
	c.Go(func() error { return errors.New("last") })
	if err := c.Wait(); !errors.Is(err, first) || called != 10 || !errors.Is(context.Cause(ctx), first) {
		t.Errorf("Wait returns %v, %d were called, the context's cause is %v", err, called, context.Cause(ctx))
	}
	c, _ = newCrew(t.Context(), 1)
	if err := c.Wait(); err != nil {
		t.Errorf("a crew without work returns %v", err)
	}
}
