package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// open returns the store at path until the test ends.
func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(t *testing.T, s store.Store, key, data string) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, []byte(data), store.Condition{}); err != nil {
		t.Fatal(err)
	}
}

// names returns what is in the directory itself.
func names(t *testing.T, path string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func temps(t *testing.T, path string) []string {
	t.Helper()
	return slices.DeleteFunc(names(t, path), func(name string) bool { return !strings.HasPrefix(name, tempPrefix) })
}

func TestConformance(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		return open(t, filepath.Join(t.TempDir(), "a", "store"))
	})
}

// several hands each call to another one of several Stores in the same directory, as if they were processes: a lock
// belongs to the file that a Store has opened, not to its process.
type several struct {
	stores []*Store
	next   atomic.Int64
}

func (s *several) one() *Store { return s.stores[int(s.next.Add(1))%len(s.stores)] }

func (s *several) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	return s.one().Get(ctx, key, r)
}

func (s *several) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	return s.one().Put(ctx, key, data, c)
}

func (s *several) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	return s.one().List(ctx, prefix, yield)
}

func (s *several) Delete(ctx context.Context, keys ...string) error {
	return s.one().Delete(ctx, keys...)
}

func TestConformanceOfSeveral(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		path := t.TempDir()
		return &several{stores: []*Store{open(t, path), open(t, path), open(t, path)}}
	})
}

func TestReadingLeavesNoTrace(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	if _, err := s.Get(t.Context(), "index/a", store.Read{}); !errors.Is(err, store.ErrNotExist) {
		t.Error(err)
	}
	if err := s.List(t.Context(), "", func(store.Info) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "index/a"); err != nil {
		t.Error(err)
	}
	if _, err := s.Size(t.Context()); err != nil {
		t.Error(err)
	}
	if got := names(t, path); len(got) != 0 {
		t.Errorf("reading left %q", got)
	}
}

func TestCloseLeavesObjects(t *testing.T) {
	path := t.TempDir()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "format", "{}")
	put(t, s, "chunks/ab/x", "x")
	if got := temps(t, path); len(got) != 1 {
		t.Errorf("an open store has folders %q for temporary files", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, path), []string{",lock", "chunks", "format"}; !slices.Equal(got, want) {
		t.Errorf("a closed store has %q, want %q", got, want)
	}
}

// TestKill kills a writer at random moments and looks at what it leaves: whole objects, and temporary files that the
// next writer removes.
func TestKill(t *testing.T) {
	if path := os.Getenv("NBC_TEST_DIR_WRITER"); path != "" {
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			put(t, s, fmt.Sprintf("chunks/ab/%d", i%3), strings.Repeat(string(rune('a'+i%26)), 300_000))
			put(t, s, "index/name", strings.Repeat(string(rune('a'+i%26)), 300_000))
		}
	}
	path := t.TempDir()
	left := 0
	for i := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$") // this test itself
		cmd.Env = append(os.Environ(), "NBC_TEST_DIR_WRITER="+path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for len(temps(t, path)) == 0 { // it has begun
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		for _, folder := range temps(t, path) {
			left += len(names(t, filepath.Join(path, folder)))
		}

		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = s.List(t.Context(), "", func(info store.Info) error {
			o, err := s.Get(t.Context(), info.Key, store.Read{})
			if err != nil {
				return err
			}
			if len(o.Data) != 300_000 || !bytes.Equal(o.Data, bytes.Repeat(o.Data[:1], len(o.Data))) {
				return fmt.Errorf("%s is a mixture of %d bytes", info.Key, len(o.Data))
			}
			return nil
		})
		if err != nil {
			t.Errorf("after a kill: %v", err)
		}
		put(t, s, "index/other", strings.Repeat("x", 300_000))
		if got := temps(t, path); len(got) != 1 {
			t.Errorf("after a kill and another Put there are %q", got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if got := temps(t, path); len(got) != 0 {
			t.Errorf("a closed store has %q", got)
		}
	}
	if left == 0 {
		t.Error("no kill left a temporary file, so nothing was tested")
	}
}

func TestLiveWritersFilesAreKept(t *testing.T) {
	path := t.TempDir()
	one := open(t, path)
	put(t, one, "chunks/ab/x", "x")
	two := open(t, path)
	put(t, two, "chunks/ab/y", "y")
	if got := temps(t, path); len(got) != 2 {
		t.Fatalf("two open stores have folders %q", got)
	}
	put(t, one, "chunks/ab/z", "z")
}

// TestFoldersRemoved removes folders under an open store, as a user may who wants to empty it.
func TestFoldersRemoved(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	put(t, s, "chunks/ab/x", "x")
	for _, name := range append(temps(t, path), "chunks", ",lock") {
		if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
		put(t, s, "chunks/ab/x", name)
		if o, err := s.Get(t.Context(), "chunks/ab/x", store.Read{}); err != nil || string(o.Data) != name {
			t.Errorf("after the removal of %s: %q, %v", name, o.Data, err)
		}
	}
}

func TestStoreRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "index/a", "a")
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(t.Context(), "index/a", store.Read{})
	if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNotExist) {
		t.Errorf("Get from a store that is gone: %v", err)
	}
	for _, key := range []string{"index/a", "chunks/ab/x"} {
		_, err = s.Put(t.Context(), key, nil, store.Condition{})
		if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNotExist) {
			t.Errorf("Put to a store that is gone: %v", err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was made again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestForeignFiles(t *testing.T) {
	path := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	put(t, s, "index/a", "a")
	for _, do := range []error{
		os.Symlink(outside, filepath.Join(path, "index", "link")),
		os.Symlink(filepath.Dir(outside), filepath.Join(path, "out")),
		os.Symlink("..", filepath.Join(path, "index", "up")),
		syscall.Mkfifo(filepath.Join(path, "index", "pipe"), 0o600),
		os.WriteFile(filepath.Join(path, "index", "not a key"), nil, 0o600),
		os.WriteFile(filepath.Join(path, "index", ",tmp-x"), nil, 0o600),
		os.Mkdir(filepath.Join(path, "index", "empty"), 0o700),
	} {
		if do != nil {
			t.Fatal(do)
		}
	}
	var got []string
	err := s.List(t.Context(), "", func(i store.Info) error {
		got = append(got, i.Key)
		return nil
	})
	if err != nil || !slices.Equal(got, []string{"index/a"}) {
		t.Errorf("List yields %q, %v", got, err)
	}
	for _, key := range []string{"index/link", "out/secret", "index/pipe", "index/empty"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if o, err := s.Get(ctx, key, store.Read{}); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get %s: %q, %v", key, o.Data, err)
		}
		cancel()
	}
	if _, err := s.Put(t.Context(), "out/new", nil, store.Condition{}); err == nil {
		t.Error("Put through a link that leads outside")
	}
	put(t, s, "index/link", "mine") // replaces the link
	if data, err := os.ReadFile(outside); err != nil || string(data) != "secret" {
		t.Errorf("the file outside is %q, %v", data, err)
	}
}

// TestLockIsHeld holds the lock as a stopped process would.
func TestLockIsHeld(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	put(t, s, "index/a", "a")
	f, err := os.Open(filepath.Join(path, lockName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if ok, err := tryLock(f, true); !ok {
		t.Fatal(err)
	}
	for _, c := range []store.Condition{{}, {IfAbsent: true}} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := s.Put(ctx, "index/b", []byte("b"), c)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Put %+v while another holds the lock: %v", c, err)
		}
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = f.Close() })
	if _, err := s.Put(t.Context(), "index/b", []byte("b"), store.Condition{IfAbsent: true}); err != nil {
		t.Errorf("Put after the lock is free: %v", err)
	}
	for _, folder := range temps(t, path) {
		if left := names(t, filepath.Join(path, folder)); len(left) != 0 {
			t.Errorf("Puts that gave up left %q", left)
		}
	}
}

// TestSyncBeforeIndex looks at the books, since a test cannot cut the power.
func TestSyncBeforeIndex(t *testing.T) {
	for _, noSync := range []bool{false, true} {
		s := open(t, t.TempDir())
		s.NoSync = noSync
		put(t, s, "chunks/ab/x", "x")
		put(t, s, "chunks/ab/y", "y")
		if s.written.Load() != 2 || s.synced != 0 {
			t.Errorf("after two chunks %d are counted, %d of them durable", s.written.Load(), s.synced)
		}
		put(t, s, "index/a", "a")
		if durable := s.synced == 2; durable == noSync {
			t.Errorf("NoSync %v: after an index %d chunks are durable", noSync, s.synced)
		}
		put(t, s, "chunks/ab/z", "z")
		if _, err := s.Put(t.Context(), "index/a", nil, store.Condition{IfAbsent: true}); !errors.Is(err, store.ErrConflict) {
			t.Error(err)
		}
	}
}

func TestPermissions(t *testing.T) {
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	for _, c := range []struct {
		umask         int
		parent        fs.FileMode
		folder, files fs.FileMode
	}{
		{0o022, 0o755, 0o755, 0o644},
		{0o022, 0o700, 0o700, 0o600},
		{0o002, 0o770, 0o770, 0o660},
		{0o000, 0o750, 0o750, 0o640},
		{0o077, 0o755, 0o700, 0o600},
		{0o022, 0o777 | fs.ModeSticky, 0o755, 0o644},
		{0o000, 0o700, 0o700, 0o600},
	} {
		parent := filepath.Join(t.TempDir(), "parent")
		if err := errors.Join(os.Mkdir(parent, 0o700), os.Chmod(parent, c.parent)); err != nil {
			t.Fatal(err)
		}
		syscall.Umask(c.umask)
		path := filepath.Join(parent, "a", "b")
		s := open(t, path)
		put(t, s, "chunks/ab/x", "x")
		for name, want := range map[string]fs.FileMode{
			"..": c.folder, ".": c.folder, "chunks": c.folder, "chunks/ab": c.folder, "chunks/ab/x": c.files, ",lock": c.files,
		} {
			info, err := os.Stat(filepath.Join(path, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != want {
				t.Errorf("umask %03o, in a folder with %v: %s has %03o, want %03o", c.umask, c.parent, name,
					info.Mode().Perm(), want)
			}
		}
		syscall.Umask(0)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		s, err := Open(path)
		if err == nil {
			t.Errorf("Open %s succeeds", path)
			_ = s.Close()
			continue
		}
		if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "not a directory") {
			t.Errorf("Open %s: %v", path, err)
		}
	}
}

func TestSize(t *testing.T) {
	s := open(t, t.TempDir())
	s.NoSync = true
	const size = 1000
	var want int64
	add := func(key string) {
		put(t, s, key, strings.Repeat("x", size))
		want += size
	}
	check := func(what string, tolerance float64) {
		t.Helper()
		got, err := s.Size(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := float64(got-want) / float64(max(want, 1)); d > tolerance || d < -tolerance {
			t.Errorf("%s: size %d, want %d", what, got, want)
		}
	}
	check("an empty store", 0)
	add("format")
	add("gc/state")
	add("index/a")
	check("no chunks", 0)
	for i := range 512 {
		add(fmt.Sprintf("chunks/%02x/%d", i%256, i))
	}
	check("few chunks, in each folder the same", 0)
	for i := 512; i < 8192; i++ { // not by Put, which takes longer
		name := fmt.Sprintf("%s/chunks/%02x/%d", s.Path(), (i*31)%256, i)
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		want += size
	}
	check("many chunks", 0.05)
}

// TestVersionsAreRandom puts so fast that neither the clock nor the inode, which may be used again, tells two states
// apart for sure: the random part of the file's time does.
func TestVersionsAreRandom(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	const puts = 64
	begun := time.Now()
	var times []time.Duration // within the second
	for range puts {
		put(t, s, "chunks/ab/x", "x")
		info, err := os.Stat(filepath.Join(path, "chunks", "ab", "x"))
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(info.ModTime()).Abs(); age > time.Minute {
			t.Fatalf("a new file is %v old", age)
		}
		times = append(times, time.Duration(info.ModTime().Nanosecond()))
	}
	slices.Sort(times)
	if took, spread := time.Since(begun), times[puts-1]-times[0]; took < 500*time.Millisecond && spread < took {
		t.Errorf("%d files of %v have times within %v", puts, took, spread)
	}
}
