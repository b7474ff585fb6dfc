package mtime

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"nbc/index"
)

// Times says which times files get.
type Times string

// The choices for Times. The zero value is as Recorded.
const (
	// Recorded gives artifacts and unchanged sources exactly the times that they had: minimal and right for all tools.
	Recorded Times = "recorded"
	// TwoHours moves all of them back by as much as makes the newest two hours old. Tools that compare for equality
	// build too much with it. Never forward, and the order stays.
	TwoHours Times = "two-hours"
)

// ParseTimes is for flags.
func ParseTimes(s string) (Times, error) {
	switch t := Times(s); t {
	case Recorded, TwoHours:
		return t, nil
	}
	return "", fmt.Errorf("%q is neither %q nor %q", s, Recorded, TwoHours)
}

// OnSkew says what to do when a recorded time is not in the past, because the clock of the machine that saved ran
// ahead. A source that changes now would be older than what was built from it.
type OnSkew string

// The choices for OnSkew. The zero value is as Miss.
const (
	// Miss does without the cache: right for all tools.
	Miss OnSkew = "miss"
	// Shift moves recorded times back as TwoHours does: right for tools that compare which file is older.
	Shift OnSkew = "shift"
)

// ParseOnSkew is for flags.
func ParseOnSkew(s string) (OnSkew, error) {
	switch o := OnSkew(s); o {
	case Miss, Shift:
		return o, nil
	}
	return "", fmt.Errorf("%q is neither %q nor %q", s, Miss, Shift)
}

// Policy is how times are chosen. Its zero value is the default.
type Policy struct {
	Times  Times
	OnSkew OnSkew
}

const (
	// maxWait is the skew that is waited for. Machines that keep their clocks by NTP differ by less than a second; ten
	// seconds are less than a cold build takes that is worth a cache.
	maxWait = 10 * time.Second
	// tick is more than the step of any kernel's clock for files (10 ms at 100 Hz).
	tick = 20 * time.Millisecond
	// shifted is how old the newest file is after a shift: what the tool before this one did, and far from anything
	// that this build can make.
	shifted = 2 * time.Hour
	// earliest is the least time that is set. GNU make takes 0 for "does not exist", and what is before for the far
	// future.
	earliest = int64(time.Second)
)

// Guard says how the recorded times fit the present. Newest is the latest recorded time of all artifacts and unchanged
// sources, now that of a [Probe], both in nanoseconds since 1970.
//
// Not ok is a miss. Else, if wait is above zero, the caller must sleep that long, probe, and ask again. Else shift is
// what to add, with [At], to every recorded time: 0, or less.
func (p Policy) Guard(newest, now int64) (shift int64, wait time.Duration, ok bool) {
	back := func() int64 {
		if target := now - int64(shifted); newest > target {
			return target - newest
		}
		return 0
	}
	switch {
	case p.Times == TwoHours:
		return back(), 0, true
	case newest < now:
		return 0, 0, true
	case newest-now <= int64(maxWait):
		return 0, time.Duration(newest-now) + tick, true
	case p.OnSkew == Shift:
		return back(), 0, true
	}
	return 0, 0, false
}

// At returns the time that a file with a recorded time gets after a shift, which is 0 or less: never earlier than one
// second after the epoch. All are nanoseconds since 1970.
func At(recorded, shift int64) int64 {
	if recorded < earliest || shift < earliest-recorded {
		return earliest
	}
	return recorded + shift
}

// Probe returns the present by the clock of the file system that holds dir, in nanoseconds since 1970: the time of a
// file that it makes and removes there. Files that are written afterwards are never older. The program's own clock runs
// ahead of the one that the kernel stamps files with, and a network file system has that of another machine.
//
// It changes the time of dir. The error is what keeps dir from being written.
func Probe(dir string) (int64, error) {
	// A byte is written and the file closed before it is looked at, because a network file system may stamp it only
	// then.
	random := rand.Uint64() // #nosec G404 -- no secret
	name := filepath.Join(dir, fmt.Sprintf("%s%016x", index.ProbePrefix, random))
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("making a probe file: %w", err)
	}
	_, err = file.Write([]byte{0})
	err = errors.Join(err, file.Close())
	info, err2 := os.Lstat(name)
	if err = errors.Join(err, err2, os.Remove(name)); err != nil {
		return 0, fmt.Errorf("making a probe file: %w", err)
	}
	return info.ModTime().UnixNano(), nil
}
