package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"nbc/transfer/store"
	"nbc/transfer/store/cached"
	"nbc/transfer/store/dir"
	"nbc/transfer/store/remote"
	"nbc/transfer/store/s3"
)

const storesHelp = `A store is named by a URL, in --store or NBC_STORE:

  (nothing)                  a directory below your cache directory
  file:///abs/path           a directory
  /abs/path, ./path          a directory
  s3://bucket/prefix?...     S3, or a server that speaks its protocol
  unix:/run/nbc/nbc.sock     what an nbc daemon of this machine serves

Credentials for S3 come from where the AWS tools have them: environment, files,
roles. After the question mark may stand

  region=eu-west-1           unless it is where the AWS tools have it
  endpoint=http://host:port  of a server that is not Amazon's: MinIO, Ceph, R2
  path-style=true            the bucket in the path, as most of those want it,
                             and not in the host name

joined by "&"; put the URL in quotes then.

What was once fetched from or sent to S3 is kept near, in --near or NBC_NEAR: a
directory that all builds of a machine can share, so that it is not fetched
again. By default it is nbc-near below your cache directory, and there is none
for a store that is a directory itself. It is bounded by --near-size; what was
not used for the longest time goes first. --near off does without.`

// location is a store that is named and not yet opened.
type location struct {
	dir  string // of a directory store
	s3   string // the URL of a bucket
	unix string // the path of a daemon's socket; if all are empty it is the default
}

// openedStore is a store that can be closed.
type openedStore interface {
	store.Store
	Close() error
}

// parseStore reads the value of --store. Its errors are mistakes of the user.
func parseStore(text string) (location, error) {
	if text == "" {
		return location{}, nil
	}
	if first, _, _ := strings.Cut(text, "/"); first == "" || first == "." || first == ".." {
		return location{dir: text}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return location{}, err
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" || u.Path == "" || u.RawQuery != "" || u.Opaque != "" {
			return location{}, &hinted{
				fmt.Errorf("%q does not name a directory of this machine", text), "it begins with three slashes: file:///abs/path",
			}
		}
		return location{dir: u.Path}, nil
	case "s3":
		return location{s3: text}, s3.CheckURL(text)
	case "unix":
		if u.Host != "" || u.RawQuery != "" || u.Opaque != "" || !filepath.IsAbs(u.Path) {
			return location{}, &hinted{
				fmt.Errorf("%q does not name a socket of this machine", text), "its path is absolute: unix:/run/nbc/nbc.sock",
			}
		}
		return location{unix: filepath.Clean(u.Path)}, nil
	case "":
		return location{}, &hinted{fmt.Errorf("%q is not a URL", text), "a directory begins with / or ./"}
	}
	return location{}, &hinted{
		fmt.Errorf("no store of the kind %q is known", u.Scheme), "it can be s3, unix, file or a path; see nbc help stores",
	}
}

// open opens the store, with the near store before it.
func (a *app) openStore(ctx context.Context, l location, log *slog.Logger) (openedStore, error) {
	s, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	near, err := a.options.openNear(l)
	switch {
	case err != nil && a.options.near != "":
		return nil, errors.Join(&hinted{err, "name another directory with --near or NBC_NEAR, or off"}, s.Close())
	case err != nil:
		log.Warn(err.Error()) // nobody has asked for it
		return s, nil
	case near == nil:
		return s, nil
	}
	near.Log = log
	return cached.New(near, s), nil
}

// nearOff is the value of --near that does without.
const nearOff = "off"

// openNear opens the near store, or returns nil if there is to be none.
func (o *options) openNear(l location) (*cached.Near, error) {
	path := o.nearPath(l)
	if path == "" {
		return nil, nil
	}
	near, err := cached.Open(path)
	if err != nil {
		return nil, err
	}
	near.Limit = o.nearSize
	return near, nil
}

// nearPath returns the directory of the near store, or "" if there is to be none.
func (o *options) nearPath(l location) string {
	switch {
	case o.near == nearOff, o.near == "" && l.s3 == "": // a near copy of a directory would only be a copy
		return ""
	case o.near != "":
		return o.near
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "" // there is no place for it, and nobody has asked for it
	}
	return filepath.Join(cache, "nbc-near")
}

// path returns the directory of a directory store, or "" if it is none, or has no place to be.
func (l location) path() string {
	if l != (location{}) {
		return l.dir
	}
	path, err := defaultStore()
	if err != nil {
		return "" // to open it fails, and says why
	}
	return path
}

// open opens the store, which for a directory makes it.
func (l location) open(ctx context.Context) (openedStore, error) {
	switch {
	case l.s3 != "":
		return s3.Open(ctx, l.s3)
	case l.unix != "":
		return remote.Open(l.unix)
	}
	path := l.dir
	if path == "" {
		var err error
		if path, err = defaultStore(); err != nil {
			return nil, err
		}
	}
	return dir.Open(path)
}

// defaultStore returns the directory of the store that needs no configuration.
func defaultStore() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", &hinted{fmt.Errorf("there is no place for a store: %w", err), "name one with --store or NBC_STORE"}
	}
	return filepath.Join(cache, "nbc"), nil
}

// largeStore is where a directory is worth a word: some ten saved trees of a big project, and more than most people
// expect to find below their cache directory.
const largeStore = 20e9

// largeHint is what to do about it.
const largeHint = "it holds nothing but what builds can make again: remove it to begin anew"

// large says that a directory has grown past largeStore, or "". That it cannot be measured is no news: the save was done.
func large(ctx context.Context, s openedStore) string {
	d, ok := s.(*dir.Store)
	if !ok {
		return ""
	}
	n, err := d.Size(ctx)
	if err != nil || n < largeStore {
		return ""
	}
	return fmt.Sprintf("the store %s has grown to about %s", d.Path(), size(n))
}
