package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// value returns what a metric counts.
func value(t testing.TB, m prometheus.Metric) int {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return int(d.GetCounter().GetValue() + d.GetGauge().GetValue())
}

// putChunks puts n chunks of size bytes and returns their keys.
func putChunks(t testing.TB, s store.Store, n, size int) []string {
	t.Helper()
	var list []string
	r := rand.NewChaCha8([32]byte{1})
	data := make([]byte, size)
	for range n {
		_, _ = r.Read(data) // never fails
		key, stored := aChunk(string(data), 1)
		mustPut(t, s, key, stored)
		list = append(list, key)
	}
	return list
}

// want gets all keys, many at once, and compares what comes with what s has.
func want(ctx context.Context, client, s store.Store, keys []string, atOnce int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, key := range keys {
		g.Go(func() error {
			o, err := client.Get(ctx, key, store.Read{Max: 1 << 20})
			if err != nil {
				return err
			}
			there, err := s.Get(ctx, key, store.Read{})
			if err == nil && (!bytes.Equal(o.Data, there.Data) || o.Size != there.Size || o.Version != there.Version) {
				err = fmt.Errorf("%s: other bytes than were put", key)
			}
			return err
		})
	}
	return g.Wait()
}

// slow is a store that needs a round trip for each request.
func slow(s store.Store, roundTrip time.Duration) *storetest.Faulty {
	return &storetest.Faulty{
		Store: s, Fault: func(storetest.Call) storetest.Fault { return storetest.Fault{Delay: roundTrip} },
	}
}

// TestFewRequests restores 2,000 chunks, 64 at once.
func TestFewRequests(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 2000, 2000)
	far := slow(memory, 5*time.Millisecond)
	h := &Handler{Store: far, Rules: everything}
	client := serve(t, h)
	if err := want(t.Context(), client, memory, keys, 64); err != nil {
		t.Fatal(err)
	}
	requests := value(t, h.metrics.requests.WithLabelValues("chunks", "ok"))
	t.Logf("%d chunks by %d requests", len(keys), requests)
	if requests > len(keys)/5 { // on a busy machine some go out before others are there
		t.Errorf("%d chunks need %d requests", len(keys), requests)
	}
	if n := far.Count(storetest.Get); n != len(keys) {
		t.Errorf("%d chunks are fetched %d times", len(keys), n)
	}
	if n := value(t, h.metrics.bytesHeld); n != 0 {
		t.Errorf("afterwards %d bytes are set aside", n)
	}
}

// TestSingleGet shows that a Get on its own waits for no others.
func TestSingleGet(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 1, 2000)
	h := &Handler{Store: memory, Rules: everything}
	client := serve(t, h)
	fastest := time.Hour
	for range 50 {
		begun := time.Now()
		if err := want(t.Context(), client, memory, keys, 1); err != nil {
			t.Fatal(err)
		}
		fastest = min(fastest, time.Since(begun))
	}
	// They are counted when they have ended, which is after the chunk has come.
	requests := h.metrics.requests.WithLabelValues("chunks", "ok")
	for begun := time.Now(); value(t, requests) < 50 && time.Since(begun) < time.Minute; {
		time.Sleep(time.Millisecond)
	}
	if n := value(t, requests); n != 50 {
		t.Errorf("50 Gets make %d requests", n)
	}
	if fastest > maxWait {
		t.Errorf("a Get takes %v at least", fastest)
	}
}

// TestSlowChunks lets some chunks hang: the others come all the same, in the same requests and in later ones. Those
// whose caller leaves are given up, and the rest are not.
func TestSlowChunks(t *testing.T) {
	memory := storetest.Memory()
	keys := putChunks(t, memory, 200, 2000)
	hanging := map[string]chan struct{}{}
	for _, key := range keys[:5] {
		hanging[key] = make(chan struct{})
	}
	far := &storetest.Faulty{Store: memory}
	var given atomic.Int32
	client := serve(t, &Handler{Store: &hangingStore{far, hanging, &given}, Rules: everything})
	ctx, leave := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	left := make(chan error, 5)
	for i, key := range keys[:5] {
		go func() {
			callerCtx := ctx
			if i == 0 {
				callerCtx = t.Context()
			}
			_, err := client.Get(callerCtx, key, store.Read{Max: 1 << 20})
			left <- err
		}()
	}
	if err := want(t.Context(), client, memory, keys[5:], 64); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-left:
		t.Fatalf("a chunk that hangs is %v", err)
	default:
	}
	leave(cause)
	for range 4 {
		if err := <-left; !errors.Is(err, cause) {
			t.Errorf("%v, want %v", err, cause)
		}
	}
	if err := want(t.Context(), client, memory, keys[5:], 64); err != nil {
		t.Fatal(err)
	}
	close(hanging[keys[0]])
	if err := <-left; err != nil {
		t.Errorf("the chunk that somebody still waited for: %v", err)
	}
	// A request whose last caller has left is broken off, up to the far store.
	for begun := time.Now(); given.Load() < 4; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("%d of 4 fetches were given up", given.Load())
		}
	}
}

// hangingStore lets Gets hang until a channel is closed, or their context ends.
type hangingStore struct {
	store.Store
	hanging map[string]chan struct{}
	given   *atomic.Int32
}

func (s *hangingStore) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	if ch := s.hanging[key]; ch != nil {
		select {
		case <-ch:
		case <-ctx.Done():
			s.given.Add(1)
			return store.Object{}, context.Cause(ctx)
		}
	}
	return s.Store.Get(ctx, key, r)
}

// cutting is a daemon between, which breaks replies off.
type cutting struct {
	h http.Handler
	// cut returns after how many bytes the reply to a request breaks off; less than 0: not at all.
	cut func(n int) int

	mu     sync.Mutex
	bodies []string
}

func (c *cutting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	c.mu.Lock()
	n := len(c.bodies)
	c.bodies = append(c.bodies, string(data))
	c.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(data))
	c.h.ServeHTTP(&cutWriter{ResponseWriter: w, left: c.cut(n)}, r)
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if w.left < 0 {
		return w.ResponseWriter.Write(p)
	}
	n := min(len(p), w.left)
	_, _ = w.ResponseWriter.Write(p[:n]) // it breaks anyway
	if w.left -= n; w.left == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// httpServer serves any handler at a socket.
func httpServer(t *testing.T, h http.Handler) (path string) {
	t.Helper()
	path = socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return path
}

// together gets all keys by one request.
func together(t *testing.T, client *Client, s store.Store, keys []string) {
	t.Helper()
	b := &client.batches
	one := &batch{live: len(keys)}
	for _, key := range keys {
		one.waiters = append(one.waiters, &waiter{key: key, result: make(chan result, 1), batch: one})
	}
	b.mu.Lock()
	b.running, b.away = 1, len(keys)
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	one.cancel = cancel
	b.run(ctx, one)
	for _, w := range one.waiters {
		res := <-w.result
		there, err := s.Get(t.Context(), w.key, store.Read{})
		if err = errors.Join(err, res.err); err != nil || !bytes.Equal(res.object.Data, there.Data) {
			t.Errorf("%s: %v", w.key, err)
		}
	}
	if b.running != 0 || b.away != 0 {
		t.Errorf("afterwards %d requests with %d chunks are under way", b.running, b.away)
	}
}

// TestBrokenReply breaks replies off after every so many bytes: only what has not come is asked for again.
func TestBrokenReply(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	memory := storetest.Memory()
	keys := putChunks(t, memory, 40, 1000)
	for at := 0; at < 42_000; at += 1_111 {
		far := &storetest.Faulty{Store: memory}
		c := &cutting{h: &Handler{Store: far, Rules: everything}, cut: func(n int) int {
			if n < 3 {
				return at
			}
			return -1
		}}
		client := open(t, httpServer(t, c))
		together(t, client, memory, keys)
		// A frame has some 1,130 bytes.
		whole := at / 1300
		for n, body := range c.bodies {
			if asks, most := strings.Count(body, "\n"), max(len(keys)-n*whole, 1); asks > most {
				t.Errorf("after %d bytes request %d asks for %d chunks, want at most %d", at, n, asks, most)
			}
		}
		if len(c.bodies) < 2 {
			t.Errorf("after %d bytes there was no other request", at)
		}
	}
	// The other requests are sent again as well.
	key, stored := aChunk("content", 1)
	client := open(t, httpServer(t, &cutting{h: &Handler{Store: memory, Rules: everything}, cut: func(n int) int {
		if n%2 == 0 {
			return 0
		}
		return -1
	}}))
	x := anIndex(t, 1, "content")
	mustPut(t, memory, "index/a", x)
	if o, err := client.Get(t.Context(), "index/a", store.Read{}); err != nil || !bytes.Equal(o.Data, x) {
		t.Errorf("Get: %v", err)
	}
	var names []string
	err := client.List(t.Context(), "index/", func(i store.Info) error { names = append(names, i.Key); return nil })
	if err != nil || !slices.Equal(names, []string{"index/a"}) {
		t.Errorf("List yields %q, %v", names, err)
	}
	if _, err := client.Put(t.Context(), key, stored, store.Condition{}); err != nil {
		t.Errorf("Put: %v", err)
	}
}

// TestListGoesOn breaks a listing off in the middle: every name is yielded once.
func TestListGoesOn(t *testing.T) {
	memory := storetest.Memory()
	x := anIndex(t, 1, "content")
	for i := range 200 {
		mustPut(t, memory, fmt.Sprintf("index/%03d", i), x)
	}
	c := &cutting{h: &Handler{Store: memory, Rules: everything}, cut: func(n int) int {
		if n < 3 {
			return 5000 * (n + 1)
		}
		return -1
	}}
	client := open(t, httpServer(t, c))
	var names []string
	err := client.List(t.Context(), "index/", func(i store.Info) error { names = append(names, i.Key); return nil })
	if err != nil || len(names) != 200 || !slices.IsSorted(names) || len(slices.Compact(names)) != 200 {
		t.Errorf("List yields %d names, %v", len(names), err)
	}
	if len(c.bodies) != 4 {
		t.Errorf("there were %d requests", len(c.bodies))
	}
}

// TestStrangeDaemons lets something else answer. The client says so soon, whatever it is told to expect.
func TestStrangeDaemons(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	key, _ := aChunk("content", 1)
	for name, reply := range map[string]string{
		"nothing":             "",
		"a frame too few":     `{"end":true}` + "\n",
		"another chunk":       `{"n":1,"bytes":1,"version":"x"}` + "\nx",
		"a negative one":      `{"n":-1,"bytes":1,"version":"x"}` + "\nx",
		"a negative length":   `{"n":0,"bytes":-1,"version":"x"}` + "\nx",
		"a huge length":       `{"n":0,"bytes":1099511627776,"version":"x"}` + "\nx",
		"more than was asked": `{"n":0,"bytes":101,"version":"x"}` + "\n" + strings.Repeat("x", 101),
		"no version":          `{"n":0,"bytes":1}` + "\nx",
		"no JSON":             "x\n",
		"an endless line":     strings.Repeat("x", 1<<20),
	} {
		for _, version := range []string{"", protocolVersion, "2"} {
			path := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if version != "" {
					w.Header().Set(versionHeader, version)
				}
				_, _ = io.WriteString(w, reply) // the client may leave
			}))
			client := open(t, path)
			client.Patience, client.FirstPatience = 50*time.Millisecond, 50*time.Millisecond
			for what, call := range map[string]func() error{
				"Get":  func() error { _, err := client.Get(t.Context(), key, store.Read{Max: 100}); return err },
				"one":  func() error { _, err := client.Get(t.Context(), "index/a", store.Read{Max: 100}); return err },
				"Put":  func() error { _, err := client.Put(t.Context(), key, nil, store.Condition{}); return err },
				"List": func() error { return client.List(t.Context(), "index/", func(store.Info) error { return nil }) },
			} {
				if what == "List" && version == protocolVersion && reply == `{"end":true}`+"\n" {
					continue // a listing of nothing
				}
				if err := call(); !is(err, store.ErrUnavailable) || store.Hint(err) == "" {
					t.Errorf("%s, version %q: %s: %v", name, version, what, err)
				}
			}
		}
	}
}

// TestNoDaemon says soon that there is none, in each way in which there can be none.
func TestNoDaemon(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	key, stored := aChunk("content", 1)
	path := socketPath(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"no socket": path + "x", "nobody behind it": path} {
		client := open(t, path)
		client.FirstPatience = 100 * time.Millisecond
		if name == "no socket" {
			client.FirstPatience = time.Minute // there is nothing to wait for
		}
		for what, call := range map[string]func() error{
			"Get":  func() error { _, err := client.Get(t.Context(), key, store.Read{}); return err },
			"one":  func() error { _, err := client.Get(t.Context(), "index/a", store.Read{}); return err },
			"Put":  func() error { _, err := client.Put(t.Context(), key, stored, store.Condition{}); return err },
			"List": func() error { return client.List(t.Context(), "index/", func(store.Info) error { return nil }) },
		} {
			begun := time.Now()
			err := call()
			if !is(err, store.ErrUnavailable) || !strings.Contains(store.Hint(err), "extra-sandbox-paths") ||
				!strings.Contains(err.Error(), path) {
				t.Errorf("%s: %s: %v, hint %q", name, what, err, store.Hint(err))
			}
			if took := time.Since(begun); took > 30*time.Second {
				t.Errorf("%s: %s took %v", name, what, took)
			}
		}
	}
	if _, err := Open("relative"); err == nil {
		t.Error("a relative path is opened")
	}
	if _, err := Open("/" + strings.Repeat("x", 200)); err == nil {
		t.Error("a path that no socket can have is opened")
	}
}

// TestSilentDaemon lets a daemon hang: it accepts, and says nothing.
func TestSilentDaemon(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	release := make(chan struct{})
	var asked atomic.Int64 // for index/last: what was asked before may be seen late
	path := httpServer(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/index/last") {
			asked.Add(1)
		}
		<-release
	}))
	t.Cleanup(func() { close(release) }) // before the server ends
	client := open(t, path)
	client.IdleTimeout, client.FirstPatience = 100*time.Millisecond, 200*time.Millisecond
	key, stored := aChunk("content", 1)
	for what, call := range map[string]func() error{
		"Get": func() error { _, err := client.Get(t.Context(), key, store.Read{}); return err },
		"one": func() error { _, err := client.Get(t.Context(), "index/a", store.Read{}); return err },
		"Put": func() error { _, err := client.Put(t.Context(), key, stored, store.Condition{}); return err },
	} {
		if err := call(); !is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// One that has never answered is not asked again when it has been silent for longer than one waits for a daemon.
	client.FirstPatience = 50 * time.Millisecond
	if _, err := client.Get(t.Context(), "index/last", store.Read{}); !is(err, store.ErrUnavailable) {
		t.Error(err)
	}
	for begun := time.Now(); asked.Load() == 0 && time.Since(begun) < time.Minute; {
		time.Sleep(time.Millisecond)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

// TestClosed ends a client.
func TestClosed(t *testing.T) {
	client, err := Open(socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	key, _ := aChunk("content", 1)
	if _, err := client.Get(t.Context(), key, store.Read{}); !errors.Is(err, errClosed) {
		t.Errorf("Get after Close: %v", err)
	}
}
