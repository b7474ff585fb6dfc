package transfer

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"nbc/index"
	"nbc/mtime"
)

// probe returns the present by the clock of the file system that holds dir. Where that has files without names it leaves
// nothing behind, whenever the process is killed, and does not change the time of dir.
func probe(dir string) (int64, error) {
	now, err := probeUnnamed(dir)
	if !errors.Is(err, errors.ErrUnsupported) {
		return now, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	if now, err = mtime.Probe(dir); err != nil {
		return 0, err
	}
	return now, setDirTime(dir, st.Mtim.Nano())
}

// settle returns a time of the file system's clock that is newer than every ctime among stats. From then on whatever
// changes one of these files gives it a ctime that is not older than this, and so another Stat. It waits for that, for
// the clock ticks every few milliseconds only; but not for long, since a ctime may be in the future: a file that is not
// older than the result is racy, and proves nothing.
//
// Dirs are where to ask, one directory on each file system; for these may have clocks of different machines, the result
// is the earliest. One that cannot be written to, other than the first, is taken to have the clock of the others.
func settle(dirs []string, stats ...[]index.Stat) (int64, error) {
	var newest int64
	for _, list := range stats {
		for i := range list {
			newest = max(newest, list[i].CTime)
		}
	}
	var earliest int64
	for i, dir := range dirs {
		for try := 0; ; try++ {
			now, err := probe(dir)
			if err != nil && i == 0 {
				return 0, err
			}
			if err == nil && now <= newest && try < 20 {
				time.Sleep(time.Millisecond)
				continue
			}
			if err == nil && (earliest == 0 || now < earliest) {
				earliest = now
			}
			break
		}
	}
	return earliest, nil
}

// clocks returns dirs, and beside them a directory of found on each file system that none of them is on.
func clocks(root string, dirs []string, found ...[]index.Found) []string {
	var seen []uint64
	for _, dir := range dirs {
		var st unix.Stat_t
		if unix.Stat(dir, &st) == nil {
			seen = append(seen, index.StatOf(&st).Dev)
		}
	}
	for _, list := range found {
		for i := range list {
			f := &list[i]
			if f.Kind == index.Dir && !slices.Contains(seen, f.Stat.Dev) {
				seen = append(seen, f.Stat.Dev)
				dirs = append(dirs, filepath.Join(root, filepath.FromSlash(f.Path)))
			}
		}
	}
	return dirs
}

// statsOf returns the Stats of files and links; directories change with every build.
func statsOf(found []index.Found) []index.Stat {
	stats := make([]index.Stat, 0, len(found))
	for i := range found {
		if found[i].Kind != index.Dir {
			stats = append(stats, found[i].Stat)
		}
	}
	return stats
}

func setDirTime(dir string, ns int64) error {
	ts := []unix.Timespec{{Nsec: utimeOmit}, unix.NsecToTimespec(ns)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: dir, Err: err}
	}
	return nil
}
