package s3

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// closedBody is a request's body as the SDK leaves it when the reply comes before the transport has looked whether
// there is more: Read says that it has ended, WriteTo says so by an error.
type closedBody struct{ io.Reader }

func (closedBody) WriteTo(io.Writer) (int64, error) { return 0, io.EOF }
func (closedBody) Close() error                     { return nil }

func TestReplyBeforeTheBodysEnd(t *testing.T) {
	var connections atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	s := &Store{transport: newTransport(nil)}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	client := watchedClient{store: s}
	for range 3 {
		data := bytes.Repeat([]byte("x"), 100_000)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL, closedBody{bytes.NewReader(data)})
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = int64(len(data))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("three requests made %d connections", n)
	}
}
