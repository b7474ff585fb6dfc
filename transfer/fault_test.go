package transfer

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"nbc/index"
)

// needsSpace says whether a call fails on a full disk.
func needsSpace(p point) bool {
	switch p.name {
	case "unlinkat", "unlink", "rmdir", "renameat", "renameat2", "rename", "utimensat", "chmod", "fchmod", "fchmodat":
		return false
	}
	return true
}

// faults are the ways in which the file systems fail. Each gets the number of a call from which on, or at which, they do.
var faults = []struct {
	name string
	step int // every how many calls
	at   func(n int, p point) syscall.Errno
}{
	{"one call fails", 1, func(n int, p point) syscall.Errno {
		if p.n == n {
			return []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EACCES, syscall.EROFS, syscall.EDQUOT}[n%5]
		}
		return 0
	}},
	{"the disk is full", 5, func(n int, p point) syscall.Errno {
		if p.n >= n && needsSpace(p) {
			return syscall.ENOSPC
		}
		return 0
	}},
	{"the disk is full and gets room", 7, func(n int, p point) syscall.Errno {
		if p.n >= n && p.n < n+4 && needsSpace(p) {
			return syscall.EDQUOT
		}
		return 0
	}},
	{"nothing can be changed", 5, func(n int, p point) syscall.Errno {
		if p.n >= n {
			return syscall.EROFS
		}
		return 0
	}},
	{"the tree cannot be changed", 7, func(n int, p point) syscall.Errno {
		if p.n >= n && strings.Contains(p.path, "/tree") {
			return syscall.EIO
		}
		return 0
	}},
	{"the state cannot be changed", 13, func(n int, p point) syscall.Errno {
		if p.n >= n && strings.Contains(p.path, "/state/") {
			return syscall.ENOSPC
		}
		return 0
	}},
}

// Every system call that changes the tree, the state or the store fails, alone or with all after it.
func TestEverySystemCallFails(t *testing.T) {
	needTrace(t)
	sample := sampled(t)
	var runs, errs atomic.Int64
	t.Cleanup(func() { t.Logf("%d runs, %d of them with an error", runs.Load(), errs.Load()) })
	store := template(t)
	for _, sc := range scenes() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			for _, f := range faults {
				step := f.step
				if sample {
					step = 29
				}
				for n := 0; ; n += step {
					s := sc.site(t, store)
					was := beside(s.snapshot())
					var failed point
					hits, last := 0, 0
					r, _ := sc.job(s).trace(t, s.base, sc.decide(func(p point) verdict {
						last = p.n
						errno := f.at(n, p)
						if errno != 0 {
							if hits == 0 {
								failed = p
							}
							hits++
						}
						return verdict{errno: errno}
					}))
					when := fmt.Sprintf("%s, %v", f.name, failed)
					runs.Add(1)
					if r.Err != "" {
						errs.Add(1)
						s.checkError(r, when, failed)
					}
					if sc.do == "restore" && !r.Hit && f.name == "one call fails" {
						if d := differ(was, beside(s.snapshot())); d != "" {
							t.Fatalf("%s: %s\nthe tree is another one:\n%s", when, r.Err, d)
						}
					}
					sc.aftermath(s, when, n%16 == 0)
					s.close()
					if hits == 0 {
						break
					}
					if last > 5000 {
						t.Fatalf("%s: no end", when)
					}
				}
			}
		})
	}
}

// beside is a snapshot without nbc's own files and what they do to the time of the tree.
func beside(all map[string]string) map[string]string {
	for p := range all {
		if top, _, _ := strings.Cut(p, "/"); p == "." || index.Reserved(top) {
			delete(all, p)
		}
	}
	return all
}

// checkError fails unless the error says what went wrong where, and whose fault it is.
func (s *site) checkError(r childResult, when string, failed point) {
	s.Helper()
	if strings.Contains(when, "one call fails") && strings.HasPrefix(failed.path, s.store) == r.Local {
		s.Errorf("%s: an error of this machine: %v: %s", when, r.Local, r.Err)
	}
	if !strings.Contains(r.Err, filepath.Base(failed.path)) && !strings.Contains(r.Err, ":") {
		s.Errorf("%s: %s", when, r.Err)
	}
}
