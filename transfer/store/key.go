package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Limits of keys, in bytes. S3 allows 1024 for a whole key: what is left is for the prefix of a store in its bucket.
// File systems allow 255 for a name.
const (
	MaxKey     = 512
	MaxElement = 255
)

// CheckKey refuses what may not be the key of an object, with an error that wraps [fs.ErrInvalid]. A key is a relative
// path of letters, digits and "._-+@=~", its elements parted by single slashes, none of them empty, "." or "..", within
// [MaxKey] and [MaxElement].
func CheckKey(key string) error {
	if len(key) > MaxKey {
		return fmt.Errorf("key %.40q… has %d bytes, %d are allowed: %w", key, len(key), MaxKey, fs.ErrInvalid)
	}
	for element := range strings.SplitSeq(key, "/") {
		if !ValidElement(element) {
			return fmt.Errorf("not a key of an object: %q: %w", key, fs.ErrInvalid)
		}
	}
	return nil
}

// ValidElement reports whether name can stand between the slashes of a key.
func ValidElement(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > MaxElement {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if ('a' > c || c > 'z') && ('A' > c || c > 'Z') && ('0' > c || c > '9') && strings.IndexByte("._-+@=~", c) < 0 {
			return false
		}
	}
	return true
}

// Check refuses a part that no object can have, with an error that wraps [fs.ErrInvalid].
func (r Read) Check() error {
	if r.Offset < 0 || r.Length < 0 || r.Max < 0 {
		return fmt.Errorf("part of an object from %d, %d bytes, at most %d: %w", r.Offset, r.Length, r.Max, fs.ErrInvalid)
	}
	return nil
}

// Span returns which bytes of an object of that size r asks for: n of them from offset on. If they are more than
// r.Limit the error is [ErrTooLarge]. Nothing should be allocated before.
func (r Read) Span(size int64) (offset, n int64, err error) {
	if r.Offset >= size {
		return size, 0, nil
	}
	n = size - r.Offset
	if r.Length > 0 {
		n = min(n, r.Length)
	}
	if n > r.Limit() {
		return 0, 0, fmt.Errorf("%w: %d bytes, %d are allowed", ErrTooLarge, n, r.Limit())
	}
	return r.Offset, n, nil
}

// Check refuses a condition that contradicts itself, with an error that wraps [fs.ErrInvalid].
func (c Condition) Check() error {
	if c.IfAbsent && c.IfVersion != "" {
		return fmt.Errorf("a condition asks for no object and for version %q of it: %w", c.IfVersion, fs.ErrInvalid)
	}
	return nil
}

// Hint returns what an error of a Store says about a way out of it, or "". It is for people, one sentence without a
// full stop.
func Hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
