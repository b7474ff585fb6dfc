package transfer

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/dir"
	"nbc/transfer/store/storetest"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(childVariable); job != "" {
		os.Exit(childMain(job))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(quickDirectory); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		os.Exit(code)
	}))
}

// world is a source tree, the state of nbc for it, and a store.
type world struct {
	*testing.T
	cache *Cache
	root  string
	state string
}

// newWorld returns a world with an empty tree and the store s; nil asks for a new one in memory.
func newWorld(t *testing.T, s store.Store) *world {
	t.Helper()
	if s == nil {
		s = storetest.Memory()
	}
	w := &world{T: t, cache: &Cache{Store: s}, state: filepath.Join(t.TempDir(), "state", "receipt")}
	w.root = filepath.Join(t.TempDir(), "tree")
	w.must(os.Mkdir(w.root, 0o755))
	t.Cleanup(func() { w.must(removeTree(w.root)) }) // of which the testing package knows nothing: what is read-only
	return w
}

// again returns a world with the same store, and a tree and a state of its own.
func (w *world) again() *world { w.Helper(); return newWorld(w.T, w.cache.Store) }

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) path(p string) string { return filepath.Join(w.root, filepath.FromSlash(p)) }

// put makes files: a path that ends in a slash is a directory, and a value that begins with "-> " is that of a link.
func (w *world) put(files map[string]string) {
	w.Helper()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		w.write(p, files[p])
	}
}

// write makes or replaces one file, as put does, in place if it is there.
func (w *world) write(p, content string) {
	w.Helper()
	full := w.path(p)
	if strings.HasSuffix(p, "/") {
		w.must(os.MkdirAll(full, 0o755))
		return
	}
	w.must(os.MkdirAll(filepath.Dir(full), 0o755))
	if target, ok := strings.CutPrefix(content, "-> "); ok {
		w.must(removeFile(full))
		w.must(os.Symlink(target, full))
		return
	}
	w.must(os.WriteFile(full, []byte(content), 0o644))
}

func (w *world) read(p string) string {
	w.Helper()
	data, err := os.ReadFile(w.path(p))
	w.must(err)
	return string(data)
}

func (w *world) remove(p string) { w.Helper(); w.must(removeTree(w.path(p))) }

// touch sets a file's time, of a link that of the link itself.
func (w *world) touch(p string, ns int64) {
	w.Helper()
	ts := []unix.Timespec{unix.NsecToTimespec(ns), unix.NsecToTimespec(ns)}
	w.must(unix.UtimesNanoAt(unix.AT_FDCWD, w.path(p), ts, unix.AT_SYMLINK_NOFOLLOW))
}

func (w *world) stat(p string) index.Stat {
	w.Helper()
	st, err := index.LstatFile(w.root, p)
	w.must(err)
	return st
}

// tick waits until the clock of the file system has gone on, so that what is written from now on is newer than all that
// was written before.
func (w *world) tick() { w.Helper(); tick(w, w.root) }

func tick(t testing.TB, dir string) {
	t.Helper()
	was, err := probe(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		now, err := probe(dir)
		if err != nil {
			t.Fatal(err)
		}
		if now > was {
			return
		}
		time.Sleep(500 * time.Microsecond)
	}
	t.Fatal("the clock of the file system stands still")
}

// snapshot describes every file below dir, each by a line: kind, mode, time, names, and contents. What is nbc's own is
// part of it.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no stat")
		}
		line := fmt.Sprintf("%v %d", fi.Mode(), fi.ModTime().UnixNano())
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := md5.Sum(data)
			line += fmt.Sprintf(" %d %s", len(data), hex.EncodeToString(sum[:]))
			if st.Nlink > 1 {
				if _, ok := inodes[st.Ino]; !ok {
					inodes[st.Ino] = rel
				}
				line += " = " + inodes[st.Ino]
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		all[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// snapshot is that of the tree.
func (w *world) snapshot() map[string]string { w.Helper(); return snapshot(w, w.root) }

// differ says how two snapshots differ, or "".
func differ(want, got map[string]string) string {
	var b strings.Builder
	keys := slices.Sorted(maps.Keys(want))
	for k := range got {
		if _, ok := want[k]; !ok {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		if want[k] != got[k] {
			fmt.Fprintf(&b, "%q:\n  want %s\n  got  %s\n", k, want[k], got[k])
		}
	}
	return b.String()
}

func (w *world) same(want map[string]string) {
	w.Helper()
	if d := differ(want, w.snapshot()); d != "" {
		w.Fatalf("the tree is another one:\n%s", d)
	}
}

// below returns the part of a snapshot that is dir, and what is in it.
func below(all map[string]string, dirs ...string) map[string]string {
	part := map[string]string{}
	for p, line := range all {
		if slices.ContainsFunc(dirs, func(d string) bool { return within("/"+p, "/"+d) }) {
			part[p] = line
		}
	}
	return part
}

// open opens the tree. The caller closes it.
func (w *world) open(private bool) *Build {
	w.Helper()
	b, err := w.cache.Open(w.root, w.state, private)
	w.must(err)
	return b
}

// in does something with the open tree.
func (w *world) in(do func(b *Build) error) error {
	w.Helper()
	b := w.open(false)
	err := do(b)
	w.must(b.Close())
	return err
}

// build is the tree that most tests are about.
var build = Tree{Dirs: []string{"build"}}

// restore restores name "n" to build unless o says otherwise.
func (w *world) restore(o RestoreOptions) (rep *RestoreReport, err error) {
	w.Helper()
	return w.restoreIn(context.Background(), o)
}

func (w *world) restoreIn(ctx context.Context, o RestoreOptions) (rep *RestoreReport, err error) {
	w.Helper()
	if o.Name == "" {
		o.Name = "n"
	}
	if len(o.Dirs) == 0 {
		o.Tree = build
	}
	o.Moved = true // trees of tests are never at the same place
	err = w.in(func(b *Build) (err error) { rep, err = b.Restore(ctx, o); return err })
	return rep, err
}

// hit is restore where that must succeed.
func (w *world) hit(o RestoreOptions) *RestoreReport {
	w.Helper()
	rep, err := w.restore(o)
	if err != nil || !rep.Hit {
		w.Fatalf("restore: %v, miss: %q", err, rep.Reason)
	}
	return rep
}

// miss is restore where that must be a miss, for a reason that holds what is given.
func (w *world) miss(o RestoreOptions, reason string) *RestoreReport {
	w.Helper()
	rep, err := w.restore(o)
	if err != nil || rep.Hit || !strings.Contains(rep.Reason, reason) {
		w.Fatalf("restore: %v, hit %v, reason %q; want a miss with %q", err, rep.Hit, rep.Reason, reason)
	}
	return rep
}

func (w *world) save(o SaveOptions) (*SaveReport, error) {
	w.Helper()
	return w.saveIn(context.Background(), o)
}

func (w *world) saveIn(ctx context.Context, o SaveOptions) (rep *SaveReport, err error) {
	w.Helper()
	err = w.in(func(b *Build) (err error) { rep, err = b.Save(ctx, o); return err })
	return rep, err
}

// saved is save where that must succeed.
func (w *world) saved(o SaveOptions) *SaveReport {
	w.Helper()
	rep, err := w.save(o)
	if err != nil || !rep.Saved {
		w.Fatalf("save: %v, reason %q", err, rep.Reason)
	}
	return rep
}

// first saves build under the name "n" without a restore.
func (w *world) first() *SaveReport {
	w.Helper()
	return w.saved(SaveOptions{Name: "n", Tree: build})
}

// index returns what is saved under a name.
func (w *world) index(name string) *index.Index {
	w.Helper()
	data, _, err := (&Cache{Store: w.cache.Store, Progress: new(Progress)}).getIndex(context.Background(), name)
	w.must(err)
	x, err := index.Decode(data)
	w.must(err)
	return x
}

// receipt returns the one in the world's state, or nil.
func (w *world) receipt() *receipt {
	w.Helper()
	var st unix.Stat_t
	w.must(unix.Stat(w.root, &st))
	root, err := filepath.EvalSymlinks(w.root)
	w.must(err)
	return readReceipt(w.state, root, index.StatOf(&st))
}

// clean fails if nbc has left anything behind in the tree or in its state.
func (w *world) clean() {
	w.Helper()
	for p := range w.snapshot() {
		if strings.Contains(p, index.WorkName) || strings.Contains(p, index.ProbePrefix) {
			w.Errorf("left in the tree: %s", p)
		}
	}
	list, err := os.ReadDir(filepath.Dir(w.state))
	w.must(err)
	for _, e := range list {
		if name := e.Name(); name != filepath.Base(w.state) && name != filepath.Base(w.state)+".lock" {
			w.Errorf("left in the state: %s", name)
		}
	}
}

// cleanStore fails if a directory store, which nobody has open, has temporary files.
func cleanStore(t testing.TB, path string) {
	t.Helper()
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(p, ",tmp-") {
			t.Errorf("left in the store: %s", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dirStore opens a directory store and closes it at the end of the test.
func dirStore(t *testing.T, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s.NoSync = true
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// keys returns the keys of a store that begin with prefix.
func (w *world) keys(prefix string) []string {
	w.Helper()
	var all []string
	w.must(w.cache.Store.List(context.Background(), prefix, func(i store.Info) error {
		all = append(all, i.Key)
		return nil
	}))
	return all
}

// get and set read and replace an object of the store as it is.
func (w *world) get(key string) []byte {
	w.Helper()
	o, err := w.cache.Store.Get(context.Background(), key, store.Read{})
	w.must(err)
	return o.Data
}

func (w *world) set(key string, data []byte) {
	w.Helper()
	_, err := w.cache.Store.Put(context.Background(), key, data, store.Condition{})
	w.must(err)
}

// logged makes the cache keep its warnings.
func (w *world) logged() *strings.Builder {
	var b strings.Builder
	w.cache.Log = slog.New(slog.NewTextHandler(&lockedWriter{w: &b}, nil))
	return &b
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// at makes do happen when the code comes to a step, the first time; do may come to it again. Tests that use it are not
// parallel.
func at(t *testing.T, step string, do func()) {
	t.Helper()
	var met atomic.Bool
	old := crash
	crash = func(s string) {
		if s == step && !met.Swap(true) {
			do()
		}
	}
	t.Cleanup(func() { crash = old })
}

// descriptors counts the open files of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	storetest.Need(t, "proc", err)
	return len(list)
}

// needCommand skips a test that needs a command.
func needCommand(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	storetest.Need(t, name, err)
}

// needRoot skips a test that only root can do.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		storetest.Need(t, "root", errors.New("this is another user"))
	}
}

// needMount skips a test that mounts file systems.
func needMount(t testing.TB) {
	t.Helper()
	storetest.Need(t, "mount", mountProblem())
}

// asOther runs the test that calls it once more, alone and in a process of a user who is not root, for whom permissions
// mean something. It returns true in that process, or if this one is not root's.
func asOther(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		return true
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "nbc-other-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	// A copy that the other user may read: the test's own binary is in a private directory.
	exe := filepath.Join(dir, "test")
	if err := copyTo(exe, "/proc/self/exe"); err != nil {
		t.Fatalf("copying the test binary: %v", err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(dir+"/tmp", 0o755), os.Chown(dir+"/tmp", nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir+"/tmp", "HOME="+dir+"/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as another user: %v\n%s", err, out)
	} else if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as another user it did not run:\n%s", out)
	}
	return false
}

// quickDirectory is where quickProgram has put it, or "".
var quickDirectory string

// quickProgram is this test binary without the race detector, or "" if it has none itself.
var quickProgram = sync.OnceValues(func() (string, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok || !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return "", nil
	}
	var err error
	if quickDirectory, err = os.MkdirTemp("", "nbc-quick-"); err != nil {
		return "", err
	}
	program := filepath.Join(quickDirectory, "test")
	cmd := exec.Command("go", "test", "-c", "-o", program, "nbc/transfer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // or each of its thousands of children would be linked when it starts
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the tests without the race detector: %w\n%s", err, out)
	}
	return program, nil
})

// sampled reports whether the test that calls it does only a part of its work here: in short mode, and if all of it was
// done elsewhere. Children and cycles, thousands of them, do the same things again and again: for the race detector a
// part of them is enough.
func sampled(t *testing.T, flags ...string) bool {
	t.Helper()
	return testing.Short() || elsewhere(t, flags...)
}

// elsewhere runs the test that calls it in a process without the race detector, if this one has it, and reports whether
// it did. With it what a test does in one goroutine, or what is large, takes five times as long or more.
func elsewhere(t *testing.T, flags ...string) bool {
	t.Helper()
	program, err := quickProgram()
	if err != nil {
		t.Fatal(err)
	}
	if program == "" {
		return false
	}
	flags = append(flags, "-test.run", "^"+t.Name()+"$", "-test.v")
	if testing.Short() {
		flags = append(flags, "-test.short")
	}
	if end, ok := t.Deadline(); ok {
		flags = append(flags, "-test.timeout", (time.Until(end) * 9 / 10).String()) // so that it ends first
	}
	out, err := exec.CommandContext(t.Context(), program, flags...).CombinedOutput()
	if err != nil {
		t.Fatalf("without the race detector: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") && !strings.Contains(string(out), "--- SKIP: "+t.Name()+" ") {
		t.Fatalf("without the race detector it did not run:\n%s", out)
	}
	t.Logf("without the race detector:\n%s", out)
	return true
}

func copyTo(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// within a second the call must have returned: what hangs, hangs the test.
func promptly(t testing.TB, limit time.Duration, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		buf := make([]byte, 1<<20)
		t.Fatalf("still at it after %v:\n%s", limit, buf[:runtime.Stack(buf, true)])
	}
}
