//go:build !linux && !race

package main

// adviseHuge does nothing: only Linux takes such advice.
func adviseHuge([]byte) {}

// roomy is what Linux says.
func roomy() bool { return false }
