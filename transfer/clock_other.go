//go:build !linux

package transfer

import "errors"

// probeUnnamed is for systems that have files without names.
func probeUnnamed(string) (dev uint64, now int64, err error) { return 0, 0, errors.ErrUnsupported }
