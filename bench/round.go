package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"nbc/index"
	"nbc/transfer/store"
	"nbc/transfer/store/s3"
)

// The work that is measured. Targets and tables know it by these names.
const (
	coldSave    = "cold save"
	sameSave    = "save, nothing changed"
	changedSave = "save, 1 % changed"
	coldRestore = "cold restore"
	noNear      = "cold restore, without a near store"
	warmRestore = "warm restore"
	overRestore = "restore over the version before, 1 % differing"
	farRestore  = "cold restore, 30 ms round trip"
	missRestore = "restore, two names that are absent"
	bigSave     = "few big files: cold save"
	bigRestore  = "few big files: cold restore"
	bigWarm     = "few big files: warm restore"
	haskellSave = "Haskell: save after an edit of one module"
	largeSave   = "large tree: cold save"
	largeBack   = "large tree: cold restore"
)

// roundTrip is that of a server in another region.
const roundTrip = 30 * time.Millisecond

// bench is a run of the program.
type bench struct {
	options
	work   string
	module string
	self   string // this program
	log    io.Writer

	server  *server // for times
	counted *server // for bytes and requests: it writes a log, and a proxy is before it
	proxy   *proxy  // before counted
	far     *proxy  // before server, with a round trip

	main, big      corpus
	before, after  corpus // of Haskell
	peers          []*peer
	hasCp, hasFind bool
	missing        []string
	roundNumber    int
	samples        []sample
	facts          facts
}

// sample is one measurement.
type sample struct {
	// Round counts from 1. Round 0 goes through a proxy that counts, and its times do not.
	Round int    `json:"round"`
	Work  string `json:"work"`
	Tool  string `json:"tool"`
	usage
	// Of round 0, over the network to the server; 0 for tools that do not use it.
	Sent     int64 `json:"bytes_sent"`
	Received int64 `json:"bytes_received"`
	Requests int   `json:"requests"`
	// Stored is what the store has afterwards, in round 0, after saves.
	Stored int64 `json:"bytes_stored"`
}

// facts are measured once.
type facts struct {
	Chunks     int `json:"chunks"`      // objects of the corpus
	IndexBytes int `json:"index_bytes"` // of its index, without sources
	// IndexNumbered is the same with numbers in place of the files' names.
	IndexNumbered int `json:"index_bytes_numbered"`
	// IndexKeys is what of it the header and the chunk keys take: that grows with the bytes, and the rest with the files.
	IndexKeys   int   `json:"index_bytes_of_chunk_keys"`
	Changed     int   `json:"changed_files"`      // in the changed version
	HaskellSent int64 `json:"haskell_bytes_sent"` // chunks and index, after the edit
}

func (b *bench) say(format string, a ...any) { fmt.Fprintf(b.log, "bench: "+format+"\n", a...) }

// buildNBC builds the program that is measured, unless there is one.
func (b *bench) buildNBC(ctx context.Context) (err error) {
	if b.nbc != "" {
		b.nbc, err = filepath.Abs(b.nbc)
		return err
	}
	b.nbc = filepath.Join(b.work, "nbc")
	b.say("building nbc")
	_, err = output(ctx, b.module, []string{"CGO_ENABLED=0"}, "go", "build", "-o", b.nbc, "./cmd/nbc")
	return err
}

// prepare makes all that is needed for the rounds.
func (b *bench) prepare(ctx context.Context) (err error) {
	if err := b.buildNBC(ctx); err != nil {
		return err
	}
	b.findPeers(ctx)
	if b.corpus != "" {
		if b.main, _, err = measureTree(b.corpus); err == nil {
			b.main.Dir, err = filepath.Abs(b.corpus)
			b.main.What = filepath.Base(b.corpus)
		}
	} else {
		b.main, err = b.goCache(ctx, b.mb, b.files)
	}
	if err != nil {
		return err
	}
	if b.big, err = b.bigFiles(b.main); err != nil {
		return err
	}
	if b.haskell > 0 {
		if tool(ctx, "ghc", "--version") {
			b.before, b.after, err = b.haskellObjects(ctx, b.haskell)
		} else {
			b.missing = append(b.missing, "ghc")
		}
	}
	return err
}

// measureAll starts the servers and does all rounds.
func (b *bench) measureAll(ctx context.Context) (_ *results, err error) {
	program, err := b.findServer(ctx)
	if err != nil {
		return nil, err
	}
	if b.server, err = startServer(ctx, program, filepath.Join(b.work, "s3"), ""); err != nil {
		return nil, err
	}
	defer b.server.stop()
	b.counted, err = startServer(ctx, program, filepath.Join(b.work, "s3-counted"), filepath.Join(b.work, "access.log"))
	if err != nil {
		return nil, err
	}
	defer b.counted.stop()
	if b.proxy, err = startProxy(ctx, b.counted.address, 0); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.proxy.stop()) }()
	if b.far, err = startProxy(ctx, b.server.address, roundTrip); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.far.stop()) }()

	for n := range b.rounds + 1 {
		b.say("round %d of %d", n, b.rounds)
		if err := b.round(ctx, n); err != nil {
			return nil, err
		}
	}
	return b.results(ctx), nil
}

// round is one turn of everything.
type round struct {
	*bench
	number  int
	dir     string
	server  *server
	address string // of the server or the proxy before it
	names   int
}

// prefix is where the round's objects are on the server; it ends with a slash.
func (b *bench) prefix() string { return "round" + strconv.Itoa(b.roundNumber) + "/" }

// next returns a name that was not used in the round.
func (r *round) next() string {
	r.names++
	return "n" + strconv.Itoa(r.names)
}

func (b *bench) round(ctx context.Context, n int) (err error) {
	b.roundNumber = n
	r := &round{bench: b, number: n, dir: filepath.Join(b.work, "round"), server: b.server, address: b.server.address}
	if n == 0 {
		r.server, r.address = b.counted, b.proxy.address
	}
	defer func() {
		err = errors.Join(err, removeAll(r.dir), removeAll(filepath.Join(r.server.data, r.prefix())))
	}()
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	steps := []func(context.Context) error{r.mainCorpus, r.bigCorpus}
	if n == 0 {
		steps = append(steps, r.haskellCorpus, r.largeCorpus)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// item is a command to be measured in its turn.
type item struct {
	tool string
	// before is done first; it is not measured.
	before func() error
	cmd    func() command
	// after checks what the command said and did, and cleans up.
	after  func(stdout []byte) error
	stored string
}

// turns measures all items of one work. Who begins changes from round to round.
func (r *round) turns(ctx context.Context, work string, items ...item) error {
	for i := range items {
		it := items[(i+r.number)%len(items)]
		if it.cmd == nil {
			continue // it is not on this machine
		}
		if it.before != nil {
			if err := it.before(); err != nil {
				return fmt.Errorf("%s, %s: %w", work, it.tool, err)
			}
		}
		c := it.cmd()
		sent, received := r.proxy.sent.Load(), r.proxy.received.Load()
		requests, err := r.counted.requests()
		if err != nil {
			return err
		}
		u, stdout, err := r.measure(ctx, c)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", work, it.tool, err)
		}
		s := sample{Round: r.number, Work: work, Tool: it.tool, usage: u}
		if r.number == 0 {
			time.Sleep(50 * time.Millisecond) // until the log is written
			now, err := r.counted.requests()
			if err != nil {
				return err
			}
			s.Requests = now - requests
			s.Sent, s.Received = r.proxy.sent.Load()-sent, r.proxy.received.Load()-received
			if it.stored != "" {
				c, _, err := measureTree(it.stored)
				if err != nil {
					return err
				}
				s.Stored = c.Bytes
			}
		}
		r.samples = append(r.samples, s)
		r.say("%d  %-46s %-26s %7.3f s  cpu %7.3f s  %5d MB", r.number, work, it.tool, u.Wall, u.CPU, u.RSS>>20)
		if it.after != nil {
			if err := it.after(stdout); err != nil {
				return fmt.Errorf("%s, %s: %w", work, it.tool, err)
			}
		}
	}
	return nil
}

// nbcStore is a store of nbc and the trees that are saved to it.
type nbcStore struct {
	tool   string
	url    string
	tree   string // a build's
	near   string // the near store of the machine where the builds are, or "off"
	stored string
}

func (r *round) s3Store(prefix, tree string) *nbcStore {
	return &nbcStore{
		tool: nbcS3, url: storeURL(r.address, r.prefix()+prefix), tree: tree, near: filepath.Join(r.dir, "near-"+prefix),
		stored: filepath.Join(r.server.data, filepath.FromSlash(r.prefix()), prefix),
	}
}

// cacheName is what everything is saved as.
const cacheName = "bench"

// nbcCommand runs nbc in a tree. near is a directory, or "off".
func (r *round) nbcCommand(url, near, tree, verb string, args ...string) command {
	home := filepath.Join(r.dir, "home")
	return command{
		args: append([]string{
			r.nbc, verb, "--json", "--quiet", "--store", url, "--source", tree,
			"--state", filepath.Join(home, filepath.Base(tree)),
		}, args...),
		env: []string{"HOME=" + home, "XDG_CACHE_HOME=" + home, "XDG_STATE_HOME=" + home, "NBC_NEAR=" + near},
	}
}

// report is what of nbc's report is looked at.
type report struct {
	Hit    bool   `json:"hit"`
	Saved  bool   `json:"saved"`
	Reason string `json:"reason"`
	Chunks int    `json:"chunks"`
	Sent   struct {
		Bytes int64 `json:"bytes"`
	} `json:"sent"`
}

// done reads nbc's report and makes a refusal an error.
func done(stdout []byte) (report, error) {
	var rep report
	if err := json.Unmarshal(stdout, &rep); err != nil {
		return rep, fmt.Errorf("reading nbc's report: %w", err)
	}
	if !rep.Hit && !rep.Saved {
		return rep, fmt.Errorf("nbc did nothing: %s", rep.Reason)
	}
	return rep, nil
}

func (r *round) save(s *nbcStore) command {
	return r.nbcCommand(s.url, s.near, s.tree, "save", cacheName, "--dir", "dist")
}

// saveAfterRestore is the save that takes everything from the receipt.
func (r *round) saveAfterRestore(s *nbcStore) command {
	return r.nbcCommand(s.url, s.near, s.tree, "save")
}

func (r *round) restore(s *nbcStore, near, tree string) command {
	return r.nbcCommand(s.url, near, tree, "restore", cacheName, "--dir", "dist", "--moved")
}

// quietly runs nbc without measuring it.
func (r *round) quietly(ctx context.Context, c command) error {
	out, err := output(ctx, c.dir, c.env, c.args...)
	if err == nil {
		_, err = done([]byte(out))
	}
	return err
}

// newTree makes a source tree without artifacts.
func (r *round) newTree(name string) (string, error) {
	tree := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Join(tree, "src"), 0o700); err != nil {
		return "", err
	}
	for i := range 200 {
		text := fmt.Sprintf("source %d\n", i)
		if err := os.WriteFile(filepath.Join(tree, "src", fmt.Sprintf("s%d", i)), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return tree, nil
}

// builtTree makes a source tree whose artifacts are those of c.
func (r *round) builtTree(ctx context.Context, name string, c corpus) (string, error) {
	tree, err := r.newTree(name)
	if err == nil {
		_, err = output(ctx, "", nil, "cp", "-a", c.Dir, filepath.Join(tree, "dist"))
	}
	return tree, err
}

// back is the item of a restore by nbc into a new tree, which must then be as want.
func (r *round) back(s *nbcStore, near, want string) item {
	var tree string
	return item{
		tool: s.tool,
		before: func() (err error) {
			tree, err = r.newTree("back")
			return err
		},
		cmd: func() command { return r.restore(s, near, tree) },
		after: func(stdout []byte) error {
			if _, err := done(stdout); err != nil {
				return err
			}
			if err := sameTree(want, filepath.Join(tree, "dist"), r.number == 0); err != nil {
				return err
			}
			return removeAll(tree)
		},
	}
}

// peerBack is the item of a restore by a peer.
func (r *round) peerBack(p *peer, address, tree string) item {
	out := filepath.Join(r.dir, "out")
	return item{
		tool:   p.name,
		before: func() error { return os.Mkdir(out, 0o700) },
		cmd:    func() command { return p.restore(r, address, out) },
		after: func([]byte) error {
			if err := sameTree(filepath.Join(tree, "dist"), p.restored(tree, out), r.number == 0); err != nil {
				return err
			}
			return removeAll(out)
		},
	}
}

// copied is the item of cp -a of a directory.
func (r *round) copied(from string) item {
	it := item{tool: cpName}
	if r.hasCp {
		to := filepath.Join(r.dir, "copy")
		it.cmd = func() command { return command{args: []string{"cp", "-a", from, to}} }
		it.after = func([]byte) error { return removeAll(to) }
	}
	return it
}

func (r *round) mainCorpus(ctx context.Context) error {
	shared, err := r.builtTree(ctx, "shared", r.main)
	if err != nil {
		return err
	}
	var nbcs []*nbcStore
	for _, s := range []*nbcStore{
		r.s3Store("nbc", filepath.Join(r.dir, "s3")),
		{
			tool: nbcDir, url: filepath.Join(r.dir, "store"), tree: filepath.Join(r.dir, "local"), near: "off",
			stored: filepath.Join(r.dir, "store"),
		},
	} {
		if _, err := r.builtTree(ctx, filepath.Base(s.tree), r.main); err != nil {
			return err
		}
		nbcs = append(nbcs, s)
	}
	for _, p := range r.peers {
		if err := p.init(ctx, r); err != nil {
			return err
		}
	}
	onS3 := nbcs[0]
	saved := func(stdout []byte) error {
		_, err := done(stdout)
		return err
	}
	peerSaves := func() (items []item) {
		for _, p := range r.peers {
			items = append(items, item{
				tool: p.name, cmd: func() command { return p.save(r, r.address, shared) }, stored: p.stored(r),
			})
		}
		return items
	}

	items := peerSaves()
	for _, s := range nbcs {
		items = append(items, item{tool: s.tool, cmd: func() command { return r.save(s) }, after: saved, stored: s.stored})
	}
	items = append(items, r.copied(filepath.Join(shared, "dist")))
	if err := r.turns(ctx, coldSave, items...); err != nil {
		return err
	}
	if r.number == 0 {
		if err := r.measureIndex(ctx, onS3); err != nil {
			return err
		}
	}

	// A build begins with a restore, which finds everything in place, and does nothing.
	items = peerSaves()
	for _, s := range nbcs {
		items = append(items, item{
			tool: s.tool, after: saved, stored: s.stored,
			before: func() error { return r.quietly(ctx, r.restore(s, s.near, s.tree)) },
			cmd:    func() command { return r.saveAfterRestore(s) },
		})
	}
	if r.hasFind {
		items = append(items, item{tool: findName, cmd: func() command {
			return command{args: []string{"find", filepath.Join(shared, "dist"), "-type", "f", "-links", "+1000"}}
		}})
	}
	if err := r.turns(ctx, sameSave, items...); err != nil {
		return err
	}

	// Another machine gets this version now, to be brought to the next one later.
	over, err := r.newTree("over")
	if err != nil {
		return err
	}
	if err := r.quietly(ctx, r.restore(onS3, r.nearOver(), over)); err != nil {
		return err
	}
	for _, s := range nbcs {
		if err := r.quietly(ctx, r.restore(s, s.near, s.tree)); err != nil {
			return err
		}
	}
	for _, tree := range []string{shared, nbcs[0].tree, nbcs[1].tree} {
		if r.facts.Changed, err = change(filepath.Join(tree, "dist")); err != nil {
			return err
		}
	}
	items = peerSaves()
	for _, s := range nbcs {
		items = append(items, item{
			tool: s.tool, cmd: func() command { return r.saveAfterRestore(s) }, after: saved, stored: s.stored,
		})
	}
	if err := r.turns(ctx, changedSave, items...); err != nil {
		return err
	}
	return r.mainRestores(ctx, shared, over, nbcs)
}

// nearOver is the near store of the machine that has the version before.
func (r *round) nearOver() string { return filepath.Join(r.dir, "near-over") }

func (r *round) mainRestores(ctx context.Context, shared, over string, nbcs []*nbcStore) error {
	want := filepath.Join(shared, "dist")
	onS3 := nbcs[0]
	warm := filepath.Join(r.dir, "near-warm")
	items := []item{r.copied(want)}
	for _, s := range nbcs {
		it := r.back(s, warm, want)
		if s != onS3 {
			it = r.back(s, s.near, want)
		}
		items = append(items, it)
	}
	for _, p := range r.peers {
		items = append(items, r.peerBack(p, r.address, shared))
	}
	if err := r.turns(ctx, coldRestore, items...); err != nil {
		return err
	}
	if err := r.turns(ctx, noNear, r.back(onS3, "off", want)); err != nil {
		return err
	}
	if err := r.turns(ctx, warmRestore, r.back(onS3, warm, want), r.copied(want)); err != nil {
		return err
	}
	update := item{
		tool: nbcS3, cmd: func() command { return r.restore(onS3, r.nearOver(), over) },
		after: func(stdout []byte) error {
			if _, err := done(stdout); err != nil {
				return err
			}
			return errors.Join(sameTree(want, filepath.Join(over, "dist"), r.number == 0), removeAll(over))
		},
	}
	if err := r.turns(ctx, overRestore, update, r.copied(want)); err != nil {
		return err
	}
	if r.number == 0 {
		miss := item{
			tool: nbcS3,
			before: func() error {
				_, err := r.newTree("miss")
				return err
			},
			cmd: func() command {
				tree := filepath.Join(r.dir, "miss")
				return r.nbcCommand(onS3.url, onS3.near, tree, "restore", "none", "--fallback", "none/either", "--dir", "dist")
			},
			after: func(stdout []byte) error {
				if rep, err := done(stdout); err == nil {
					return fmt.Errorf("a restore of an absent name did not miss: %+v", rep)
				}
				return nil
			},
		}
		return r.turns(ctx, missRestore, miss)
	}
	far := *onS3
	far.url = storeURL(r.far.address, r.prefix()+"nbc")
	items = []item{r.back(&far, filepath.Join(r.dir, "near-far"), want)}
	for _, p := range r.peers {
		if p.s3 {
			items = append(items, r.peerBack(p, r.far.address, shared))
		}
	}
	return r.turns(ctx, farRestore, items...)
}

// measureIndex looks at what was saved.
func (r *round) measureIndex(ctx context.Context, s *nbcStore) (err error) {
	st, err := s3.Open(ctx, s.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	key, err := index.Path(cacheName)
	if err != nil {
		return err
	}
	o, err := st.Get(ctx, key, store.Read{})
	if err != nil {
		return err
	}
	x, err := index.Decode(o.Data)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, c := range x.Chunks {
		seen[c.Path()] = true
	}
	x.Sources = nil
	data, err := x.Encode()
	if err != nil {
		return err
	}
	r.facts.Chunks, r.facts.IndexBytes, r.facts.IndexNumbered = len(seen), len(data), len(data)
	if r.facts.IndexKeys, err = index.PrefixSize(data); err != nil {
		return err
	}
	// The files of a Go build cache are named by hashes, 32 random bytes each, which no format can make smaller.
	for i := range x.Entries {
		if e := &x.Entries[i]; e.Kind == index.File {
			e.Path = fmt.Sprintf("%s/file%06d.o", path.Dir(e.Path), i)
		}
	}
	slices.SortFunc(x.Entries, func(a, b index.Entry) int { return strings.Compare(a.Path, b.Path) })
	if data, err := x.Encode(); err == nil { // else there are hard links, which must name files
		r.facts.IndexNumbered = len(data)
	}
	return nil
}

func (r *round) bigCorpus(ctx context.Context) error {
	tree, err := r.builtTree(ctx, "big", r.big)
	if err != nil {
		return err
	}
	s := r.s3Store("big", tree)
	dist, near := filepath.Join(tree, "dist"), filepath.Join(r.dir, "near-big-back")
	save := item{tool: nbcS3, cmd: func() command { return r.save(s) }, stored: s.stored}
	if err := r.turns(ctx, bigSave, save, r.copied(dist)); err != nil {
		return err
	}
	if err := r.turns(ctx, bigRestore, r.back(s, near, dist)); err != nil {
		return err
	}
	if err := r.turns(ctx, bigWarm, r.back(s, near, dist), r.copied(dist)); err != nil {
		return err
	}
	return removeAll(tree)
}

func (r *round) haskellCorpus(ctx context.Context) error {
	if r.before.Files == 0 {
		return nil
	}
	tree, err := r.builtTree(ctx, "haskell", r.before)
	if err != nil {
		return err
	}
	s := r.s3Store("haskell", tree)
	if err := r.quietly(ctx, r.save(s)); err != nil {
		return err
	}
	if err := r.quietly(ctx, r.restore(s, s.near, tree)); err != nil {
		return err
	}
	if err := update(filepath.Join(tree, "dist"), r.after.Dir); err != nil {
		return err
	}
	edited := item{
		tool: nbcS3, stored: s.stored, cmd: func() command { return r.saveAfterRestore(s) },
		after: func(stdout []byte) error {
			rep, err := done(stdout)
			r.facts.HaskellSent = rep.Sent.Bytes
			return err
		},
	}
	return errors.Join(r.turns(ctx, haskellSave, edited), removeAll(tree))
}

// update makes the files and directories in dir those of the tree to, writing only files whose contents differ, as a build
// does.
func update(dir, to string) error {
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		info, err := os.Lstat(filepath.Join(to, rel))
		if err == nil && info.IsDir() == d.IsDir() {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.RemoveAll(file); err != nil || !d.IsDir() { // #nosec G122 -- nobody else writes there
			return err
		}
		return fs.SkipDir
	})
	if err != nil {
		return err
	}
	return filepath.WalkDir(to, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(to, file)
		if err != nil {
			return err
		}
		mine := filepath.Join(dir, rel)
		if d.IsDir() {
			return os.MkdirAll(mine, 0o700) // #nosec G122 -- as above
		}
		if !d.Type().IsRegular() || sameFile(mine, file) == nil {
			return nil
		}
		data, err := os.ReadFile(file) // #nosec G122 -- as above
		if err != nil {
			return err
		}
		return os.WriteFile(mine, data, 0o600) // #nosec G703 -- a directory that bench has made
	})
}

// largeCorpus measures the memory that a tree several times as large needs.
func (r *round) largeCorpus(ctx context.Context) error {
	if r.large <= 1 {
		return nil
	}
	tree, err := r.newTree("large")
	if err != nil {
		return err
	}
	if _, err := r.main.times(r.large, filepath.Join(tree, "dist")); err != nil {
		return err
	}
	runtime.GC() // what was read to make it
	s := r.s3Store("large", tree)
	save := item{tool: nbcS3, cmd: func() command { return r.save(s) }, stored: s.stored}
	if err := r.turns(ctx, largeSave, save); err != nil {
		return err
	}
	err = r.turns(ctx, largeBack, r.back(s, filepath.Join(r.dir, "near-large-back"), filepath.Join(tree, "dist")))
	return errors.Join(err, removeAll(tree), removeAll(s.stored))
}
