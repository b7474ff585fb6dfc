package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// TestSilentStoreCostsOnce: the save of a build whose restore found the store silent asks it once more and gives up soon;
// a store that has come back is saved to.
func TestSilentStoreCostsOnce(t *testing.T) {
	hang := func(storetest.Call) storetest.Fault { return storetest.Fault{Hang: true} }
	for name, outage := range map[string]func(w *world, f *storetest.Faulty) error{
		"unavailable": func(w *world, f *storetest.Faulty) error {
			f.Fault = storetest.FailFrom(0, fmt.Errorf("no byte moved: %w", store.ErrUnavailable))
			_, err := w.restore(RestoreOptions{Name: "n", Tree: build})
			return err
		},
		"out of time": func(w *world, f *storetest.Faulty) error {
			f.Fault = hang
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := w.restoreIn(ctx, RestoreOptions{Name: "n", Tree: build})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &storetest.Faulty{Store: newBench(t).store}
			w := newWorld(t, f)
			w.put(map[string]string{"a.c": "edited", "build/a.o": "object a"})
			if err := outage(w, f); err == nil || errors.Is(err, store.ErrNotExist) {
				t.Fatalf("restore: %v", err)
			}
			if !w.receipt().Silent {
				t.Fatal("the receipt does not say that the store is silent")
			}
			f.Fault = hang
			begun := time.Now()
			_, err := w.save(SaveOptions{})
			if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNotExist) ||
				!strings.Contains(err.Error(), "did not serve the restore") {
				t.Errorf("save: %v", err)
			}
			if took := time.Since(begun); took < secondPatience || took > secondPatience+time.Minute {
				t.Errorf("save gave up after %v", took)
			}
			f.Fault = nil
			w.saved(SaveOptions{})

			// And a store that answers is not called silent.
			w.remove("build")
			w.hit(RestoreOptions{Name: "n", Tree: build})
			if w.receipt().Silent {
				t.Error("the receipt still says that the store is silent")
			}
		})
	}
}
