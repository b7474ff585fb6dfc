//go:build !linux

package transfer

import (
	"errors"
	"testing"
)

// mountProblem says why this process cannot mount anything.
func mountProblem() error { return errors.ErrUnsupported }

func mountTmpfs(t *testing.T, dir, options string) { t.Helper(); t.Skip("nothing can be mounted here") }

func remount(t *testing.T, dir string, readOnly bool) {
	t.Helper()
	t.Skip("nothing can be mounted here")
}

func overlay(t *testing.T, dir, lower string) { t.Helper(); t.Skip("nothing can be mounted here") }

func doMount(t *testing.T, what, dir, kind string, flags uintptr, options string) {
	t.Helper()
	t.Skip("nothing can be mounted here")
}
