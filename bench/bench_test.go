package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nbc/transfer/store/storetest"
)

// TestMain lets the test program be what bench starts to measure others.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "measure" {
		os.Exit(measureChild(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

// echoServer sends back what it gets, and ends a connection when its client has finished.
func echoServer(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c) // the client sees what comes
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	address := echoServer(t)
	data := make([]byte, 3_000_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
	for _, roundTrip := range []time.Duration{0, 100 * time.Millisecond} {
		p, err := startProxy(t.Context(), address, roundTrip)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		var sent error
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, sent = c.Write(data)
			sent = errors.Join(sent, c.(*net.TCPConn).CloseWrite())
		}()
		back, err := io.ReadAll(c)
		<-done
		if err := errors.Join(err, sent, c.Close()); err != nil || !bytes.Equal(back, data) {
			t.Fatalf("round trip %v: %d of %d bytes came back, %v", roundTrip, len(back), len(data), err)
		}
		// One round trip for the connection, one for the data.
		if took := time.Since(begun); took < 2*roundTrip || roundTrip == 0 && took > 30*time.Second {
			t.Errorf("round trip %v: it took %v", roundTrip, took)
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if s, r := p.sent.Load(), p.received.Load(); s != int64(len(data)) || r != int64(len(data)) {
			t.Errorf("round trip %v: it counted %d sent and %d received", roundTrip, s, r)
		}
	}
}

// TestProxyStops ends connections that are idle.
func TestProxyStops(t *testing.T) {
	for _, roundTrip := range []time.Duration{0, time.Millisecond} {
		p, err := startProxy(t.Context(), echoServer(t), roundTrip)
		if err != nil {
			t.Fatal(err)
		}
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		one := make([]byte, 1)
		if _, err := c.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatal(err)
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if n, err := c.Read(one); err == nil {
			t.Errorf("%d bytes come through a proxy that was stopped", n)
		}
		_ = c.Close()
	}
}

// tree makes a small corpus.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		file := filepath.Join(dir, fmt.Sprintf("d%d", i%7), fmt.Sprintf("f%d", i))
		data := bytes.Repeat(fmt.Appendf(nil, "%d ", i), r.IntN(5000))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "largest"), make([]byte, 3<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyTree copies with the operating system's tool, as bench does.
func copyTree(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if _, err := output(t.Context(), "", nil, "cp", "-a", dir, to); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestChange(t *testing.T) {
	dir := tree(t)
	a, b := copyTree(t, dir), copyTree(t, dir)
	if err := sameTree(dir, a, true); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{a, b} {
		if n, err := change(d); err != nil || n < 2 || n > 12 {
			t.Fatalf("%d of 301 files are changed, %v", n, err)
		}
	}
	if err := sameTree(a, b, true); err != nil {
		t.Errorf("the same change made different trees: %v", err)
	}
	if err := sameTree(dir, a, false); err == nil {
		t.Error("nothing has changed")
	}
	old, err := os.ReadFile(filepath.Join(dir, "largest"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(a, "largest"))
	if err != nil || len(data) != len(old)+3*16 {
		t.Fatalf("the largest file has %d bytes, %v", len(data), err)
	}
	if err := errors.Join(update(dir, a), sameTree(dir, a, true)); err != nil {
		t.Errorf("after an update: %v", err)
	}
}

func TestSameTree(t *testing.T) {
	dir := tree(t)
	for name, spoil := range map[string]func(string) error{
		"a file more":  func(d string) error { return os.WriteFile(filepath.Join(d, "d1", "more"), nil, 0o600) },
		"a file less":  func(d string) error { return os.Remove(filepath.Join(d, "d1", "f1")) },
		"another size": func(d string) error { return os.Truncate(filepath.Join(d, "d1", "f1"), 1) },
		"another kind": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "d1", "f1")), os.Mkdir(filepath.Join(d, "d1", "f1"), 0o700))
		},
	} {
		other := copyTree(t, dir)
		if err := spoil(other); err != nil {
			t.Fatal(err)
		}
		if err := sameTree(dir, other, false); err == nil {
			t.Errorf("a tree with %s is the same", name)
		}
	}
	other := copyTree(t, dir)
	file := filepath.Join(other, "largest")
	if err := errors.Join(os.Remove(file), os.WriteFile(file, bytes.Repeat([]byte{1}, 3<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := sameTree(dir, other, true); err == nil {
		t.Error("other contents are the same")
	}
}

func TestTimes(t *testing.T) {
	c, _, err := measureTree(tree(t))
	if err != nil {
		t.Fatal(err)
	}
	large, err := c.times(3, t.TempDir())
	if err != nil || large.Files != 3*c.Files || large.Bytes != 3*c.Bytes {
		t.Fatalf("three times %+v is %+v, %v", c, large, err)
	}
	if err := sameTree(filepath.Join(large.Dir, "0"), filepath.Join(large.Dir, "1"), false); err != nil {
		t.Error(err)
	}
	if err := sameFile(filepath.Join(large.Dir, "0", "largest"), filepath.Join(large.Dir, "1", "largest")); err == nil {
		t.Error("two variants have the same contents")
	}
}

func TestMeasure(t *testing.T) {
	b := &bench{self: os.Args[0]}
	u, out, err := b.measure(t.Context(), command{
		args: []string{"sh", "-c", "cat; echo $ADDED; sleep 0.2; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"},
		env:  []string{"ADDED=yes"}, in: "bench_test.go",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(out), "package main") || !strings.HasSuffix(string(out), "\nyes\n") {
		t.Errorf("it wrote %.20q…%q", out, out[max(len(out)-20, 0):])
	}
	if u.Wall < 0.2 || u.CPU <= 0 || u.CPU > 10*u.Wall || u.RSS < 1<<18 || u.RSS > 1<<30 {
		t.Errorf("it needed %+v", u)
	}
	if _, _, err = b.measure(t.Context(), command{args: []string{"sh", "-c", "echo sad >&2; exit 3"}}); err == nil ||
		!strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "sad") {
		t.Errorf("a command that fails: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err = b.measure(ctx, command{args: []string{"sleep", "100"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that takes too long: %v", err)
	}
}

func TestSDK(t *testing.T) {
	for _, size := range []int{0, 1, partSize, 3*partSize + 5} {
		s := storetest.Memory()
		data := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
		if err := send(t.Context(), s, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		var back bytes.Buffer
		if err := receive(t.Context(), s, &back); err != nil || !bytes.Equal(back.Bytes(), data) {
			t.Errorf("%d of %d bytes come back, %v", back.Len(), size, err)
		}
	}
	broken := errors.New("broken")
	s := &storetest.Faulty{Store: storetest.Memory(), Fault: storetest.FailFrom(2, broken)}
	if err := send(t.Context(), s, bytes.NewReader(make([]byte, 5*partSize))); !errors.Is(err, broken) {
		t.Errorf("sending to a broken store: %v", err)
	}
	if err := receive(t.Context(), s, io.Discard); !errors.Is(err, broken) {
		t.Errorf("receiving from a broken store: %v", err)
	}
}

// measured are results as a run makes them.
func measured() *results {
	r := &results{
		Version: resultsVersion, Machine: "a machine", Rounds: 3,
		Corpus: corpus{What: "a <corpus>", Files: 6300, Bytes: 325e6},
		Big:    corpus{Files: 3, Bytes: 330e6},
		Facts:  facts{Chunks: 2000, IndexNumbered: 160_000, Changed: 63},
	}
	add := func(work, tool string, walls ...float64) {
		for round, w := range walls {
			r.Samples = append(r.Samples, sample{
				Round: round, Work: work, Tool: tool, usage: usage{Wall: w, CPU: 2 * w, RSS: int64(1000 * w)}, Requests: 10 - round,
			})
		}
	}
	add(coldSave, borg, 9, 4, 3, 5)
	add(coldSave, nbcS3, 9, 2, 2.2, 2.1)
	add(coldSave, oldWay, 9, 3, 3, 3)
	add(sameSave, nbcDir, 9, .1, .1, .1)
	add(sameSave, borg, 9, .7, .7, .7)
	add(sameSave, findName, 9, .05, .06, .05)
	add(missRestore, nbcS3, 7)
	return r
}

func TestRows(t *testing.T) {
	rows := measured().rows()
	var got []string
	for _, w := range rows {
		got = append(got, fmt.Sprintf("%s/%s %.2f %.2f %d", w.work, w.tool, w.wall, w.cpu, w.counted.Requests))
	}
	want := []string{
		"cold save/" + nbcS3 + " 2.10 4.20 10", "cold save/" + oldWay + " 3.00 6.00 10",
		"cold save/" + borg + " 4.00 8.00 10",
		sameSave + "/" + nbcDir + " 0.10 0.20 10", sameSave + "/" + borg + " 0.70 1.40 10",
		sameSave + "/" + findName + " 0.05 0.10 10", missRestore + "/" + nbcS3 + " 7.00 14.00 10",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("the median is %v", m)
	}
	if rows[0].rss != 9000 {
		t.Errorf("the most memory is %d", rows[0].rss)
	}
}

func TestTargets(t *testing.T) {
	list := measured().targets()
	for want, verdict := range map[string]string{
		"save, nothing changed: borg's time":                              "**not met**", // 1/7
		"save, nothing changed: a walk with lstat":                        "met",
		"cold save to S3: the old way's time":                             "met",
		"save, nothing changed: restic's time":                            "not measured",
		"objects for 650 MB in 12,600 files":                              "met",
		"index of 12,600 files without sources, names that are no hashes": "**not met**",
		"peak memory, cold save":                                          "met",
		"peak memory, cold save: on a tree four times as large":           "not measured",
		"requests of a restore that misses, two names":                    "**not met**",
		"upload after an edit of one module, Haskell, index included":     "not measured",
	} {
		i := slices.IndexFunc(list, func(t target) bool { return t.What == want })
		if i < 0 {
			t.Errorf("there is no target %q", want)
		} else if got := list[i].verdict(); got != verdict {
			t.Errorf("%s: %s (%+v), want %s", want, got, list[i], verdict)
		}
	}
	i := slices.IndexFunc(list, func(t target) bool { return strings.Contains(t.What, "old way's time") && t.known() })
	if got := list[i].Measured; math.Abs(got-0.7) > 1e-9 {
		t.Errorf("%s: measured %v, want 0.7", list[i].What, got)
	}
}

func TestOutput(t *testing.T) {
	r := measured()
	r.Targets = r.targets()
	text := r.markdown()
	for _, want := range []string{
		"| cold save | nbc, S3 | 2.100 |  | 4.200 |", "|  | borg, directory | 4.000 | 1.90 | 8.000 | 1.90 |",
		"| 2 × | 2 × | met | 2 × |", "a <corpus>, 325 MB in 6300 files; 63 of them differ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	plot := r.plot()
	for _, want := range []string{borg, "4.00 s", "1.90 × nbc"} {
		if !strings.Contains(plot, want) {
			t.Errorf("%q is not in the plot", want)
		}
	}
	for d := xml.NewDecoder(strings.NewReader(plot)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the plot: %v\n%s", err, plot)
		}
	}
	dir := t.TempDir()
	o := options{
		jsonFile: filepath.Join(dir, "json"), svgFile: filepath.Join(dir, "svg"), readme: filepath.Join(dir, "README.md"),
	}
	err := os.WriteFile(o.readme, []byte("before\n"+tablesBegin+"\nold\n"+tablesEnd+"\nafter\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	for range 2 { // the second time replaces what the first has written
		stdout.Reset()
		if err := write(r, o, &stdout); err != nil {
			t.Fatal(err)
		}
	}
	if stdout.String() != text {
		t.Errorf("stdout is %q", stdout.String())
	}
	readme, err := os.ReadFile(o.readme)
	want := "before\n" + tablesBegin + "\n\n" + text + "\n" + tablesEnd + "\nafter\n"
	if err != nil || string(readme) != want {
		t.Errorf("README is %q, %v", readme, err)
	}
	data, err := os.ReadFile(o.jsonFile)
	var again results
	if err = errors.Join(err, json.Unmarshal(data, &again)); err != nil || !slices.Equal(again.Samples, r.Samples) {
		t.Errorf("the JSON has %d samples, %v", len(again.Samples), err)
	}
}

// TestBench does everything once with a corpus of one megabyte.
func TestBench(t *testing.T) {
	b := &bench{work: t.TempDir()}
	var err error
	if b.module, err = moduleRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := os.Getenv("NBC_VERSITYGW") != "" || exists(filepath.Join(b.module, ".ci", "versitygw", "versitygw"))
	if _, err := exec.LookPath("versitygw"); err != nil && !found {
		storetest.Need(t, "s3", errors.New("name a versitygw by NBC_VERSITYGW"))
	}
	for _, name := range []string{ // setCredentials changes them
		"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID",
		"AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
		"AWS_EC2_METADATA_DISABLED",
	} {
		t.Setenv(name, "")
	}
	var stdout, stderr bytes.Buffer
	o := options{corpus: tree(t), rounds: 1, large: 2, tools: "cp,find", work: t.TempDir(), jsonFile: "-"}
	if err := run(t.Context(), o, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var r results
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	works := map[string]bool{}
	for _, s := range r.Samples {
		works[s.Work] = true
		if s.Tool == nbcS3 && s.Round == 0 && s.Requests == 0 {
			t.Errorf("%s without a request", s.Work)
		}
	}
	if want := 14; len(works) != want {
		t.Errorf("%d works were measured, want %d: %v", len(works), want, works)
	}
	for _, target := range r.Targets {
		if strings.HasPrefix(target.What, "requests of a restore that misses") && !target.Met {
			t.Errorf("%+v", target)
		}
	}
	if left, err := os.ReadDir(o.work); err != nil || len(left) != 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}
