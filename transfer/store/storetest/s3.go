package storetest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Bucket is the bucket of the server that [S3] starts.
const Bucket = "nbc"

// startTime is how long versitygw may take until it listens, on a machine that is busy with other tests.
const startTime = 30 * time.Second

// S3 starts an S3 server, versitygw, on a free port of 127.0.0.1 with an empty [Bucket] in a temporary directory, sets
// the environment variables that the AWS credential chain reads, and returns the URL of a store in it, for which
// package s3 accepts another prefix as well. The server is stopped when the test ends.
//
// The program is the one that NBC_VERSITYGW names, else versitygw in PATH, else .ci/versitygw/versitygw below the
// module's root, where .ci/run builds it. Without it the test is skipped, unless NBC_REQUIRE names "s3": then it fails.
func S3(t testing.TB) string {
	t.Helper()
	program := versitygw()
	if program == "" {
		Need(t, "s3", errors.New("build .ci/versitygw, or name a versitygw by NBC_VERSITYGW"))
	}
	const id, secret = "nbc-test", "nbc-test-secret"
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "data", Bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--quiet", "--keep-alive", "--region", "us-east-1", "--port", "", "posix"}
	if !hasXattrs(dir) {
		args = append(args, "--sidecar", filepath.Join(dir, "sidecar"))
		if err := os.Mkdir(filepath.Join(dir, "sidecar"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	args = append(args, filepath.Join(dir, "data"))

	// Somebody else may take the port between the moment it is found and the moment it is listened on.
	var output string
	for range 5 {
		port := freePort(t)
		args[slices.Index(args, "--port")+1] = port
		var ok bool
		if ok, output = start(t, program, args, id, secret, port); ok {
			query := url.Values{"region": {"us-east-1"}, "endpoint": {"http://" + port}, "path-style": {"true"}}
			return "s3://" + Bucket + "/test?" + query.Encode()
		}
	}
	t.Fatalf("%s does not start: %s", program, output)
	return ""
}

func versitygw() string {
	if name := os.Getenv("NBC_VERSITYGW"); name != "" {
		return name
	}
	if path, err := exec.LookPath("versitygw"); err == nil {
		return path
	}
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			path := filepath.Join(dir, ".ci", "versitygw", "versitygw")
			if _, statErr := os.Stat(path); statErr == nil {
				return path
			}
			return ""
		}
		dir = filepath.Dir(dir)
	}
	return ""
}

// hasXattrs reports whether files in dir can have extended attributes, where versitygw keeps ETags.
func hasXattrs(dir string) bool {
	return unix.Setxattr(dir, "user.nbc", []byte{1}, 0) == nil
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// start returns whether the server has begun to listen, and what it said if not.
func start(t testing.TB, program string, args []string, id, secret, port string) (ok bool, said string) {
	t.Helper()
	// it is the program that the test wants
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+id, "ROOT_SECRET_KEY="+secret)
	var output lockedBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is told to end, or its output says why it has
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	for begun := time.Now(); time.Since(begun) < startTime; {
		select {
		case <-ended:
			return false, output.String()
		case <-time.After(20 * time.Millisecond):
		}
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", port)
		if err != nil {
			continue
		}
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		t.Cleanup(func() {
			stop()
			if t.Failed() {
				t.Logf("versitygw said: %s", output.String())
			}
		})
		return true, ""
	}
	stop()
	return false, output.String()
}

// lockedBuffer may be read while a process still writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
