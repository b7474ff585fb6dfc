package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// proxy passes connections on to a server on this machine, counts their bytes and, to look like a server that is far
// away, holds everything back for half a round trip in each direction. It does not limit the bandwidth.
type proxy struct {
	address   string // of the proxy, host:port
	sent      atomic.Int64
	received  atomic.Int64
	roundTrip time.Duration

	target   string
	listener net.Listener
	all      sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]bool
}

func startProxy(ctx context.Context, target string, roundTrip time.Duration) (*proxy, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{
		address: l.Addr().String(), roundTrip: roundTrip, target: target, listener: l, open: map[net.Conn]bool{},
	}
	p.all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			p.all.Go(func() { p.serve(ctx, client) })
		}
	})
	return p, nil
}

// stop ends all connections and waits for what works on them.
func (p *proxy) stop() error {
	err := p.listener.Close()
	p.mu.Lock()
	for c := range p.open {
		_ = c.Close() // the other end finds out
	}
	p.open = nil
	p.mu.Unlock()
	p.all.Wait()
	return err
}

// keep notes a connection for stop, and says whether stop was not called yet.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		return false
	}
	p.open[c] = true
	return true
}

func (p *proxy) serve(ctx context.Context, client net.Conn) {
	defer func() {
		_ = client.Close()
		p.mu.Lock()
		delete(p.open, client)
		p.mu.Unlock()
	}()
	if !p.keep(client) {
		return
	}
	if p.roundTrip > 0 {
		time.Sleep(p.roundTrip) // a connection takes one to be made
	}
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer func() {
		_ = server.Close()
		p.mu.Lock()
		delete(p.open, server)
		p.mu.Unlock()
	}()
	if !p.keep(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(server, client, &p.sent) })
	both.Go(func() { p.pass(client, server, &p.received) })
	both.Wait()
}

// pass copies from one connection to the other until one of them ends.
func (p *proxy) pass(to, from net.Conn, count *atomic.Int64) {
	var err error
	if p.roundTrip > 0 {
		err = delayed(to, from, p.roundTrip/2, count)
	} else {
		// In pieces, because the count is looked at while connections are open.
		for n := int64(1); n > 0 && err == nil; {
			n, err = io.CopyN(to, from, 32<<10)
			count.Add(n)
		}
	}
	if err == nil || errors.Is(err, io.EOF) {
		if tcp, ok := to.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
			return // the other direction may go on
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// inFlight is how many reads of up to 64 KB are under way in each direction of a connection at most.
const inFlight = 64

// delayed copies what it reads, later.
func delayed(to io.Writer, from io.Reader, delay time.Duration, count *atomic.Int64) error {
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, inFlight)
	gone := make(chan struct{})
	var readErr error
	go func() {
		defer close(pieces)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				select {
				case pieces <- piece{append([]byte(nil), buf[:n]...), time.Now().Add(delay)}:
				case <-gone:
					return
				}
			}
			if err != nil {
				readErr = err
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		n, err := to.Write(p.data)
		count.Add(int64(n))
		if err != nil {
			close(gone)
			return err
		}
	}
	return readErr
}
