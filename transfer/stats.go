package transfer

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// This file counts what a store holds and what deduplication buys. It lists the names, lists the chunks, and reads of
// each index what a list of names reads: COLLECT.md has what that costs. It changes nothing, and takes no part in the
// protocol: what is saved or collected meanwhile may be counted or not.
//
// Of a chunk it holds 16 bytes: its fingerprint, its size, and who refers to it.

// StatsOptions say what to count.
type StatsOptions struct {
	// Patterns select the names that are told one by one, as those of [Cache.List] do. All others are counted as well.
	Patterns []string
	// Grace is how young a chunk that nothing refers to must be to be counted as too recent for a collection.
	Grace time.Duration
}

// NameStats is what a cache name takes.
type NameStats struct {
	SavedTree
	// Stored are the chunks that it refers to, each once, as they are stored. Unique are those of them that no other name
	// refers to: what a collection could free if it was dropped.
	Stored Amount `json:"stored"`
	Unique Amount `json:"unique"`
	// Missing counts the chunks that are not in the store.
	Missing int `json:"missing,omitempty"`
}

// Shared returns what of Stored other names refer to as well.
func (n *NameStats) Shared() Amount {
	return Amount{n.Stored.Chunks - n.Unique.Chunks, n.Stored.Bytes - n.Unique.Bytes}
}

// StatsTotals is about all names of the store. Each of its fields counts what the one before it does, less what was
// saved by not storing it.
type StatsTotals struct {
	// Original is the size of all trees, Deduplicated that of their chunks, each counted once, and Stored what these take
	// when compressed.
	Original     int64 `json:"original_bytes"`
	Deduplicated int64 `json:"deduplicated_bytes"`
	Stored       int64 `json:"stored_bytes"`
	// Chunks counts them, each once, and Files the artifacts of all trees.
	Chunks int64 `json:"chunks"`
	Files  int64 `json:"files"`
	// Indexes is what the indexes take beside it.
	Indexes int64 `json:"index_bytes"`
}

// SharedBy are the chunks that so many names refer to: From to To of them.
type SharedBy struct {
	From int `json:"from"`
	To   int `json:"to"`
	Amount
}

// SizeClass are the chunks of From to To bytes of content that some name refers to; Bytes is that content.
type SizeClass struct {
	From int `json:"from"`
	To   int `json:"to"`
	Amount
}

// Day is what was put on a day in UTC, by the store's clock, and is still there.
type Day struct {
	Date string `json:"date"`
	Amount
}

// StatsReport is what was counted.
type StatsReport struct {
	Report
	// Reason says why there is nothing, if nothing was ever saved.
	Reason string      `json:"reason,omitempty"`
	Names  []NameStats `json:"names"`
	// Count is how many names there are in all, Tombstones how many were dropped and not removed yet.
	Count      int         `json:"count"`
	Tombstones int         `json:"tombstones"`
	Totals     StatsTotals `json:"totals"`
	// Sharing are the chunks by how many names refer to them, Sizes by their size. Classes without any are left out.
	Sharing []SharedBy  `json:"sharing"`
	Sizes   []SizeClass `json:"sizes"`
	// Growth are all chunks in the store, referred to or not, by the day on which they were put. It cannot tell of those
	// that were deleted.
	Growth []Day `json:"growth"`
	// Unreferenced are the chunks that no name refers to; TooRecent are those of them that are younger than the grace:
	// they may be of saves that are at work.
	Unreferenced Amount `json:"unreferenced"`
	TooRecent    Amount `json:"too_recent"`
	// Missing counts the chunks that names refer to and the store does not have, once for each name.
	Missing int `json:"missing"`
	// Unreadable are indexes that could not be read. What only they refer to is counted as unreferenced.
	Unreadable []Refusal `json:"unreadable,omitempty"`
	// Absent are the names that were asked for and are not there.
	Absent []string `json:"absent,omitempty"`

	Requests Requests `json:"requests"`
	Cost     float64  `json:"cost_usd"`
}

// Stats counts what the store holds. The errors are those of [Cache.List]; then the rest was counted. The report is
// never nil.
func (c *Cache) Stats(ctx context.Context, o StatsOptions) (*StatsReport, error) {
	mine := c.working("listing names")
	counting := &counted{Store: c.Store}
	mine.Store = counting
	start := mine.now()
	s := &stats{cache: mine, o: o, report: &StatsReport{
		Report: Report{Version: ReportVersion, Action: "stats"},
		Names:  []NameStats{}, Sharing: []SharedBy{}, Sizes: []SizeClass{}, Growth: []Day{},
	}}
	err := s.run(ctx)
	r := s.report
	r.Requests = counting.requests()
	r.Cost = r.Requests.cost()
	r.Seconds = mine.now().Sub(start).Seconds()
	return r, err
}

// stats is one run of Stats.
type stats struct {
	cache  *Cache
	o      StatsOptions
	report *StatsReport
	table  chunkTable

	mu     sync.Mutex
	growth map[int64]Amount // by the number of the day since 1970
	sizes  [sizeClasses]Amount
	// names are those of the store, with their amounts.
	names []nameCount
}

// nameCount is what has to be kept of a name, whether it is told or not.
type nameCount struct {
	stored, unique Amount
	missing        int
}

// sizeClasses is the number of powers of two that a size can have.
const sizeClasses = 32

func (s *stats) run(ctx context.Context) error {
	sel, err := selectNames(s.o.Patterns)
	if err != nil {
		return err
	}
	all, err := selectNames(nil)
	if err != nil {
		return err
	}
	// The names come before the chunks: an index that was listed has all of its chunks in the store already, so that one
	// that the listing does not have is missing.
	list, err := s.cache.listNames(ctx, all)
	if errors.Is(err, errNothing) {
		s.report.Reason = nothingReason
		s.report.Absent = sel.missing()
		return absentError(s.report.Absent)
	} else if err != nil {
		return err
	}
	if err := s.listChunks(ctx); err != nil {
		return err
	}
	s.table.settle()
	s.cache.Progress.phase("reading indexes")
	s.names = make([]nameCount, len(list))
	var rows []int // of s.names, for the report's
	r := s.report
	un, err := s.cache.eachSummary(ctx, list, s.count, func(x *summary) error {
		if x.Tombstone() {
			r.Tombstones++
			return nil
		}
		r.Count++
		t := newSavedTree(x)
		r.Totals.Original += t.Bytes
		r.Totals.Files += int64(t.Files)
		r.Totals.Indexes += t.IndexBytes
		r.Missing += s.names[x.at].missing
		if sel.has(x.name) {
			r.Names = append(r.Names, NameStats{SavedTree: t})
			rows = append(rows, x.at)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.finish()
	for i, at := range rows {
		n := &s.names[at]
		r.Names[i].Stored, r.Names[i].Unique, r.Names[i].Missing = n.stored, n.unique, n.missing
	}
	r.Unreadable, r.Absent = un.list, sel.missing()
	return errors.Join(un.err(), absentError(r.Absent))
}

// lastDay bounds the days that are told apart, whatever times a store makes up: it is in 2134.
const lastDay = 60_000

// listChunks fills the table and the growth.
func (s *stats) listChunks(ctx context.Context) error {
	s.growth = map[int64]Amount{}
	since := s.cache.now().Add(-s.o.Grace)
	var all atomic.Int64
	lister := &collection{cache: s.cache}
	return lister.listChunks(ctx, func(ctx context.Context, prefix string, stop func(store.Info) bool) error {
		growth := map[int64]Amount{}
		err := s.cache.Store.List(ctx, prefix, func(info store.Info) error {
			if stop != nil && stop(info) {
				return errStopped
			}
			k, err := chunk.ParsePath(info.Key)
			if err != nil {
				return nil
			}
			s.table.add(k, info.Size, s.o.Grace > 0 && info.Modified.After(since))
			day := min(max(info.Modified.Unix()/(24*60*60), 0), lastDay)
			a := growth[day]
			a.add(info.Size)
			growth[day] = a
			if n := all.Add(1); n%(10*page) == 0 {
				s.cache.Progress.phase(fmt.Sprintf("listing chunks, %d so far", n))
			}
			return nil
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		for day, a := range growth {
			a.merge(s.growth[day])
			s.growth[day] = a
		}
		return err
	})
}

// count adds up the chunks of one index. It may be called concurrently.
func (s *stats) count(x *summary) {
	n := &s.names[x.at]
	var sizes [sizeClasses]Amount
	var plain int64
	for _, u := range distinct(x.Chunks) {
		size, first, ok := s.table.use(u, uint32(x.at))
		if !ok {
			if x.listed == x.info.Version {
				n.missing++
			}
			continue // or it was put after the chunks were listed
		}
		n.stored.add(size)
		if first {
			class := &sizes[bits.Len32(u.length)-1]
			class.add(int64(u.length))
			plain += int64(u.length)
		}
	}
	x.chunkCount, x.Chunks = len(x.Chunks), nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report.Totals.Deduplicated += plain
	for i := range sizes {
		s.sizes[i].merge(sizes[i])
	}
}

// finish computes what can be told only when all indexes were read.
func (s *stats) finish() {
	r := s.report
	sharing := map[int]Amount{} // by powers of two
	s.table.each(func(f *chunkFacts) {
		size := f.size()
		switch users := f.users(); {
		case users == 0:
			r.Unreferenced.add(size)
			if f.recent() {
				r.TooRecent.add(size)
			}
			return
		case users == 1:
			s.names[f.user()].unique.add(size)
			fallthrough
		default:
			r.Totals.Chunks++
			r.Totals.Stored += size
			class := bits.Len(uint(users - 1)) // 1, 2, 3 to 4, 5 to 8, ...
			a := sharing[class]
			a.add(size)
			sharing[class] = a
		}
	})
	for class := range 32 {
		if a, ok := sharing[class]; ok {
			r.Sharing = append(r.Sharing, SharedBy{From: 1<<class/2 + 1, To: 1 << class, Amount: a})
		}
	}
	for i, a := range s.sizes {
		if a.Chunks > 0 {
			r.Sizes = append(r.Sizes, SizeClass{From: 1 << i, To: 2<<i - 1, Amount: a})
		}
	}
	for day, a := range s.growth {
		r.Growth = append(r.Growth, Day{time.Unix(day*24*60*60, 0).UTC().Format(time.DateOnly), a})
	}
	slices.SortFunc(r.Growth, func(a, b Day) int { return strings.Compare(a.Date, b.Date) })
}

// used is a chunk of an index.
type used struct {
	print  uint64
	length uint32
	shard  byte
}

// distinct returns each chunk once.
func distinct(chunks []index.Chunk) []used {
	list := make([]used, len(chunks))
	for i := range chunks {
		c := &chunks[i]
		list[i] = used{Fingerprint(c.Key), uint32(c.Length), c.ID[0]} // chunk.MaxSize is 2^23
	}
	slices.SortFunc(list, func(a, b used) int {
		switch {
		case a.print < b.print:
			return -1
		case a.print > b.print:
			return 1
		}
		return 0
	})
	return slices.CompactFunc(list, func(a, b used) bool { return a.print == b.print })
}

// chunkTable holds the fingerprints of all chunks of a store, in 256 parts by the first byte of the ID, with their facts.
type chunkTable struct {
	shards [256]tableShard
}

type tableShard struct {
	prints []uint64 // sorted when settled
	facts  []chunkFacts
}

// chunkFacts are the size of a chunk, and who refers to it: nobody (0), one name (its number and 1), or more (their
// number, and shared). So large a size does not occur: the largest chunk has 2^23 bytes.
type chunkFacts struct{ what, who uint32 }

const (
	recentBit = 1 << 31
	sharedBit = 1 << 31
)

func (f *chunkFacts) size() int64  { return int64(f.what &^ recentBit) }
func (f *chunkFacts) recent() bool { return f.what&recentBit != 0 }

// users returns how many names refer to it, and user the number of the only one.
func (f *chunkFacts) users() int {
	if f.who&sharedBit != 0 {
		return int(f.who &^ sharedBit)
	}
	return int(min(f.who, 1))
}

func (f *chunkFacts) user() int { return int(f.who) - 1 }

// add adds a chunk. It may be called concurrently for IDs that begin differently.
func (t *chunkTable) add(k chunk.Key, size int64, recent bool) {
	s := &t.shards[k.ID[0]]
	what := uint32(min(max(size, 0), recentBit-1))
	if recent {
		what |= recentBit
	}
	s.prints = append(s.prints, Fingerprint(k))
	s.facts = append(s.facts, chunkFacts{what: what})
}

// settle ends the adding and begins the asking.
func (t *chunkTable) settle() {
	for i := range t.shards {
		s := &t.shards[i]
		if !slices.IsSorted(s.prints) { // it is if all chunks are of one epoch
			sort.Sort(s)
		}
		s.prints, s.facts = slices.Clip(slices.Clone(s.prints)), slices.Clip(slices.Clone(s.facts))
	}
}

func (s *tableShard) Len() int           { return len(s.prints) }
func (s *tableShard) Less(i, j int) bool { return s.prints[i] < s.prints[j] }
func (s *tableShard) Swap(i, j int) {
	s.prints[i], s.prints[j] = s.prints[j], s.prints[i]
	s.facts[i], s.facts[j] = s.facts[j], s.facts[i]
}

// use notes that the name of that number refers to a chunk, which it may do once, and returns the size that the chunk
// has in the store, and whether this is the first name that does. It may be called concurrently.
func (t *chunkTable) use(u used, name uint32) (size int64, first, ok bool) {
	s := &t.shards[u.shard]
	i, ok := slices.BinarySearch(s.prints, u.print)
	if !ok {
		return 0, false, false
	}
	f := &s.facts[i]
	for {
		was := atomic.LoadUint32(&f.who)
		var now uint32
		switch {
		case was == 0:
			now = name + 1
		case was&sharedBit == 0:
			now = sharedBit | 2
		default:
			now = was + 1
		}
		if atomic.CompareAndSwapUint32(&f.who, was, now) {
			return f.size(), was == 0, true
		}
	}
}

func (t *chunkTable) each(do func(*chunkFacts)) {
	for i := range t.shards {
		for j := range t.shards[i].facts {
			do(&t.shards[i].facts[j])
		}
	}
}
