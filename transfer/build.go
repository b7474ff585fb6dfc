package transfer

import (
	"context"
	"errors"
)

// Build is one build in one source tree: a restore, perhaps a second pass over the times, and a save. While it is open,
// no other nbc works in the tree. Its methods are not safe for concurrent use.
type Build struct {
	cache *Cache
	root  string
	// Warnings and other fields of the state are below
}

// Open begins a build in the source tree root. What a nbc that was killed has left in the tree is cleaned up first.
//
// The receipt is kept in the file state, so that a later process can go on; if state is "", in [DefaultState]. With
// private it is kept in memory alone: the build begins and ends with this process. A journal and a lock stand beside
// the file in either case. It returns [ErrBusy] while another process has the tree open.
func (c *Cache) Open(root, state string, private bool) (*Build, error) {
	return nil, errors.New("transfer: open")
}

// Close gives the tree free.
func (b *Build) Close() error { return nil }

// Restore puts back what the cache name, or a fallback, holds. A miss is not an error: the report says why. On an error
// the tree is as it was, and the report, never nil, says what is known.
func (b *Build) Restore(ctx context.Context, o RestoreOptions) (*RestoreReport, error) {
	return nil, errors.New("transfer: restore")
}

// Times is the second pass: sources that were written since the restore, and hold what the index had, get the time that
// the index had.
func (b *Build) Times(ctx context.Context) (*TimesReport, error) {
	return nil, errors.New("transfer: times")
}

// Save stores what the cache directories hold. On an error the old index is in place, unless the report, never nil,
// says otherwise.
func (b *Build) Save(ctx context.Context, o SaveOptions) (*SaveReport, error) {
	return nil, errors.New("transfer: save")
}

// DefaultState returns the file of the receipt of the tree root: in the user's state directory, under a name made from
// the tree's absolute path. Where there is no such directory, it is one of the user's own below the temporary directory.
func DefaultState(root string) (string, error) { return "", errors.New("transfer: state") }
