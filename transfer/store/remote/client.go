package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"nbc/transfer/store"
)

const (
	// DefaultPatience is longer than a daemon takes to be restarted, its drain included.
	DefaultPatience = 40 * time.Second
	// DefaultFirstPatience is for a daemon that has never answered. Most often there is none, and a build should begin
	// cold soon.
	DefaultFirstPatience = 2 * time.Second
	// DefaultIdleTimeout is several times the beat at which a daemon shows that it is alive.
	DefaultIdleTimeout = 15 * time.Second
	// DefaultBusyPatience is as long as DefaultPatience, for the same reason: what keeps a daemon without room for anybody
	// is most often a far store that pauses, and the daemon itself bears with that for 30 to 45 seconds.
	DefaultBusyPatience = 40 * time.Second

	// connectTimeout is for a socket of this machine: only a full queue makes a connection wait.
	connectTimeout = 2 * time.Second

	// firstPause and maxPause bound the pause between attempts, which doubles.
	firstPause = 20 * time.Millisecond
	maxPause   = time.Second

	// connections is how many are kept for the next request; as many are in use at once, by 64 Puts.
	connections = 64
	// bufferSize lets most chunks come and go in one system call.
	bufferSize = 64 << 10
	// expectAbove is the size in bytes above which a Put waits for the daemon to say that it wants the bytes. A refusal
	// that comes while they are being written could be lost with the connection.
	expectAbove = 64 << 10
)

// Client is the store of a daemon, over its Unix socket. [Open] makes one; Close ends it. The fields may be set before
// the first call.
//
// A request whose connection breaks is sent again: each of them can be repeated. As with S3, a first attempt may reach
// the far store after a later one.
type Client struct {
	// Patience is how long a daemon that has answered before may be away, in the middle of a call; 0 means
	// DefaultPatience. FirstPatience is for one that has not; 0 means DefaultFirstPatience. Without a socket there is
	// nothing to wait for then.
	Patience, FirstPatience time.Duration
	// IdleTimeout ends an attempt in which no byte has moved for so long; 0 means DefaultIdleTimeout.
	IdleTimeout time.Duration
	// BusyPatience is how long a daemon may have no room for any request of this client; 0 means DefaultBusyPatience.
	// As long as others of its requests are answered, one that there was no room for is made again.
	BusyPatience time.Duration

	path      string
	transport *http.Transport
	batches   batches
	// reached says that the daemon has answered, and was not away for too long since.
	reached atomic.Bool
	// served is when the daemon last did what it was asked for, by the clock of start.
	served atomic.Int64
	start  time.Time
}

var (
	_ store.Store = (*Client)(nil)
	_ store.Asker = (*Client)(nil)
)

// Open returns the store behind the socket at path, which is absolute. It does not connect.
func Open(path string) (*Client, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket %q: the path is not absolute", path)
	}
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %q: the path has %d bytes, sockets have at most %d", path, len(path), maxSocketPath)
	}
	c := &Client{path: path, start: time.Now()}
	c.transport = &http.Transport{
		DialContext:            c.dial,
		MaxIdleConnsPerHost:    connections,
		IdleConnTimeout:        20 * time.Second, // well before the daemon closes them
		DisableCompression:     true,
		ExpectContinueTimeout:  time.Minute, // it says so by beats when it takes longer
		MaxResponseHeaderBytes: maxLine,
		ReadBufferSize:         bufferSize,
		WriteBufferSize:        bufferSize,
		Protocols:              new(http.Protocols),
	}
	c.transport.Protocols.SetHTTP1(true)
	c.batches.begin(c)
	return c, nil
}

// Path returns where the socket is.
func (c *Client) Path() string { return c.path }

// Close closes the connections. No call may be under way.
func (c *Client) Close() error {
	c.batches.end()
	c.transport.CloseIdleConnections()
	return nil
}

func (c *Client) idleTimeout() time.Duration {
	if c.IdleTimeout > 0 {
		return c.IdleTimeout
	}
	return DefaultIdleTimeout
}

func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: min(connectTimeout, c.idleTimeout())}
	conn, err := dialer.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, err
	}
	return &movingConn{Conn: conn, limit: c.idleTimeout()}, nil
}

// movingConn is a connection that breaks when no byte moves for too long while some are waited for.
type movingConn struct {
	net.Conn
	limit time.Duration
}

func (c *movingConn) Read(p []byte) (int, error) {
	// An error would be one of the read, too.
	_ = c.SetReadDeadline(time.Now().Add(c.limit))
	return c.Conn.Read(p)
}

// Write gives a read that waits for the reply more time as well, since the daemon reads before it replies.
func (c *movingConn) Write(p []byte) (written int, err error) {
	const piece = 64 << 10
	for {
		_ = c.SetDeadline(time.Now().Add(c.limit))
		n, err := c.Conn.Write(p[written:min(len(p), written+piece)])
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// failure is why a call has failed for good.
type failure struct {
	kind  error
	text  string
	hint  string
	cause error
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Hint() string    { return f.hint }
func (f *failure) Unwrap() []error { return []error{f.kind, f.cause} }

// brokenError says that the daemon was not reached, or that its reply broke off: another attempt may go better.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// try calls once until it succeeds, fails for good, or the daemon was away, or without room, for too long. Moved tells
// whether there was any progress since the last failure, which begins the wait anew.
func (c *Client) try(ctx context.Context, what string, once func(ctx context.Context) (moved bool, err error)) error {
	began := time.Now()
	var since time.Time // when it was away at first
	pause := firstPause
	for {
		moved, err := once(ctx)
		var broken *brokenError
		if moved {
			since, pause = time.Time{}, firstPause
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case isBusy(err) && time.Since(c.lastServed(began)) < c.busyPatience():
			// It is up, and has no room: that is for the others to give back.
			since, pause = time.Time{}, maxPause // what it asks for, by chance a little less
		case !errors.As(err, &broken):
			return fmt.Errorf("%s: nbc daemon: %w", what, err)
		default:
			if since.IsZero() {
				since = time.Now()
				if stall := net.Error(nil); errors.As(err, &stall) && stall.Timeout() {
					since = since.Add(-c.idleTimeout()) // it has been away since then
				}
			}
			if final := c.givesUp(what, broken.err, time.Since(since)); final != nil {
				return final
			}
		}
		// Half of it by chance, so that builds that wait for one daemon do not come back all at once.
		wait := pause/2 + rand.N(pause/2) // #nosec G404 -- nobody gains by guessing it
		pause = min(2*pause, maxPause)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
	}
}

func (c *Client) busyPatience() time.Duration {
	if c.BusyPatience > 0 {
		return c.BusyPatience
	}
	return DefaultBusyPatience
}

// serves notes that the daemon has done something for this client.
func (c *Client) serves() { c.served.Store(int64(time.Since(c.start))) }

// lastServed returns when it last did, or began if that is later.
func (c *Client) lastServed(began time.Time) time.Time {
	if last := c.start.Add(time.Duration(c.served.Load())); last.After(began) {
		return last
	}
	return began
}

// givesUp returns the error of a call whose attempts have failed for so long, or nil if another one is to follow.
func (c *Client) givesUp(what string, err error, so time.Duration) error {
	patience, reached := c.Patience, c.reached.Load()
	if patience <= 0 {
		patience = DefaultPatience
	}
	if !reached {
		if patience = c.FirstPatience; patience <= 0 {
			patience = DefaultFirstPatience
		}
	}
	f := &failure{
		kind: store.ErrUnavailable, cause: plainer(err),
		hint: "is nbc daemon running? Inside a Nix sandbox its folder must be shown: extra-sandbox-paths = " +
			filepath.Dir(c.path) + "?",
	}
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		f.kind = store.ErrRefused
		f.hint = "who may connect is up to the permissions and the group of the socket: see --socket-mode and " +
			"--socket-group of nbc daemon"
	case errors.Is(err, errProtocol):
		f.hint = hintVersion
	case !reached && errors.Is(err, fs.ErrNotExist):
	case so < patience:
		return nil
	}
	c.reached.Store(false) // others need not wait for as long
	f.text = fmt.Sprintf("%s: nbc daemon at %s: %v", what, c.path, f.cause)
	return f
}

// plainer removes from a connection's error what the caller says better, and what would make it an error of another
// kind: that there is no socket does not mean that there is no object.
func plainer(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return errors.New(err.Error())
}

// errProtocol says that what answers is no daemon of this protocol.
var errProtocol = errors.New("what answers speaks another protocol")

// request sends one request and returns the reply, whose body the caller closes. Its errors are broken ones, or what
// the daemon says.
func (c *Client) request(
	ctx context.Context, method, target string, header http.Header, body []byte,
) (*http.Response, error) {
	// Every 102 shows that the daemon is alive, and there may be any number of them.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return nil },
	})
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://nbc"+target, reader)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, &brokenError{err}
	}
	if v := resp.Header.Get(versionHeader); v != protocolVersion {
		_ = resp.Body.Close() // nothing of it is wanted
		return nil, &brokenError{fmt.Errorf("%w: status %d, %s %.20q", errProtocol, resp.StatusCode, versionHeader, v)}
	}
	c.reached.Store(true)
	if resp.StatusCode < 300 {
		if target != chunksPath { // of which each chunk is one
			c.serves()
		}
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // it is read to its end below
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxLine+1))
	if err != nil {
		return nil, &brokenError{err}
	}
	p := new(problem)
	if len(data) > maxLine || json.Unmarshal(data, p) != nil {
		return nil, &brokenError{fmt.Errorf("%w: status %d without a reason", errProtocol, resp.StatusCode)}
	}
	return nil, p
}

// Get implements [store.Store]. Whole chunks that are asked for at the same time come by the same request.
func (c *Client) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	if err := check(ctx, store.CheckKey(key), r.Check()); err != nil {
		return store.Object{}, err
	}
	if isChunk(key) && r.Offset == 0 && r.Length == 0 {
		return c.batches.get(ctx, key, r)
	}
	var o store.Object
	err := c.try(ctx, "getting "+key, func(ctx context.Context) (_ bool, err error) {
		o, err = c.get(ctx, key, r)
		return false, err
	})
	if err != nil {
		return store.Object{}, err
	}
	return o, nil
}

func (c *Client) get(ctx context.Context, key string, r store.Read) (o store.Object, err error) {
	query := url.Values{}
	for name, n := range map[string]int64{"offset": r.Offset, "length": r.Length, "max": r.Max} {
		if n > 0 {
			query.Set(name, strconv.FormatInt(n, 10))
		}
	}
	if r.Fresh {
		query.Set("fresh", "true")
	}
	target := objectPath + key
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	resp, err := c.request(ctx, http.MethodGet, target, nil, nil)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, broken(resp.Body.Close())) }()
	version, ok := unquote(resp.Header.Get("ETag"))
	size, err := strconv.ParseInt(resp.Header.Get(sizeHeader), 10, 64)
	n := resp.ContentLength
	if err != nil || !ok || n < 0 || n > size {
		return o, &brokenError{fmt.Errorf("%w: %d of %q bytes, version %q", errProtocol, n, resp.Header.Get(sizeHeader),
			resp.Header.Get("ETag"))}
	}
	o = store.Object{Version: version, Size: size, Near: resp.Header.Get(nearHeader) != ""}
	// Only what was asked for is taken, and made room for.
	if _, want, err := r.Span(size); err != nil {
		return o, err
	} else if want != n {
		return o, &brokenError{fmt.Errorf("%w: %d bytes instead of %d", errProtocol, n, want)}
	}
	o.Data = make([]byte, n)
	_, err = io.ReadFull(resp.Body, o.Data)
	return o, broken(err)
}

// broken marks an error of the connection.
func broken(err error) error {
	if err == nil {
		return nil
	}
	return &brokenError{err}
}

// check refuses what no request should be made of.
func check(ctx context.Context, errs ...error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

// Put implements [store.Store].
func (c *Client) Put(ctx context.Context, key string, data []byte, cond store.Condition) (version string, err error) {
	if err := check(ctx, store.CheckKey(key), cond.Check()); err != nil {
		return "", err
	}
	header := http.Header{}
	if cond.IfAbsent {
		header.Set("If-None-Match", "*")
	}
	if cond.IfVersion != "" {
		if !quotable(cond.IfVersion) {
			return "", fmt.Errorf("putting %s: no object has version %q: %w", key, cond.IfVersion, store.ErrConflict)
		}
		header.Set("If-Match", `"`+cond.IfVersion+`"`)
	}
	if len(data) > expectAbove {
		header.Set("Expect", "100-continue")
	}
	if data == nil {
		data = []byte{}
	}
	err = c.try(ctx, "putting "+key, func(ctx context.Context) (bool, error) {
		resp, err := c.request(ctx, http.MethodPut, objectPath+key, header, data)
		if err != nil {
			return false, err
		}
		defer func() { _ = resp.Body.Close() }() // it has none
		var ok bool
		if version, ok = unquote(resp.Header.Get("ETag")); !ok {
			return false, &brokenError{fmt.Errorf("%w: version %q", errProtocol, resp.Header.Get("ETag"))}
		}
		return false, nil
	})
	if err != nil {
		return "", err
	}
	return version, nil
}

// MayPut implements [store.Asker]. A daemon that does not know the question leaves it open.
func (c *Client) MayPut(ctx context.Context, key string) error {
	if err := check(ctx, store.CheckKey(key)); err != nil {
		return err
	}
	err := c.try(ctx, "asking for the right to put "+key, func(ctx context.Context) (bool, error) {
		resp, err := c.request(ctx, http.MethodGet, mayPutPath+key, nil, nil)
		if err != nil {
			return false, err
		}
		_ = resp.Body.Close() // it has none
		return false, nil
	})
	if errors.Is(err, fs.ErrInvalid) {
		return nil
	}
	return err
}

// List implements [store.Store].
func (c *Client) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(prefix) > store.MaxKey {
		return nil
	}
	last := ""
	var stop error
	err := c.try(ctx, "listing "+prefix, func(ctx context.Context) (moved bool, err error) {
		before := last
		err = c.list(ctx, prefix, func(i store.Info) error {
			if i.Key <= last {
				return nil // an attempt that broke off has yielded it
			}
			last = i.Key
			stop = yield(i)
			return stop
		})
		return last > before, err
	})
	if stop != nil {
		return stop
	}
	return err
}

// list yields what one reply has.
func (c *Client) list(ctx context.Context, prefix string, yield func(store.Info) error) (err error) {
	resp, err := c.request(ctx, http.MethodGet, listPath+"?prefix="+url.QueryEscape(prefix), nil, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // an end of it that was not read is not wanted
	lines := bufio.NewReaderSize(resp.Body, maxLine)
	for {
		var e entry
		if err := readLine(lines, &e); err != nil {
			return err
		}
		switch {
		case e.End:
			return nil
		case e.Beat:
			continue
		case e.Error != nil:
			return e.Error
		}
		if err := store.CheckKey(e.Key); err != nil || !strings.HasPrefix(e.Key, prefix) {
			return &brokenError{fmt.Errorf("%w: %q in the list of %q", errProtocol, e.Key, prefix)}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := yield(store.Info{Key: e.Key, Size: e.Size, Version: e.Version, Modified: e.Modified}); err != nil {
			return err
		}
	}
}

// readLine reads a line of JSON.
func readLine(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF):
		return &brokenError{io.ErrUnexpectedEOF}
	case errors.Is(err, bufio.ErrBufferFull):
		return &brokenError{fmt.Errorf("%w: a line of more than %d bytes", errProtocol, r.Size())}
	case err != nil:
		return &brokenError{err}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return &brokenError{fmt.Errorf("%w: %w", errProtocol, err)}
	}
	return nil
}

// Delete implements [store.Store]. It always refuses: the protocol has no such request.
func (c *Client) Delete(ctx context.Context, keys ...string) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, store.CheckKey(key))
	}
	if err := check(ctx, errs...); err != nil || len(keys) == 0 {
		return err
	}
	return errNoDelete
}
