package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"nbc/index"
	"nbc/transfer/store"
)

// This file is about the cache names of a store as a whole: what there is, and dropping some of it. It reads of each
// index what [index.Summary] needs, which is not the sources: one request, or up to three of an index of more than
// 64 KiB.

// SavedTree is what a list tells of a cache name.
type SavedTree struct {
	Name string `json:"name"`
	// Modified is when the index was put by the store's clock: what --keep-within goes by. Saved is the saver's.
	Modified time.Time `json:"modified"`
	Saved    time.Time `json:"saved"`
	Files    int       `json:"files"` // artifacts of any kind but directories
	Bytes    int64     `json:"bytes"` // their contents
	Chunks   int       `json:"chunks"`
	// IndexBytes is what the index itself takes in the store.
	IndexBytes int64  `json:"index_bytes"`
	Epoch      uint64 `json:"epoch"`
	// Dirs are the cache directories; Root is the absolute path of the source tree that they were saved in, Host the
	// machine.
	Dirs []string `json:"dirs"`
	Root string   `json:"root"`
	Host string   `json:"host"`
	// Failures counts the builds in a row that had the same sources and failed; 0 after one that succeeded.
	Failures uint64 `json:"failures"`
	// Writer is the version of nbc that saved.
	Writer string `json:"writer"`
}

// When returns the time of the save by the store's clock, or the saver's where the store does not tell.
func (t *SavedTree) When() time.Time {
	if t.Modified.IsZero() {
		return t.Saved
	}
	return t.Modified
}

func newSavedTree(x *summary) SavedTree {
	return SavedTree{
		Name: x.name, Modified: x.info.Modified.UTC(), Saved: x.Build.SavedAt().UTC(),
		Files: x.Files + x.Links, Bytes: x.Bytes, Chunks: max(x.chunkCount, len(x.Chunks)),
		IndexBytes: x.info.Size, Epoch: x.Epoch, Dirs: x.Roots, Root: x.Build.Root, Host: x.Build.Host,
		Failures: x.Build.Failures, Writer: x.Build.Version,
	}
}

// ListReport is what a list comes to, besides the trees.
type ListReport struct {
	Report
	// Reason says why there is nothing, if nothing was ever saved.
	Reason string `json:"reason,omitempty"`
	// Names counts the trees, and Bytes their contents.
	Names int   `json:"count"`
	Bytes int64 `json:"bytes"`
	// Unreadable are the indexes that could not be read; they are not among the trees.
	Unreadable []Refusal `json:"unreadable,omitempty"`
	// Absent are the names that were asked for and are not there.
	Absent []string `json:"absent,omitempty"`
}

// List calls yield for the cache names that match one of the patterns, or for all if there are none, in the order of
// the names. A pattern is that of [CollectOptions.Keep], or a cache name as it is. Before the first one it calls begin
// with the names that may come, so that a table can be laid out; some of them may have been dropped.
//
// The error is that of yield; or, after all others were yielded, that of the first index that cannot be read, or
// store.ErrNotExist if a name that is no pattern is not there. The report is never nil.
func (c *Cache) List(
	ctx context.Context, patterns []string, begin func(names []string) error, yield func(SavedTree) error,
) (*ListReport, error) {
	mine := c.working("listing names")
	r := &ListReport{Report: Report{Version: ReportVersion, Action: "list"}}
	start := mine.now()
	defer func() { r.Seconds = mine.now().Sub(start).Seconds() }()
	sel, err := selectNames(patterns)
	if err != nil {
		return r, err
	}
	list, err := mine.listNames(ctx, sel)
	if errors.Is(err, errNothing) {
		r.Reason = nothingReason
	} else if err != nil {
		return r, err
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].name
	}
	if err := begin(names); err != nil {
		return r, err
	}
	un, err := mine.eachSummary(ctx, list, nil, func(x *summary) error {
		if x.Tombstone() {
			sel.absent(x.name)
			return nil
		}
		t := newSavedTree(x)
		r.Names++
		r.Bytes += t.Bytes
		return yield(t)
	})
	if err != nil {
		return r, err
	}
	r.Unreadable, r.Absent = un.list, sel.missing()
	return r, errors.Join(un.err(), absentError(r.Absent))
}

// working returns a copy of c that has a Progress, which begins anew.
func (c *Cache) working(phase string) *Cache {
	mine := *c
	if mine.Progress == nil {
		mine.Progress = new(Progress)
	}
	mine.Progress.start(phase)
	return &mine
}

// errNothing says that nothing was ever saved in a store.
var errNothing = errors.New(nothingReason)

const nothingReason = "nothing was ever saved in this store"

// absentError is that of names that are not there.
func absentError(names []string) error {
	if len(names) == 0 {
		return nil
	}
	return absentNames(names)
}

// absentNames is a store.ErrNotExist.
type absentNames []string

func (a absentNames) Error() string        { return strings.Join(a, ", ") + ": no such name in the store" }
func (a absentNames) Is(target error) bool { return target == store.ErrNotExist }

// selection is what somebody asks for by names and patterns of names.
type selection struct {
	patterns index.Patterns
	all      bool
	// literal are the names that are no patterns, and whether each was found.
	literal map[string]bool
}

// selectNames reads a list of names and patterns of names; an empty one selects all.
func selectNames(list []string) (*selection, error) {
	s := &selection{all: len(list) == 0, literal: map[string]bool{}}
	var patterns []string
	for _, text := range list {
		_, nameErr := index.Path(text)
		_, err := index.CompilePatterns([]string{text})
		special := strings.ContainsAny(text, `*?[{\`)
		switch {
		case err == nil:
			patterns = append(patterns, text)
		case special || nameErr != nil:
			return nil, fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if !special {
			s.literal[text] = false
		}
	}
	var err error
	s.patterns, err = index.CompilePatterns(patterns)
	return s, err
}

// has says whether name is asked for, and notes that it is there.
func (s *selection) has(name string) bool {
	_, literal := s.literal[name]
	if literal {
		s.literal[name] = true
	}
	return s.all || literal || s.patterns.Match(name)
}

// absent notes that name is not there after all.
func (s *selection) absent(name string) {
	if _, ok := s.literal[name]; ok {
		s.literal[name] = false
	}
}

// missing returns the names that were asked for and not found.
func (s *selection) missing() []string {
	var list []string
	for name, found := range s.literal {
		if !found {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// savedName is an index that was listed.
type savedName struct {
	name string
	info store.Info
}

// listNames lists the indexes of sel by their names: keys sort in another order. The error is errNothing if the store is
// new.
func (c *Cache) listNames(ctx context.Context, sel *selection) ([]savedName, error) {
	if _, err := readFormat(ctx, c.Store); errors.Is(err, store.ErrNotExist) {
		return nil, errNothing
	} else if err != nil {
		return nil, err
	}
	var list []savedName
	err := c.Store.List(ctx, index.Prefix, func(i store.Info) error {
		if name, err := index.ParsePath(i.Key); err == nil && sel.has(name) {
			list = append(list, savedName{name, i})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing indexes: %w", err)
	}
	slices.SortFunc(list, func(a, b savedName) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

// summary is what was read of an index.
type summary struct {
	index.Summary
	savedName
	// listed is the version that was listed, and at the place in the list.
	listed string
	at     int
	// chunkCount is how many chunks it has, for they may have been forgotten.
	chunkCount int
	// weight is what it counts for among those that are under way: the size that was listed.
	weight int64
	err    error
	// ready is closed when the fields above are set.
	ready chan struct{}
}

// unreadable are the indexes that cannot be read.
type unreadable struct {
	list  []Refusal
	first error
}

// add notes one of them.
func (u *unreadable) add(name string, err error) {
	u.list = append(u.list, Refusal{name, err.Error()})
	if u.first == nil {
		u.first = fmt.Errorf("index of %s: %w", name, err)
	}
}

func (u *unreadable) err() error {
	if u.first == nil {
		return nil
	}
	return fmt.Errorf("%d of the indexes cannot be read: %w", len(u.list), u.first)
}

// eachSummary reads the indexes in list in parallel, and hands what it has read to do in their order, one after
// another; before that to work, unless it is nil, from several goroutines in any order. What is not there any more is
// passed over, what cannot be read is returned; an error of do ends it.
func (c *Cache) eachSummary(
	ctx context.Context, list []savedName, work func(*summary), do func(*summary) error,
) (unreadable, error) {
	var un unreadable
	ctx, cancel := context.WithCancelCause(ctx)
	var reads sync.WaitGroup
	defer func() {
		cancel(nil)
		reads.Wait()
	}()
	// The queue bounds how many are read at once and wait for their turn, and bytes what they take.
	queue := make(chan *summary, c.requests())
	bytes := semaphore.NewWeighted(keysInFlight)
	reads.Go(func() {
		defer close(queue)
		for i, n := range list {
			x := &summary{savedName: n, listed: n.info.Version, at: i, ready: make(chan struct{})}
			x.weight = max(1, min(n.info.Size, keysInFlight))
			if bytes.Acquire(ctx, x.weight) != nil {
				return
			}
			select {
			case queue <- x:
			case <-ctx.Done():
				return
			}
			reads.Go(func() {
				defer close(x.ready)
				if x.err = c.readSummary(ctx, x); x.err == nil && work != nil {
					work(x)
				}
			})
		}
	})
	n := 0
	for x := range queue {
		<-x.ready
		switch err := x.err; {
		case errors.Is(err, store.ErrNotExist):
		case errors.Is(err, index.ErrInvalid), errors.Is(err, index.ErrVersion), errors.Is(err, store.ErrRefused):
			un.add(x.name, err)
		case err != nil:
			return un, fmt.Errorf("reading the index of %s: %w", x.name, err)
		default:
			if err := do(x); err != nil {
				return un, err
			}
		}
		bytes.Release(x.weight)
		if n++; n%100 == 0 {
			c.Progress.phase(fmt.Sprintf("reading indexes, %d of %d", n, len(list)))
		}
	}
	return un, context.Cause(ctx)
}

// readSummary reads what x is to tell of an index; the version becomes that of what was read.
func (c *Cache) readSummary(ctx context.Context, x *summary) error {
	const tries = 10
	for range tries {
		o, err := c.Store.Get(ctx, x.info.Key, store.Read{Length: keysFirst})
		if err != nil {
			return err
		}
		head, build, end, err := index.SummaryParts(o.Data)
		if err != nil {
			return err
		}
		x.info.Version, x.info.Size = o.Version, o.Size
		var first, last []byte
		if build-head < keysFirst {
			// One request more would take longer than these few bytes of sources.
			if first, err = c.span(ctx, x, o.Data, 0, end); err == nil {
				last = first[min(build, len(first)):]
			}
		} else if first, err = c.span(ctx, x, o.Data, 0, head); err == nil {
			last, err = c.span(ctx, x, nil, build, end)
		}
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err == nil {
			x.Summary, err = index.DecodeSummary(first, last)
		}
		return err
	}
	return fmt.Errorf("%w: it was replaced %d times while it was read", store.ErrUnavailable, tries)
}

// span returns the bytes from begin to end of the index x, or as many as there are; the first of them are had already.
// The error is store.ErrConflict if it was replaced.
func (c *Cache) span(ctx context.Context, x *summary, had []byte, begin, end int) ([]byte, error) {
	begin += len(had)
	if begin >= end || int64(begin) >= x.info.Size {
		return had[:len(had)-max(0, begin-end)], nil
	}
	o, err := c.Store.Get(ctx, x.info.Key, store.Read{Offset: int64(begin), Length: int64(end - begin)})
	if err != nil {
		return nil, err
	}
	if o.Version != x.info.Version {
		return nil, store.ErrConflict
	}
	return append(had[:len(had):len(had)], o.Data...), nil
}
