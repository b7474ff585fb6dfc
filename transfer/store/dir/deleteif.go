package dir

import (
	"context"
	"errors"
	"fmt"

	"nbc/transfer/store"
)

// DeleteIf removes the object at key if it has that version; else the error is [store.ErrConflict]. That there is none
// is no error. It holds the lock alone, as a Put with a condition does.
func (s *Store) DeleteIf(ctx context.Context, key, version string) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if err := s.deleteIf(ctx, key, version); err != nil {
		return s.failed("deleting", key, err)
	}
	return nil
}

func (s *Store) deleteIf(ctx context.Context, key, want string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	unlock, err := s.lock(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	info, err := s.root.Lstat(key)
	if err != nil {
		if err := s.absent(err); !errors.Is(err, store.ErrNotExist) {
			return err
		}
		return nil
	}
	if !info.Mode().IsRegular() {
		return nil // no object
	}
	if now := version(info); now != want {
		return fmt.Errorf("%w: it is %s, not %s", store.ErrConflict, now, want)
	}
	return s.root.Remove(key)
}
