package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nbc/transfer/store"
)

// Handler is the daemon's side of the socket. Store and Rules are to be set; the zero values of the others are useful.
// No field may be changed after the first call.
type Handler struct {
	// Store is what is served: the far store, or package cached's before it.
	Store store.Store
	// Rules say who may do what; without any, nobody may do anything.
	Rules Rules
	// Limits bound what clients can make it do.
	Limits Limits
	// Log gets what was saved, refused and failed; nil discards it.
	Log *slog.Logger
	// Metrics, of this Handler alone, are added to; nil if nobody wants them.
	Metrics *Metrics

	once     sync.Once
	limits   Limits
	metrics  *Metrics
	shared   *shared
	clients  *clients
	checks   *checks
	requests sync.WaitGroup
	ledger   *ledger
	draining atomic.Bool
	health   health
	// view returns what a peer sees of the store; tests look at the protocol without rules.
	view func(Peer) store.Store
	// beat is defaultBeat, unless a test has no time.
	beat time.Duration
	// peerOf is peerOfConn, unless a test has no other users.
	peerOf func(net.Conn) Peer
}

func (h *Handler) start() {
	h.once.Do(func() {
		h.limits = h.Limits.withDefaults()
		h.metrics = h.Metrics
		if h.metrics == nil {
			h.metrics, _ = NewMetrics(prometheus.NewRegistry()) // a registry of its own refuses nothing
		}
		h.shared = newShared(h.Store, h.limits, h.metrics)
		h.clients = newClients(h.limits, h.metrics)
		h.checks = newChecks(h.limits, h.metrics)
		h.ledger = newLedger(h.log())
		h.health.turn = make(chan struct{}, 1)
		if h.peerOf == nil {
			h.peerOf = peerOfConn
		}
		if h.beat == 0 {
			h.beat = defaultBeat
		}
		if h.view == nil {
			h.view = func(p Peer) store.Store { return guard{store: h.shared, rules: h.Rules, peer: p, checks: h.checks} }
		}
	})
}

func (h *Handler) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

// ServeHTTP implements [http.Handler]. Requests that do not come by way of Serve have no known peer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.start()
	h.requests.Add(1)
	defer h.requests.Done()
	x := &exchange{
		h: h, w: w, r: r, control: http.NewResponseController(w), client: h.clients.anyone, begun: time.Now(),
	}
	x.conn, _ = r.Context().Value(peerKey{}).(*conn)
	if x.conn != nil {
		x.peer, x.client = x.conn.peer, x.conn.client
	}
	x.r = r.WithContext(context.WithValue(r.Context(), turnKey{}, &turn{client: x.client}))
	w.Header().Set(versionHeader, protocolVersion)
	err := x.serve()
	if err != nil && !x.replied {
		x.fail(err)
	}
	if err == nil {
		x.tell(x.told)
	} else {
		x.tell(err)
	}
	if err != nil && x.replied {
		panic(http.ErrAbortHandler) // the peer must not take what it has for all of it
	}
}

// exchange is one request and its reply.
type exchange struct {
	h       *Handler
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	conn    *conn // nil if it did not come by way of Serve
	peer    Peer
	client  *client
	begun   time.Time

	kind    string // for the metrics: chunks, get, put, list, other
	key     string // or a prefix
	in, out int64  // bytes of objects
	objects int    // of a request for chunks
	replied bool   // the reply has begun
	told    error  // what a reply that is whole says

	// held is how many chunks of this request have room.
	held atomic.Int64
	// allowed is how long the bytes of the reply may have taken the peer so far, and spent how long they have.
	allowed, spent time.Duration
}

// view returns what the peer sees of the store.
func (x *exchange) view() store.Store {
	v := x.h.view(x.peer)
	if g, ok := v.(guard); ok {
		g.indexes = x.client.indexes
		return g
	}
	return v
}

// serve does what is asked for. If it returns an error, the reply may not have begun.
func (x *exchange) serve() error {
	x.kind = "other"
	// No key needs an escape, so that a path has one spelling.
	path, query, _ := strings.Cut(x.r.RequestURI, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return invalid("query %.100q", query)
	}
	if key, ok := strings.CutPrefix(path, objectPath); ok {
		x.key = key
		if err := store.CheckKey(key); err != nil {
			return invalid("%v", err)
		}
		switch x.r.Method {
		case http.MethodGet:
			x.kind = "get"
			if err := x.noBody(); err != nil {
				return err
			}
			return x.admitted(func() error { return x.get(values) })
		case http.MethodPut:
			x.kind = "put"
			return x.admitted(func() error { return x.put(values) })
		}
		return x.noMethod("GET, PUT")
	}
	if key, ok := strings.CutPrefix(path, mayPutPath); ok {
		x.key = key
		if x.r.Method != http.MethodGet {
			return x.noMethod("GET")
		}
		x.kind = "may-put"
		return x.mayPut(values)
	}
	switch path {
	case chunksPath:
		if x.r.Method != http.MethodPost {
			return x.noMethod("POST")
		}
		x.kind = "chunks"
		return x.admitted(func() error { return x.chunks(values) })
	case listPath:
		if x.r.Method != http.MethodGet {
			return x.noMethod("GET")
		}
		x.kind = "list"
		if err := x.noBody(); err != nil {
			return err
		}
		return x.admitted(func() error { return x.list(values) })
	}
	return &problem{Kind: "invalid", Text: fmt.Sprintf("nothing is at %.100q", path), Advice: hintVersion}
}

const hintVersion = "use the same version of nbc for the daemon and the builds"

func (x *exchange) noMethod(allowed string) error {
	x.w.Header().Set("Allow", allowed)
	if x.r.Method == http.MethodDelete {
		p := *newProblem(errNoDelete)
		p.Kind = methodKind
		return &p
	}
	return &problem{Kind: methodKind, Text: fmt.Sprintf("method %.20q is not for this", x.r.Method)}
}

// admitted serves when the limits on requests allow it.
func (x *exchange) admitted(serve func() error) error {
	var end func()
	err := x.during(func(ctx context.Context) (err error) {
		end, err = x.h.clients.begin(ctx, x.client)
		return err
	})
	if err != nil {
		return err
	}
	defer end()
	return serve()
}

// during does some work, and tells the peer meanwhile, by replies of status 102, that it is not forgotten. It returns
// when the work has ended. The request's body must not be read meanwhile, and the reply not have begun.
func (x *exchange) during(work func(context.Context) error) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				x.h.log().Error("panic", "error", p, "stack", string(debug.Stack()))
				done <- fmt.Errorf("the nbc daemon failed: %v", p)
			}
		}()
		done <- work(x.r.Context())
	}()
	beats := time.NewTicker(x.h.beat)
	defer beats.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-beats.C:
			_ = x.paced(0, func() error { x.w.WriteHeader(http.StatusProcessing); return nil }) // it shows later
		}
	}
}

// paced writes something of the reply, n bytes of objects. All writes of one reply together may keep the daemon waiting
// for Limits.Idle, and for what their bytes take at Limits.SlowRate, and none of them longer than if it were alone: so a
// peer that reads slowly is cut off, however often it moves, and one that was fast has no long pause left.
func (x *exchange) paced(n int64, write func() error) error {
	x.allowed += x.h.limits.sending(n)
	begun := time.Now()
	x.mayWrite(begun, n)
	err := write()
	x.spent += time.Since(begun)
	return err
}

// mayWrite sets until when n bytes are to be written. That it cannot be limited is the case in tests only.
func (x *exchange) mayWrite(begun time.Time, n int64) {
	most := x.h.limits.Idle + min(x.h.limits.sending(n), x.allowed-x.spent)
	_ = x.control.SetWriteDeadline(begun.Add(most))
}

func (x *exchange) mayRead(until time.Time) { _ = x.control.SetReadDeadline(until) }

// read reads the body of the request, n bytes. Memory is made as they come, and all of them have to come in their time, as
// has each piece: what was set aside for a body that never comes is soon given back.
func (x *exchange) read(n int64) ([]byte, error) {
	x.mayWrite(time.Now(), 0) // the peer may have to be told to go on
	end := time.Now().Add(x.h.limits.Idle + x.h.limits.sending(n))
	var data []byte
	for int64(len(data)) < n {
		piece := min(n-int64(len(data)), firstPiece)
		until := time.Now().Add(x.h.limits.Idle + x.h.limits.sending(piece))
		if until.After(end) {
			until = end
		}
		x.mayRead(until)
		begin := len(data)
		if int64(cap(data)-begin) < piece { // twice as much as there is, and what is still to come at most
			data = slices.Grow(data, int(min(max(int64(begin), piece), n-int64(begin))))
		}
		data = data[:begin+int(piece)]
		if _, err := io.ReadFull(x.r.Body, data[begin:]); err != nil {
			// The peer has left, or was held up: it may come again with the same.
			return nil, &problem{Kind: "unavailable", Text: "the bytes of the request did not come in time", Retry: 1}
		}
	}
	// While the reply is made nothing is to be read, except that the peer may leave.
	x.mayRead(time.Time{})
	return data, nil
}

// firstPiece is as much as most chunks have.
const firstPiece = 256 << 10

// length returns the length of the request's body, which must be known and at most limit.
func (x *exchange) length(limit int64) (int64, error) {
	switch n := x.r.ContentLength; {
	case n < 0:
		return 0, invalid("a request without the length of its body")
	case n > limit:
		return 0, &problem{Kind: "too-large", Text: fmt.Sprintf("%s: %v: %d bytes, the nbc daemon takes %d", x.r.RequestURI,
			store.ErrTooLarge, n, limit)}
	default:
		return n, nil
	}
}

// noBody refuses a body where there is nothing to be said: nobody reads it, and it would be waited for at the end.
func (x *exchange) noBody() error {
	if x.r.ContentLength != 0 {
		return invalid("a %s with a body", x.r.Method)
	}
	return nil
}

// restPatience is how long a peer whose request is not answered well may take to send what it has announced. For package
// http reads of the rest of a body before it replies, so that a client that only writes comes to read.
const restPatience = 2 * time.Second

// fail replies with an error.
func (x *exchange) fail(err error) {
	begun := time.Now()
	if x.r.ContentLength != 0 {
		begun = begun.Add(restPatience) // the reply goes out after the rest has come, or has not
		x.mayRead(begun)
	}
	p := newProblem(err)
	data, err := json.Marshal(p)
	if err != nil {
		data = []byte("{}")
	}
	x.mayWrite(begun, int64(len(data)))
	header := x.w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(data)))
	if p.Retry > 0 {
		header.Set("Retry-After", strconv.Itoa(p.Retry))
	}
	x.w.WriteHeader(p.status())
	_, _ = x.w.Write(data) // the peer may have left
}

// tell counts and logs what became of the request.
func (x *exchange) tell(err error) {
	m := x.h.metrics
	result := "ok"
	level := slog.LevelDebug
	if err != nil {
		result = newProblem(err).Kind
		level = slog.LevelWarn
		switch {
		case x.r.Context().Err() != nil:
			result, level = "left", slog.LevelDebug // who left needs no answer
		case result == "absent":
			level = slog.LevelDebug
		case result == "refused", result == "invalid", result == methodKind:
			if x.kind != "chunks" || !x.replied { // of which each was counted
				m.refused.WithLabelValues(x.kind).Inc()
			}
			if x.kind == "list" {
				level = slog.LevelInfo // a save that has nothing to begin with tries it
			}
		}
	} else if isIndex(x.key) {
		level = slog.LevelInfo
	}
	m.requests.WithLabelValues(x.kind, result).Inc()
	m.bytes.WithLabelValues("in").Add(float64(x.in))
	m.bytes.WithLabelValues("out").Add(float64(x.out))
	x.h.ledger.write(x.r.Context(), level, pageKey{x.peer, x.kind, result}, func() []any {
		attrs := []any{"result", result, "seconds", time.Since(x.begun).Seconds()}
		if x.key != "" {
			attrs = append(attrs, "key", x.key)
		}
		if x.objects > 0 {
			attrs = append(attrs, "chunks", x.objects)
		}
		if n := x.in + x.out; n > 0 {
			attrs = append(attrs, "bytes", n)
		}
		if x.conn != nil {
			attrs = append(attrs, x.conn.attrs()...)
		}
		if err != nil {
			attrs = append(attrs, "error", short(err.Error()))
		}
		return attrs
	})
}

// get replies with an object or a part of it.
func (x *exchange) get(values url.Values) error {
	r, err := parseRead(values)
	if err != nil {
		return err
	}
	r.Max = min(r.Limit(), x.h.limits.Object)
	// Nearly all objects are small; only for one that is not, room is taken for as much as it may have.
	o, room, err := x.getWithin(r, min(r.Max, smallObject))
	if errors.Is(err, store.ErrTooLarge) && r.Max > smallObject {
		o, room, err = x.getWithin(r, r.Max)
	}
	if err != nil {
		return err
	}
	defer room.free()
	room.shrink(int64(len(o.Data)))
	if !quotable(o.Version) {
		return fmt.Errorf("getting %s: its version %q is none that can be passed on", x.key, o.Version)
	}
	header := x.w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.Itoa(len(o.Data)))
	header.Set("ETag", `"`+o.Version+`"`)
	header.Set(sizeHeader, strconv.FormatInt(o.Size, 10))
	if o.Near {
		header.Set(nearHeader, "true")
	}
	x.replied = true
	x.w.WriteHeader(http.StatusOK)
	return x.write(o.Data)
}

// smallObject is more than the index of a tree of 12,600 files has, which is near 0.9 MB.
const smallObject = 2 << 20

// getWithin gets an object that has at most limit bytes, and takes room for it.
func (x *exchange) getWithin(r store.Read, limit int64) (o store.Object, space *room, err error) {
	r.Max = limit
	err = x.during(func(ctx context.Context) (err error) {
		if space, err = x.h.clients.take(ctx, x.client, limit); err != nil {
			return err
		}
		o, err = x.view().Get(ctx, x.key, r)
		return err
	})
	if err != nil && space != nil {
		space.free()
	}
	return o, space, err
}

// write writes a part of the reply, so that a peer that has stopped to read is found out soon.
func (x *exchange) write(data []byte) error {
	const piece = 1 << 20
	for len(data) > 0 {
		p := data[:min(piece, len(data))]
		err := x.paced(int64(len(p)), func() error {
			_, err := x.w.Write(p)
			return err
		})
		if err != nil {
			return fmt.Errorf("writing the reply: %w", err)
		}
		x.out += int64(len(p))
		data = data[len(p):]
	}
	return nil
}

// parseRead reads which part of an object is asked for. What it does not know is an error: left out, the reply could
// be taken for another one.
func parseRead(values url.Values) (store.Read, error) {
	var r store.Read
	for name, list := range values {
		if len(list) != 1 {
			return r, invalid("parameter %.20q is there %d times", name, len(list))
		}
		var err error
		switch text := list[0]; name {
		case "offset":
			r.Offset, err = parseNumber(text)
		case "length":
			r.Length, err = parseNumber(text)
		case "max":
			r.Max, err = parseNumber(text)
		case "fresh":
			r.Fresh, err = strconv.ParseBool(text)
		default:
			err = errors.New("is not known")
		}
		if err != nil {
			return r, invalid("parameter %.20q: %v", name, err)
		}
	}
	return r, nil
}

func parseNumber(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	return int64(n), err
}

// put keeps an object.
func (x *exchange) put(values url.Values) error {
	if len(values) > 0 {
		return invalid("a PUT has no parameters")
	}
	c, err := x.condition()
	if err != nil {
		return err
	}
	view := x.view()
	if g, ok := view.(guard); ok {
		// Before the body is read: a client that expects so does not send it.
		if err := g.mayPut(x.key); err != nil {
			return err
		}
	}
	limit := int64(maxSmall)
	switch {
	case isIndex(x.key):
		limit = x.h.limits.Object
	case isChunk(x.key):
		limit = maxChunk
	}
	n, err := x.length(limit)
	if err != nil {
		return err
	}
	var space *room
	if err := x.during(func(ctx context.Context) (err error) {
		space, err = x.h.clients.take(ctx, x.client, n)
		return err
	}); err != nil {
		return err
	}
	defer space.free()
	data, err := x.read(n)
	if err != nil {
		return err
	}
	x.in = n
	var version string
	if err := x.during(func(ctx context.Context) (err error) {
		version, err = view.Put(ctx, x.key, data, c)
		return err
	}); err != nil {
		return err
	}
	if !quotable(version) {
		return fmt.Errorf("putting %s: its version %q is none that can be passed on", x.key, version)
	}
	x.replied = true
	x.mayWrite(time.Now(), 0)
	x.w.Header().Set("ETag", `"`+version+`"`)
	x.w.WriteHeader(http.StatusNoContent)
	return nil
}

// condition reads the condition of a PUT.
func (x *exchange) condition() (store.Condition, error) {
	var c store.Condition
	for name, list := range x.r.Header {
		switch {
		case name != "If-Match" && name != "If-None-Match" && name != "If-Modified-Since" && name != "If-Unmodified-Since":
			continue
		case len(list) != 1:
			return c, invalid("header %s is there %d times", name, len(list))
		case name == "If-None-Match" && list[0] == "*":
			c.IfAbsent = true
			continue
		case name == "If-Match":
			v, ok := unquote(list[0])
			if ok {
				c.IfVersion = v
				continue
			}
		}
		return c, invalid("header %s: %.100q is not known", name, list[0])
	}
	if err := c.Check(); err != nil {
		return c, invalid("%v", err)
	}
	return c, nil
}

// mayPut says whether the peer may put an object, which costs neither room nor a question to the far store.
func (x *exchange) mayPut(values url.Values) error {
	if len(values) > 0 {
		return invalid("a question for a right has no parameters")
	}
	if err := x.noBody(); err != nil {
		return err
	}
	if err := store.CheckKey(x.key); err != nil {
		return invalid("%v", err)
	}
	if g, ok := x.view().(guard); ok {
		if err := g.mayPut(x.key); err != nil {
			return err
		}
	}
	x.replied = true
	x.mayWrite(time.Now(), 0)
	x.w.WriteHeader(http.StatusNoContent)
	return nil
}

// unquote returns the version in an ETag.
func unquote(tag string) (string, bool) {
	if len(tag) < 3 || tag[0] != '"' || tag[len(tag)-1] != '"' || !quotable(tag[1:len(tag)-1]) {
		return "", false
	}
	return tag[1 : len(tag)-1], true
}
