package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"nbc/transfer/store/storetest"
)

// build is a source tree with something in its cache directory, and a home, for one test.
type build struct {
	dir string
	env []string
}

func newBuild(t *testing.T) build {
	t.Helper()
	b := build{dir: filepath.Join(t.TempDir(), "src")}
	if err := os.MkdirAll(filepath.Join(b.dir, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "build", "artifact"), []byte("made"), 0o600); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(filepath.Dir(b.dir), "home")
	b.env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME=", "XDG_STATE_HOME=", "NBC_DIR=build")
	return b
}

// s3 points the build at a server and returns the store's URL.
func (b *build) s3(url string) {
	b.env = append(b.env, "NBC_STORE=s3://bucket/p?path-style=true&region=eu-west-1&endpoint="+url,
		"AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY=y", "AWS_EC2_METADATA_DISABLED=true")
}

// command is nbc in the build's source tree, in a session of its own: without a terminal.
func (b build) command(args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	cmd = exec.Command("nbc", args...)
	cmd.Dir, cmd.Env = b.dir, b.env
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, stderr
}

// start starts cmd. If it does not end soon, or the test does, all that it has started is killed.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	session := -cmd.Process.Pid // it leads one
	late := time.AfterFunc(time.Minute, func() {
		t.Error("it does not end")
		_ = cmd.Process.Signal(syscall.SIGABRT) // shows what all goroutines do
		time.Sleep(time.Second)
		_ = syscall.Kill(session, syscall.SIGKILL)
	})
	t.Cleanup(func() {
		late.Stop()
		_ = syscall.Kill(session, syscall.SIGKILL)
	})
}

// wait returns how cmd ended.
func wait(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return ending(cmd.ProcessState)
}

// TestSignalOfCommand: nbc ends by the signal that its command ended by, after the save and without a word of its own.
func TestSignalOfCommand(t *testing.T) {
	for _, n := range []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGPIPE,
		syscall.SIGTERM, syscall.SIGUSR1,
	} {
		t.Run(n.String(), func(t *testing.T) {
			cmd, stderr := newBuild(t).command("run", "app", "--", "sh", "-c", "ulimit -c 0; kill -"+strconv.Itoa(int(n))+" $$")
			start(t, cmd)
			if got, want := wait(t, cmd), strconv.Itoa(int(n))+"!"; got != want {
				t.Errorf("it ended with %s, not %s", got, want)
			}
			if lines := strings.Count(stderr.String(), "\n"); lines != 2 || !strings.Contains(stderr.String(), "nbc: saved app") &&
				!strings.Contains(stderr.String(), "nbc: not saved app") {
				t.Errorf("stderr: %s", stderr)
			}
		})
	}
}

// TestForwardedSignals: what is sent to nbc alone is for its command, which decides what comes of it.
func TestForwardedSignals(t *testing.T) {
	for _, n := range []string{"TERM", "HUP", "INT", "QUIT", "USR1", "USR2"} {
		t.Run(n, func(t *testing.T) {
			cmd, stderr := newBuild(t).command("run", "app", "--", "sh", "-c",
				`trap "echo got; exit 42" `+n+`; echo ready; while :; do sleep 0.01; done`)
			out := ready(t, cmd)
			if err := cmd.Process.Signal(unix.SignalNum("SIG" + n)); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			if got := wait(t, cmd); got != "42" || string(rest) != "got\n" {
				t.Errorf("it ended with %s and wrote %q: %s", got, rest, stderr)
			}
			if !strings.Contains(stderr.String(), "saved app") {
				t.Errorf("no save: %s", stderr)
			}
		})
	}
}

// ready starts a command and waits for the line "ready" on its stdout, of which it returns the rest.
func ready(t *testing.T, cmd *exec.Cmd) *bufio.Reader {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("it wrote %q, %v", line, err)
	}
	return out
}

// TestSignalDispositions: the command finds the same signals ignored and blocked as without nbc, and the same limit of
// open files, which the Go runtime raises for itself.
func TestSignalDispositions(t *testing.T) {
	_, err := os.Stat("/proc/self/status")
	storetest.Need(t, "proc", err)
	const look = `grep -E "^Sig(Ign|Blk)" /proc/self/status; ulimit -Sn`
	for _, before := range []string{"", `trap "" HUP INT; `, "ulimit -Sn 200; "} {
		b := newBuild(t)
		output := func(script string) string {
			cmd := exec.Command("sh", "-c", script)
			cmd.Dir, cmd.Env = b.dir, b.env
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: %v", script, err)
			}
			return string(out)
		}
		without := output(before + "sh -c '" + look + "'")
		with := output(before + "nbc run app -- sh -c '" + look + "'")
		if without == "" || with != without {
			t.Errorf("%q: without nbc %q, with it %q", before, without, with)
		}
	}
}

// hanging is an S3 server that has no objects and takes all, until it is to hang: then it answers nobody.
type hanging struct {
	*httptest.Server
	hang func() bool
	hung atomic.Int64
}

func newHanging(t *testing.T, hang func() bool) *hanging {
	h := &hanging{hang: hang}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch {
		case h.hang():
			h.hung.Add(1)
			<-r.Context().Done()
		case r.Method == http.MethodPut:
			w.Header().Set("ETag", `"1"`)
		default:
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `<Error><Code>NoSuchKey</Code><Message>none</Message></Error>`)
		}
	}))
	t.Cleanup(h.Close)
	return h
}

// waitHung waits until a request hangs.
func (h *hanging) waitHung(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); h.hung.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no request came")
		}
	}
}

// TestInterruptedRestore: a signal during a restore ends nbc by that signal, soon, and the command does not begin.
func TestInterruptedRestore(t *testing.T) {
	for _, n := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT} {
		for _, verb := range []string{"restore", "run"} {
			t.Run(fmt.Sprintf("%s %s", verb, n), func(t *testing.T) {
				h := newHanging(t, func() bool { return true })
				b := newBuild(t)
				b.s3(h.URL)
				args := []string{"restore", "app"}
				if verb == "run" {
					args = []string{"run", "app", "--json-file", "../json", "--", "touch", "began"}
				}
				cmd, stderr := b.command(args...)
				start(t, cmd)
				h.waitHung(t)
				if err := cmd.Process.Signal(n); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if got, want := wait(t, cmd), strconv.Itoa(int(n))+"!"; got != want {
					t.Errorf("it ended with %s, not %s", got, want)
				}
				if took := time.Since(began); took > 15*time.Second { // a store that hangs is waited for 30
					t.Errorf("it took %s", took)
				}
				word := "ended by signal"
				if n == syscall.SIGINT {
					word = "interrupted"
				}
				if !strings.Contains(stderr.String(), word) || strings.Contains(stderr.String(), "goroutine") {
					t.Errorf("stderr: %s", stderr)
				}
				if _, err := os.Stat(filepath.Join(b.dir, "began")); err == nil {
					t.Error("the command began")
				}
				if verb == "run" {
					data, err := os.ReadFile(filepath.Join(b.dir, "../json"))
					if err != nil || !strings.Contains(string(data), `"kind":"interrupted"`) {
						t.Errorf("JSON: %s, %v", data, err)
					}
				}
			})
		}
	}
}

// TestInterruptedSave: a signal after the command's end cancels the save, and nbc ends by it: whoever sent it wants an
// end of all, and not what would come next.
func TestInterruptedSave(t *testing.T) {
	b := newBuild(t)
	done := filepath.Join(b.dir, "build", "done")
	h := newHanging(t, func() bool { _, err := os.Stat(done); return err == nil })
	b.s3(h.URL)
	cmd, stderr := b.command("run", "app", "--", "touch", done)
	start(t, cmd)
	h.waitHung(t)
	time.Sleep(2 * echo) // until then it would count as the one that ended the command
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, cmd); got != "2!" || !strings.Contains(stderr.String(), "nbc: warning: not saved app: interrupted\n") {
		t.Errorf("it ended with %s: %s", got, stderr)
	}
}

// TestDeadline: --timeout is for the restore and for the save, each, and not for the command.
func TestDeadline(t *testing.T) {
	b := newBuild(t)
	h := newHanging(t, func() bool { return true })
	b.s3(h.URL)
	cmd, stderr := b.command("run", "app", "--timeout", "200ms", "--", "sleep", "0.5")
	start(t, cmd)
	if got := wait(t, cmd); got != "0" {
		t.Errorf("it ended with %s", got)
	}
	for _, not := range []string{"not restored app", "not saved app"} {
		if !strings.Contains(stderr.String(), "nbc: warning: "+not+": not finished within 200ms: ") {
			t.Errorf("no %q: %s", not, stderr)
		}
	}
}

// TestEcho: the Ctrl-C that ended the command may be seen after its end; it is not one against the save.
func TestEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(signals)
		ctx := s.working(t.Context())
		s.built()
		time.Sleep(echo / 2)
		s.handle(syscall.SIGINT)
		if s.caught() != 0 || ctx.Err() != nil {
			t.Error("the echo of a signal cancels the save")
		}
		time.Sleep(echo)
		s.handle(syscall.SIGINT)
		if s.caught() != syscall.SIGINT || ctx.Err() == nil {
			t.Error("a signal does not cancel the save")
		}
	})
}

// TestSignalBeforeCommand: one that comes while the command is being started is the command's.
func TestSignalBeforeCommand(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start(t, cmd)
	s := new(signals)
	s.handle(syscall.SIGTERM)
	s.building(cmd.Process)
	if got := wait(t, cmd); got != "15!" || s.caught() != 0 {
		t.Errorf("it ended with %s, caught %v", got, s.caught())
	}
}
