package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nbc/transfer/store"
	"nbc/transfer/store/dir"
	"nbc/transfer/store/s3"
	"nbc/transfer/store/storetest"
)

// careless is a store whose conditions do not work, each in its way.
type careless struct {
	store.Store
	put func(ctx context.Context, s store.Store, key string, data []byte, c store.Condition) (string, error)
}

func (s careless) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	if c == (store.Condition{}) {
		return s.Store.Put(ctx, key, data, c)
	}
	return s.put(ctx, s.Store, key, data, c)
}

func TestProbeFindsCarelessStores(t *testing.T) {
	stores := map[string]struct {
		put    func(ctx context.Context, s store.Store, key string, data []byte, c store.Condition) (string, error)
		create bool
	}{
		"ignores": {func(ctx context.Context, s store.Store, key string, data []byte, _ store.Condition) (string, error) {
			return s.Put(ctx, key, data, store.Condition{})
		}, false},
		"does not know them": {func(context.Context, store.Store, string, []byte, store.Condition) (string, error) {
			return "", fmt.Errorf("not implemented: %w", errors.ErrUnsupported)
		}, false},
		"looks first and writes then": {func(
			ctx context.Context, s store.Store, key string, data []byte, c store.Condition,
		) (string, error) {
			o, err := s.Get(ctx, key, store.Read{})
			if c.IfAbsent && err == nil || c.IfVersion != "" && o.Version != c.IfVersion {
				return "", store.ErrConflict
			}
			time.Sleep(100 * time.Millisecond) // so that all others look, on a busy machine as well
			return s.Put(ctx, key, data, store.Condition{})
		}, false},
		"refuses the right version too": {func(
			ctx context.Context, s store.Store, key string, data []byte, c store.Condition,
		) (string, error) {
			if c.IfVersion != "" {
				return "", store.ErrConflict
			}
			return s.Put(ctx, key, data, c)
		}, true},
		"takes any version": {func(
			ctx context.Context, s store.Store, key string, data []byte, c store.Condition,
		) (string, error) {
			if c.IfVersion != "" {
				c = store.Condition{}
			}
			return s.Put(ctx, key, data, c)
		}, true},
	}
	for name, c := range stores {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			s.cache.Store = careless{s.store, c.put}
			found, err := s.cache.ProbeConditions(t.Context())
			if err != nil || found.works() || found.Create.Works != c.create || found.Create.Found == "" {
				t.Fatalf("%v, %+v", err, found)
			}
			if left := s.objects(trialPrefix); len(left) > 0 {
				t.Errorf("%d objects are left", len(left))
			}

			s.save("x", 1, "a.1")
			s.chunk("b", 1)
			_, err = s.cache.Collect(t.Context(), CollectOptions{})
			if !errors.Is(err, ErrUnsafe) {
				t.Errorf("%v", err)
			}
			s.wantChunks("a.1", "b.1")
			_, err = s.cache.Collect(t.Context(), CollectOptions{OnlyCollector: true, KeepWithin: 1})
			if !errors.Is(err, ErrUnsafe) {
				t.Errorf("names were dropped: %v", err)
			}
			r := s.collect(CollectOptions{OnlyCollector: true})
			if r.Deleted.Chunks != 1 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], found.Create.Found[:6]) {
				t.Errorf("%+v", r)
			}
			s.wantChunks("a.1")
		})
	}
}

func TestProbeFindsGoodStores(t *testing.T) {
	s := newShelf(t)
	found, err := s.cache.ProbeConditions(t.Context())
	if err != nil || !found.works() || found.Delete.Works {
		t.Fatalf("%v, %+v", err, found)
	}
	s.cache.Store = hasty{s.store}
	if found, err = s.cache.ProbeConditions(t.Context()); err != nil || !found.works() || found.Delete.Works {
		t.Errorf("a store that looks first and deletes then: %v, %+v", err, found)
	}
	s.cache.Store = newConditional(s.store)
	if found, err = s.cache.ProbeConditions(t.Context()); err != nil || !found.works() || !found.Delete.Works {
		t.Fatalf("%v, %+v", err, found)
	}
	if left := s.objects(trialPrefix); len(left) > 0 {
		t.Errorf("%d objects are left", len(left))
	}
}

// hasty looks first and deletes then.
type hasty struct{ store.Store }

func (h hasty) DeleteIf(ctx context.Context, key, version string) error {
	o, err := h.Get(ctx, key, store.Read{})
	if errors.Is(err, store.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.Version != version {
		return store.ErrConflict
	}
	time.Sleep(10 * time.Millisecond)
	return h.Delete(ctx, key)
}

// A good answer is noted, and believed for a week; a bad one is not.
func TestProbeIsNoted(t *testing.T) {
	s := newShelf(t)
	s.save("x", 1, "a.1")
	probes := func() int64 {
		var n atomic.Int64
		c := *s.cache
		c.Store = &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
			if strings.HasPrefix(c.Key, trialPrefix) {
				n.Add(1)
			}
			return storetest.Fault{}
		}}
		c.Requests = 1
		if _, err := c.Collect(t.Context(), CollectOptions{}); err != nil {
			t.Fatal(err)
		}
		return n.Load()
	}
	if probes() == 0 || probes() != 0 {
		t.Error("the first collection has to probe, and the second one not")
	}
	s.later = 8 * 24 * time.Hour
	if probes() == 0 || probes() != 0 {
		t.Error("after a week it has to probe again")
	}
	s.put(conditionsPath, []byte(`{"version":1,"create":{"works":false},"swap":{"works":false}}`))
	if probes() == 0 || probes() != 0 {
		t.Error("a bad answer is not to be believed")
	}
}

func TestProbeDoesNotTakeAnOutageForAnAnswer(t *testing.T) {
	s := newShelf(t)
	for n := 0; n < 2000; n += 7 {
		c := *s.cache
		f := &storetest.Faulty{Store: s.store, Fault: storetest.FailAt(n, store.ErrUnavailable)}
		c.Store = f
		_, err := c.ProbeConditions(t.Context())
		if f.Calls() <= n {
			return
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("request %d failed: %v", n, err)
		}
	}
	t.Error("no end")
}

// Of a store that fails in all of hundreds of requests at once, one failure is told.
func TestProbeTellsOfOneFailure(t *testing.T) {
	s := newShelf(t)
	c := *s.cache
	c.Store = &storetest.Faulty{Store: s.store, Fault: func(c storetest.Call) storetest.Fault {
		if c.Op == storetest.Get && strings.Contains(c.Key, "-") {
			return storetest.Fault{Before: fmt.Errorf("%w: %s", store.ErrUnavailable, c.Key)}
		}
		return storetest.Fault{}
	}}
	_, err := c.ProbeConditions(t.Context())
	if !errors.Is(err, store.ErrUnavailable) || strings.Count(err.Error(), trialPrefix) != 1 {
		t.Errorf("%v", err)
	}
}

// network is a store on another machine's disk.
type network struct{ store.Store }

func (network) FileSystem() (name string, network bool, err error) { return "nfs", true, nil }

func TestCollectRefusesNetworkFileSystems(t *testing.T) {
	s := newShelf(t)
	s.save("x", 1, "a.1")
	s.chunk("b", 1)
	s.cache.Store = network{s.store}
	before := len(s.objects(""))
	_, err := s.cache.Collect(t.Context(), CollectOptions{})
	if !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "nfs") {
		t.Errorf("%v", err)
	}
	if before != len(s.objects("")) {
		t.Error("something has changed")
	}
	s.collect(CollectOptions{OnlyCollector: true})
	s.wantChunks("a.1")
}

// A real server and a real directory can be collected in.
func TestProbeOfRealStores(t *testing.T) {
	probe := func(t *testing.T, s store.Store) Conditions {
		found, err := (&Cache{Store: s}).ProbeConditions(t.Context())
		if err != nil || !found.works() {
			t.Errorf("%v, %+v", err, found)
		}
		t.Logf("%+v", found)
		return found
	}
	t.Run("dir", func(t *testing.T) {
		s, err := dir.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if found := probe(t, s); !found.Drop.Works || !found.Delete.Works {
			t.Errorf("%+v", found)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("s3", func(t *testing.T) {
		s, err := s3.Open(t.Context(), storetest.S3(t))
		if err != nil {
			t.Fatal(err)
		}
		probe(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
