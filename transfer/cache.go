// Package transfer moves trees between a disk and a store: it saves a build's cache directories, restores them before
// the next build, and keeps the store's part of the bargain.
//
// [Cache.Restore], [Cache.Times] and [Cache.Save] are the three steps of one build:
//
//	Restore: index -> stage -> clear -> times -> place -> receipt     the tree is as before, or whole
//	(the build's configure step)
//	Times:   receipt -> times of what configure wrote again
//	(the build)
//	Save:    receipt, walk -> split -> upload -> index last           the old index, or the new one
//
// What it promises: killed, failed or refused at any point, a restore leaves a tree from which a build gives the right
// result, though it may redo more than it had to; a save makes its chunks visible before the index that needs them, and
// is acknowledged only when no collector can have missed that index; nothing is read from a store without being checked
// against its hash.
package transfer

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"nbc/transfer/store"
)

// Errors of this package, to be asked for with [errors.Is]. Those of a store pass through: store.ErrRefused,
// store.ErrUnavailable; so does chunk.ErrCorrupt.
var (
	// ErrFormat says that the store is written in a way that this version does not know.
	ErrFormat = errors.New("store has another format")
	// ErrStateLost says that gc/state is older than an index or a chunk: it was deleted, or a backup was put back.
	ErrStateLost = errors.New("state of the garbage collection was lost")
	// ErrMissing says that a chunk that an index needs is not in the store.
	ErrMissing = errors.New("chunk is missing from the store")
	// ErrBusy says that another nbc is at work in this tree.
	ErrBusy = errors.New("another nbc is at work in this tree")
	// ErrChanging says that files kept changing while they were saved, or that artifacts changed while others were got
	// ready to take their place.
	ErrChanging = errors.New("files change meanwhile")
	// ErrNoReceipt says that a save was asked to take everything from a receipt, and there is none that it may use.
	ErrNoReceipt = errors.New("no receipt of a restore")
	// ErrUsage says that options contradict each other or a pattern is wrong.
	ErrUsage = errors.New("wrong use")
	// ErrLocal says that it is a file system of this machine that failed: the source tree's, or that of nbc's own state.
	// Such an error may also be fs.ErrPermission or fs.ErrNotExist, which then say nothing of the store.
	ErrLocal = errors.New("file system of this machine")
)

// localError is err as an ErrLocal, with the same text.
type localError struct{ error }

func (e localError) Unwrap() error        { return e.error }
func (e localError) Is(target error) bool { return target == ErrLocal }

// local marks err as an ErrLocal; nil stays nil.
func local(err error) error {
	if err == nil {
		return nil
	}
	return localError{err}
}

// localUnless is local, unless ctx has ended: then that is the cause.
func localUnless(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return local(err)
}

// Cache is a store, with what the steps of a build share. The zero value of every field but Store is useful.
type Cache struct {
	Store store.Store
	// Log gets warnings: things that did not stop the work and that a user should know. Nil discards them.
	Log *slog.Logger
	// Progress is added to while work goes on, for somebody to look at; nil if nobody does.
	Progress *Progress
	// Requests is how many requests may be under way at once; 0 means 64, which hides a round trip of 30 ms.
	Requests int
	// Version of the program, recorded in indexes.
	Version string
	// Clock is the program's clock; nil means time.Now. Only people read what is made from it: file times come from the
	// file system's clock.
	Clock func() time.Time
}

// Progress counts what a step of a build has done so far; the next step begins at 0. All fields may be read at any time.
type Progress struct {
	Phase       atomic.Pointer[string] // what is going on, for people: "hashing sources"
	Files       atomic.Int64           // sources hashed, or artifacts written or read
	Bytes       atomic.Int64           // plain bytes of artifacts written or read
	TotalBytes  atomic.Int64           // how many of them there will be, 0 as long as it is not known
	Chunks      atomic.Int64           // chunks sent or fetched
	Transferred atomic.Int64           // bytes of them, as stored
}

func (p *Progress) phase(s string) { p.Phase.Store(&s) }

// start begins to count anew.
func (p *Progress) start(phase string) {
	p.phase(phase)
	for _, n := range []*atomic.Int64{&p.Files, &p.Bytes, &p.TotalBytes, &p.Chunks, &p.Transferred} {
		n.Store(0)
	}
}

func (c *Cache) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

func (c *Cache) requests() int {
	if c.Requests <= 0 {
		return 64
	}
	return c.Requests
}

func (c *Cache) now() time.Time {
	if c.Clock == nil {
		return time.Now()
	}
	return c.Clock()
}
