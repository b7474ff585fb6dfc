package remote

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"nbc/transfer/store"
)

// Limits bound what builds can make a daemon do at the same time. Who comes to a limit waits, for a while; nothing grows.
// A client is a user: all processes of one UID together, since each Nix build at work has a UID of its own. The zero
// value of each field means its default.
type Limits struct {
	// Conns are open connections, of all clients and of one. Beyond the first nobody is accepted; those of one client
	// beyond the second are closed, or else it could keep the others out. Each takes a descriptor and 20 KB of memory.
	Conns, ClientConns int
	// Requests are those that are being served, of all clients and of one.
	Requests, ClientRequests int
	// FarRequests are those of the far store, of all clients and of one. As many reads of near copies are under way beside
	// them at most.
	FarRequests, ClientFarRequests int
	// Lists are listings, of all clients and of one: each is many requests of the far store, one after another.
	Lists, ClientLists int
	// Bytes are those of objects on their way, of all clients and of one. It is the better part of the memory that a
	// daemon takes. A quarter of it is kept for clients that have little.
	Bytes, ClientBytes int64
	// Object bounds an index, or whatever else is not a chunk, in bytes.
	Object int64
	// IndexMemory bounds what indexes may take that are being looked at, in bytes. One that takes more is looked at alone;
	// of each client it is one at a time.
	IndexMemory int64
	// Wait is how long a request waits for its turn, for room, or for the far store's, before it is told that there is
	// none: a build had better begin cold.
	Wait time.Duration
	// Idle is how long a peer may keep the daemon waiting in one request, beside what the bytes take that it sends or
	// reads at SlowRate bytes a second. Header ends a connection whose request is not there.
	Idle, Header time.Duration
	SlowRate     int64
}

// The defaults. Eight restores at once ask for 8 × 64 chunks; those that there is no room for, 256 KB each before it is
// known how well they compress, wait for a moment. A save of one build has 64 connections.
const (
	DefaultConns             = 2048
	DefaultClientConns       = 1024
	DefaultRequests          = 512
	DefaultClientRequests    = 256
	DefaultFarRequests       = 128
	DefaultClientFarRequests = 64
	DefaultLists             = 16
	DefaultClientLists       = 4
	DefaultBytes             = 64 << 20
	DefaultClientBytes       = 32 << 20
	DefaultObject            = 64 << 20
	DefaultIndexMemory       = 64 << 20 // what one of a million files takes
	DefaultWait              = 5 * time.Second
	DefaultIdle              = 10 * time.Second
	DefaultHeader            = 10 * time.Second
	DefaultSlowRate          = 1 << 20
)

// maxHeader bounds the header of a request in bytes. Those of a client have some 200.
const maxHeader = 8 << 10

// withDefaults returns l with a value in every field, such that each limit of a client is within that of all.
func (l Limits) withDefaults() Limits {
	number := func(p *int, value int) {
		if *p <= 0 {
			*p = value
		}
	}
	size := func(p *int64, value int64) {
		if *p <= 0 {
			*p = value
		}
	}
	duration := func(p *time.Duration, value time.Duration) {
		if *p <= 0 {
			*p = value
		}
	}
	number(&l.Conns, DefaultConns)
	number(&l.ClientConns, DefaultClientConns)
	number(&l.Requests, DefaultRequests)
	number(&l.ClientRequests, DefaultClientRequests)
	number(&l.FarRequests, DefaultFarRequests)
	number(&l.ClientFarRequests, DefaultClientFarRequests)
	number(&l.Lists, DefaultLists)
	number(&l.ClientLists, DefaultClientLists)
	size(&l.Bytes, DefaultBytes)
	size(&l.ClientBytes, DefaultClientBytes)
	size(&l.Object, DefaultObject)
	size(&l.IndexMemory, DefaultIndexMemory)
	size(&l.SlowRate, DefaultSlowRate)
	duration(&l.Wait, DefaultWait)
	duration(&l.Idle, DefaultIdle)
	duration(&l.Header, DefaultHeader)
	l.ClientConns = min(l.ClientConns, l.Conns)
	l.ClientRequests = min(l.ClientRequests, l.Requests)
	l.ClientFarRequests = min(l.ClientFarRequests, l.FarRequests)
	l.ClientLists = min(l.ClientLists, l.Lists)
	l.ClientBytes = min(l.ClientBytes, l.Bytes-l.reserve())
	l.Object = min(l.Object, store.MaxObject)
	return l
}

// reserve is the part of Bytes that is kept for clients that have little, and share is how much of it one may have: the
// first piece of an index that it gets, or some chunks. Without it two users that send as slowly as they may would keep
// everybody else out; so there have to be many.
func (l Limits) reserve() int64 { return l.Bytes / 4 }
func (l Limits) share() int64   { return min(smallObject, l.reserve()) }

// sending is how long n bytes take a peer that is as slow as it may be.
func (l Limits) sending(n int64) time.Duration {
	return time.Duration(float64(n) / float64(l.SlowRate) * float64(time.Second))
}

// acquirer is a semaphore, or what stands for one of some.
type acquirer interface {
	Acquire(ctx context.Context, n int64) error
	Release(n int64)
}

// acquire takes n of each of some semaphores, one after another, and waits for Wait at most for all of them. What it
// waits for is for the client to read.
func (l Limits) acquire(ctx context.Context, m *Metrics, what string, n int64, list ...acquirer) error {
	limited, cancel := context.WithTimeout(ctx, l.Wait)
	defer cancel()
	for i, s := range list {
		if s.Acquire(limited, n) == nil {
			continue
		}
		for _, s := range list[:i] {
			s.Release(n)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m.busy.WithLabelValues(what).Inc()
		return busy(what)
	}
	return nil
}

// client is what one user has under way.
type client struct {
	requests, bytes, share, far, near, lists, indexes *semaphore.Weighted
	conns                                             int // by clients.mu
}

// clients knows the clients that are connected. One that has left is forgotten.
type clients struct {
	limits                   Limits
	requests, bytes, reserve *semaphore.Weighted // bytes without the reserve
	metrics                  *Metrics
	// anyone is all peers together of which nothing is known.
	anyone *client

	mu   sync.Mutex
	byID map[uint32]*client
}

func newClients(l Limits, m *Metrics) *clients {
	c := &clients{
		limits: l, requests: semaphore.NewWeighted(int64(l.Requests)), bytes: semaphore.NewWeighted(l.Bytes - l.reserve()),
		reserve: semaphore.NewWeighted(l.reserve()), metrics: m, byID: map[uint32]*client{},
	}
	c.anyone = c.make()
	return c
}

func (c *clients) make() *client {
	return &client{
		requests: semaphore.NewWeighted(int64(c.limits.ClientRequests)), bytes: semaphore.NewWeighted(c.limits.ClientBytes),
		share: semaphore.NewWeighted(c.limits.share()), far: semaphore.NewWeighted(int64(c.limits.ClientFarRequests)),
		near:  semaphore.NewWeighted(int64(c.limits.ClientFarRequests)),
		lists: semaphore.NewWeighted(int64(c.limits.ClientLists)), indexes: semaphore.NewWeighted(1),
	}
}

// connect returns the client that a peer is, or nil if it has too many connections.
func (c *clients) connect(p Peer) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.anyone
	if p.Known {
		if one = c.byID[p.UID]; one == nil {
			one = c.make()
		}
	}
	if one.conns >= c.limits.ClientConns {
		return nil
	}
	one.conns++
	if p.Known {
		c.byID[p.UID] = one
	}
	return one
}

func (c *clients) disconnect(p Peer, one *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one.conns--
	// A request of it may still be ending; what that has taken it gives back to a client that nobody counts with.
	if one.conns == 0 && p.Known && c.byID[p.UID] == one {
		delete(c.byID, p.UID)
	}
}

// begin waits until a request of the client may be served, and returns what ends it.
func (c *clients) begin(ctx context.Context, one *client) (end func(), err error) {
	if err := c.limits.acquire(ctx, c.metrics, aRequest, 1, one.requests, c.requests); err != nil {
		return nil, err
	}
	c.metrics.inFlight.Inc()
	return func() {
		c.metrics.inFlight.Dec()
		c.requests.Release(1)
		one.requests.Release(1)
	}, nil
}

// room is memory that was set aside for the bytes of objects: of that of all clients, and of that of one.
type room struct {
	clients  *clients
	client   *client
	size     int64
	reserved bool // it is of the reserve
}

// take waits until there is room for n bytes of an object. One that is larger than what one client may have gets all of
// that, and leaves the others theirs.
func (c *clients) take(ctx context.Context, one *client, n int64) (*room, error) {
	r := &room{clients: c, client: one, size: min(n, c.limits.ClientBytes)}
	if err := c.limits.acquire(ctx, c.metrics, anObject, r.size, one.bytes, (*roomOfAll)(r)); err != nil {
		return nil, err
	}
	c.metrics.bytesHeld.Add(float64(r.size))
	return r, nil
}

// roomOfAll is a room's part of that of all clients: of the reserve if there is no other at the moment, and the client has
// little of it.
type roomOfAll room

func (r *roomOfAll) Acquire(ctx context.Context, n int64) error {
	if r.clients.bytes.TryAcquire(n) {
		return nil
	}
	if !r.client.share.TryAcquire(n) {
		return r.clients.bytes.Acquire(ctx, n)
	}
	// Whichever has room first.
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	reserved := make(chan bool, 1)
	go func() {
		ok := r.clients.reserve.Acquire(both, n) == nil
		if ok {
			cancel()
		}
		reserved <- ok
	}()
	err := r.clients.bytes.Acquire(both, n)
	cancel()
	r.reserved = <-reserved
	switch {
	case r.reserved && err == nil: // both
		r.clients.bytes.Release(n)
		return nil
	case r.reserved:
		return nil
	}
	r.client.share.Release(n)
	return err
}

func (r *roomOfAll) Release(n int64) {
	if !r.reserved {
		r.clients.bytes.Release(n)
		return
	}
	r.clients.reserve.Release(n)
	r.client.share.Release(n)
}

// shrink gives back what is more than n bytes.
func (r *room) shrink(n int64) {
	more := r.size - n
	if more <= 0 {
		return
	}
	r.size = n
	r.client.bytes.Release(more)
	(*roomOfAll)(r).Release(more)
	r.clients.metrics.bytesHeld.Sub(float64(more))
}

// free gives everything back. There may be no room.
func (r *room) free() {
	if r != nil {
		r.shrink(0)
	}
}

// turn is whose requests of the far store those of an exchange are, and how many of them are under way. The context of a
// call has it; without one nobody's limit counts.
type turn struct {
	client *client
	away   atomic.Int64
}

// turnKey is where a context has its *turn.
type turnKey struct{}

// take waits until the client may make another request of the far store, and returns what ends it.
func (t *turn) take(ctx context.Context, l Limits, m *Metrics) (end func(), err error) {
	if t == nil {
		return func() {}, nil
	}
	return t.takeOf(ctx, l, m, "a request of its store", t.client.far)
}

// takeOf takes one of each of some semaphores. As long as others of this exchange have what it takes it waits on: they
// give back what it waits for.
func (t *turn) takeOf(ctx context.Context, l Limits, m *Metrics, what string, list ...acquirer) (end func(), err error) {
	for {
		going := t.away.Load() > 0
		err := l.acquire(ctx, m, what, 1, list...)
		if err == nil {
			t.away.Add(1)
			return func() {
				t.away.Add(-1)
				for _, s := range list {
					s.Release(1)
				}
			}, nil
		}
		if !isBusy(err) || !going || ctx.Err() != nil {
			return nil, err
		}
	}
}

// turnOf returns the turn of a call, or nil.
func turnOf(ctx context.Context) *turn {
	t, _ := ctx.Value(turnKey{}).(*turn)
	return t
}
