package dir_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"nbc/transfer/store"
	"nbc/transfer/store/dir"
)

func TestDeleteIf(t *testing.T) {
	s, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	put := func() string {
		v, err := s.Put(ctx, "index/a", []byte("same"), store.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	old := put()
	now := put()
	if err := s.DeleteIf(ctx, "index/a", old); !errors.Is(err, store.ErrConflict) {
		t.Errorf("an old version: %v", err)
	}
	if _, err := s.Get(ctx, "index/a", store.Read{}); err != nil {
		t.Error(err)
	}
	if err := s.DeleteIf(ctx, "index/a", now); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "index/a", store.Read{}); !errors.Is(err, store.ErrNotExist) {
		t.Error(err)
	}
	for _, key := range []string{"index/a", "index/none/b", "none/c", "index"} {
		if err := s.DeleteIf(ctx, key, now); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := s.DeleteIf(ctx, "../a", now); err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("%v", err)
	}

	// Of those who replace an object and those who delete what they have read, nobody loses what he has not seen.
	var wg sync.WaitGroup
	var mu sync.Mutex
	puts, deleted := 0, 0
	for range 4 {
		wg.Go(func() {
			for range 50 {
				_, err := s.Put(ctx, "index/b", fmt.Append(nil, "b"), store.Condition{IfAbsent: true})
				mu.Lock()
				if err == nil {
					puts++
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
				mu.Unlock()
				o, err := s.Get(ctx, "index/b", store.Read{})
				if errors.Is(err, store.ErrNotExist) {
					continue
				}
				if err := s.DeleteIf(ctx, "index/b", o.Version); err == nil {
					mu.Lock()
					deleted++
					mu.Unlock()
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if puts == 0 || deleted < puts-1 {
		t.Errorf("%d puts, %d deletes", puts, deleted)
	}
}
