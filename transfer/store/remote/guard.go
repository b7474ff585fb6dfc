package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

const (
	formatKey = "format"
	stateKey  = "gc/state"
	// manifests begin with this.
	manifestPrefix = "gc/m/"
	// firstEpoch is that of a store that was never collected and has no gc/state.
	firstEpoch = 1
)

// guard is what one peer sees of the far store: a Store that refuses what the rules do not allow, and what would harm
// others. What it lets through it does not change.
type guard struct {
	store store.Store
	rules Rules
	peer  Peer
	// indexes lets one index of this client be looked at at a time; nil if there is no such limit.
	indexes *semaphore.Weighted
	*checks
}

var _ store.Store = guard{}

// checks is what the guards of all peers share.
type checks struct {
	// epoch is the last one that the far store's gc/state was seen to have; 0 until then.
	epoch atomic.Uint64
	// format lets one first format be put at a time.
	format *semaphore.Weighted
	// decoders bounds how many chunks are decoded at once.
	decoders *semaphore.Weighted
	// memory bounds what indexes take that are being looked at, in bytes: that can be a hundred times their size.
	memory  *semaphore.Weighted
	buffers sync.Pool // *[]byte, for plain chunks
	limits  Limits
	metrics *Metrics
}

func newChecks(l Limits, m *Metrics) *checks {
	return &checks{
		format:   semaphore.NewWeighted(1),
		decoders: semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0))),
		memory:   semaphore.NewWeighted(l.IndexMemory),
		limits:   l, metrics: m,
	}
}

// Get implements [store.Store].
//
// Chunks are for every peer that may read or write anything: to ask for one it must know its ID, 256 bits that only an
// index tells, or whoever has the content. What is no secret to a writer either, since a collection would be done by
// what they say, are the format, the collector's state and its manifests.
func (g guard) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	switch {
	case isIndex(key):
		name, err := index.ParsePath(key)
		if err != nil {
			return store.Object{}, invalid("%v", err)
		}
		if !g.rules.Allow(g.peer, Reading, name) {
			return store.Object{}, g.refuse(Reading, name)
		}
	case isChunk(key):
		if _, err := chunk.ParsePath(key); err != nil {
			return store.Object{}, invalid("%v", err)
		}
		fallthrough
	case key == formatKey, key == stateKey, isManifest(key):
		if err := g.known(); err != nil {
			return store.Object{}, err
		}
	default:
		return store.Object{}, refused("", "the nbc daemon has nothing under %s", key)
	}
	o, err := g.store.Get(ctx, key, r)
	if key == stateKey && r.Offset == 0 {
		g.see(o.Data, err)
	}
	return o, err
}

func isManifest(key string) bool {
	name, ok := strings.CutPrefix(key, manifestPrefix)
	return ok && store.ValidElement(name)
}

// known refuses a peer that may do nothing at all.
func (g guard) known() error {
	if g.rules.Any(g.peer, Reading) || g.rules.Any(g.peer, Writing) {
		return nil
	}
	return refused(hintRules, "the nbc daemon allows nothing to %s", g.peer)
}

const hintRules = "whoever runs nbc daemon can allow it: --allow-read, --allow-write or --rules"

func (g guard) refuse(right Right, name string) error {
	return refused(hintRules, "the nbc daemon does not allow %s to %s %s", g.peer, right, strconv.QuoteToGraphic(name))
}

// Put implements [store.Store].
func (g guard) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	if err := g.mayPut(key); err != nil {
		return "", err
	}
	switch {
	case isIndex(key):
		if err := g.checkIndex(ctx, data); err != nil {
			return "", fmt.Errorf("refusing %s: %w", key, err)
		}
	case isChunk(key):
		if err := g.checkChunk(ctx, key, data); err != nil {
			return "", fmt.Errorf("refusing %s: %w", key, err)
		}
	case key == formatKey:
		return g.putFormat(ctx, data, c)
	}
	return g.store.Put(ctx, key, data, c)
}

// mayPut says whether the peer may put anything at key, before its bytes are read.
func (g guard) mayPut(key string) error {
	switch {
	case isIndex(key):
		name, err := index.ParsePath(key)
		if err != nil {
			return invalid("%v", err)
		}
		if !g.rules.Allow(g.peer, Writing, name) {
			return g.refuse(Writing, name)
		}
		return nil
	case isChunk(key):
		if _, err := chunk.ParsePath(key); err != nil {
			return invalid("%v", err)
		}
	case key == formatKey:
	default:
		return refused("collect with the credentials of the far store, not through its daemon",
			"the nbc daemon lets nobody write %s", key)
	}
	if !g.rules.Any(g.peer, Writing) {
		return refused(hintRules, "the nbc daemon does not allow %s to write anything", g.peer)
	}
	return nil
}

// checkChunk makes sure that data is the chunk that key says.
func (g guard) checkChunk(ctx context.Context, key string, data []byte) error {
	k, err := chunk.ParsePath(key)
	if err != nil {
		return invalid("%v", err)
	}
	if err := g.checkEpoch(ctx, k.Epoch); err != nil {
		return err
	}
	size, err := chunk.FrameSize(data)
	if err != nil {
		return invalid("%v: %v", chunk.ErrCorrupt, err)
	}
	if size > chunk.MaxSize {
		return invalid("%v: %d plain bytes, %d are allowed", chunk.ErrCorrupt, size, chunk.MaxSize)
	}
	if err := g.limits.acquire(ctx, g.metrics, "looking at a chunk", 1, g.decoders); err != nil {
		return err
	}
	defer g.decoders.Release(1)
	buf, ok := g.buffers.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	defer g.buffers.Put(buf)
	plain, err := chunk.Decode(*buf, data, k.ID, int(size))
	if err != nil {
		return invalid("%v", err)
	}
	*buf = plain[:0]
	return nil
}

// checkIndex makes sure that data is an index of an epoch that has begun. No key in it can be of a later epoch: the
// format has room for ages only.
func (g guard) checkIndex(ctx context.Context, data []byte) error {
	epoch, err := g.decodeIndex(ctx, data)
	if err != nil {
		return err
	}
	return g.checkEpoch(ctx, epoch)
}

// decodeIndex looks at an index when there is memory for it. It keeps nothing of it.
func (g guard) decodeIndex(ctx context.Context, data []byte) (epoch uint64, err error) {
	need, err := index.VerifyMemory(data)
	if err != nil {
		return 0, invalid("%v", err)
	}
	const what = "looking at an index"
	if g.indexes != nil {
		if err := g.limits.acquire(ctx, g.metrics, what, 1, g.indexes); err != nil {
			return 0, err
		}
		defer g.indexes.Release(1)
	}
	need = min(need, g.limits.IndexMemory)
	if err := g.limits.acquire(ctx, g.metrics, what, need, g.memory); err != nil {
		return 0, err
	}
	defer g.memory.Release(need)
	if epoch, err = index.Verify(data); err != nil {
		return 0, invalid("%v", err)
	}
	return epoch, nil
}

// checkEpoch refuses an epoch that the far store's gc/state has not come to.
func (g guard) checkEpoch(ctx context.Context, epoch uint64) error {
	if epoch <= g.epoch.Load() {
		return nil
	}
	o, err := g.store.Get(ctx, stateKey, store.Read{Max: maxSmall})
	if err != nil && !errors.Is(err, store.ErrNotExist) {
		return fmt.Errorf("reading %s: %w", stateKey, err)
	}
	now := g.see(o.Data, err)
	if epoch > now {
		return refused("somebody deleted gc/state or put back an old copy, or the writer is broken",
			"epoch %d has not begun: %s has %d", epoch, stateKey, now)
	}
	return nil
}

// see notes the epoch of the far store's gc/state, as Get returned it. It returns 0 if there is nothing to be seen.
func (c *checks) see(data []byte, err error) uint64 {
	var state struct {
		Epoch uint64 `json:"epoch"`
	}
	switch {
	case errors.Is(err, store.ErrNotExist):
		state.Epoch = firstEpoch
	case err != nil:
		return 0
	default:
		if json.Unmarshal(data, &state) != nil {
			return 0
		}
	}
	c.epoch.Store(state.Epoch)
	return state.Epoch
}

// putFormat puts the first format. Like any first saver it does so without a condition, which not every store knows;
// of two that are put at once through two daemons the later one wins.
func (g guard) putFormat(ctx context.Context, data []byte, c store.Condition) (string, error) {
	if err := checkFormat(data); err != nil {
		return "", invalid("refusing a store's format: %v", err)
	}
	if err := g.limits.acquire(ctx, g.metrics, "a store's format", 1, g.format); err != nil {
		return "", err
	}
	defer g.format.Release(1)
	o, err := g.store.Get(ctx, formatKey, store.Read{Max: maxSmall})
	switch {
	case err == nil && c == (store.Condition{}) && string(o.Data) == string(data):
		return o.Version, nil // the reply to a first attempt was lost
	case err == nil:
		return "", &problem{Kind: "conflict", Text: "the store has a format already"}
	case !errors.Is(err, store.ErrNotExist):
		return "", fmt.Errorf("looking for a format: %w", err)
	}
	return g.store.Put(ctx, formatKey, data, c)
}

// checkFormat refuses what is not the format that a client of this version puts into a new store, but for its ID: see
// FORMAT.md of package chunk. It can never be replaced, so a client must not choose where everybody's content is cut,
// nor that only later versions may write.
func checkFormat(data []byte) error {
	var f struct {
		Version     int    `json:"version"`
		ID          string `json:"id"`
		Hash        string `json:"hash"`
		Compression string `json:"compression"`
		MinWriter   int    `json:"min_writer"`
		Chunker     struct {
			Polynomial string `json:"polynomial"`
			Min        int    `json:"min"`
			Max        int    `json:"max"`
			Bits       int    `json:"bits"`
		} `json:"chunker"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return err
	}
	switch {
	case f.Version != 1:
		return fmt.Errorf("version %d", f.Version)
	case len(f.ID) != 32 || strings.Trim(f.ID, "0123456789abcdef") != "":
		return fmt.Errorf("ID %q", f.ID)
	case f.Hash != "blake3-256":
		return fmt.Errorf("hash %q", f.Hash)
	case f.Compression != "zstd":
		return fmt.Errorf("compression %q", f.Compression)
	case f.MinWriter != 1:
		return fmt.Errorf("writers of level %d", f.MinWriter)
	}
	polynomial, err := strconv.ParseUint(f.Chunker.Polynomial, 0, 64)
	if err != nil {
		return fmt.Errorf("polynomial %q", f.Chunker.Polynomial)
	}
	p := chunk.Params{Polynomial: polynomial, Min: f.Chunker.Min, Max: f.Chunker.Max, Bits: f.Chunker.Bits}
	if p != chunk.DefaultParams() {
		return fmt.Errorf("a chunker with %+v", p)
	}
	return nil
}

// List implements [store.Store]. Of the indexes it tells those that the peer may read; of other objects nothing: who
// could list chunks would need no ID any more.
func (g guard) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	if !isIndex(prefix) {
		return refused("list with the credentials of the far store, not through its daemon",
			"the nbc daemon lists cache names only")
	}
	if !g.rules.Any(g.peer, Reading) {
		return refused(hintRules, "the nbc daemon does not allow %s to read anything", g.peer)
	}
	for _, p := range g.rules.prefixes(g.peer, prefix) {
		err := g.store.List(ctx, p, func(i store.Info) error {
			name, err := index.ParsePath(i.Key)
			if err != nil || !g.rules.Allow(g.peer, Reading, name) {
				return nil
			}
			return yield(i)
		})
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Delete implements [store.Store]: nobody may.
func (guard) Delete(context.Context, ...string) error { return errNoDelete }

// errNoDelete is what both sides answer.
var errNoDelete = refused("collect with the credentials of the far store, not through its daemon",
	"an nbc daemon deletes nothing")
