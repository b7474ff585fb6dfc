package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"nbc/index"
	"nbc/transfer/store"
)

// This file is the collector's half of the collection protocol: fenced epochs. COLLECT.md has the protocol, its
// objects, why it is safe, and what it costs.

// ErrUnsafe says that in this store two collectors, or a collector and a drop, could do harm to each other.
var ErrUnsafe = errors.New("the store's conditional writes cannot be relied on")

// What Amazon S3 asks for requests to its standard class, in dollars, by its list price for us-east-1 of 2025: 5 for
// a million PUT and LIST requests, 0.40 for a million GETs, nothing for deletes. Other stores ask less or nothing.
const (
	PutPrice = 5.0 / 1e6
	GetPrice = 0.4 / 1e6
)

// CollectOptions say what to collect. The zero value collects whatever no index refers to.
type CollectOptions struct {
	// DryRun finds out what would be done, and changes nothing.
	DryRun bool
	// Grace is how old a chunk that no index refers to must be to be deleted, by the store's clock and this machine's.
	// It only saves savers that are at work from sending chunks twice. Nothing is lost without it.
	Grace time.Duration
	// KeepWithin drops the indexes of all names that were last saved longer ago than this, by the same clocks; 0 drops
	// none. Keep are patterns of names that are never dropped, as index.CompilePatterns has them.
	KeepWithin time.Duration
	Keep       []string
	// OnlyCollector says that no other collector runs, where the store's conditional writes cannot be relied on.
	OnlyCollector bool
}

// CollectReport is what a collection did, or with DryRun would do.
type CollectReport struct {
	Report
	DryRun bool `json:"dry_run,omitempty"`
	// Reason says why less was done than was asked for, though nothing went wrong: another collector was faster.
	Reason string `json:"reason,omitempty"`
	// Epoch that savers work in now.
	Epoch uint64 `json:"epoch"`
	// Resumed says that a collection that another collector had begun was finished first.
	Resumed bool `json:"resumed,omitempty"`

	Indexes IndexCounts `json:"indexes"`
	// Unreadable are the indexes that ended the collection, since nobody knows what they refer to.
	Unreadable []Refusal `json:"unreadable,omitempty"`
	// Kept are the chunks that some index refers to; TooRecent those that none refers to and that are younger than the
	// grace; Condemned, those that are not. Spared are those of the condemned that a save referred to before it could
	// know. Deleted may count chunks that another collector has condemned, or deleted meanwhile.
	Kept      Amount `json:"kept"`
	TooRecent Amount `json:"too_recent"`
	Condemned Amount `json:"condemned"`
	Spared    Amount `json:"spared"`
	Deleted   Amount `json:"deleted"`
	// Missing counts the chunks that indexes refer to and the store does not have.
	Missing int `json:"missing"`

	Requests Requests `json:"requests"`
	// Cost of the requests in dollars, at the prices above.
	Cost float64 `json:"cost_usd"`
}

// IndexCounts says what became of the indexes.
type IndexCounts struct {
	// Kept counts the indexes that stay.
	Kept int `json:"kept"`
	// Dropped are names that were not saved for too long. Dead are names whose save was never acknowledged and whose
	// chunks are gone; they were dropped as well.
	Dropped []string `json:"dropped,omitempty"`
	Dead    []string `json:"dead,omitempty"`
	// Tombstones counts what is left of names that were dropped, Removed those that were removed now.
	Tombstones int `json:"tombstones"`
	Removed    int `json:"removed"`
}

// Amount is a number of chunks, and the bytes that they take in the store.
type Amount struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"bytes"`
}

func (a *Amount) add(bytes int64) { a.Chunks++; a.Bytes += bytes }

func (a *Amount) merge(b Amount) { a.Chunks += b.Chunks; a.Bytes += b.Bytes }

// Requests counts requests as S3 does: a listing takes one for each 1000 objects.
type Requests struct {
	List   int64 `json:"list"`
	Get    int64 `json:"get"`
	Put    int64 `json:"put"`
	Delete int64 `json:"delete"`
}

// cost in dollars.
func (r Requests) cost() float64 {
	return float64(r.List+r.Put)*PutPrice + float64(r.Get)*GetPrice
}

// Collect deletes the chunks that no index refers to, while savers go on. Any number of collectors may run; of two, one
// stops and says so in Reason, or helps. Killed at any point, the next one goes on from there.
//
// The report, never nil, says what is known so far. The error is [ErrUnsafe] if the store cannot do what a collector
// needs, [ErrStateLost] if indexes or chunks are of an epoch that is still to come, and that of the index if one cannot
// be read: then Unreadable names it.
func (c *Cache) Collect(ctx context.Context, o CollectOptions) (*CollectReport, error) {
	mine := *c
	if mine.Progress == nil {
		mine.Progress = new(Progress)
	}
	start := mine.now()
	s := &counted{Store: c.Store}
	mine.Store = s
	g := &collection{cache: &mine, o: o, report: &CollectReport{
		Report: Report{Version: ReportVersion, Action: "gc"}, DryRun: o.DryRun,
	}}
	mine.Progress.start("collecting")
	err := g.run(ctx, c.Store)
	r := g.report
	r.Requests = s.requests()
	r.Cost = r.Requests.cost()
	r.Seconds = mine.now().Sub(start).Seconds()
	return r, err
}

// collection is one run of Collect.
type collection struct {
	cache  *Cache // its Store counts
	o      CollectOptions
	keep   index.Patterns
	report *CollectReport
	// conditions are what the store is known to do, and deleter is it, if it can delete on conditions.
	conditions Conditions
	deleter    conditionalDeleter
	// fresh does not believe what was noted of them.
	fresh bool

	// mark is of the collection that this collector has begun, and target the epoch that it began. Both are zero before.
	mark   *mark
	target uint64
}

// errMoved says that another collector has changed gc/state meanwhile.
var errMoved = errors.New("another collector is at work")

// fasterReason is what a collector says that has lost against another one.
const fasterReason = "another collector was faster, so this one has stopped"

func (g *collection) run(ctx context.Context, plain store.Store) error {
	var err error
	if g.keep, err = index.CompilePatterns(g.o.Keep); err != nil {
		return fmt.Errorf("%w: names to keep: %w", ErrUsage, err)
	}
	if g.o.Grace < 0 || g.o.KeepWithin < 0 {
		return fmt.Errorf("%w: a negative time", ErrUsage)
	}
	f, err := readFormat(ctx, g.cache.Store)
	if errors.Is(err, store.ErrNotExist) {
		g.report.Reason = "nothing was ever saved in this store"
		return nil
	}
	if err != nil {
		return err
	}
	if f.MinWriter > writerLevel {
		return fmt.Errorf("%w: writers of level %d or later only, this nbc has %d", ErrFormat, f.MinWriter, writerLevel)
	}
	if !g.o.DryRun {
		if err := g.checkConditions(ctx, plain); err != nil {
			return err
		}
	}
	// Each round takes the collection one phase further, whoever began it. Others may take it further as well.
	const rounds = 100
	for range rounds {
		st, version, err := stateAndVersion(ctx, g.cache.Store)
		if err != nil {
			return err
		}
		g.report.Epoch = st.Epoch
		done, err := g.round(ctx, st, version)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil || done {
			return err
		}
	}
	return fmt.Errorf("%d rounds, and other collectors were faster in each", rounds)
}

// round takes the collection one phase further. It returns true when there is nothing left to be done.
func (g *collection) round(ctx context.Context, st State, version string) (done bool, err error) {
	if g.o.DryRun {
		if st.Phase != idle {
			g.report.Reason = "a collection is under way, and would be finished first"
		}
		_, err := g.newMark(ctx, st)
		if errors.Is(err, errMoved) {
			return true, fmt.Errorf("%w: try again when it has ended", err)
		}
		return true, err
	}
	if g.target > 0 && (st.Epoch > g.target || st.Phase == idle) {
		return true, g.clean(ctx, st)
	}
	if st.Phase != idle && g.target == 0 {
		g.report.Resumed = true
	}
	switch st.Phase {
	case idle:
		return g.begin(ctx, st, version)
	case fenced:
		return false, g.fence(ctx, st, version)
	case sweeping:
		return false, g.sweep(ctx, st, version)
	}
	return false, fmt.Errorf("%w: %s has the phase %q", ErrFormat, StatePath, st.Phase)
}

// begin marks, and fences all savers of the epoch off.
func (g *collection) begin(ctx context.Context, st State, version string) (done bool, err error) {
	m, err := g.newMark(ctx, st)
	if errors.Is(err, errMoved) {
		g.report.Reason = fasterReason
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if m.condemned.Count == 0 {
		return true, g.clean(ctx, st)
	}
	next := State{
		Version: stateVersion, Epoch: st.Epoch + 1, Fence: st.Epoch, Phase: fenced,
		Condemned: m.condemned, Earlier: st.Dead,
	}
	next.Dead, err = g.putDead(ctx, version, next.Epoch, st.Dead, &m.dead)
	if errors.Is(err, errMoved) {
		g.report.Reason = fasterReason
		return true, nil
	}
	if err != nil {
		return false, err
	}
	won, err := g.swap(ctx, &next, version)
	if err != nil {
		return false, err
	}
	if !won {
		g.report.Reason = fasterReason
		return true, nil
	}
	g.mark, g.target = m, next.Epoch
	return false, nil
}

// fence finds out what indexes refer to all the same, now that no save that this could miss can be acknowledged any
// more, and records what goes.
func (g *collection) fence(ctx context.Context, st State, version string) error {
	var known map[string]string
	if g.mark != nil && g.target == st.Epoch {
		// What the indexes refer to that the mark has read was not condemned.
		known = g.mark.versions
	}
	g.cache.Progress.phase("reading indexes after the fence")
	var refs references
	list, err := g.listIndexes(ctx)
	if err != nil {
		return err
	}
	if err := g.readIndexes(ctx, st, list, known, func(x indexKeys) { refs.add(x.chunks) }); err != nil {
		return err
	}
	refs.settle()

	next := st
	next.Phase, next.Earlier = sweeping, nil
	var spared Amount
	if refs.len() > 0 {
		if spared, err = g.spare(ctx, st, version, &refs, &next); err != nil {
			return err
		}
	}
	won, err := g.swap(ctx, &next, version)
	if won {
		g.report.Spared.merge(spared)
	}
	return err
}

// spare completes next, the state to come, with what of the condemned is in refs.
func (g *collection) spare(
	ctx context.Context, st State, version string, refs *references, next *State,
) (amount Amount, err error) {
	var gone deadList
	var spared []uint64
	err = g.eachCondemned(ctx, st.Condemned, func(k condemnedKey) error {
		if refs.has(k.Key) {
			spared = append(spared, Fingerprint(k.Key))
			amount.add(k.size)
		} else {
			gone.add(k.Key)
		}
		return nil
	})
	if errors.Is(err, errManifest) {
		if err := g.unchanged(ctx, version); err != nil {
			return Amount{}, err
		}
		// Nobody knows what was condemned, and nothing of it was deleted. So nothing will be.
		g.warn("what was condemned is lost, so nothing is deleted: %v", err)
		next.Phase, next.Condemned = idle, nil
		next.Dead, err = g.putDead(ctx, version, st.Epoch, st.Earlier, &deadList{})
		return Amount{}, err
	}
	if err != nil || len(spared) == 0 {
		return Amount{}, err
	}
	if next.Spared, err = g.putSpared(ctx, st.Epoch, spared); err != nil {
		return Amount{}, err
	}
	next.Dead, err = g.putDead(ctx, version, st.Epoch, st.Earlier, &gone)
	return amount, err
}

// sweep deletes what is recorded to go.
func (g *collection) sweep(ctx context.Context, st State, version string) error {
	g.cache.Progress.phase("deleting chunks")
	spared, err := g.readSpared(ctx, st.Spared)
	if err == nil {
		d := newDeletion(ctx, g)
		err = g.eachCondemned(ctx, st.Condemned, func(k condemnedKey) error {
			if _, ok := slices.BinarySearch(spared, Fingerprint(k.Key)); ok {
				return nil
			}
			return d.add(k)
		})
		if err2 := d.wait(); err2 != nil {
			err = err2
		}
		g.report.Deleted.merge(d.deleted)
	}
	if errors.Is(err, errManifest) {
		if err := g.unchanged(ctx, version); err != nil {
			return err
		}
		g.warn("what is to be deleted is lost in part, so that waits for another collection: %v", err)
	} else if err != nil {
		return err
	}
	st.Phase, st.Condemned, st.Spared = idle, nil, nil
	_, err = g.swap(ctx, &st, version)
	return err
}

// unchanged returns errMoved if gc/state has another version by now: then what is not there any more was removed by the
// collector that has gone on.
func (g *collection) unchanged(ctx context.Context, version string) error {
	_, now, err := stateAndVersion(ctx, g.cache.Store)
	if err == nil && now != version {
		err = errMoved
	}
	return err
}

// swap replaces gc/state if it still has that version, and says whether it did.
func (g *collection) swap(ctx context.Context, next *State, version string) (bool, error) {
	next.Writer = randomName()
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return false, err
	}
	data = append(data, '\n')
	condition := store.Condition{IfAbsent: version == "", IfVersion: version}
	if !g.conditions.works() { // and nobody else does this
		if err := g.unchanged(ctx, version); errors.Is(err, errMoved) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		condition = store.Condition{}
	}
	_, err = g.cache.Store.Put(ctx, StatePath, data, condition)
	if errors.Is(err, store.ErrConflict) {
		// If the reply to a first attempt was lost, the conflict may be with oneself.
		o, err := g.cache.Store.Get(ctx, StatePath, store.Read{Max: maxSmall})
		if errors.Is(err, store.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("reading %s: %w", StatePath, err)
		}
		if string(o.Data) != string(data) {
			return false, nil
		}
	} else if err != nil {
		return false, fmt.Errorf("putting %s: %w", StatePath, err)
	}
	g.report.Epoch = next.Epoch
	return true, nil
}

func (g *collection) warn(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	g.report.Warnings = append(g.report.Warnings, text)
	g.cache.log().Warn(text)
}

// counted counts the requests that S3 would charge for.
type counted struct {
	store.Store
	list, get, put, del atomic.Int64
}

// page is how many objects S3 lists, or deletes, in one request.
const page = 1000

func (c *counted) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	c.get.Add(1)
	return c.Store.Get(ctx, key, r)
}

func (c *counted) Put(ctx context.Context, key string, data []byte, cond store.Condition) (string, error) {
	c.put.Add(1)
	return c.Store.Put(ctx, key, data, cond)
}

func (c *counted) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	n := int64(0)
	defer func() { c.list.Add(max(1, (n+page-1)/page)) }()
	return c.Store.List(ctx, prefix, func(i store.Info) error {
		n++
		return yield(i)
	})
}

func (c *counted) Delete(ctx context.Context, keys ...string) error {
	c.del.Add(int64((len(keys) + page - 1) / page))
	return c.Store.Delete(ctx, keys...)
}

func (c *counted) requests() Requests {
	return Requests{List: c.list.Load(), Get: c.get.Load(), Put: c.put.Load(), Delete: c.del.Load()}
}
