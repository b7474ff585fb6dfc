// Package cached is a Store around a Store: it keeps near copies of chunks in a directory that all builds of a machine
// share, so that what is there is never fetched.
//
//	Get of a chunk:  near copy, else far -> near
//	Put of a chunk:  far -> near
//	anything else:   far
//
// [Open] opens or makes the directory, [New] puts it before the far store. Only chunks have near copies: a chunk's key
// never gets a new meaning, while an index, the format and the collector's state are what the far store says at that
// moment. A copy is kept under the chunk's ID, whatever epoch it was fetched or sent in.
//
// In the directory every doubt is a miss. What cannot be read there is read from the far store; what cannot be written
// is not kept. A copy may be damaged all the same: readers verify chunks, and read one that is wrong again with
// [store.Read.Fresh], which replaces the copy. A copy proves nothing of the far store: Put always asks that, and
// a chunk that was deleted there may still be read here.
package cached

import (
	"context"
	"errors"
	"io"

	"nbc/chunk"
	"nbc/transfer/store"
)

// Store is a store with near copies.
type Store struct {
	near *Near
	far  store.Store
}

// New returns far with near before it. It owns both.
func New(near *Near, far store.Store) *Store { return &Store{near, far} }

// Close closes the near store, and the far one if that is an io.Closer. No call may be under way.
func (s *Store) Close() error {
	err := s.near.Close()
	if far, ok := s.far.(io.Closer); ok {
		err = errors.Join(err, far.Close())
	}
	return err
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	k, ok := whole(key, r)
	if !ok {
		return s.far.Get(ctx, key, r)
	}
	if ctx.Err() != nil {
		return store.Object{}, context.Cause(ctx)
	}
	if o, ok := s.GetNear(key, r); ok {
		return o, nil
	}
	o, err := s.far.Get(ctx, key, r)
	if err == nil {
		s.near.put(k.ID, o.Data)
	}
	return o, err
}

// GetNear returns the near copy that Get would return, if there is one. It never asks the far store: who bounds how many
// requests are under way there has no need to count it.
func (s *Store) GetNear(key string, r store.Read) (store.Object, bool) {
	k, ok := whole(key, r)
	if !ok || r.Fresh {
		return store.Object{}, false
	}
	data, ok := s.near.get(k.ID, min(r.Limit(), maxCopy))
	if !ok {
		return store.Object{}, false
	}
	return store.Object{Data: data, Version: nearVersion, Size: int64(len(data)), Near: true}, true
}

// whole returns the chunk that is asked for, unless it is something else, or a part of one, which is of no use to anybody
// else.
func whole(key string, r store.Read) (chunk.Key, bool) {
	k, err := chunk.ParsePath(key)
	return k, err == nil && r.Check() == nil && r.Offset == 0 && r.Length == 0
}

// nearVersion is the version of all near copies: there is only one state of a chunk.
const nearVersion = "near"

// maxCopy bounds a near copy, so that a file that somebody else has put there is not read for ever.
var maxCopy = int64(chunk.MaxEncoded(chunk.MaxSize))

// Put implements [store.Store].
func (s *Store) Put(ctx context.Context, key string, data []byte, c store.Condition) (version string, err error) {
	version, err = s.far.Put(ctx, key, data, c)
	if err != nil {
		return version, err
	}
	if k, err := chunk.ParsePath(key); err == nil {
		s.near.put(k.ID, data)
	}
	return version, nil
}

// MayPut implements [store.Asker], if the far store does.
func (s *Store) MayPut(ctx context.Context, key string) error { return store.MayPut(ctx, s.far, key) }

// List implements [store.Store]. It tells what the far store has.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	return s.far.List(ctx, prefix, yield)
}

// Delete implements [store.Store]. Near copies stay: the same content may be there in another epoch, or come back.
func (s *Store) Delete(ctx context.Context, keys ...string) error { return s.far.Delete(ctx, keys...) }
