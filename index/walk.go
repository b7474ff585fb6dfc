package index

import (
	"context"
	"errors"
)

// Stat is what the kernel tells about a file without reading it. Two equal Stats of one path, with a ctime old enough
// to exclude a change within one tick of the clock, prove that the bytes are the same.
type Stat struct {
	Dev, Ino     uint64
	Mode         uint32 // type and permission bits, as in st_mode
	Links        uint32
	Size         int64
	MTime, CTime int64 // nanoseconds since 1970
}

// Found is a file that Walk met.
type Found struct {
	Path   string // relative to the tree, with slashes
	Kind   Kind   // File, Dir or Link: hard links are recognised later, by Dev and Ino
	Target string // of a Link, as it stands in it
	Stat   Stat
}

// Tree is what Walk found.
type Tree struct {
	// Roots are the cache directories that are there, sorted, none inside another.
	Roots []string
	// Artifacts are all files in Roots, the roots included, sorted by path, bytewise. A root that is a link is
	// followed: it has the Kind and Stat of what it leads to.
	Artifacts []Found
	// Sources are all other files, the tree itself (".") included, sorted by path, bytewise.
	Sources []Found
	// Skipped are the paths of sockets, devices and pipes, which are left out.
	Skipped []string
}

// Walker tells Walk what to look at.
type Walker struct {
	// Dirs are the cache directories.
	Dirs Patterns
	// Exclude leaves artifacts out: a match, and all below it.
	Exclude Patterns
	// IgnoreSources leaves sources out: a match, and all below it. ".git" is always left out, at any depth.
	IgnoreSources Patterns
	// NoSources skips everything that cannot hold a cache directory.
	NoSources bool
}

// Walk looks at every file below root.
func (w Walker) Walk(ctx context.Context, root string) (*Tree, error) {
	return nil, errors.New("index: walk")
}

// Patterns is a set of path patterns.
type Patterns struct{ list []string }
