package cached

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/chunk"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// piece is a chunk as a store holds it.
type piece struct {
	id     chunk.ID
	plain  []byte
	stored []byte
}

func newPiece(i, size int) piece {
	plain := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}).Read(plain) // never fails
	return piece{chunk.Sum(plain), plain, chunk.Encode(nil, plain)}
}

func (p piece) key(epoch uint64) string { return chunk.Key{ID: p.id, Epoch: epoch}.Path() }

// file is where p's copy is, below the directory.
func (p piece) file() string { return p.id.String()[:2] + "/" + p.id.String() }

// open returns a near store in dir before far, which counts what reaches it.
func open(t *testing.T, dir string) (*Store, *storetest.Faulty) {
	t.Helper()
	near, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	near.Reserve = 1
	far := &storetest.Faulty{Store: storetest.Memory()}
	s := New(near, far)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, far
}

func put(t *testing.T, s store.Store, key string, data []byte) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, data, store.Condition{}); err != nil {
		t.Fatal(err)
	}
}

// wantGet checks that Get returns data, and from where.
func wantGet(t *testing.T, s store.Store, key string, r store.Read, data []byte, near bool) {
	t.Helper()
	o, err := s.Get(t.Context(), key, r)
	if err != nil {
		t.Fatalf("Get %+v: %v", r, err)
	}
	if !bytes.Equal(o.Data, data) || o.Size != int64(len(data)) {
		t.Errorf("Get %+v returns %d bytes and size %d, not the %d wanted", r, len(o.Data), o.Size, len(data))
	}
	if o.Near != near {
		t.Errorf("Get %+v: near is %v, want %v", r, o.Near, near)
	}
}

func TestConformance(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		s, _ := open(t, t.TempDir())
		return s
	})
}

// TestConformanceOfSharing lets each call go to one of two Stores that share the directory.
func TestConformanceOfSharing(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		dir, far := t.TempDir(), storetest.Memory()
		var list [2]store.Store
		for i := range list {
			near, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			s := New(near, far)
			t.Cleanup(func() { _ = s.Close() })
			list[i] = s
		}
		return &alternating{list: list}
	})
}

type alternating struct {
	list [2]store.Store
	n    atomic.Uint32
}

func (a *alternating) next() store.Store { return a.list[a.n.Add(1)%2] }

func (a *alternating) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	return a.next().Get(ctx, key, r)
}

func (a *alternating) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	return a.next().Put(ctx, key, data, c)
}

func (a *alternating) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	return a.next().List(ctx, prefix, yield)
}

func (a *alternating) Delete(ctx context.Context, keys ...string) error {
	return a.next().Delete(ctx, keys...)
}

// TestChunksAreFetchedOnce says what is read near, and what never is.
func TestChunksAreFetchedOnce(t *testing.T) {
	s, far := open(t, t.TempDir())
	p := newPiece(1, 1000)
	put(t, far, p.key(1), p.stored)
	wantGet(t, s, p.key(1), store.Read{}, p.stored, false)
	before := far.Calls()
	wantGet(t, s, p.key(1), store.Read{}, p.stored, true)
	wantGet(t, s, p.key(1), store.Read{Max: int64(len(p.stored))}, p.stored, true)
	wantGet(t, s, p.key(2), store.Read{}, p.stored, true) // the same content, fetched in another epoch
	if far.Calls() != before {
		t.Errorf("the far store was asked %d times for what is near", far.Calls()-before)
	}

	wantGet(t, s, p.key(1), store.Read{Fresh: true}, p.stored, false)
	o, err := s.Get(t.Context(), p.key(1), store.Read{Offset: 10, Length: 20})
	if err != nil || !bytes.Equal(o.Data, p.stored[10:30]) || o.Near {
		t.Errorf("Get of a part: %d bytes, near %v, %v", len(o.Data), o.Near, err)
	}
	if _, err = s.Get(t.Context(), p.key(1), store.Read{Max: 10}); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("Get of more than Max: %v", err)
	}

	sent := newPiece(2, 1000)
	put(t, s, sent.key(1), sent.stored)
	wantGet(t, far, sent.key(1), store.Read{}, sent.stored, false)
	wantGet(t, s, sent.key(1), store.Read{}, sent.stored, true)

	for _, key := range []string{
		"format", "gc/state", "index/a", "chunks/ab/" + p.id.String() + ".1", "chunks/" + p.file(), p.key(1) + "x",
	} {
		put(t, s, key, []byte("old"))
		put(t, far, key, []byte("new"))
		wantGet(t, s, key, store.Read{}, []byte("new"), false)
	}
	if files := walk(t, s.near.Path()); len(files) != 2 {
		t.Errorf("the directory has %q, want two copies", files)
	}
}

// walk returns the paths of all files below dir.
func walk(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestFarErrors: a near copy proves nothing, so a Put that failed leaves none, and errors of the far store pass.
func TestFarErrors(t *testing.T) {
	s, far := open(t, t.TempDir())
	p := newPiece(1, 1000)
	down := fmt.Errorf("%w: it is down", store.ErrUnavailable)
	far.Fault = func(storetest.Call) storetest.Fault { return storetest.Fault{Before: down} }
	if _, err := s.Put(t.Context(), p.key(1), p.stored, store.Condition{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Put while the far store is down: %v", err)
	}
	if _, err := s.Get(t.Context(), p.key(1), store.Read{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Get of what a failed Put sent: %v", err)
	}
	if files := walk(t, s.near.Path()); len(files) != 0 {
		t.Errorf("a Put that failed left %q", files)
	}
	far.Fault = nil
	put(t, s, p.key(1), p.stored)
	far.Fault = func(storetest.Call) storetest.Fault { return storetest.Fault{Before: down} }
	wantGet(t, s, p.key(1), store.Read{}, p.stored, true)
	if _, err := s.Put(t.Context(), p.key(1), p.stored, store.Condition{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Put of what is near, while the far store is down: %v", err)
	}
	for what, err := range map[string]error{
		"List":   s.List(t.Context(), "", func(store.Info) error { return nil }),
		"Delete": s.Delete(t.Context(), p.key(1)),
	} {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s while the far store is down: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, p.key(1), store.Read{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Get of what is near with a context that has ended: %v", err)
	}
}

// TestDamagedCopies puts something else in the place of a copy. It is a miss or, where only its hash tells, replaced as
// soon as the reader asks again.
func TestDamagedCopies(t *testing.T) {
	p := newPiece(1, 10_000)
	changed := bytes.Clone(p.stored)
	changed[len(changed)/2] ^= 1
	write := func(data []byte) func(string) error {
		return func(file string) error { return os.WriteFile(file, data, 0o600) }
	}
	for _, c := range []struct {
		name  string
		make  func(file string) error
		miss  bool // at once
		heals bool
	}{
		{"one bit", write(changed), false, true},
		{"truncated", write(p.stored[:len(p.stored)/2]), false, true},
		{"longer", write(append(bytes.Clone(p.stored), 0)), false, true},
		{"another chunk", write(newPiece(2, 10_000).stored), false, true},
		{"empty", write(nil), true, true},
		{"too long", write(make([]byte, chunk.MaxEncoded(len(p.plain))+1)), true, true},
		{
			"huge", func(file string) error { return errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<40)) },
			true, true,
		},
		{"a pipe", func(file string) error { return syscall.Mkfifo(file, 0o600) }, true, true},
		{"a link to elsewhere", func(file string) error { return os.Symlink("/dev/zero", file) }, true, true},
		{"a link to nowhere", func(file string) error { return os.Symlink("none", file) }, true, true},
		{"a link to itself", func(file string) error { return os.Symlink(filepath.Base(file), file) }, true, true},
		{"a directory", func(file string) error { return os.MkdirAll(file+"/x", 0o700) }, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, far := open(t, t.TempDir())
			put(t, far, p.key(1), p.stored)
			file := filepath.Join(s.near.Path(), p.file())
			if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o700), c.make(file)); err != nil {
				t.Fatal(err)
			}
			read := func(r store.Read) (near bool, err error) {
				r.Max = int64(chunk.MaxEncoded(len(p.plain)))
				o, err := s.Get(t.Context(), p.key(1), r)
				if err != nil {
					t.Fatalf("Get: %v", err)
				}
				_, err = chunk.Decode(nil, o.Data, p.id, len(p.plain))
				return o.Near, err
			}
			near, err := read(store.Read{})
			if near == c.miss || (err == nil) != c.miss {
				t.Errorf("first read: near %v, %v; want a miss: %v", near, err, c.miss)
			}
			if near, err = read(store.Read{Fresh: true}); near || err != nil {
				t.Errorf("fresh read: near %v, %v", near, err)
			}
			if near, err = read(store.Read{}); near != c.heals || err != nil {
				t.Errorf("the read after that: near %v, %v; want %v", near, err, c.heals)
			}
			if s.near.full.Load() != 0 {
				t.Error("a single damaged copy ended the writing of all")
			}
		})
	}
}

// TestDamagedOnTheWay: what the far store sent was kept before anybody verified it.
func TestDamagedOnTheWay(t *testing.T) {
	s, far := open(t, t.TempDir())
	p := newPiece(1, 10_000)
	put(t, far, p.key(1), p.stored)
	far.Fault = func(storetest.Call) storetest.Fault {
		return storetest.Fault{Damage: func(b []byte) []byte { return b[:len(b)/2] }}
	}
	if o, err := s.Get(t.Context(), p.key(1), store.Read{}); err != nil || len(o.Data) != len(p.stored)/2 {
		t.Fatalf("Get through a damaging store: %d bytes, %v", len(o.Data), err)
	}
	far.Fault = nil
	wantGet(t, s, p.key(1), store.Read{}, p.stored[:len(p.stored)/2], true)
	wantGet(t, s, p.key(1), store.Read{Fresh: true}, p.stored, false)
	wantGet(t, s, p.key(1), store.Read{}, p.stored, true)
}

// TestKilledWriter: a file that a writer left behind is no copy, and goes when it is old. What is not ours stays.
func TestKilledWriter(t *testing.T) {
	s, _ := open(t, t.TempDir())
	p := newPiece(1, 1000)
	put(t, s, p.key(1), p.stored)
	folder := filepath.Join(s.near.Path(), p.id.String()[:2])
	for name, age := range map[string]time.Duration{
		",dead-1": 2 * deadAfter, ",from-the-future": -2 * deadAfter, ",alive-1": deadAfter / 2, "README": 2 * deadAfter,
	} {
		file := filepath.Join(folder, name)
		then := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(file, p.stored[:10], 0o600), os.Chtimes(file, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := s.near.open(p.id, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		limit int64
		want  []string
	}{
		{0, []string{",alive-1", "README", p.id.String()}},
		{1, []string{",alive-1", "README"}},
	} {
		s.near.Limit = c.limit
		if err := s.near.evict(root); err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, file := range walk(t, s.near.Path()) {
			left = append(left, filepath.Base(file))
		}
		slices.Sort(left)
		slices.Sort(c.want)
		if !slices.Equal(left, c.want) {
			t.Errorf("with a limit of %d left are %q, want %q", c.limit, left, c.want)
		}
	}
}

// inFolder makes n chunks whose copies are in the same folder.
func inFolder(n, size int) []piece {
	var list []piece
	for i := 0; len(list) < n; i++ {
		if p := newPiece(i, size); p.id[0] == 7 {
			list = append(list, p)
		}
	}
	return list
}

// TestEvictionOrder: what was used last stays; reading is a use, if it was long ago that the copy was used.
func TestEvictionOrder(t *testing.T) {
	s, _ := open(t, t.TempDir())
	list := inFolder(10, 8000) // 2 blocks each
	used := func(p piece) time.Time {
		info, err := os.Stat(filepath.Join(s.near.Path(), p.file()))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	for i, p := range list {
		put(t, s, p.key(1), p.stored)
		then := time.Now().Add(-time.Duration(i+2) * touchAfter).Truncate(time.Second) // the first is the newest
		if err := os.Chtimes(filepath.Join(s.near.Path(), p.file()), then, then); err != nil {
			t.Fatal(err)
		}
	}
	// The oldest is used; one is from the future; one was used so recently that it is not written again.
	recent := time.Now().Add(-touchAfter / 2).Truncate(time.Second)
	future := time.Now().Add(1000 * time.Hour)
	err := errors.Join(os.Chtimes(filepath.Join(s.near.Path(), list[3].file()), recent, recent),
		os.Chtimes(filepath.Join(s.near.Path(), list[4].file()), future, future))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{9, 3} {
		wantGet(t, s, list[i].key(1), store.Read{}, list[i].stored, true)
	}
	if age := time.Since(used(list[9])); age > touchAfter {
		t.Errorf("a copy that was just read was used %v ago", age)
	}
	if !used(list[3]).Equal(recent) {
		t.Error("a copy that was used lately was written to by a read")
	}

	root, err := s.near.open(list[0].id, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		blocks int64 // the folder's part
		want   string
	}{
		{20, "0 1 2 3 4 5 6 7 8 9"},
		{18, "0 1 2 3 5 6 9"}, // down to 15.75
		{14, "0 1 2 3 5 6 9"},
		{4, "9"}, // 3.5
		{1, ""},
	} {
		s.near.Limit = c.blocks * blockSize * folders
		if err := s.near.evict(root); err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, p := range list {
			if _, err := os.Stat(filepath.Join(s.near.Path(), p.file())); err == nil {
				got = append(got, fmt.Sprint(i))
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("with a part of %d blocks %q stay, want %s", c.blocks, got, c.want)
		}
	}
}

// TestLimit writes four times what the limit allows.
func TestLimit(t *testing.T) {
	s, _ := open(t, t.TempDir())
	const size, count = 4000, 16 * folders * 4
	s.near.Limit = 16 * folders * blockSize
	var group errgroup.Group
	group.SetLimit(8)
	for i := range count {
		group.Go(func() error {
			p := newPiece(i, size)
			_, err := s.Put(t.Context(), p.key(1), p.stored, store.Condition{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	kept := int64(len(walk(t, s.near.Path()))) * blockSize
	if kept > s.near.Limit*5/4 || kept < s.near.Limit*3/4 {
		t.Errorf("%d bytes are kept with a limit of %d", kept, s.near.Limit)
	}
}

// TestPermissions: nobody may read more than the directory lets them.
func TestPermissions(t *testing.T) {
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	p := newPiece(1, 1000)
	for _, c := range []struct {
		name   string
		make   func(dir string) error
		folder fs.FileMode
		file   fs.FileMode
	}{
		{"new", func(string) error { return nil }, 0o700, 0o600},
		{"own", func(dir string) error { return os.Mkdir(dir, 0o700) }, 0o700, 0o600},
		{"of a group", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o750)) }, 0o750, 0o640},
		{"of all", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }, 0o755, 0o644},
	} {
		dir := filepath.Join(t.TempDir(), "a", "near")
		if err := errors.Join(os.Mkdir(filepath.Dir(dir), 0o755), c.make(dir)); err != nil {
			t.Fatal(err)
		}
		s, _ := open(t, dir)
		put(t, s, p.key(1), p.stored)
		for path, want := range map[string]fs.FileMode{p.file()[:2]: c.folder, p.file(): c.file} {
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %s has mode %v, %v; want %v", c.name, path, info.Mode(), err, want)
			}
		}
		if info, err := os.Stat(dir); err != nil || c.name == "new" && info.Mode().Perm() != 0o700 {
			t.Errorf("%s: the directory has mode %v, %v", c.name, info.Mode(), err)
		}
	}
}

// TestRemoved: a user clears the directory while builds use it.
func TestRemoved(t *testing.T) {
	s, far := open(t, t.TempDir())
	p, q := newPiece(1, 1000), newPiece(2, 1000)
	put(t, s, p.key(1), p.stored)
	clearAll := func() {
		entries, err := os.ReadDir(s.near.Path())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(s.near.Path(), e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	clearAll()
	wantGet(t, s, p.key(1), store.Read{}, p.stored, false)
	wantGet(t, s, p.key(1), store.Read{}, p.stored, true)
	clearAll()
	put(t, s, p.key(1), p.stored) // without a read before it
	wantGet(t, s, p.key(1), store.Read{}, p.stored, true)
	// The directory itself is gone: the build goes on, and says so once.
	var said bytes.Buffer
	s.near.Log = slog.New(slog.NewTextHandler(&said, nil))
	if err := os.RemoveAll(s.near.Path()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		put(t, s, q.key(1), q.stored)
		wantGet(t, s, q.key(1), store.Read{}, q.stored, false)
	}
	wantGet(t, far, q.key(1), store.Read{}, q.stored, false)
	if n := strings.Count(said.String(), "level=WARN"); n != 1 || !strings.Contains(said.String(), s.near.Path()) {
		t.Errorf("it said %q", said.String())
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, file + "/near"} {
		if n, err := Open(path); err == nil {
			t.Errorf("%s was opened", n.Path())
		}
	}
}

// TestProcesses lets several processes write, read and evict in one directory, and some of them be killed. Whatever
// a reader gets as a near copy is whole.
func TestProcesses(t *testing.T) {
	if dir := os.Getenv("NBC_TEST_NEAR"); dir != "" {
		useNear(t, dir)
		return
	}
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			ctx := t.Context()
			killed := i%2 == 0
			if killed {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestProcesses$")
			cmd.Env = append(os.Environ(), "NBC_TEST_NEAR="+dir)
			output, err := cmd.CombinedOutput()
			if killed {
				if !errors.As(err, new(*exec.ExitError)) || len(output) != 0 {
					t.Errorf("a process that was to be killed: %v\n%s", err, output)
				}
			} else if err != nil {
				t.Errorf("%v\n%s", err, output)
			}
		})
	}
	all.Wait()
	if len(walk(t, dir)) == 0 {
		t.Error("nothing is kept")
	}
}

// useNear is one of the processes. It has a far store of its own.
func useNear(t *testing.T, dir string) {
	s, far := open(t, dir)
	s.near.Limit = 4 * folders * blockSize
	var pieces []piece
	for i := range 2000 {
		pieces = append(pieces, newPiece(i, 5000))
		put(t, far, pieces[i].key(1), pieces[i].stored)
	}
	var near atomic.Int64
	var group errgroup.Group
	for worker := range 4 {
		group.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(worker)))
			for begun := time.Now(); time.Since(begun) < 3*time.Second; {
				p := pieces[r.IntN(len(pieces))]
				o, err := s.Get(t.Context(), p.key(1), store.Read{})
				if err != nil {
					return err
				}
				if !bytes.Equal(o.Data, p.stored) {
					return fmt.Errorf("near %v: a copy of %d bytes is wrong", o.Near, len(o.Data))
				}
				if o.Near {
					near.Add(1)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if near.Load() == 0 {
		t.Error("nothing was read near")
	}
}
