package cached

import (
	"cmp"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"nbc/chunk"
)

// Eviction needs no lock, no list and no knowledge of what other processes did. The hash that names chunks spreads them
// evenly over the folders, so each folder is kept to its part of the limit on its own, by the times of its own files.
// Whether a folder is looked at is decided by lot, whenever a copy was written to it, so that it happens about once for
// each eighth of its part, however many processes write it. So the directory exceeds the limit by about an eighth; and
// if that is 10 GB, each 5 MB written pay for looking at the thousand files of one folder, which takes 1 ms.

// part is a folder's part of the limit.
func (n *Near) part() int64 {
	if n.Limit > 0 {
		return max(n.Limit/folders, 1)
	}
	return DefaultLimit / folders
}

// due says whether the folder that size bytes were written to is to be looked at.
func (n *Near) due(size int64) bool {
	return rand.Int64N(max(n.part()/8, 1)) < size // #nosec G404 -- nobody gains by guessing it
}

const (
	// blockSize is what file systems round a file's size up to.
	blockSize = 4096
	// useless is the age of what goes in any case.
	useless = time.Duration(math.MaxInt64)
)

// evict removes what is of no use from a folder, and if the rest is more than the folder's part, the least recently
// used files down to 7/8 of it: else the next file would ask for it again. Of two processes that do so at once each
// finds files gone that it wanted to remove.
func (n *Near) evict(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	type file struct {
		name string
		size int64
		age  time.Duration
	}
	var files []file
	var sum int64
	now := time.Now()
	for _, name := range names {
		info, err := root.Lstat(name)
		if err != nil {
			continue
		}
		f := file{name, (info.Size() + blockSize - 1) / blockSize * blockSize, distance(now, info.ModTime())}
		switch {
		case info.IsDir():
			continue // not ours, like any file with another name
		case strings.HasPrefix(name, tempPrefix):
			if f.age < deadAfter {
				continue
			}
			f.age = useless
		case !isID(name):
			continue
		}
		files = append(files, f)
		sum += f.size
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(b.age, a.age) })
	keep := n.part()
	if sum > keep {
		keep -= keep / 8
	}
	for _, f := range files {
		if sum <= keep && f.age < useless {
			break
		}
		if err := root.Remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		sum -= f.size
	}
	return nil
}

func isID(name string) bool {
	_, err := chunk.ParseID(name)
	return err == nil
}
