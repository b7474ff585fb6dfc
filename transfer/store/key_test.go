package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func TestCheckKey(t *testing.T) {
	long := strings.Repeat("x", MaxElement)
	for _, key := range []string{
		"format", "gc/state", "chunks/ab/0123.7", "index/a+b@c=d~20.x_y-z", "a..b/...", ".a/b.", long, long + "/" + long,
	} {
		if err := CheckKey(key); err != nil {
			t.Errorf("%q is refused: %v", key, err)
		}
	}
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/.", "a b", "a\x00", "a\\b", "ä", "a,b", "a%2f", "a:b",
		"a\n", long + "x", long + "/" + long + "/x",
	} {
		if err := CheckKey(key); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v, want an invalid key", key, err)
		}
	}
}

func TestReadSpan(t *testing.T) {
	for _, c := range []struct {
		read         Read
		size, offset int64
		n            int64
		tooLarge     bool
	}{
		{Read{}, 10, 0, 10, false},
		{Read{}, 0, 0, 0, false},
		{Read{Offset: 3}, 10, 3, 7, false},
		{Read{Offset: 3, Length: 4}, 10, 3, 4, false},
		{Read{Offset: 3, Length: 40}, 10, 3, 7, false},
		{Read{Offset: 10}, 10, 10, 0, false},
		{Read{Offset: 1 << 62, Length: 1 << 62}, 10, 10, 0, false},
		{Read{Length: 1 << 62, Max: 10}, 10, 0, 10, false},
		{Read{Max: 9}, 10, 0, 0, true},
		{Read{Offset: 1, Max: 9}, 10, 1, 9, false},
		{Read{}, MaxObject + 1, 0, 0, true},
		{Read{Length: 5}, MaxObject + 1, 0, 5, false},
	} {
		offset, n, err := c.read.Span(c.size)
		if errors.Is(err, ErrTooLarge) != c.tooLarge || !c.tooLarge && (offset != c.offset || n != c.n) {
			t.Errorf("%+v of %d bytes: %d, %d, %v", c.read, c.size, offset, n, err)
		}
	}
	for _, r := range []Read{{Offset: -1}, {Length: -1}, {Max: -1}} {
		if err := r.Check(); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%+v: %v, want it refused", r, err)
		}
	}
}

type hinted struct{ error }

func (hinted) Hint() string { return "do that" }

func TestHint(t *testing.T) {
	err := fmt.Errorf("saving: %w", hinted{ErrRefused})
	if got := Hint(err); got != "do that" {
		t.Errorf("hint %q", got)
	}
	if got := Hint(ErrRefused); got != "" {
		t.Errorf("hint %q of an error that has none", got)
	}
}
