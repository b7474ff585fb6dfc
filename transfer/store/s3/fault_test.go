package s3_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nbc/transfer/store"
	"nbc/transfer/store/s3"
)

// awsSettings makes the credential chain find what the test says, and nothing of this machine.
func awsSettings(t testing.TB, id, secret string) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": "", "AWS_CA_BUNDLE": "",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "",
		"AWS_WEB_IDENTITY_TOKEN_FILE": "",
	} {
		t.Setenv(name, value)
	}
}

// server is an S3 server that behaves as the test says.
type server struct {
	*httptest.Server
	requests, connections atomic.Int64
}

// serve starts a server whose n-th request, counted from 0, is answered by reply, and opens the store in it. Afterwards
// no goroutine of the client may be left.
func serve(t testing.TB, reply func(n int, w http.ResponseWriter, r *http.Request)) (*s3.Store, *server) {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	awsSettings(t, "id", "secret")
	srv := &server{}
	srv.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reply(int(srv.requests.Add(1))-1, w, r)
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			srv.connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections() // some replies never end
		srv.Close()
	})
	s := open(t, "s3://bucket/pre/fix?path-style=true&endpoint="+url.QueryEscape(srv.URL))
	s.Attempts, s.MaxBackoff = 4, 5*time.Millisecond
	return s, srv
}

const content = "the content of the object"

// object answers a GET as S3 does.
func object(w http.ResponseWriter) {
	w.Header().Set("ETag", `"v1"`)
	_, _ = io.WriteString(w, content) // an error is the client's to notice
}

// refuse answers with an error as S3 does.
func refuse(status int, code string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>because %s</Message></Error>`, code, code)
	}
}

// page answers with text that no S3 server sends.
func page(status int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<html><body>we are sorry<p></body>")
	}
}

// raw writes bytes to the connection and resets it.
func raw(reply string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(c, reply)
		if reply == "" {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
}

// hang waits for the client to go, after part of a reply.
func hang(reply string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(c, reply)
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}
}

// unhurried calls try with a time in which a good server answers. On a busy machine that may be too short: only if four
// times and sixteen times as long are no better the errors are those of the test.
func unhurried(t *testing.T, try func(t testing.TB, idle time.Duration)) {
	t.Helper()
	for _, idle := range []time.Duration{200 * time.Millisecond, 800 * time.Millisecond} {
		p := &provisional{TB: t}
		if try(p, idle); len(p.errors) == 0 {
			return
		}
		t.Logf("with %v: %q", idle, p.errors)
	}
	try(t, 3200*time.Millisecond)
}

// provisional keeps the errors of a test.
type provisional struct {
	testing.TB
	errors []string
}

func (p *provisional) Error(a ...any) { p.errors = append(p.errors, fmt.Sprint(a...)) }

func (p *provisional) Errorf(format string, a ...any) {
	p.errors = append(p.errors, fmt.Sprintf(format, a...))
}

// received returns how many requests have come, and waits for as many as are wanted: a server on a busy machine may see
// one after the client has given it up.
func (s *server) received(want int64) int64 {
	for begun := time.Now(); s.requests.Load() < want && time.Since(begun) < time.Second; {
		time.Sleep(time.Millisecond)
	}
	return s.requests.Load()
}

// wantOnly checks that err is of one of a Store's kinds and of no other.
func wantOnly(t testing.TB, what string, err, kind error) {
	t.Helper()
	for _, k := range []error{
		store.ErrNotExist, store.ErrRefused, store.ErrUnavailable, store.ErrConflict, store.ErrTooLarge,
		context.Canceled, context.DeadlineExceeded, errors.ErrUnsupported,
	} {
		if errors.Is(err, k) != (k == kind) {
			t.Errorf("%s: %v; want only %q", what, err, kind)
		}
	}
}

// TestPassingFaults fails a request twice, in one way after another. The third attempt is answered. Of stalled attempts
// half as many are made as of others.
func TestPassingFaults(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: " + strconv.Itoa(len(content)) + "\r\n\r\n"
	for name, fault := range map[string]func(http.ResponseWriter){
		"reset":             raw(""),
		"closed":            raw("HTTP/1.1 200 OK\r\n"),
		"no HTTP":           raw("what do you want\r\n\r\n"),
		"no body":           raw(head),
		"half a body":       raw(head + content[:12]),
		"short chunks":      raw("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthe c\r\n"),
		"hang":              hang(""),
		"hang in the head":  hang("HTTP/1.1 200 OK\r\nETag: "),
		"hang in the body":  hang(head + content[:12]),
		"negative length":   raw("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: -5\r\n\r\nhello"),
		"no ETag":           raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
		"InternalError":     refuse(500, "InternalError"),
		"SlowDown":          refuse(503, "SlowDown"),
		"503 page":          page(503),
		"502 page":          page(502),
		"504 nothing":       func(w http.ResponseWriter) { w.WriteHeader(504) },
		"429":               refuse(429, "TooManyRequests"),
		"429 nothing":       func(w http.ResponseWriter) { w.WriteHeader(429) },
		"RequestTimeout":    refuse(400, "RequestTimeout"),
		"408":               page(408),
		"OperationAborted":  refuse(409, "OperationAborted"),
		"half an error":     raw("HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n<Error><Co"),
		"half a 5xx header": raw("HTTP/1.1 503 Slow"),
	} {
		hangs := strings.Contains(name, "hang")
		try := func(t testing.TB, idle time.Duration) {
			t.Helper()
			s, srv := serve(t, func(n int, w http.ResponseWriter, _ *http.Request) {
				if n < 2 {
					fault(w)
					return
				}
				object(w)
			})
			attempts := 4
			if hangs {
				s.IdleTimeout, s.Attempts, attempts = idle, 7, 3
			}
			o, err := s.Get(t.Context(), "index/a", store.Read{})
			if err != nil || string(o.Data) != content || o.Version != "v1" || o.Size != int64(len(content)) {
				t.Errorf("Get: %+v, %v", o, err)
			}
			if n := srv.received(3); n != 3 {
				t.Errorf("it took %d requests, want 3", n)
			}

			// The same fault for ever is an outage.
			s, srv = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // S3 answers a Put when it has everything
				fault(w)
			})
			if hangs {
				s.IdleTimeout, s.Attempts = idle, 6
			}
			called := false
			for _, call := range []func() error{
				func() error { _, err := s.Get(t.Context(), "index/a", store.Read{}); return err },
				func() error { _, err := s.Put(t.Context(), "index/a", []byte("x"), store.Condition{}); return err },
			} {
				srv.requests.Store(0)
				err := call()
				if strings.Contains(name, "no body") || strings.Contains(name, "half a body") ||
					strings.Contains(name, "in the body") || name == "short chunks" {
					if err == nil {
						continue // a Put needs no body
					}
				}
				wantOnly(t, "a call during an outage", err, store.ErrUnavailable)
				want := int64(attempts)
				if name == "hang" || name == "hang in the head" {
					// It has never answered, and the second call knows.
					want = 2
					if called {
						want = 1
					}
				}
				called = true
				if n := srv.received(want); n != want {
					t.Errorf("%d requests, want %d: %v", n, want, err)
				}
				if hangs && !strings.Contains(fmt.Sprint(err), fmt.Sprintf("no byte moved for %v", idle)) {
					t.Errorf("the error does not say that it stalled: %v", err)
				}
			}
		}
		t.Run(name, func(t *testing.T) {
			if hangs {
				unhurried(t, try)
			} else {
				try(t, 0)
			}
		})
	}
}

// TestLastingFaults gets replies that another attempt would not change.
func TestLastingFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		reply func(http.ResponseWriter)
		kind  error
		says  string // in the error
		hint  string
	}{
		{"NoSuchKey", refuse(404, "NoSuchKey"), store.ErrNotExist, "because NoSuchKey", ""},
		{"NoSuchBucket", refuse(404, "NoSuchBucket"), store.ErrRefused, "s3://bucket/pre/fix", `create the bucket "bucket"`},
		{"its place", refuse(404, "NoSuchBucket"), store.ErrRefused, "404 NoSuchBucket", "the endpoint http://127.0.0.1:"},
		{"InvalidBucketName", refuse(400, "InvalidBucketName"), store.ErrRefused, "400 Invalid", `named "bucket": check`},
		{"404 page", page(404), store.ErrUnavailable, "404", "is an S3 server"},
		{"404 nothing", func(w http.ResponseWriter) { w.WriteHeader(404) }, store.ErrUnavailable, "404", "is an S3 server"},
		{"AccessDenied", refuse(403, "AccessDenied"), store.ErrRefused, "403 AccessDenied", "s3:ListBucket"},
		{"InvalidAccessKeyId", refuse(403, "InvalidAccessKeyId"), store.ErrRefused, "InvalidAccessKeyId", "credentials"},
		{"SignatureDoesNotMatch", refuse(403, "SignatureDoesNotMatch"), store.ErrRefused, "Signature", "credentials"},
		{"ExpiredToken", refuse(400, "ExpiredToken"), store.ErrRefused, "ExpiredToken", "credentials"},
		{"401", page(401), store.ErrRefused, "401", "credentials"},
		{"403 page", page(403), store.ErrRefused, "403", "credentials"},
		{"InvalidArgument", refuse(400, "InvalidArgument"), nil, "400 InvalidArgument", ""},
		{"NotImplemented", refuse(501, "NotImplemented"), errors.ErrUnsupported, "501 NotImplemented", ""},
		{"other region", func(w http.ResponseWriter) {
			w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
			refuse(301, "PermanentRedirect")(w)
		}, nil, "301 PermanentRedirect", "add region=eu-north-1"},
		{"wrong region", refuse(400, "AuthorizationHeaderMalformed"), nil, "Malformed", "check the region"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, srv := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { c.reply(w) })
			_, err := s.Get(t.Context(), "index/a", store.Read{})
			wantOnly(t, "Get", err, c.kind)
			for _, want := range []string{c.says, "getting index/a from s3://bucket/pre/fix at " + srv.URL} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: does not say %q", err, want)
				}
			}
			if hint := store.Hint(err); !strings.Contains(hint, c.hint) || c.hint == "" && hint != "" {
				t.Errorf("hint %q, want %q", hint, c.hint)
			}
			if n := srv.requests.Load(); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
}

// TestRedirect does not follow: what is elsewhere is not the store.
func TestRedirect(t *testing.T) {
	var asked atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Store(true)
		object(w)
	}))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		s, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, status)
		})
		_, err := s.Get(t.Context(), "index/a", store.Read{})
		wantOnly(t, "Get", err, nil)
		if err == nil || !strings.Contains(store.Hint(err), elsewhere.URL) {
			t.Errorf("%d: %v, hint %q", status, err, store.Hint(err))
		}
		if _, err := s.Put(t.Context(), "index/a", nil, store.Condition{}); err == nil {
			t.Errorf("%d: Put succeeds", status)
		}
	}
	if asked.Load() {
		t.Error("a redirect was followed")
	}
}

func TestSlowDripIsNoStall(t *testing.T) {
	s, srv := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		for i := range content {
			time.Sleep(100 * time.Millisecond)
			_, _ = io.WriteString(w, content[i:i+1])
			w.(http.Flusher).Flush()
		}
	})
	s.IdleTimeout = 2 * time.Second // a busy machine pauses now and then; it takes 2.5
	o, err := s.Get(t.Context(), "index/a", store.Read{})
	if err != nil || string(o.Data) != content {
		t.Errorf("Get: %q, %v", o.Data, err)
	}
	if n := srv.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// TestSlowUploadIsNoStall puts an object that the kernel takes at once but the line needs long for.
func TestSlowUploadIsNoStall(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	awsSettings(t, "id", "secret")
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) // a small window
		})
	}}
	l, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int64
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			served.Go(func() {
				defer func() { _ = c.Close() }()
				buffer, left := make([]byte, 2048), 100_000
				for left > 0 {
					time.Sleep(50 * time.Millisecond)
					n, err := c.Read(buffer)
					if err != nil {
						return
					}
					left -= n
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	s := open(t, "s3://bucket?path-style=true&endpoint=http://"+l.Addr().String())
	s.IdleTimeout = 2 * time.Second // it takes 2.5, and more
	if _, err := s.Put(t.Context(), "index/a", make([]byte, 100_000), store.Condition{}); err != nil {
		t.Error(err)
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	served.Wait()
}

// TestEndless sends replies that never end. They must be given up, not stored.
func TestEndless(t *testing.T) {
	spaces := bytes.Repeat([]byte(" "), 64<<10)
	var sent atomic.Int64
	endless := func(head int, begin string) func(int, http.ResponseWriter, *http.Request) {
		return func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.WriteHeader(head)
			_, err := io.WriteString(w, begin)
			for err == nil {
				var n int
				n, err = w.Write(spaces)
				sent.Add(int64(n))
			}
		}
	}
	s, srv := serve(t, endless(200, ""))
	_, err := s.Get(t.Context(), "index/a", store.Read{Max: 1000})
	wantOnly(t, "Get of an endless object", err, store.ErrTooLarge)
	if n := srv.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}

	sent.Store(0)
	s, _ = serve(t, endless(403, "<Error>"))
	s.Attempts = 1
	_, err = s.Get(t.Context(), "index/a", store.Read{})
	wantOnly(t, "Get with an endless error", err, store.ErrRefused)

	s, _ = serve(t, endless(200, "<ListBucketResult>"))
	s.Attempts = 1
	err = s.List(t.Context(), "", func(store.Info) error { return nil })
	wantOnly(t, "an endless List", err, store.ErrUnavailable)
	if n := sent.Load(); n > 256<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

func TestTooLargeIsNotRead(t *testing.T) {
	var sent atomic.Int64
	s, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", strconv.Itoa(1<<40))
		for {
			n, err := w.Write(make([]byte, 64<<10))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	for _, r := range []store.Read{{}, {Max: 10}} {
		_, err := s.Get(t.Context(), "index/a", r)
		wantOnly(t, "Get", err, store.ErrTooLarge)
	}
	time.Sleep(50 * time.Millisecond)
	if n := sent.Load(); n > 64<<20 {
		t.Errorf("the server got rid of %d bytes", n)
	}
}

// TestRangeReplies answers a request for bytes 4 to 10 in right and wrong ways.
func TestRangeReplies(t *testing.T) {
	want := content[4:11]
	for _, c := range []struct {
		name         string
		status       int
		contentRange string
		body         string
		ok           bool
	}{
		{"the part", 206, "bytes 4-10/25", want, true},
		{"everything", 200, "", content, true},
		{"another part", 206, "bytes 5-11/25", content[5:12], false},
		{"more", 206, "bytes 4-11/25", content[4:12], false},
		{"less", 206, "bytes 4-9/25", content[4:10], false},
		{"wrong end", 206, "bytes 4-10/25", content[4:10], false},
		{"past the end", 206, "bytes 4-10/8", want, false},
		{"no size", 206, "bytes 4-10/*", want, false},
		{"nonsense", 206, "words 1 to 2", want, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, srv := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Range"); got != "bytes=4-10" {
					t.Errorf("Range %q", got)
				}
				if c.contentRange != "" {
					w.Header().Set("Content-Range", c.contentRange)
				}
				w.Header().Set("ETag", `"v1"`)
				w.Header().Set("Content-Length", strconv.Itoa(len(c.body)))
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			o, err := s.Get(t.Context(), "index/a", store.Read{Offset: 4, Length: 7, Max: 7})
			if c.ok {
				if err != nil || string(o.Data) != want || o.Size != int64(len(content)) {
					t.Errorf("Get: %q of %d bytes, %v", o.Data, o.Size, err)
				}
				return
			}
			if err == nil {
				t.Fatalf("Get returns %q", o.Data)
			}
			wantOnly(t, "Get", err, store.ErrUnavailable)
			if n := srv.requests.Load(); n != 4 {
				t.Errorf("%d requests, want 4", n)
			}
		})
	}
}

func TestConnectionRefused(t *testing.T) {
	s, srv := serve(t, nil)
	srv.Close()
	begun := time.Now()
	_, err := s.Get(t.Context(), "index/a", store.Read{})
	wantOnly(t, "Get", err, store.ErrUnavailable)
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "(attempt 4)") {
		t.Errorf("Get: %v", err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestTLS(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	var requests atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		if requests.Load() == 2 { // the idle timeout sees through TLS
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			for i := range content {
				time.Sleep(100 * time.Millisecond)
				_, _ = io.WriteString(w, content[i:i+1])
				w.(http.Flusher).Flush()
			}
			return
		}
		object(w)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail
	srv.StartTLS()
	t.Cleanup(srv.Close)
	awsSettings(t, "id", "secret")
	address := "s3://bucket?path-style=true&endpoint=" + url.QueryEscape(srv.URL)

	_, err := open(t, address).Get(t.Context(), "index/a", store.Read{})
	wantOnly(t, "Get from a server with an unknown certificate", err, store.ErrUnavailable)
	if hint := store.Hint(err); !strings.Contains(hint, "AWS_CA_BUNDLE") || strings.Contains(err.Error(), "attempt") {
		t.Errorf("%v, hint %q", err, hint)
	}

	bundle := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(bundle, block, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle)
	s := open(t, address)
	s.IdleTimeout = 2 * time.Second // the second takes 2.5
	for range 2 {
		if o, err := s.Get(t.Context(), "index/a", store.Read{}); err != nil || string(o.Data) != content {
			t.Errorf("Get with AWS_CA_BUNDLE: %q, %v", o.Data, err)
		}
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}

	plain := httptest.NewServer(nil)
	defer plain.Close()
	_, err = open(t, "s3://bucket?path-style=true&endpoint="+
		url.QueryEscape(strings.Replace(plain.URL, "http:", "https:", 1))).Get(t.Context(), "index/a", store.Read{})
	wantOnly(t, "Get by TLS from a server without", err, store.ErrUnavailable)
	if hint := store.Hint(err); !strings.Contains(hint, "http://") {
		t.Errorf("%v, hint %q", err, hint)
	}
}

func TestCancelledWhileItHangs(t *testing.T) {
	s, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { hang("")(w) })
	cause := errors.New("enough of it")
	for name, call := range map[string]func(context.Context) error{
		"Get":    func(ctx context.Context) error { _, err := s.Get(ctx, "a", store.Read{}); return err },
		"Put":    func(ctx context.Context) error { _, err := s.Put(ctx, "a", []byte("x"), store.Condition{}); return err },
		"List":   func(ctx context.Context) error { return s.List(ctx, "", func(store.Info) error { return nil }) },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, "a") },
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
		begun := time.Now()
		err := call(ctx)
		if !errors.Is(err, cause) {
			t.Errorf("%s: %v", name, err)
		}
		wantOnly(t, name, err, nil)
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// TestCancelledInAPause ends the context between two attempts; the error still says what was wrong.
func TestCancelledInAPause(t *testing.T) {
	unhurried(t, func(t testing.TB, idle time.Duration) {
		t.Helper()
		s, srv := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "60")
			refuse(503, "SlowDown")(w)
		})
		s.MaxBackoff = 0
		ctx, cancel := context.WithTimeout(t.Context(), idle)
		defer cancel()
		_, err := s.Get(ctx, "index/a", store.Read{})
		wantOnly(t, "Get", err, context.DeadlineExceeded)
		if err == nil || !strings.Contains(err.Error(), "SlowDown") {
			t.Errorf("the error does not say what went wrong before: %v", err)
		}
		if n := srv.requests.Load(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		after      string
		maxBackoff time.Duration
		from, to   time.Duration
	}{
		{"1", 2 * time.Second, time.Second, time.Minute},
		{"3000", 10 * time.Millisecond, 0, time.Minute},
		{"tomorrow", 10 * time.Millisecond, 0, time.Minute},
	} {
		s, _ := serve(t, func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 0 {
				w.Header().Set("Retry-After", c.after)
				refuse(503, "SlowDown")(w)
				return
			}
			object(w)
		})
		s.MaxBackoff = c.maxBackoff
		ctx, cancel := context.WithTimeout(t.Context(), c.to)
		begun := time.Now()
		if _, err := s.Get(ctx, "index/a", store.Read{}); err != nil {
			t.Error(err)
		}
		cancel()
		if took := time.Since(begun); took < c.from {
			t.Errorf("told to wait %s, at most %v: it waited %v", c.after, c.maxBackoff, took)
		}
	}
}

func TestNoCredentials(t *testing.T) {
	s, srv := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { object(w) })
	_ = s
	awsSettings(t, "", "")
	none := open(t, "s3://bucket?path-style=true&endpoint="+url.QueryEscape(srv.URL))
	_, err := none.Get(t.Context(), "index/a", store.Read{})
	wantOnly(t, "Get", err, store.ErrRefused)
	if err == nil || !strings.Contains(err.Error(), "no credentials") ||
		!strings.Contains(store.Hint(err), "AWS_ACCESS_KEY_ID") {
		t.Errorf("%v, hint %q", err, store.Hint(err))
	}
	if n := srv.requests.Load(); n != 0 {
		t.Errorf("%d requests, want 0", n)
	}
}

// TestClockSkew has a server whose clock is an hour ahead, and which says so.
func TestClockSkew(t *testing.T) {
	s, srv := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		serverTime := time.Now().Add(time.Hour)
		w.Header().Set("Date", serverTime.UTC().Format(http.TimeFormat))
		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil {
			t.Error(err)
		}
		if serverTime.Sub(signed).Abs() > 15*time.Minute {
			refuse(403, "RequestTimeTooSkewed")(w)
			return
		}
		object(w)
	})
	for range 3 {
		if _, err := s.Get(t.Context(), "index/a", store.Read{}); err != nil {
			t.Error(err)
		}
	}
	if n := srv.requests.Load(); n != 4 {
		t.Errorf("%d requests, want 4: the first one tells the server's time", n)
	}
}

// TestConnectionsAreKept gets objects from 64 goroutines, again and again.
func TestConnectionsAreKept(t *testing.T) {
	s, srv := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			object(w)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("ETag", `"v1"`)
	})
	for range 10 {
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				var err error
				if i%2 == 0 {
					_, err = s.Get(t.Context(), "index/a", store.Read{})
				} else {
					_, err = s.Put(t.Context(), "index/a", bytes.Repeat([]byte("x"), 30_000), store.Condition{})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	if n := srv.connections.Load(); n > 64+32 {
		t.Errorf("640 requests, 64 at once, made %d connections", n)
	}
}

func TestRequestsAreSigned(t *testing.T) {
	s, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=id/") {
			t.Errorf("%s: Authorization %q", r.Method, r.Header.Get("Authorization"))
		}
		for name, values := range r.Header {
			lower := strings.ToLower(name)
			if strings.Contains(lower, "checksum") || lower == "x-amz-trailer" || lower == "content-encoding" {
				t.Errorf("%s: header %s: %q, which not every server knows", r.Method, name, values)
			}
		}
		if r.Method == http.MethodPut && len(r.Header.Get("X-Amz-Content-Sha256")) != 64 {
			t.Errorf("the body is not signed: %q", r.Header.Get("X-Amz-Content-Sha256"))
		}
		if want := "/bucket/pre/fix/index/a+b@c=d~20"; r.URL.Path != want {
			t.Errorf("path %q, want %q", r.URL.Path, want)
		}
		object(w)
	})
	if _, err := s.Get(t.Context(), "index/a+b@c=d~20", store.Read{}); err != nil {
		t.Error(err)
	}
	if _, err := s.Put(t.Context(), "index/a+b@c=d~20", []byte("x"), store.Condition{}); err != nil {
		t.Error(err)
	}
}

// TestSilentStoreGetsWell: a store that was silent is given less time, and all of it again as soon as it has answered.
func TestSilentStoreGetsWell(t *testing.T) {
	unhurried(t, func(t testing.TB, idle time.Duration) {
		t.Helper()
		var well atomic.Bool
		s, srv := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
			if well.Load() {
				object(w)
				return
			}
			hang("")(w)
		})
		s.IdleTimeout, s.Attempts = idle, 6
		get := func(want int64) error {
			t.Helper()
			srv.requests.Store(0)
			_, err := s.Get(t.Context(), "index/a", store.Read{})
			if n := srv.received(want); n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
			return err
		}
		for _, want := range []int64{2, 1, 1} {
			wantOnly(t, "a call while it is silent", get(want), store.ErrUnavailable)
		}
		well.Store(true)
		if err := get(1); err != nil {
			t.Error(err)
		}
		well.Store(false)
		wantOnly(t, "a call when it has answered", get(3), store.ErrUnavailable)
		wantOnly(t, "the call after it", get(1), store.ErrUnavailable)
	})
}
