package mtime

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestGuard(t *testing.T) {
	const (
		now  = 1_800_000_000 * int64(time.Second)
		hour = int64(time.Hour)
	)
	shift := Policy{OnSkew: Shift}
	hours := Policy{Times: TwoHours}
	for name, c := range map[string]struct {
		p           Policy
		newest      int64
		shift, wait int64
		ok          bool
	}{
		"no times at all":           {Policy{}, 0, 0, 0, true},
		"older by one":              {Policy{}, now - 1, 0, 0, true},
		"older by one, shift":       {shift, now - 1, 0, 0, true},
		"equal":                     {Policy{}, now, 0, int64(tick), true},
		"equal, named":              {Policy{Times: Recorded, OnSkew: Miss}, now, 0, int64(tick), true},
		"equal, shift":              {shift, now, 0, int64(tick), true},
		"newer by 3 s":              {Policy{}, now + 3*second, 0, 3*second + int64(tick), true},
		"newer by 10 s":             {Policy{}, now + 10*second, 0, 10*second + int64(tick), true},
		"newer by more":             {Policy{}, now + 10*second + 1, 0, 0, false},
		"newer by more, shift":      {shift, now + 10*second + 1, -2*hour - 10*second - 1, 0, true},
		"newer by years":            {Policy{}, math.MaxInt64, 0, 0, false},
		"newer by years, shift":     {shift, math.MaxInt64, now - 2*hour - math.MaxInt64, 0, true},
		"two hours: old":            {hours, now - 3*hour, 0, 0, true},
		"two hours: two hours old":  {hours, now - 2*hour, 0, 0, true},
		"two hours: fresh":          {hours, now - 2*hour + 1, -1, 0, true},
		"two hours: from ahead":     {hours, now + hour, -3 * hour, 0, true},
		"two hours: nothing at all": {hours, 0, 0, 0, true},
	} {
		got, wait, ok := c.p.Guard(c.newest, now)
		if got != c.shift || int64(wait) != c.wait || ok != c.ok {
			t.Errorf("%s: Guard gives %d, %d, %v, not %d, %d, %v", name, got, wait, ok, c.shift, c.wait, c.ok)
		}
	}
}

// TestGuardKeepsThePresentNewest asserts what the guard is for.
func TestGuardKeepsThePresentNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := rapid.Int64Range(1e18, 2e18).Draw(t, "now")
		newest := now + rapid.Int64Range(-3*int64(shifted), 3*int64(shifted)).Draw(t, "age")
		older := rapid.Int64Range(0, newest).Draw(t, "older")
		p := Policy{
			Times:  rapid.SampledFrom([]Times{"", Recorded, TwoHours}).Draw(t, "times"),
			OnSkew: rapid.SampledFrom([]OnSkew{"", Miss, Shift}).Draw(t, "on skew"),
		}
		shift, wait, ok := p.Guard(newest, now)
		if !ok {
			if newest < now || p.Times == TwoHours || p.OnSkew == Shift {
				t.Fatal("a miss for nothing")
			}
			return
		}
		if wait > 0 {
			now += int64(wait)
			if shift, wait, ok = p.Guard(newest, now); wait != 0 || !ok {
				t.Fatalf("after the wait Guard gives %d, %v", wait, ok)
			}
		}
		if shift > 0 {
			t.Fatal("forward")
		}
		if at := At(newest, shift); at >= now || shift != 0 && at != now-int64(shifted) {
			t.Fatalf("the newest file gets %d at %d", at, now)
		}
		if a, b := At(older, shift), At(newest, shift); a > b || older < newest && a == b && a != earliest {
			t.Fatalf("%d and %d become %d and %d", older, newest, a, b)
		}
	})
}

func TestAt(t *testing.T) {
	for _, c := range []struct{ recorded, shift, want int64 }{
		{old, 0, old},
		{old, -1, old - 1},
		{second, 0, second},
		{second + 1, 0, second + 1},
		{second + 1, -1, second},
		{second + 1, -2, second},
		{second - 1, 0, second},
		{0, 0, second},
		{-5, 0, second},
		{old, -old, second},
		{math.MinInt64, math.MinInt64, second},
		{math.MaxInt64, math.MinInt64, second},
		{math.MaxInt64, 0, math.MaxInt64},
	} {
		if got := At(c.recorded, c.shift); got != c.want {
			t.Errorf("At(%d, %d) = %d, not %d", c.recorded, c.shift, got, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, s := range []string{"recorded", "two-hours"} {
		if got, err := ParseTimes(s); err != nil || string(got) != s {
			t.Errorf("%s becomes %q: %v", s, got, err)
		}
	}
	for _, s := range []string{"miss", "shift"} {
		if got, err := ParseOnSkew(s); err != nil || string(got) != s {
			t.Errorf("%s becomes %q: %v", s, got, err)
		}
	}
	for _, s := range []string{"", "Recorded", "shift"} {
		if _, err := ParseTimes(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	for _, s := range []string{"", "recorded"} {
		if _, err := ParseOnSkew(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	for range 100 {
		start := time.Now()
		before := filepath.Join(dir, "before")
		if err := os.WriteFile(before, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		now := probe(t, dir)
		after := filepath.Join(dir, "after")
		if err := os.WriteFile(after, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		// This is what the program's clock does not hold to: it is ahead of the files that come after.
		if a, b := mtimeOf(t, dir, "before"), mtimeOf(t, dir, "after"); a > now || now > b {
			t.Fatalf("a probe of %d between files of %d and %d", now, a, b)
		}
		// Local directories have the clock of this machine, but for a tick.
		if d := time.Unix(0, now).Sub(start); d < -tick || d > time.Minute {
			t.Fatalf("the probe is %v from the program's clock", d)
		}
		if err := errors.Join(os.Remove(before), os.Remove(after)); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the probe leaves %v: %v", entries, err)
	}
	if _, err := Probe(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a probe of nothing: %v", err)
	}
	closed := tree(t, "dir/")
	if err := os.Chmod(filepath.Join(closed, "dir"), 0o555); err != nil {
		t.Fatal(err)
	}
	asNobody(t, closed, nil, func() {
		if _, err := Probe(filepath.Join(closed, "dir")); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a probe of a read-only directory: %v", err)
		}
	})
}
