package remote

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// TestSlowSender: whose body comes too slowly is told that it may come again, and not that it was wrong.
func TestSlowSender(t *testing.T) {
	h := &Handler{Store: storetest.Memory(), Rules: everything, Limits: Limits{Idle: 200 * time.Millisecond}}
	d := start(t, h, socketPath(t))
	key, _ := aChunk("content", 1)
	for how, drip := range map[string]string{"stops": "", "drips": "x"} {
		for what, request := range map[string]string{
			"index":  "PUT /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
			"chunk":  "PUT /v1/object/" + key + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
			"chunks": "POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nchunks/",
		} {
			t.Run(what+" "+how, func(t *testing.T) {
				t.Parallel() // each takes a bit more than restPatience
				resp, body := dripping(t, d.path, request, drip)
				if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" ||
					!strings.Contains(body, `"kind":"unavailable"`) || !strings.Contains(body, `"retry":1`) {
					t.Errorf("%d, %v, %s", resp.StatusCode, resp.Header, body)
				}
			})
		}
	}
}

// dripping sends the beginning of a request, and then drip now and then, and returns the reply.
func dripping(t *testing.T, path, begin, drip string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var sender sync.WaitGroup
	defer sender.Wait()
	defer func() { _ = conn.Close() }() // the daemon has closed it
	defer close(stop)
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, begin); err != nil {
		t.Fatal(err)
	}
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = io.WriteString(conn, drip) // it may be cut off
			}
		}
	})
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.40q: %v", begin, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%.40q: %v", begin, err)
	}
	return resp, string(body)
}

// stall makes the first bodies that a client sends stop in the middle, until their connection is closed. It returns how
// many are left to do so.
func stall(c *Client, bodies int64) *atomic.Int64 {
	left := new(atomic.Int64)
	left.Store(bodies)
	dial := c.transport.DialContext
	c.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &stallingConn{Conn: conn, left: left, closed: make(chan struct{})}, nil
	}
	return left
}

type stallingConn struct {
	net.Conn
	left   *atomic.Int64
	once   sync.Once
	closed chan struct{}
}

func (c *stallingConn) Write(p []byte) (int, error) {
	const header = 4 << 10 // at most: what is longer is a body
	if len(p) <= header || c.left.Add(-1) < 0 {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:len(p)/2])
	if err != nil {
		return n, err
	}
	<-c.closed
	return n, net.ErrClosed
}

func (c *stallingConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestSlowSave saves through a client that is held up in the middle of some chunks: they are sent again. One that is held
// up in all of them learns that the store is unavailable to it, which fails no build, and leaves no index.
func TestSlowSave(t *testing.T) {
	memory := storetest.Memory()
	h := &Handler{Store: memory, Rules: everything, Limits: Limits{Idle: 500 * time.Millisecond}}
	d := start(t, h, socketPath(t))
	tree := makeTree(t, 30)

	always := open(t, d.path)
	stall(always, 1<<40)
	always.BusyPatience = time.Second
	err := saveTree(t.Context(), t, always, tree)
	if !is(err, store.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "in time") {
		t.Errorf("a save that sends no body in time: %v", err)
	}
	for _, key := range keys(t, memory) {
		if isIndex(key) || isChunk(key) {
			t.Errorf("it has left %s", key)
		}
	}

	now := open(t, d.path)
	left := stall(now, 3)
	if err := saveTree(t.Context(), t, now, tree); err != nil {
		t.Errorf("a save that was held up: %v", err)
	}
	if n := left.Load(); n > 0 {
		t.Errorf("%d bodies were not held up: this shows nothing", n)
	}
	root, err := restoreTree(t.Context(), t, open(t, d.path))
	if err != nil {
		t.Fatal(err)
	}
	same(t, tree, root)
}
