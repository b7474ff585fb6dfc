package mtime

import (
	"context"
	"crypto/md5" // #nosec G501 -- see the package's documentation
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nbc/index"
)

const (
	// bufferSize is what one worker reads at once. Most sources fit; larger buffers gained nothing.
	bufferSize = 128 << 10
	// bigFile is the size from which files come first, the largest at the start: one core hashes some 700 MB/s, so a
	// file of a gigabyte that is begun last would leave the other cores idle for a second and more.
	bigFile = 4 << 20
	// rereads is how often a file that changes while it is read is begun again. One that is written all the time will
	// not hold still later either.
	rereads = 3
)

// Hash returns the sources that found describes, in the same order: files with the MD5 of their bytes, links with that
// of their target, and directories with that of the names of the sources in them, each followed by a NUL. Found is what
// [index.Walker.Walk] returned as Sources.
//
// A file that has changed since the walk gets its new Stat in found, so that found and the result always belong
// together. One that changes whenever it is read is Unknown, and one that has vanished is left out. A file that must
// not be read is an error which names it. Files counts those that are done; it may be nil.
func Hash(ctx context.Context, root string, found []index.Found, files *atomic.Int64) ([]index.Source, error) {
	return hashAll(ctx, root, found, nil, files)
}

// Rehash is Hash for a tree that was hashed before: what it can it takes over from before, and reads the other files
// only. Stats are those of before, in the same order, from a time when the files were as they were hashed; probe is the
// time of a [Probe] made after that. A file with a ctime not older than the probe is read in any case: it may have been
// written again within the same tick of the file system's clock.
func Rehash(ctx context.Context, root string, before []index.Source, stats []index.Stat, probe int64,
	found []index.Found, files *atomic.Int64,
) ([]index.Source, error) {
	if len(stats) != len(before) {
		return nil, fmt.Errorf("rehashing: %d sources, but the Stats of %d", len(before), len(stats))
	}
	known := make(map[int]*index.Source)
	i := 0
	for k := range found {
		for i < len(before) && before[i].Path < found[k].Path {
			i++
		}
		if i == len(before) {
			break
		}
		b, f := &before[i], &found[k]
		if b.Path == f.Path && b.Kind == f.Kind && untouched(b, stats[i], f.Stat, probe) {
			known[k] = b
		}
	}
	return hashAll(ctx, root, found, known, files)
}

// Recheck returns before with those marked Unknown that are no longer, at the end of a build, what they were at its
// start: nobody knows which bytes the build has read. That holds also for a file with the same bytes as before, since
// it may have been edited and put back, and for one that is gone. A directory counts by its names, since the build's
// own output changes its time.
//
// Stats and probe are as for [Rehash]; now is what a walk found at the end.
func Recheck(before []index.Source, stats []index.Stat, probe int64, now []index.Found) ([]index.Source, error) {
	if len(stats) != len(before) {
		return nil, fmt.Errorf("checking sources again: %d sources, but the Stats of %d", len(before), len(stats))
	}
	after := slices.Clone(before)
	names := dirSums(now, nil)
	k := 0
	for i := range after {
		s := &after[i]
		for k < len(now) && now[k].Path < s.Path {
			k++
		}
		same := k < len(now) && now[k].Path == s.Path && now[k].Kind == s.Kind
		if same && s.Kind == index.Dir {
			same = s.Sum == names(s.Path)
		} else if same {
			same = untouched(s, stats[i], now[k].Stat, probe)
		}
		if !same {
			s.Unknown, s.Sum = true, [index.SumSize]byte{}
		}
	}
	return after, nil
}

// untouched reports whether the Stats prove that a source is still what it was when its Stat was was.
func untouched(s *index.Source, was, now index.Stat, probe int64) bool {
	return !s.Unknown && was == now && now.CTime < probe
}

// hashAll hashes found; known says by position what need not be read.
func hashAll(ctx context.Context, root string, found []index.Found, known map[int]*index.Source, files *atomic.Int64,
) ([]index.Source, error) {
	if files == nil {
		files = new(atomic.Int64)
	}
	if len(found) > math.MaxInt32 {
		return nil, fmt.Errorf("hashing sources: %d are too many", len(found))
	}
	sources := make([]index.Source, len(found))
	gone := make([]bool, len(found))
	var order []int32
	for i := range found {
		f := &found[i]
		sources[i] = index.Source{Path: f.Path, Kind: f.Kind, MTime: f.Stat.MTime}
		switch {
		case known[i] != nil:
			sources[i].Sum = known[i].Sum
			files.Add(1)
		case f.Kind == index.File:
			order = append(order, int32(i))
		case f.Kind == index.Link:
			sources[i].Sum = md5.Sum([]byte(f.Target)) // #nosec G401
			files.Add(1)
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		return int(max(found[b].Stat.Size, bigFile)/bigFile - max(found[a].Stat.Size, bigFile)/bigFile)
	})

	group, groupCtx := errgroup.WithContext(ctx)
	var next atomic.Int64
	// Reading waits for a disk as well as it computes.
	for range min(2*runtime.GOMAXPROCS(0), len(order)) {
		group.Go(func() error {
			h := &hasher{md5: md5.New(), buf: make([]byte, bufferSize)} // #nosec G401
			for {
				n := next.Add(1) - 1
				if n >= int64(len(order)) {
					return nil
				}
				i := order[n]
				err := h.hash(groupCtx, root, &found[i], &sources[i])
				if errors.Is(err, fs.ErrNotExist) {
					gone[i], err = true, nil
				}
				if err != nil {
					return err
				}
				files.Add(1)
			}
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}

	names := dirSums(found, gone)
	all := sources[:0]
	for i := range sources {
		if gone[i] {
			continue
		}
		if sources[i].Kind == index.Dir {
			sources[i].Sum = names(sources[i].Path)
		}
		all = append(all, sources[i])
	}
	return all, nil
}

// dirSums returns a function that gives the hash of the names in each directory. Found is sorted by path, so the names
// of one directory come in order.
func dirSums(found []index.Found, gone []bool) func(dir string) [index.SumSize]byte {
	names := make(map[string][]byte)
	for i := range found {
		p := found[i].Path
		if p == "." || gone != nil && gone[i] {
			continue
		}
		dir, name := splitPath(p)
		names[dir] = append(append(names[dir], name...), 0)
	}
	return func(dir string) [index.SumSize]byte { return md5.Sum(names[dir]) } // #nosec G401
}

// splitPath returns the directory and the name of a path of a tree.
func splitPath(p string) (dir, name string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ".", p
	}
	return p[:i], p[i+1:]
}

// hasher is what one worker needs.
type hasher struct {
	md5 hash.Hash
	buf []byte
}

// hash reads the file f into s. The error is fs.ErrNotExist if it has vanished.
func (h *hasher) hash(ctx context.Context, root string, f *index.Found, s *index.Source) error {
	for range rereads {
		before, after, err := h.read(ctx, root, f.Path)
		if err != nil {
			return h.explain(ctx, root, f, s, err)
		}
		f.Stat, s.MTime = after, after.MTime
		if before == after {
			h.md5.Sum(s.Sum[:0])
			return nil
		}
	}
	s.Unknown = true
	return nil
}

// read feeds a file to the hash, and returns its Stats before and after.
func (h *hasher) read(ctx context.Context, root, name string) (before, after index.Stat, err error) {
	file, err := index.OpenFile(root, name)
	if err != nil {
		return before, after, err
	}
	defer func() { _ = file.Close() }()
	if before, err = index.FstatFile(file); err != nil {
		return before, after, err
	}
	h.md5.Reset()
	for {
		if err := ctx.Err(); err != nil {
			return before, after, err
		}
		n, err := file.Read(h.buf)
		_, _ = h.md5.Write(h.buf[:n]) // a hash never fails
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return before, after, err
		}
	}
	after, err = index.FstatFile(file)
	return before, after, err
}

// explain turns the error of reading f into that of hash.
func (h *hasher) explain(ctx context.Context, root string, f *index.Found, s *index.Source, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("hashing sources: %w", ctx.Err())
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESTALE):
		return fs.ErrNotExist
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("reading source %q: %w; --ignore-source leaves it out", f.Path, cause(err))
	}
	if st, err := index.LstatFile(root, f.Path); err == nil {
		if kind, _ := st.Kind(); kind != index.File {
			// Something else has taken its place: the next build compares that.
			s.Unknown = true
			return nil
		}
	}
	return fmt.Errorf("reading source %q: %w", f.Path, cause(err))
}

// cause is the error without the path that its message would name a second time.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
