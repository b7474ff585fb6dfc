package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
)

const (
	// connections is how many are kept for the next request. As many are in use at once: at a round trip of 30 ms 2,234
	// objects took 18.5 s with 4 connections, 5.1 s with 16 and 1.6 s with 64. Go keeps 2 unless it is told.
	connections = 64
	// keepIdle is shorter than most servers and routers keep idle connections.
	keepIdle = 50 * time.Second
	// connectTimeout is for TCP and, again, for TLS. Three lost SYNs fit in.
	connectTimeout = 10 * time.Second
	// readBuffer takes in most chunks with their headers in one system call: with Go's 4 KB a GET of 30 KB cost 390 µs
	// of CPU, with this 325. All connections together have 4 MB of them.
	readBuffer = 64 << 10
	// maxReply bounds all replies but objects, in bytes; the longest are pages of 1,000 keys, 1.4 MB at most.
	maxReply = 4 << 20
)

// newTransport returns a transport like the one that the AWS settings ask for: with their CA bundle, if any.
func newTransport(client aws.HTTPClient) *http.Transport {
	buildable, ok := client.(*awshttp.BuildableClient)
	if !ok {
		buildable = awshttp.NewBuildableClient()
	}
	t := buildable.GetTransport()
	t.MaxIdleConns = 0
	t.MaxIdleConnsPerHost = connections
	t.MaxConnsPerHost = 0
	t.IdleConnTimeout = keepIdle
	t.TLSHandshakeTimeout = connectTimeout
	t.ResponseHeaderTimeout = 0
	t.ReadBufferSize = readBuffer
	t.DisableCompression = true // lengths must be those of the objects
	// In HTTP/2 requests would share a connection, and so its bytes. S3 itself does not speak it.
	t.ForceAttemptHTTP2 = false
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &watchedConn{Conn: c}, nil
	}
	return t
}

// clockStart makes times small numbers that do not jump.
var clockStart = time.Now()

func clock() int64 { return int64(time.Since(clockStart)) }

// watchedConn knows when a byte was last read or written.
type watchedConn struct {
	net.Conn
	moved atomic.Int64 // by clock
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.moved.Store(clock())
	}
	return n, err
}

// maxWrite is how many bytes are written before they are noted.
const maxWrite = 64 << 10

func (c *watchedConn) Write(p []byte) (written int, err error) {
	for {
		n, err := c.Conn.Write(p[written:min(len(p), written+maxWrite)])
		written += n
		if n > 0 {
			c.moved.Store(clock())
		}
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// copyBuffers are for ReadFrom, of maxWrite bytes each.
var copyBuffers = sync.Pool{New: func() any { return new([maxWrite]byte) }}

// ReadFrom writes all of r. The transport puts a request's body into the connection so, and would make a new buffer for
// each, which is half of what a PUT of 30 KB allocates.
func (c *watchedConn) ReadFrom(r io.Reader) (int64, error) {
	buffer := copyBuffers.Get().(*[maxWrite]byte)
	defer copyBuffers.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, buffer[:])
}

// watchedClient sends requests. It follows no redirect: a signature is for one host.
type watchedClient struct{ store *Store }

// Do implements [aws.HTTPClient].
func (c *watchedClient) Do(req *http.Request) (*http.Response, error) {
	w := &watch{limit: c.store.idleTimeout()}
	ctx, cancel := context.WithCancelCause(req.Context())
	w.cancel = cancel
	w.begin()
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		w.conn.Store(underlying(info.Conn))
	}}
	req = req.WithContext(httptrace.WithClientTrace(ctx, trace))
	if req.Body != nil {
		req.Body = plainBody{req.Body}
	}
	resp, err := c.store.transport.RoundTrip(req)
	if err != nil {
		w.end()
		return nil, w.explain(err)
	}
	c.store.replied()
	body := &watchedBody{ReadCloser: resp.Body, watch: w, left: -1}
	if resp.StatusCode >= 300 || awsmiddleware.GetOperationName(req.Context()) != "GetObject" {
		body.left = maxReply
	}
	resp.Body = body
	return resp, nil
}

// plainBody hides that the SDK's body of a request has a WriteTo. The SDK closes it when the reply is there, and after
// that WriteTo returns io.EOF as an error where Read just says that it is the end; the transport, which looks whether
// there is more after the last byte, then closes the connection, at times before the reply is read.
type plainBody struct{ io.ReadCloser }

// underlying returns the watchedConn below what may be a TLS connection, or one in another.
func underlying(c net.Conn) *watchedConn {
	for {
		switch inner := c.(type) {
		case *watchedConn:
			return inner
		case interface{ NetConn() net.Conn }:
			c = inner.NetConn()
		default:
			return nil
		}
	}
}

// watch ends an attempt in which no byte moves.
type watch struct {
	limit  time.Duration
	cancel context.CancelCauseFunc
	conn   atomic.Pointer[watchedConn] // nil until there is a connection
	timer  *time.Timer
	ended  atomic.Bool
	fired  atomic.Bool

	// Of the timer alone:
	moved  int64 // when a byte moved last, by clock
	unsent int   // how many bytes the kernel held back at the last look
}

// looks is how often in each limit the connection is looked at.
const looks = 4

func (w *watch) begin() {
	w.moved = clock()
	w.timer = time.AfterFunc(time.Hour, w.look) // look needs to know its timer
	w.timer.Reset(w.limit / looks)
}

func (w *watch) look() {
	if w.ended.Load() {
		return
	}
	if c := w.conn.Load(); c != nil {
		w.moved = max(w.moved, c.moved.Load())
		// The kernel takes a whole chunk at once, and with 64 of them on a slow line each needs a minute.
		if n := unsent(c.Conn); n != w.unsent {
			w.unsent, w.moved = n, clock()
		}
	}
	if clock()-w.moved >= int64(w.limit) {
		w.fired.Store(true)
		w.cancel(nil)
		return
	}
	w.timer.Reset(w.limit / looks)
}

// end stops the watch, and the request with it.
func (w *watch) end() {
	w.ended.Store(true)
	w.timer.Stop()
	w.cancel(nil)
}

// explain returns what err is really about.
func (w *watch) explain(err error) error {
	if w.fired.Load() {
		return &idleError{w.limit}
	}
	return err
}

// idleError says that an attempt stalled.
type idleError struct{ limit time.Duration }

func (e *idleError) Error() string { return fmt.Sprintf("no byte moved for %v", e.limit) }

// Timeout is what net.Error asks for.
func (e *idleError) Timeout() bool { return true }

// errLongReply says that something other than an object is longer than it can rightly be.
var errLongReply = errors.New("endless reply")

// watchedBody is the body of a reply. Its end is the end of the watch.
type watchedBody struct {
	io.ReadCloser
	watch *watch
	left  int64 // bytes that may still come; -1: no limit here
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errLongReply
	}
	if b.left > 0 {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.watch.explain(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close() // which may read on
	b.watch.end()
	if err != nil {
		err = b.watch.explain(err)
	}
	return err
}
