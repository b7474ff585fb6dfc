package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// This file runs the real code against an adversary: Restore, Save, Collect, DropIndex and Check of several processes,
// over a store in memory that answers one request at a time, chosen by a seed; a listing takes several. Processes are stopped, killed at any request,
// and lose answers; what they had asked for when they were killed may be executed at any later time. After every
// request that matters, the store is looked at as a whole.

var (
	seedsFlag = flag.Int("gc-seeds", 2000, "how many seeds of the collection's adversary to run")
	seedFlag  = flag.Int64("gc-seed", -1, "run only this seed, and tell what happens")
	lieFlag   = flag.Int("gc-lie", -1, "with -gc-seed, the number of the lie that the store tells")
)

// errKilled is what the requests of a killed process get.
var errKilled = fmt.Errorf("%w: the process was killed", store.ErrUnavailable)

// request is one that waits for its turn.
type request struct {
	from *instance
	op   storetest.Op
	key  string
	keys []string
	data []byte
	cond store.Condition
	read store.Read
	// deleteIf is the version of a conditional delete.
	deleteIf string
	// after is the last key of a listing that was answered already.
	after string
	reply chan reply
}

type reply struct {
	object  store.Object
	version string
	list    []store.Info
	more    bool // there are more to be listed
	err     error
}

func (r *request) String() string {
	s := fmt.Sprintf("%-9s %-6s %s", r.from.name, r.op, short(r.key))
	for _, k := range r.keys[min(1, len(r.keys)):] {
		s += " " + short(k)
	}
	switch {
	case r.cond.IfAbsent:
		s += " if absent"
	case r.cond.IfVersion != "":
		s += " if " + r.cond.IfVersion
	case r.deleteIf != "":
		s += " if " + r.deleteIf
	case r.after != "":
		s += " after " + short(r.after)
	}
	return s
}

// short makes a chunk's path readable.
func short(key string) string {
	if k, err := chunk.ParsePath(key); err == nil {
		return fmt.Sprintf("%x.%d", k.ID[:3], k.Epoch)
	}
	return key
}

// instance is a process from its start to its end, as a store sees it.
type instance struct {
	w    *arena
	name string
	// kind is saver, collector, dropper or checker.
	kind string
	dead bool // guarded by w.mu

	// What the arena notes of it, at its requests.
	seen     map[string]string // versions of objects, as it last read them
	put      map[string]string // versions of the indexes that it put last
	tree     map[string]string // what it is saving
	putIndex bool              // it has put an index
	// For lies: gc/state and the listing of indexes as it read them first, and whether it is past a fence.
	state   reply
	indexes []store.Info
	fencing bool
	// blind says of chunks, by their keys, whether this process takes them for missing, until it has put them again; nil
	// if it sees all.
	blind map[string]bool
}

var _ store.Store = (*instance)(nil)

func (i *instance) ask(ctx context.Context, r *request) reply {
	r.from, r.reply = i, make(chan reply, 1)
	i.w.mu.Lock()
	if i.dead || ctx.Err() != nil {
		i.w.mu.Unlock()
		return reply{err: errors.Join(errKilled, context.Cause(ctx))}
	}
	i.w.pending = append(i.w.pending, r)
	i.w.mu.Unlock()
	return <-r.reply // also when ctx has ended: the request is on its way
}

func (i *instance) Get(ctx context.Context, key string, r store.Read) (store.Object, error) {
	a := i.ask(ctx, &request{op: storetest.Get, key: key, read: r})
	return a.object, a.err
}

func (i *instance) Put(ctx context.Context, key string, data []byte, c store.Condition) (string, error) {
	a := i.ask(ctx, &request{op: storetest.Put, key: key, data: bytes.Clone(data), cond: c})
	return a.version, a.err
}

func (i *instance) List(ctx context.Context, prefix string, yield func(store.Info) error) error {
	after := ""
	for {
		a := i.ask(ctx, &request{op: storetest.List, key: prefix, after: after})
		for _, info := range a.list {
			if err := yield(info); err != nil {
				return err
			}
			after = info.Key
		}
		if a.err != nil || !a.more {
			return a.err
		}
	}
}

func (i *instance) Delete(ctx context.Context, keys ...string) error {
	return i.ask(ctx, &request{op: storetest.Delete, key: keys[0], keys: slices.Clone(keys)}).err
}

func (i *instance) DeleteIf(ctx context.Context, key, version string) error {
	return i.ask(ctx, &request{op: storetest.Delete, key: key, keys: []string{key}, deleteIf: version}).err
}

// arena is one run of one seed.
type arena struct {
	t   testing.TB
	rng *rand.Rand
	mem store.Store
	lie lie
	log []string

	mu      sync.Mutex
	pending []*request
	late    []*request
	running int

	weights map[string]int
	steps   int
	// What is known of indexes, by key and version.
	acked, destroyed map[string]bool
	trees            map[string]map[string]string
	// physical maps a chunk's ID to the epoch under which the store has it, for the lie of the same key.
	physical map[chunk.ID]uint64
	// copies are all chunks that were ever put.
	copies map[chunk.ID][]byte

	broken                              []string
	saves, hits, collections, deletions int
	kills, lates, repairs               int
}

func (w *arena) say(format string, a ...any) { w.log = append(w.log, fmt.Sprintf(format, a...)) }

func (w *arena) breaks(format string, a ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, a...))
	w.say("BROKEN: %s", w.broken[len(w.broken)-1])
}

// instance starts a process.
func (w *arena) instance(name, kind string) *instance {
	return &instance{
		w: w, name: name, kind: kind, seen: map[string]string{}, put: map[string]string{}, state: absent,
	}
}

// run lets the adversary choose until all processes have ended.
func (w *arena) run() {
	for quiet := 0; ; {
		// Whoever waits for the clock of the file system, which goes on by itself, has waited long enough after this: so
		// the seed alone decides.
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		w.mu.Lock()
		if w.running == 0 {
			w.mu.Unlock()
			return
		}
		if len(w.pending) == 0 {
			w.mu.Unlock()
			if quiet++; quiet > 1000 {
				w.breaks("nothing goes on")
				return
			}
			continue
		}
		quiet = 0
		w.step()
		w.mu.Unlock()
	}
}

// step executes one request, or kills a process.
func (w *arena) step() {
	w.steps++
	// In the same order for the same seed, whichever goroutine came first.
	slices.SortStableFunc(w.pending, func(a, b *request) int {
		return strings.Compare(a.from.name+string(a.op)+a.key, b.from.name+string(b.op)+b.key)
	})
	if w.steps%25 == 1 {
		// Some are fast for a while, and some are stopped.
		clear(w.weights)
	}
	total := 0
	for _, r := range w.pending {
		if _, ok := w.weights[r.from.name]; !ok {
			w.weights[r.from.name] = []int{1, 1, 10, 100, 1000}[w.rng.IntN(5)]
		}
		total += w.weights[r.from.name]
	}
	if len(w.late) > 0 && w.rng.IntN(15) == 0 {
		i := w.rng.IntN(len(w.late))
		r := w.late[i]
		w.late = slices.Delete(w.late, i, i+1)
		w.lates++
		w.say("late: %v", r)
		w.execute(r)
		return
	}
	n := w.rng.IntN(total)
	var r *request
	for _, r = range w.pending {
		if n -= w.weights[r.from.name]; n < 0 {
			break
		}
	}
	if w.rng.IntN(60) == 0 {
		w.kill(r.from)
		return
	}
	w.pending = slices.DeleteFunc(w.pending, func(o *request) bool { return o == r })
	a := w.execute(r)
	if w.rng.IntN(200) == 0 {
		w.say("%v: the answer is lost", r)
		a = reply{err: fmt.Errorf("%w: the answer was lost", store.ErrUnavailable)}
	} else {
		w.say("%v: %v %v", r, a.version+a.object.Version, a.err)
	}
	r.reply <- a
}

func (w *arena) kill(i *instance) {
	i.dead = true
	w.kills++
	w.say("%s is killed", i.name)
	w.pending = slices.DeleteFunc(w.pending, func(r *request) bool {
		if r.from != i {
			return false
		}
		if (r.op == storetest.Put || r.op == storetest.Delete) && w.rng.IntN(3) > 0 {
			w.late = append(w.late, r)
		}
		r.reply <- reply{err: errKilled}
		return true
	})
}

// execute lets the store do what is asked, and looks at what that means.
func (w *arena) execute(r *request) (a reply) {
	ctx := context.Background()
	i := r.from
	w.lie.ask(w, r)
	isIndex := strings.HasPrefix(r.key, index.Prefix)
	switch r.op {
	case storetest.Get:
		a.object, a.err = w.mem.Get(ctx, r.key, r.read)
		i.seen[r.key] = a.object.Version
		if i.misses(r.key) {
			a = absent
		}
	case storetest.List:
		const page = 4
		a.err = w.mem.List(ctx, r.key, func(info store.Info) error {
			switch {
			case info.Key <= r.after || i.misses(info.Key):
			case len(a.list) == page:
				a.more = true
			default:
				a.list = append(a.list, info)
			}
			return nil
		})
	case storetest.Put:
		old, oldErr := w.version(r.key)
		a.version, a.err = w.mem.Put(ctx, r.key, r.data, r.cond)
		if k, err := chunk.ParsePath(r.key); err == nil {
			w.copies[k.ID] = r.data
			if i.kind == "checker" {
				i.blind[r.key] = false
				w.repairs++
			}
		}
		if isIndex && a.err == nil {
			x, err := index.Decode(r.data)
			switch {
			case err != nil:
				w.breaks("%v put an index that cannot be read: %v", r, err)
			case isTombstone(x):
				if oldErr == nil && old != i.seen[r.key] {
					w.destroy(r, old)
				}
			default:
				i.put[r.key] = a.version
				i.putIndex = true
				w.trees[r.key+a.version] = i.tree
			}
		}
	case storetest.Delete:
		for _, key := range r.keys {
			old, err := w.version(key)
			if err != nil {
				continue
			}
			if r.deleteIf != "" && old != r.deleteIf {
				a.err = store.ErrConflict
				continue
			}
			if strings.HasPrefix(key, index.Prefix) && old != i.seen[key] {
				w.destroy(r, old)
			}
			if err := w.mem.Delete(ctx, key); err != nil {
				w.breaks("%v", err)
			}
			if strings.HasPrefix(key, chunk.Prefix) {
				w.deletions++
			}
		}
	}
	w.lie.answer(w, r, &a)
	if r.op == storetest.Delete || r.op == storetest.Put && isIndex {
		w.look(r)
	}
	return a
}

// misses says whether a process takes a chunk for missing that is there, which it does with each third.
func (i *instance) misses(key string) bool {
	if i.blind == nil || !strings.HasPrefix(key, chunk.Prefix) {
		return false
	}
	if _, ok := i.blind[key]; !ok {
		i.blind[key] = i.w.rng.IntN(3) == 0
	}
	return i.blind[key]
}

// Copy makes the arena a near store that has everything.
func (w *arena) Copy(id chunk.ID) ([]byte, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	data, ok := w.copies[id]
	return data, ok
}

func (w *arena) version(key string) (string, error) {
	o, err := w.mem.Get(context.Background(), key, store.Read{Length: 1})
	return o.Version, err
}

// destroy notes that an index is gone that whoever dropped it had not read.
func (w *arena) destroy(r *request, version string) {
	if w.acked[r.key+version] {
		w.breaks("%v dropped an acknowledged save that it had not seen", r)
	}
	w.destroyed[r.key+version] = true
}

// acknowledged notes that a save was.
func (w *arena) acknowledged(i *instance, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := index.Prefix + name
	version := i.put[key]
	w.saves++
	w.say("%s: the save of %s, version %s, is acknowledged", i.name, name, version)
	if w.destroyed[key+version] {
		w.breaks("%s: the save of %s was acknowledged, and was dropped before by somebody who had not seen it", i.name, name)
	}
	w.acked[key+version] = true
	w.look(nil)
}

// look checks that every current acknowledged save has all its chunks, and that any other index without them is known
// to be dead.
func (w *arena) look(r *request) {
	ctx := context.Background()
	err := w.mem.List(ctx, index.Prefix, func(info store.Info) error {
		o, err := w.mem.Get(ctx, info.Key, store.Read{})
		if err != nil {
			return err
		}
		epoch, chunks, err := index.DecodeChunks(o.Data)
		if err != nil {
			return err
		}
		chunks = slices.DeleteFunc(chunks, func(c index.Chunk) bool {
			_, err := w.version(w.lie.path(w, c.Key))
			return err == nil
		})
		if len(chunks) == 0 {
			return nil
		}
		if w.acked[info.Key+info.Version] {
			w.breaks("after %v, the acknowledged save %s of %s lacks %v", r, info.Version, info.Key, short(chunks[0].Path()))
			delete(w.acked, info.Key+info.Version)
			return nil
		}
		st, err := readState(ctx, w.mem)
		if err != nil {
			return err
		}
		var d dead
		ok, err := d.learn(ctx, w.mem, st, epoch)
		known := d.among(chunks)
		if err != nil || ok && slices.ContainsFunc(chunks, func(c index.Chunk) bool { return !known[c.Key] }) {
			w.breaks("after %v, %s lacks chunks and nothing says so: %v", r, info.Key, err)
		}
		return nil
	})
	if err != nil {
		w.breaks("looking: %v", err)
	}
}

// expected says whether err is one that a process may meet in a arena without mistakes.
func (w *arena) expected(i *instance, err error) bool {
	return err == nil || errors.Is(err, store.ErrUnavailable)
}

var errUnexpected = errors.New("unexpected")

// builder is a machine that builds again and again.
func (w *arena) builder(n, sessions int, dir string, rng *rand.Rand) {
	root, state := filepath.Join(dir, "tree"), filepath.Join(dir, "receipt")
	out := filepath.Join(root, "out")
	name, other := fmt.Sprint("n", n%2), fmt.Sprint("n", (n+1)%2)
	tree := Tree{Dirs: []string{"out"}}
	if err := errors.Join(os.MkdirAll(out, 0o755),
		os.WriteFile(filepath.Join(root, "src"), []byte("source"), 0o644)); err != nil {
		w.t.Error(err)
		return
	}
	for range sessions {
		i := w.instance(fmt.Sprint("builder", n), "saver")
		c := &Cache{Store: i}
		err := func() (err error) {
			b, err := c.Open(root, state, false)
			if err != nil {
				return fmt.Errorf("%w: %w", errUnexpected, err)
			}
			defer func() { err = errors.Join(err, b.Close()) }()
			ctx := context.Background()
			o := SaveOptions{}
			if rng.IntN(4) > 0 {
				r, err := b.Restore(ctx, RestoreOptions{
					Name: name, Fallbacks: []string{other}, Tree: tree, Replace: true, Moved: true,
				})
				if err != nil && !errors.Is(err, ErrMissing) {
					return err
				}
				if r.Hit {
					w.check(i, r.Used, out)
				}
			} else {
				o = SaveOptions{Name: name, Tree: tree}
				if rng.IntN(2) == 0 { // else it may find the other name as a sibling
					o.Fallbacks = []string{other}
				}
			}
			if err := errors.Join(os.MkdirAll(out, 0o755), rebuild(out, rng)); err != nil {
				return err
			}
			w.mu.Lock()
			i.tree = readTree(w.t, out)
			w.mu.Unlock()
			r, err := b.Save(ctx, o)
			if err != nil {
				return err
			}
			if !r.Saved {
				return fmt.Errorf("%w: not saved: %s", errUnexpected, r.Reason)
			}
			w.acknowledged(i, name)
			return nil
		}()
		w.ended(i, err)
	}
}

// ended looks at how a process ended.
func (w *arena) ended(i *instance, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("%s ends: %v", i.name, err)
	if !i.dead && !w.expected(i, err) {
		w.breaks("%s: %v", i.name, err)
	}
}

// blobs are what files may hold. Few of them, so that the same chunks come again after they were deleted.
var blobs = func() (list [][]byte) {
	for i := range 4 {
		b := make([]byte, 1500)
		r := rand.NewChaCha8([32]byte{byte(i)})
		_, _ = r.Read(b)
		list = append(list, b)
	}
	return list
}()

// rebuild writes some of three files.
func rebuild(dir string, rng *rand.Rand) error {
	for f := range 3 {
		path := filepath.Join(dir, fmt.Sprint("f", f))
		if _, err := os.Stat(path); err == nil && rng.IntN(2) == 0 {
			continue
		}
		if err := os.WriteFile(path, blobs[rng.IntN(len(blobs))], 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(path, longAgo, longAgo); err != nil {
			return err
		}
	}
	return os.Chtimes(dir, longAgo, longAgo)
}

// longAgo is the time of all files, so that no restore has to wait until it has passed.
var longAgo = time.Unix(1e9, 0)

func readTree(t testing.TB, dir string) map[string]string {
	tree := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		tree[strings.TrimPrefix(path, dir)] = string(data)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return tree
}

// check compares what was restored with what was saved.
func (w *arena) check(i *instance, name, dir string) {
	tree := readTree(w.t, dir)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits++
	key := index.Prefix + name
	if want, ok := w.trees[key+i.seen[key]]; !ok || !maps.Equal(tree, want) {
		w.breaks("%s restored from %s, version %s, another tree than was saved", i.name, name, i.seen[key])
	}
}

// collector is a machine that collects again and again.
func (w *arena) collector(n, runs int, drops bool, rng *rand.Rand) {
	for range runs {
		i := w.instance(fmt.Sprint("collector", n), "collector")
		c := &Cache{Store: i, Clock: func() time.Time { return time.Now().Add(time.Hour) }}
		o := CollectOptions{}
		if drops && rng.IntN(2) == 0 {
			o.KeepWithin, o.Keep = time.Minute, []string{fmt.Sprint("n", rng.IntN(3))}
		}
		r, err := c.Collect(context.Background(), o)
		w.mu.Lock()
		if err == nil && r.Deleted.Chunks > 0 {
			w.collections++
		}
		if w.lie.name == "" { // nothing is ever damaged here, and nothing lost
			for _, text := range r.Warnings {
				w.breaks("%s: %s", i.name, text)
			}
		}
		w.mu.Unlock()
		w.ended(i, err)
	}
}

// checker is somebody who checks again and again. One that is blind takes chunks for missing that are there, and puts
// them again, at moments when no other one would have a reason to.
func (w *arena) checker(runs int, blind bool, rng *rand.Rand) {
	for range runs {
		i := w.instance("checker", "checker")
		if blind {
			i.blind = map[string]bool{}
		}
		o := CheckOptions{Repair: w, ReadData: rng.IntN(3) == 0}
		if rng.IntN(3) == 0 {
			o.Names = []string{"**"}
		}
		r, err := (&Cache{Store: i}).Check(context.Background(), o, func(BrokenFile) error { return nil })
		if blind && errors.Is(err, ErrMissing) {
			err = nil // of an index that is older than the manifests, or replaced
		}
		w.mu.Lock()
		if !blind && len(r.Broken) > 0 || !blind && r.Repaired > 0 {
			w.breaks("%s takes for broken what is not: %+v, %d repaired", i.name, r.Broken, r.Repaired)
		}
		w.mu.Unlock()
		w.ended(i, err)
	}
}

// dropper is somebody who drops a name now and then.
func (w *arena) dropper(runs int, rng *rand.Rand) {
	for range runs {
		i := w.instance("dropper", "dropper")
		err := (&Cache{Store: i}).DropIndex(context.Background(), fmt.Sprint("n", rng.IntN(2)))
		if errors.Is(err, store.ErrNotExist) || errors.Is(err, store.ErrConflict) {
			err = nil
		}
		w.ended(i, err)
	}
}

// runSeed runs one seed in dir, which is empty, and returns the arena at its end.
func runSeed(t *testing.T, seed uint64, l lie, dir string) (w *arena) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 0x6763))
		w = &arena{
			t: t, rng: rng, mem: storetest.Memory(), lie: l,
			weights: map[string]int{}, acked: map[string]bool{}, destroyed: map[string]bool{},
			trees: map[string]map[string]string{}, physical: map[chunk.ID]uint64{}, copies: map[chunk.ID][]byte{},
		}
		// Chunks are small here, so that a tree of three files has several.
		f := NewFormat()
		f.Chunker.Min, f.Chunker.Max, f.Chunker.Bits = 1024, 4096, 8
		for _, o := range []struct {
			key   string
			value any
		}{{FormatPath, f}, {conditionsPath, goodConditions()}} {
			data, err := json.Marshal(o.value)
			if err == nil {
				_, err = w.mem.Put(t.Context(), o.key, data, store.Condition{})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		start := func(f func(rng *rand.Rand)) {
			w.running++
			own := rand.New(rand.NewPCG(rng.Uint64(), 0))
			go func() {
				defer func() {
					w.mu.Lock()
					w.running--
					w.mu.Unlock()
				}()
				f(own)
			}()
		}
		w.mu.Lock()
		drops := seed%2 == 0 // indexes are dropped
		for n := range 3 {
			start(func(rng *rand.Rand) { w.builder(n, 3, filepath.Join(dir, fmt.Sprint(n)), rng) })
		}
		for n := range 2 {
			start(func(rng *rand.Rand) { w.collector(n, 4, drops, rng) })
		}
		if drops {
			start(func(rng *rand.Rand) { w.dropper(4, rng) })
		}
		if l.name == "" && seed%3 > 0 {
			start(func(rng *rand.Rand) { w.checker(4, seed%3 == 1, rng) })
		}
		w.mu.Unlock()
		w.run()

		// What was on its way arrives. Then a collector that is left alone leaves what is referred to and nothing else.
		for _, r := range w.late {
			if rng.IntN(2) == 0 {
				w.say("late: %v", r)
				w.execute(r)
			}
		}
		if l.name == "" {
			w.end()
		}
	})
	return w
}

// end checks that two collections leave nothing behind.
func (w *arena) end() {
	ctx := context.Background()
	for range 3 {
		if _, err := (&Cache{Store: w.mem}).Collect(ctx, CollectOptions{}); err != nil {
			w.breaks("the last collection: %v", err)
		}
		w.look(nil)
	}
	used := map[string]bool{}
	st, err := readState(ctx, w.mem)
	err = errors.Join(err, w.mem.List(ctx, index.Prefix, func(info store.Info) error {
		o, err := w.mem.Get(ctx, info.Key, store.Read{})
		if err != nil {
			return err
		}
		_, chunks, err := index.DecodeChunks(o.Data)
		for _, c := range chunks {
			used[c.Path()] = true
		}
		return err
	}))
	err = errors.Join(err, w.mem.List(ctx, chunk.Prefix, func(info store.Info) error {
		if !used[info.Key] {
			w.breaks("chunk %s is left over", short(info.Key))
		}
		return nil
	}))
	err = errors.Join(err, w.mem.List(ctx, manifestPrefix, func(info store.Info) error {
		// A collector that was killed before its fence leaves those of the next epoch, until that has come.
		if epoch, kind, _ := parseManifestKey(info.Key); kind != kindDead && epoch <= st.Epoch {
			w.breaks("manifest %s is left over", info.Key)
		}
		return nil
	}))
	if err != nil {
		w.breaks("%v", err)
	}
}

// warmUp makes what package chunk and package index make once, outside of any bubble: they wait for channels.
func warmUp(t *testing.T) {
	s := newShelf(t)
	s.save("x", 1, slices.Repeat([]string{"a.1"}, 1000)...) // enough to be compressed
	if _, err := index.Decode([]byte(s.objects("index/x")["index/x"])); err != nil {
		t.Fatal(err)
	}
	if _, err := chunk.Decode(nil, chunk.Encode(nil, plainOf("a")), keyOf("a", 1).ID, len(plainOf("a"))); err != nil {
		t.Fatal(err)
	}
}

// scratch returns a directory in memory where there is one: the trees of thousands of seeds are of no use to a disk.
func scratch(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "nbc-test-"); err == nil {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	return t.TempDir()
}

// runSeeds runs seeds until one of them is broken, and returns it, or nil.
func runSeeds(t *testing.T, seeds int, l lie) (first *arena, seed int) {
	dir := scratch(t)
	var mu sync.Mutex
	var sum arena
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for n := range seeds {
		mu.Lock()
		stop := first != nil
		mu.Unlock()
		if stop {
			break
		}
		group.Go(func() error {
			own := filepath.Join(dir, fmt.Sprint(n))
			w := runSeed(t, uint64(n), l, own)
			mu.Lock()
			defer mu.Unlock()
			sum.saves += w.saves
			sum.hits += w.hits
			sum.collections += w.collections
			sum.deletions += w.deletions
			sum.kills += w.kills
			sum.lates += w.lates
			sum.repairs += w.repairs
			sum.steps += w.steps
			if len(w.broken) > 0 && first == nil {
				first, seed = w, n
			}
			return os.RemoveAll(own)
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d requests, %d saves acknowledged, %d trees restored, %d collections with %d chunks deleted, "+
		"%d chunks put by repairs, %d processes killed, %d requests late", sum.steps, sum.saves, sum.hits, sum.collections,
		sum.deletions, sum.repairs, sum.kills, sum.lates)
	if first == nil && (sum.saves == 0 || sum.hits == 0 || sum.deletions == 0 || sum.kills == 0 || sum.lates == 0) {
		t.Error("that is not what was to be tested")
	}
	return first, seed
}

func TestAdversary(t *testing.T) {
	warmUp(t)
	if *seedFlag >= 0 {
		l := lie{}
		if *lieFlag >= 0 {
			l = lies[*lieFlag]
		}
		w := runSeed(t, uint64(*seedFlag), l, scratch(t))
		t.Log(strings.Join(w.log, "\n"))
		for _, b := range w.broken {
			t.Error(b)
		}
		return
	}
	seeds := *seedsFlag
	if sampled(t, fmt.Sprintf("-gc-seeds=%d", seeds)) {
		seeds = max(seeds/8, 1)
	}
	w, seed := runSeeds(t, seeds, lie{})
	if w != nil {
		t.Errorf("seed %d (see -gc-seed): %s\n\n%s", seed, strings.Join(w.broken, "\n"), strings.Join(w.log, "\n"))
	}
}

// lie is how the store misleads those who ask, as if a part of the protocol were not there. The code that runs is the
// real one all the same.
type lie struct {
	name string
	// before changes what is asked for, and after what is answered; nil if there is nothing to change.
	before func(w *arena, r *request)
	after  func(w *arena, r *request, a *reply)
	// sameKey keeps all epochs of a chunk in one place.
	sameKey bool
}

func (l lie) ask(w *arena, r *request) {
	if l.before != nil {
		l.before(w, r)
	}
	if !l.sameKey {
		return
	}
	if k, err := chunk.ParsePath(r.key); err == nil {
		r.key = l.path(w, k)
		if r.op == storetest.Put {
			w.physical[k.ID] = k.Epoch
		}
	}
	for i, key := range r.keys {
		if k, err := chunk.ParsePath(key); err == nil {
			r.keys[i] = l.path(w, k)
		}
	}
}

func (l lie) answer(w *arena, r *request, a *reply) {
	if l.after != nil {
		l.after(w, r, a)
	}
	if l.sameKey && r.op == storetest.List && r.key == chunk.Prefix {
		for i := range a.list {
			if k, err := chunk.ParsePath(a.list[i].Key); err == nil {
				a.list[i].Key = chunk.Key{ID: k.ID, Epoch: w.physical[k.ID]}.Path()
			}
		}
	}
}

// path is where the store has a chunk.
func (l lie) path(_ *arena, k chunk.Key) string {
	if l.sameKey {
		k.Epoch = 1
	}
	return k.Path()
}

func isTombstonePut(r *request) bool {
	if r.op != storetest.Put || !strings.HasPrefix(r.key, index.Prefix) {
		return false
	}
	x, err := index.Decode(r.data)
	return err == nil && isTombstone(x)
}

// stateGet is a saver's request for gc/state.
func stateGet(r *request) bool {
	return r.from.kind == "saver" && r.op == storetest.Get && r.key == StatePath
}

// deadGet is a saver's request for a manifest.
func deadGet(r *request) bool {
	_, kind, _ := parseManifestKey(r.key)
	return r.from.kind == "saver" && r.op == storetest.Get && kind == kindDead
}

var absent = reply{err: fs.ErrNotExist}

var lies = []lie{
	{name: "naive list and delete: savers know of no collections", after: func(_ *arena, r *request, a *reply) {
		if stateGet(r) {
			*a = absent
		}
	}},
	{name: "no re-list after the fence", after: func(_ *arena, r *request, a *reply) {
		i := r.from
		switch {
		case r.op == storetest.List && r.key == index.Prefix && i.fencing:
			a.list, a.more = i.indexes, false
		case r.op == storetest.List && r.key == index.Prefix:
			if r.after == "" {
				i.indexes = nil
			}
			i.indexes = append(i.indexes, a.list...)
		case r.op == storetest.Put && r.key == StatePath && a.err == nil,
			r.op == storetest.Get && r.key == StatePath && bytes.Contains(a.object.Data, []byte(`"fenced"`)):
			i.fencing = true
		}
	}},
	{name: "no check after the index is put", after: func(_ *arena, r *request, a *reply) {
		if !stateGet(r) {
			return
		}
		if r.from.putIndex {
			*a = r.from.state
		} else {
			r.from.state = *a
		}
	}},
	{name: "a condemned chunk uploaded again under the same key", sameKey: true},
	{name: "a base trusted without the manifests since its epoch", after: func(_ *arena, r *request, a *reply) {
		if deadGet(r) && a.err == nil {
			a.object.Data = encodeFingerprints(deadWidth, nil)
		}
	}},
	{name: "only the newest manifest subtracted", after: func(w *arena, r *request, a *reply) {
		st, err := readState(context.Background(), w.mem)
		if !deadGet(r) || a.err != nil || err != nil {
			return
		}
		for _, m := range st.Dead {
			if m.From == m.To {
				a.object, a.err = w.mem.Get(context.Background(), m.Key, store.Read{})
			}
		}
	}},
	{name: "gc/state written without compare-and-swap", before: func(_ *arena, r *request) {
		if r.key == StatePath {
			r.cond = store.Condition{}
		}
	}},
	{name: "what is to be spared is deleted", after: func(_ *arena, r *request, a *reply) {
		if _, kind, _ := parseManifestKey(r.key); kind == kindSpared && r.op == storetest.Get && a.err == nil {
			a.object.Data = encodeFingerprints(64, nil)
		}
	}},
	{name: "an index dropped by a plain DELETE", before: func(_ *arena, r *request) {
		if isTombstonePut(r) {
			r.op, r.keys = storetest.Delete, []string{r.key}
		}
	}},
	{name: "an index dropped by an unconditional tombstone", before: func(_ *arena, r *request) {
		if isTombstonePut(r) {
			r.cond = store.Condition{}
		}
	}},
	{name: "a tombstone removed by a plain DELETE", before: func(_ *arena, r *request) { r.deleteIf = "" }},
}

// TestAdversaryCatches shows that the adversary is one: each lie, which is as good as a mistake in the code, is found
// out.
func TestAdversaryCatches(t *testing.T) {
	warmUp(t)
	for _, l := range lies {
		t.Run(l.name, func(t *testing.T) {
			w, seed := runSeeds(t, *seedsFlag, l)
			if w == nil {
				t.Fatalf("%d seeds have not found it", *seedsFlag)
			}
			t.Logf("seed %d: %s", seed, w.broken[0])
		})
	}
}
