package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"nbc/transfer/store"
	"nbc/transfer/store/cached"
	"nbc/transfer/store/storetest"
)

// peerVariable makes this program a build of another user: it asks the daemon at the socket that it names.
const peerVariable = "NBC_TEST_PEER"

// peerMain says what it may do.
func peerMain(path string) {
	c, err := Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Close() }()
	for _, name := range []string{"a", "b", "c"} {
		_, err := c.Get(context.Background(), "index/"+name, store.Read{})
		switch {
		case errors.Is(err, store.ErrNotExist):
			fmt.Print(name, " may be read\n")
		case errors.Is(err, store.ErrRefused):
			fmt.Print(name, " is refused\n")
		default:
			fmt.Println(name, err)
		}
	}
}

// TestPeers asks as other users, by the credentials that the kernel tells.
func TestPeers(t *testing.T) {
	me := Peer{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: int32(os.Getpid()), Known: true}
	rules := allow(t, fmt.Sprintf("read a uid=%d\nread b uid=12345\nread c gid=54321", me.UID))
	h := &Handler{Store: storetest.Memory(), Rules: rules}
	path := socketPath(t)
	if err := os.Chmod(path[:len(path)-2], 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(Socket{Path: path, Mode: 0o666})
	if err != nil {
		t.Fatal(err)
	}
	var seen atomic.Value
	h.view = func(p Peer) store.Store {
		seen.Store(p)
		return guard{store: h.shared, rules: h.Rules, peer: p, checks: h.checks}
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l, time.Second) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	client := open(t, path)
	for name, kind := range map[string]error{"a": store.ErrNotExist, "b": store.ErrRefused, "c": store.ErrRefused} {
		if _, err := client.Get(t.Context(), "index/"+name, store.Read{}); !is(err, kind) {
			t.Errorf("%s: %v, want %v", name, err, kind)
		}
	}
	if seen.Load() != me {
		t.Errorf("the peer is %+v, want %+v", seen.Load(), me)
	}
	if os.Getuid() != 0 {
		storetest.Need(t, "root", errors.New("only root can be another user"))
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The program is copied to where another user can run it.
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	mine := path + ".exe"
	if err := os.WriteFile(mine, data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uid, gid uint32
		want     string
	}{
		{12345, 12345, "a is refused\nb may be read\nc is refused\n"},
		{23456, 54321, "a is refused\nb is refused\nc may be read\n"},
		{23456, 23456, "a is refused\nb is refused\nc is refused\n"},
	} {
		cmd := exec.Command(mine)
		cmd.Env = append(os.Environ(), peerVariable+"="+path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid}}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("uid %d, gid %d: %q, %v", c.uid, c.gid, out, err)
		}
	}
}

// descriptors returns how many this process has.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	storetest.Need(t, "proc", err)
	return len(list)
}

// TestNothingIsLeft serves for a while and ends: no descriptor and no goroutine is left.
func TestNothingIsLeft(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 50, 1000)
	round := func() {
		h := &Handler{Store: memory, Rules: everything}
		path := socketPath(t)
		d := start(t, h, path)
		c, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := want(t.Context(), c, memory, keys, 16); err != nil {
			t.Error(err)
		}
		for range 20 { // peers that leave in the middle
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, "PUT /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nxxx")
			_ = conn.Close()
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		d.end()
		for name, n := range map[string]int{
			"connections": value(t, h.metrics.connections), "requests": value(t, h.metrics.inFlight),
			"bytes": value(t, h.metrics.bytesHeld), "clients": len(h.clients.byID),
		} {
			if n != 0 {
				t.Errorf("afterwards there are %d %s", n, name)
			}
		}
	}
	round()
	leaks := goleak.IgnoreCurrent()
	before := descriptors(t)
	for range 3 {
		round()
	}
	goleak.VerifyNone(t, leaks)
	if after := descriptors(t); after > before {
		t.Errorf("there were %d descriptors, there are %d", before, after)
	}
}

// TestSlowPeers lets peers dawdle in each way, and shows that they are cut off while others are served.
func TestSlowPeers(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 20, 500_000)
	h := &Handler{
		Store: memory, Rules: everything,
		Limits: Limits{
			Header: 200 * time.Millisecond, Idle: 200 * time.Millisecond, SlowRate: 100 << 20, Bytes: 4 << 20, Requests: 6,
		},
	}
	d := start(t, h, socketPath(t))
	chunks := ""
	for _, key := range keys {
		chunks += key + " 600000\n"
	}
	post := fmt.Sprintf("POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(chunks), chunks)
	var all sync.WaitGroup
	for name, c := range map[string]struct {
		begin string
		drip  string
	}{
		"says nothing":              {"", ""},
		"drips a header":            {"GET /v1/object/index/a HTTP/1.1\r\nHost: x\r\n", "X"},
		"stops in the body":         {"PUT /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx", ""},
		"drips a body":              {"PUT /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", "x"},
		"stops in a list of chunks": {"POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nchunks", ""},
		"sends no body of a GET":    {"GET /v1/object/index/a HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n\r\n", ""},
		"sends no body of a list":   {"GET /v1/list?prefix=index/ HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n\r\n", ""},
		"sends nothing refused":     {"PUT /v1/object/gc/state HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", ""},
		"reads no reply":            {post, ""},
	} {
		for range 2 {
			all.Go(func() {
				conn, err := net.Dial("unix", d.path)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				begun := time.Now()
				_, _ = io.WriteString(conn, c.begin) // it may be cut off already
				for {
					time.Sleep(20 * time.Millisecond)
					var err error
					if c.begin == post {
						// To see whether it is cut off without reading, the peer writes what is not read either.
						_, err = io.WriteString(conn, "x")
					} else {
						_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
						_, _ = io.WriteString(conn, c.drip)
						_, err = io.Copy(io.Discard, conn)
						if err == nil {
							return // the end
						}
						if errors.Is(err, os.ErrDeadlineExceeded) {
							err = nil
						}
					}
					if err != nil {
						return
					}
					if time.Since(begun) > time.Minute {
						t.Errorf("a peer that %s is served for ever", name)
						return
					}
				}
			})
		}
	}
	// It takes its turn with 18 of them, six at a time, each for up to restPatience and a bit more.
	client := open(t, d.path)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := want(ctx, client, memory, keys, 8); err != nil {
		t.Errorf("beside them: %v", err)
	}
	all.Wait()
	for begun := time.Now(); value(t, h.metrics.bytesHeld) > 0; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("%d bytes are still set aside", value(t, h.metrics.bytesHeld))
		}
	}
}

// TestLimits shows that what is more than the limits waits.
func TestLimits(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 200, 1000)
	var now, most atomic.Int64
	far := &watchedStore{memory, &now, &most}
	h := &Handler{Store: far, Rules: everything, Limits: Limits{
		Idle:  50 * time.Millisecond, // or else those who have all connections keep them for a while
		Conns: 5, Requests: 3, ClientRequests: 2, FarRequests: 4, Bytes: 20_000, ClientBytes: 10_000,
	}}
	d := start(t, h, socketPath(t))
	var g errgroup.Group
	for range 4 {
		c := open(t, d.path)
		g.Go(func() error {
			var g errgroup.Group
			g.SetLimit(16)
			for _, key := range keys {
				g.Go(func() error { _, err := c.Get(t.Context(), key, store.Read{Max: 5000}); return err })
			}
			return g.Wait()
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	// 10,000 bytes have room for two chunks of which it is not known how large they are.
	if n := most.Load(); n < 1 || n > 4 {
		t.Errorf("%d requests of the far store at once", n)
	}

	// A client that has too many connections is turned away, others are not.
	h = &Handler{Store: memory, Rules: everything, Limits: Limits{ClientConns: 3}}
	d = start(t, h, socketPath(t))
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("unix", d.path)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	c, err := net.Dial("unix", d.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a fourth connection: %v", err)
	}
	if n := value(t, h.metrics.turnedAway); n != 1 {
		t.Errorf("%d were turned away", n)
	}
	for _, c := range append(conns, c) {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := want(t.Context(), open(t, d.path), memory, keys[:10], 2); err != nil {
		t.Errorf("when they have left: %v", err)
	}
}

// watchedStore counts its Gets that are under way.
type watchedStore struct {
	store.Store
	now, most *atomic.Int64
}

func (s *watchedStore) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	n := s.now.Add(1)
	defer s.now.Add(-1)
	for {
		most := s.most.Load()
		if n <= most || s.most.CompareAndSwap(most, n) {
			break
		}
	}
	time.Sleep(time.Millisecond)
	return s.Store.Get(ctx, key, r)
}

// madeStore makes chunks as they are asked for, so that only what is on its way takes memory.
type madeStore struct{ size int }

func (s madeStore) Get(_ context.Context, key string, _ store.Read) (store.Object, error) {
	if !isChunk(key) {
		return store.Object{}, store.ErrNotExist
	}
	data := make([]byte, s.size)
	copy(data, key)
	return store.Object{Data: data, Version: "1", Size: int64(s.size)}, nil
}

func (madeStore) Put(context.Context, string, []byte, store.Condition) (string, error) {
	return "1", nil
}
func (madeStore) List(context.Context, string, func(store.Info) error) error { return nil }
func (madeStore) Delete(context.Context, ...string) error                    { return nil }

// TestMemory sends 8 times 60 MB at once, to peers that want more than they read, and looks at the heap.
func TestMemory(t *testing.T) {
	const size, builds, chunks, limit = 400_000, 8, 150, 8 << 20
	h := &Handler{Store: madeStore{size}, Rules: everything, Limits: Limits{Bytes: limit, Idle: 5 * time.Minute}}
	d := start(t, h, socketPath(t))
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var most uint64
	held := 0
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
				held = max(held, value(t, h.metrics.bytesHeld))
			}
		}
	})
	var body strings.Builder
	for i := range chunks {
		key, _ := aChunk(fmt.Sprint(i), 1)
		fmt.Fprintf(&body, "%s 1000000\n", key)
	}
	request := fmt.Sprintf("POST /v1/chunks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
		body.Len(), body.String())
	var g errgroup.Group
	for range builds {
		g.Go(func() error {
			// As the protocol has it, and nothing is kept, so that the heap is the daemon's.
			conn, err := net.Dial("unix", d.path)
			if err != nil {
				return err
			}
			if _, err = io.WriteString(conn, request); err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, conn)
			if err != nil || n < chunks*size {
				return fmt.Errorf("%d bytes came, %w", n, err)
			}
			return conn.Close()
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	close(stop)
	watcher.Wait()
	t.Logf("the heap had %d MB before, %d MB at most; %d MB were set aside", before.HeapInuse>>20, most>>20, held>>20)
	if held == 0 || held > limit {
		t.Errorf("%d bytes were set aside", held)
	}
	// The collector of the heap lets as much garbage lie as there is in use, and some more while it is at work.
	if allowed := 2*(before.HeapInuse+limit) + limit; most > allowed {
		t.Errorf("%d MB are too much, want at most %d", most>>20, allowed>>20)
	}
}

func TestHealth(t *testing.T) {
	far := &storetest.Faulty{Store: storetest.Memory()}
	h := &Handler{Store: far, Rules: everything}
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.Health().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	for range 5 {
		if code, text := get("/healthz"); code != 200 {
			t.Errorf("%d %s", code, text)
		}
	}
	if n := far.Calls(); n != 1 {
		t.Errorf("the far store was asked %d times", n)
	}
	far.Fault = storetest.FailFrom(0, fmt.Errorf("no route: %w", store.ErrUnavailable))
	if code, _ := get("/healthz"); code != 200 {
		t.Error("an answer is not kept")
	}
	h.health.when = time.Now().Add(-healthFor)
	if code, text := get("/healthz"); code != 503 || text != "far store: unavailable\n" {
		t.Errorf("%d %s", code, text)
	}
	far.Fault = nil
	h.health.when = time.Time{}
	if code, _ := get("/healthz"); code != 200 {
		t.Error("it does not get well")
	}
	h.draining.Store(true)
	if code, text := get("/healthz"); code != 503 || text != "draining\n" {
		t.Errorf("%d %s", code, text)
	}
	if code, _ := get("/livez"); code != 200 {
		t.Error("it is not alive")
	}
}

// TestHealthIsPastLimits asks whether the daemon is well while clients hold all that there is, and give nothing back.
func TestHealthIsPastLimits(t *testing.T) {
	const clients = 8
	memory := storetest.Memory()
	key := putChunks(t, memory, 1, 1000)[0]
	var down atomic.Bool
	far := &storetest.Faulty{Store: memory, Fault: func(c storetest.Call) storetest.Fault {
		switch {
		case c.Key == key:
			return storetest.Fault{Hang: true}
		case down.Load():
			return storetest.Fault{Before: fmt.Errorf("no route: %w", store.ErrUnavailable)}
		}
		return storetest.Fault{}
	}}
	h := &Handler{
		Store: far, Rules: everything, peerOf: byAddress,
		Limits: Limits{
			Conns: clients, ClientConns: 1, Requests: clients, ClientRequests: 1, FarRequests: clients, ClientFarRequests: 1,
			Bytes: clients << 20, ClientBytes: 1 << 20,
		},
	}
	d := start(t, h, socketPath(t))
	for uid := range clients {
		line := fmt.Sprintf("%s %d fresh\n", key, 1<<20+uid) // each is a fetch of its own
		request := fmt.Sprintf("POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(line), line)
		if _, err := io.WriteString(dialAs(t, d.path, uid), request); err != nil {
			t.Fatal(err)
		}
	}
	for begun := time.Now(); far.Count(storetest.Get) < clients; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("only %d fetches are under way", far.Count(storetest.Get))
		}
	}
	if h.clients.requests.TryAcquire(1) || h.clients.bytes.TryAcquire(1) || h.clients.reserve.TryAcquire(1) ||
		h.shared.slots.TryAcquire(1) || value(t, h.metrics.connections) < clients {
		t.Fatal("something is left: this shows nothing")
	}
	s := httptest.NewServer(h.Health())
	t.Cleanup(s.Close)
	look := func(want string) {
		t.Helper()
		resp, err := s.Client().Get(s.URL + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }() // it is read to its end
		if text, err := io.ReadAll(resp.Body); err != nil || string(text) != want {
			t.Errorf("%q, %v, want %q", text, err, want)
		}
	}
	look("ok\n")
	down.Store(true)
	h.health.turn <- struct{}{}
	h.health.when = time.Time{}
	<-h.health.turn
	look("far store: unavailable\n")
}

// TestHealthOfSilentStore: who asks about a store that says nothing has an answer in time, whoever has asked before, and
// has left.
func TestHealthOfSilentStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &storetest.Faulty{Store: storetest.Memory(), Fault: func(storetest.Call) storetest.Fault {
			return storetest.Fault{Hang: true}
		}}
		h := &Handler{Store: far, Rules: everything}
		begun := time.Now()
		var all sync.WaitGroup
		for range 20 { // each leaves before its own question would have its answer
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(healthTimeout/2, cancel)
			all.Go(func() { _ = h.Healthy(ctx) }) // it has left, or has the same answer
		}
		time.Sleep(time.Second)
		if err := h.Healthy(t.Context()); !errors.Is(err, context.DeadlineExceeded) || newProblem(err).Kind != "unavailable" {
			t.Errorf("%v", err)
		}
		if took := time.Since(begun); took > healthTimeout {
			t.Errorf("it is known after %v", took)
		}
		all.Wait()
		if n := far.Calls(); n != 1 {
			t.Errorf("the far store was asked %d times", n)
		}
	})
}

// TestNearCopies puts a near store before the far one: what was fetched comes from there, what the far store refuses
// does not get there, and a Put is answered by the far store.
func TestNearCopies(t *testing.T) {
	memory := storetest.Memory()
	far := &storetest.Faulty{Store: memory}
	near, err := cached.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := cached.New(near, far)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	client := serve(t, &Handler{Store: s, Rules: everything, Metrics: m})
	key, stored := aChunk("content", 1)
	mustPut(t, memory, key, stored)
	for i, near := range []bool{false, true} {
		o, err := client.Get(t.Context(), key, store.Read{})
		if err != nil || o.Near != near {
			t.Errorf("Get %d: near %v, %v", i, o.Near, err)
		}
	}
	if o, err := client.Get(t.Context(), key, store.Read{Fresh: true}); err != nil || o.Near {
		t.Errorf("Get that wants no near copy: near %v, %v", o.Near, err)
	}
	if n, f := value(t, m.chunks.WithLabelValues("near")), value(t, m.chunks.WithLabelValues("far")); n != 1 || f != 2 {
		t.Errorf("%d near ones and %d far ones are counted", n, f)
	}
	broken := fmt.Errorf("outage: %w", store.ErrUnavailable)
	far.Fault = storetest.FailFrom(0, broken)
	if o, err := client.Get(t.Context(), key, store.Read{}); err != nil || !o.Near {
		t.Errorf("Get of a near copy during an outage: %v", err)
	}
	if _, err := client.Put(t.Context(), key, stored, store.Condition{}); !is(err, store.ErrUnavailable) {
		t.Errorf("Put of what is near already: %v", err)
	}
	other, otherStored := aChunk("other", 1)
	if _, err := client.Put(t.Context(), other, otherStored, store.Condition{}); !is(err, store.ErrUnavailable) {
		t.Errorf("Put during an outage: %v", err)
	}
	far.Fault = nil
	if _, err := client.Get(t.Context(), other, store.Read{}); !is(err, store.ErrNotExist) {
		t.Errorf("Get of what was not put: %v", err)
	}
}

// TestNearNeedsNoFarTurn reads a near copy while the far store says nothing, to as many requests as there may be.
func TestNearNeedsNoFarTurn(t *testing.T) {
	const turns = 4
	far := &storetest.Faulty{Store: storetest.Memory()}
	near, err := cached.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := cached.New(near, far)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	keys := putChunks(t, far, turns+1, 1000)
	if _, err := s.Get(t.Context(), keys[turns], store.Read{Max: 1 << 20}); err != nil { // which keeps it
		t.Fatal(err)
	}
	far.Fault = func(storetest.Call) storetest.Fault { return storetest.Fault{Hang: true} }
	h := &Handler{
		Store: s, Rules: everything, Limits: Limits{FarRequests: turns, ClientFarRequests: turns, Wait: time.Hour},
	}
	client := serve(t, h)
	hung, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer leave()
	before := far.Count(storetest.Get)
	for _, key := range keys[:turns] {
		all.Go(func() { _, _ = client.Get(hung, key, store.Read{Max: 1 << 20}) }) // it has left
	}
	for begun := time.Now(); far.Count(storetest.Get) < before+turns; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("the far store is not asked")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // and not the hour that a turn would be waited for
	defer cancel()
	if o, err := client.Get(ctx, keys[turns], store.Read{Max: 1 << 20}); err != nil || !o.Near {
		t.Errorf("near %v, %v", o.Near, err)
	}
	if n := value(t, h.metrics.chunks.WithLabelValues("near")); n != 1 {
		t.Errorf("%d near copies are counted", n)
	}
	if h.shared.slots.TryAcquire(1) {
		t.Error("there is a turn left: this shows nothing")
	}
}

// TestBeats lets the far store take longer than a client waits for a silent daemon. On a busy machine a beat may be late
// by as much: then all of it is done once more, five times as slowly.
func TestBeats(t *testing.T) {
	err := beats(t, 300*time.Millisecond)
	if err != nil {
		t.Log(err)
		err = beats(t, 1500*time.Millisecond)
	}
	if err != nil {
		t.Error(err)
	}
}

func beats(t *testing.T, beat time.Duration) error {
	t.Helper()
	memory := storetest.Memory()
	key, stored := aChunk("content", 1)
	mustPut(t, memory, key, stored)
	mustPut(t, memory, "index/a", anIndex(t, 1, "content"))
	client := serve(t, &Handler{Store: slow(memory, 12*beat), Rules: everything, beat: beat})
	client.IdleTimeout, client.FirstPatience, client.Patience = 6*beat, time.Millisecond, time.Millisecond
	var g errgroup.Group
	for what, call := range map[string]func() error{
		"Get of a chunk":  func() error { _, err := client.Get(t.Context(), key, store.Read{}); return err },
		"Get of an index": func() error { _, err := client.Get(t.Context(), "index/a", store.Read{}); return err },
		"Put":             func() error { _, err := client.Put(t.Context(), key, stored, store.Condition{}); return err },
		"large Put": func() error {
			_, err := client.Put(t.Context(), "index/b", largeIndex(t), store.Condition{})
			return err
		},
		"List": func() error { return client.List(t.Context(), "index/", func(store.Info) error { return nil }) },
	} {
		g.Go(func() error {
			if err := call(); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// TestRoomThatComesBack: who waits for the reserve is served from the common room as well, if that has room first.
func TestRoomThatComesBack(t *testing.T) { synctest.Test(t, roomThatComesBack) }

func roomThatComesBack(t *testing.T) {
	l := Limits{Bytes: 8 << 20, ClientBytes: 3 << 20, Wait: time.Minute}.withDefaults()
	m, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c := newClients(l, m)
	take := func(one *client, n int64) *room {
		t.Helper()
		r, err := c.take(t.Context(), one, n)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	common := take(c.make(), 3<<20)
	other := take(c.make(), 3<<20)
	reserved := take(c.make(), 2<<20)
	if !reserved.reserved {
		t.Fatal("it has none of the reserve")
	}
	got := make(chan *room)
	one := c.make()
	go func() {
		r, err := c.take(t.Context(), one, 1<<20)
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	synctest.Wait()
	common.free()
	r := <-got
	if r == nil || r.reserved {
		t.Fatal("it has none of the common room")
	}
	for _, r := range []*room{r, other, reserved} {
		r.free()
	}
	for what, s := range map[string]*semaphore.Weighted{"common room": c.bytes, "reserve": c.reserve, "share": one.share} {
		n := map[string]int64{"common room": l.Bytes - l.reserve(), "reserve": l.reserve(), "share": l.share()}[what]
		if !s.TryAcquire(n) {
			t.Errorf("the %s was not all given back", what)
		}
	}
}
