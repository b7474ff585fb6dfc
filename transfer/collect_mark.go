package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// mark is what a collector knows before the fence.
type mark struct {
	refs references
	// versions are those of the indexes whose references are in refs, by their keys in the store.
	versions  map[string]string
	condemned *Condemned
	dead      deadList
}

// newMark reads what all indexes refer to, lists all chunks, and puts what may go. The order matters for one thing
// only: a chunk that an index refers to was there before the index, so that one that the listing does not have is
// missing.
func (g *collection) newMark(ctx context.Context, st State) (*mark, error) {
	m := &mark{versions: map[string]string{}}
	p := g.cache.Progress
	p.phase("listing indexes")
	err := g.cache.Store.List(ctx, manifestPrefix, func(i store.Info) error {
		// The next epoch's may be there: those of a collector that is as far as this one.
		if epoch, _, ok := parseManifestKey(i.Key); ok && epoch > st.Epoch+1 {
			return g.ahead(ctx, st, "manifest "+i.Key, epoch-1)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing manifests: %w", err)
	}
	list, err := g.listIndexes(ctx)
	if err != nil {
		return nil, err
	}
	if list, err = g.dropOld(ctx, st, list, m.versions); err != nil {
		return nil, err
	}
	p.phase("reading indexes")
	var mu sync.Mutex
	var empty []indexKeys
	err = g.readIndexes(ctx, st, list, nil, func(x indexKeys) {
		m.refs.add(x.chunks)
		mu.Lock()
		defer mu.Unlock()
		m.versions[x.info.Key] = x.info.Version
		if x.tombstone {
			empty = append(empty, x)
		} else {
			g.report.Indexes.Kept++
		}
	})
	if err != nil {
		return nil, err
	}
	m.refs.settle()
	if err := g.removeTombstones(ctx, empty); err != nil {
		return nil, err
	}

	parts := &partWriter{
		cache: g.cache, most: partKeys, dry: g.o.DryRun, list: Condemned{Key: manifestKey(st.Epoch+1, kindCondemned)},
	}
	if err := g.markChunks(ctx, st, m, parts); err != nil {
		return nil, err
	}
	if m.condemned, err = parts.done(ctx); err != nil {
		return nil, err
	}
	g.report.Condemned = Amount{m.condemned.Count, m.condemned.Bytes}
	if g.report.Missing = m.refs.unseen(); g.report.Missing > 0 {
		if err := g.missing(ctx, st, m, list); err != nil {
			return nil, err
		}
	}
	m.refs = references{} // which is most of what is held
	return m, nil
}

// ahead is told of an index or a chunk of an epoch that is still to come. It returns ErrStateLost, or errMoved if
// another collector has begun that epoch meanwhile.
func (g *collection) ahead(ctx context.Context, st State, what string, epoch uint64) error {
	if err := st.checkEpoch(ctx, g.cache.Store, what, epoch); err != nil {
		return err
	}
	return errMoved
}

// listIndexes returns the indexes. What has a key that no cache name has is none, and never was: no saver writes it.
// For example, some S3 servers list the temporary files of uploads.
func (g *collection) listIndexes(ctx context.Context) ([]store.Info, error) {
	var list []store.Info
	err := g.cache.Store.List(ctx, index.Prefix, func(i store.Info) error {
		if _, err := index.ParsePath(i.Key); err == nil {
			list = append(list, i)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing indexes: %w", err)
	}
	return list, nil
}

// indexKeys is what a collector wants to know of an index.
type indexKeys struct {
	info   store.Info // its version is that of what was read
	name   string
	epoch  uint64
	chunks []index.Chunk
	// tombstone says that it holds nothing at all.
	tombstone bool
}

// keysInFlight bounds the bytes of indexes that are read at once.
const keysInFlight = 64 << 20

// readIndexes is eachIndex where one that cannot be read ends everything: those are named in the report.
func (g *collection) readIndexes(
	ctx context.Context, st State, list []store.Info, known map[string]string, found func(indexKeys),
) error {
	un, err := g.eachIndex(ctx, st, list, known, found)
	if err == nil && un.first != nil {
		g.report.Unreadable = un.list
		err = fmt.Errorf("nobody knows what %d of the indexes refer to, so nothing is deleted: %w", len(un.list), un.first)
	}
	return err
}

// eachIndex reads the chunk keys of the indexes in list, but for those whose version is the known one, and hands them
// to found, from several goroutines. It returns those that cannot be read, by their names.
func (g *collection) eachIndex(
	ctx context.Context, st State, list []store.Info, known map[string]string, found func(indexKeys),
) (un unreadable, err error) {
	var mu sync.Mutex
	var done atomic.Int64
	bytes := semaphore.NewWeighted(keysInFlight)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(g.cache.requests())
	for _, info := range list {
		if v, ok := known[info.Key]; ok && v == info.Version {
			continue
		}
		size := min(info.Size, keysInFlight)
		if bytes.Acquire(gctx, size) != nil {
			break // some read has failed, or ctx has ended
		}
		group.Go(func() error {
			defer bytes.Release(size)
			x, err := g.readIndex(gctx, info)
			switch {
			case errors.Is(err, store.ErrNotExist):
				return nil
			case errors.Is(err, index.ErrInvalid), errors.Is(err, index.ErrVersion), errors.Is(err, store.ErrRefused):
				mu.Lock()
				defer mu.Unlock()
				un.add(x.name, err)
				return nil
			case err != nil:
				return fmt.Errorf("reading the chunk keys of %s: %w", x.name, err)
			case x.epoch > st.Epoch:
				return g.ahead(gctx, st, "the index of "+x.name, x.epoch)
			}
			if n := done.Add(1); n%100 == 0 {
				g.cache.Progress.phase(fmt.Sprintf("reading indexes, %d so far", n))
			}
			found(x)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return un, err
	}
	if err := context.Cause(ctx); err != nil {
		return un, err
	}
	slices.SortFunc(un.list, func(a, b Refusal) int { return strings.Compare(a.Name, b.Name) })
	return un, nil
}

// keysFirst is how much of an index a collector asks for at first: the keys of 1,900 chunks, or of a tree of 400 MB.
// What a saver reads at first (index.FirstRead) would be cheaper in requests, but of ten thousand small indexes it is
// gigabytes, which cost more than a second request for the large ones.
const keysFirst = 64 << 10

// readIndex reads the chunk keys of one index. The name is set also with an error; and so is the version, once there is
// one, so that whoever drops what cannot be read drops what was read.
func (g *collection) readIndex(ctx context.Context, info store.Info) (indexKeys, error) {
	x := indexKeys{info: info}
	var err error
	if x.name, err = index.ParsePath(info.Key); err != nil {
		return x, err
	}
	const tries = 10
	first := int64(keysFirst)
	for range tries {
		o, err := g.cache.Store.Get(ctx, info.Key, store.Read{Length: first})
		if err != nil {
			return x, err
		}
		x.info.Version = o.Version
		need, err := index.PrefixSize(o.Data)
		if err != nil {
			return x, err
		}
		data := o.Data
		if missing := int64(need - len(data)); missing > 0 && o.Size > int64(len(data)) {
			rest, err := g.cache.Store.Get(ctx, info.Key, store.Read{Offset: int64(len(data)), Length: missing})
			if err != nil {
				return x, err
			}
			if rest.Version != o.Version {
				first = max(first, int64(need)) // replaced in between: the next time in one request
				continue
			}
			data = append(data, rest.Data...)
		}
		if x.epoch, x.chunks, err = index.DecodeChunks(data); err != nil {
			return x, err
		}
		if len(x.chunks) == 0 && int64(len(data)) == o.Size {
			whole, err := index.Decode(data)
			x.tombstone = err == nil && isTombstone(whole)
		}
		return x, nil
	}
	return x, fmt.Errorf("%w: it was replaced %d times while it was read", store.ErrUnavailable, tries)
}

// tally counts chunks by what becomes of them.
type tally struct{ kept, recent Amount }

// markChunks lists all chunks and condemns those that may go.
func (g *collection) markChunks(ctx context.Context, st State, m *mark, parts *partWriter) error {
	var mu sync.Mutex
	var all int64
	since := g.cache.now().Add(-g.o.Grace)
	return g.listChunks(ctx, func(ctx context.Context, prefix string, stop func(store.Info) bool) error {
		var t tally
		n := int64(0)
		report := func() {
			mu.Lock()
			defer mu.Unlock()
			all += n
			n = 0
			g.cache.Progress.phase(fmt.Sprintf("listing chunks, %d so far", all))
		}
		err := g.cache.Store.List(ctx, prefix, func(info store.Info) error {
			if stop != nil && stop(info) {
				return errStopped
			}
			if n++; n == 10*page {
				report()
			}
			k, err := chunk.ParsePath(info.Key)
			if err != nil {
				return nil // whatever it is, it is no chunk, and nobody asked for its removal
			}
			switch {
			case k.Epoch > st.Epoch:
				return g.ahead(ctx, st, "chunk "+k.String(), k.Epoch)
			case m.refs.see(k):
				t.kept.add(info.Size)
			case g.o.Grace > 0 && info.Modified.After(since):
				t.recent.add(info.Size)
			default:
				if err := parts.add(ctx, condemnedKey{k, info.Size}); err != nil {
					return err
				}
				mu.Lock()
				m.dead.add(k)
				mu.Unlock()
			}
			return nil
		})
		report()
		mu.Lock()
		defer mu.Unlock()
		g.report.Kept.merge(t.kept)
		g.report.TooRecent.merge(t.recent)
		return err
	})
}

// errStopped ends a listing early.
var errStopped = errors.New("listing stopped")

const (
	// listAlone is how many chunks are listed one request after another. The rest is listed in parallel, by the first two
	// digits of the ID: that costs up to 256 more requests, and saves a quarter of an hour for each 10 million chunks.
	listAlone = 20_000
	// listsAtOnce is how many listings are under way then. One of them gets some 10,000 names a second.
	listsAtOnce = 16
)

// listChunks calls list for prefixes that together hold all chunks, at first with a function that says when to stop.
func (g *collection) listChunks(
	ctx context.Context, list func(ctx context.Context, prefix string, stop func(store.Info) bool) error,
) error {
	g.cache.Progress.phase("listing chunks")
	const folder = len(chunk.Prefix) + 3 // chunks/hh/
	var n int
	var last, rest string
	err := list(ctx, chunk.Prefix, func(i store.Info) bool {
		n++
		if len(i.Key) < folder || i.Key[:folder] == last {
			return false
		}
		last = i.Key[:folder]
		if n <= listAlone {
			return false
		}
		rest = last
		return true
	})
	if err != nil && !errors.Is(err, errStopped) {
		return fmt.Errorf("listing chunks: %w", err)
	}
	if rest == "" {
		return nil
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(listsAtOnce)
	for b := range 256 {
		if prefix := fmt.Sprintf("%s%02x/", chunk.Prefix, b); prefix >= rest {
			group.Go(func() error { return list(gctx, prefix, nil) })
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("listing chunks: %w", err)
	}
	return nil
}

// missing says which indexes refer to chunks that the listing did not have. Of one whose save was fenced off and never
// put again it is what the protocol expects: it is dropped. Of any other it is damage. The error is errMoved if another
// collection has begun since: it may have deleted what an index lacks, and st does not tell of that.
func (g *collection) missing(ctx context.Context, st State, m *mark, list []store.Info) error {
	g.cache.Progress.phase("finding out which indexes lack chunks")
	if now, err := readState(ctx, g.cache.Store); err != nil {
		return err
	} else if now.Writer != st.Writer {
		return errMoved
	}
	var mu sync.Mutex
	var lacking []indexKeys
	err := g.readIndexes(ctx, st, list, nil, func(x indexKeys) {
		if m.versions[x.info.Key] != x.info.Version {
			return // it was saved since
		}
		x.chunks = slices.DeleteFunc(x.chunks, func(c index.Chunk) bool { return !m.refs.missing(c.Key) })
		if len(x.chunks) == 0 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		lacking = append(lacking, x)
	})
	if err != nil {
		return err
	}
	// The oldest first, so that one manifest serves all.
	slices.SortFunc(lacking, func(a, b indexKeys) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), strings.Compare(a.name, b.name))
	})
	var d dead
	there := map[chunk.Key]bool{}
	for _, x := range lacking {
		if x.chunks, err = g.absent(ctx, x.chunks, there); err != nil {
			return err
		}
		if len(x.chunks) == 0 {
			continue
		}
		ok, err := d.learn(ctx, g.cache.Store, st, x.epoch)
		if err != nil {
			return err
		}
		if !ok || !d.all(x.chunks) {
			g.warn("%s lacks %d of its chunks, which no collection has deleted; a restore finds it out, and the save after "+
				"that sends them again", x.name, len(x.chunks))
			continue
		}
		if !g.o.DryRun {
			if !g.conditions.Drop.Works {
				continue // it cannot be dropped safely, and does no harm but to keep what it still refers to
			}
			if _, err := g.cache.bury(ctx, x); errors.Is(err, store.ErrConflict) {
				continue // it was saved since
			} else if err != nil {
				return err
			}
		}
		g.report.Indexes.Dead = append(g.report.Indexes.Dead, x.name)
		g.report.Indexes.Kept--
	}
	g.report.Missing -= len(there)
	return nil
}

// absent asks for chunks that a listing did not have, until one of them is not there, and returns that and those behind
// it. A listing is no snapshot, and what is put once more while it goes on may be left out, in a directory for example.
// What is there all the same is added to there.
func (g *collection) absent(ctx context.Context, chunks []index.Chunk, there map[chunk.Key]bool) ([]index.Chunk, error) {
	for i := range chunks {
		if there[chunks[i].Key] {
			continue
		}
		_, err := g.cache.Store.Get(ctx, chunks[i].Path(), store.Read{Length: 1, Fresh: true})
		if errors.Is(err, store.ErrNotExist) {
			return chunks[i:], nil
		}
		if err != nil {
			return nil, fmt.Errorf("asking for chunk %s: %w", chunks[i].Key, err)
		}
		there[chunks[i].Key] = true
	}
	return nil, nil
}
