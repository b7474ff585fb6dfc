package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// DefaultDrain is how long requests have to end when a daemon is told to. The largest index is sent in less.
const DefaultDrain = 30 * time.Second

// Serve serves what connects to l, until ctx ends: then nobody is accepted any more, and it returns when all requests
// have ended, or when drain has passed (0 means DefaultDrain) and it has broken them off. It closes l. It returns an
// error only if it could not go on.
func (h *Handler) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	h.start()
	if drain <= 0 {
		drain = DefaultDrain
	}
	log := h.log()
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: h.limits.Header,
		// Longer than a client keeps one, 20 seconds.
		IdleTimeout:    6 * h.limits.Idle,
		MaxHeaderBytes: maxHeader,
		// OPTIONS is no request of the protocol.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c)
		},
		Protocols: new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	listening := newListener(l, h.clients, h.peerOf)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listening) }()
	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("accepting connections: %w", err), s.Close(), h.ended())
	case <-ctx.Done():
	}
	h.draining.Store(true)
	log.Info("draining", "for_seconds_at_most", drain.Seconds())
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := s.Shutdown(limited)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("requests were broken off", "after_seconds", drain.Seconds())
		err = s.Close()
	}
	<-served
	return errors.Join(err, h.ended())
}

// ended waits for what requests have left behind. Their connections are closed.
func (h *Handler) ended() error {
	h.requests.Wait()
	h.shared.wait()
	h.ledger.close()
	return nil
}

// listener accepts connections within the limits, and knows whose they are.
type listener struct {
	net.Listener
	clients *clients
	peerOf  func(net.Conn) Peer
	room    chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func newListener(l net.Listener, c *clients, peerOf func(net.Conn) Peer) *listener {
	return &listener{
		Listener: l, clients: c, peerOf: peerOf, room: make(chan struct{}, c.limits.Conns), closed: make(chan struct{}),
	}
}

// Accept waits for room before it accepts, so that those who wait do so in the kernel.
func (l *listener) Accept() (net.Conn, error) {
	for {
		select {
		case l.room <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.room
			return nil, err
		}
		peer := l.peerOf(c)
		client := l.clients.connect(peer)
		if client == nil {
			l.clients.metrics.turnedAway.Inc()
			_ = c.Close() // it was not used
			<-l.room
			continue
		}
		l.clients.metrics.connections.Inc()
		return &conn{Conn: c, peer: peer, client: client, listener: l}, nil
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// conn is a connection of a client.
type conn struct {
	net.Conn
	peer     Peer
	client   *client
	listener *listener
	once     sync.Once

	naming     sync.Once
	derivation string
}

// Close may be called more than once.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.listener.clients.metrics.connections.Dec()
		c.listener.clients.disconnect(c.peer, c.client)
		<-c.listener.room
	})
	return c.Conn.Close()
}

// attrs says for the log who it is.
func (c *conn) attrs() []any {
	if !c.peer.Known {
		return nil
	}
	c.naming.Do(func() { c.derivation = derivation(c.peer.PID) })
	attrs := []any{"uid", c.peer.UID, "pid", c.peer.PID}
	if c.derivation != "" {
		attrs = append(attrs, "derivation", c.derivation)
	}
	return attrs
}
