package mtime

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nbc/index"
)

func md5Of(s string) [index.SumSize]byte { return md5.Sum([]byte(s)) }

func TestHash(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", bigFile/8) // twice bigFile
	root := tree(t, "-first", "a-b", "a/x", "a/y/", "link -> a/x", "away -> /nowhere", "dist/art", ".git/HEAD",
		"a/.git", "big", "empty")
	for name, content := range map[string]string{"big": big, "empty": ""} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setMTime(t, root, "a/x", old+1)
	found := walk(t, root, "dist")
	var n atomic.Int64
	sources, err := Hash(t.Context(), root, found, &n)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "sources", pathsOf(sources), "-first", ".", "a", "a-b", "a/x", "a/y", "away", "big", "empty", "link")
	if n.Load() != 7 {
		t.Errorf("%d files and links were counted, of 7", n.Load())
	}
	for path, want := range map[string]struct {
		kind    index.Kind
		content string
	}{
		"-first": {index.File, "-first"},
		// No cache directory, no .git: they come and go with every build.
		".":     {index.Dir, "-first\x00a\x00a-b\x00away\x00big\x00empty\x00link\x00"},
		"a":     {index.Dir, "x\x00y\x00"},
		"a/y":   {index.Dir, ""},
		"a/x":   {index.File, "a/x"},
		"away":  {index.Link, "/nowhere"},
		"big":   {index.File, big},
		"empty": {index.File, ""},
		"link":  {index.Link, "a/x"},
	} {
		s := source(t, sources, path)
		if s.Kind != want.kind || s.Sum != md5Of(want.content) || s.Unknown {
			t.Errorf("%s is %+v", path, s)
		}
		if s.MTime != mtimeOf(t, root, path) {
			t.Errorf("%s has the time %d", path, s.MTime)
		}
	}
	if got := source(t, sources, "a/x").MTime; got != old+1 {
		t.Errorf("a/x has the time %d, not %d", got, old+1)
	}
}

func TestHashAfterTheWalk(t *testing.T) {
	root := tree(t, "edited", "gone", "dir/gone", "file", "kept")
	found := walk(t, root)
	replace(t, root, "edited", "other")
	for _, f := range []string{"gone", "dir/gone", "file"} {
		if err := os.Remove(filepath.Join(root, f)); err != nil {
			t.Fatal(err)
		}
	}
	grow(t, root, "file -> kept", "new")
	sources := hashTree(t, root, found)
	same(t, "sources", pathsOf(sources), ".", "dir", "edited", "file", "kept")
	edited := source(t, sources, "edited")
	if edited.Sum != md5Of("other") || edited.Unknown || edited.MTime != mtimeOf(t, root, "edited") {
		t.Errorf("the edited file is %+v", edited)
	}
	st, err := index.LstatFile(root, "edited")
	if i := 3; err != nil || found[i].Path != "edited" || found[i].Stat != st {
		t.Errorf("found has %+v, not %+v: %v", found[i], st, err)
	}
	if s := source(t, sources, "file"); !s.Unknown || s.Sum != [index.SumSize]byte{} {
		t.Errorf("the file that a link has replaced is %+v", s)
	}
	if got := source(t, sources, "."); got.Sum != md5Of("dir\x00edited\x00file\x00kept\x00") {
		t.Error("the names of the tree are not those of its sources")
	}
	if got := source(t, sources, "dir"); got.Sum != md5Of("") {
		t.Error("dir is not empty")
	}
}

// TestHashOfAFileThatChanges has a file written all the time: its bytes are those of no moment.
func TestHashOfAFileThatChanges(t *testing.T) {
	root := tree(t, "restless", "still")
	// 64 MB take some 80 ms, many ticks of any clock.
	if err := os.Truncate(filepath.Join(root, "restless"), 64<<20); err != nil {
		t.Fatal(err)
	}
	found := walk(t, root)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		f, err := os.OpenFile(filepath.Join(root, "restless"), os.O_WRONLY, 0)
		for ctx.Err() == nil && err == nil {
			_, err = f.WriteAt([]byte(time.Now().String()), 0)
		}
		done <- errors.Join(err, f.Close())
	}()
	sources := hashTree(t, root, found)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := source(t, sources, "restless"); !s.Unknown || s.Sum != [index.SumSize]byte{} {
		t.Errorf("the file that changes is %+v", s)
	}
	if s := source(t, sources, "still"); s.Unknown || s.Sum != md5Of("still") {
		t.Errorf("the other one is %+v", s)
	}
}

func TestHashNamesWhatItMustNotRead(t *testing.T) {
	root := tree(t, "a", "dir/closed", "z")
	if err := os.Chmod(filepath.Join(root, "dir/closed"), 0); err != nil {
		t.Fatal(err)
	}
	asNobody(t, root, nil, func() {
		_, err := Hash(t.Context(), root, walk(t, root), nil)
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), `"dir/closed"`) ||
			!strings.Contains(err.Error(), "--ignore-source") {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestHashStops(t *testing.T) {
	root := tree(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if sources, err := Hash(ctx, root, walk(t, root), nil); !errors.Is(err, context.Canceled) || sources != nil {
		t.Errorf("Hash gives %v", err)
	}
}

func stats(found []index.Found) []index.Stat {
	var all []index.Stat
	for _, f := range found {
		all = append(all, f.Stat)
	}
	return all
}

func TestRehash(t *testing.T) {
	root := tree(t, "a", "edited", "gone", "kept", "racy", "touched", "unknown", "link -> a")
	before := hashTree(t, root, walk(t, root))
	found := walk(t, root)
	then := stats(found)
	// A hash that no bytes have shows that the bytes were not read.
	fake := md5Of("not read")
	racy := int64(math.MaxInt64)
	for i := range before {
		switch before[i].Path {
		case "kept", "edited", "touched", "racy":
			before[i].Sum = fake
		case "unknown":
			before[i].Unknown, before[i].Sum = true, [index.SumSize]byte{}
		}
	}
	replace(t, root, "edited", "anew")
	setMTime(t, root, "touched", old) // the ctime alone is another one
	if err := os.Remove(filepath.Join(root, "gone")); err != nil {
		t.Fatal(err)
	}
	grow(t, root, "new")
	now := walk(t, root)
	for i := range now {
		if now[i].Path == "racy" {
			racy = now[i].Stat.CTime
		}
	}
	var n atomic.Int64
	after, err := Rehash(t.Context(), root, before, then, math.MaxInt64, now, &n)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "sources", pathsOf(after), ".", "a", "edited", "kept", "link", "new", "racy", "touched", "unknown")
	for path, want := range map[string][index.SumSize]byte{
		"kept": fake, "racy": fake, "edited": md5Of("anew"), "touched": md5Of("touched"), "unknown": md5Of("unknown"),
		"new": md5Of("new"), "link": md5Of("a"),
		".": md5Of("a\x00edited\x00kept\x00link\x00new\x00racy\x00touched\x00unknown\x00"),
	} {
		if s := source(t, after, path); s.Sum != want || s.Unknown {
			t.Errorf("%s is %+v", path, s)
		}
	}
	if n.Load() != 8 {
		t.Errorf("%d files were counted, of 8", n.Load())
	}

	if after, err = Rehash(t.Context(), root, before, then, racy, now, nil); err != nil {
		t.Fatal(err)
	}
	if s := source(t, after, "racy"); s.Sum != md5Of("racy") {
		t.Errorf("a ctime like the probe's proves nothing, but racy is %+v", s)
	}
	if _, err := Rehash(t.Context(), root, before, then[1:], racy, now, nil); err == nil {
		t.Error("lists of different lengths are taken")
	}
}

func TestRecheck(t *testing.T) {
	root := tree(t, "edited/x", "kept/x", "kept/link -> x", "gone/x", "grown/x", "kind", "putback", "moved -> a",
		"unknown")
	found := walk(t, root)
	before := hashTree(t, root, found)
	source(t, before, "unknown").Unknown = true
	source(t, before, "unknown").Sum = [index.SumSize]byte{}
	then := stats(walk(t, root))

	replace(t, root, "edited/x", "anew")
	replace(t, root, "putback", "other")
	replace(t, root, "putback", "putback")
	setMTime(t, root, "putback", old)
	for _, p := range []string{"gone/x", "kind", "moved"} {
		if err := os.Remove(filepath.Join(root, p)); err != nil {
			t.Fatal(err)
		}
	}
	grow(t, root, "kind/", "moved -> b", "grown/y", "dist/art")
	// The build's own output gives directories another time, and no other names among the sources.
	setMTime(t, root, "kept", old+5)
	now := walk(t, root, "dist")

	after, err := Recheck(before, then, math.MaxInt64, now)
	if err != nil {
		t.Fatal(err)
	}
	var unknown []string
	for i, s := range after {
		if s.Unknown {
			unknown = append(unknown, s.Path)
			if s.Sum != [index.SumSize]byte{} {
				t.Errorf("%s is unknown, and has a hash", s.Path)
			}
		} else if s != before[i] {
			t.Errorf("%s was %+v, is %+v", s.Path, before[i], s)
		}
		if s.MTime != before[i].MTime {
			t.Errorf("%s has another time", s.Path)
		}
	}
	same(t, "unknown", unknown, "edited/x", "gone", "gone/x", "grown", "kind", "moved", "putback", "unknown")
	if before[1].Unknown {
		t.Error("before was changed")
	}

	// With a probe that is not later than a ctime, nothing is proven; the names of directories are what they are.
	after, err = Recheck(before, then, 1, now)
	if s := source(t, after, "kept/x"); err != nil || !s.Unknown {
		t.Errorf("kept/x is %+v: %v", s, err)
	}
	if s := source(t, after, "kept"); s.Unknown {
		t.Error("kept is unknown")
	}
	if _, err := Recheck(before, then[1:], 1, now); err == nil {
		t.Error("lists of different lengths are taken")
	}
}

func BenchmarkHash(b *testing.B) {
	root := b.TempDir()
	var size int64
	for i := range 2000 {
		dir := filepath.Join(root, fmt.Sprint(i/50))
		data := []byte(strings.Repeat(fmt.Sprintf("%015d\n", i), 100+i%800))
		size += int64(len(data))
		err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data, 0o600))
		if err != nil {
			b.Fatal(err)
		}
	}
	found := walk(b, root)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		hashTree(b, root, found)
	}
}
