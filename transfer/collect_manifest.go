package transfer

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/chunk"
	"nbc/transfer/store"
)

// The collector's manifests are objects under gc/m/<epoch>.<kind>.<random>. Every one is written once, under a name
// that nobody else uses, and means nothing until gc/state names it. The epoch in the name is that of the collection,
// so that what no state will ever name any more can be told without a clock.
const (
	manifestPrefix = "gc/m/"
	kindCondemned  = "cond"
	kindSpared     = "kept"
	kindDead       = "dead"
)

func manifestKey(epoch uint64, kind string) string {
	return fmt.Sprintf("%s%d.%s.%s", manifestPrefix, epoch, kind, randomName())
}

// parseManifestKey returns the epoch and the kind in the name of a manifest.
func parseManifestKey(key string) (epoch uint64, kind string, ok bool) {
	rest, ok := strings.CutPrefix(key, manifestPrefix)
	if !ok {
		return 0, "", false
	}
	number, rest, ok := strings.Cut(rest, ".")
	if !ok {
		return 0, "", false
	}
	kind, _, _ = strings.Cut(rest, ".")
	epoch, err := strconv.ParseUint(number, 10, 64)
	return epoch, kind, err == nil
}

// condemnedKey is a chunk that may go, and the bytes that it takes in the store.
type condemnedKey struct {
	chunk.Key
	size int64
}

const (
	partMagic = "nbcgcck1"
	partStart = len(partMagic) + 4
	// partKeys is how many keys stand in one object: some 7 MB, which is what a collector holds of them at a time.
	partKeys = 200_000
)

// partWriter puts the condemned keys, in as many parts as it takes.
type partWriter struct {
	cache *Cache
	most  uint32 // keys in a part
	dry   bool   // put nothing

	mu    sync.Mutex
	list  Condemned
	part  []byte
	count uint32
}

func (w *partWriter) add(ctx context.Context, k condemnedKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list.Count++
	w.list.Bytes += k.size
	if w.dry {
		return nil
	}
	if w.part == nil {
		w.part = append(make([]byte, 0, 1<<16), partMagic...)
		w.part = append(w.part, 0, 0, 0, 0)
	}
	w.part = append(w.part, k.ID[:]...)
	w.part = binary.AppendUvarint(w.part, k.Epoch)
	w.part = binary.AppendUvarint(w.part, uint64(k.size)) // not negative
	if w.count++; w.count < w.most {
		return nil
	}
	return w.put(ctx)
}

// put ends a part.
func (w *partWriter) put(ctx context.Context) error {
	binary.BigEndian.PutUint32(w.part[len(partMagic):], w.count)
	sum := chunk.Sum(w.part)
	w.part = append(w.part, sum[:]...)
	if _, err := w.cache.Store.Put(ctx, w.list.part(w.list.Parts), w.part, store.Condition{}); err != nil {
		return fmt.Errorf("putting what is condemned: %w", err)
	}
	w.list.Parts++
	w.part, w.count = append(w.part[:0], partMagic...), 0
	w.part = append(w.part, 0, 0, 0, 0)
	return nil
}

// done returns what gc/state says of the condemned.
func (w *partWriter) done(ctx context.Context) (*Condemned, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count > 0 {
		if err := w.put(ctx); err != nil {
			return nil, err
		}
	}
	w.part = nil
	return &w.list, nil
}

// decodePart returns the keys in a part.
func decodePart(data []byte) ([]condemnedKey, error) {
	body := len(data) - chunk.IDSize
	if body < partStart || string(data[:len(partMagic)]) != partMagic || chunk.Sum(data[:body]) != chunk.ID(data[body:]) {
		return nil, errManifest
	}
	n := int(binary.BigEndian.Uint32(data[len(partMagic):]))
	b := data[partStart:body]
	if n > len(b)/(chunk.IDSize+2) {
		return nil, errManifest
	}
	list := make([]condemnedKey, n)
	for i := range list {
		if len(b) < chunk.IDSize {
			return nil, errManifest
		}
		list[i].ID, b = chunk.ID(b[:chunk.IDSize]), b[chunk.IDSize:]
		epoch, used := binary.Uvarint(b)
		b = b[max(0, used):]
		size, used2 := binary.Uvarint(b)
		b = b[max(0, used2):]
		if used <= 0 || used2 <= 0 || size > 1<<62 {
			return nil, errManifest
		}
		list[i].Epoch, list[i].size = epoch, int64(size)
	}
	if len(b) > 0 {
		return nil, errManifest
	}
	return list, nil
}

// eachCondemned calls do with every condemned key. A part that is not there, or damaged, is left out; if there was no
// other error, that is errManifest then.
func (g *collection) eachCondemned(ctx context.Context, c *Condemned, do func(condemnedKey) error) error {
	if c == nil {
		return nil
	}
	var lost error
	for i := range c.Parts {
		o, err := g.cache.Store.Get(ctx, c.part(i), store.Read{})
		if errors.Is(err, store.ErrNotExist) {
			lost = fmt.Errorf("%w: %s is not there", errManifest, c.part(i))
			continue
		}
		if err != nil {
			return fmt.Errorf("reading what is condemned: %w", err)
		}
		list, err := decodePart(o.Data)
		if err != nil {
			lost = fmt.Errorf("%s: %w", c.part(i), err)
			continue
		}
		for _, k := range list {
			if err := do(k); err != nil {
				return err
			}
		}
	}
	return lost
}

// putSpared puts the fingerprints of what is condemned and stays all the same.
func (g *collection) putSpared(ctx context.Context, epoch uint64, list []uint64) (*Manifest, error) {
	slices.Sort(list)
	list = slices.Compact(list)
	return g.putSet(ctx, Manifest{Key: manifestKey(epoch, kindSpared), From: epoch, To: epoch}, 64, list)
}

// readSpared returns what putSpared put; errManifest if that cannot be told.
func (g *collection) readSpared(ctx context.Context, m *Manifest) ([]uint64, error) {
	if m == nil {
		return nil, nil
	}
	set, err := readFingerprints(ctx, g.cache.Store, m.Key, 64, store.MaxObject)
	if errors.Is(err, store.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not there", errManifest, m.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is spared: %w", err)
	}
	return set.list(), nil
}

func (g *collection) putSet(ctx context.Context, m Manifest, width uint, list []uint64) (*Manifest, error) {
	data := encodeFingerprints(width, list)
	m.Count, m.Bytes = int64(len(list)), int64(len(data))
	if _, err := g.cache.Store.Put(ctx, m.Key, data, store.Condition{}); err != nil {
		return nil, fmt.Errorf("putting a manifest: %w", err)
	}
	return &m, nil
}

// deadList gathers what is in a manifest for savers.
type deadList struct {
	list []uint64
	// tooMany says that there are more than a manifest can hold, so that there will be none.
	tooMany bool
}

// maxDead is how many keys a manifest for savers may hold: with fewer than 13 bits for each it is not written.
const maxDead = 8 * maxManifest / 13

func (d *deadList) add(k chunk.Key) {
	if len(d.list) >= maxDead {
		d.list, d.tooMany = nil, true
	}
	if !d.tooMany {
		d.list = append(d.list, Fingerprint(k)>>(64-deadWidth))
	}
}

const (
	// keepEpochs and keepTime are how long manifests are kept: for as many collections, or as long, whichever is longer,
	// unless they grow too large. A base from before is not trusted, and its save sends everything again.
	keepEpochs = 256
	keepTime   = 90 * 24 * time.Hour
)

// spans chooses which of the earlier manifests are to be extended to epoch, longest first. Of those that reach back
// 1 to 3 epochs, 4 to 15, 16 to 63 and so on, the longest stays. So a saver reads less than sixteen times the epochs that
// it asks for, and a collector writes five manifests or so. One that is too old goes when the next one is as well: until
// then nothing else reaches back as far as is promised.
func spans(earlier []Manifest, epoch uint64, now time.Time) []Manifest {
	earlier = slices.Clone(earlier)
	earlier = slices.DeleteFunc(earlier, func(m Manifest) bool { return m.From >= epoch || m.To != epoch-1 })
	slices.SortFunc(earlier, func(a, b Manifest) int { return cmp.Compare(a.From, b.From) })
	begin := 0
	for i, m := range earlier {
		if epoch-m.From+1 >= keepEpochs && now.Sub(time.Unix(m.Since, 0)) > keepTime {
			begin = i
		}
	}
	var chosen []Manifest
	last := -1
	for _, m := range earlier[begin:] {
		if class := (bits.Len64(epoch-m.From+1) - 1) / 2; class != last {
			chosen = append(chosen, m)
			last = class
		}
	}
	return chosen
}

// putDead puts the manifests for savers in that epoch: what died in it, alone and together with what died before. Version
// is that of the state that is to be replaced; the error is errMoved if it is found to have been replaced already.
func (g *collection) putDead(
	ctx context.Context, version string, epoch uint64, earlier []Manifest, d *deadList,
) ([]Manifest, error) {
	if d.tooMany {
		g.warn("more than %d chunks are condemned at once: the next save of each name will send everything again", maxDead)
		return nil, nil
	}
	slices.Sort(d.list)
	d.list = slices.Compact(d.list)
	now := g.cache.now()
	var out []Manifest
	put := func(from uint64, since int64, list []uint64) error {
		if len(list) > maxDead {
			return nil
		}
		m := Manifest{Key: manifestKey(epoch, kindDead), From: from, To: epoch, Since: since}
		data := encodeFingerprints(deadWidth, list)
		if m.Count, m.Bytes = int64(len(list)), int64(len(data)); m.Bytes > maxManifest {
			return nil
		}
		if _, err := g.cache.Store.Put(ctx, m.Key, data, store.Condition{}); err != nil {
			return fmt.Errorf("putting a manifest for savers: %w", err)
		}
		out = append(out, m)
		return nil
	}
	for _, m := range spans(earlier, epoch, now) {
		set, err := readFingerprints(ctx, g.cache.Store, m.Key, deadWidth, maxManifest)
		if errors.Is(err, store.ErrNotExist) || errors.Is(err, errManifest) || errors.Is(err, store.ErrTooLarge) {
			if err := g.unchanged(ctx, version); err != nil {
				return nil, err
			}
			g.warn("manifest %s is lost: the next save of names that were not saved since sends everything again", m.Key)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading a manifest for savers: %w", err)
		}
		if err := put(m.From, m.Since, union(set.list(), d.list)); err != nil {
			return nil, err
		}
	}
	return out, put(epoch, now.Unix(), d.list)
}

// union merges two sorted lists.
func union(a, b []uint64) []uint64 {
	out := make([]uint64, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case a[0] > b[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// deletion deletes chunks in batches, some at once.
type deletion struct {
	g     *collection
	ctx   context.Context // of the errgroup, which lives as long
	group *errgroup.Group
	batch []string
	bytes int64

	mu      sync.Mutex
	deleted Amount
}

// deletesAtOnce is how many batches are deleted at once; S3 allows 3,500 deletes a second for one prefix.
const deletesAtOnce = 8

func newDeletion(ctx context.Context, g *collection) *deletion {
	d := &deletion{g: g}
	d.group, d.ctx = errgroup.WithContext(ctx)
	d.group.SetLimit(deletesAtOnce)
	return d
}

func (d *deletion) add(k condemnedKey) error {
	d.batch = append(d.batch, k.Path())
	d.bytes += k.size
	if len(d.batch) == page {
		d.send()
	}
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	return nil
}

func (d *deletion) send() {
	batch, bytes := d.batch, d.bytes
	d.batch, d.bytes = nil, 0
	d.group.Go(func() error {
		if err := d.g.cache.Store.Delete(d.ctx, batch...); err != nil {
			return fmt.Errorf("deleting chunks: %w", err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.deleted.merge(Amount{Chunks: int64(len(batch)), Bytes: bytes})
		d.g.cache.Progress.phase(fmt.Sprintf("deleting chunks, %d so far", d.deleted.Chunks))
		return nil
	})
}

func (d *deletion) wait() error {
	if len(d.batch) > 0 {
		d.send()
	}
	return d.group.Wait()
}

// clean removes what collectors have left that no state can name any more, now that st is in force. A manifest for
// savers stays for one epoch longer, for those who have read the state before and not yet the manifest.
//
// Nobody is in need of what is removed here. A manifest can become named only by the swap to its own phase of its own
// epoch, and that is over: st is idle and not older.
func (g *collection) clean(ctx context.Context, st State) error {
	if st.Phase != idle {
		return nil // whoever has begun that will do it
	}
	named := map[string]bool{}
	for _, m := range st.Dead {
		named[m.Key] = true
	}
	var old []string
	since := g.cache.now().Add(-probeAge)
	err := g.cache.Store.List(ctx, "gc/", func(i store.Info) error {
		epoch, kind, ok := parseManifestKey(i.Key)
		if ok && epoch <= st.Epoch && !named[i.Key] && (kind != kindDead || epoch+1 < st.Epoch) ||
			strings.HasPrefix(i.Key, trialPrefix) && i.Modified.Before(since) {
			old = append(old, i.Key)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	if len(old) == 0 {
		return nil
	}
	if err := g.cache.Store.Delete(ctx, old...); err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	return nil
}
