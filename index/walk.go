package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Found is a file that Walk met.
type Found struct {
	Path   string // relative to the tree, with slashes
	Kind   Kind   // File, Dir or Link: hard links are recognised later, by Dev and Ino
	Target string // of a Link, as it stands in it
	Stat   Stat
}

// Tree is what Walk found.
type Tree struct {
	// Roots are the cache directories that are there, sorted, none inside another. A single file that matches is one.
	Roots []string
	// Artifacts are all files in Roots, the roots included, sorted by path, bytewise. A root that is a link to a
	// directory is followed: it has the Kind and Stat of what it leads to.
	Artifacts []Found
	// Sources are all other files, the tree itself (".") included, sorted by path, bytewise.
	Sources []Found
	// Skipped are the paths of files that should have been among the others but are left out, sorted: sockets, devices
	// and pipes; and links in the place of a cache directory that do not lead to a directory outside the tree. (One
	// that leads to another place in the tree would make every file there an artifact under a second name.)
	Skipped []string
}

// Walker tells Walk what to look at.
type Walker struct {
	// Dirs are the cache directories.
	Dirs Patterns
	// Exclude leaves artifacts out: a match, and all below it. See [Patterns.MatchAnywhere].
	Exclude Patterns
	// IgnoreSources leaves sources out: a match, and all below it. ".git" is always left out, at any depth. Cache
	// directories are found below a match all the same, unless it is ".git". See [Patterns.MatchAnywhere].
	IgnoreSources Patterns
	// NoSources skips everything that cannot hold a cache directory.
	NoSources bool
}

// walkers bounds the directories that are read at once: enough to keep a disk or a network busy; from there on more
// costs memory and gains nothing where the kernel has everything in its caches.
var walkers = max(4, runtime.GOMAXPROCS(0))

// Walk looks at every file below root. It follows no link but a cache directory that is one, and root itself, and
// enters mount points. Names that are [Reserved] do not exist for it.
//
// What vanishes meanwhile is left out, what appears may be. Each Stat of a directory was taken before its names were
// read, so a later change of them shows. A directory that must not be read is an error that names it: a cache that
// lacks a part of a tree would be wrong.
func (w Walker) Walk(ctx context.Context, root string) (*Tree, error) {
	fd, err := open(unix.AT_FDCWD, root, openDirectory)
	if err != nil {
		return nil, fmt.Errorf("walking the source tree: %w", &fs.PathError{Op: "open", Path: root, Err: err})
	}
	defer func() { _ = unix.Close(fd) }()
	st, err := fstat(fd)
	if err != nil {
		return nil, fmt.Errorf("walking the source tree: %w", &fs.PathError{Op: "stat", Path: root, Err: err})
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(walkers)
	s := &search{
		ctx: groupCtx, group: group, top: fd, root: root,
		real: sync.OnceValues(func() (string, error) {
			abs, err := filepath.Abs(root)
			if err != nil {
				return "", err
			}
			return filepath.EvalSymlinks(abs)
		}),
	}
	top := &folder{
		found: Found{Path: ".", Kind: Dir, Stat: st},
		dirs:  w.Dirs.whole, exclude: w.Exclude.anywhere, ignore: w.IgnoreSources.anywhere,
	}
	if w.NoSources {
		top.place = inSearched
	}
	group.Go(func() error { return s.walk(top) })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if top.gone {
		return nil, fmt.Errorf("walking the source tree: %w", &fs.PathError{Op: "open", Path: root, Err: unix.ENOENT})
	}
	return collect(top), nil
}

// search is one walk.
type search struct {
	ctx   context.Context
	group *errgroup.Group
	top   int // the open tree
	root  string
	real  func() (string, error) // the path of the tree without links
}

// place says what the files of a folder are.
type place uint8

const (
	inSources   place = iota
	inArtifacts       // in a cache directory
	inSearched        // neither, but cache directories may lie below
	inIgnored         // as inSearched; what may not be read there is no error
)

// folder is a directory on the walk. Each is filled by one goroutine, and read by collect after all have ended.
type folder struct {
	// found is the folder itself, as the one above saw it, until it is read.
	found Found
	place place
	// linked is the path of the cache directory that is a link, if the folder is one or lies in one.
	linked string
	// dirs, exclude and ignore are what is left to match below.
	dirs, exclude, ignore states

	// gone says that the folder had vanished when its turn came.
	gone  bool
	items []item // sorted by name
}

// item is a file in a folder.
type item struct {
	name   string
	found  Found
	role   role
	folder *folder // of a directory
}

type role uint8

const (
	asSource role = iota
	asArtifact
	asRoot
	asPassage // only what is below matters
	asSkipped // see Tree.Skipped
)

// walk reads a folder and all below it. It hands directories to other goroutines while there are any idle.
func (s *search) walk(d *folder) error {
	if err := s.ctx.Err(); err != nil {
		return fmt.Errorf("walking the source tree: %w", err)
	}
	err := s.read(d)
	switch {
	case err == nil:
	case vanished(err):
		d.gone = true
		return nil
	case !errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("reading directory %q: %w", d.found.Path, err)
	case d.place == inIgnored:
	case d.place == inArtifacts:
		return fmt.Errorf("reading cache directory %q: %w; --exclude leaves it out", d.found.Path, err)
	default:
		return fmt.Errorf("reading source directory %q: %w; --ignore-source leaves it out", d.found.Path, err)
	}
	for i := range d.items {
		sub := d.items[i].folder
		if sub == nil || s.group.TryGo(func() error { return s.walk(sub) }) {
			continue
		}
		if err := s.walk(sub); err != nil {
			return err
		}
	}
	return nil
}

// listing is what reading a folder needs, kept for the next.
type listing struct {
	buf    []byte
	names  []string
	target []byte
}

// 32 KB is what the C library asks for: some 1,000 names with each call.
var listings = sync.Pool{New: func() any { return &listing{buf: make([]byte, 32<<10), target: make([]byte, 256)} }}

func (s *search) read(d *folder) error {
	fd, err := s.open(d)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	l := listings.Get().(*listing)
	defer listings.Put(l)
	defer func() { clear(l.names) }() // or the pool would hold the names

	names, few := d.dirs.names()
	if d.place < inSearched || !few {
		if names, err = l.read(fd); err != nil {
			return err
		}
	}
	slices.Sort(names)
	names = slices.Compact(names) // a directory that changes may show a name twice
	prefix := ""
	if d.found.Path != "." {
		prefix = d.found.Path + "/"
	}
	if d.place < inSearched {
		d.items = make([]item, 0, len(names))
	}
	for i, name := range names {
		if i%1024 == 1023 && s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		if Reserved(name) {
			continue
		}
		if err := s.look(fd, l, d, name, prefix); err != nil && !vanished(err) {
			return err
		}
	}
	return nil
}

// look decides what the file name in the folder d is.
func (s *search) look(fd int, l *listing, d *folder, name, prefix string) error {
	it := item{name: name}
	place := d.place
	var below states
	switch {
	case place == inArtifacts:
		if d.exclude.match(name) {
			return nil
		}
		it.role = asArtifact
	case d.dirs.match(name):
		if d.exclude.match(name) {
			return nil
		}
		it.role, place = asRoot, inArtifacts
	case name == ".git":
		return nil
	default:
		if d.ignore.match(name) {
			place = inIgnored
		}
		below = d.dirs.step(name)
		if place >= inSearched {
			if it.role = asPassage; len(below) == 0 {
				return nil
			}
		}
	}

	st, err := lstatAt(fd, name)
	if err != nil {
		return err
	}
	it.found.Path = prefix + name
	linked := d.linked
	if kind, _ := st.Kind(); kind == Link && it.role == asRoot {
		if to, ok := s.follow(fd, name, it.found.Path); ok {
			st, linked = to, it.found.Path
		} else {
			it.role = asSkipped
		}
	}
	kind, known := st.Kind()
	it.found.Kind, it.found.Stat = kind, st
	switch {
	case it.role == asPassage && kind != Dir:
		return nil
	case !known:
		it.role = asSkipped
	case it.role == asSkipped:
	case kind == Link:
		if it.found.Target, err = l.readlink(fd, name); err != nil {
			if errors.Is(err, unix.EINVAL) { // it is no link any more
				err = unix.ENOENT
			}
			return err
		}
	case kind == Dir:
		it.folder = &folder{
			found: it.found, place: place, linked: linked,
			dirs: below, exclude: d.exclude.step(name), ignore: d.ignore.step(name),
		}
	}
	d.items = append(d.items, it)
	return nil
}

// follow returns what the link at path, a cache directory, leads to: only a directory outside the tree will do.
func (s *search) follow(fd int, name, path string) (Stat, bool) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, 0); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Stat{}, false
	}
	tree, err := s.real()
	if err != nil {
		return Stat{}, false
	}
	target, err := filepath.EvalSymlinks(filepath.Join(tree, path))
	if err != nil || inside(target, tree) || inside(tree, target) {
		return Stat{}, false
	}
	return StatOf(&st), true
}

// inside reports whether the absolute path is dir or lies in it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// open opens the folder d, surely the one that the folder above held: were a directory on the way replaced by a link
// meanwhile, the files elsewhere would be taken for those of the tree.
func (s *search) open(d *folder) (int, error) {
	flags := openDirectory
	if d.linked != d.found.Path {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := open(s.top, d.found.Path, flags)
	if err == nil {
		st, err := fstat(fd)
		if err == nil && st.SameFile(d.found.Stat) {
			d.found.Stat = st
			return fd, nil
		}
		_ = unix.Close(fd)
	}
	// It was replaced, or mounted on when it was opened.
	if fd, err = openElements(s.top, d.found.Path, d.linked); err != nil {
		return -1, err
	}
	if d.found.Stat, err = fstat(fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// vanished reports whether a file is no longer what the directory above it said.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ESTALE)
}

// read returns the names in the directory, valid until the next read.
func (l *listing) read(fd int) ([]string, error) {
	l.names = l.names[:0]
	for {
		n, err := unix.ReadDirent(fd, l.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return l.names, err
		}
		_, _, l.names = unix.ParseDirent(l.buf[:n], -1, l.names)
	}
}

func (l *listing) readlink(fd int, name string) (string, error) {
	for {
		n, err := unix.Readlinkat(fd, name, l.target)
		if err != nil {
			return "", err
		}
		if n < len(l.target) {
			return string(l.target[:n]), nil
		}
		l.target = make([]byte, 2*len(l.target))
	}
}

// collect puts what was found in order.
func collect(top *folder) *Tree {
	var t Tree
	var nSources, nArtifacts int
	top.count(&nSources, &nArtifacts)
	t.Artifacts = make([]Found, 0, nArtifacts)
	if top.place == inSources {
		t.Sources = make([]Found, 0, nSources+1)
	}
	t.add(top)
	if top.place == inSources {
		// "." is not before all others: "-" and "+" are.
		at, _ := slices.BinarySearchFunc(t.Sources, ".",
			func(f Found, p string) int { return strings.Compare(f.Path, p) })
		t.Sources = slices.Insert(t.Sources, at, top.found)
	}
	return &t
}

func (d *folder) count(sources, artifacts *int) {
	for i := range d.items {
		it := &d.items[i]
		switch it.role {
		case asSource:
			*sources++
		case asArtifact, asRoot:
			*artifacts++
		}
		if it.folder != nil {
			it.folder.count(sources, artifacts)
		}
	}
}

// add appends what is in d, sorted by path. What a directory holds does not follow it at once, for "a-b" is before
// "a/b". Between them stand only siblings whose names begin with the directory's, so those that wait are a stack.
func (t *Tree) add(d *folder) {
	var waiting []*item
	for i := range d.items {
		it := &d.items[i]
		for n := len(waiting); n > 0; n-- {
			rest, longer := strings.CutPrefix(it.name, waiting[n-1].name)
			if longer && rest[0] < '/' {
				break
			}
			t.add(waiting[n-1].folder)
			waiting = waiting[:n-1]
		}
		if it.folder != nil {
			if it.folder.gone {
				continue
			}
			it.found = it.folder.found
			waiting = append(waiting, it)
		}
		switch it.role {
		case asSource:
			t.Sources = append(t.Sources, it.found)
		case asRoot:
			t.Roots = append(t.Roots, it.found.Path)
			t.Artifacts = append(t.Artifacts, it.found)
		case asArtifact:
			t.Artifacts = append(t.Artifacts, it.found)
		case asSkipped:
			t.Skipped = append(t.Skipped, it.found.Path)
		case asPassage:
		}
	}
	for n := len(waiting); n > 0; n-- {
		t.add(waiting[n-1].folder)
	}
	d.items = nil // copied: a large tree is not held twice longer than needed
}
