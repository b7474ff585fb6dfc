package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	bucket    = "bench"
	region    = "us-east-1"
	accessKey = "nbc-bench"
	secretKey = "nbc-bench-secret"
)

// server is an S3 server, versitygw, on this machine.
type server struct {
	address string // host:port
	data    string // the directory that holds the bucket's objects as files
	log     string // its access log: a line for each request; "" if it writes none
	cmd     *exec.Cmd
	ended   chan struct{}
}

// setCredentials makes the AWS credential chain of this process, and of those that it starts, find the server's and
// nothing else.
func setCredentials() error {
	var errs []error
	for _, name := range []string{"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"} {
		errs = append(errs, os.Unsetenv(name))
	}
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": accessKey, "AWS_SECRET_ACCESS_KEY": secretKey, "AWS_REGION": region,
		"AWS_DEFAULT_REGION": region, "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"AWS_EC2_METADATA_DISABLED": "true",
	} {
		errs = append(errs, os.Setenv(name, value))
	}
	return errors.Join(errs...)
}

// storeURL names a store of nbc on a server, or on a proxy before it.
func storeURL(address, prefix string) string {
	q := url.Values{"region": {region}, "endpoint": {"http://" + address}, "path-style": {"true"}}
	return "s3://" + bucket + "/" + prefix + "?" + q.Encode()
}

// findServer returns the program of the server: the one that NBC_VERSITYGW names, else versitygw in PATH, else the one
// that .ci/run builds, else it builds that, which takes two minutes the first time.
func (b *bench) findServer(ctx context.Context) (string, error) {
	if name := os.Getenv("NBC_VERSITYGW"); name != "" {
		return name, nil
	}
	if path, err := exec.LookPath("versitygw"); err == nil {
		return path, nil
	}
	dir := filepath.Join(b.module, ".ci", "versitygw")
	if path := filepath.Join(dir, "versitygw"); exists(path) {
		return path, nil
	}
	b.say("building versitygw")
	path := filepath.Join(b.work, "versitygw")
	_, err := output(ctx, dir, nil, "go", "build", "-o", path, "github.com/versity/versitygw/cmd/versitygw")
	return path, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startServer starts the server for the objects below dir.
func startServer(ctx context.Context, program, dir, log string) (*server, error) {
	s := &server{data: filepath.Join(dir, "data", bucket), log: log}
	sidecar := filepath.Join(dir, "sidecar")
	for _, d := range []string{s.data, sidecar} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	for range 5 { // somebody else may take the port before the server does
		if s.address, err = freePort(ctx); err != nil {
			return nil, err
		}
		args := []string{"--quiet", "--keep-alive", "--region", region, "--port", s.address}
		if log != "" {
			args = append(args, "--access-log", log)
		}
		args = append(args, "posix")
		if !hasXattrs(s.data) {
			args = append(args, "--sidecar", sidecar)
		}
		args = append(args, filepath.Dir(s.data))
		if err = s.start(ctx, program, args); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func freePort(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *server) start(ctx context.Context, program string, args []string) error {
	var said bytes.Buffer
	s.cmd = exec.CommandContext(ctx, program, args...) // #nosec G204 -- the server that was found
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	s.cmd.Stdout, s.cmd.Stderr = &said, &said
	s.cmd.SysProcAttr = childDiesWithParent()
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.ended = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // it is told to end, or what it said tells why it has
		close(s.ended)
	}()
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			return fmt.Errorf("%s ended: %s", program, tail(said.Bytes()))
		default:
		}
		if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", s.address); err == nil {
			return c.Close()
		}
	}
	s.stop()
	return fmt.Errorf("%s does not listen: %s", program, tail(said.Bytes()))
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.ended:
	case <-time.After(5 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
}

// requests returns how many requests the server has answered, by its access log.
func (s *server) requests() (int, error) {
	if s.log == "" {
		return 0, nil
	}
	data, err := os.ReadFile(s.log)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return bytes.Count(data, []byte("\n")), err
}

// hasXattrs reports whether files in dir can have extended attributes, where versitygw keeps ETags.
func hasXattrs(dir string) bool { return unix.Setxattr(dir, "user.nbc", []byte{1}, 0) == nil }

// tool finds a program by its name, and says whether it can be used: it must know its own version.
func tool(ctx context.Context, name, version string) bool {
	if _, err := exec.LookPath(name); err != nil {
		return false
	}
	_, err := output(ctx, "", nil, append([]string{name}, strings.Fields(version)...)...)
	return err == nil
}
