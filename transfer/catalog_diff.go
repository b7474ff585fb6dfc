package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"nbc/chunk"
	"nbc/index"
)

// This file compares two saved trees without restoring them. Whether two files of equal size hold the same bytes mostly
// follows from their chunks: the same parts of the same chunks are the same bytes, and two whole chunks of equal length
// with different IDs are not. What neither decides, as a file that lies in the same chunk as one that has changed, is
// compared byte by byte, and of both trees only the chunks with such parts are fetched: about as many as a save of the
// one tree after a restore of the other would have sent.

// DiffOptions say what to compare.
type DiffOptions struct {
	// From and To are the cache names.
	From, To string
	// Times says that a file with another time is different.
	Times bool
	// NoFetch fetches no chunk: what cannot be decided without may differ.
	NoFetch bool
}

// Change is a difference between two trees.
type Change struct {
	Path string
	// Source says that it is a source, and not an artifact.
	Source bool
	What   What
	// Aspects are what is different of a file that both have, in the order of their names below.
	Aspects []Aspect
	// From and To are the artifacts, FromSource and ToSource the sources; nil where there is none.
	From, To             *index.Entry
	FromSource, ToSource *index.Source
	// Reason says why it may differ.
	Reason string
}

// What says in which way something is different.
type What string

// The kinds of differences. MayDiffer is what is not known: a source that changed while its build ran, or contents that
// were not fetched or cannot be read.
const (
	Added     What = "added"
	Deleted   What = "deleted"
	Changed   What = "changed"
	MayDiffer What = "may differ"
)

// Aspect is what is different of a file.
type Aspect string

// The aspects.
const (
	KindAspect    Aspect = "kind"
	ContentAspect Aspect = "content"
	TargetAspect  Aspect = "target"
	ModeAspect    Aspect = "mode"
	TimeAspect    Aspect = "time"
)

// DiffCounts counts files by what they are in the other tree.
type DiffCounts struct {
	Same      int `json:"same"`
	Added     int `json:"added"`
	Deleted   int `json:"deleted"`
	Changed   int `json:"changed"`
	MayDiffer int `json:"may_differ"`
}

func (d *DiffCounts) add(w What) {
	switch w {
	case Added:
		d.Added++
	case Deleted:
		d.Deleted++
	case Changed:
		d.Changed++
	case MayDiffer:
		d.MayDiffer++
	default:
		d.Same++
	}
}

func (d *DiffCounts) same() bool { return *d == DiffCounts{Same: d.Same} }

// DiffReport is what a comparison has found.
type DiffReport struct {
	Report
	From string `json:"from"`
	To   string `json:"to"`
	// Same says that no difference was found, and nothing may differ.
	Same      bool       `json:"same"`
	Artifacts DiffCounts `json:"artifacts"`
	Sources   DiffCounts `json:"sources"`
	// FromChunks and ToChunks are how many chunks each tree has, and Shared how many of To's are From's, too.
	FromChunks int     `json:"from_chunks"`
	ToChunks   int     `json:"to_chunks"`
	Shared     int     `json:"shared_chunks"`
	Fetched    Traffic `json:"fetched"`
}

// Diff calls yield for each difference between two saved trees: first for the artifacts, then for the sources, both in
// the order of their paths. Source directories are the same if both trees have them: what is in them is told of itself.
//
// The error is that of the first chunk that is missing or damaged, when everything else was compared: what it belongs
// to may differ. The report is never nil.
func (c *Cache) Diff(ctx context.Context, o DiffOptions, yield func(Change) error) (*DiffReport, error) {
	mine := c.working("reading indexes")
	r := &DiffReport{Report: Report{Version: ReportVersion, Action: "diff"}, From: o.From, To: o.To}
	start := mine.now()
	defer func() {
		r.Seconds = mine.now().Sub(start).Seconds()
		r.Fetched = Traffic{int(mine.Progress.Chunks.Load()), mine.Progress.Transferred.Load()}
	}()
	from, _, err := mine.ReadIndex(ctx, o.From)
	if err != nil {
		return r, err
	}
	to, _, err := mine.ReadIndex(ctx, o.To)
	if err != nil {
		return r, err
	}
	mine.Progress.start("comparing")
	d := &diffing{cache: mine, o: o, from: newSide(from), to: newSide(to), report: r, yield: yield}
	r.FromChunks, r.ToChunks = len(from.Chunks), len(to.Chunks)
	ids := make(map[chunk.ID]bool, len(from.Chunks))
	for i := range from.Chunks {
		ids[from.Chunks[i].ID] = true
	}
	for i := range to.Chunks {
		if ids[to.Chunks[i].ID] {
			r.Shared++
		}
	}
	if err := d.artifacts(ctx); err != nil {
		return r, err
	}
	if err := d.sources(); err != nil {
		return r, err
	}
	r.Same = r.Artifacts.same() && r.Sources.same()
	return r, d.damage
}

// diffing is one run of Diff.
type diffing struct {
	cache    *Cache
	o        DiffOptions
	from, to *side
	report   *DiffReport
	yield    func(Change) error
	damage   error
}

// side is one of the trees.
type side struct {
	index    *index.Index
	contents *contents
	fetch    *fetcher
	wanted   []int // chunks whose bytes will be compared
	next     int   // of wanted
	plain    []byte
	buf      []byte
	err      error // instead of plain
}

func newSide(x *index.Index) *side { return &side{index: x, contents: newContents(x)} }

// want notes that the bytes of chunk i will be asked for. The numbers never fall.
func (s *side) want(i int) {
	if n := len(s.wanted); n == 0 || s.wanted[n-1] < i {
		s.wanted = append(s.wanted, i)
	}
}

// bytes returns the plain bytes of chunk i, which was wanted. What was wanted before it is passed over.
func (s *side) bytes(ctx context.Context, i int) ([]byte, error) {
	for s.next == 0 || s.wanted[s.next-1] < i {
		s.plain, s.err = s.fetch.take(ctx, s.wanted[s.next], s.buf)
		if s.err == nil {
			s.buf = s.plain
		}
		s.next++
	}
	return s.plain, s.err
}

// piece is a part of a file that lies in one chunk of each tree.
type piece struct {
	from, to      int   // numbers of the chunks
	fromAt, toAt  int64 // where it begins in them
	size          int64
	same, differs bool // what the IDs prove
}

// pieces calls do for each piece of the file at path, which has the same size in both, until do returns false.
func (d *diffing) pieces(path string, do func(piece) bool) {
	a, b := d.from.contents, d.to.contents
	fa, fb := a.files[path], b.files[path]
	for pos := int64(0); pos < fa.size; {
		p := piece{}
		p.from, p.fromAt = a.at(fa.offset + pos)
		p.to, p.toAt = b.at(fb.offset + pos)
		ca, cb := &a.chunks[p.from], &b.chunks[p.to]
		p.size = min(int64(ca.Length)-p.fromAt, int64(cb.Length)-p.toAt, fa.size-pos)
		equal := ca.ID == cb.ID && ca.Length == cb.Length
		p.same = equal && p.fromAt == p.toAt
		p.differs = ca.ID != cb.ID && ca.Length == cb.Length && p.size == int64(ca.Length) // hence whole in both
		if !do(p) {
			return
		}
		pos += p.size
	}
}

// equality is what is known of the contents of a file.
type equality int

const (
	sameBytes equality = iota
	otherBytes
	undecided
)

// byChunks says what the chunks tell of the file at path.
func (d *diffing) byChunks(path string) equality {
	v := sameBytes
	d.pieces(path, func(p piece) bool {
		switch {
		case p.differs:
			v = otherBytes
		case !p.same:
			v = undecided
		}
		return v != otherBytes
	})
	return v
}

// byBytes fetches what byChunks could not decide.
func (d *diffing) byBytes(ctx context.Context, path string) (equality, error) {
	v := sameBytes
	var err error
	d.pieces(path, func(p piece) bool {
		if p.same {
			return true
		}
		var a, b []byte
		if a, err = d.from.bytes(ctx, p.from); err != nil {
			return false
		}
		if b, err = d.to.bytes(ctx, p.to); err != nil {
			return false
		}
		d.cache.Progress.Bytes.Add(p.size)
		if !bytes.Equal(a[p.fromAt:p.fromAt+p.size], b[p.toAt:p.toAt+p.size]) {
			v = otherBytes
		}
		return v == sameBytes
	})
	return v, err
}

// artifacts compares the entries.
func (d *diffing) artifacts(ctx context.Context) error {
	verdicts := map[string]equality{}
	_ = d.eachEntry(func(a, b *index.Entry) error { // no error comes of it
		if a == nil || b == nil || a.Kind != index.File || b.Kind != index.File || a.Size != b.Size {
			return nil
		}
		v := d.byChunks(a.Path)
		if v == sameBytes {
			return nil
		}
		verdicts[a.Path] = v
		if v == undecided && !d.o.NoFetch {
			d.pieces(a.Path, func(p piece) bool {
				if !p.same {
					d.from.want(p.from)
					d.to.want(p.to)
					d.cache.Progress.TotalBytes.Add(p.size)
				}
				return true
			})
		}
		return nil
	})

	ctx, cancel := context.WithCancel(ctx)
	var fetching sync.WaitGroup
	defer fetching.Wait()
	defer cancel()
	for _, s := range []*side{d.from, d.to} {
		s.fetch = newFetcher(d.cache, s.index.Chunks, s.wanted)
		fetching.Go(func() { _ = s.fetch.run(ctx) }) // what goes wrong with a chunk is told to who takes it
	}
	return d.eachEntry(func(a, b *index.Entry) error {
		ch := Change{From: a, To: b}
		switch {
		case a == nil:
			ch.Path, ch.What = b.Path, Added
		case b == nil:
			ch.Path, ch.What = a.Path, Deleted
		default:
			ch.Path = a.Path
			if err := d.compare(ctx, &ch, verdicts); err != nil {
				return err
			}
		}
		d.report.Artifacts.add(ch.What)
		if ch.What == "" {
			return nil
		}
		return d.yield(ch)
	})
}

// compare sets what is different of an artifact that both have.
func (d *diffing) compare(ctx context.Context, ch *Change, verdicts map[string]equality) error {
	a, b := ch.From, ch.To
	if a.Kind != b.Kind {
		ch.What, ch.Aspects = Changed, []Aspect{KindAspect}
		return nil
	}
	v := verdicts[a.Path]
	switch {
	case a.Size != b.Size:
		v = otherBytes
	case v == undecided && d.o.NoFetch:
		ch.Reason = "content may differ: the chunks do not tell"
	case v == undecided:
		var err error
		v, err = d.byBytes(ctx, a.Path)
		if errors.Is(err, ErrMissing) || isCorrupt(err) {
			v, ch.Reason = undecided, err.Error()
			if d.damage == nil {
				d.damage = fmt.Errorf("comparing %q: %w", a.Path, err)
			}
		} else if err != nil {
			return fmt.Errorf("comparing %q: %w", a.Path, err)
		}
	}
	if v == otherBytes {
		ch.Aspects = append(ch.Aspects, ContentAspect)
	}
	if a.Target != b.Target {
		ch.Aspects = append(ch.Aspects, TargetAspect)
	}
	if a.Mode != b.Mode {
		ch.Aspects = append(ch.Aspects, ModeAspect)
	}
	if d.o.Times && a.MTime != b.MTime {
		ch.Aspects = append(ch.Aspects, TimeAspect)
	}
	switch {
	case len(ch.Aspects) > 0:
		ch.What = Changed
	case v == undecided:
		ch.What = MayDiffer
	}
	return nil
}

// sources compares the sources.
func (d *diffing) sources() error {
	return merge(d.from.index.Sources, d.to.index.Sources, func(s *index.Source) string { return s.Path },
		func(a, b *index.Source) error {
			ch := Change{Source: true, FromSource: a, ToSource: b}
			switch {
			case a == nil:
				ch.Path, ch.What = b.Path, Added
			case b == nil:
				ch.Path, ch.What = a.Path, Deleted
			default:
				ch.Path = a.Path
				d.compareSources(&ch)
			}
			d.report.Sources.add(ch.What)
			if ch.What == "" {
				return nil
			}
			return d.yield(ch)
		})
}

func (d *diffing) compareSources(ch *Change) {
	a, b := ch.FromSource, ch.ToSource
	switch {
	case a.Kind != b.Kind:
		ch.Aspects = append(ch.Aspects, KindAspect)
	case a.Unknown || b.Unknown:
		ch.Reason = "it changed while its build ran"
	case a.Kind == index.Link && a.Sum != b.Sum:
		ch.Aspects = append(ch.Aspects, TargetAspect)
	case a.Kind == index.File && a.Sum != b.Sum:
		ch.Aspects = append(ch.Aspects, ContentAspect)
	}
	if d.o.Times && a.MTime != b.MTime {
		ch.Aspects = append(ch.Aspects, TimeAspect)
	}
	switch {
	case len(ch.Aspects) > 0:
		ch.What = Changed
	case ch.Reason != "":
		ch.What = MayDiffer
	}
}

func (d *diffing) eachEntry(do func(a, b *index.Entry) error) error {
	return merge(d.from.index.Entries, d.to.index.Entries, func(e *index.Entry) string { return e.Path }, do)
}

// merge calls do for each path of two sorted lists, with nil where a list does not have it.
func merge[T any](from, to []T, path func(*T) string, do func(a, b *T) error) error {
	for len(from) > 0 || len(to) > 0 {
		var a, b *T
		order := -1
		switch {
		case len(from) == 0:
			order = 1
		case len(to) > 0:
			order = strings.Compare(path(&from[0]), path(&to[0]))
		}
		if order <= 0 {
			a, from = &from[0], from[1:]
		}
		if order >= 0 {
			b, to = &to[0], to[1:]
		}
		if err := do(a, b); err != nil {
			return err
		}
	}
	return nil
}
