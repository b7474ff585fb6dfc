package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"nbc/transfer/store/dir"
)

// childVariable holds the job of a process that a test has started from its own binary, to be killed.
const childVariable = "NBC_TEST_CHILD"

// job is what a child does.
type job struct {
	Do          string // "restore", "save", "times" or "run", which is restore, the build of make_test.go, and save
	Root, State string
	Store       string // of a directory store
	Restore     RestoreOptions
	Save        SaveOptions
	// Traced makes the kernel tell a tracer of every system call that changes something.
	Traced bool
}

// outcome of a job that came to its end.
type childResult struct {
	Err    string
	Local  bool
	Hit    bool
	Saved  bool
	Reason string
}

func childMain(text string) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if j.Traced {
		if err := traceMe(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	var r childResult
	if err := j.run(&r); err != nil {
		r.Err, r.Local = err.Error(), errors.Is(err, ErrLocal)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return 2
	}
	if _, err := os.Stdout.Write(data); err != nil {
		return 2
	}
	return 0
}

func (j *job) run(r *childResult) (err error) {
	s, err := dir.Open(j.Store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	s.NoSync = true // what is killed here is a process, not the machine
	c := &Cache{Store: s, Requests: 4}
	b, err := c.Open(j.Root, j.State, j.Do == "run")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	ctx := context.Background()
	if j.Do == "restore" || j.Do == "run" {
		rep, err := b.Restore(ctx, j.Restore)
		if r.Hit, r.Reason = rep.Hit, rep.Reason; err != nil && j.Do == "restore" {
			return err
		}
	}
	if j.Do == "run" {
		j.Save.Failed = project(j.Root).build() != nil
	}
	if j.Do == "times" {
		_, err := b.Times(ctx)
		return err
	}
	if j.Do == "save" || j.Do == "run" {
		rep, err := b.Save(ctx, j.Save)
		if r.Saved = rep.Saved; err != nil {
			return err
		}
	}
	return nil
}

// start makes the command of a child.
func (j job) command(t testing.TB) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^$")
	// Without the signals by which the runtime interrupts its own threads a tracer has less to do.
	cmd.Env = append(os.Environ(), childVariable+"="+string(text), "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=2", "GOTRACEBACK=none")
	return cmd
}

// result reads what a child has printed.
func (j job) result(t testing.TB, out []byte) (r childResult) {
	t.Helper()
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&r); err != nil {
		t.Fatalf("%s printed %q: %v", j.Do, out, err)
	}
	return r
}
