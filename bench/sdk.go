package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"nbc/transfer/store"
	"nbc/transfer/store/s3"
)

// Where there is no aws, the old way's upload and download are done by the SDK that nbc uses itself: "bench send URL"
// stores stdin, "bench receive URL" writes it to stdout, in parts of 8 MB, as many at once as aws has by default.
const (
	partSize = 8 << 20
	partsAt  = 10
)

func partKey(n int) string { return fmt.Sprintf("old/%06d", n) }

func sdk(ctx context.Context, verb string, args []string, in io.Reader, out io.Writer) (err error) {
	if len(args) != 1 {
		return errors.New("usage: bench send|receive URL")
	}
	s, err := s3.Open(ctx, args[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if verb == "send" {
		return send(ctx, s, in)
	}
	return receive(ctx, s, out)
}

func send(ctx context.Context, s store.Store, in io.Reader) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAt)
	for n := 0; gctx.Err() == nil; n++ {
		part := make([]byte, partSize)
		k, err := io.ReadFull(in, part)
		if k == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				break
			}
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			_, err := s.Put(gctx, partKey(n), part[:k], store.Condition{})
			return err
		})
	}
	return g.Wait()
}

// receive fetches as many parts at once as send does, and writes them in order.
func receive(ctx context.Context, s store.Store, out io.Writer) error {
	count := 0
	err := s.List(ctx, "old/", func(store.Info) error {
		count++
		return nil
	})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAt + 1)
	parts := make([]chan []byte, count)
	for n := range parts {
		parts[n] = make(chan []byte, 1)
	}
	g.Go(func() error {
		for _, p := range parts {
			select {
			case data := <-p:
				if _, err := out.Write(data); err != nil {
					return err
				}
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	for n := range parts {
		g.Go(func() error {
			o, err := s.Get(gctx, partKey(n), store.Read{})
			if err == nil {
				parts[n] <- o.Data
			}
			return err
		})
	}
	return g.Wait()
}
