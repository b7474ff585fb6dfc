package remote

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"nbc/transfer/store"
)

// Limits bound what builds can make a daemon do at the same time. Who comes to a limit waits; nothing grows. A client
// is a user: all processes of one UID together, since each Nix build at work has a UID of its own. The zero value of
// each field means its default.
type Limits struct {
	// Conns are open connections, of all clients and of one. Beyond the first nobody is accepted; those of one client
	// beyond the second are closed, or else it could keep the others out. Each takes a descriptor and 20 KB of memory.
	Conns, ClientConns int
	// Requests are those that are being served, of all clients and of one.
	Requests, ClientRequests int
	// FarRequests are those of the far store, near copies included.
	FarRequests int
	// Bytes are those of objects on their way, of all clients and of one. It is the better part of the memory that a
	// daemon takes.
	Bytes, ClientBytes int64
	// Object bounds an index, or whatever else is not a chunk, in bytes.
	Object int64
	// Idle ends a connection on which no byte moves though the peer's turn has come, and Header one whose request is not
	// there. What a peer sends or takes must also come on by SlowRate bytes a second.
	Idle, Header time.Duration
	SlowRate     int64
}

// The defaults. Eight restores at once have 8 × 64 chunks under way, 163 KB each before it is known how well they
// compress; a save of one build has 64 connections.
const (
	DefaultConns          = 2048
	DefaultClientConns    = 1024
	DefaultRequests       = 512
	DefaultClientRequests = 256
	DefaultFarRequests    = 128
	DefaultBytes          = 64 << 20
	DefaultClientBytes    = 32 << 20
	DefaultObject         = 64 << 20
	DefaultIdle           = 30 * time.Second
	DefaultHeader         = 10 * time.Second
	DefaultSlowRate       = 1 << 20
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
	size(&l.Bytes, DefaultBytes)
	size(&l.ClientBytes, DefaultClientBytes)
	size(&l.Object, DefaultObject)
	size(&l.SlowRate, DefaultSlowRate)
	duration(&l.Idle, DefaultIdle)
	duration(&l.Header, DefaultHeader)
	l.ClientConns = min(l.ClientConns, l.Conns)
	l.ClientRequests = min(l.ClientRequests, l.Requests)
	l.ClientBytes = min(l.ClientBytes, l.Bytes)
	l.Object = min(l.Object, store.MaxObject)
	return l
}

// patience is how long n bytes may take a peer.
func (l Limits) patience(n int64) time.Duration {
	return l.Idle + time.Duration(float64(n)/float64(l.SlowRate)*float64(time.Second))
}

// client is what one user has under way.
type client struct {
	requests, bytes *semaphore.Weighted
	conns           int // by clients.mu
}

// clients knows the clients that are connected. One that has left is forgotten.
type clients struct {
	limits          Limits
	requests, bytes *semaphore.Weighted
	metrics         *Metrics
	// anyone is all peers together of which nothing is known.
	anyone *client

	mu   sync.Mutex
	byID map[uint32]*client
}

func newClients(l Limits, m *Metrics) *clients {
	c := &clients{
		limits: l, requests: semaphore.NewWeighted(int64(l.Requests)), bytes: semaphore.NewWeighted(l.Bytes), metrics: m,
		byID: map[uint32]*client{},
	}
	c.anyone = c.make()
	return c
}

func (c *clients) make() *client {
	return &client{
		requests: semaphore.NewWeighted(int64(c.limits.ClientRequests)), bytes: semaphore.NewWeighted(c.limits.ClientBytes),
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
	if err := one.requests.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.requests.Acquire(ctx, 1); err != nil {
		one.requests.Release(1)
		return nil, context.Cause(ctx)
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
	clients *clients
	client  *client
	size    int64
}

// take waits until there is room for n bytes of an object. One that is larger than what one client may have gets all of
// that, and leaves the others theirs.
func (c *clients) take(ctx context.Context, one *client, n int64) (*room, error) {
	n = min(n, c.limits.ClientBytes)
	if err := one.bytes.Acquire(ctx, n); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.bytes.Acquire(ctx, n); err != nil {
		one.bytes.Release(n)
		return nil, context.Cause(ctx)
	}
	c.metrics.bytesHeld.Add(float64(n))
	return &room{clients: c, client: one, size: n}, nil
}

// shrink gives back what is more than n bytes.
func (r *room) shrink(n int64) {
	more := r.size - n
	if more <= 0 {
		return
	}
	r.size = n
	r.client.bytes.Release(more)
	r.clients.bytes.Release(more)
	r.clients.metrics.bytesHeld.Sub(float64(more))
}

// free gives everything back.
func (r *room) free() { r.shrink(0) }
