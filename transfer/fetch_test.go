package transfer_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"nbc/transfer"
	"nbc/transfer/store/storetest"
)

// Copies of a file are stored once, and fetched once as well.
func TestRestoreFetchesEachChunkOnce(t *testing.T) {
	root := t.TempDir()
	data := make([]byte, 3<<20)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(data)
	build := filepath.Join(root, "build")
	if err := os.Mkdir(build, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(build, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cache := &transfer.Cache{Store: storetest.Memory()}
	tree := transfer.Tree{Dirs: []string{"build"}}
	b, err := cache.Open(root, filepath.Join(t.TempDir(), "receipt"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	saved, err := b.Save(context.Background(), transfer.SaveOptions{Name: "n", Tree: tree})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(build); err != nil {
		t.Fatal(err)
	}
	rep, err := b.Restore(context.Background(), transfer.RestoreOptions{Name: "n", Tree: tree})
	if err != nil || !rep.Hit {
		t.Fatalf("restore: %v, %+v", err, rep)
	}
	if rep.Fetched.Chunks != saved.Sent.Chunks || rep.Chunks != 3*saved.Sent.Chunks {
		t.Errorf("%d chunks sent, %d fetched for %d; want as many fetched as sent, for three times as many",
			saved.Sent.Chunks, rep.Fetched.Chunks, rep.Chunks)
	}
	for _, name := range []string{"a", "b", "c"} {
		if got, err := os.ReadFile(filepath.Join(build, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s is another file: %v", name, err)
		}
	}
}
