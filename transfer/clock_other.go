//go:build !linux

package transfer

import "errors"

// probeUnnamed is for systems that have files without names.
func probeUnnamed(string) (int64, error) { return 0, errors.ErrUnsupported }
