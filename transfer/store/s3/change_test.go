package s3_test

import (
	"crypto/md5" // S3 wants it
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"nbc/transfer/store"
)

// TestLostReply loses the reply to a Put that has happened.
func TestLostReply(t *testing.T) {
	for _, c := range []struct {
		name      string
		condition store.Condition
		refusal   func(http.ResponseWriter)
		now       string // what is there when it is looked at
		conflict  bool
	}{
		{"mine", store.Condition{IfAbsent: true}, refuse(412, "PreconditionFailed"), "mine", false},
		{"mine, 409", store.Condition{IfAbsent: true}, refuse(409, "ConditionalRequestConflict"), "mine", false},
		{"mine, IfVersion", store.Condition{IfVersion: "v0"}, refuse(412, "PreconditionFailed"), "mine", false},
		{"another's", store.Condition{IfAbsent: true}, refuse(412, "PreconditionFailed"), "ours", true},
		{"longer", store.Condition{IfAbsent: true}, refuse(412, "PreconditionFailed"), "mine and more", true},
		{"gone", store.Condition{IfVersion: "v0"}, refuse(404, "NoSuchKey"), "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var puts int
			s, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					if c.now == "" {
						refuse(404, "NoSuchKey")(w)
						return
					}
					w.Header().Set("ETag", `"v2"`)
					_, _ = io.WriteString(w, c.now)
					return
				}
				if got := r.Header.Get("If-None-Match") + r.Header.Get("If-Match"); got != "*" && got != `"v0"` {
					t.Errorf("the condition is %q", got)
				}
				body, err := io.ReadAll(r.Body)
				if err != nil || string(body) != "mine" {
					t.Errorf("attempt %d sends %q, %v", puts, body, err)
				}
				if puts++; puts == 1 {
					raw("")(w)
					return
				}
				c.refusal(w)
			})
			version, err := s.Put(t.Context(), "gc/state", []byte("mine"), c.condition)
			if c.conflict {
				wantOnly(t, "Put", err, store.ErrConflict)
			} else if err != nil || version != "v2" {
				t.Errorf("Put: version %q, %v", version, err)
			}
		})
	}
}

// TestConflictAtOnce does not look at the object: nobody else can have put it for this call.
func TestConflictAtOnce(t *testing.T) {
	for _, reply := range []func(http.ResponseWriter){
		refuse(412, "PreconditionFailed"), refuse(409, "ConditionalRequestConflict"), refuse(404, "NoSuchKey"),
		func(w http.ResponseWriter) { w.WriteHeader(412) },
	} {
		s, srv := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { reply(w) })
		_, err := s.Put(t.Context(), "gc/state", []byte("mine"), store.Condition{IfVersion: "v0"})
		wantOnly(t, "Put", err, store.ErrConflict)
		if n := srv.requests.Load(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	}
	s, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { refuse(404, "NoSuchBucket")(w) })
	_, err := s.Put(t.Context(), "gc/state", []byte("mine"), store.Condition{IfVersion: "v0"})
	wantOnly(t, "Put to no bucket", err, store.ErrRefused)
}

// deletion is the body of a multi-object delete.
type deletion struct {
	Quiet  bool
	Object []struct{ Key string }
}

func TestDeleteErrors(t *testing.T) {
	var mu sync.Mutex
	var batches [][]string
	decode := func(r *http.Request) (keys []string) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		sum := md5.Sum(body) // S3 wants it
		if got := r.Header.Get("Content-Md5"); got != base64.StdEncoding.EncodeToString(sum[:]) {
			t.Errorf("Content-MD5 is %q", got)
		}
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Amz-Checksum") || strings.HasPrefix(name, "X-Amz-Sdk-Checksum") {
				t.Errorf("header %s, which not every server knows", name)
			}
		}
		var d deletion
		if err := xml.Unmarshal(body, &d); err != nil || !d.Quiet {
			t.Errorf("%s: %v", body, err)
		}
		for _, o := range d.Object {
			keys = append(keys, o.Key)
		}
		mu.Lock()
		defer mu.Unlock()
		batches = append(batches, keys)
		return keys
	}
	answer := func(w http.ResponseWriter, errors ...string) {
		_, _ = io.WriteString(w, "<DeleteResult>")
		for i := 0; i < len(errors); i += 2 {
			_, _ = fmt.Fprintf(w, "<Error><Key>%s</Key><Code>%s</Code><Message>m</Message></Error>", errors[i], errors[i+1])
		}
		_, _ = io.WriteString(w, "</DeleteResult>")
	}
	keys := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("chunks/%04d", i))
		}
		return list
	}

	s, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { decode(r); answer(w) })
	if err := s.Delete(t.Context(), keys(2500)...); err != nil {
		t.Error(err)
	}
	if len(batches) != 3 || len(batches[0]) != 1000 || len(batches[2]) != 500 || batches[1][0] != "pre/fix/chunks/1000" {
		t.Errorf("2500 keys make %d batches", len(batches))
	}

	batches = nil
	s, _ = serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		decode(r)
		if n == 0 {
			answer(w, "pre/fix/chunks/0001", "InternalError", "pre/fix/chunks/0002", "NoSuchKey", "pre/fix/chunks/0003",
				"SlowDown")
			return
		}
		answer(w)
	})
	if err := s.Delete(t.Context(), keys(5)...); err != nil {
		t.Error(err)
	}
	want := []string{"pre/fix/chunks/0001", "pre/fix/chunks/0003"}
	if len(batches) != 2 || !slices.Equal(batches[1], want) {
		t.Errorf("batches %q, want the second to be %q", batches, want)
	}

	s, srv := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		decode(r)
		answer(w, "pre/fix/chunks/0001", "InternalError", "pre/fix/chunks/0003", "AccessDenied")
	})
	err := s.Delete(t.Context(), keys(5)...)
	wantOnly(t, "Delete", err, store.ErrRefused)
	if err == nil || !strings.Contains(err.Error(), "chunks/0003") {
		t.Errorf("the error does not name the key: %v", err)
	}
	if n := srv.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}

	s, srv = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		decode(r)
		answer(w, "pre/fix/chunks/0000", "InternalError")
	})
	wantOnly(t, "Delete", s.Delete(t.Context(), keys(1)...), store.ErrUnavailable)
	if n := srv.requests.Load(); n != 4 {
		t.Errorf("%d requests, want 4", n)
	}
}

func TestListFaults(t *testing.T) {
	entry := func(key string) string {
		return "<Contents><Key>" + key + `</Key><Size>3</Size><ETag>"v"</ETag>` +
			"<LastModified>2024-01-02T03:04:05.000Z</LastModified></Contents>"
	}
	result := func(w http.ResponseWriter, inner ...string) {
		_, _ = io.WriteString(w, "<ListBucketResult>"+strings.Join(inner, "")+"</ListBucketResult>")
	}
	more := func(token string) string {
		return "<IsTruncated>true</IsTruncated><NextContinuationToken>" + token + "</NextContinuationToken>"
	}
	for _, c := range []struct {
		name  string
		reply func(n int, w http.ResponseWriter, r *http.Request)
		want  []string
		err   bool
		kind  error
	}{
		{"two pages, the second after faults", func(n int, w http.ResponseWriter, r *http.Request) {
			switch n {
			case 0:
				result(w, entry("pre/fix/a"), more("go"))
			case 1:
				raw("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n<ListBucketResult><Contents><Key>pre/fix/b")(w)
			case 2:
				page(200)(w)
			default:
				if r.URL.Query().Get("continuation-token") != "go" {
					t.Errorf("query %v", r.URL.Query())
				}
				result(w, entry("pre/fix/b"))
			}
		}, []string{"a", "b"}, false, nil},
		{"an empty page", func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 0 {
				result(w, more("go"))
				return
			}
			result(w, entry("pre/fix/a"))
		}, []string{"a"}, false, nil},
		{"foreign keys", func(_ int, w http.ResponseWriter, _ *http.Request) {
			result(w, entry("pre/fix/"), entry("pre/fix/a"), entry("pre/fix/a b"), entry("pre/fix/a/"), entry("elsewhere/x"))
		}, []string{"a"}, false, nil},
		{"out of order", func(_ int, w http.ResponseWriter, _ *http.Request) {
			result(w, entry("pre/fix/b"), entry("pre/fix/a"))
		}, []string{"b"}, true, nil},
		{"no token", func(_ int, w http.ResponseWriter, _ *http.Request) {
			result(w, entry("pre/fix/a"), more(""))
		}, []string{"a"}, true, nil},
		{"in a circle", func(n int, w http.ResponseWriter, _ *http.Request) {
			result(w, entry(fmt.Sprintf("pre/fix/%d", n)), more("same"))
		}, []string{"0", "1"}, true, nil},
		{"no bucket", func(_ int, w http.ResponseWriter, _ *http.Request) {
			refuse(404, "NoSuchBucket")(w)
		}, nil, true, store.ErrRefused},
		{"refused", func(_ int, w http.ResponseWriter, _ *http.Request) {
			refuse(403, "AccessDenied")(w)
		}, nil, true, store.ErrRefused},
		{"no listing", func(_ int, w http.ResponseWriter, _ *http.Request) { page(200)(w) }, nil, true, store.ErrUnavailable},
		{"another listing", func(_ int, w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<html><body></body></html>")
		}, nil, true, store.ErrUnavailable},
		{"nothing at all", func(_ int, w http.ResponseWriter, _ *http.Request) {}, nil, true, store.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := serve(t, c.reply)
			var got []string
			err := s.List(t.Context(), "", func(i store.Info) error {
				if i.Size != 3 || i.Version != "v" || i.Modified.Year() != 2024 {
					t.Errorf("List yields %+v", i)
				}
				got = append(got, i.Key)
				return nil
			})
			if (err != nil) != c.err || !slices.Equal(got, c.want) {
				t.Errorf("List yields %q, %v; want %q, error %v", got, err, c.want, c.err)
			}
			wantOnly(t, "List", err, c.kind)
		})
	}
}
