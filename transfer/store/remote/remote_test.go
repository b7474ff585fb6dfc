package remote

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// daemon is a Handler that serves a socket, in this process.
type daemon struct {
	t    testing.TB
	path string
	stop context.CancelFunc
	done chan error
	once sync.Once
}

// socketPath returns a path for a socket, which is short whatever the test is called.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "s")
}

// start serves h at path until the test ends.
func start(t testing.TB, h *Handler, path string) *daemon {
	t.Helper()
	l, err := Listen(Socket{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	h.start() // so that a test may look at what it makes
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{t: t, path: path, stop: cancel, done: make(chan error, 1)}
	go func() { d.done <- h.Serve(ctx, l, 20*time.Second) }()
	t.Cleanup(d.end)
	return d
}

// end drains the daemon and waits for it.
func (d *daemon) end() {
	d.once.Do(func() {
		d.stop()
		select {
		case err := <-d.done:
			if err != nil {
				d.t.Errorf("the daemon ended with %v", err)
			}
		case <-time.After(time.Minute):
			d.t.Error("the daemon does not end")
		}
	})
}

// open returns a client for the socket at path.
func open(t testing.TB, path string) *Client {
	t.Helper()
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// serve serves h and returns a client for it.
func serve(t testing.TB, h *Handler) *Client {
	t.Helper()
	return open(t, start(t, h, socketPath(t)).path)
}

// everything lets everybody read and write all names.
var everything = Rules{{Right: Reading, Glob: "**"}, {Right: Writing, Glob: "**"}}

// deleting is a client whose objects are deleted behind its back: the protocol has no such request.
type deleting struct {
	store.Store
	behind store.Store
}

func (d deleting) Delete(ctx context.Context, keys ...string) error {
	return d.behind.Delete(ctx, keys...)
}

// TestConformance runs the suite of all stores over the socket, to a daemon that lets everything through: what the
// protocol carries is carried right. What a daemon with rules does with it the other tests show.
func TestConformance(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		memory := storetest.Memory()
		h := &Handler{Store: memory}
		h.view = func(Peer) store.Store { return h.shared }
		return deleting{serve(t, h), memory}
	})
}
