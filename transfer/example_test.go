package transfer_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"nbc/transfer"
	"nbc/transfer/store/dir"
)

// One build after another, each in a source tree without artifacts, as a CI machine has it.
func Example() {
	ctx := context.Background()
	tmp, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	s, err := dir.Open(filepath.Join(tmp, "store"))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	cache := &transfer.Cache{Store: s}

	root := filepath.Join(tmp, "src")
	if err := os.Mkdir(root, 0o700); err != nil {
		log.Fatal(err)
	}
	object := filepath.Join(root, "build", "main.o")
	for range 2 {
		b, err := cache.Open(root, filepath.Join(tmp, "receipt"), true)
		if err != nil {
			log.Fatal(err)
		}
		restored, err := b.Restore(ctx, transfer.RestoreOptions{
			Name: "example/main",
			Tree: transfer.Tree{Dirs: []string{"build"}},
		})
		if err != nil {
			log.Fatal(err) // or go on: the tree is as it was, and the build runs cold
		}

		// The build.
		if _, err := os.Stat(object); err != nil {
			_ = os.Mkdir(filepath.Dir(object), 0o700)
			err = os.WriteFile(object, []byte("machine code"), 0o600)
			if err != nil {
				log.Fatal(err)
			}
		}

		saved, err := b.Save(ctx, transfer.SaveOptions{})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("hit: %v, files that were read: %d of %d\n", restored.Hit, saved.Files-saved.Untouched, saved.Files)
		if err := b.Close(); err != nil {
			log.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Dir(object)); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// hit: false, files that were read: 1 of 1
	// hit: true, files that were read: 0 of 1
}
