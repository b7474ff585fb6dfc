package transfer

import (
	"context"
	"errors"
	"fmt"

	"nbc/index"
	"nbc/transfer/store"
)

// ReadIndex returns the index of a cache name, whole, and what a list would tell of it, but for the store's clock. The
// error is store.ErrNotExist if there is none, or only what is left of one that was dropped.
func (c *Cache) ReadIndex(ctx context.Context, name string) (*index.Index, SavedTree, error) {
	mine := c.working("reading the index")
	if _, err := readFormat(ctx, mine.Store); errors.Is(err, store.ErrNotExist) {
		return nil, SavedTree{}, absentError([]string{name})
	} else if err != nil {
		return nil, SavedTree{}, err
	}
	data, version, err := mine.getIndex(ctx, name)
	if errors.Is(err, store.ErrNotExist) {
		return nil, SavedTree{}, absentError([]string{name})
	}
	if err != nil {
		return nil, SavedTree{}, fmt.Errorf("index of %s: %w", name, err)
	}
	x, err := index.Decode(data)
	if err != nil {
		return nil, SavedTree{}, fmt.Errorf("index of %s: %w", name, err)
	}
	if isTombstone(x) {
		return nil, SavedTree{}, absentError([]string{name})
	}
	s := summary{savedName: savedName{name, store.Info{Size: int64(len(data)), Version: version}}}
	s.Epoch, s.Chunks, s.Bytes, s.Roots, s.Build = x.Epoch, x.Chunks, x.Bytes(), x.Roots, x.Build
	for i := range x.Entries {
		if x.Entries[i].Kind != index.Dir {
			s.Files++
		}
	}
	return x, newSavedTree(&s), nil
}
