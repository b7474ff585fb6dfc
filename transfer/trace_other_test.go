//go:build !linux || !amd64

package transfer

import (
	"errors"
	"syscall"
	"testing"

	"nbc/transfer/store/storetest"
)

// See trace_linux_amd64_test.go: the registers of other processors have other names.

type point struct {
	n              int
	name, path, to string
}

type verdict struct {
	kill  bool
	errno syscall.Errno
}

func traceMe() error { return errors.ErrUnsupported }

func (j job) trace(t testing.TB, base string, decide func(point) verdict) (r childResult, died bool) {
	t.Helper()
	needTrace(t)
	return r, false
}

func needTrace(t testing.TB) {
	t.Helper()
	storetest.Need(t, "ptrace", errors.ErrUnsupported)
}
