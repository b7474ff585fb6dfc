package mtime

import (
	"crypto/md5" // #nosec G501 -- see the package's documentation
	"path/filepath"
	"slices"
	"strings"

	"nbc/index"
)

// Plan says which time each source gets, and remembers what was done. It is used by one goroutine at a time.
type Plan struct {
	folders []*folder
}

// folder is a directory of the tree: the settings of what it holds are applied through one open directory.
type folder struct {
	path string
	stat index.Stat
	// files are the files and links in it; dirs the directories in it, and the tree itself in the folder ".".
	files, dirs []*setting
}

// setting is one source's time.
type setting struct {
	path string
	dir  bool
	// others are the names of the same inode but path.
	others []string
	// touch says that it gets the present. Else it gets mtime.
	touch bool
	mtime int64

	// was is its Stat in the walk, seen the last that is known: from the walk, or after its time was set.
	was, seen index.Stat
	// set says that its time was set, changed that something else has changed it since the walk.
	set, changed bool
}

// NewPlan gives every unchanged source its recorded time, moved by shift (see [Policy.Guard]), and every other source
// in found the present. Found is the walk that the sources were hashed from; root is only looked at to see whether an
// absolute link leads back into it.
//
// What a new or retargeted link leads to gets the present as well: a tool that looks through the link sees another
// file than before, and that may be an old one. For a link to a directory this is all that is below it, and for a link
// to a link all on the way. What a link led to that is gone or retargeted gets it, too: rustc writes down where links
// have led to, and cargo looks at nothing else. What lies in a cache directory or outside the tree keeps its time.
//
// An inode with several names gets the present if one of them does, else the newest of their recorded times.
func NewPlan(root string, c Changes, found []index.Found, shift int64) *Plan {
	l := &links{found: found, touch: make([]bool, len(found)), root: root}
	at := make([]int64, len(found))
	here := make([]bool, len(found))
	unchanged, changed, added := c.Unchanged, c.Changed, c.New
	for i := range found {
		p := found[i].Path
		switch {
		case next(&unchanged, p):
			at[i], here[i] = At(unchanged[0].MTime, shift), true
		case next(&changed, p), next(&added, p):
			here[i] = true
			l.mark(i)
		}
	}
	l.follow()
	l.leave(slices.Concat(c.Links, c.Deleted))

	type inode struct{ dev, ino uint64 }
	inodes := make(map[inode]*setting)
	folders := make(map[string]*folder)
	folderAt := func(path string) *folder {
		d := folders[path]
		if d == nil {
			d = &folder{path: path}
			folders[path] = d
		}
		return d
	}
	for i := range found {
		f := &found[i]
		if f.Kind == index.Dir {
			folderAt(f.Path).stat = f.Stat
		}
		if !here[i] {
			continue
		}
		id := inode{f.Stat.Dev, f.Stat.Ino}
		if s := inodes[id]; s != nil {
			s.others = append(s.others, f.Path)
			s.touch = s.touch || l.touch[i]
			s.mtime = max(s.mtime, at[i])
			continue
		}
		s := &setting{path: f.Path, touch: l.touch[i], mtime: at[i], was: f.Stat, seen: f.Stat}
		dir, _ := splitPath(f.Path)
		d := folderAt(dir)
		if f.Kind == index.Dir {
			s.dir = true
			d.dirs = append(d.dirs, s)
			continue
		}
		d.files = append(d.files, s)
		if f.Stat.Links > 1 {
			inodes[id] = s
		}
	}
	plan := &Plan{}
	for _, d := range folders {
		if len(d.files)+len(d.dirs) > 0 {
			plan.folders = append(plan.folders, d)
		}
	}
	slices.SortFunc(plan.folders, func(a, b *folder) int { return strings.Compare(a.path, b.path) })
	return plan
}

// next moves a sorted list on to path and reports whether it is there.
func next(list *[]index.Source, path string) bool {
	for len(*list) > 0 && (*list)[0].Path < path {
		*list = (*list)[1:]
	}
	return len(*list) > 0 && (*list)[0].Path == path
}

// maxHops is how many links the kernel follows in one path.
const maxHops = 40

// links marks the sources that get the present, and what links among them lead to.
type links struct {
	found []index.Found
	touch []bool
	queue []int // marked links that were not followed yet

	root string
	tops []string // the absolute paths of the tree, once they are needed
}

func (l *links) mark(i int) {
	if l.touch[i] {
		return
	}
	l.touch[i] = true
	if l.found[i].Kind == index.Link {
		l.queue = append(l.queue, i)
	}
}

func (l *links) follow() {
	for len(l.queue) > 0 {
		i := l.queue[len(l.queue)-1]
		l.queue = l.queue[:len(l.queue)-1]
		dir, _ := splitPath(l.found[i].Path)
		if end, ok := l.resolve(dir, l.found[i].Target); ok {
			l.markAll(end)
		}
	}
}

// markAll marks a source, and all that is below it.
func (l *links) markAll(path string) {
	k, ok := l.find(path)
	if !ok {
		return
	}
	l.mark(k)
	if l.found[k].Kind != index.Dir {
		return
	}
	// All below it is one run, but for the tree itself.
	prefix := path + "/"
	if path == "." {
		prefix = ""
	}
	for k, _ = l.find(prefix); k < len(l.found) && strings.HasPrefix(l.found[k].Path, prefix); k++ {
		l.mark(k)
	}
}

// maxGuesses bounds the search for what links have led to: a second of one core. A tree in which so many links have
// changed at once is built anew.
const maxGuesses = 2 << 20

// leave marks what the links among was led to in the earlier build. An index has only the hash of a link's target, so
// the sources are tried, in the spellings that are usual; a target that is none of them is not found, and is either no
// longer there, which tools see, or outside of the tree.
func (l *links) leave(was []index.Source) {
	byDir := make(map[string]map[[index.SumSize]byte]bool)
	for i := range was {
		if s := &was[i]; s.Kind == index.Link && !s.Unknown {
			dir, _ := splitPath(s.Path)
			if byDir[dir] == nil {
				byDir[dir] = make(map[[index.SumSize]byte]bool)
			}
			byDir[dir][s.Sum] = true
		}
	}
	if len(byDir) == 0 {
		return
	}
	if len(byDir)*len(l.found) > maxGuesses {
		l.markAll(".")
		return
	}
	_, _ = l.inside("/")
	for dir, sums := range byDir {
		for i := range l.found {
			path := l.found[i].Path
			rel, err := filepath.Rel("/"+dir, "/"+path)
			if err != nil {
				continue // both are clean and absolute
			}
			names := append(make([]string, 0, 8), rel, rel+"/", "./"+rel, "./"+rel+"/")
			for _, top := range l.tops {
				names = append(names, filepath.Join(top, path), filepath.Join(top, path)+"/")
			}
			for _, name := range names {
				if sums[md5.Sum([]byte(name))] { // #nosec G401
					l.markAll(path)
				}
			}
		}
	}
	l.follow()
}

func (l *links) find(path string) (int, bool) {
	return slices.BinarySearchFunc(l.found, path,
		func(f index.Found, p string) int { return strings.Compare(f.Path, p) })
}

// resolve returns the path in the tree that target leads to, seen from the directory dir, and marks the links on the
// way. It is false if that leaves the tree, or passes what is not a source.
func (l *links) resolve(dir, target string) (string, bool) {
	rest, fresh := target, true // fresh: rest begins with a whole target, so a slash there means the root
	for hops := 0; ; {
		if fresh && strings.HasPrefix(rest, "/") {
			below, ok := l.inside(rest)
			if !ok {
				return "", false
			}
			dir, rest = ".", below
		}
		fresh = false
		if rest = strings.TrimLeft(rest, "/"); rest == "" {
			return dir, true
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case ".":
			continue
		case "..":
			if dir == "." {
				return "", false
			}
			dir, _ = splitPath(dir)
			continue
		}
		if dir != "." {
			name = dir + "/" + name
		}
		i, ok := l.find(name)
		if !ok {
			return "", false
		}
		if l.found[i].Kind != index.Link {
			dir = name
			continue
		}
		if hops++; hops > maxHops {
			return "", false
		}
		l.mark(i)
		rest, fresh = l.found[i].Target+"/"+rest, true
	}
}

// inside returns what is left of an absolute path below the tree.
func (l *links) inside(path string) (string, bool) {
	if l.tops == nil {
		abs, err := filepath.Abs(l.root)
		if err != nil {
			return "", false
		}
		l.tops = []string{abs}
		if real, err := filepath.EvalSymlinks(abs); err == nil && real != abs {
			l.tops = append(l.tops, real)
		}
	}
	for _, top := range l.tops {
		if rest, ok := strings.CutPrefix(path, top); ok && (rest == "" || rest[0] == '/') {
			return strings.TrimLeft(rest, "/"), true
		}
	}
	return "", false
}
