package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"nbc/index"
	"nbc/transfer/store"
)

// An index is never just deleted: between the moment that somebody finds it superfluous and the delete, a save of that
// name may be acknowledged, and would be lost. It is replaced by a tombstone, an index of nothing, on condition that it
// still is what was read. Tombstones are a few hundred bytes; a collector removes old ones where the store can delete
// on a condition, too.

// isTombstone says whether x is what is left of a name that was dropped. A save never puts an index without entries.
func isTombstone(x *index.Index) bool { return len(x.Entries) == 0 }

// DropIndex drops what is saved under a cache name: for readers there is nothing any more, and its chunks are left to
// the next collection. The error is store.ErrNotExist if there is nothing, and store.ErrConflict if the name was saved
// meanwhile; then that save stays. An index that cannot be read can be dropped. In a store whose conditional writes do
// not work (see [Cache.ProbeConditions]) that last promise cannot be kept.
func (c *Cache) DropIndex(ctx context.Context, name string) error {
	mine := *c
	if mine.Progress == nil {
		mine.Progress = new(Progress)
	}
	g := &collection{cache: &mine}
	key, err := index.Path(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	x, err := g.readIndex(ctx, store.Info{Key: key})
	switch {
	case errors.Is(err, index.ErrInvalid), errors.Is(err, index.ErrVersion):
		// The version that could not be read is all that is needed: asked for once more, it could be that of a save that
		// was acknowledged meanwhile.
	case err != nil:
		return fmt.Errorf("reading the index of %s: %w", name, err)
	case x.tombstone:
		return fmt.Errorf("%s was dropped already: %w", name, store.ErrNotExist)
	}
	_, err = mine.bury(ctx, x)
	return err
}

// bury puts a tombstone in place of x. The error is store.ErrConflict if x has been replaced.
//
// It is of the first epoch, which means nothing, as it has no keys. With the epoch of x, one that is made up, or was saved
// before an old copy of gc/state was put back, would still say after it was dropped that the state was lost.
func (c *Cache) bury(ctx context.Context, x indexKeys) (version string, err error) {
	t := index.Index{Epoch: firstEpoch, Build: index.Build{Saved: c.now().UnixNano(), Version: c.Version}}
	data, err := t.Encode()
	if err != nil {
		return "", fmt.Errorf("making a tombstone: %w", err)
	}
	version, err = c.Store.Put(ctx, x.info.Key, data, store.Condition{IfVersion: x.info.Version})
	if err != nil {
		return "", fmt.Errorf("dropping %s: %w", x.name, err)
	}
	return version, nil
}

// dropOld drops those of list that were not saved for too long, and returns the others. Versions gets those of the
// tombstones.
func (g *collection) dropOld(
	ctx context.Context, st State, list []store.Info, versions map[string]string,
) ([]store.Info, error) {
	if g.o.KeepWithin == 0 {
		return list, nil
	}
	g.cache.Progress.phase("dropping old indexes")
	since := g.cache.now().Add(-g.o.KeepWithin)
	dropped := make([]bool, len(list))
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(g.cache.requests())
	for i, info := range list {
		name, err := index.ParsePath(info.Key)
		if err != nil || info.Modified.IsZero() || info.Modified.After(since) || g.keep.Match(name) {
			continue // or the store does not tell how old it is
		}
		group.Go(func() error {
			x, err := g.readIndex(gctx, info)
			switch {
			case errors.Is(err, store.ErrNotExist), errors.Is(err, index.ErrInvalid), errors.Is(err, index.ErrVersion),
				errors.Is(err, store.ErrRefused):
				return nil // it will be met again, and named
			case err != nil:
				return fmt.Errorf("reading the chunk keys of %s: %w", name, err)
			case x.tombstone, x.info.Version != info.Version, x.epoch > st.Epoch:
				return nil // dropped already, or saved since the listing that told its age
			}
			var version string
			if !g.o.DryRun {
				version, err = g.cache.bury(gctx, x)
				if errors.Is(err, store.ErrConflict) {
					return nil
				}
				if err != nil {
					return err
				}
			}
			mu.Lock()
			defer mu.Unlock()
			dropped[i] = true
			versions[info.Key] = version
			g.report.Indexes.Dropped = append(g.report.Indexes.Dropped, name)
			g.report.Indexes.Tombstones++
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.Sort(g.report.Indexes.Dropped)
	var rest []store.Info
	for i, info := range list {
		if !dropped[i] {
			rest = append(rest, info)
		}
	}
	return rest, nil
}

// conditionalDeleter is a Store that can delete an object on condition that it has a version. The error is
// store.ErrConflict if it has another one; that it is absent is no error.
type conditionalDeleter interface {
	DeleteIf(ctx context.Context, key, version string) error
}

// removeTombstones removes those that are older than the grace, where the store can.
func (g *collection) removeTombstones(ctx context.Context, list []indexKeys) error {
	since := g.cache.now().Add(-g.o.Grace)
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(g.cache.requests())
	for _, x := range list {
		if g.deleter == nil || g.o.DryRun || x.info.Modified.After(since) {
			mu.Lock()
			g.report.Indexes.Tombstones++
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			err := g.deleter.DeleteIf(gctx, x.info.Key, x.info.Version)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, store.ErrConflict):
				g.report.Indexes.Kept++
			case err != nil:
				return fmt.Errorf("removing the tombstone of %s: %w", x.name, err)
			default:
				g.report.Indexes.Removed++
			}
			return nil
		})
	}
	return group.Wait()
}

// countedDeleter counts its requests among those of the collection.
type countedDeleter struct {
	conditionalDeleter
	requests *counted
}

func (c countedDeleter) DeleteIf(ctx context.Context, key, version string) error {
	c.requests.del.Add(1)
	return c.conditionalDeleter.DeleteIf(ctx, key, version)
}
