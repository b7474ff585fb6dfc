package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nbc/index"
	"nbc/mtime"
)

// staging writes an index's files where no build looks for them yet.
//
// Every file is made through the directory that holds it (an os.Root for each), with a name of a single component, and
// links come after all files: so nothing that an index says can lead a write out of the staging directory.
type staging struct {
	index *index.Index
	// where maps a root to the directory or file that stages it, absolute.
	where map[string]string
	// shift is added to every recorded time.
	shift int64
	// keep is what is moved in from an older tree.
	keep *keeping
	// rewrite puts output paths into what is written, and rewritten counts them.
	rewrite   *rewriting
	rewritten Places
	// instead maps the path of a file that is not to be restored, but has another name that is, to the first such name.
	instead  map[string]string
	progress *Progress

	mu    sync.Mutex
	open  map[string]*stagedDir // directories open at the moment, by path in the tree
	idle  []string              // those of them that nobody uses, least recently used first
	stats []receiptFile         // what was written, in no order
}

func newStaging(x *index.Index, list []*placement, rewrite *rewriting, p *Progress) *staging {
	s := &staging{
		index: x, where: map[string]string{}, keep: &keeping{}, rewrite: rewrite, instead: map[string]string{}, progress: p,
	}
	for _, pl := range list {
		if pl.entry != nil {
			s.where[pl.root] = pl.staged()
		}
	}
	for i := range x.Entries {
		e := &x.Entries[i]
		if e.Kind != index.HardLink || !s.selected(e.Path) || s.selected(e.Target) {
			continue
		}
		if _, ok := s.instead[e.Target]; !ok {
			s.instead[e.Target] = e.Path
		}
	}
	return s
}

// file returns the entry that is written for the file e: itself, or what takes its place, or nil.
func (s *staging) file(e *index.Entry) *index.Entry {
	if s.selected(e.Path) {
		return e
	}
	p, ok := s.instead[e.Path]
	if !ok {
		return nil
	}
	other := *e
	other.Path = p
	return &other
}

// total returns how many bytes the restored files have.
func (s *staging) total() (n int64) {
	for i := range s.index.Entries {
		if e := &s.index.Entries[i]; e.Kind == index.File && s.file(e) != nil {
			n += e.Size
		}
	}
	return n
}

// stagedDir is an open directory of the staging area.
type stagedDir struct {
	root  *os.Root
	fd    *os.File // for calls that os.Root does not have
	users int
}

// maxOpenDirs bounds the directories that a restore keeps open: two descriptors each, far below the usual limit of 1024
// that Go raises to the hard limit by itself.
const maxOpenDirs = 200

// rootOf returns the root that p lies in.
func (s *staging) rootOf(p string) string {
	for q := p; ; q = path.Dir(q) {
		if _, ok := s.where[q]; ok {
			return q
		}
		if q == "." || q == "/" {
			return ""
		}
	}
}

// selected says whether the entry at p is to be restored.
func (s *staging) selected(p string) bool { return s.rootOf(p) != "" }

// dir opens the directory of the tree at p, which was made before. The caller gives it back with release.
func (s *staging) dir(p string) (*stagedDir, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirLocked(p)
}

func (s *staging) dirLocked(p string) (*stagedDir, error) {
	if d, ok := s.open[p]; ok {
		d.users++
		return d, nil
	}
	var root *os.Root
	var err error
	if where, ok := s.where[p]; ok {
		root, err = os.OpenRoot(where)
	} else {
		// By way of the parent, since the whole path may be longer than the kernel takes.
		var parent *stagedDir
		if parent, err = s.dirLocked(path.Dir(p)); err != nil {
			return nil, err
		}
		root, err = parent.root.OpenRoot(path.Base(p))
		s.releaseLocked(path.Dir(p), parent)
	}
	if err != nil {
		return nil, err
	}
	fd, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	d := &stagedDir{root: root, fd: fd, users: 1}
	s.open[p] = d
	return d, nil
}

func (s *staging) release(p string, d *stagedDir) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(p, d)
}

func (s *staging) releaseLocked(p string, d *stagedDir) {
	if d.users--; d.users > 0 {
		return
	}
	s.idle = append(s.idle, p)
	for len(s.open) > maxOpenDirs && len(s.idle) > 0 {
		oldest := s.idle[0]
		s.idle = s.idle[1:]
		if o, ok := s.open[oldest]; ok && o.users == 0 {
			delete(s.open, oldest)
			o.close()
		}
	}
}

// close only reads directories: there is nothing that an error could tell.
func (d *stagedDir) close() {
	_ = d.fd.Close()
	_ = d.root.Close()
}

// closeAll gives all descriptors back.
func (s *staging) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.open {
		d.close()
	}
	s.open, s.idle = nil, nil
}

// in calls f with the open directory of p and p's name in it.
func (s *staging) in(p string, f func(d *stagedDir, name string) error) error {
	if where, ok := s.where[p]; ok { // a root that is a single file
		root, err := os.OpenRoot(filepath.Dir(where))
		if err != nil {
			return err
		}
		fd, err := root.Open(".")
		if err != nil {
			return errors.Join(err, root.Close())
		}
		d := &stagedDir{root: root, fd: fd}
		defer d.close()
		return f(d, filepath.Base(where))
	}
	parent := path.Dir(p)
	d, err := s.dir(parent)
	if err != nil {
		return err
	}
	defer s.release(parent, d)
	return f(d, path.Base(p))
}

// write fills the staging area: directories, files and hard links, links, and at last the times of directories.
func (s *staging) write(ctx context.Context, c *Cache) error {
	s.open = map[string]*stagedDir{}
	defer s.closeAll()
	if err := s.makeDirs(); err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	if err := s.writeFiles(ctx, c); err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	if err := s.makeLinks(ctx); err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	if len(s.keep.top) > 0 {
		return nil // merge finishes the directories
	}
	if err := s.finishDirs(); err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	return nil
}

// makeDirs makes all directories, parents first, open to the owner as long as they are filled.
func (s *staging) makeDirs() error {
	for i := range s.index.Entries {
		e := &s.index.Entries[i]
		if e.Kind != index.Dir || !s.selected(e.Path) || s.keep.isWhole(e.Path) {
			continue
		}
		if where, ok := s.where[e.Path]; ok {
			if err := os.Mkdir(where, 0o700); err != nil {
				return named(e.Path, err)
			}
			continue
		}
		err := s.in(e.Path, func(d *stagedDir, name string) error { return d.root.Mkdir(name, 0o700) })
		if err != nil {
			return named(e.Path, err)
		}
	}
	return nil
}

// makeLinks makes hard links and links.
func (s *staging) makeLinks(ctx context.Context) error {
	for i := range s.index.Entries {
		e := &s.index.Entries[i]
		if e.Kind != index.HardLink && e.Kind != index.Link || !s.selected(e.Path) || s.keep.has(e.Path) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var err error
		if e.Kind == index.Link {
			target, n := s.rewrite.target(e)
			if n > 0 {
				s.rewritten.Files++
				s.rewritten.Places += n
			}
			err = s.in(e.Path, func(d *stagedDir, name string) error {
				if err := d.root.Symlink(target, name); err != nil {
					return err
				}
				return setTime(d, name, mtime.At(e.MTime, s.shift))
			})
		} else if s.instead[e.Target] != e.Path {
			err = s.makeHardLink(e)
		}
		if err != nil {
			return named(e.Path, err)
		}
	}
	// A link's own stat, and a new ctime for every name of a file that got another one.
	for i := range s.index.Entries {
		e := &s.index.Entries[i]
		if e.Kind != index.HardLink && e.Kind != index.Link || !s.selected(e.Path) || s.keep.has(e.Path) {
			continue
		}
		if err := s.note(e.Path); err != nil {
			return named(e.Path, err)
		}
		if e.Kind == index.HardLink {
			if err := s.note(s.linked(e)); err != nil {
				return named(s.linked(e), err)
			}
		}
	}
	return nil
}

// linked returns the path of the file that the hard link e becomes another name of.
func (s *staging) linked(e *index.Entry) string {
	if p, ok := s.instead[e.Target]; ok {
		return p
	}
	return e.Target
}

// makeHardLink links e to its file; where that is on another device e becomes a copy, which builds the same.
func (s *staging) makeHardLink(e *index.Entry) error {
	return s.in(s.linked(e), func(from *stagedDir, fromName string) error {
		return s.in(e.Path, func(to *stagedDir, toName string) error {
			err := unix.Linkat(int(from.fd.Fd()), fromName, int(to.fd.Fd()), toName, 0)
			if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) {
				return copyFile(from, fromName, to, toName)
			}
			return err
		})
	})
}

// copyFile copies bytes, mode and time.
func copyFile(from *stagedDir, fromName string, to *stagedDir, toName string) (err error) {
	in, err := from.root.Open(fromName)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := to.root.OpenFile(toName, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := out.ReadFrom(in); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := out.Chmod(fi.Mode().Perm()); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := out.Close(); err != nil {
		return err
	}
	return setTime(to, toName, fi.ModTime().UnixNano())
}

// finishDirs gives directories their modes and times, children first; a root's own mode and time wait until it is in
// place, since a directory without write permission cannot be renamed.
func (s *staging) finishDirs() error {
	for i := len(s.index.Entries) - 1; i >= 0; i-- {
		e := &s.index.Entries[i]
		if e.Kind != index.Dir || !s.selected(e.Path) {
			continue
		}
		if _, ok := s.where[e.Path]; ok || s.keep.dirs[e.Path] {
			continue
		}
		err := s.in(e.Path, func(d *stagedDir, name string) error {
			if err := d.root.Chmod(name, fs.FileMode(e.Mode)); err != nil {
				return err
			}
			return setTime(d, name, mtime.At(e.MTime, s.shift))
		})
		if err != nil {
			return named(e.Path, err)
		}
	}
	return nil
}

// note records the stat of what is now at p.
func (s *staging) note(p string) error {
	return s.in(p, func(d *stagedDir, name string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.fd.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		s.record(p, index.StatOf(&st))
		return nil
	})
}

func (s *staging) record(p string, st index.Stat) {
	s.mu.Lock()
	s.stats = append(s.stats, receiptFile{Path: p, Stat: st})
	s.mu.Unlock()
}

// setTime sets the mtime of a file in d, never following a link.
func setTime(d *stagedDir, name string, ns int64) error {
	ts := []unix.Timespec{{Nsec: utimeOmit}, unix.NsecToTimespec(ns)}
	if err := unix.UtimesNanoAt(int(d.fd.Fd()), name, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// named puts an error's path in terms of the tree.
func named(p string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return local(fmt.Errorf("%s %q: %w", pe.Op, p, pe.Err))
	}
	return local(fmt.Errorf("%q: %w", p, err))
}

// stagedFile is a regular file while it is written.
type stagedFile struct {
	entry  *index.Entry
	offset int64 // of its first byte in the contents
	// places are those in the contents where output paths are written: those of this build, or, with asSaved, those that
	// were saved.
	places  []index.Occurrence
	asSaved bool

	// For a file that several ranges write to:
	mu      sync.Mutex
	file    *os.File
	missing int64 // bytes still to be written
}

// contentRange is a run of chunks that one worker writes, and the files that have bytes in it.
type contentRange struct {
	first, last int   // chunks
	offset      int64 // of its first byte
	files       []*stagedFile
}

// rangeBytes is how much one worker writes at a time: small enough that a file of hundreds of MB is written by all
// workers at once, large enough that few files are opened twice.
const rangeBytes = 4 << 20

// ranges cuts the contents for the workers. A chunk without a byte of a selected file is not in any.
func (s *staging) ranges() (list []contentRange, empty []*stagedFile) {
	var files []*stagedFile
	var offset int64
	for i := range s.index.Entries {
		e := &s.index.Entries[i]
		if e.Kind != index.File {
			continue
		}
		if w := s.file(e); w != nil && !s.keep.has(w.Path) {
			f := &stagedFile{entry: w, offset: offset, missing: e.Size, places: placesIn(s.index, offset, e.Size)}
			if len(f.places) > 0 {
				if f.asSaved = s.rewrite.asSaved(e.Path); !f.asSaved {
					s.rewritten.Files++
					s.rewritten.Places += len(f.places)
				}
			}
			if e.Size == 0 {
				empty = append(empty, f)
			} else {
				files = append(files, f)
			}
		}
		offset += e.Size
	}
	size := max(min(offset/int64(4*runtime.GOMAXPROCS(0)), rangeBytes), 256<<10)
	next := 0 // the first file that ends behind the chunk's start
	var pos int64
	for i, c := range s.index.Chunks {
		end := pos + int64(c.Length)
		for next < len(files) && files[next].offset+files[next].entry.Size <= pos {
			next++
		}
		if next < len(files) && files[next].offset < end {
			if n := len(list); n > 0 && list[n-1].last == i-1 && pos-list[n-1].offset < size {
				list[n-1].last = i
			} else {
				list = append(list, contentRange{first: i, last: i, offset: pos})
			}
			r := &list[len(list)-1]
			for k := next; k < len(files) && files[k].offset < end; k++ {
				if n := len(r.files); n == 0 || r.files[n-1].offset < files[k].offset {
					r.files = append(r.files, files[k])
				}
			}
		}
		pos = end
	}
	return list, empty
}

// writeFiles makes all regular files.
func (s *staging) writeFiles(ctx context.Context, c *Cache) error {
	list, empty := s.ranges()
	var wanted []int
	for _, r := range list {
		for i := r.first; i <= r.last; i++ {
			wanted = append(wanted, i)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	fetch := newFetcher(c, s.index.Chunks, wanted)
	g.Go(func() error { return fetch.run(gctx) })
	work := make(chan *contentRange)
	g.Go(func() error {
		defer close(work)
		for i := range list {
			select {
			case work <- &list[i]:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	for range max(4, 2*runtime.GOMAXPROCS(0)) {
		g.Go(func() error {
			var buf []byte
			for r := range work {
				var err error
				if buf, err = s.writeRange(gctx, fetch, r, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for len(empty) > 0 {
		part := empty[:min(256, len(empty))]
		empty = empty[len(part):]
		g.Go(func() error {
			for _, f := range part {
				if err := gctx.Err(); err != nil {
					return context.Cause(gctx)
				}
				file, err := s.create(f)
				if err != nil {
					return named(f.entry.Path, err)
				}
				if err := s.finish(f, file); err != nil {
					return named(f.entry.Path, err)
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if err != nil {
		for _, r := range list {
			for _, f := range r.files {
				if f.file != nil {
					_ = f.file.Close() // it is removed next
					f.file = nil
				}
			}
		}
	}
	return err
}

// create makes the file of f, empty.
func (s *staging) create(f *stagedFile) (file *os.File, err error) {
	err = s.in(f.entry.Path, func(d *stagedDir, name string) error {
		file, err = d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		return err
	})
	return file, err
}

// finish gives a file whose bytes are all there its mode and time, closes it, and records its stat.
func (s *staging) finish(f *stagedFile, file *os.File) error {
	if f.entry.Mode != 0o600 {
		if err := file.Chmod(fs.FileMode(f.entry.Mode)); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	if err := file.Close(); err != nil {
		return err
	}
	s.progress.Files.Add(1)
	return s.in(f.entry.Path, func(d *stagedDir, name string) error {
		if err := setTime(d, name, mtime.At(f.entry.MTime, s.shift)); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.fd.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		s.record(f.entry.Path, index.StatOf(&st))
		return nil
	})
}

// writeRange fetches the chunks of r in order and writes their bytes to the files they belong to.
func (s *staging) writeRange(ctx context.Context, fetch *fetcher, r *contentRange, buf []byte) (_ []byte, err error) {
	next := 0
	pos := r.offset
	for i := r.first; i <= r.last; i++ {
		if buf, err = fetch.take(ctx, i, buf); err != nil {
			return buf, s.explain(err, r, pos)
		}
		end := pos + int64(len(buf))
		for next < len(r.files) && r.files[next].offset < end {
			f := r.files[next]
			fileEnd := f.offset + f.entry.Size
			from, to := max(pos, f.offset), min(end, fileEnd)
			if from < to {
				if err := s.rewrite.write(buf[from-pos:to-pos], from, f); err != nil {
					return buf, err
				}
				if err := s.writeAt(f, buf[from-pos:to-pos], from-f.offset); err != nil {
					return buf, named(f.entry.Path, err)
				}
			}
			if fileEnd > end {
				break // the next chunk goes on with it
			}
			next++
		}
		pos = end
		s.progress.Bytes.Add(int64(len(buf)))
	}
	return buf, nil
}

// explain names a file that a chunk at pos is needed for.
func (s *staging) explain(err error, r *contentRange, pos int64) error {
	if !errors.Is(err, ErrMissing) && !isCorrupt(err) {
		return err
	}
	for _, f := range r.files {
		if f.offset+f.entry.Size > pos {
			return fmt.Errorf("%w (a part of %q)", err, f.entry.Path)
		}
	}
	return err
}

// writeAt writes a part of a file, at offset. The first part of it makes the file, the last one finishes it; parts come
// in any order and from several workers.
func (s *staging) writeAt(f *stagedFile, part []byte, offset int64) error {
	f.mu.Lock()
	if f.file == nil {
		file, err := s.create(f)
		if err != nil {
			f.mu.Unlock()
			return err
		}
		f.file = file // from here on whoever ends the work closes it
		if int64(len(part)) < f.entry.Size {
			if err := file.Truncate(f.entry.Size); err != nil {
				f.mu.Unlock()
				return err
			}
		}
	}
	file := f.file
	f.mu.Unlock()

	// What is zero already, in a large piece, is a hole of a sparse file.
	if len(part) < minHole || !zero(part) {
		if _, err := file.WriteAt(part, offset); err != nil {
			return err
		}
	} else if int64(len(part)) == f.entry.Size {
		if err := file.Truncate(f.entry.Size); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.missing -= int64(len(part)); f.missing > 0 {
		return nil
	}
	f.file = nil
	return s.finish(f, file)
}

// minHole is the smallest run of zeros that is left out when a file is written.
const minHole = 64 << 10

func zero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	return strings.Trim(string(b), "\x00") == ""
}
