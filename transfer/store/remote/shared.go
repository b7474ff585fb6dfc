package remote

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"nbc/transfer/store"
)

// shared is a Store around the daemon's store: builds that ask for the same chunk at the same time wait for one fetch.
// They all get the same bytes, which they must not change: the one rule of a Store that it does not keep. It also
// bounds how many requests are under way at the far store.
type shared struct {
	store   store.Store
	slots   *semaphore.Weighted
	near    *semaphore.Weighted // for reads of near copies, which need no slot
	lists   *semaphore.Weighted
	limits  Limits
	metrics *Metrics

	mu      sync.Mutex
	flights map[flightKey]*flight
	all     sync.WaitGroup
}

var _ store.Store = (*shared)(nil)

// flightKey tells fetches apart that must not stand for each other: one that passes near copies by is no answer for
// less, and one that does not is none for it. So is one that takes fewer bytes, and one that takes more could take more
// than there is room for. Builds that restore the same index want the same.
type flightKey struct {
	key   string
	fresh bool
	most  int64
}

// flight is a fetch that is under way. It belongs to no caller: it ends early when the last one has left.
type flight struct {
	callers int // that wait for it; by shared.mu
	cancel  context.CancelFunc
	done    chan struct{}
	object  store.Object // when done
	err     error
}

func newShared(s store.Store, l Limits, m *Metrics) *shared {
	return &shared{
		store: s, slots: semaphore.NewWeighted(int64(l.FarRequests)), near: semaphore.NewWeighted(int64(l.FarRequests)),
		lists: semaphore.NewWeighted(int64(l.Lists)), limits: l, metrics: m, flights: map[flightKey]*flight{},
	}
}

// Get implements [store.Store].
func (s *shared) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	if !isChunk(key) || r.Offset != 0 || r.Length != 0 || r.Check() != nil {
		end, err := turnOf(ctx).take(ctx, s.limits, s.metrics)
		if err != nil {
			return store.Object{}, err
		}
		defer end()
		return s.get(ctx, key, r)
	}
	if ctx.Err() != nil {
		return store.Object{}, context.Cause(ctx)
	}
	if o, ok, err := s.getNear(ctx, key, r); ok || err != nil {
		return o, err
	}
	k := flightKey{key, r.Fresh, min(r.Limit(), maxChunk)}
	f := s.join(k)
	if f == nil {
		// The fetch is this client's, whoever joins it.
		end, err := turnOf(ctx).take(ctx, s.limits, s.metrics)
		if err != nil {
			return store.Object{}, err
		}
		f = s.begin(ctx, k, end)
	}
	defer s.leave(k, f)
	select {
	case <-f.done:
	case <-ctx.Done():
		return store.Object{}, context.Cause(ctx)
	}
	if f.err != nil {
		return store.Object{}, f.err
	}
	if _, _, err := r.Span(f.object.Size); err != nil {
		return store.Object{}, fmt.Errorf("getting %s: %w", key, err)
	}
	return f.object, nil
}

// nearer is a store that knows what it has near: package cached's.
type nearer interface {
	GetNear(key string, r store.Read) (store.Object, bool)
}

// getNear returns the near copy of a chunk, if there is one. It waits for no request of the far store, which may be slow
// or say nothing while everything that a build wants is near. It has turns of its own: each read may block a thread.
func (s *shared) getNear(ctx context.Context, key string, r store.Read) (o store.Object, ok bool, err error) {
	n, ok := s.store.(nearer)
	if !ok || r.Fresh {
		return o, false, nil
	}
	t, list := turnOf(ctx), []acquirer{s.near}
	if t == nil {
		t = new(turn)
	} else {
		list = []acquirer{t.client.near, s.near}
	}
	end, err := t.takeOf(ctx, s.limits, s.metrics, "a near copy", list...)
	if isBusy(err) { // a near store that is slower than the far one may be
		return o, false, nil
	}
	if err != nil {
		return o, false, err
	}
	defer end()
	if o, ok = n.GetNear(key, r); ok {
		s.metrics.near(true)
	}
	return o, ok, nil
}

// join returns the fetch for k that is under way, or nil.
func (s *shared) join(k flightKey) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flights[k]
	if f != nil {
		f.callers++
		s.metrics.joined.Inc()
	}
	return f
}

// begin begins the fetch for k and calls end when it has ended, unless somebody else has begun it meanwhile.
func (s *shared) begin(ctx context.Context, k flightKey, end func()) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[k]; f != nil {
		f.callers++
		s.metrics.joined.Inc()
		end()
		return f
	}
	fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{callers: 1, cancel: cancel, done: make(chan struct{})}
	s.flights[k] = f
	s.all.Go(func() {
		defer close(f.done) // when nobody can join any more
		defer end()
		f.object, f.err = s.get(fctx, k.key, store.Read{Max: k.most, Fresh: k.fresh})
		s.forget(k, f)
	})
	return f
}

// forget makes the next one who asks begin a fetch of its own.
func (s *shared) forget(k flightKey, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[k] == f {
		delete(s.flights, k)
	}
}

// leave is for each caller that has joined. When none is left a fetch is given up, and nobody joins it any more.
func (s *shared) leave(k flightKey, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.callers--
	if f.callers > 0 {
		return
	}
	f.cancel()
	if s.flights[k] == f {
		delete(s.flights, k)
	}
}

// wait returns when no fetch is under way any more. None may be begun meanwhile.
func (s *shared) wait() { s.all.Wait() }

// get asks the store.
func (s *shared) get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	var o store.Object
	err := s.far(ctx, "get", func() (near bool, err error) {
		o, err = s.store.Get(ctx, key, r)
		return o.Near, err
	})
	if isChunk(key) && err == nil {
		s.metrics.near(o.Near)
	}
	return o, err
}

// far makes one request of the far store, when there is room for it, and measures it unless it was not needed.
func (s *shared) far(ctx context.Context, op string, request func() (near bool, err error)) error {
	if err := s.limits.acquire(ctx, s.metrics, "a request of its store", 1, s.slots); err != nil {
		return err
	}
	defer s.slots.Release(1)
	begun := time.Now()
	near, err := request()
	if !near && ctx.Err() == nil {
		s.metrics.far(op, time.Since(begun))
	}
	return err
}

// Put implements [store.Store].
func (s *shared) Put(ctx context.Context, key string, data []byte, c store.Condition) (version string, err error) {
	end, err := turnOf(ctx).take(ctx, s.limits, s.metrics)
	if err != nil {
		return "", err
	}
	defer end()
	err = s.far(ctx, "put", func() (bool, error) {
		version, err = s.store.Put(ctx, key, data, c)
		return false, err
	})
	return version, err
}

// List implements [store.Store]. It takes as long as its caller does, so it is not measured, and has a limit of its own.
func (s *shared) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	list := []acquirer{s.lists}
	if t := turnOf(ctx); t != nil {
		list = []acquirer{t.client.lists, s.lists}
	}
	if err := s.limits.acquire(ctx, s.metrics, "a listing", 1, list...); err != nil {
		return err
	}
	defer func() {
		for _, l := range list {
			l.Release(1)
		}
	}()
	return s.store.List(ctx, prefix, yield)
}

// Delete implements [store.Store].
func (s *shared) Delete(ctx context.Context, keys ...string) error {
	return s.store.Delete(ctx, keys...)
}
