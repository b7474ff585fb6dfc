package transfer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nbc/index"
)

// Build is one build in one source tree: a restore, perhaps a second pass over the times, and a save. While it is open,
// no other nbc works in the tree with the same receipt, and while one of these steps is at work none at all, but for a save
// beside a save. Its methods are not safe for concurrent use.
type Build struct {
	cache   *Cache
	root    string
	stat    index.Stat // of root
	state   *state
	private bool
	receipt *receipt // of a private build
}

// Open begins a build in the source tree root. What a nbc that was killed has left in the tree is cleaned up first.
//
// The receipt is kept in the file state, so that a later process can go on; if state is "", in [DefaultState]. With
// private the receipt of a restore is kept in memory alone: the build begins and ends with this process. A journal and
// a lock stand beside the file in either case. It returns [ErrBusy] while another process has the tree open.
func (c *Cache) Open(root, state string, private bool) (*Build, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("finding the source tree: %w", err)
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, fmt.Errorf("%w: source tree: %w", ErrUsage, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return nil, fmt.Errorf("%w: source tree: %w", ErrUsage, &os.PathError{Op: "stat", Path: root, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("%w: source tree %s is not a directory", ErrUsage, root)
	}
	byDefault := state == ""
	if byDefault {
		if state, err = DefaultState(root); err != nil {
			return nil, err
		}
	}
	if state, err = filepath.Abs(state); err != nil {
		return nil, fmt.Errorf("finding the receipt: %w", err)
	}
	if rel, err := filepath.Rel(root, state); err == nil && filepath.IsLocal(rel) && root != "/" {
		return nil, fmt.Errorf("%w: the receipt %s is inside the source tree, where it would be a source", ErrUsage, state)
	}
	s, err := openState(state)
	if err != nil {
		return nil, err
	}
	mine := *c
	if mine.Progress == nil {
		mine.Progress = new(Progress)
	}
	b := &Build{cache: &mine, root: root, stat: index.StatOf(&st), state: s, private: private}
	if found := s.recover(root); found != "" {
		c.log().Warn(found)
	}
	if byDefault {
		if err := sweepReceipts(filepath.Dir(state), mine.now()); err != nil {
			c.log().Debug("removing old receipts", "error", err)
		}
	}
	return b, nil
}

// lockTree keeps every other nbc out of the tree, whatever its receipt, while a step looks at the tree and changes it; if
// how is lockShared, only those that change it. It is the tree itself that is locked: nothing is written for it, and a build
// that runs an nbc of its own between two steps can do so. The error is ErrBusy. Where directories cannot be locked what
// else happens in the tree is only noticed, and so it is in a tree that lies in this one.
func (b *Build) lockTree(how lockKind) (free func(), err error) {
	f, err := os.Open(b.root)
	if err != nil {
		return nil, local(fmt.Errorf("opening the source tree: %w", err))
	}
	switch err := lockFile(f, how); {
	case errors.Is(err, ErrBusy):
		err = fmt.Errorf("%w, or another program has locked the directory %s", ErrBusy, b.root)
		return nil, local(errors.Join(err, f.Close()))
	case err != nil && !noLocks(err):
		return nil, local(errors.Join(err, f.Close()))
	}
	return func() {
		if err := unlock(f); err != nil {
			b.cache.log().Warn("giving the source tree free", "error", err)
		}
	}, nil
}

// Close gives the tree free.
func (b *Build) Close() error { return b.state.close() }

// Root returns the source tree, absolute and without links.
func (b *Build) Root() string { return b.root }

// load returns the receipt of the last restore or save in this tree, or nil.
func (b *Build) load() *receipt {
	if b.receipt != nil {
		return b.receipt
	}
	return readReceipt(b.state.path, b.root, b.stat)
}

// keep makes r the receipt.
func (b *Build) keep(r *receipt) error {
	r.Root, r.RootDev, r.RootIno = b.root, b.stat.Dev, b.stat.Ino
	if b.private {
		b.receipt = r
		if r.Outcome != outcomeSaved {
			return nil
		}
	}
	crash("receipt")
	defer crash("receipt written")
	return r.write(b.state.path)
}

// forget makes sure that there is no receipt.
func (b *Build) forget() error {
	b.receipt = nil
	crash("forget")
	defer crash("forgotten")
	return removeReceipt(b.state.path)
}
