package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nbc/transfer"
)

// TestProgressLines: without a terminal there is a whole line now and then, and none for what is over soon.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out locked
		a := &app{console: &console{w: &out}}
		p := new(transfer.Progress)
		stop := a.watch("restoring app", p)
		time.Sleep(progressAfter + progressLine - time.Second)
		if out.String() != "" {
			t.Errorf("too soon: %q", out.String())
		}
		phase := "hashing sources"
		p.Phase.Store(&phase)
		p.Files.Store(1234)
		time.Sleep(2 * time.Second)
		phase2 := "restoring"
		p.Phase.Store(&phase2)
		p.TotalBytes.Store(522e6)
		p.Bytes.Store(120e6)
		time.Sleep(progressLine)
		stop()
		time.Sleep(time.Hour)
		const want = "nbc: restoring app: hashing sources, 1,234 files\nnbc: restoring app: 120 MB of 522 MB\n"
		if out.String() != want {
			t.Errorf("it wrote %q", out.String())
		}

		out = locked{}
		a.watch("saving app", p)()
		a.options.quiet = true
		stop = a.watch("saving app", p)
		time.Sleep(time.Hour)
		stop()
		if out.String() != "" {
			t.Errorf("it wrote %q", out.String())
		}
	})
}

// locked is a buffer for several goroutines.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü 世":          "plain ü 世",
		"a\nb\r\tc":          `a\x0ab\x0d\x09c`,
		"\x1b[31mred":        `\x1b[31mred`,
		"not\xffUTF-8":       `not\xffUTF-8`,
		"\u202etxt.exe":      `\xe2\x80\xaetxt.exe`,
		"\u009b31m and \x7f": `\xc2\x9b31m and \x7f`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q is printed as %q, not %q", in, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1.0 kB", 9949: "9.9 kB", 9950: "10 kB", 999_499: "999 kB",
		999_500: "1.0 MB", 522e6: "522 MB", 1e18: "1.0 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, not %q", n, got, want)
		}
	}
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1234: "-1,234", -123: "-123"} {
		if got := comma(n); got != want {
			t.Errorf("comma(%d) = %q, not %q", n, got, want)
		}
	}
	for _, c := range []struct {
		s    float64
		want string
	}{{0.614, "0.61s"}, {59.99, "59.99s"}, {61.2, "1m1s"}, {3600, "1h0m0s"}} {
		if got := seconds(c.s); got != c.want {
			t.Errorf("seconds(%v) = %q, not %q", c.s, got, c.want)
		}
	}
	if got := some(strings.Fields("a b c d e")); got != "a, b, c and 2 more" {
		t.Errorf("some: %q", got)
	}
}
