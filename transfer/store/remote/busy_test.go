package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/index"
	"nbc/transfer"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// dialAs connects as a user of this number, for a Handler whose peerOf is byAddress.
func dialAs(t *testing.T, path string, uid int) net.Conn {
	t.Helper()
	c, err := dialUser(path, uid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed already
	return c
}

var dialled atomic.Uint64 // makes addresses that nobody else has

func dialUser(path string, uid int) (net.Conn, error) {
	name := fmt.Sprintf("@nbc-%d-%s-%d", uid, filepath.Base(filepath.Dir(path)), dialled.Add(1))
	return net.DialUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}, &net.UnixAddr{Name: path, Net: "unix"})
}

// as makes a client connect as a user of this number, for such a Handler.
func as(c *Client, uid int) {
	c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return dialUser(c.path, uid) }
}

// byAddress takes those for another user who connect by dialAs; all others are user 1000.
func byAddress(c net.Conn) Peer {
	p := Peer{UID: 1000, GID: 1000, Known: true}
	if _, err := fmt.Sscanf(c.RemoteAddr().String(), "@nbc-%d-", &p.UID); err != nil {
		p.UID = 1000
	}
	return p
}

// TestRoomForOthers: one client that takes all it can get, and gives nothing back, leaves the others their room, their
// requests and their part of the far store.
func TestRoomForOthers(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 30, 50_000)
	hung := putChunks(t, memory, 20, 10)
	far := &storetest.Faulty{Store: memory, Fault: func(c storetest.Call) storetest.Fault {
		return storetest.Fault{Hang: slices.Contains(hung, c.Key)}
	}}
	chunks := func(keys ...string) string {
		body := strings.Join(keys, " 100\n") + " 100\n"
		return fmt.Sprintf("POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for name, c := range map[string]struct {
		limits  Limits
		request string
	}{
		"requests": {Limits{Requests: 6, ClientRequests: 3}, chunks(hung[0])},
		"bytes": {
			Limits{Bytes: 4 << 20, ClientBytes: 2 << 20},
			"PUT /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\nx",
		},
		"the far store": {Limits{FarRequests: 6, ClientFarRequests: 3}, chunks(hung...)},
	} {
		t.Run(name, func(t *testing.T) {
			c.limits.Idle, c.limits.Wait = 10*time.Minute, 2*time.Second
			h := &Handler{Store: far, Rules: everything, Limits: c.limits, peerOf: byAddress}
			d := start(t, h, socketPath(t))
			var greedy []net.Conn
			for range 8 {
				conn := dialAs(t, d.path, 1)
				greedy = append(greedy, conn)
				if _, err := io.WriteString(conn, c.request); err != nil {
					t.Fatal(err)
				}
			}
			// It has what it can get when others of the same client are told that there is no more.
			client := open(t, d.path)
			for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
				if busy := gathered(t, h); busy > 0 {
					break
				}
				if time.Since(begun) > 20*time.Second {
					t.Fatal("the greedy one is never told that there is no more")
				}
			}
			if err := want(t.Context(), client, memory, keys, 8); err != nil {
				t.Errorf("another client: %v", err)
			}
			if _, err := client.Put(t.Context(), "index/b", anIndex(t, 1, "x"), store.Condition{}); err != nil {
				t.Errorf("another client: %v", err)
			}
			// Meanwhile the greedy one has given nothing back.
			h.clients.mu.Lock()
			one := h.clients.byID[1]
			h.clients.mu.Unlock()
			if one == nil {
				t.Fatal("the greedy one is not there any more")
			}
			if one.requests.TryAcquire(3) && one.bytes.TryAcquire(1<<20) && one.far.TryAcquire(1) {
				t.Error("the greedy one has given something back")
			}
			for _, conn := range greedy {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestRoomIsKept: two clients that set aside all the room that they can get, and send nothing, leave some to each of the
// others.
func TestRoomIsKept(t *testing.T) {
	const all, object, greedy = 32 << 20, 1_000_000, 20
	memory := storetest.Memory()
	keys := putChunks(t, memory, 30, 50_000)
	mustPut(t, memory, "index/a", anIndex(t, 1, "x"))
	h := &Handler{
		Store: memory, Rules: everything, peerOf: byAddress,
		Limits: Limits{Bytes: all, ClientBytes: all / 2, Idle: 10 * time.Minute, Wait: 2 * time.Second},
	}
	d := start(t, h, socketPath(t))
	for n := range 2 * greedy {
		request := fmt.Sprintf("PUT /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nx", object)
		if _, err := io.WriteString(dialAs(t, d.path, 1+n%2), request); err != nil {
			t.Fatal(err)
		}
	}
	for begun := time.Now(); value(t, h.metrics.bytesHeld) < all*3/4-object; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("they have only %d bytes", value(t, h.metrics.bytesHeld))
		}
	}
	for uid := 3; uid < 5; uid++ {
		client := open(t, d.path)
		client.BusyPatience = 10 * time.Second
		as(client, uid)
		if err := want(t.Context(), client, memory, keys, 8); err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
		if _, err := client.Get(t.Context(), "index/a", store.Read{}); err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
		if _, err := client.Put(t.Context(), "index/b", anIndex(t, 1, "x"), store.Condition{}); err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	if n := value(t, h.metrics.bytesHeld); n < all*3/4-object {
		t.Errorf("they have given something back, and have %d bytes: this shows nothing", n)
	}
}

// gathered is how often somebody was told that there is no room.
func gathered(t *testing.T, h *Handler) (n int) {
	t.Helper()
	for _, what := range []string{"a request", "an object", "a request of its store", "looking at an index"} {
		n += value(t, h.metrics.busy.WithLabelValues(what))
	}
	return n
}

// TestBusy: a daemon that has no room says so after a while, and a build that gets nothing at all goes on without it.
func TestBusy(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 2, 1000)
	there, release := make(chan struct{}, 1), make(chan struct{})
	far := &gettingStore{memory, func(key string) {
		if key == keys[0] {
			there <- struct{}{}
			<-release
		}
	}}
	const wait, patience = 200 * time.Millisecond, 500 * time.Millisecond
	for name, limits := range map[string]Limits{
		"requests": {Requests: 1}, "bytes": {Bytes: 1 << 20}, "the far store": {FarRequests: 1},
	} {
		limits.Wait = wait
		d := start(t, &Handler{Store: far, Rules: everything, Limits: limits}, socketPath(t))
		first := open(t, d.path)
		held := make(chan error, 1)
		go func() {
			_, err := first.Get(t.Context(), keys[0], store.Read{Max: 1 << 20})
			held <- err
		}()
		<-there
		client := open(t, d.path)
		client.BusyPatience = patience
		for what, call := range map[string]func() error{
			"chunk": func() error { _, err := client.Get(t.Context(), keys[1], store.Read{Max: 1 << 20}); return err },
			"index": func() error { _, err := client.Get(t.Context(), "index/a", store.Read{}); return err },
			"put": func() error {
				_, err := client.Put(t.Context(), "index/a", anIndex(t, 1, "x"), store.Condition{})
				return err
			},
		} {
			begun := time.Now()
			err := call()
			if !is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "no room") ||
				!strings.Contains(store.Hint(err), "nbc daemon") {
				t.Errorf("%s: %s: %v, hint %q", name, what, err, store.Hint(err))
			}
			if took := time.Since(begun); took > DefaultBusyPatience/2 {
				t.Errorf("%s: %s was refused after %v", name, what, took)
			}
		}
		release <- struct{}{}
		if err := <-held; err != nil {
			t.Errorf("%s: the one that was served: %v", name, err)
		}
		// When there is room again, it is served.
		if _, err := client.Get(t.Context(), keys[1], store.Read{Max: 1 << 20}); err != nil {
			t.Errorf("%s: afterwards: %v", name, err)
		}
		d.end()
	}
}

// TestBusyReply is what goes over the socket.
func TestBusyReply(t *testing.T) {
	h := &Handler{Store: storetest.Memory(), Rules: everything, Limits: Limits{Requests: 1, Wait: 10 * time.Millisecond}}
	d := start(t, h, socketPath(t))
	if err := h.clients.requests.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	resp, body := raw(t, d.path, "GET /v1/object/index/a HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" ||
		!strings.Contains(string(body), `"kind":"unavailable"`) || !strings.Contains(string(body), `"retry":1`) {
		t.Errorf("%d, %v, %s", resp.StatusCode, resp.Header, body)
	}
	h.clients.requests.Release(1)
}

// TestBusyIsNoFailure: as long as something of a build moves, what there was no room for is asked for again.
func TestBusyIsNoFailure(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 40, 3000)
	h := &Handler{
		Store: slow(memory, 10*time.Millisecond), Rules: everything,
		Limits: Limits{Wait: 40 * time.Millisecond, Requests: 2, FarRequests: 2, Bytes: 2 << 20},
	}
	d := start(t, h, socketPath(t))
	var g errgroup.Group
	for range 3 {
		c := open(t, d.path)
		g.Go(func() error { return want(t.Context(), c, memory, keys, 32) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if gathered(t, h) == 0 {
		t.Error("there was always room: this shows nothing")
	}
}

// TestSlowReader reads a little all the time, and too little.
func TestSlowReader(t *testing.T) {
	memory := storetest.Memory()
	const chunks, size = 500, 10_000
	keys := putChunks(t, memory, chunks, size)
	// It reads 1.2 MB a second, so that the kernel wants more of the daemon every 0.2 seconds.
	h := &Handler{Store: memory, Rules: everything, Limits: Limits{Idle: 600 * time.Millisecond, SlowRate: 10 << 20}}
	d := start(t, h, socketPath(t))
	var body strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&body, "%s %d\n", key, 2*size)
	}
	conn, err := net.Dial("unix", d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // it was cut off
	if _, err := fmt.Fprintf(conn, "POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", body.Len(),
		body.String()); err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 6000)
	came := 0
	for {
		n, err := io.ReadFull(conn, piece)
		came += n
		if err != nil || came >= chunks*size {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if came >= chunks*size {
		t.Errorf("a peer that reads too slowly was sent all of %d bytes", came)
	}
	begun := time.Now()
	for value(t, h.metrics.bytesHeld) > 0 || value(t, h.metrics.inFlight) > 0 {
		if time.Since(begun) > time.Minute {
			t.Fatal("what it held is not given back")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestMayPut asks before anything is sent.
func TestMayPut(t *testing.T) {
	far := &storetest.Faulty{Store: storetest.Memory()}
	client := serve(t, &Handler{Store: far, Rules: allow(t, "read **\nwrite app/pr-*")})
	for name, want := range map[string]error{"app/pr-1": nil, "app/pr-1@key": nil, "app/main": store.ErrRefused} {
		key, err := index.Path(name)
		if err != nil {
			t.Fatal(err)
		}
		if err = client.MayPut(t.Context(), key); !is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if want != nil && (!strings.Contains(err.Error(), name) || store.Hint(err) != hintRules) {
			t.Errorf("%s: %v, hint %q", name, err, store.Hint(err))
		}
	}
	for key, want := range map[string]error{"format": nil, "gc/state": store.ErrRefused, "x y": fs.ErrInvalid} {
		if err := client.MayPut(t.Context(), key); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", key, err, want)
		}
	}
	if n := far.Calls(); n != 0 {
		t.Errorf("the far store was asked %d times", n)
	}

	// A daemon of an earlier version does not know the question.
	old := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(versionHeader, protocolVersion)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"kind": "invalid", "text": "nothing is at \"/v1/may-put\""}`)
	}))
	if err := open(t, old).MayPut(t.Context(), "index/a"); err != nil {
		t.Errorf("of an old daemon: %v", err)
	}
}

// TestRefusedSaveSendsNothing saves under a name that may not be written, where others may.
func TestRefusedSaveSendsNothing(t *testing.T) {
	memory := storetest.Memory()
	far := &storetest.Faulty{Store: memory}
	rules := allow(t, "read **\nwrite app/pr-*")
	client := serve(t, &Handler{Store: far, Rules: rules})
	tree := makeTree(t, 30)
	err := saveTree(t.Context(), t, client, tree) // as app/main
	if !is(err, store.ErrRefused) || store.Hint(err) != hintRules || !strings.Contains(err.Error(), "app/main") {
		t.Errorf("%v, hint %q", err, store.Hint(err))
	}
	if list := keys(t, memory); len(list) > 0 || far.Calls() > 0 {
		t.Errorf("the store has %q, and was asked %d times", list, far.Calls())
	}
	// The other way round the same tree is saved.
	b, err := (&transfer.Cache{Store: client}).Open(tree, filepath.Join(t.TempDir(), "receipt"), false)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Save(t.Context(), transfer.SaveOptions{Name: "app/pr-1", Tree: transfer.Tree{Dirs: []string{"build"}}})
	if err = errors.Join(err, b.Close()); err != nil || !r.Saved {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestLogIsBounded: who is refused again and again does not fill the log, and it is said how often it was.
func TestLogIsBounded(t *testing.T) {
	log := new(safeBuffer)
	h := &Handler{
		Store: storetest.Memory(), Rules: allow(t, "read a"), Log: slog.New(slog.NewTextHandler(log, nil)), peerOf: byAddress,
	}
	h.start()
	h.ledger.window = 300 * time.Millisecond
	d := start(t, h, socketPath(t))
	client := open(t, d.path)
	refuse := func(n int) {
		t.Helper()
		for range n {
			if _, err := client.Get(t.Context(), "index/b", store.Read{}); !is(err, store.ErrRefused) {
				t.Fatal(err)
			}
		}
	}
	const many = 500
	begun := time.Now()
	refuse(many)
	most := logLines * (1 + int(time.Since(begun)/h.ledger.window)) // on a busy machine that is a lot of windows
	lines, told := log.count("does not allow"), func() (n int) {
		for line := range strings.Lines(log.String()) {
			if _, rest, ok := strings.Cut(line, `"left out of this log"`); ok {
				var k int
				_, after, _ := strings.Cut(rest, "lines=")
				if _, err := fmt.Sscan(after, &k); err != nil || !strings.Contains(rest, "uid=1000") {
					t.Errorf("%q: %v", line, err)
				}
				n += k
			}
		}
		return n
	}
	if lines < logLines || lines > most {
		t.Errorf("%d lines of %d refusals, want at most %d", lines, many, most)
	}
	// Somebody else, and another result, have lines of their own.
	conn := dialAs(t, d.path, 7)
	if _, err := io.WriteString(conn, "GET /v1/object/index/c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); told()+log.count("key=index/b") < many; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("of %d refusals %d are in the log, and %d were left out:\n%.2000s", many, log.count("key=index/b"), told(), log)
		}
	}
	if log.count("key=index/c") != 1 {
		t.Error("what happened to another user is not in the log")
	}
	// At the end what was left out is told as well.
	h.ledger.window = time.Hour
	time.Sleep(400 * time.Millisecond)
	before := log.count("key=index/b") + told()
	refuse(100)
	d.end()
	if after := log.count("key=index/b") + told(); after != before+100 {
		t.Errorf("of 100 refusals %d are accounted for", after-before)
	}
}

// TestIndexMemory puts indexes at once that are small, and large when they are decoded.
func TestIndexMemory(t *testing.T) {
	x := &index.Index{Epoch: 1, Roots: []string{"d"}, Entries: []index.Entry{{Path: "d", Kind: index.Dir}}}
	dir := "d"
	for range 7 {
		dir += "/" + strings.Repeat("x", index.MaxComponent)
		x.Entries = append(x.Entries, index.Entry{Path: dir, Kind: index.Dir})
	}
	for i := range 20_000 { // of 1,800 bytes each: 36 MB
		x.Entries = append(x.Entries, index.Entry{Path: fmt.Sprintf("%s/%07d", dir, i), Kind: index.File})
	}
	data, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x = nil
	h := &Handler{Store: storetest.Memory(), Rules: everything}
	client := serve(t, h)
	most := heapDuring(func() {
		var g errgroup.Group
		for i := range 8 {
			g.Go(func() error {
				_, err := client.Put(t.Context(), fmt.Sprintf("index/i%d", i), data, store.Condition{})
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("an index of %d bytes; %d MB", len(data), most>>20)
	if most > 20<<20 {
		t.Errorf("looking at 8 indexes of %d bytes took %d MB", len(data), most>>20)
	}
	// What is more than the memory that there is waits for it, and not for ever.
	h2 := &Handler{Store: storetest.Memory(), Rules: everything, Limits: Limits{IndexMemory: 1 << 16, Wait: 50 * time.Millisecond}}
	busyClient := serve(t, h2)
	busyClient.BusyPatience = 100 * time.Millisecond
	if err := h2.checks.memory.Acquire(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := busyClient.Put(t.Context(), "index/a", data, store.Condition{}); !is(err, store.ErrUnavailable) {
		t.Errorf("without memory: %v", err)
	}
	h2.checks.memory.Release(1)
	if _, err := busyClient.Put(t.Context(), "index/a", data, store.Condition{}); err != nil {
		t.Errorf("with memory: %v", err)
	}
}

// heapDuring returns by how many bytes what is in use of the heap grows while f runs. What f drops while a collection is
// under way counts as in use, which is much on a busy machine: the least of some tries is told.
func heapDuring(f func()) int64 {
	inUse := func() int64 {
		runtime.GC()
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	least := int64(math.MaxInt64)
	for range 3 {
		before := inUse()
		most := before
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
					most = max(most, inUse())
				}
			}
		}()
		f()
		close(stop)
		<-stopped
		least = min(least, most-before)
	}
	return least
}
