package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// command is something to be run, and measured.
type command struct {
	args []string
	dir  string
	env  []string // added to the environment
	in   string   // a file for stdin
}

// usage is what a command needed, with all processes that it started and waited for.
type usage struct {
	Wall float64 `json:"wall_seconds"`
	CPU  float64 `json:"cpu_seconds"` // user and system
	RSS  int64   `json:"peak_bytes"`  // of the largest process
}

// measure runs c by way of this program's own "measure", because the kernel counts a process's memory from the fork on:
// a child of a large process would look as large as its parent. What it writes to stdout is returned.
func (b *bench) measure(ctx context.Context, c command) (usage, []byte, error) {
	var u usage
	r, w, err := os.Pipe()
	if err != nil {
		return u, nil, err
	}
	cmd := exec.CommandContext(ctx, b.self, append([]string{"measure"}, c.args...)...) // #nosec G204 -- this program
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), c.env...)
	cmd.ExtraFiles = []*os.File{w}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if c.in != "" {
		in, err := os.Open(c.in)
		if err != nil {
			return u, nil, errors.Join(err, r.Close(), w.Close())
		}
		defer func() { _ = in.Close() }() // it was only read
		cmd.Stdin = in
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Start()
	_ = w.Close() // the child has it
	if err != nil {
		return u, nil, errors.Join(err, r.Close())
	}
	data, readErr := io.ReadAll(r)
	err = errors.Join(cmd.Wait(), readErr, r.Close())
	if ctx.Err() != nil {
		return u, nil, context.Cause(ctx)
	}
	if err == nil {
		err = json.Unmarshal(data, &u)
	}
	if err != nil {
		return u, nil, fmt.Errorf("%s: %w\n%s%s", strings.Join(c.args, " "), err, tail(stdout.Bytes()), tail(stderr.Bytes()))
	}
	return u, stdout.Bytes(), nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }

// measureChild runs a command and writes its usage to descriptor 3.
func measureChild(args []string) int {
	runtime.LockOSThread()
	out := os.NewFile(3, "usage")
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...) // #nosec G204 G702 -- it is what bench wants
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Not to outlive bench, whatever ends it.
	cmd.SysProcAttr = childDiesWithParent()
	begun := time.Now()
	err := cmd.Run()
	u := usage{Wall: time.Since(begun).Seconds()}
	if s := cmd.ProcessState; s != nil {
		u.CPU = (s.UserTime() + s.SystemTime()).Seconds()
		if r, ok := s.SysUsage().(*syscall.Rusage); ok {
			u.RSS = r.Maxrss * maxrssUnit
		}
	}
	if err := errors.Join(json.NewEncoder(out).Encode(u), out.Close()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 1
}

// output runs a command that is not measured and returns what it writes to stdout.
func output(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) // #nosec G204 -- bench runs what it was told to measure
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(args, " "), err, tail(out), tail(stderr.Bytes()))
	}
	return string(out), nil
}
