// Package store keeps objects: small byte strings under keys like "chunks/ab/…". A [Store] is S3, a directory, a
// daemon's socket, or a Store around a Store.
//
// It promises that an object that was put is read back whole or not at all; that absent, refused and unreachable are
// three different errors; and that every call returns soon after its context ends.
package store

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// Errors of every Store, to be asked for with [errors.Is]. Whatever else a Store returns is a fault of its own kind,
// for example a full disk.
var (
	// ErrNotExist says that the store was reached and has no such object. It is never the answer to an outage.
	ErrNotExist = fs.ErrNotExist
	// ErrRefused says that the store was reached and does not allow this, with these credentials, or that what is
	// named as the store is none, such as a bucket that is not there.
	ErrRefused = fs.ErrPermission
	// ErrUnavailable says that the store could not be reached, or kept failing or stalling until the attempts were used
	// up. Nothing is known about the object.
	ErrUnavailable = errors.New("store is unavailable")
	// ErrConflict says that a conditional Put found another version, or an object where none should be, or none where
	// one should be. When the reply to a first attempt was lost it can also mean that the object was put, and has been
	// replaced since.
	ErrConflict = errors.New("object was changed by another writer")
	// ErrTooLarge says that an object is larger than the caller allowed for.
	ErrTooLarge = errors.New("object is too large")
)

// MaxObject bounds a whole object in bytes. The largest are indexes; one of a million files has about 60 MB.
const MaxObject = 1 << 28

// Store keeps objects. Keys are relative paths as [CheckKey] allows them; every method refuses others, except that List
// takes any string for its prefix and passes over what has no such key. No key is another one's folder: beside "a/b"
// there is no "a".
//
// All methods may be called concurrently. Data passed in is not kept after the call and not changed; data returned
// belongs to the caller.
type Store interface {
	// Get returns the object at key, or the part of it that r asks for.
	Get(ctx context.Context, key string, r Read) (Object, error)

	// Put makes data the object at key. When it returns nil, every later Get and List anywhere sees it; a concurrent Get
	// sees the old object or the new one, whole. On an error either may be there. It returns the new version. If c is
	// not met, nothing is changed and the error is ErrConflict. The same bytes may or may not get the same version
	// again; other bytes get another one.
	Put(ctx context.Context, key string, data []byte, c Condition) (version string, err error)

	// List calls yield for every object whose key starts with prefix, in the order of the keys; what is put or deleted
	// meanwhile may be seen or not. An error of yield ends it and is returned.
	List(ctx context.Context, prefix string, yield func(Info) error) error

	// Delete removes objects. An absent one is not an error. On an error some may be gone.
	Delete(ctx context.Context, keys ...string) error
}

// Asker is a Store that can be asked whether it would refuse a Put, before all that the Put needs is made ready.
type Asker interface {
	// MayPut returns ErrRefused, with what Put would say, if this client may not put anything at key. Nil promises
	// nothing.
	MayPut(ctx context.Context, key string) error
}

// MayPut asks a Store that is an [Asker]. Of another one nothing is known, and it costs nothing.
func MayPut(ctx context.Context, s Store, key string) error {
	if a, ok := s.(Asker); ok {
		return a.MayPut(ctx, key)
	}
	return nil
}

// Read says which part of an object to get. The zero value asks for all of it.
type Read struct {
	// Offset is where to begin. At or past the object's end the data is empty; version and size are told all the same.
	Offset int64
	// Length is how many bytes at most; 0 asks for all up to the end.
	Length int64
	// Max refuses, with ErrTooLarge, to return more bytes than this; 0 means MaxObject.
	Max int64
	// Fresh asks for what the far store has: a Store that keeps near copies passes its own by, and replaces it. A reader
	// that was given damaged bytes asks again with it, and so does whoever wants to know what the far store has.
	Fresh bool
}

// Limit returns the most bytes that r allows for.
func (r Read) Limit() int64 {
	if r.Max > 0 {
		return r.Max
	}
	return MaxObject
}

// Object is what Get returns.
type Object struct {
	Data []byte
	// Version names this state of the object, to be compared and given to a Condition; S3 calls it an ETag.
	Version string
	// Size of the whole object in bytes.
	Size int64
	// Near says that this is a near copy: the far store was not asked. It proves nothing of what is there, and its
	// Version is the copy's own.
	Near bool
}

// Condition of a Put. The zero value replaces whatever is there. At most one field may be set.
type Condition struct {
	// IfAbsent asks that no object is at the key.
	IfAbsent bool
	// IfVersion, unless empty, asks that the object at the key has this version.
	IfVersion string
}

// Info is what List tells about an object.
type Info struct {
	Key      string
	Size     int64
	Version  string
	Modified time.Time // by the store's clock
}
