package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"nbc/transfer/store/storetest"
)

var update = flag.Bool("update", false, "rewrite what the scripts expect")

// TestMain makes this test binary the nbc of the scripts: they run it as a process of its own, by its name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"nbc": main, "count-signals": countSignals, "dawdle": dawdle})
}

// dawdle is a command that does nothing until a signal ends it. A shell would lose one that comes just before it starts
// another command.
func dawdle() {
	fmt.Println("ready")
	time.Sleep(time.Hour)
}

// countSignals is a command that writes a line for each Ctrl-C and Ctrl-\ that it gets, until there is a file named end.
func countSignals() {
	ch := make(chan os.Signal, 100)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGQUIT)
	fmt.Println("ready")
	for {
		select {
		case <-ch:
			fmt.Println("got")
		case <-time.After(10 * time.Millisecond):
			if _, err := os.Stat("end"); err == nil {
				os.Exit(3)
			}
		}
	}
}

// TestScript runs testdata/script, one file for each behaviour.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", os.Getenv("GORACE")) // .ci/run says what it is for
			e.Setenv("CLOSED", closedPort(t))
			e.Setenv("NL", "\n")
			return nil
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code,
			"json": jsonHas,

			"fetch": fetch,
		},
	})
}

// condition adds [root], and [needs:tool], which is false where a tool is missing. The environment variable NBC_REQUIRE
// lists tools, by commas, that must not be missing.
func condition(cond string) (bool, error) {
	if cond == "root" {
		return os.Getuid() == 0, nil
	}
	tool, ok := strings.CutPrefix(cond, "needs:")
	if !ok {
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	if _, err := exec.LookPath(tool); err != nil {
		if storetest.Required(tool) {
			return false, fmt.Errorf("%s is required: %w", tool, err)
		}
		return false, nil
	}
	return true, nil
}

// closedPort returns an address that nobody listens at.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// code runs a command that must end with an exit code, or by a signal: "code 17 nbc save", "code 9! sh …".
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command [argument...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = ending(exit.ProcessState)
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("it ended with %s, not %s", got, args[0])
	}
}

// fetch writes what is at a URL to a file: "fetch http://127.0.0.1:9137/healthz page".
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fetch URL FILE")
	}
	resp, err := http.Get(args[0])
	ts.Check(err)
	data, err := io.ReadAll(resp.Body)
	ts.Check(errors.Join(err, resp.Body.Close()))
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s", resp.Status, data)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
}

// ending is an exit code, or the number of a signal and "!".
func ending(p *os.ProcessState) string {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return strconv.Itoa(int(w.Signal())) + "!"
	}
	return strconv.Itoa(p.ExitCode())
}

// jsonHas checks that a file, or "stdout", is one line with one JSON object, and that it has some values: "json stdout
// hit=true restore.kind=unavailable files.0.path=a". What is absent is null; "*" matches whatever is not.
func jsonHas(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: json FILE [key.key=value...]")
	}
	text := ts.ReadFile(args[0])
	if strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
		ts.Fatalf("not exactly one line: %q", text)
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		ts.Fatalf("%v: %s", err, text)
	}
	for _, arg := range args[1:] {
		key, want, ok := strings.Cut(arg, "=")
		if !ok {
			ts.Fatalf("no value in %q", arg)
		}
		var v any = object
		for k := range strings.SplitSeq(key, ".") {
			switch in := v.(type) {
			case map[string]any:
				v = in[k]
			case []any:
				i, err := strconv.Atoi(k)
				if v = nil; err == nil && i < len(in) {
					v = in[i]
				}
			default:
				v = nil
			}
		}
		got, err := json.Marshal(v)
		ts.Check(err)
		if s, ok := v.(string); ok {
			got = []byte(s)
		}
		if want == "*" && v != nil {
			continue
		}
		if string(got) != want {
			ts.Fatalf("%s is %s, not %s, in %s", key, got, want, text)
		}
	}
}
