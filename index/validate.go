package index

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"nbc/chunk"
)

// Errors of [Decode], [DecodeChunks] and [Index.Encode], to be asked for with [errors.Is].
var (
	// ErrInvalid says that bytes are not an index, or that an index breaks a rule of the format: damaged or hostile.
	ErrInvalid = errors.New("not a valid index")
	// ErrVersion says that an index needs a newer nbc than this one.
	ErrVersion = errors.New("index was written by a newer nbc")
)

// WorkName is the name of the folder that nbc makes in a tree for its own work, and ProbePrefix, with 16 lower-case
// hexadecimal digits behind it, that of the files by which it asks for the time.
const (
	WorkName    = ".nbc-work"
	ProbePrefix = ".nbc-probe-"
)

// Reserved says whether name is one of nbc's own. No entry and no source has such a component, so that a restore never
// collides with its own work, and a save never stores it. All other names belong to the user: a source that a walk
// does not see is one whose changes go unnoticed.
func Reserved(name string) bool {
	digits, ok := strings.CutPrefix(name, ProbePrefix)
	return name == WorkName || ok && len(digits) == 16 && strings.Trim(digits, "0123456789abcdef") == ""
}

// Limits of an index. A writer that meets one fails, and a reader refuses what is above it before it allocates for it,
// so that a small hostile object costs a bounded amount of memory. They are part of the format: raising one needs a
// new version, because readers of this one would refuse the index.
const (
	// MaxSize of an encoded index, in bytes. It is what a store accepts for an object; one of a million files has about
	// 60 MB.
	MaxSize = 1 << 28
	// MaxSection bounds the plain bytes of one section. Before compression an entry takes 20 to 80 bytes, a source 35
	// to 95, a chunk key 36.
	MaxSection = 1 << 28
	// MaxPlain bounds the plain bytes of all sections together: those of the most entries, sources and chunks at 80, 95 and
	// 36 bytes each, which is above what is met.
	MaxPlain = 1 << 29
	// MaxRatio bounds the plain bytes of a section to 1 MiB and this for each stored byte. Real trees reach 4. A folder
	// of numbered empty files of one time would reach 340; a writer stores such a section as it is.
	MaxRatio = 100
	// MaxEntries and MaxSources are 20 times the largest tree in use, and 110 MB of memory for each.
	MaxEntries = 1 << 21
	MaxSources = 1 << 21
	// MaxChunks is what 1 TiB makes at the default average size.
	MaxChunks = 1 << 22
	// MaxPath is in bytes. Trees can be deeper than the 4 KiB that one system call takes.
	MaxPath = 64 << 10
	// MaxComponent is NAME_MAX of all file systems that matter, in bytes.
	MaxComponent = 255
	// MaxPathBytes bounds the lengths of all paths of a section together: 128 bytes for each of MaxEntries. Without it
	// paths that share 64 KiB with their predecessor would turn 3 bytes into 64 KiB each.
	MaxPathBytes = 1 << 28
	// MaxTarget of a link, in bytes: Linux allows no more (PATH_MAX with its NUL).
	MaxTarget = 4095
	// MaxRoots is that of entries, since a pattern may match single files: every object of a build inside its sources.
	MaxRoots = MaxEntries
	// MaxPatterns is far above what fits into a command line.
	MaxPatterns = 1 << 12
	// MaxText bounds Build.Host and Build.Version, in bytes.
	MaxText = 255
)

// Validate says what is wrong with x. Its error is ErrInvalid with the first rule that x breaks.
func (x *Index) Validate() error {
	pieces, err := checkChunks(x.Epoch, x.Chunks)
	if err != nil {
		return err
	}
	if err := checkRoots(x.Roots); err != nil {
		return err
	}
	contents, err := x.checkEntries()
	if err != nil {
		return err
	}
	if contents != pieces {
		return fmt.Errorf("%w: files have %d bytes, chunks %d", ErrInvalid, contents, pieces)
	}
	if err := x.checkSources(); err != nil {
		return err
	}
	if err := x.Build.check(); err != nil {
		return err
	}
	return x.Outputs.check(len(x.Entries), func(i int) int64 { return x.Entries[i].Size })
}

// checkChunks returns the sum of the lengths, which cannot overflow: MaxChunks * chunk.MaxSize is 2^45.
func checkChunks(epoch uint64, chunks []Chunk) (int64, error) {
	if len(chunks) > MaxChunks {
		return 0, fmt.Errorf("%w: %d chunks, %d are allowed", ErrInvalid, len(chunks), MaxChunks)
	}
	var sum int64
	for i := range chunks {
		if err := chunks[i].check(epoch); err != nil {
			return 0, err
		}
		sum += int64(chunks[i].Length)
	}
	return sum, nil
}

// check looks at a chunk of an index of that epoch.
func (c *Chunk) check(epoch uint64) error {
	if c.Length < 1 || c.Length > chunk.MaxSize {
		return fmt.Errorf("%w: chunk %s has a length of %d", ErrInvalid, c.Key, c.Length)
	}
	if c.Epoch > epoch {
		return fmt.Errorf("%w: chunk %s is of a later epoch than the index's %d", ErrInvalid, c.Key, epoch)
	}
	return nil
}

// checkRoots looks at the roots alone; entryCheck makes sure that each is an entry.
func checkRoots(roots []string) error {
	if len(roots) > MaxRoots {
		return fmt.Errorf("%w: %d roots, %d are allowed", ErrInvalid, len(roots), MaxRoots)
	}
	// The earlier roots that the current one begins with, byte by byte: an outer root is among them, but need not be
	// its neighbour, for "a-b" sorts between "a" and "a/b".
	var begin []string
	prev := ""
	for _, root := range roots {
		if err := checkPath(root); err != nil {
			return fmt.Errorf("%w: root %s %w", ErrInvalid, quote(root), err)
		}
		n := shared(prev, root)
		if !follows(prev, root, n) {
			return fmt.Errorf("%w: root %s is not sorted", ErrInvalid, quote(root))
		}
		for len(begin) > 0 && len(begin[len(begin)-1]) > n {
			begin = begin[:len(begin)-1]
		}
		for _, outer := range begin {
			if root[len(outer)] == '/' {
				return fmt.Errorf("%w: root %s is inside root %s", ErrInvalid, quote(root), quote(outer))
			}
		}
		begin = append(begin, root)
		prev = root
	}
	return nil
}

// checkEntries returns the sum of the sizes.
func (x *Index) checkEntries() (int64, error) {
	if len(x.Entries) > MaxEntries {
		return 0, fmt.Errorf("%w: %d entries, %d are allowed", ErrInvalid, len(x.Entries), MaxEntries)
	}
	c := entryCheck{roots: x.Roots}
	for i := range x.Entries {
		e := &x.Entries[i]
		if err := c.add(e); err != nil {
			return 0, err
		}
		if e.Kind == HardLink {
			if _, err := x.hardLink(i); err != nil {
				return 0, fmt.Errorf("%w: entry %s: %w", ErrInvalid, quote(e.Path), err)
			}
		}
	}
	return c.sum, c.end()
}

// entryCheck looks at entries, one after another, but not at which file a hard link is another name of. It takes one
// pass without a map, because trees are large.
type entryCheck struct {
	roots []string
	// dirs are the lengths of the paths of earlier directories with which the current path begins, byte by byte, in
	// increasing order. A parent is always among them: what sorts between it and its child begins with the parent's path
	// as well. Above the parent are only the directories that share a part of the last component, 255 at most.
	dirs   []int
	root   int   // how many roots were there
	sum    int64 // of the sizes
	length int   // of all paths
	prev   string
}

func (c *entryCheck) add(e *Entry) error {
	if err := checkPath(e.Path); err != nil {
		return fmt.Errorf("%w: entry %s %w", ErrInvalid, quote(e.Path), err)
	}
	n := shared(c.prev, e.Path)
	if !follows(c.prev, e.Path, n) {
		return fmt.Errorf("%w: entry %s is not sorted", ErrInvalid, quote(e.Path))
	}
	c.prev = e.Path
	if c.length += len(e.Path); c.length > MaxPathBytes {
		return fmt.Errorf("%w: paths of more than %d bytes", ErrInvalid, MaxPathBytes)
	}
	for len(c.dirs) > 0 && c.dirs[len(c.dirs)-1] > n {
		c.dirs = c.dirs[:len(c.dirs)-1]
	}

	if c.root < len(c.roots) && c.roots[c.root] < e.Path {
		return c.end()
	}
	if c.root < len(c.roots) && c.roots[c.root] == e.Path {
		c.root++
		if e.Kind != Dir && e.Kind != File {
			return fmt.Errorf("%w: root %s is a %s", ErrInvalid, quote(e.Path), e.Kind)
		}
	} else if parent := strings.LastIndexByte(e.Path, '/'); !holds(c.dirs, parent) {
		return fmt.Errorf("%w: entry %s is neither a root nor in a directory before it", ErrInvalid, quote(e.Path))
	}
	if e.Kind == Dir {
		c.dirs = append(c.dirs, len(e.Path))
	}

	if err := e.check(); err != nil {
		return fmt.Errorf("%w: entry %s: %w", ErrInvalid, quote(e.Path), err)
	}
	if e.Size > math.MaxInt64-c.sum {
		return fmt.Errorf("%w: files of more than %d bytes", ErrInvalid, int64(math.MaxInt64))
	}
	c.sum += e.Size
	return nil
}

// end refuses roots that were no entries.
func (c *entryCheck) end() error {
	if c.root < len(c.roots) {
		return fmt.Errorf("%w: root %s is not an entry", ErrInvalid, quote(c.roots[c.root]))
	}
	return nil
}

// holds tells whether one of the lengths, which increase, is this one.
func holds(lengths []int, length int) bool {
	for _, n := range slices.Backward(lengths) {
		if n <= length {
			return n == length
		}
	}
	return false
}

// check looks at the fields but the path, and the target of a hard link.
func (e *Entry) check() error {
	switch e.Kind {
	case File:
		if e.Size < 0 || e.Target != "" {
			return fmt.Errorf("a size of %d and the target %s in a file", e.Size, quote(e.Target))
		}
	case Dir:
		if e.Size != 0 || e.Target != "" {
			return fmt.Errorf("a size of %d and the target %s in a directory", e.Size, quote(e.Target))
		}
	case Link, HardLink:
		if e.Size != 0 || e.Mode != 0 || e.Kind == HardLink && e.MTime != 0 {
			return fmt.Errorf("a size of %d, the mode %o and the time %d in a %s", e.Size, e.Mode, e.MTime, e.Kind)
		}
		if e.Kind == Link && (e.Target == "" || len(e.Target) > MaxTarget || strings.IndexByte(e.Target, 0) >= 0) {
			return fmt.Errorf("a link to %s", quote(e.Target))
		}
	default:
		return fmt.Errorf("%s", e.Kind)
	}
	if e.Mode > 0o777 {
		return fmt.Errorf("the mode %o", e.Mode)
	}
	return nil
}

// hardLink returns the position of the file that entry i is another name of.
func (x *Index) hardLink(i int) (int, error) {
	e := &x.Entries[i]
	j, ok := slices.BinarySearchFunc(x.Entries[:i], e.Target,
		func(e Entry, path string) int { return strings.Compare(e.Path, path) })
	if !ok || x.Entries[j].Kind != File {
		return 0, fmt.Errorf("a hard link to %s, which is not a file before it", quote(e.Target))
	}
	return j, nil
}

func (x *Index) checkSources() error {
	if len(x.Sources) > MaxSources {
		return fmt.Errorf("%w: %d sources, %d are allowed", ErrInvalid, len(x.Sources), MaxSources)
	}
	var c sourceCheck
	for i := range x.Sources {
		if err := c.add(&x.Sources[i]); err != nil {
			return err
		}
	}
	return c.end()
}

// sourceCheck looks at sources, one after another.
type sourceCheck struct {
	prev       string
	length     int  // of all paths
	any, there bool // there was one; there was the tree itself
}

func (c *sourceCheck) add(s *Source) error {
	c.any = true
	if s.Path == "." {
		if c.there = s.Kind == Dir; !c.there {
			return fmt.Errorf("%w: the source tree is a %s", ErrInvalid, s.Kind)
		}
	} else if err := checkPath(s.Path); err != nil {
		return fmt.Errorf("%w: source %s %w", ErrInvalid, quote(s.Path), err)
	}
	if !follows(c.prev, s.Path, shared(c.prev, s.Path)) {
		return fmt.Errorf("%w: source %s is not sorted", ErrInvalid, quote(s.Path))
	}
	c.prev = s.Path
	if c.length += len(s.Path); c.length > MaxPathBytes {
		return fmt.Errorf("%w: paths of more than %d bytes", ErrInvalid, MaxPathBytes)
	}
	if s.Kind != File && s.Kind != Dir && s.Kind != Link {
		return fmt.Errorf("%w: source %s: %s", ErrInvalid, quote(s.Path), s.Kind)
	}
	if s.Unknown && s.Sum != [SumSize]byte{} {
		return fmt.Errorf("%w: source %s: unknown, and with a hash", ErrInvalid, quote(s.Path))
	}
	return nil
}

func (c *sourceCheck) end() error {
	if c.any && !c.there {
		return fmt.Errorf("%w: sources without %q", ErrInvalid, ".")
	}
	return nil
}

func (b *Build) check() error {
	if b.Root != "" && b.Root[0] != '/' || len(b.Root) > MaxPath || strings.IndexByte(b.Root, 0) >= 0 {
		return fmt.Errorf("%w: build root %s", ErrInvalid, quote(b.Root))
	}
	if len(b.Host) > MaxText {
		return fmt.Errorf("%w: build host %s", ErrInvalid, quote(b.Host))
	}
	if len(b.Version) > MaxText {
		return fmt.Errorf("%w: build version %s", ErrInvalid, quote(b.Version))
	}
	if len(b.Patterns) > MaxPatterns {
		return fmt.Errorf("%w: %d patterns, %d are allowed", ErrInvalid, len(b.Patterns), MaxPatterns)
	}
	for _, p := range b.Patterns {
		if p == "" || len(p) > MaxPath {
			return fmt.Errorf("%w: pattern %s", ErrInvalid, quote(p))
		}
	}
	return nil
}

// checkPath says why p is not a path inside a tree.
func checkPath(p string) error {
	if len(p) > MaxPath {
		return fmt.Errorf("is longer than %d bytes", MaxPath)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return errors.New("holds a NUL")
	}
	for more := true; more; {
		var name string
		name, p, more = strings.Cut(p, "/")
		switch {
		case name == "" || name == "." || name == "..":
			return fmt.Errorf("has the component %q", name)
		case len(name) > MaxComponent:
			return fmt.Errorf("has a component longer than %d bytes", MaxComponent)
		case Reserved(name):
			return fmt.Errorf("has the component %q, which is nbc's own", name)
		}
	}
	return nil
}

// shared returns how many bytes a and b begin with together.
func shared(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// follows tells whether next sorts after prev, bytewise; they share n bytes.
func follows(prev, next string, n int) bool {
	return n < len(next) && (n == len(prev) || prev[n] < next[n])
}

// quote makes hostile bytes fit for a message.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		return fmt.Sprintf("%q and %d bytes more", s[:most], len(s)-most)
	}
	return fmt.Sprintf("%q", s)
}
