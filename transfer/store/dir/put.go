package dir

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"nbc/transfer/store"
)

// maxRounds is how often a Put begins because somebody removed a folder under it. More than that is no race.
const maxRounds = 10

// Put implements [store.Store]. A chunk is durable when a later Put of something else has returned; anything else is
// durable when its own has.
func (s *Store) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	if err := errors.Join(store.CheckKey(key), c.Check()); err != nil {
		return "", err
	}
	version, err := s.put(ctx, key, data, c)
	if err != nil {
		return "", s.failed("putting", key, err)
	}
	return version, nil
}

func (s *Store) put(ctx context.Context, key string, data []byte, c store.Condition) (version string, err error) {
	for range maxRounds {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		// If something does not exist, then a folder: that of the temporary file or of the object was removed in between,
		// by the user, by an unlucky Delete, or by another writer on a file system whose locks do not work.
		if version, err = s.putOnce(ctx, key, data, c); !errors.Is(err, fs.ErrNotExist) {
			return version, err
		}
		if gone := s.gone(); gone != nil {
			return "", gone
		}
	}
	return "", fmt.Errorf("%w: folders of it keep being removed: %v", store.ErrUnavailable, err)
}

func (s *Store) putOnce(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	durable := !s.NoSync && !strings.HasPrefix(key, chunks)
	t, err := s.write(ctx, data, durable)
	if err != nil {
		return "", err
	}
	if durable {
		// Chunks come before what may refer to them.
		if err := s.sync(ctx); err != nil {
			return "", errors.Join(err, t.remove())
		}
	}
	made, err := s.place(ctx, t.path, key, c)
	if err != nil {
		if removeErr := t.remove(); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
		return "", err
	}
	if durable {
		return t.version, s.syncFolders(key, made)
	}
	s.written.Add(1)
	return t.version, nil
}

// tempFile is a written file that is not an object yet.
type tempFile struct {
	path    string // below the store
	version string
	remove  func() error
}

// write makes a temporary file of data.
func (s *Store) write(ctx context.Context, data []byte, durable bool) (t *tempFile, err error) {
	folder, name, err := s.temp.name(ctx, s)
	if err != nil {
		return nil, err
	}
	remove := func() error { return folder.root.Remove(name) }
	f, err := folder.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, s.perm&0o666)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			s.temp.forget(folder)
		}
		return nil, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, remove())
			t = nil
		}
	}()
	for rest := data; len(rest) > 0; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := f.Write(rest[:min(len(rest), pieceSize)])
		if err != nil {
			return nil, err
		}
		rest = rest[n:]
	}
	if err := folder.root.Chtimes(name, time.Time{}, fresh()); err != nil {
		return nil, err
	}
	if durable {
		if err := f.Sync(); err != nil {
			return nil, err
		}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &tempFile{path: folder.path + "/" + name, version: version(info), remove: remove}, nil
}

// fresh returns this second and a random part of it, which no other file is likely to have; see version.
func fresh() time.Time {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	// less than a second
	return time.Unix(time.Now().Unix(), int64(binary.NativeEndian.Uint64(b[:])%uint64(time.Second)))
}

// place makes the temporary file the object at key, if c is met, and says whether it made a folder for it. Every place
// and removal holds the lock, shared or alone, so nobody comes in between the look at the old object and the rename.
func (s *Store) place(ctx context.Context, temp, key string, c store.Condition) (made bool, err error) {
	conditional := c != (store.Condition{})
	unlock, err := s.lock(ctx, conditional)
	if err != nil {
		return false, err
	}
	defer unlock()
	if conditional {
		if err := s.meets(key, c); err != nil {
			return false, err
		}
	}
	err = s.root.Rename(temp, key)
	if errors.Is(err, fs.ErrNotExist) && strings.Contains(key, "/") {
		if err := s.root.MkdirAll(path.Dir(key), s.perm); err != nil {
			return false, err
		}
		made = true
		err = s.root.Rename(temp, key)
	}
	return made, err
}

// meets returns ErrConflict unless the object at key is as c asks.
func (s *Store) meets(key string, c store.Condition) error {
	info, err := s.root.Lstat(key)
	if err != nil {
		err = s.absent(err)
	}
	switch {
	case errors.Is(err, store.ErrNotExist) && c.IfAbsent:
		return nil
	case errors.Is(err, store.ErrNotExist):
		return fmt.Errorf("%w: it is gone", store.ErrConflict)
	case err != nil:
		return err
	case c.IfAbsent:
		return fmt.Errorf("%w: it is there already", store.ErrConflict)
	case version(info) != c.IfVersion:
		return store.ErrConflict
	}
	return nil
}

// syncFolders makes the names in key durable: its last, or all of them if folders of it are new.
func (s *Store) syncFolders(key string, all bool) error {
	for folder := path.Dir(key); ; folder = path.Dir(folder) {
		if err := s.syncFolder(folder); err != nil {
			return err
		}
		if folder == "." || !all {
			return nil
		}
	}
}

func (s *Store) syncFolder(folder string) error {
	f, err := s.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sync makes all chunks durable that were put before, with one call for the whole file system: an fsync for each of
// thousands of chunks would each wait for the disk. It is left out when there were none.
func (s *Store) sync(ctx context.Context) error {
	select {
	case s.syncing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	upTo := s.written.Load()
	if upTo == s.synced {
		<-s.syncing
		return nil
	}
	// The kernel may have gigabytes of others to write as well, and cannot be told to stop.
	done := make(chan error, 1)
	s.syncs.Go(func() {
		err := s.syncFileSystem()
		if err == nil {
			s.synced = upTo
		}
		<-s.syncing
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Store) syncFileSystem() error {
	f, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(syncFileSystem(f), f.Close())
}
