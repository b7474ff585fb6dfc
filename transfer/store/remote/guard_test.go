package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// aChunk returns the key and the stored bytes of a chunk.
func aChunk(plain string, epoch uint64) (key string, stored []byte) {
	k := chunk.Key{ID: chunk.Sum([]byte(plain)), Epoch: epoch}
	return k.Path(), chunk.Encode(nil, []byte(plain))
}

// anIndex returns the bytes of an index.
func anIndex(t testing.TB, epoch uint64, content string) []byte {
	t.Helper()
	x := &index.Index{
		Epoch:   epoch,
		Chunks:  []index.Chunk{{Key: chunk.Key{ID: chunk.Sum([]byte(content)), Epoch: epoch}, Length: len(content)}},
		Roots:   []string{"f"},
		Entries: []index.Entry{{Path: "f", Kind: index.File, Size: int64(len(content))}},
	}
	data, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// largeIndex returns one that a client does not send before it is asked to.
func largeIndex(t testing.TB) []byte {
	t.Helper()
	x := &index.Index{Epoch: 1, Roots: []string{"d"}, Entries: []index.Entry{{Path: "d", Kind: index.Dir}}}
	for i := range 10_000 {
		id := chunk.Sum(fmt.Append(nil, i))
		x.Chunks = append(x.Chunks, index.Chunk{Key: chunk.Key{ID: id, Epoch: 1}, Length: 1})
	}
	x.Entries = append(x.Entries, index.Entry{Path: "d/f", Kind: index.File, Size: int64(len(x.Chunks))})
	data, err := x.Encode()
	if err != nil || len(data) <= expectAbove {
		t.Fatalf("the index has %d bytes, %v", len(data), err)
	}
	return data
}

const goodFormat = `{"version": 1, "id": "5f0d0b9a6e4a1c0c7f3f6a2c9f1b7d55", "hash": "blake3-256",
	"compression": "zstd", "min_writer": 1, "chunker": {"polynomial": "0x37a260098117ad", "min": 131072, "max": 1048576, "bits": 17}}`

func mustPut(t testing.TB, s store.Store, key string, data []byte) {
	t.Helper()
	if _, err := s.Put(t.Context(), key, data, store.Condition{}); err != nil {
		t.Fatal(err)
	}
}

func allow(t testing.TB, text string) Rules {
	t.Helper()
	rules, err := ParseRules(text)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// is reports of which kind err is, and that it has no other one.
func is(err error, kind error) bool {
	for _, k := range []error{
		store.ErrNotExist, store.ErrRefused, store.ErrUnavailable, store.ErrConflict, store.ErrTooLarge, fs.ErrInvalid,
	} {
		if errors.Is(err, k) != (k == kind) {
			return false
		}
	}
	return true
}

// keys returns all that a store has.
func keys(t testing.TB, s store.Store) (list []string) {
	t.Helper()
	err := s.List(t.Context(), "", func(i store.Info) error {
		list = append(list, i.Key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestNothingIsAllowedByDefault(t *testing.T) {
	memory := storetest.Memory()
	c, stored := aChunk("content", 1)
	mustPut(t, memory, c, stored)
	mustPut(t, memory, "index/a", anIndex(t, 1, "content"))
	mustPut(t, memory, "format", []byte(goodFormat))
	before := keys(t, memory)
	client := serve(t, &Handler{Store: memory})
	for _, key := range []string{c, "index/a", "index/none", "format", "gc/state", "gc/m/x", "other"} {
		_, err := client.Get(t.Context(), key, store.Read{})
		if !is(err, store.ErrRefused) {
			t.Errorf("Get %s: %v", key, err)
		}
		_, err = client.Put(t.Context(), key, stored, store.Condition{})
		if !is(err, store.ErrRefused) {
			t.Errorf("Put %s: %v", key, err)
		}
	}
	for _, prefix := range []string{"", "index/", "chunks/", "gc/"} {
		err := client.List(t.Context(), prefix, func(i store.Info) error {
			t.Errorf("List %q yields %s", prefix, i.Key)
			return nil
		})
		if !is(err, store.ErrRefused) {
			t.Errorf("List %q: %v", prefix, err)
		}
	}
	if err := client.Delete(t.Context(), c); !is(err, store.ErrRefused) {
		t.Errorf("Delete: %v", err)
	}
	if after := keys(t, memory); !slices.Equal(before, after) {
		t.Errorf("the store has %q, before it had %q", after, before)
	}
}

func TestRights(t *testing.T) {
	memory := storetest.Memory()
	c, stored := aChunk("content", 1)
	mustPut(t, memory, c, stored)
	x := anIndex(t, 1, "content")
	for _, name := range []string{"app/main", "app/main@k1", "app/pr-1", "other"} {
		key, err := index.Path(name)
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, memory, key, x)
	}
	client := serve(t, &Handler{Store: memory, Rules: allow(t, "read app/*\nwrite app/pr-*")})
	for name, may := range map[string]struct{ read, write bool }{
		"app/main": {true, false}, "app/main@k1": {true, false}, "app/pr-1": {true, true}, "app/pr-1@k": {true, true},
		"other": {}, "new": {}, "app/pr-1/x": {}, "app/main@pr-1": {true, false},
	} {
		key, err := index.Path(name)
		if err != nil {
			t.Fatal(err)
		}
		o, err := client.Get(t.Context(), key, store.Read{})
		switch {
		case errors.Is(err, store.ErrNotExist):
			err = nil
		case err == nil && !bytes.Equal(o.Data, x):
			t.Errorf("Get %s returns %d bytes", name, len(o.Data))
		}
		if may.read && err != nil || !may.read && !is(err, store.ErrRefused) {
			t.Errorf("Get %s: %v", name, err)
		}
		_, err = client.Put(t.Context(), key, x, store.Condition{})
		if may.write && err != nil || !may.write && !is(err, store.ErrRefused) {
			t.Errorf("Put %s: %v", name, err)
		}
		if err != nil && (!strings.Contains(err.Error(), name) || store.Hint(err) == "") {
			t.Errorf("Put %s says %q, hint %q", name, err, store.Hint(err))
		}
	}

	var names []string
	err := client.List(t.Context(), "index/", func(i store.Info) error {
		name, err := index.ParsePath(i.Key)
		names = append(names, name)
		if i.Size != int64(len(x)) || i.Version == "" || i.Modified.IsZero() {
			t.Errorf("List yields %+v", i)
		}
		return err
	})
	slices.Sort(names)
	if want := []string{"app/main", "app/main@k1", "app/pr-1", "app/pr-1@k"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("List yields %q, %v", names, err)
	}

	// Who may write may put chunks, and who may do anything may get those that it can name.
	if o, err := client.Get(t.Context(), c, store.Read{}); err != nil || !bytes.Equal(o.Data, stored) {
		t.Errorf("Get of a chunk: %v", err)
	}
	c2, stored2 := aChunk("more", 1)
	if _, err := client.Put(t.Context(), c2, stored2, store.Condition{}); err != nil {
		t.Errorf("Put of a chunk: %v", err)
	}
	reader := serve(t, &Handler{Store: memory, Rules: allow(t, "read app/*")})
	if _, err := reader.Get(t.Context(), c2, store.Read{}); err != nil {
		t.Errorf("Get of a chunk by a reader: %v", err)
	}
	for _, key := range []string{c2, "format", "index/app~2fmain"} {
		if _, err := reader.Put(t.Context(), key, stored2, store.Condition{}); !is(err, store.ErrRefused) {
			t.Errorf("Put %s by a reader: %v", key, err)
		}
	}
	writer := serve(t, &Handler{Store: memory, Rules: allow(t, "write app/*")})
	if _, err := writer.Get(t.Context(), c2, store.Read{}); err != nil {
		t.Errorf("Get of a chunk by a writer: %v", err)
	}
	if _, err := writer.Get(t.Context(), "gc/state", store.Read{}); !is(err, store.ErrNotExist) {
		t.Errorf("Get of the state by a writer: %v", err)
	}
	if err := writer.List(t.Context(), "index/", nil); !is(err, store.ErrRefused) {
		t.Errorf("List by a writer: %v", err)
	}
}

// TestPutIsChecked lets one who may write everything put what must not be kept.
func TestPutIsChecked(t *testing.T) {
	bomb := func(size int) []byte {
		e, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithWindowSize(8<<20))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = e.Close() }()
		return e.EncodeAll(make([]byte, size), nil)
	}
	good, stored := aChunk("content", 1)
	late, _ := aChunk("content", 8)
	other, _ := aChunk("another", 1)

	memory := storetest.Memory()
	mustPut(t, memory, "gc/state", []byte(`{"version":1,"epoch":7,"fence":6,"phase":"idle"}`))
	before := keys(t, memory)
	client := serve(t, &Handler{Store: memory, Rules: everything})
	for name, c := range map[string]struct {
		key  string
		data []byte
		kind error
	}{
		"another ID":              {other, stored, fs.ErrInvalid},
		"nothing":                 {good, nil, fs.ErrInvalid},
		"plain bytes":             {good, []byte("content"), fs.ErrInvalid},
		"cut off":                 {good, stored[:len(stored)-1], fs.ErrInvalid},
		"something behind it":     {good, append(bytes.Clone(stored), 0), fs.ErrInvalid},
		"two frames":              {good, append(bytes.Clone(stored), stored...), fs.ErrInvalid},
		"a bomb":                  {good, bomb(10 << 20), fs.ErrInvalid},
		"a bomb that lies":        {good, liar(bomb(9 << 20)), fs.ErrInvalid},
		"a chunk to come":         {late, stored, store.ErrRefused},
		"a chunk that is too big": {good, make([]byte, maxChunk+1), store.ErrTooLarge},

		"an index that is none":   {"index/a", []byte("nbcindex"), fs.ErrInvalid},
		"an empty index":          {"index/a", nil, fs.ErrInvalid},
		"a damaged index":         {"index/a", storetest.FlipBit(900)(anIndex(t, 7, "content")), fs.ErrInvalid},
		"an index to come":        {"index/a", anIndex(t, 8, "content"), store.ErrRefused},
		"an index without a name": {"index/~61", anIndex(t, 1, "content"), fs.ErrInvalid},
		"an index in a folder":    {"index/a/b", anIndex(t, 1, "content"), fs.ErrInvalid},
		"a hidden index":          {"index/.lock", anIndex(t, 1, "content"), fs.ErrInvalid},
		"an index of bytes":       {"index/~ff", anIndex(t, 1, "content"), fs.ErrInvalid},
		"a name of two lines":     {"index/a~0ab", anIndex(t, 1, "content"), fs.ErrInvalid},

		"no format":             {"format", []byte("{}"), fs.ErrInvalid},
		"not JSON":              {"format", []byte("{"), fs.ErrInvalid},
		"another version":       {"format", []byte(strings.Replace(goodFormat, `on": 1`, `on": 2`, 1)), fs.ErrInvalid},
		"another hash":          {"format", []byte(strings.Replace(goodFormat, "blake3-256", "md5", 1)), fs.ErrInvalid},
		"a bad polynomial":      {"format", []byte(strings.Replace(goodFormat, "0x37a2", "0x00", 1)), fs.ErrInvalid},
		"later writers only":    {"format", []byte(strings.Replace(goodFormat, `er": 1`, `er": 999`, 1)), fs.ErrInvalid},
		"other cuts":            {"format", []byte(strings.Replace(goodFormat, "131072", "65536", 1)), fs.ErrInvalid},
		"no ID":                 {"format", []byte(strings.Replace(goodFormat, "5f0d", "", 1)), fs.ErrInvalid},
		"the collector's":       {"gc/state", []byte(`{"version":1,"epoch":9}`), store.ErrRefused},
		"a manifest":            {"gc/m/abc", []byte("x"), store.ErrRefused},
		"anything":              {"other", []byte("x"), store.ErrRefused},
		"a chunk's folder":      {"chunks/ab", stored, fs.ErrInvalid},
		"a chunk elsewhere":     {strings.Replace(good, "chunks/", "chunks/x/", 1), stored, fs.ErrInvalid},
		"in another's folder":   {"chunks/00/" + good[len("chunks/00/"):], stored, fs.ErrInvalid},
		"with another spelling": {strings.ToUpper(good[:12]) + good[12:], stored, store.ErrRefused},
		"out of the folder":     {"chunks/../gc/state", stored, fs.ErrInvalid},
	} {
		_, err := client.Put(t.Context(), c.key, c.data, store.Condition{})
		if !is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	if after := keys(t, memory); !slices.Equal(before, after) {
		t.Errorf("the store has %q", after)
	}

	// What must be kept is.
	for key, data := range map[string][]byte{
		good: stored, "index/a": anIndex(t, 7, "content"), "index/b": anIndex(t, 1, "content"),
		"format": []byte(goodFormat),
	} {
		version, err := client.Put(t.Context(), key, data, store.Condition{})
		if err != nil {
			t.Errorf("Put %s: %v", key, err)
			continue
		}
		o, err := memory.Get(t.Context(), key, store.Read{})
		if err != nil || o.Version != version || !bytes.Equal(o.Data, data) {
			t.Errorf("Put %s: version %q, the far store has %q, %v", key, version, o.Version, err)
		}
	}

	// There is one format for ever.
	if _, err := client.Put(t.Context(), "format", []byte(goodFormat), store.Condition{}); err != nil {
		t.Errorf("the same format, again: %v", err)
	}
	changed := strings.Replace(goodFormat, "5f0d", "0000", 1)
	for _, cond := range []store.Condition{{}, {IfAbsent: true}, {IfVersion: "4"}} {
		if _, err := client.Put(t.Context(), "format", []byte(changed), cond); !is(err, store.ErrConflict) {
			t.Errorf("another format: %v", err)
		}
	}
	if o, err := memory.Get(t.Context(), "format", store.Read{}); err != nil || string(o.Data) != goodFormat {
		t.Errorf("the format is %q, %v", o.Data, err)
	}
}

// liar makes the frame of a bomb, which has a content size of four bytes, say that it holds no more than 7.
func liar(frame []byte) []byte {
	data := bytes.Clone(frame)
	copy(data[5:9], []byte{7, 0, 0, 0})
	return data
}

// TestEpochIsRead shows that an epoch that began since the daemon last looked is known to it, and one that a client
// made up is not.
func TestEpochIsRead(t *testing.T) {
	memory := storetest.Memory()
	far := &storetest.Faulty{Store: memory}
	client := serve(t, &Handler{Store: far, Rules: everything})
	put := func(epoch uint64) error {
		key, stored := aChunk("content", epoch)
		_, err := client.Put(t.Context(), key, stored, store.Condition{})
		return err
	}
	if err := put(1); err != nil {
		t.Errorf("epoch 1 of a store that was never collected: %v", err)
	}
	if err := put(2); !is(err, store.ErrRefused) {
		t.Errorf("epoch 2 of it: %v", err)
	}
	mustPut(t, memory, "gc/state", []byte(`{"version":1,"epoch":2}`))
	if err := put(2); err != nil {
		t.Errorf("epoch 2, which has begun: %v", err)
	}
	gets := far.Count(storetest.Get)
	for range 5 {
		if err := put(2); err != nil {
			t.Error(err)
		}
	}
	if n := far.Count(storetest.Get) - gets; n != 0 {
		t.Errorf("%d requests for an epoch that is known", n)
	}
	mustPut(t, memory, "gc/state", []byte("garbage"))
	if err := put(3); !is(err, store.ErrRefused) {
		t.Errorf("epoch 3 of a state that cannot be read: %v", err)
	}
	far.Fault = storetest.FailFrom(0, fmt.Errorf("far: %w", store.ErrUnavailable))
	if err := put(3); !is(err, store.ErrUnavailable) {
		t.Errorf("epoch 3 of a store that cannot be reached: %v", err)
	}
}

// TestFirstFormats lets many put a format at once: one is put, the others hear of it.
func TestFirstFormats(t *testing.T) {
	memory := storetest.Memory()
	client := serve(t, &Handler{Store: &storetest.Faulty{
		Store: memory,
		Fault: func(storetest.Call) storetest.Fault { return storetest.Fault{Delay: time.Millisecond} },
	}, Rules: everything})
	errs := make(chan error)
	for i := range 8 {
		go func() {
			data := strings.Replace(goodFormat, "5f0d", fmt.Sprintf("%04x", i), 1)
			_, err := client.Put(context.Background(), "format", []byte(data), store.Condition{})
			errs <- err
		}()
	}
	won := 0
	for range 8 {
		switch err := <-errs; {
		case err == nil:
			won++
		case !is(err, store.ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d formats were put", won)
	}
}

// raw sends bytes to the socket and returns the reply. That of a connection that was closed before they were all sent
// may be lost: then it is nil.
func raw(t *testing.T, path, request string) (*http.Response, []byte) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(c, request) }() // the daemon may close it in between
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if errors.Is(err, syscall.ECONNRESET) {
		return nil, nil
	}
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	data, err := io.ReadAll(resp.Body)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil, nil
	}
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	return resp, data
}

// TestRequests sends what no client of ours does.
func TestRequests(t *testing.T) {
	memory := storetest.Memory()
	c, stored := aChunk("content", 1)
	mustPut(t, memory, c, stored)
	mustPut(t, memory, "index/a", anIndex(t, 1, "content"))
	mustPut(t, memory, "secret/x", []byte("secret"))
	before := keys(t, memory)
	d := start(t, &Handler{Store: memory, Rules: everything}, socketPath(t))
	request := func(line, header, body string) string {
		return line + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n" + body
	}
	sized := func(body string) string { return fmt.Sprintf("Content-Length: %d\r\n", len(body)) }
	lines := strings.Repeat(c+" 1000\n", maxKeys+1)
	for name, r := range map[string]struct {
		request string
		status  int
	}{
		"delete":                 {request("DELETE /v1/object/"+c, "", ""), 405},
		"delete of chunks":       {request("DELETE /v1/chunks", "", ""), 405},
		"post of an object":      {request("POST /v1/object/"+c, sized("x"), "x"), 405},
		"head":                   {request("HEAD /v1/object/"+c, "", ""), 405},
		"get of chunks":          {request("GET /v1/chunks", "", ""), 405},
		"put of a listing":       {request("PUT /v1/list", sized("x"), "x"), 405},
		"options":                {request("OPTIONS *", "", ""), 400},
		"a question by post":     {request("POST /v1/may-put/index/a", sized("x"), "x"), 405},
		"a question with more":   {request("GET /v1/may-put/index/a?max=1", "", ""), 400},
		"a question for nothing": {request("GET /v1/may-put/", "", ""), 400},
		"a question answered":    {request("GET /v1/may-put/index/a", "", ""), 204},
		"elsewhere":              {request("GET /", "", ""), 400},
		"another version":        {request("GET /v2/object/"+c, "", ""), 400},
		"no key":                 {request("GET /v1/object/", "", ""), 400},
		"an escaped slash":       {request("GET /v1/object/index%2fa", "", ""), 400},
		"an escaped letter":      {request("GET /v1/object/inde%78/a", "", ""), 400},
		"up":                     {request("GET /v1/object/index/../secret/x", "", ""), 400},
		"up, at once":            {request("GET /v1/object/../../etc/passwd", "", ""), 400},
		"two slashes":            {request("GET /v1/object//index/a", "", ""), 400},
		"an absolute URL":        {request("GET http://x/v1/object/index/a", "", ""), 400},
		"what is not served":     {request("GET /v1/object/secret/x", "", ""), 403},
		"a parameter too many":   {request("GET /v1/object/index/a?lenght=5", "", ""), 400},
		"a parameter twice":      {request("GET /v1/object/index/a?max=5&max=6", "", ""), 400},
		"a negative offset":      {request("GET /v1/object/index/a?offset=-1", "", ""), 400},
		"a large offset":         {request("GET /v1/object/index/a?offset=9223372036854775808", "", ""), 400},
		"a query of garbage":     {request("GET /v1/object/index/a?%zz", "", ""), 400},
		"a put with parameters":  {request("PUT /v1/object/"+c+"?x=y", sized("x"), "x"), 400},
		"a put of no length":     {request("PUT /v1/object/"+c, "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
		"a put that is too long": {request("PUT /v1/object/"+c, "Content-Length: 1000000000000\r\n", ""), 413},
		"a huge index":           {request("PUT /v1/object/index/a", "Content-Length: 100000000\r\n", ""), 413},
		"a strange condition":    {request("PUT /v1/object/"+c, "If-Match: *\r\n"+sized("x"), "x"), 400},
		"a weak condition":       {request("PUT /v1/object/"+c, "If-Match: W/\"x\"\r\n"+sized("x"), "x"), 400},
		"two conditions": {
			request("PUT /v1/object/"+c, "If-Match: \"x\"\r\nIf-None-Match: *\r\n"+sized("x"), "x"), 400,
		},
		"too many chunks":       {request("POST /v1/chunks", sized(lines), lines), 400},
		"too long a body":       {request("POST /v1/chunks", "Content-Length: 10000000\r\n", ""), 413},
		"chunks of no length":   {request("POST /v1/chunks", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
		"a line of garbage":     {request("POST /v1/chunks", sized("x\n"), "x\n"), 400},
		"a line without an end": {request("POST /v1/chunks", sized(c+" 10"), c+" 10"), 400},
		"a line without a size": {request("POST /v1/chunks", sized(c+" 0\n"), c+" 0\n"), 400},
		"a line with two sizes": {request("POST /v1/chunks", sized(c+" 1 1\n"), c+" 1 1\n"), 400},
		"an index among chunks": {request("POST /v1/chunks", sized("index/a 10\n"), "index/a 10\n"), 400},
		"a path among chunks":   {request("POST /v1/chunks", sized("chunks/../x 1\n"), "chunks/../x 1\n"), 400},
		"a listing of all":      {request("GET /v1/list", "", ""), 403},
		"a listing of chunks":   {request("GET /v1/list?prefix=chunks/", "", ""), 403},
		"a listing, twice":      {request("GET /v1/list?prefix=index/&prefix=x", "", ""), 400},
		"a long prefix":         {request("GET /v1/list?prefix=index/"+strings.Repeat("x", 600), "", ""), 400},
		"a huge header":         {request("GET /v1/object/index/a", "X: "+strings.Repeat("x", 1<<20)+"\r\n", ""), 431},
		"many headers":          {request("GET /v1/object/index/a", strings.Repeat("X: y\r\n", 100_000), ""), 431},
		"no HTTP":               {"garbage\r\n\r\n", 400},
	} {
		resp, body := raw(t, d.path, r.request)
		if resp == nil && len(r.request) > maxHeader {
			continue
		}
		if resp == nil || resp.StatusCode != r.status {
			t.Errorf("%s: reply %+v, want status %d: %.200s", name, resp, r.status, body)
		}
		if bytes.Contains(body, []byte("secret\"")) {
			t.Errorf("%s: replies with %q", name, body)
		}
	}
	if after := keys(t, memory); !slices.Equal(before, after) {
		t.Errorf("the store has %q, before it had %q", after, before)
	}

	// Some of them are right.
	resp, body := raw(t, d.path, request("GET /v1/object/index/a?offset=0&length=8&max=8", "", ""))
	if resp.StatusCode != 200 || string(body) != "nbcindex" || resp.Header.Get(versionHeader) != "1" {
		t.Errorf("a part of an index: %d %q", resp.StatusCode, body)
	}
	text := c + " 100\n" + c[:len(c)-1] + "2 100\n"
	_, body = raw(t, d.path, request("POST /v1/chunks", sized(text), text))
	reply := bufio.NewReader(bytes.NewReader(body))
	var seen []int
	for {
		var f frame
		if err := readLine(reply, &f); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		if f.End {
			break
		}
		seen = append(seen, f.N)
		if f.N == 1 && (f.Error == nil || f.Error.Kind != "absent") {
			t.Errorf("an absent chunk: %+v", f)
		}
		data := make([]byte, f.Bytes)
		if _, err := io.ReadFull(reply, data); err != nil || f.N == 0 && !bytes.Equal(data, stored) {
			t.Errorf("a chunk is %q, %v", data, err)
		}
	}
	if slices.Sort(seen); !slices.Equal(seen, []int{0, 1}) {
		t.Errorf("the reply is %q", body)
	}
}

// TestErrors lets each kind of error of the far store go through each kind of request: its kind gets to the build, and
// what it says into the log, and nowhere else.
func TestErrors(t *testing.T) {
	const secret = "https://minio.internal:9000/bucket"
	c, stored := aChunk("content", 1)
	for _, k := range append(slices.Clone(kinds), struct {
		name   string
		err    error
		status int
		text   string
	}{otherKind, nil, 500, "it failed"}) {
		cause := errors.New("dial " + secret)
		if k.err != nil {
			cause = fmt.Errorf("%w: %w", cause, k.err)
		}
		far := &storetest.Faulty{
			Store: storetest.Memory(),
			Fault: func(call storetest.Call) storetest.Fault {
				if call.Key == stateKey {
					return storetest.Fault{} // the daemon's own question
				}
				return storetest.Fault{Before: &hintedError{cause}}
			},
		}
		log := new(safeBuffer)
		h := &Handler{Store: far, Rules: everything, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		client := serve(t, h)
		for what, call := range map[string]func() error{
			"Get of an index": func() error { _, err := client.Get(t.Context(), "index/a", store.Read{}); return err },
			"Get of a chunk":  func() error { _, err := client.Get(t.Context(), c, store.Read{}); return err },
			"Put": func() error {
				_, err := client.Put(t.Context(), c, stored, store.Condition{})
				return err
			},
			"List": func() error { return client.List(t.Context(), "index/", func(store.Info) error { return nil }) },
		} {
			before := log.count(secret)
			begun := time.Now()
			err := call()
			if !is(err, k.err) || err == nil {
				t.Errorf("%s: %v, want only %v", what, err, k.err)
				continue
			}
			if !strings.Contains(err.Error(), "nbc daemon: ") || !strings.Contains(err.Error(), k.text) {
				t.Errorf("%s: the text is %q, want %q in it", what, err, k.text)
			}
			if told := err.Error() + store.Hint(err); strings.Contains(told, "minio") || strings.Contains(told, "do something") {
				t.Errorf("%s: the build is told %q", what, told)
			}
			if took := time.Since(begun); took > DefaultPatience/2 {
				t.Errorf("%s took %v", what, took)
			}
			for begun := time.Now(); log.count(secret) == before; time.Sleep(time.Millisecond) { // it comes after the reply
				if time.Since(begun) > time.Minute {
					t.Errorf("%s: the log does not say why", what)
					break
				}
			}
		}
	}
}

// safeBuffer is a log that may be looked at while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *safeBuffer) count(text string) int { return strings.Count(s.String(), text) }

type hintedError struct{ error }

func (e *hintedError) Unwrap() error { return e.error }
func (e *hintedError) Hint() string  { return "do something" }

// TestIndexesAreNotKept changes what the daemon has passed on: the next one who asks gets the new one.
func TestIndexesAreNotKept(t *testing.T) {
	memory := storetest.Memory()
	client := serve(t, &Handler{Store: memory, Rules: everything})
	for i := range 3 {
		for key, data := range map[string][]byte{
			"index/a": anIndex(t, 1, fmt.Sprint("content", i)), "gc/state": fmt.Appendf(nil, `{"version":1,"epoch":%d}`, i+1),
			"format": fmt.Appendf(nil, "format %d", i),
		} {
			mustPut(t, memory, key, data)
			if o, err := client.Get(t.Context(), key, store.Read{}); err != nil || !bytes.Equal(o.Data, data) || o.Near {
				t.Errorf("Get %s: %q, %v", key, o.Data, err)
			}
		}
	}
}
