package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbc/transfer/store/storetest"
)

// terminal is a pseudo terminal with somebody at it.
type terminal struct {
	*os.File // what is typed is written here

	mu   sync.Mutex
	text strings.Builder // what was shown, as the bytes that came
	done chan struct{}
}

// startAt starts cmd at a new terminal of a width in columns, as the process group in its foreground.
func startAt(t *testing.T, cmd *exec.Cmd, columns uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	storetest.Need(t, "pty", err)
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close() // the command has it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	start(t, cmd)
	term := &terminal{File: master, done: make(chan struct{})}
	go func() {
		defer close(term.done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			term.mu.Lock()
			term.text.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return // EIO, when the last process is gone
			}
		}
	}()
	return term
}

func (t *terminal) shown() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// waitFor waits until text is shown.
func (term *terminal) waitFor(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(term.shown(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q does not appear: %q", text, term.shown())
		}
	}
}

// screen is what is left to see of what was shown, without the escapes that a progress bar needs: it is drawn as
// a line, and erased from there to the end of the screen.
func screen(shown string) string {
	var lines []string
	for _, line := range strings.SplitAfter(shown, "\n") {
		for {
			at := up.FindStringIndex(line)
			if at == nil {
				break
			}
			var n int
			if _, err := fmt.Sscanf(line[at[0]:], "\x1b[%dA", &n); err != nil {
				n = 1
			}
			lines = lines[:max(0, len(lines)-n)]
			line = line[at[1]:]
		}
		lines = append(lines, line)
	}
	return strings.ReplaceAll(strings.Join(lines, ""), "\r\n", "\n")
}

var up = regexp.MustCompile(`\x1b\[\d*A\x1b\[J`)

// TestCtrlC: what is typed on the terminal reaches the command once, and nbc lets it decide.
func TestCtrlC(t *testing.T) {
	for key, n := range map[string]string{"\x03": "INT", "\x1c": "QUIT"} {
		t.Run(n, func(t *testing.T) {
			b := newBuild(t)
			cmd, _ := b.command("run", "app", "--", "count-signals")
			term := startAt(t, cmd, 80)
			term.waitFor(t, "ready")
			if _, err := io.WriteString(term, key); err != nil {
				t.Fatal(err)
			}
			term.waitFor(t, "got")
			time.Sleep(100 * time.Millisecond) // time for it to come twice
			if err := os.WriteFile(filepath.Join(b.dir, "end"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := wait(t, cmd); got != "3" {
				t.Errorf("it ended with %s", got)
			}
			<-term.done
			if n := strings.Count(term.shown(), "got"); n != 1 {
				t.Errorf("the command got it %d times: %q", n, term.shown())
			}
			if !strings.Contains(term.shown(), "saved app") {
				t.Errorf("no save: %q", term.shown())
			}
		})
	}
}

// TestCtrlCEndsCommand: the command dies of Ctrl-C, nbc saves, and then ends as the command did.
func TestCtrlCEndsCommand(t *testing.T) {
	b := newBuild(t)
	cmd, _ := b.command("run", "app", "--", "dawdle")
	term := startAt(t, cmd, 80)
	term.waitFor(t, "ready")
	if _, err := io.WriteString(term, "\x03"); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, cmd); got != "2!" {
		t.Errorf("it ended with %s", got)
	}
	<-term.done
	if !strings.Contains(term.shown(), "saved app") || strings.Contains(term.shown(), "interrupted") {
		t.Errorf("the save is not whole: %q", term.shown())
	}
}

// TestBar: work that takes a while shows a bar, on one line of any terminal, which leaves no trace.
func TestBar(t *testing.T) {
	for _, columns := range []uint16{20, 80, 200} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			h := newHanging(t, func() bool { return true })
			b := newBuild(t)
			b.s3(h.URL)
			b.env = append(b.env, "TERM=xterm")
			cmd, _ := b.command("restore", "app", "--timeout", "3s")
			term := startAt(t, cmd, columns)
			if got := wait(t, cmd); got != "18" {
				t.Errorf("it ended with %s", got)
			}
			<-term.done
			shown := term.shown()
			if !strings.Contains(shown, "nbc: restoring app") {
				t.Errorf("no progress was shown: %q", shown)
			}
			for _, line := range strings.Split(up.ReplaceAllString(shown, ""), "\r\n") {
				if strings.HasPrefix(line, "nbc: restoring") && len(line) > int(columns) {
					t.Errorf("a line of %d characters: %q", len(line), line)
				}
			}
			left := screen(shown)
			if strings.Contains(left, "nbc: restoring") || !strings.HasPrefix(left, "nbc: not finished within 3s") {
				t.Errorf("what is left on the screen: %q, of %q", left, shown)
			}
		})
	}
}

// TestNoBar: without a terminal there is no carriage return and no escape.
func TestNoBar(t *testing.T) {
	h := newHanging(t, func() bool { return true })
	b := newBuild(t)
	b.s3(h.URL)
	cmd, stderr := b.command("restore", "app", "--timeout", "1500ms")
	start(t, cmd)
	if got := wait(t, cmd); got != "18" || strings.ContainsAny(stderr.String(), "\r\x1b") {
		t.Errorf("it ended with %s and wrote %q", got, stderr)
	}
}
