package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nbc/transfer"
	"nbc/transfer/store"
	"nbc/transfer/store/s3"
	"nbc/transfer/store/storetest"
)

var soakFlag = flag.Duration("soak", 45*time.Second, "how long to save, restore, collect and kill on a real S3 server")

// soak is what the processes of TestSoak have done.
type soak struct {
	t    *testing.T
	url  string
	home string
	stop time.Time

	mu sync.Mutex
	// usual is how long a process of each verb takes that is not killed.
	usual                                               map[string]time.Duration
	saves, restores, misses, unknown, kills, dropped    int
	collections, resumed, faster, spared, chunksDeleted int64
	checks                                              int
}

// nbc runs a process and kills it with that chance in percent, at a random moment of the time that others of its verb
// have taken of late, so that kills come at all points on fast machines and on busy ones. It returns what the process
// printed, its exit code, and whether it was killed.
func (s *soak) nbc(rng *rand.Rand, chance int, args ...string) (out []byte, code int, killed bool) {
	verb := args[0]
	s.mu.Lock()
	within := max(s.usual[verb]*5/4, 20*time.Millisecond)
	s.mu.Unlock()
	start := time.Now()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(context.Background(), "nbc", args...)
	cmd.Env = append(os.Environ(), "HOME="+s.home, "NBC_STORE="+s.url, "NBC_NEAR=off", "NBC_JSON=1", "NBC_QUIET=1",
		"NBC_TIMEOUT=3m") // what hangs is an error, and not a test that never ends
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		s.t.Error(err)
		return nil, -1, true
	}
	if rng.IntN(100) < chance {
		timer := time.AfterFunc(time.Duration(rng.Int64N(int64(within))), func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		s.mu.Lock()
		defer s.mu.Unlock()
		if took := time.Since(start); s.usual[verb] == 0 {
			s.usual[verb] = took
		} else {
			s.usual[verb] += (took - s.usual[verb]) / 8
		}
		return stdout.Bytes(), 0, false
	case errors.As(err, &exit) && exit.ExitCode() < 0:
		s.mu.Lock()
		s.kills++
		s.mu.Unlock()
		return nil, -1, true
	case errors.As(err, &exit):
		return append(stdout.Bytes(), stderr.Bytes()...), exit.ExitCode(), false
	}
	s.t.Error(err)
	return nil, -1, true
}

// parse reads the JSON that a process has printed.
func (s *soak) parse(out []byte, v any) {
	line, _, _ := bytes.Cut(out, []byte("\n"))
	if err := json.Unmarshal(line, v); err != nil {
		s.t.Errorf("%v: %s", err, out)
	}
}

// builder saves changing trees under one name, and restores them.
func (s *soak) builder(n int) {
	rng := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
	name := fmt.Sprint("keep/", n)
	root := filepath.Join(s.home, fmt.Sprint("tree", n))
	state := filepath.Join(s.home, fmt.Sprint("state", n))
	out := filepath.Join(root, "out")
	args := func(verb string) []string {
		list := []string{verb, name, "--dir", "out", "--source", root, "--state", state}
		if rng.IntN(2) == 0 { // else a save that has nothing to begin with looks for siblings
			list = append(list, "--fallback", fmt.Sprint("keep/", rng.IntN(3)))
		}
		return list
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		s.t.Error(err)
		return
	}
	// What the name may hold: the tree of the last save that was acknowledged, and those of saves that were killed since.
	var acknowledged map[string]string
	var attempts []map[string]string
	for i := 0; time.Now().Before(s.stop) || i == 0; i++ {
		if rng.IntN(3) == 0 {
			if err := errors.Join(os.RemoveAll(out), os.RemoveAll(state)); err != nil { // a new machine
				s.t.Error(err)
			}
		}
		printed, code, killed := s.nbc(rng, 15, append(args("restore"), "--replace")...)
		if !killed {
			s.restored(name, out, printed, code, acknowledged, attempts)
		}
		s.change(rng, out)
		tree := s.read(out)
		how := args("save")
		if !killed && rng.IntN(4) > 0 {
			how = []string{"save", "--source", root, "--state", state}
		}
		printed, code, killed = s.nbc(rng, 30, how...)
		switch {
		case killed:
			attempts = append(attempts, tree)
		case code != 0:
			s.t.Errorf("saving %s: %d: %s", name, code, printed)
			return
		default:
			acknowledged, attempts = tree, nil
			s.mu.Lock()
			s.saves++
			s.mu.Unlock()
		}
	}
	// At the end nothing is killed any more.
	printed, code, _ := s.nbc(rng, 0, append(args("restore"), "--replace")...)
	s.restored(name, out, printed, code, acknowledged, attempts)
}

// restored compares what a restore has brought with what the name may hold.
func (s *soak) restored(
	name, out string, printed []byte, code int, acknowledged map[string]string, attempts []map[string]string,
) {
	var rep struct {
		Hit    bool   `json:"hit"`
		Used   string `json:"used"`
		Reason string `json:"reason"`
	}
	s.parse(printed, &rep)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !rep.Hit || rep.Used != name {
		if acknowledged != nil && len(attempts) == 0 {
			s.t.Errorf("LOST: %s was saved, and this is all that comes back: %d %s", name, code, printed)
		}
		s.misses++
		return
	}
	s.restores++
	tree := s.read(out)
	if maps.Equal(tree, acknowledged) {
		return
	}
	for _, a := range attempts {
		if maps.Equal(tree, a) {
			s.unknown++
			return
		}
	}
	s.t.Errorf("WRONG: %s came back as something that was never saved", name)
}

// change writes some of the files of a tree, from a few contents, so that the same chunks come and go.
func (s *soak) change(rng *rand.Rand, out string) {
	err := os.MkdirAll(out, 0o755)
	for f := range 6 {
		path := filepath.Join(out, fmt.Sprint("f", f))
		if _, statErr := os.Stat(path); statErr == nil && rng.IntN(3) > 0 {
			continue
		}
		data := make([]byte, 30_000)
		_, _ = rand.NewChaCha8([32]byte{byte(rng.IntN(12))}).Read(data) // never fails
		err = errors.Join(err, os.WriteFile(path, data, 0o600))
	}
	if err != nil {
		s.t.Error(err)
	}
}

func (s *soak) read(out string) map[string]string {
	tree := map[string]string{}
	err := filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		tree[strings.TrimPrefix(path, out)] = string(data)
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
	return tree
}

// brancher saves under names that nobody comes back to, each as on a machine of its own.
func (s *soak) brancher() {
	rng := rand.New(rand.NewPCG(9, uint64(time.Now().UnixNano())))
	root := filepath.Join(s.home, "branch")
	for i := 0; time.Now().Before(s.stop); i++ {
		s.change(rng, filepath.Join(root, "out"))
		state := filepath.Join(s.home, "branch-state")
		if err := os.RemoveAll(state); err != nil {
			s.t.Error(err)
		}
		args := []string{"save", fmt.Sprint("branch/", i%20), "--dir", "out", "--source", root, "--state", state}
		if rng.IntN(2) == 0 {
			args = append(args, "--fallback", fmt.Sprint("keep/", rng.IntN(3)))
		}
		if printed, code, killed := s.nbc(rng, 20, args...); !killed && code != 0 {
			s.t.Errorf("saving a branch: %d: %s", code, printed)
		}
	}
}

// checker checks: whatever goes on, nothing is broken.
func (s *soak) checker() {
	rng := rand.New(rand.NewPCG(10, uint64(time.Now().UnixNano())))
	for time.Now().Before(s.stop) {
		s.check(rng, 20, [][]string{nil, {"--read-data"}, {"keep/*"}, {"--sample", "30%"}}[rng.IntN(4)]...)
		time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond) // it takes from those who it is about
	}
}

func (s *soak) check(rng *rand.Rand, chance int, args ...string) {
	printed, code, killed := s.nbc(rng, chance, append([]string{"check"}, args...)...)
	if killed {
		return
	}
	if code != 0 {
		s.t.Errorf("checking: %d: %s", code, printed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks++
}

// collector collects without any grace.
func (s *soak) collector(n int) {
	rng := rand.New(rand.NewPCG(uint64(100+n), uint64(time.Now().UnixNano())))
	for time.Now().Before(s.stop) {
		args := []string{"gc", "--grace", "0s"}
		if rng.IntN(3) == 0 {
			args = append(args, "--keep-within", "2s", "--keep", "keep/*")
		}
		s.collect(rng, 40, args)
	}
}

func (s *soak) collect(rng *rand.Rand, chance int, args []string) {
	printed, code, killed := s.nbc(rng, chance, args...)
	if killed {
		return
	}
	if code != 0 {
		s.t.Errorf("collecting: %d: %s", code, printed)
		return
	}
	var rep transfer.CollectReport
	s.parse(printed, &rep)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collections++
	s.chunksDeleted += rep.Deleted.Chunks
	s.spared += rep.Spared.Chunks
	s.dropped += len(rep.Indexes.Dropped)
	if rep.Resumed {
		s.resumed++
	}
	if rep.Reason != "" {
		s.faster++
	}
}

// TestSoak lets processes save changing trees under several names and restore them, while others collect without any
// grace, all of them killed at random, on a real S3 server. No save that was acknowledged may be lost.
func TestSoak(t *testing.T) {
	url := storetest.S3(t)
	s := &soak{t: t, url: url, home: t.TempDir(), usual: map[string]time.Duration{}}
	// Small chunks, so that there are many.
	f := transfer.NewFormat()
	f.Chunker.Min, f.Chunker.Max, f.Chunker.Bits = 4<<10, 32<<10, 12
	data, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	st, err := s3.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Put(t.Context(), transfer.FormatPath, data, store.Condition{})
	if err = errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	s.stop = time.Now().Add(*soakFlag)
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() { s.builder(n) })
	}
	wg.Go(s.brancher)
	wg.Go(s.checker)
	for n := range 2 {
		wg.Go(func() { s.collector(n) })
	}
	wg.Wait()
	s.collect(rand.New(rand.NewPCG(0, 0)), 0, []string{"gc", "--grace", "0s"})
	s.check(rand.New(rand.NewPCG(0, 0)), 0, "--read-data")
	t.Logf("%v: %d saves acknowledged, %d restores, %d of them of saves that were killed, %d misses; %d collections "+
		"(%d resumed another's, %d gave way), %d chunks deleted, %d spared, %d names dropped; %d checks; %d processes killed",
		*soakFlag, s.saves, s.restores, s.unknown, s.misses, s.collections, s.resumed, s.faster, s.chunksDeleted, s.spared,
		s.dropped, s.checks, s.kills)
	if s.saves == 0 || s.restores == 0 || s.chunksDeleted == 0 || s.kills == 0 {
		t.Error("that is not what was to be tested")
	}
}
