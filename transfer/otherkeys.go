package transfer

import (
	"context"
	"errors"
	"strings"

	"nbc/index"
	"nbc/transfer/store"
)

// Nix builds put a key of all inputs but the sources behind an "@" in their cache names, so that artifacts are not
// mixed with those of another compiler. Somebody who changes an input then sees a cold build, and should see why.

// otherKey says of a name that is absent whether there is one that is the same up to its last "@", or nothing. That
// it cannot be found out is no news.
func (r *restoring) otherKey(ctx context.Context, name string) string {
	at := strings.LastIndexByte(name, '@')
	if at <= 0 {
		return ""
	}
	path, err := index.Path(name[:at])
	if err != nil {
		return ""
	}
	found := errors.New("found")
	err = r.cache.Store.List(ctx, path+"@", func(i store.Info) error {
		// Others are longer names, which have another "@", and those that were dropped.
		if !strings.Contains(i.Key[len(path)+1:], "@") && i.Size > emptyIndex {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		return ""
	}
	return ", but it is saved with other inputs: what is behind the @ was another one"
}
