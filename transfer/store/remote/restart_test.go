package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/transfer"
	"nbc/transfer/store"
	"nbc/transfer/store/dir"
	"nbc/transfer/store/storetest"
)

// daemonVariable makes this program a daemon: of the socket, and before the directory, that it names.
const daemonVariable = "NBC_TEST_DAEMON"

func TestMain(m *testing.M) {
	if text := os.Getenv(daemonVariable); text != "" {
		if err := daemonMain(strings.Split(text, "\n")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if text := os.Getenv(restoreVariable); text != "" {
		if err := restoreMain(strings.Split(text, "\n")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if path := os.Getenv(peerVariable); path != "" {
		peerMain(path)
		return
	}
	os.Exit(m.Run())
}

// daemonMain is a daemon of its own process, which says "ready" on its output. Each request of the store needs a
// millisecond, unless it is to be measured.
func daemonMain(args []string) error {
	far, err := dir.Open(args[1])
	if err != nil {
		return err
	}
	var l net.Listener
	if args[0] == "activated" {
		l, err = Activated()
	} else {
		l, err = Listen(Socket{Path: args[0]})
	}
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println("ready")
	h := &Handler{Store: far, Rules: everything}
	if os.Getenv(benchVariable) == "" {
		h.Store = slow(far, time.Millisecond)
	}
	return h.Serve(ctx, l, 0)
}

// process is a daemon that is a process of its own.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
}

// startProcess starts one and waits until it is ready.
func startProcess(t testing.TB, socket, far string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t, exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), daemonVariable+"="+socket+"\n"+far)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return p
}

// end ends it by a signal, and returns how it has ended. More than once is once.
func (p *process) end(s syscall.Signal) error {
	if p.cmd.ProcessState != nil {
		return nil
	}
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Error(err)
	}
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if s == syscall.SIGKILL && errors.As(err, &exit) {
		return nil
	}
	return err
}

// makeTree makes files of some 40 KB that do not compress, and returns the tree.
func makeTree(t testing.TB, files int) string {
	t.Helper()
	root := t.TempDir()
	r := rand.NewChaCha8([32]byte{2})
	for i := range files {
		data := make([]byte, 20_000+i*311%40_000)
		_, _ = r.Read(data) // never fails
		name := filepath.Join(root, "build", fmt.Sprintf("%02d", i%10), fmt.Sprintf("%d.o", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// same fails the test unless two trees have the same files.
func same(t testing.TB, a, b string) {
	t.Helper()
	if out, err := exec.Command("diff", "-r", "--no-dereference", a, b).CombinedOutput(); err != nil {
		t.Errorf("the trees differ: %v: %.1000s", err, out)
	}
}

// saveTree and restoreTree do what nbc save and nbc restore do.
func saveTree(ctx context.Context, t testing.TB, s store.Store, root string) error {
	b, err := (&transfer.Cache{Store: s}).Open(root, filepath.Join(t.TempDir(), "receipt"), false)
	if err != nil {
		return err
	}
	r, err := b.Save(ctx, transfer.SaveOptions{Name: "app/main", Tree: transfer.Tree{Dirs: []string{"build"}}})
	if err == nil && !r.Saved {
		err = fmt.Errorf("nothing was saved: %s", r.Reason)
	}
	return errors.Join(err, b.Close())
}

func restoreTree(ctx context.Context, t testing.TB, s store.Store) (root string, err error) {
	root = t.TempDir()
	return root, restoreInto(ctx, s, root, filepath.Join(t.TempDir(), "receipt"))
}

func restoreInto(ctx context.Context, s store.Store, root, receipt string) error {
	b, err := (&transfer.Cache{Store: s}).Open(root, receipt, false)
	if err != nil {
		return err
	}
	r, err := b.Restore(ctx, transfer.RestoreOptions{
		Name: "app/main", Tree: transfer.Tree{Dirs: []string{"build"}}, Moved: true,
	})
	if err == nil && !r.Hit {
		err = fmt.Errorf("nothing was restored: %s", r.Reason)
	}
	return errors.Join(err, b.Close())
}

// TestKilled kills the daemon again and again during a save, and during a restore, and starts another one each time.
func TestKilled(t *testing.T) {
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(how.String(), func(t *testing.T) {
			socket, far := socketPath(t), t.TempDir()
			tree := makeTree(t, 150)
			p := startProcess(t, socket, far)
			client := open(t, socket)
			// A daemon that has never answered would not be waited for.
			if _, err := client.Get(t.Context(), "index/none", store.Read{}); !is(err, store.ErrNotExist) {
				t.Fatal(err)
			}
			client.Patience = 2 * time.Minute // on a busy machine a process takes a while to begin
			kills := 0
			disturbed := func(what string, work func(ctx context.Context) error) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- work(ctx) }()
				begun := time.Now()
				for n := 0; ; n++ {
					select {
					case err := <-done:
						if err != nil {
							t.Errorf("%s: %v", what, err)
						}
						t.Logf("%s took %v", what, time.Since(begun))
						return
					case <-time.After(time.Duration(10+n*10) * time.Millisecond):
						if n > 5 {
							continue // it is to end some time
						}
						if err := p.end(how); err != nil {
							t.Errorf("the daemon ended with %v", err)
						}
						kills++
						time.Sleep(20 * time.Millisecond)
						p = startProcess(t, socket, far)
					}
				}
			}
			disturbed("save", func(ctx context.Context) error { return saveTree(ctx, t, client, tree) })
			var copied string
			disturbed("restore", func(ctx context.Context) (err error) {
				copied, err = restoreTree(ctx, t, client)
				return err
			})
			same(t, filepath.Join(tree, "build"), filepath.Join(copied, "build"))
			if kills < 4 {
				t.Errorf("the daemon ended only %d times", kills)
			}
			if err := p.end(syscall.SIGTERM); err != nil {
				t.Errorf("the daemon ended with %v", err)
			}
		})
	}
}

// TestGone ends the daemon for good in the middle of a restore: that ends, too, and says why.
func TestGone(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 100, 1000)
	d := start(t, &Handler{Store: slow(memory, 20*time.Millisecond), Rules: everything}, socketPath(t))
	client := open(t, d.path)
	client.Patience = 300 * time.Millisecond
	if err := want(t.Context(), client, memory, keys[:1], 1); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(30*time.Millisecond, d.end)
	begun := time.Now()
	var g errgroup.Group
	for range 4 {
		g.Go(func() error { return want(t.Context(), client, memory, append(keys, keys...), 8) })
	}
	if err := g.Wait(); !is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begun); took > DefaultPatience*3/4 {
		t.Errorf("it took %v", took)
	}
}

// TestDrain ends a daemon while requests are under way: they are answered, and then it has ended. One that takes longer
// than it may is broken off.
func TestDrain(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 8, 1000)
	for _, c := range []struct {
		far, drain time.Duration
		ok         bool
	}{{300 * time.Millisecond, time.Minute, true}, {time.Hour, 200 * time.Millisecond, false}} {
		far := slow(memory, c.far)
		h := &Handler{Store: far, Rules: everything}
		l, err := Listen(Socket{Path: socketPath(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Serve(ctx, l, c.drain) }()
		client := open(t, l.Addr().String())
		client.Patience = 100 * time.Millisecond
		client.reached.Store(true)
		var g errgroup.Group
		g.Go(func() error { return want(t.Context(), client, memory, keys, len(keys)) })
		g.Go(func() error {
			_, err := client.Put(t.Context(), "index/a", anIndex(t, 1, "content"), store.Condition{})
			return err
		})
		for far.Count(storetest.Get) <= len(keys) { // the Put asks for the epoch
			time.Sleep(time.Millisecond)
		}
		stop()
		begun := time.Now()
		err = g.Wait()
		if c.ok && err != nil || !c.ok && !is(err, store.ErrUnavailable) {
			t.Errorf("requests of %v, while the daemon drains for %v: %v", c.far, c.drain, err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the daemon does not end")
		}
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("draining took %v", took)
		}
		if _, err := net.Dial("unix", l.Addr().String()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("afterwards the socket is there: %v", err)
		}
	}
}

// TestActivated passes a socket as systemd does, and ends the daemon behind it: who connects meanwhile waits for the
// next one.
func TestActivated(t *testing.T) {
	socket, far := socketPath(t), t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	begin := func(variables string) (*exec.Cmd, string) {
		// LISTEN_PID is the process's own number, which a shell knows before it becomes the daemon.
		cmd := exec.Command("sh", "-c", variables+` exec "$0"`, exe)
		cmd.Env = append(os.Environ(), daemonVariable+"=activated\n"+far)
		cmd.ExtraFiles = []*os.File{f} // it is number 3
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return cmd, strings.TrimSpace(line)
	}
	client := open(t, socket)
	client.FirstPatience = 2 * time.Minute // on a busy machine a process takes a while to begin
	key, stored := aChunk("content", 1)
	for range 2 {
		done := make(chan error, 1)
		go func() { // before there is a daemon
			_, err := client.Put(context.Background(), key, stored, store.Condition{})
			done <- err
		}()
		cmd, line := begin("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=x")
		if line != "ready" {
			t.Errorf("the daemon says %q", line)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("the socket is systemd's: %v", err)
		}
	}
	for variables, want := range map[string]string{
		"":                                      ErrNotActivated.Error(),
		"LISTEN_PID=1 LISTEN_FDS=1":             ErrNotActivated.Error(),
		"LISTEN_PID=$$ LISTEN_FDS=0":            ErrNotActivated.Error(),
		"LISTEN_PID=$$ LISTEN_FDS=2":            "each needs a daemon of its own",
		"LISTEN_PID=$$ LISTEN_FDS=x":            `LISTEN_FDS is "x"`,
		"exec 3<&1; LISTEN_PID=$$ LISTEN_FDS=1": "socket operation on non-socket",
	} {
		if strings.HasPrefix(variables, "exec") {
			variables = "exec 3<&1; export LISTEN_PID=$$ LISTEN_FDS=1;"
		}
		cmd, line := begin(variables)
		if err := cmd.Wait(); err == nil || !strings.Contains(line, want) {
			t.Errorf("%q: the daemon says %q, %v", variables, line, err)
		}
	}
}
