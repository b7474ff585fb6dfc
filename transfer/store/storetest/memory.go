package storetest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"nbc/transfer/store"
)

// Memory returns an empty store that keeps its objects in memory: what the conformance suite asks for, in the fewest
// words.
func Memory() store.Store { return &memory{objects: map[string]memoryObject{}} }

type memory struct {
	mu      sync.Mutex
	objects map[string]memoryObject
	puts    int // makes versions
}

type memoryObject struct {
	data     []byte
	version  string
	modified time.Time
}

func (m *memory) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	if err := ready(ctx, key); err != nil {
		return store.Object{}, err
	}
	if err := r.Check(); err != nil {
		return store.Object{}, err
	}
	m.mu.Lock()
	o, ok := m.objects[key]
	m.mu.Unlock()
	if !ok {
		return store.Object{}, fmt.Errorf("getting %s from memory: %w", key, store.ErrNotExist)
	}
	offset, n, err := r.Span(int64(len(o.data)))
	if err != nil {
		return store.Object{}, fmt.Errorf("getting %s from memory: %w", key, err)
	}
	return store.Object{
		Data: bytes.Clone(o.data[offset : offset+n]), Version: o.version, Size: int64(len(o.data)),
	}, nil
}

func (m *memory) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	if err := ready(ctx, key); err != nil {
		return "", err
	}
	if err := c.Check(); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.objects[key]
	if c.IfAbsent && ok || c.IfVersion != "" && c.IfVersion != old.version {
		return "", fmt.Errorf("putting %s in memory: %w", key, store.ErrConflict)
	}
	m.puts++
	o := memoryObject{data: bytes.Clone(data), version: strconv.Itoa(m.puts), modified: time.Now()}
	m.objects[key] = o
	return o.version, nil
}

func (m *memory) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	var list []store.Info
	m.mu.Lock()
	for key, o := range m.objects {
		if strings.HasPrefix(key, prefix) {
			list = append(list, store.Info{Key: key, Size: int64(len(o.data)), Version: o.version, Modified: o.modified})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b store.Info) int { return strings.Compare(a.Key, b.Key) })
	for _, i := range list {
		if ctx.Err() != nil {
			break
		}
		if err := yield(i); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (m *memory) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := ready(ctx, key); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		delete(m.objects, key)
	}
	return context.Cause(ctx)
}

func ready(ctx context.Context, key string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return store.CheckKey(key)
}
