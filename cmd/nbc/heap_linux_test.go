//go:build !race

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nbc/transfer/store/storetest"
)

// readProc returns one of the kernel's files about this process.
func readProc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/" + name)
	if err != nil {
		storetest.Need(t, "proc", err)
	}
	return string(text)
}

// resident returns how much of this process is in memory, in bytes.
func resident(t *testing.T) int {
	t.Helper()
	kB, err := strconv.Atoi(regexp.MustCompile(`VmRSS:\s*(\d+)`).FindStringSubmatch(readProc(t, "status"))[1])
	if err != nil {
		t.Fatal(err)
	}
	return kB << 10
}

// advised says whether the memory at an address is to be of huge pages.
func advised(t *testing.T, address string) bool {
	t.Helper()
	at, err := strconv.ParseUint(strings.TrimPrefix(address, "0x"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(readProc(t, "smaps")) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= at && at < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return strings.Contains(flags, " hg ")
		}
	}
	t.Fatal("nothing is said about memory at " + address)
	return false
}

// TestPrepareHeap: what a process takes after it is of huge pages, and nothing of what is set aside for that and for the
// collector is touched.
func TestPrepareHeap(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		storetest.Need(t, "hugepages", err)
	}
	percent := debug.SetGCPercent(100)
	ballast = nil // another test may have run a command in this process
	t.Cleanup(func() {
		ballast = nil
		debug.SetGCPercent(percent)
	})
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		t.Setenv("GOGC", "")
		t.Setenv("GOMEMLIMIT", "")
		t.Setenv(name, "100")
		if prepareHeap(true); ballast != nil {
			t.Fatal(name + " is set, and yet there is a ballast")
		}
		t.Setenv(name, "")
	}
	if prepareHeap(false); ballast != nil {
		t.Fatal("a daemon has a ballast")
	}
	runtime.GC()
	debug.FreeOSMemory()
	before := resident(t)
	prepareHeap(true)
	if grown := resident(t) - before; grown > 16<<20 {
		t.Errorf("%d bytes are touched that were not", grown)
	}
	if got := debug.SetGCPercent(collectAt); got != collectAt {
		t.Errorf("the heap is collected at %d %%, not %d", got, collectAt)
	}
	// What happens to be free at lower addresses is taken first.
	taken, huge := [][]byte{}, 0
	for range 16 {
		b := make([]byte, hugeHeap/8)
		if taken = append(taken, b); advised(t, fmt.Sprintf("%p", b)) {
			huge++
		}
	}
	if huge < 4 {
		t.Errorf("of %d pieces that the heap takes %d are to be of huge pages", len(taken), huge)
	}
	if advised(t, fmt.Sprintf("%p", ballast)) {
		t.Error("the ballast is where the heap's huge pages are")
	}
}

// TestLimitedMemory: where the system counts memory that is not touched, nbc asks for no more than it needs. Go's runtime
// itself is at a loss with little address space, at random; for that it is enough to look whether the limit is seen.
func TestLimitedMemory(t *testing.T) {
	if !roomy() {
		t.Skip("there is a limit already")
	}
	for _, limit := range []int{unix.RLIMIT_AS, unix.RLIMIT_DATA} {
		var before unix.Rlimit
		if err := unix.Getrlimit(limit, &before); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(limit, &unix.Rlimit{Cur: 1 << 40, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		if roomy() {
			t.Errorf("limit %d is not seen", limit)
		}
		if err := unix.Setrlimit(limit, &before); err != nil {
			t.Fatal(err)
		}
	}
	nbc := filepath.Join(t.TempDir(), "nbc")
	build := exec.Command("go", "build", "-o", nbc, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, limit := range []string{"80000", "150000", "250000"} {
		cmd := exec.Command("sh", "-c", "ulimit -d "+limit+"; exec "+nbc+" run n --dir b -- true")
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "NBC_STORE="+t.TempDir(), "GOGC=", "GOMEMLIMIT=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("ulimit -d %s: %v\n%s", limit, err, out)
		}
	}
}
