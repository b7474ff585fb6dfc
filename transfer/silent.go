package transfer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbc/index"
	"nbc/transfer/store"
)

// A store that says nothing costs a restore half a minute, and the build has done without it then. Its save, which may
// be another process, asks once more, and does not wait as long: so a build pays once.

// secondPatience is how long the save of a build waits for the first answer of a store that did not answer the restore.
// A store that is well answers in a tenth of that, and a daemon that has no room says so after 5 seconds, and is asked
// once more.
const secondPatience = 8 * time.Second

// silent says whether err, with which a restore ended, means that the store does not answer.
func silent(ctx context.Context, err error) bool {
	return err != nil && !errors.Is(err, ErrLocal) &&
		(errors.Is(err, store.ErrUnavailable) || errors.Is(ctx.Err(), context.DeadlineExceeded))
}

// begin asks the store what has to be known before anything is done for a save: whether it may be written to under this
// name, where a store can say so, and its format.
func (s *saving) begin(ctx context.Context) error {
	if s.receipt == nil || !s.receipt.Silent {
		return s.ask(ctx)
	}
	short, cancel := context.WithTimeout(ctx, secondPatience)
	defer cancel()
	err := s.ask(short)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: it did not serve the restore, and again not within %v: %w", store.ErrUnavailable,
			secondPatience, err)
	}
	return err
}

func (s *saving) ask(ctx context.Context) error {
	key, err := index.Path(s.o.Name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err := store.MayPut(ctx, s.cache.Store, key); err != nil {
		return err
	}
	s.format, err = writableFormat(ctx, s.cache.Store)
	return err
}
