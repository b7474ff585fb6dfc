package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/transfer/store"
	"nbc/transfer/store/dir"
)

// benchVariable names a directory to measure in, best one in memory such as /dev/shm/nbc: TestMeasure then says how
// long restores through the daemon take, and how much memory that has. It is no benchmark of package testing, because
// the daemon and each restore are processes of their own.
const benchVariable = "NBC_MEASURE"

// restoreVariable makes this program a restore: of the store and into the directory that it names.
const restoreVariable = "NBC_TEST_RESTORE"

func restoreMain(args []string) error {
	var s store.Store
	var err error
	if strings.HasSuffix(args[0], ".sock") {
		s, err = Open(args[0])
	} else {
		s, err = dir.Open(args[0])
	}
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := restoreInto(context.Background(), s, args[1], args[1]+".receipt"); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(time.Since(begun).Seconds())
}

// TestMeasure restores 500 MB in 10,000 files: from a directory, through the daemon before it, and through the daemon
// by 8 builds at once.
func TestMeasure(t *testing.T) {
	top := os.Getenv(benchVariable)
	if top == "" {
		t.Skip("it takes a minute and 6 GB: NBC_MEASURE=/dev/shm/nbc go test -run Measure -v ./transfer/store/remote")
	}
	if err := os.MkdirAll(top, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	tree := filepath.Join(top, "tree")
	bytes := measureTree(t, tree)
	far := filepath.Join(top, "far")
	direct, err := dir.Open(far)
	if err != nil {
		t.Fatal(err)
	}
	if err := saveTree(t.Context(), t, direct, tree); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(top, "nbc.sock")
	p := startProcess(t, socket, far)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	restore := func(from, name string) (seconds float64, cpu time.Duration, err error) {
		to := filepath.Join(top, name)
		if err := os.Mkdir(to, 0o755); err != nil {
			return 0, 0, err
		}
		defer func() { _ = os.RemoveAll(to) }()
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), restoreVariable+"="+from+"\n"+to)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, 0, fmt.Errorf("%w: %s", err, out)
		}
		if name == "checked" {
			same(t, filepath.Join(tree, "build"), filepath.Join(to, "build"))
		}
		err = json.Unmarshal(out, &seconds)
		return seconds, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
	}
	if _, _, err := restore(socket, "checked"); err != nil {
		t.Fatal(err)
	}
	const rounds = 5
	for what, from := range map[string]string{"directly": far, "through the daemon": socket} {
		var all []float64
		var cpu time.Duration
		before := p.cpu()
		for i := range rounds {
			s, c, err := restore(from, fmt.Sprint("one", i))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
			cpu += c
		}
		slices.Sort(all)
		t.Logf("%d MB %s: %.2f s (%.2f to %.2f), %.2f s of CPU, and %.2f s of the daemon; peak of the daemon %d MB",
			bytes>>20, what, all[rounds/2], all[0], all[rounds-1], cpu.Seconds()/rounds,
			(p.cpu()-before).Seconds()/rounds, p.peak()>>20)
	}
	for what, from := range map[string]string{"directly": far, "through the daemon": socket} {
		before := p.cpu()
		begun := time.Now()
		var g errgroup.Group
		var mu sync.Mutex
		var most float64
		for i := range 8 {
			g.Go(func() error {
				s, _, err := restore(from, fmt.Sprint("many", i))
				mu.Lock()
				defer mu.Unlock()
				most = max(most, s)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		t.Logf("8 at once %s: %.2f s, the slowest %.2f; %.2f s of the daemon's CPU; its peak %d MB", what,
			time.Since(begun).Seconds(), most, (p.cpu() - before).Seconds(), p.peak()>>20)
	}
	if err := p.end(syscall.SIGTERM); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

// measureTree makes 10,000 files of 500 MB together that compress to a fifth or so, as object files do.
func measureTree(t *testing.T, root string) (bytes int64) {
	t.Helper()
	var g errgroup.Group
	words := strings.Fields(strings.Repeat("mov call push .text .data symbol 0x7f frame return ", 20))
	for d := range 100 {
		g.Go(func() error {
			folder := filepath.Join(root, "build", strconv.Itoa(d))
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			for i := range 100 {
				n := uint64(d*100 + i + 1)
				var b strings.Builder
				for size := 5_000 + (d*100+i)*7919%90_000; b.Len() < size; {
					n = n*6364136223846793005 + 1442695040888963407
					b.WriteString(words[n>>40%uint64(len(words))])
					if n>>60 < 6 {
						fmt.Fprintf(&b, "%x", n)
					}
				}
				if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(i, ".o")), []byte(b.String()), 0o644); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// peak returns the most memory in bytes that the process had (VmHWM), cpu the time that it has taken.
func (p *process) peak() (bytes int64) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(text, "kB")), 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kb << 10
		}
	}
	return 0
}

func (p *process) cpu() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
