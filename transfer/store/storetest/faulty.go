package storetest

import (
	"bytes"
	"context"
	"sync"
	"time"

	"nbc/transfer/store"
)

// Op is a method of a Store.
type Op string

// The methods.
const (
	Get    Op = "get"
	Put    Op = "put"
	List   Op = "list"
	Delete Op = "delete"
)

// Call is one operation as it reaches a [Faulty].
type Call struct {
	N   int // how many came before, over all methods
	Op  Op
	Key string // of List, the prefix; of Delete, the first key
}

// Fault is what happens to an operation, in the order of the fields. The zero value lets it through.
type Fault struct {
	// Delay is waited for before anything else.
	Delay time.Duration
	// Hang waits until the context ends.
	Hang bool
	// Before is returned, and the store is not asked.
	Before error
	// Damage changes the bytes on their way: those that a Get returns, and those that a Put gives to the store. It
	// gets a copy, which it may change and return.
	Damage func([]byte) []byte
	// After is returned though the store has done what was asked: the reply was lost. A List has yielded everything.
	After error
}

// Faulty is a Store around another one, whose operations go wrong as a test wants it. Calls that end because their
// context has ended return the context's cause.
//
// To fail every operation of run once, one after another:
//
//	for n := 0; ; n++ {
//		f := &storetest.Faulty{Store: s, Fault: storetest.FailAt(n, err)}
//		run(f)
//		if f.Calls() <= n {
//			break // run needed no more than n operations, so none has failed
//		}
//	}
type Faulty struct {
	Store store.Store
	// Fault decides, for each operation as it arrives. It may be called concurrently. Nil means no faults.
	Fault func(Call) Fault

	mu    sync.Mutex
	calls int
	count map[Op]int
}

var _ store.Store = (*Faulty)(nil)

// FailAt fails the n-th operation, counted from 0, with err. The store is not asked.
func FailAt(n int, err error) func(Call) Fault { return at(n, Fault{Before: err}) }

// LoseAt lets the n-th operation happen and returns err for it.
func LoseAt(n int, err error) func(Call) Fault { return at(n, Fault{After: err}) }

// FailFrom fails the n-th operation and all after it: an outage that does not end.
func FailFrom(n int, err error) func(Call) Fault {
	return func(c Call) Fault {
		if c.N >= n {
			return Fault{Before: err}
		}
		return Fault{}
	}
}

// HangAt lets the n-th operation hang until its context ends.
func HangAt(n int) func(Call) Fault { return at(n, Fault{Hang: true}) }

// DamageAt changes the bytes of the n-th operation, if that is a Get or a Put.
func DamageAt(n int, damage func([]byte) []byte) func(Call) Fault {
	return at(n, Fault{Damage: damage})
}

func at(n int, f Fault) func(Call) Fault {
	return func(c Call) Fault {
		if c.N == n {
			return f
		}
		return Fault{}
	}
}

// Truncate returns damage that keeps at most n bytes; a negative n cuts off that many at the end.
func Truncate(n int) func([]byte) []byte {
	return func(data []byte) []byte {
		if n < 0 {
			return data[:max(0, len(data)+n)]
		}
		return data[:min(n, len(data))]
	}
}

// FlipBit returns damage that inverts one bit, the n-th modulo how many there are. Where there is none it adds a byte.
func FlipBit(n int) func([]byte) []byte {
	return func(data []byte) []byte {
		if len(data) == 0 {
			return []byte{1}
		}
		n := n % (8 * len(data))
		data[n/8] ^= 1 << (n % 8)
		return data
	}
}

// Calls returns how many operations arrived so far.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Count returns how many operations of one kind arrived so far.
func (f *Faulty) Count(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[op]
}

// begin counts the operation and lets happen what comes before it.
func (f *Faulty) begin(ctx context.Context, op Op, key string) (Fault, error) {
	f.mu.Lock()
	call := Call{N: f.calls, Op: op, Key: key}
	f.calls++
	if f.count == nil {
		f.count = map[Op]int{}
	}
	f.count[op]++
	f.mu.Unlock()
	if ctx.Err() != nil {
		return Fault{}, context.Cause(ctx)
	}
	if f.Fault == nil {
		return Fault{}, nil
	}
	fault := f.Fault(call)
	if fault.Delay > 0 {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return Fault{}, context.Cause(ctx)
		case <-timer.C:
		}
	}
	if fault.Hang {
		<-ctx.Done()
		return Fault{}, context.Cause(ctx)
	}
	return fault, fault.Before
}

// Get implements [store.Store].
func (f *Faulty) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	fault, err := f.begin(ctx, Get, key)
	if err != nil {
		return store.Object{}, err
	}
	o, err := f.Store.Get(ctx, key, r)
	if err == nil && fault.After != nil {
		return store.Object{}, fault.After
	}
	if err == nil && fault.Damage != nil {
		o.Data = fault.Damage(o.Data)
	}
	return o, err
}

// Put implements [store.Store].
func (f *Faulty) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	fault, err := f.begin(ctx, Put, key)
	if err != nil {
		return "", err
	}
	if fault.Damage != nil {
		data = fault.Damage(bytes.Clone(data))
	}
	version, err := f.Store.Put(ctx, key, data, c)
	if err == nil && fault.After != nil {
		return "", fault.After
	}
	return version, err
}

// List implements [store.Store].
func (f *Faulty) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	fault, err := f.begin(ctx, List, prefix)
	if err != nil {
		return err
	}
	if err := f.Store.List(ctx, prefix, yield); err != nil {
		return err
	}
	return fault.After
}

// Delete implements [store.Store].
func (f *Faulty) Delete(ctx context.Context, keys ...string) error {
	first := ""
	if len(keys) > 0 {
		first = keys[0]
	}
	fault, err := f.begin(ctx, Delete, first)
	if err != nil {
		return err
	}
	if err := f.Store.Delete(ctx, keys...); err != nil {
		return err
	}
	return fault.After
}
