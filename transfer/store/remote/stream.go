package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/transfer/store"
)

// This file has the replies that are streams: of chunks in the order in which they are there, and of a listing.

// wanted is a line of a request for chunks.
type wanted struct {
	key  string
	read store.Read
}

// parseWanted reads the body of such a request: on each line a key, the largest size in bytes that is wanted, and
// "fresh" if a near copy is not.
func parseWanted(body []byte) ([]wanted, error) {
	var list []wanted
	for line := range bytes.Lines(body) {
		text, ended := strings.CutSuffix(string(line), "\n")
		fields := strings.Split(text, " ")
		if !ended || len(fields) < 2 || len(fields) > 3 || len(fields) == 3 && fields[2] != "fresh" {
			return nil, invalid("line %d of the request: %.100q", len(list)+1, text)
		}
		w := wanted{key: fields[0]}
		if err := store.CheckKey(w.key); err != nil {
			return nil, invalid("line %d of the request: %v", len(list)+1, err)
		}
		if !isChunk(w.key) {
			return nil, invalid("line %d of the request: %s is no chunk", len(list)+1, w.key)
		}
		limit, err := strconv.ParseUint(fields[1], 10, 63)
		if err != nil || limit == 0 {
			return nil, invalid("line %d of the request: %.30q is no size", len(list)+1, fields[1])
		}
		w.read.Max = min(int64(limit), maxChunk)
		w.read.Fresh = len(fields) == 3
		if list = append(list, w); len(list) > maxKeys {
			return nil, invalid("more than %d chunks in one request", maxKeys)
		}
	}
	return list, nil
}

// fetched is a chunk that is there, or will not be.
type fetched struct {
	n      int
	object store.Object
	err    error
	room   *room // nil if there was none
}

// chunks replies with many chunks.
func (x *exchange) chunks(values url.Values) error {
	if len(values) > 0 {
		return invalid("a request for chunks has no parameters")
	}
	n, err := x.length(maxKeysBody)
	if err != nil {
		return err
	}
	body, err := x.read(n)
	if err != nil {
		return err
	}
	list, err := parseWanted(body)
	if err != nil {
		return err
	}
	x.objects = len(list)
	if g, ok := x.view().(guard); ok {
		if err := g.known(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(x.r.Context())
	results := make(chan fetched)
	go func() {
		defer close(results)
		x.fetch(ctx, list, results)
	}()
	defer func() {
		cancel()
		for f := range results { // those that nobody wants any more
			f.room.free()
		}
	}()
	return x.sendChunks(results)
}

// fetch gets the chunks and gives each to results, which is read until it is closed.
func (x *exchange) fetch(ctx context.Context, list []wanted, results chan<- fetched) {
	var g errgroup.Group
	view := x.view()
	for n, w := range list {
		// Room is taken in the order of the request, before a goroutine is.
		room, err := x.takePatiently(ctx, w.read.Max)
		if err != nil {
			for ; n < len(list) && ctx.Err() == nil; n++ {
				results <- fetched{n: n, err: err}
			}
			break // or the peer has left
		}
		x.held.Add(1)
		g.Go(func() error {
			o, err := view.Get(ctx, w.key, w.read)
			room.shrink(int64(len(o.Data)))
			results <- fetched{n, o, err, room}
			return nil
		})
	}
	_ = g.Wait() // the functions return nothing but nil
}

// takePatiently takes room, and waits on as long as chunks of this request have some: they give back what it waits for.
func (x *exchange) takePatiently(ctx context.Context, n int64) (*room, error) {
	for {
		holds := x.held.Load() > 0
		room, err := x.h.clients.take(ctx, x.client, n)
		if err == nil || ctx.Err() != nil || !isBusy(err) || !holds {
			return room, err
		}
	}
}

// sendChunks writes what comes until results is closed. Of what is in results when it returns an error nothing is sent.
func (x *exchange) sendChunks(results <-chan fetched) error {
	beats := time.NewTicker(x.h.beat)
	defer beats.Stop()
	sent := 0
	for {
		var f fetched
		more := true
		select {
		case f, more = <-results:
		default:
			// Nothing is there at the moment: what was written must not wait for it.
			if x.replied {
				if err := x.flush(); err != nil {
					return err
				}
			}
			select {
			case f, more = <-results:
			case <-beats.C:
				if err := x.line(frame{Beat: true}); err != nil {
					return err
				}
				continue
			}
		}
		if !more {
			break
		}
		if err := x.sendChunk(f); err != nil {
			return err
		}
		sent++
	}
	if x.r.Context().Err() != nil || sent < x.objects {
		return errors.New("the peer has left")
	}
	return x.line(frame{End: true})
}

func (x *exchange) sendChunk(f fetched) error {
	if f.room != nil {
		defer x.held.Add(-1)
		defer f.room.free()
	}
	if f.err != nil {
		if x.r.Context().Err() != nil {
			return x.r.Context().Err()
		}
		p := newProblem(f.err)
		if x.told == nil || newProblem(x.told).Kind == "absent" {
			x.told = f.err // what is in the log is the first one that is worth it
		}
		if p.Kind == "refused" || p.Kind == "invalid" {
			x.h.metrics.refused.WithLabelValues(x.kind).Inc()
		}
		return x.line(frame{N: f.n, Error: p})
	}
	head := frame{N: f.n, Bytes: int64(len(f.object.Data)), Version: f.object.Version, Near: f.object.Near}
	if err := x.line(head); err != nil {
		return err
	}
	return x.write(f.object.Data)
}

// line writes a line of JSON. It may stay in a buffer.
func (x *exchange) line(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if !x.replied {
		x.replied = true
		x.w.Header().Set("Content-Type", "application/octet-stream")
	}
	return x.paced(int64(len(data)), func() error {
		_, err := x.w.Write(append(data, '\n'))
		return err
	})
}

func (x *exchange) flush() error {
	err := x.paced(0, x.control.Flush)
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// list replies with the names of objects, their sizes and versions.
func (x *exchange) list(values url.Values) error {
	x.key = values.Get("prefix")
	for name, list := range values {
		if name != "prefix" || len(list) != 1 {
			return invalid("parameter %.20q of a listing", name)
		}
	}
	if len(x.key) > store.MaxKey {
		return invalid("prefix of %d bytes", len(x.key))
	}
	ctx, cancel := context.WithCancel(x.r.Context())
	infos := make(chan store.Info)
	done := make(chan error, 1)
	go func() {
		defer close(infos)
		done <- x.view().List(ctx, x.key, func(i store.Info) error {
			select {
			case infos <- i:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	defer func() {
		cancel()
		for range infos { // until it is closed
		}
	}()
	if err := x.sendList(infos); err != nil {
		return err
	}
	switch far := <-done; {
	case far != nil && !x.replied:
		return far
	case far != nil:
		x.told = far
		return x.line(entry{Error: newProblem(far)})
	}
	return x.line(entry{End: true})
}

func (x *exchange) sendList(infos <-chan store.Info) error {
	beats := time.NewTicker(x.h.beat)
	defer beats.Stop()
	for {
		select {
		case i, more := <-infos:
			if !more {
				return nil
			}
			if err := x.line(entry{Key: i.Key, Size: i.Size, Version: i.Version, Modified: i.Modified}); err != nil {
				return err
			}
		case <-beats.C:
			if err := x.line(entry{Beat: true}); err != nil {
				return err
			}
			if err := x.flush(); err != nil {
				return err
			}
		}
	}
}
