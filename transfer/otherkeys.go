package transfer

import (
	"context"
	"errors"

	"nbc/index"
	"nbc/transfer/store"
)

// otherKey says of a name that is absent whether it is there under another input key, or nothing: somebody who changes an
// input of a Nix build sees a cold build, and should see why. That it cannot be found out is no news.
func (r *restoring) otherKey(ctx context.Context, name string) string {
	bare, _, ok := index.CutInputKey(name)
	if !ok || bare == "" {
		return ""
	}
	found := errors.New("found")
	err := r.cache.Store.List(ctx, index.PathPrefix(bare+"@"), func(i store.Info) error {
		other, err := index.ParsePath(i.Key)
		if err != nil || i.Size <= emptyIndex { // it was dropped
			return nil
		}
		if b, _, ok := index.CutInputKey(other); ok && b == bare {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		return ""
	}
	return ", but it is saved with other inputs: what is behind the @ was another one"
}
