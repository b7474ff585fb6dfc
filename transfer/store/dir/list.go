package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"nbc/transfer/store"
)

// List implements [store.Store]. It reads one folder after another, each as a whole: of ten million chunks, 40,000
// names at a time. Temporary files, links and whatever else no key can name are passed over.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	var yielded error
	err := list(ctx, s.root, "", prefix, func(i store.Info) error {
		yielded = yield(i)
		return yielded
	})
	if yielded != nil || err == nil {
		return yielded
	}
	return s.failed("listing", prefix+"*", err)
}

// list yields what is in the folder, whose path is base, with a slash at its end unless it is the store's own.
func list(ctx context.Context, folder *os.Root, base, prefix string, yield func(store.Info) error) error {
	f, err := folder.Open(".")
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// Names of folders sort as they stand in keys, with the slash: "a.b" comes before "a/b".
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		name, isFolder := e.Name(), e.IsDir()
		path := base + name
		if isFolder {
			name += "/"
			path += "/"
		}
		if store.ValidElement(e.Name()) && (isFolder && strings.HasPrefix(prefix, path) || strings.HasPrefix(path, prefix)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := listEntry(ctx, folder, base, name, prefix, yield)
		if err != nil && !errors.Is(err, errVanished) {
			return err
		}
	}
	return context.Cause(ctx)
}

// errVanished says that something was deleted between the reading of its folder and the look at it.
var errVanished = errors.New("vanished")

func listEntry(
	ctx context.Context, folder *os.Root, base, name, prefix string, yield func(store.Info) error,
) error {
	if sub, ok := strings.CutSuffix(name, "/"); ok {
		below, err := folder.OpenRoot(sub)
		if errors.Is(err, fs.ErrNotExist) {
			return errVanished
		}
		if err != nil {
			return fmt.Errorf("folder %s: %w", base+sub, explain(err))
		}
		defer func() { _ = below.Close() }() // it was only read
		return list(ctx, below, base+name, prefix, yield)
	}
	info, err := folder.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return errVanished
	}
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return yield(store.Info{
		Key: base + name, Size: info.Size(), Version: version(info), Modified: info.ModTime(),
	})
}
