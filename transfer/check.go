package transfer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// CheckOptions say what to check. The zero value finds out whether all chunks are there that indexes refer to.
type CheckOptions struct {
	// Names are cache names and patterns of them, as [Cache.List] has them; none stands for all.
	Names []string
	// ReadData reads every chunk that they refer to, and all of each index, and verifies them.
	ReadData bool
	// Sample, if not 0, reads only so many of 100 chunks, others at each check.
	Sample float64
	// Repair, unless nil, has copies of chunks, of which those are put that are missing or damaged.
	Repair Copies
	// Probe tries out the store's conditional writes, and notes what was found for collections.
	Probe bool
}

// Copies are chunks as stored, for example those of a near store. What it returns may be damaged.
type Copies interface {
	Copy(id chunk.ID) (stored []byte, ok bool)
}

// BrokenFile is an artifact that cannot be restored as it was saved.
type BrokenFile struct {
	// Name is the cache name, Path that of the file in its tree.
	Name string `json:"name"`
	Path string `json:"path"`
	// Chunk is the key of the first chunk that it lacks, and Problem what it is with that: "missing" or "damaged".
	Chunk   string `json:"chunk"`
	Problem string `json:"problem"`
}

const (
	problemMissing = "missing"
	problemDamaged = "damaged"
)

// CheckReport is what a check has found.
type CheckReport struct {
	Report
	// Reason says why there was nothing to be checked.
	Reason string `json:"reason,omitempty"`
	// Names counts the indexes, Chunks the different chunks that they refer to.
	Names  int   `json:"count"`
	Chunks int64 `json:"chunks"`
	// Read are the chunks that were read and verified.
	Read Amount `json:"read"`
	// Broken are the names that cannot be restored in full. Dead are those whose save was never acknowledged, and whose
	// chunks were collected: no damage; the next collection drops them.
	Broken []BrokenName `json:"broken,omitempty"`
	Dead   []string     `json:"dead,omitempty"`
	// Missing and Damaged count the chunks that the broken names lack, once for each of these; Repaired those that were
	// put again.
	Missing  int64 `json:"missing"`
	Damaged  int64 `json:"damaged"`
	Repaired int64 `json:"repaired"`
	// Unreadable are the indexes that could not be read, Absent the names that were asked for and are not there.
	Unreadable []Refusal `json:"unreadable,omitempty"`
	Absent     []string  `json:"absent,omitempty"`
	// Conditions are what the store's conditional writes were found to do, if they were tried out.
	Conditions *Conditions `json:"conditions,omitempty"`

	Requests Requests `json:"requests"`
	// Cost of the requests in dollars, at the prices of a collection's.
	Cost float64 `json:"cost_usd"`
}

// BrokenName is a cache name that lacks chunks.
type BrokenName struct {
	Name    string `json:"name"`
	Missing int    `json:"missing"`
	Damaged int    `json:"damaged"`
	Files   int    `json:"files"`
}

// Check finds out whether the indexes of the store can be read, and whether their chunks are there and, with ReadData,
// what they should be. Beside savers and collectors it may run at any time; it changes nothing, unless it is asked to
// repair or to probe. It calls found for each file that cannot be restored, in the order of the names and of their
// paths.
//
// Chunks are found by one listing; of some names alone, or where all are read anyway, by a request for each. Keys are
// remembered by their fingerprints, of 8 bytes each: that a missing chunk is taken for one that is there has a chance
// of n/2^64 among n chunks, one in 10^12 among 10 million. Where all chunks are read each is asked for by its own key.
//
// The error is that of found; or, when all was checked, [ErrMissing], [chunk.ErrCorrupt] or that of an index if
// anything is broken, store.ErrNotExist if a name is not there, and [ErrUnsafe] if the store's conditional writes were
// tried out and do not work. The report, never nil, says what is known.
func (c *Cache) Check(ctx context.Context, o CheckOptions, found func(BrokenFile) error) (*CheckReport, error) {
	mine := c.working("checking")
	start := mine.now()
	s := &counted{Store: c.Store}
	mine.Store = s
	r := &CheckReport{Report: Report{Version: ReportVersion, Action: "check"}}
	k := &checking{
		collection: &collection{cache: mine, report: &CollectReport{}, fresh: true},
		o:          o, report: r, found: found, versions: map[string]string{}, seed: rand.Uint64(),
	}
	err := k.run(ctx, c.Store)
	r.Requests = s.requests()
	r.Cost = r.Requests.cost()
	r.Seconds = mine.now().Sub(start).Seconds()
	return r, err
}

// checking is one run of Check. Of the collection that it has in it, which never begins, it uses what reads the store.
type checking struct {
	*collection
	o      CheckOptions
	report *CheckReport
	found  func(BrokenFile) error
	seed   uint64 // of the sample

	state State
	dead  dead
	list  []store.Info
	refs  references
	marks checkMarks
	// versions are those of the indexes whose references are in refs, by their keys in the store.
	versions map[string]string

	mu sync.Mutex
	un unreadable
}

func (k *checking) run(ctx context.Context, plain store.Store) error {
	if k.o.Sample < 0 || k.o.Sample > 100 {
		return fmt.Errorf("%w: a sample of %g %%", ErrUsage, k.o.Sample)
	}
	sel, err := selectNames(k.o.Names)
	if err != nil {
		return err
	}
	names, err := k.cache.listNames(ctx, sel)
	if errors.Is(err, errNothing) {
		k.report.Reason = nothingReason
		k.report.Absent = sel.missing()
		return absentError(k.report.Absent)
	}
	if err != nil {
		return err
	}
	var unsafe error
	if k.o.Probe {
		if unsafe, err = k.probe(ctx, plain); err != nil {
			return err
		}
	}
	for _, n := range names {
		k.list = append(k.list, n.info)
	}
	if err := k.unmoved(ctx, func() error { return k.look(ctx, sel) }); err != nil {
		return err
	}
	if err := k.findBroken(ctx); err != nil {
		return err
	}
	slices.SortFunc(k.un.list, func(a, b Refusal) int { return strings.Compare(a.Name, b.Name) })
	k.report.Unreadable, k.report.Absent = k.un.list, sel.missing()
	return errors.Join(k.broken(), k.un.err(), absentError(k.report.Absent), unsafe)
}

// broken is the error of what was found.
func (k *checking) broken() error {
	r := k.report
	var err error
	switch {
	case len(r.Broken) == 0:
		return nil
	case r.Missing > 0:
		err = ErrMissing
	default:
		err = chunk.ErrCorrupt
	}
	return fmt.Errorf("%d of %d names cannot be restored in full: %w", len(r.Broken), r.Names, err)
}

// probe tries out the store's conditional writes. Unsafe is what is wrong with them.
func (k *checking) probe(ctx context.Context, plain store.Store) (unsafe, err error) {
	switch err := k.learnConditions(ctx, plain); {
	case errors.Is(err, ErrUnsafe):
		return err, nil
	case err != nil:
		return nil, err
	}
	c := &k.conditions
	k.report.Conditions = c
	if !c.works() {
		return c.unsafe(), nil
	}
	return c.dropping(), nil
}

// unmoved does something with the state of the store, and again if a collection has begun another epoch meanwhile.
func (k *checking) unmoved(ctx context.Context, do func() error) error {
	const tries = 5
	for try := 1; ; try++ {
		var err error
		if k.state, err = readState(ctx, k.cache.Store); err != nil {
			return err
		}
		if err = do(); !errors.Is(err, errMoved) || try == tries {
			return err
		}
	}
}

// look reads what all indexes refer to, and finds out which of it is there and, if asked to, whole.
func (k *checking) look(ctx context.Context, sel *selection) error {
	p := k.cache.Progress
	p.phase("reading indexes")
	k.refs, k.un, k.report.Names, k.report.Read = references{}, unreadable{}, 0, Amount{}
	clear(k.versions)
	un, err := k.eachIndex(ctx, k.state, k.list, nil, func(x indexKeys) {
		if !x.tombstone {
			k.refs.add(x.chunks)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if x.tombstone {
			sel.absent(x.name)
			return
		}
		k.versions[x.info.Key] = x.info.Version
		k.report.Names++
	})
	if err != nil {
		return err
	}
	k.un = un
	k.refs.settle()
	k.marks.settle(&k.refs)
	k.report.Chunks = int64(k.refs.len())

	all := k.o.ReadData && (k.o.Sample == 0 || k.o.Sample == 100)
	if !all && len(k.o.Names) == 0 {
		err := k.listChunks(ctx, func(ctx context.Context, prefix string, stop func(store.Info) bool) error {
			return k.cache.Store.List(ctx, prefix, func(info store.Info) error {
				if stop != nil && stop(info) {
					return errStopped
				}
				key, err := chunk.ParsePath(info.Key)
				if err != nil {
					return nil
				}
				if key.Epoch > k.state.Epoch {
					return k.ahead(ctx, k.state, "chunk "+key.String(), key.Epoch)
				}
				k.marks.there(&k.refs, key, info.Size > 0)
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	if k.o.ReadData || len(k.o.Names) > 0 {
		return k.readChunks(ctx, all)
	}
	return nil
}

// readChunks asks for chunks that indexes refer to, each once: those of the sample in full, others for their first byte
// unless they were listed.
func (k *checking) readChunks(ctx context.Context, all bool) error {
	p := k.cache.Progress
	p.phase("reading chunks")
	reads, rctx := newCrew(ctx, k.cache.requests())
	bytes := semaphore.NewWeighted(inFlight)
	var done atomic.Int64
	each := func(c index.Chunk) error {
		whole := k.o.ReadData && (all || k.sampled(c.Key))
		if !whole && len(k.o.Names) == 0 || !k.marks.claim(&k.refs, c.Key) {
			return nil
		}
		size := int64(chunk.MaxEncoded(c.Length) + c.Length)
		if !whole {
			size = 1
		}
		if bytes.Acquire(rctx, size) != nil {
			return context.Cause(rctx)
		}
		reads.Go(func() error {
			defer bytes.Release(size)
			problem, err := k.readChunk(rctx, c, whole)
			if err != nil {
				return err
			}
			k.marks.found(&k.refs, c.Key, problem)
			if n := done.Add(1); n%100 == 0 {
				p.phase(fmt.Sprintf("reading chunks, %d so far", n))
			}
			return nil
		})
		return nil
	}
	// Few indexes are read ahead of the chunks, which are what takes time, and memory is for them.
	const ahead = 4
	group, gctx := errgroup.WithContext(rctx)
	group.SetLimit(ahead)
	for _, info := range k.list {
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error {
			x, err := k.reread(gctx, info)
			if err != nil || x == nil {
				return err
			}
			for _, c := range x.Chunks {
				if err := each(c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	// What failed first is the reason why the others have ended.
	return errors.Join(reads.Wait(), err)
}

// reread reads an index, with ReadData all of it, so that it is verified as well. It returns nil for one that cannot
// be read, which is noted, and for one that is gone or a tombstone.
func (k *checking) reread(ctx context.Context, info store.Info) (*index.Index, error) {
	if _, ok := k.versions[info.Key]; !ok {
		return nil, nil // noted already, or a tombstone
	}
	name, err := index.ParsePath(info.Key)
	if err != nil {
		return nil, err
	}
	var x *index.Index
	if k.o.ReadData {
		var data []byte
		if data, _, err = k.cache.getIndex(ctx, name); err == nil {
			x, err = index.Decode(data)
		}
	} else {
		x, err = k.cache.readKeys(ctx, name)
	}
	switch {
	case errors.Is(err, store.ErrNotExist):
		return nil, nil
	case errors.Is(err, index.ErrInvalid), errors.Is(err, index.ErrVersion):
		k.cannotRead(name, err)
		return nil, nil
	}
	return x, err
}

// cannotRead notes an index that cannot be read.
func (k *checking) cannotRead(name string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.ContainsFunc(k.un.list, func(r Refusal) bool { return r.Name == name }) {
		k.un.add(name, err)
	}
}

// sampled says whether a chunk is one of the sample.
func (k *checking) sampled(key chunk.Key) bool {
	if k.o.Sample == 0 {
		return true
	}
	// The seed makes it another sample at each check, and the multiplication spreads it.
	h := (Fingerprint(key) ^ k.seed) * 0x9e3779b97f4a7c15
	return float64(h>>11)/(1<<53) < k.o.Sample/100
}

// readChunk says what is wrong with a chunk in the far store: "" if nothing is.
func (k *checking) readChunk(ctx context.Context, c index.Chunk, whole bool) (problem string, err error) {
	if !whole {
		o, err := k.cache.Store.Get(ctx, c.Path(), store.Read{Length: 1, Fresh: true})
		switch {
		case errors.Is(err, store.ErrNotExist):
			return problemMissing, nil
		case err != nil:
			return "", fmt.Errorf("asking for chunk %s: %w", c.Key, err)
		case o.Size == 0 || o.Size > int64(chunk.MaxEncoded(c.Length)):
			return problemDamaged, nil
		}
		return "", nil
	}
	const tries = 2 // it may have been damaged on the way
	for range tries {
		var data []byte
		data, err = k.cache.getChunk(ctx, c, true)
		if errors.Is(err, ErrMissing) {
			return problemMissing, nil
		}
		if err == nil {
			_, err = chunk.Decode(nil, data, c.ID, c.Length)
		}
		if err == nil {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.report.Read.add(int64(len(data)))
			return "", nil
		}
		if !isCorrupt(err) {
			return "", err
		}
	}
	return problemDamaged, nil
}

// findBroken finds the indexes that lack chunks, repairs what can be repaired, and names the files that cannot be
// restored.
func (k *checking) findBroken(ctx context.Context) error {
	if !k.marks.any(&k.refs) {
		return nil
	}
	k.cache.Progress.phase("finding out what is broken")
	var broken []indexKeys
	err := k.unmoved(ctx, func() error {
		broken = nil
		_, err := k.eachIndex(ctx, k.state, k.list, nil, func(x indexKeys) {
			if _, ok := k.versions[x.info.Key]; !ok || !slices.ContainsFunc(x.chunks, k.bad) {
				return
			}
			x.chunks = nil // which may be many, and are read again
			k.mu.Lock()
			defer k.mu.Unlock()
			broken = append(broken, x)
		})
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(broken, func(a, b indexKeys) int { return strings.Compare(a.name, b.name) })
	for _, x := range broken {
		if err := k.examine(ctx, x); err != nil {
			return err
		}
	}
	return nil
}

func (k *checking) bad(c index.Chunk) bool { return k.marks.problem(&k.refs, c.Key) != "" }

// examine looks at one index that lacks chunks.
func (k *checking) examine(ctx context.Context, was indexKeys) error {
	data, version, err := k.cache.getIndex(ctx, was.name)
	if errors.Is(err, store.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, index.ErrInvalid) {
		return err
	}
	var x *index.Index
	if err == nil {
		x, err = index.Decode(data)
	}
	if err != nil {
		k.cannotRead(was.name, err)
		return nil
	}
	problems := map[chunk.Key]string{}
	var lacks []index.Chunk
	for _, c := range x.Chunks {
		if _, again := problems[c.Key]; again || !k.bad(c) {
			continue
		}
		problems[c.Key] = k.marks.problem(&k.refs, c.Key)
		lacks = append(lacks, c)
	}
	// If it was saved since, its old chunks may have been collected, and what it refers to now is asked for.
	if lacks, err = k.still(ctx, lacks, problems, version != k.versions[was.info.Key]); err != nil {
		return err
	}
	if len(lacks) == 0 {
		return nil
	}
	st, err := readState(ctx, k.cache.Store)
	if err != nil {
		return err
	}
	known, err := k.dead.learn(ctx, k.cache.Store, st, x.Epoch)
	if err != nil {
		return err
	}
	if known && k.dead.all(lacks) {
		k.report.Dead = append(k.report.Dead, was.name)
		return nil
	}
	if known && k.o.Repair != nil && len(k.dead.among(lacks)) == 0 {
		if lacks, err = k.repair(ctx, lacks, problems); err != nil {
			return err
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	b := BrokenName{Name: was.name}
	for _, c := range lacks {
		if problems[c.Key] == problemMissing {
			b.Missing++
		} else {
			b.Damaged++
		}
	}
	k.report.Missing += int64(b.Missing)
	k.report.Damaged += int64(b.Damaged)
	err = brokenFiles(x, lacks, func(path string, key chunk.Key) error {
		b.Files++
		return k.found(BrokenFile{Name: was.name, Path: path, Chunk: key.String(), Problem: problems[key]})
	})
	k.report.Broken = append(k.report.Broken, b)
	return err
}

// still returns those of lacks that are not as they should be at this moment, and says what is wrong with them. It asks
// for all of them, or for those that nobody has asked for yet: a listing is no snapshot, and what is put once more while
// it goes on may be left out, in a directory for example. It reads what is damaged in any case: whoever found that so may
// have had another length for it, from an index that is wrong about it.
func (k *checking) still(
	ctx context.Context, lacks []index.Chunk, problems map[chunk.Key]string, all bool,
) (rest []index.Chunk, err error) {
	found := make([]string, len(lacks))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(k.cache.requests())
	for i, c := range lacks {
		found[i] = problems[c.Key]
		if first := k.marks.claim(&k.refs, c.Key); !first && !all && found[i] != problemDamaged {
			continue
		}
		group.Go(func() (err error) {
			if found[i], err = k.readChunk(gctx, c, found[i] == problemDamaged); err == nil {
				k.marks.found(&k.refs, c.Key, found[i])
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, c := range lacks {
		if found[i] != "" {
			problems[c.Key] = found[i]
			rest = append(rest, c)
		}
	}
	return rest, nil
}

// repair puts copies of chunks under their keys again, and returns those that it has none of.
//
// To put a chunk under a key of an earlier epoch is not what a saver may do, who would rely on it. Here an index does
// that relies on it already, and of which the manifests say that none of these keys is dead: so no collector will
// delete them that has not seen it gone. If it is gone when the chunk comes, that is garbage for the next collection,
// and no saver refers to it, as for every key that is dead or nowhere referred to. COLLECT.md says more.
func (k *checking) repair(
	ctx context.Context, lacks []index.Chunk, problems map[chunk.Key]string,
) (rest []index.Chunk, err error) {
	k.cache.Progress.phase("repairing")
	for _, c := range lacks {
		stored, ok := k.o.Repair.Copy(c.ID)
		if ok {
			_, err := chunk.Decode(nil, stored, c.ID, c.Length)
			ok = err == nil
		}
		if !ok {
			rest = append(rest, c)
			continue
		}
		if _, err := k.cache.Store.Put(ctx, c.Path(), stored, store.Condition{}); err != nil {
			return nil, fmt.Errorf("putting chunk %s again: %w", c.Key, err)
		}
		p, err := k.readChunk(ctx, c, true)
		if err != nil {
			return nil, err
		}
		if p != "" {
			problems[c.Key] = p
			rest = append(rest, c)
			continue
		}
		k.report.Repaired++
		k.marks.found(&k.refs, c.Key, "")
	}
	return rest, nil
}

// brokenFiles calls found for the files of x that have a part in one of lacks, and for their other names.
func brokenFiles(x *index.Index, lacks []index.Chunk, found func(path string, key chunk.Key) error) error {
	bad := make(map[chunk.Key]bool, len(lacks))
	for _, c := range lacks {
		bad[c.Key] = true
	}
	files := map[string]chunk.Key{} // that are broken and may have other names
	next, begin := 0, int64(0)      // the chunk that the file begins in, and where that begins
	var pos int64
	for i := range x.Entries {
		e := &x.Entries[i]
		if key, ok := files[e.Target]; ok && e.Kind == index.HardLink {
			if err := found(e.Path, key); err != nil {
				return err
			}
		}
		if e.Kind != index.File || e.Size == 0 {
			continue
		}
		end := pos + e.Size
		for at, start := next, begin; at < len(x.Chunks) && start < end; at++ {
			c := &x.Chunks[at]
			if bad[c.Key] {
				files[e.Path] = c.Key
				if err := found(e.Path, c.Key); err != nil {
					return err
				}
				break
			}
			start += int64(c.Length)
		}
		for next < len(x.Chunks) && begin+int64(x.Chunks[next].Length) <= end {
			begin += int64(x.Chunks[next].Length)
			next++
		}
		pos = end
	}
	return nil
}

// checkMarks says of each of a set of references what was found, in three bits.
type checkMarks struct {
	shards [256]checkShard
}

type checkShard struct {
	mu sync.Mutex
	// seen: it is there. claimed: somebody asks for it. damaged: it is not what it should be.
	seen, claimed, damaged []uint64
}

func (m *checkMarks) settle(r *references) {
	for i := range m.shards {
		words := (len(r.shards[i].list) + 63) / 64
		m.shards[i].seen = make([]uint64, words)
		m.shards[i].claimed = make([]uint64, words)
		m.shards[i].damaged = make([]uint64, words)
	}
}

// at calls do with the place of k, if it is one of the references.
func (m *checkMarks) at(r *references, k chunk.Key, do func(s *checkShard, word int, bit uint64)) {
	i, ok := slices.BinarySearch(r.shards[k.ID[0]].list, Fingerprint(k))
	if !ok {
		return
	}
	s := &m.shards[k.ID[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s, i/64, 1<<(i%64))
}

// there notes that k was listed, and whether there is anything in it.
func (m *checkMarks) there(r *references, k chunk.Key, whole bool) {
	m.at(r, k, func(s *checkShard, word int, bit uint64) {
		s.seen[word] |= bit
		if !whole {
			s.damaged[word] |= bit
		}
	})
}

// claim says whether nobody has asked for k before.
func (m *checkMarks) claim(r *references, k chunk.Key) (mine bool) {
	m.at(r, k, func(s *checkShard, word int, bit uint64) {
		mine = s.claimed[word]&bit == 0
		s.claimed[word] |= bit
	})
	return mine
}

// found notes what k was found to be.
func (m *checkMarks) found(r *references, k chunk.Key, problem string) {
	m.at(r, k, func(s *checkShard, word int, bit uint64) {
		s.seen[word] |= bit
		s.damaged[word] &^= bit
		switch problem {
		case problemMissing:
			s.seen[word] &^= bit
		case problemDamaged:
			s.damaged[word] |= bit
		}
	})
}

// problem says what is wrong with k.
func (m *checkMarks) problem(r *references, k chunk.Key) (problem string) {
	m.at(r, k, func(s *checkShard, word int, bit uint64) {
		switch {
		case s.seen[word]&bit == 0:
			problem = problemMissing
		case s.damaged[word]&bit != 0:
			problem = problemDamaged
		}
	})
	return problem
}

// any says whether anything is wrong with any reference.
func (m *checkMarks) any(r *references) bool {
	for i := range m.shards {
		s := &m.shards[i]
		for j := range r.shards[i].list {
			bit := uint64(1) << (j % 64)
			if s.seen[j/64]&bit == 0 || s.damaged[j/64]&bit != 0 {
				return true
			}
		}
	}
	return false
}
