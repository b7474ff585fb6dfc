package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

func newTestShared(t testing.TB, s store.Store) *shared {
	t.Helper()
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return newShared(s, Limits{}.withDefaults(), m)
}

func TestSharedConformance(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		s := newTestShared(t, storetest.Memory())
		t.Cleanup(s.wait)
		return s
	})
}

// TestFetchedOnce lets eight builds restore the same chunks at the same time, through sockets: each fetch ends when all
// of them wait for it.
func TestFetchedOnce(t *testing.T) {
	const builds, atOnce = 8, 10
	memory := storetest.Memory()
	keys := putChunks(t, memory, 100, 2000)
	var mu sync.Mutex
	fetched := map[string]int{}
	h := &Handler{Rules: everything, Limits: Limits{Bytes: 1 << 30, ClientBytes: 1 << 30}}
	h.Store = &gettingStore{memory, func(key string) {
		mu.Lock()
		fetched[key]++
		mu.Unlock()
		for begun := time.Now(); time.Since(begun) < 20*time.Second; time.Sleep(time.Millisecond) {
			h.shared.mu.Lock()
			f := h.shared.flights[flightKey{key: key, most: 1 << 20}]
			waiting := f != nil && f.callers == builds
			h.shared.mu.Unlock()
			if waiting {
				return
			}
		}
	}}
	d := start(t, h, socketPath(t))
	var g errgroup.Group
	for range builds {
		c := open(t, d.path)
		g.Go(func() error { return want(t.Context(), c, memory, keys, atOnce) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if fetched[key] != 1 {
			t.Errorf("%s was fetched %d times", key, fetched[key])
		}
	}
	if n := value(t, h.metrics.joined); n != (builds-1)*len(keys) {
		t.Errorf("%d Gets waited for another one's fetch", n)
	}
}

// gettingStore calls get before each Get.
type gettingStore struct {
	store.Store
	get func(key string)
}

func (s *gettingStore) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	s.get(key)
	return s.Store.Get(ctx, key, r)
}

// TestLeaving lets the callers of one fetch leave in every order but the last.
func TestLeaving(t *testing.T) {
	key, stored := aChunk("content", 1)
	synctest.Test(t, func(t *testing.T) {
		memory := storetest.Memory()
		mustPut(t, memory, key, stored)
		far := slow(memory, time.Second)
		s := newTestShared(t, far)
		errs := make([]error, 3)
		var all sync.WaitGroup
		cause := errors.New("enough")
		for i := range errs {
			ctx, cancel := context.WithCancelCause(t.Context())
			all.Go(func() {
				_, errs[i] = s.Get(ctx, key, store.Read{})
				cancel(nil)
			})
			synctest.Wait()
			if i < 2 { // the one who has begun it leaves first
				time.AfterFunc(time.Duration(i+1)*100*time.Millisecond, func() { cancel(cause) })
			}
		}
		all.Wait()
		if !errors.Is(errs[0], cause) || !errors.Is(errs[1], cause) || errs[2] != nil {
			t.Errorf("%v, %v, %v", errs[0], errs[1], errs[2])
		}
		if n := far.Count(storetest.Get); n != 1 {
			t.Errorf("it was fetched %d times", n)
		}

		// When all have left, the fetch is given up, and who comes then begins another.
		given := context.Canceled
		far.Fault = func(c storetest.Call) storetest.Fault { return storetest.Fault{Hang: c.N == 1} }
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			synctest.Wait()
			cancel(given)
		}()
		if _, err := s.Get(ctx, key, store.Read{}); !errors.Is(err, given) {
			t.Errorf("a Get that has left: %v", err)
		}
		if _, err := s.Get(t.Context(), key, store.Read{}); err != nil {
			t.Errorf("a Get after one that has left: %v", err)
		}
		s.wait()
		if n := far.Count(storetest.Get); n != 3 {
			t.Errorf("it was fetched %d times", n)
		}
	})
}

// TestJoinedErrors gives the error of one fetch to all who wait for it, and to nobody else.
func TestJoinedErrors(t *testing.T) {
	key, stored := aChunk("content", 1)
	memory := storetest.Memory()
	mustPut(t, memory, key, stored)
	broken := fmt.Errorf("far: %w", store.ErrUnavailable)
	var failing atomic.Bool
	failing.Store(true)
	s := newTestShared(t, &storetest.Faulty{Store: memory, Fault: func(storetest.Call) storetest.Fault {
		if failing.Load() {
			return storetest.Fault{Delay: 50 * time.Millisecond, Before: broken}
		}
		return storetest.Fault{}
	}})
	var g errgroup.Group
	for range 5 {
		g.Go(func() error {
			if _, err := s.Get(t.Context(), key, store.Read{}); !is(err, store.ErrUnavailable) {
				return fmt.Errorf("Get: %w", err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	failing.Store(false)
	if _, err := s.Get(t.Context(), key, store.Read{}); err != nil {
		t.Errorf("a Get after the outage: %v", err)
	}
	s.wait()
}

// TestFreshIsNotShared keeps a Get that passes near copies by apart from those that do not, and each caller's limit its
// own.
func TestFreshIsNotShared(t *testing.T) {
	key, stored := aChunk("content", 1)
	memory := storetest.Memory()
	mustPut(t, memory, key, stored)
	const callers = 6
	var mu sync.Mutex
	reads := map[bool]int{}
	var s *shared
	var met atomic.Bool // all wait for a fetch
	far := &readingStore{memory, func(r store.Read) {
		mu.Lock()
		reads[r.Fresh]++
		mu.Unlock()
		for begun := time.Now(); !met.Load() && time.Since(begun) < 20*time.Second; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			n := 0
			for _, f := range s.flights {
				n += f.callers
			}
			s.mu.Unlock()
			if n == callers {
				met.Store(true)
			}
		}
	}}
	s = newTestShared(t, far)
	var g errgroup.Group
	for i := range callers {
		g.Go(func() error {
			r := store.Read{Fresh: i%2 == 0}
			if i > 3 {
				r.Max = 1
			}
			_, err := s.Get(t.Context(), key, r)
			if i > 3 != errors.Is(err, store.ErrTooLarge) {
				return fmt.Errorf("Get %+v: %w", r, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil && errors.Unwrap(err) != nil {
		t.Error(err)
	}
	if reads[true] == 0 || reads[false] == 0 || reads[true]+reads[false] > 4 {
		t.Errorf("%d fresh reads and %d others", reads[true], reads[false])
	}
	s.wait()
}

type readingStore struct {
	store.Store
	read func(store.Read)
}

func (s *readingStore) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	s.read(r)
	return s.Store.Get(ctx, key, r)
}

// A listing is many requests of the far store: some of them at once are enough, and who is held up by its reader leaves
// room to others of other clients.
func TestListingsAreBounded(t *testing.T) {
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	far := storetest.Memory()
	if _, err := far.Put(t.Context(), "index/a", []byte("x"), store.Condition{}); err != nil {
		t.Fatal(err)
	}
	l := Limits{Lists: 2, ClientLists: 1, Wait: 20 * time.Millisecond}.withDefaults()
	s, c := newShared(far, l, m), newClients(l, m)
	of := func(one *client) context.Context {
		return context.WithValue(t.Context(), turnKey{}, &turn{client: one})
	}
	one, other, third := c.make(), c.make(), c.make()
	list := func(one *client, yield func(store.Info) error) error { return s.List(of(one), "index/", yield) }
	nothing := func(store.Info) error { return nil }
	err = list(one, func(store.Info) error {
		if err := list(one, nothing); !isBusy(err) {
			t.Errorf("a second listing of one client: %v", err)
		}
		return list(other, func(store.Info) error {
			if err := list(third, nothing); !isBusy(err) {
				t.Errorf("a third listing: %v", err)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	if err := list(third, nothing); err != nil {
		t.Errorf("when all have ended: %v", err)
	}
}
