package transfer_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"nbc/transfer"
	"nbc/transfer/store/storetest"
)

// A receipt of one store says nothing of what another one has: neither of one at another place, nor of one that was
// emptied and begun anew at the same place.
func TestSaveToAnotherStoreSendsEverything(t *testing.T) {
	ctx := context.Background()
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "receipt")
	artifact := filepath.Join(root, "build", "a.o")
	if err := os.MkdirAll(filepath.Dir(artifact), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(artifact, []byte("object"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := transfer.Tree{Dirs: []string{"build"}}
	in := func(c *transfer.Cache, f func(b *transfer.Build)) {
		t.Helper()
		b, err := c.Open(root, state, false)
		if err != nil {
			t.Fatal(err)
		}
		f(b)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	save := func(c *transfer.Cache, o transfer.SaveOptions) (rep *transfer.SaveReport) {
		t.Helper()
		in(c, func(b *transfer.Build) {
			var err error
			if rep, err = b.Save(ctx, o); err != nil || !rep.Saved {
				t.Fatalf("save: %v, %+v", err, rep)
			}
		})
		return rep
	}
	restore := func(c *transfer.Cache) {
		t.Helper()
		in(c, func(b *transfer.Build) {
			rep, err := b.Restore(ctx, transfer.RestoreOptions{Name: "a", Tree: tree})
			if err != nil || !rep.Hit {
				t.Fatalf("restore: %v, %+v", err, rep)
			}
		})
	}

	first, second := &transfer.Cache{Store: storetest.Memory()}, &transfer.Cache{Store: storetest.Memory()}
	save(first, transfer.SaveOptions{Name: "a", Tree: tree})
	restore(first)
	if rep := save(first, transfer.SaveOptions{}); rep.Sent.Chunks != 0 || rep.Untouched != 1 {
		t.Errorf("to the same store: %d chunks sent, %d files untouched; want 0, 1", rep.Sent.Chunks, rep.Untouched)
	}
	restore(first)
	if rep := save(second, transfer.SaveOptions{}); rep.Sent.Chunks != 1 {
		t.Errorf("to another store: %d chunks sent, want 1", rep.Sent.Chunks)
	}
	if err := os.RemoveAll(filepath.Dir(artifact)); err != nil {
		t.Fatal(err)
	}
	restore(second)
	if data, err := os.ReadFile(artifact); err != nil || string(data) != "object" {
		t.Errorf("restored from the other store: %q, %v", data, err)
	}
}
