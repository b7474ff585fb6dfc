// Package storetest holds what tests of stores share: [Test], the conformance suite that every [store.Store] and every
// Store around a Store must pass; [Memory], the simplest store that does; [Faulty], which fails as a test wants it; and
// [S3], a real S3 server.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"nbc/transfer/store"
)

// hurry bounds how long a call may take that was told to stop. A store that goes on is found out, a busy machine is
// not.
const hurry = 10 * time.Second

// Test checks that what open returns keeps the promises of [store.Store]. Each call of open must return a store with no
// objects, and leave its end to t.Cleanup; afterwards no goroutine may be left.
func Test(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"Absent", testAbsent},
		{"PutGet", testPutGet},
		{"Replace", testReplace},
		{"Empty", testEmpty},
		{"Large", testLarge},
		{"Ranges", testRanges},
		{"Keys", testKeys},
		{"ListOrder", testListOrder},
		{"ListMany", testListMany},
		{"ListStops", testListStops},
		{"Delete", testDelete},
		{"Conditions", testConditions},
		{"OneWinner", testOneWinner},
		{"Counter", testCounter},
		{"PutAgainstSwap", testPutAgainstSwap},
		{"GetWhileReplaced", testGetWhileReplaced},
		{"Concurrent", testConcurrent},
		{"Cancelled", testCancelled},
		{"CancelledMeanwhile", testCancelledMeanwhile},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, leaks) }) // after those of open
			c.test(t, open(t))
		})
	}
}

func put(t *testing.T, s store.Store, key string, data []byte) (version string) {
	t.Helper()
	version, err := s.Put(t.Context(), key, data, store.Condition{})
	if err != nil {
		t.Fatalf("Put %s: %v", key, err)
	}
	if version == "" {
		t.Fatalf("Put %s returned no version", key)
	}
	return version
}

func get(t *testing.T, s store.Store, key string) store.Object {
	t.Helper()
	o, err := s.Get(t.Context(), key, store.Read{})
	if err != nil {
		t.Fatalf("Get %s: %v", key, err)
	}
	if o.Size != int64(len(o.Data)) {
		t.Fatalf("Get %s returned %d bytes and size %d", key, len(o.Data), o.Size)
	}
	return o
}

func list(t *testing.T, s store.Store, prefix string) (keys []string) {
	t.Helper()
	err := s.List(t.Context(), prefix, func(i store.Info) error {
		keys = append(keys, i.Key)
		return nil
	})
	if err != nil {
		t.Fatalf("List %q: %v", prefix, err)
	}
	return keys
}

// wantOnly checks that err is of one of a Store's kinds and of no other.
func wantOnly(t *testing.T, what string, err, kind error) {
	t.Helper()
	for _, k := range []error{
		store.ErrNotExist, store.ErrRefused, store.ErrUnavailable, store.ErrConflict, store.ErrTooLarge, fs.ErrInvalid,
	} {
		if errors.Is(err, k) != (k == kind) {
			t.Errorf("%s: %v; want only %q", what, err, kind)
		}
	}
}

func random(n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = r.Read(data) // never fails
	return data
}

func testAbsent(t *testing.T, s store.Store) {
	for _, r := range []store.Read{{}, {Offset: 5}, {Length: 5}, {Max: 1}} {
		_, err := s.Get(t.Context(), "chunks/ab/none", r)
		wantOnly(t, "Get of an absent object", err, store.ErrNotExist)
	}
	put(t, s, "chunks/ab/some", []byte("x"))
	for _, key := range []string{"chunks/ab/none", "chunks/ab", "chunks", "chunks/ab/som", "chunks/ab/some/x", "format"} {
		_, err := s.Get(t.Context(), key, store.Read{})
		wantOnly(t, "Get "+key, err, store.ErrNotExist)
	}
	if keys := list(t, s, "index/"); len(keys) != 0 {
		t.Errorf("List of nothing yields %q", keys)
	}
}

func testPutGet(t *testing.T, s store.Store) {
	data := random(1000)
	given := bytes.Clone(data)
	version := put(t, s, "chunks/ab/x", given)
	if !bytes.Equal(given, data) {
		t.Fatal("Put changed the data")
	}
	clear(given) // the store may not have kept it
	o := get(t, s, "chunks/ab/x")
	if !bytes.Equal(o.Data, data) {
		t.Fatal("Get returns other bytes than were put")
	}
	if o.Version != version {
		t.Errorf("Get returns version %q, Put %q", o.Version, version)
	}
	clear(o.Data) // it belongs to the caller
	if o := get(t, s, "chunks/ab/x"); !bytes.Equal(o.Data, data) {
		t.Error("a caller's change of what Get returned is seen by the next one")
	}
}

func testReplace(t *testing.T, s store.Store) {
	seen := map[string]int{}
	for i := range 50 {
		// Equal lengths: a store may not rely on the size to tell versions apart.
		data := fmt.Appendf(nil, "%08d", i)
		version := put(t, s, "index/name", data)
		if before, ok := seen[version]; ok {
			t.Fatalf("states %d and %d of an object have the same version %q", before, i, version)
		}
		seen[version] = i
		if o := get(t, s, "index/name"); !bytes.Equal(o.Data, data) || o.Version != version {
			t.Fatalf("after Put of %s, version %s: Get returns %s, version %s", data, version, o.Data, o.Version)
		}
	}
	if keys := list(t, s, ""); !slices.Equal(keys, []string{"index/name"}) {
		t.Errorf("after Puts of one object List yields %q", keys)
	}
}

func testEmpty(t *testing.T, s store.Store) {
	version := put(t, s, "index/empty", nil)
	for _, r := range []store.Read{{}, {Length: 10}, {Offset: 1}, {Offset: 1, Length: 1}} {
		o, err := s.Get(t.Context(), "index/empty", r)
		if err != nil || len(o.Data) != 0 || o.Size != 0 || o.Version != version {
			t.Errorf("Get %+v of an empty object of version %q: %+v, %v", r, version, o, err)
		}
	}
	err := s.List(t.Context(), "index/", func(i store.Info) error {
		if i.Key != "index/empty" || i.Size != 0 || i.Version != version {
			t.Errorf("List yields %+v", i)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func testLarge(t *testing.T, s store.Store) {
	data := random(17<<20 + 1)
	put(t, s, "index/large", data)
	if o := get(t, s, "index/large"); !bytes.Equal(o.Data, data) {
		t.Error("Get returns other bytes than were put")
	}
	o, err := s.Get(t.Context(), "index/large", store.Read{Offset: 16 << 20, Length: 10, Max: 10})
	if err != nil || !bytes.Equal(o.Data, data[16<<20:16<<20+10]) || o.Size != int64(len(data)) {
		t.Errorf("Get of a part: %d bytes, size %d, %v", len(o.Data), o.Size, err)
	}
	_, err = s.Get(t.Context(), "index/large", store.Read{Max: 17 << 20})
	wantOnly(t, "Get of more than Max", err, store.ErrTooLarge)
}

func testRanges(t *testing.T, s store.Store) {
	data := random(100)
	version := put(t, s, "index/x", data)
	for _, offset := range []int64{0, 1, 50, 99, 100, 101, 1000, 1 << 40} {
		for _, length := range []int64{0, 1, 49, 50, 99, 100, 101, 1 << 40} {
			want := data[min(offset, 100):]
			if length > 0 {
				want = want[:min(length, int64(len(want)))]
			}
			for _, limit := range []int64{0, 1, 50, 100, 101} {
				r := store.Read{Offset: offset, Length: length, Max: limit}
				o, err := s.Get(t.Context(), "index/x", r)
				if limit > 0 && int64(len(want)) > limit {
					wantOnly(t, fmt.Sprintf("Get %+v", r), err, store.ErrTooLarge)
					continue
				}
				if err != nil || !bytes.Equal(o.Data, want) || o.Size != 100 || o.Version != version {
					t.Errorf("Get %+v: %d bytes, want %d; size %d, version %q, %v", r, len(o.Data), len(want), o.Size,
						o.Version, err)
				}
			}
		}
	}
	for _, r := range []store.Read{{Offset: -1}, {Length: -1}, {Max: -1}} {
		_, err := s.Get(t.Context(), "index/x", r)
		wantOnly(t, fmt.Sprintf("Get %+v", r), err, fs.ErrInvalid)
	}
}

func testKeys(t *testing.T, s store.Store) {
	keys := []string{
		"format", "a", "Z/z", "index/~2e~2Fx", "index/a+b", "index/a=b", "index/-", "index/--help", "index/_", "index/@",
		"index/...", "index/.a", "index/a..b", "index/ab", "index/aB", "index/+", "index/+20", "index/=",
		"gc/m/" + strings.Repeat("d", 250), "a.b/c/d/e/f/g/h",
	}
	for _, key := range keys {
		put(t, s, key, []byte("this is "+key))
	}
	for _, key := range keys {
		if o := get(t, s, key); string(o.Data) != "this is "+key {
			t.Errorf("Get %s returns %q", key, o.Data)
		}
	}
	slices.Sort(keys)
	if got := list(t, s, ""); !slices.Equal(got, keys) {
		t.Errorf("List yields %q\nwant %q", got, keys)
	}

	for _, key := range []string{
		"", "/", "/etc/passwd", "../x", "index/../../x", "index/..", ".", "./x", "index//x", "index/", "index/a b",
		"index/a\x00b", "index/a\nb", "index/ä", "index/a\\b", "index/a?b", "index/a%2fb", ",lock",
		strings.Repeat("x", store.MaxElement+1), strings.Repeat("x/", store.MaxKey/2) + "x",
	} {
		_, err := s.Get(t.Context(), key, store.Read{})
		wantOnly(t, fmt.Sprintf("Get %q", key), err, fs.ErrInvalid)
		_, err = s.Put(t.Context(), key, nil, store.Condition{})
		wantOnly(t, fmt.Sprintf("Put %q", key), err, fs.ErrInvalid)
		err = s.Delete(t.Context(), "a", key)
		wantOnly(t, fmt.Sprintf("Delete %q", key), err, fs.ErrInvalid)
	}
	if got := list(t, s, ""); !slices.Equal(got, keys) {
		t.Errorf("after calls with wrong keys List yields %q\nwant %q", got, keys)
	}
}

func testListOrder(t *testing.T, s store.Store) {
	// Folders and files sort by their whole keys: "." and "-" come before "/", letters behind it.
	keys := []string{
		"i/a-b/x", "i/a.b/x", "i/a/c", "i/a/x", "i/a0", "i/ab/x", "i/b", "i/c+", "i/c+d/e", "i0", "j",
	}
	for i := range keys {
		put(t, s, keys[(i*7)%len(keys)], []byte(keys[(i*7)%len(keys)]))
	}
	slices.Sort(keys)
	for _, prefix := range []string{
		"", "i", "i/", "i/a", "i/a/", "i/a/x", "i/a/x/", "i/a.", "i/a0", "i/a00", "i/c", "i/c+", "i/c+/", "i0", "j/", "k",
		"/", "..", "../", "i//", "./", "i/a/../",
	} {
		var want []string
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		if got := list(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("List %q yields %q\nwant %q", prefix, got, want)
		}
	}
	err := s.List(t.Context(), "", func(i store.Info) error {
		if o := get(t, s, i.Key); i.Size != o.Size || i.Version != o.Version {
			t.Errorf("List yields %+v, Get size %d and version %q", i, o.Size, o.Version)
		}
		if age := time.Since(i.Modified); age < -time.Hour || age > time.Hour {
			t.Errorf("%s was modified at %v, that is %v ago", i.Key, i.Modified, age)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// many is more than one page of an S3 listing, and of a multi-object delete.
const many = 1100

func putMany(t *testing.T, s store.Store) (keys []string) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(64)
	for i := range many {
		key := fmt.Sprintf("chunks/%02x/%04d", i%7, i)
		keys = append(keys, key)
		group.Go(func() error {
			_, err := s.Put(ctx, key, []byte(key), store.Condition{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(keys)
	return keys
}

func testListMany(t *testing.T, s store.Store) {
	keys := putMany(t, s)
	if got := list(t, s, "chunks/"); !slices.Equal(got, keys) {
		t.Errorf("List yields %d keys, want %d, in order", len(got), len(keys))
	}
	if err := s.Delete(t.Context(), keys[1:]...); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s, ""); !slices.Equal(got, keys[:1]) {
		t.Errorf("after a Delete of all but one List yields %d keys: %.100q", len(got), got)
	}
}

func testListStops(t *testing.T, s store.Store) {
	for _, key := range []string{"a", "b", "c"} {
		put(t, s, key, nil)
	}
	stop := errors.New("enough")
	var got []string
	err := s.List(t.Context(), "", func(i store.Info) error {
		got = append(got, i.Key)
		if i.Key == "b" {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("List with an error at b yields %q and returns %v", got, err)
	}
	// What is done to the store meanwhile does not confuse it.
	err = s.List(t.Context(), "", func(i store.Info) error {
		return s.Delete(t.Context(), "a", "b", "c")
	})
	if err != nil {
		t.Errorf("List while everything is deleted: %v", err)
	}
}

func testDelete(t *testing.T, s store.Store) {
	put(t, s, "chunks/ab/x", []byte("x"))
	put(t, s, "chunks/ab/y", []byte("y"))
	for _, keys := range [][]string{
		nil,
		{"chunks/ab/x"},
		{"chunks/ab/x"},
		{"none"},
		{"chunks/cd/none"},
		{"chunks/ab/y/none"},
		{"chunks/ab"},
		{"chunks"},
		{"none", "chunks/ab/x"},
	} {
		if err := s.Delete(t.Context(), keys...); err != nil {
			t.Errorf("Delete %q: %v", keys, err)
		}
	}
	_, err := s.Get(t.Context(), "chunks/ab/x", store.Read{})
	wantOnly(t, "Get of a deleted object", err, store.ErrNotExist)
	if got := list(t, s, ""); !slices.Equal(got, []string{"chunks/ab/y"}) {
		t.Errorf("after Delete List yields %q", got)
	}
	if err := s.Delete(t.Context(), "chunks/ab/y"); err != nil {
		t.Error(err)
	}
	put(t, s, "chunks/ab/x", []byte("again"))
	if o := get(t, s, "chunks/ab/x"); string(o.Data) != "again" {
		t.Errorf("an object that was put after a Delete is %q", o.Data)
	}
}

func testConditions(t *testing.T, s store.Store) {
	const key = "gc/state"
	swap := func(data string, c store.Condition) (string, error) { return s.Put(t.Context(), key, []byte(data), c) }

	_, err := swap("0", store.Condition{IfVersion: "0123456789abcdef0123456789abcdef"})
	wantOnly(t, "IfVersion on an absent object", err, store.ErrConflict)
	if keys := list(t, s, ""); len(keys) != 0 {
		t.Fatalf("a refused Put left %q", keys)
	}
	first, err := swap("1", store.Condition{IfAbsent: true})
	if err != nil {
		t.Fatalf("IfAbsent on an absent object: %v", err)
	}
	_, err = swap("2", store.Condition{IfAbsent: true})
	wantOnly(t, "IfAbsent on an object", err, store.ErrConflict)
	_, err = swap("2", store.Condition{IfVersion: first + "x"})
	wantOnly(t, "IfVersion with a wrong version", err, store.ErrConflict)
	if o := get(t, s, key); string(o.Data) != "1" || o.Version != first {
		t.Fatalf("after refused Puts the object is %q, version %q; want 1, %q", o.Data, o.Version, first)
	}
	second, err := swap("2", store.Condition{IfVersion: first})
	if err != nil {
		t.Fatalf("IfVersion with the right version: %v", err)
	}
	_, err = swap("3", store.Condition{IfVersion: first})
	wantOnly(t, "IfVersion with a stale version", err, store.ErrConflict)
	if o := get(t, s, key); string(o.Data) != "2" || o.Version != second {
		t.Fatalf("the object is %q, version %q; want 2, %q", o.Data, o.Version, second)
	}
	_, err = swap("3", store.Condition{IfAbsent: true, IfVersion: second})
	wantOnly(t, "a condition that contradicts itself", err, fs.ErrInvalid)

	third := put(t, s, key, []byte("3")) // without a condition it always replaces
	_, err = swap("4", store.Condition{IfVersion: second})
	wantOnly(t, "IfVersion with the version before a Put", err, store.ErrConflict)
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	_, err = swap("4", store.Condition{IfVersion: third})
	wantOnly(t, "IfVersion after a Delete", err, store.ErrConflict)
	if _, err = swap("4", store.Condition{IfAbsent: true}); err != nil {
		t.Errorf("IfAbsent after a Delete: %v", err)
	}
}

func testOneWinner(t *testing.T, s store.Store) {
	for round := range 4 {
		for _, condition := range []string{"IfAbsent", "IfVersion"} {
			key := fmt.Sprintf("gc/%s%d", condition, round)
			c := store.Condition{IfAbsent: true}
			if condition == "IfVersion" {
				c = store.Condition{IfVersion: put(t, s, key, []byte("before"))}
			}
			const rivals = 16
			var winners []int
			var mu sync.Mutex
			var all sync.WaitGroup
			begin := make(chan struct{})
			for i := range rivals {
				all.Go(func() {
					<-begin
					_, err := s.Put(t.Context(), key, []byte(strconv.Itoa(i)), c)
					if err == nil {
						mu.Lock()
						winners = append(winners, i)
						mu.Unlock()
						return
					}
					wantOnly(t, condition+" of a loser", err, store.ErrConflict)
				})
			}
			close(begin)
			all.Wait()
			if len(winners) != 1 {
				t.Fatalf("%s: %d of %d win", condition, len(winners), rivals)
			}
			if o := get(t, s, key); string(o.Data) != strconv.Itoa(winners[0]) {
				t.Errorf("%s: %d wins, the object is %s", condition, winners[0], o.Data)
			}
		}
	}
}

// testCounter lets several add to one number by compare-and-swap. One that is lost shows in the sum.
func testCounter(t *testing.T, s store.Store) {
	const workers, each = 4, 10
	put(t, s, "gc/state", []byte("0"))
	var group errgroup.Group
	for range workers {
		group.Go(func() error {
			for done := 0; done < each; {
				o, err := s.Get(t.Context(), "gc/state", store.Read{})
				if err != nil {
					return err
				}
				n, err := strconv.Atoi(string(o.Data))
				if err != nil {
					return err
				}
				_, err = s.Put(t.Context(), "gc/state", []byte(strconv.Itoa(n+1)), store.Condition{IfVersion: o.Version})
				if err == nil {
					done++
				} else if !errors.Is(err, store.ErrConflict) {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if o := get(t, s, "gc/state"); string(o.Data) != strconv.Itoa(workers*each) {
		t.Errorf("the counter is %s, want %d", o.Data, workers*each)
	}
}

// testPutAgainstSwap lets one put states 0, 1, 2, … while another replaces what it has read by "over" that, on
// condition that it is still there. So a state whose Put has returned may only be replaced by one that has seen it.
func testPutAgainstSwap(t *testing.T, s store.Store) {
	const key, states = "index/name", 100
	put(t, s, key, []byte("0"))
	stop := make(chan struct{})
	var group errgroup.Group
	group.Go(func() error {
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			o, err := s.Get(t.Context(), key, store.Read{})
			if err != nil {
				return err
			}
			state := strings.TrimPrefix(string(o.Data), "over ")
			_, err = s.Put(t.Context(), key, []byte("over "+state), store.Condition{IfVersion: o.Version})
			if err != nil && !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
	})
	for i := range states {
		want := strconv.Itoa(i)
		put(t, s, key, []byte(want))
		if o := get(t, s, key); strings.TrimPrefix(string(o.Data), "over ") != want {
			t.Errorf("after Put of state %s the object is %q", want, o.Data)
			break
		}
	}
	close(stop)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func testGetWhileReplaced(t *testing.T, s store.Store) {
	const key = "index/name"
	// Each state is one byte repeated, and has a length of its own.
	state := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 200_000+1000*(i%50)) }
	put(t, s, key, state(0))
	var stop atomic.Bool
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			for !stop.Load() {
				o, err := s.Get(t.Context(), key, store.Read{})
				if err != nil {
					return err
				}
				if len(o.Data) == 0 || o.Size != int64(len(o.Data)) || !bytes.Equal(o.Data, state(int(o.Data[0]))) {
					return fmt.Errorf("a Get meanwhile returns a mixture: %d bytes, size %d", len(o.Data), o.Size)
				}
			}
			return nil
		})
	}
	for i := range 100 {
		put(t, s, key, state(i))
	}
	stop.Store(true)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func testConcurrent(t *testing.T, s store.Store) {
	var group errgroup.Group
	for i := range 64 {
		group.Go(func() error {
			key := fmt.Sprintf("chunks/%02x/%d", i%5, i)
			data := random(10_000 + i)
			for range 5 {
				if _, err := s.Put(t.Context(), key, data, store.Condition{}); err != nil {
					return err
				}
				o, err := s.Get(t.Context(), key, store.Read{})
				if err != nil {
					return err
				}
				if !bytes.Equal(o.Data, data) {
					return fmt.Errorf("%s: other bytes than were put", key)
				}
				found := false
				err = s.List(t.Context(), key, func(info store.Info) error {
					found = found || info.Key == key && info.Version == o.Version
					return nil
				})
				if err != nil || !found {
					return fmt.Errorf("%s is listed: %v, %w", key, found, err)
				}
				if err := s.Delete(t.Context(), key); err != nil {
					return err
				}
				if _, err := s.Get(t.Context(), key, store.Read{}); !errors.Is(err, store.ErrNotExist) {
					return fmt.Errorf("%s after its Delete: %w", key, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// methods calls each method once.
func methods(s store.Store) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Get": func(ctx context.Context) error {
			_, err := s.Get(ctx, "index/a", store.Read{})
			return err
		},
		"Put": func(ctx context.Context) error {
			_, err := s.Put(ctx, "index/new", []byte("x"), store.Condition{})
			return err
		},
		"Put IfAbsent": func(ctx context.Context) error {
			_, err := s.Put(ctx, "index/new", []byte("x"), store.Condition{IfAbsent: true})
			return err
		},
		"List":   func(ctx context.Context) error { return s.List(ctx, "", func(store.Info) error { return nil }) },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, "index/a") },
	}
}

func testCancelled(t *testing.T, s store.Store) {
	put(t, s, "index/a", []byte("a"))
	cause := errors.New("the test has ended it")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	late, cancelLate := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelLate()
	for name, call := range methods(s) {
		for ctx, want := range map[context.Context]error{cancelled: cause, late: context.DeadlineExceeded} {
			begun := time.Now()
			err := call(ctx)
			if !errors.Is(err, want) {
				t.Errorf("%s with a context that has ended: %v, want %v", name, err, want)
			}
			wantOnly(t, name+" with a context that has ended", err, nil)
			if took := time.Since(begun); took > hurry {
				t.Errorf("%s took %v", name, took)
			}
		}
	}
	if keys := list(t, s, ""); !slices.Equal(keys, []string{"index/a"}) {
		t.Errorf("calls that were cancelled before they began left %q", keys)
	}
}

// testCancelledMeanwhile ends the context at some moment of each call. Whatever becomes of it, it returns soon, an
// error is the context's, and the store is good afterwards.
func testCancelledMeanwhile(t *testing.T, s store.Store) {
	old, large := random(1<<20), random(4<<20)
	put(t, s, "index/a", old)
	put(t, s, "index/b", old)
	for i := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(i*i)*100*time.Microsecond, cancel)
		for name, call := range map[string]func() error{
			"Get": func() error { _, err := s.Get(ctx, "index/a", store.Read{}); return err },
			"Put": func() error { _, err := s.Put(ctx, "index/b", large, store.Condition{}); return err },
			"List": func() error {
				return s.List(ctx, "", func(store.Info) error {
					cancel()
					return nil
				})
			},
		} {
			begun := time.Now()
			err := call()
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s whose context ends meanwhile: %v", name, err)
			}
			if took := time.Since(begun); took > hurry {
				t.Errorf("%s took %v", name, took)
			}
		}
		timer.Stop()
		cancel()
		if o := get(t, s, "index/b"); !bytes.Equal(o.Data, old) && !bytes.Equal(o.Data, large) {
			t.Fatalf("after a Put that was cancelled the object has %d bytes, neither the old nor the new ones", len(o.Data))
		}
	}
	if keys := list(t, s, ""); !slices.Equal(keys, []string{"index/a", "index/b"}) {
		t.Errorf("afterwards List yields %q", keys)
	}
}
