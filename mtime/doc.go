// Package mtime makes the times of source files say what has changed.
//
// Build tools decide by modification times what to build again. In a fresh checkout, or in a Nix build, these times say
// nothing, while the artifacts of an earlier build are restored with exact ones. This package compares the sources of
// that build with those of this one by their MD5, and then gives each source that is the same the time which the build
// tool saw then, to the nanosecond, and every other one the present. So a tool finds what it would find in a tree that
// was edited in place, and builds the minimum; a doubt is always resolved by the present time, which costs a rebuild
// and never makes a wrong result.
//
//	found by a walk --Hash--> sources --Diff(the index's sources)--> Changes --NewPlan--> Plan.Apply
//	                                                      Policy.Guard(newest time, Probe)--^ shift and now
//
// [Hash] and [Diff] look, [Plan.Apply] changes times and nothing else, and [Plan.Undo] takes that back. No artifact is
// ever touched here, and no link is followed while times are set. Whoever places artifacts does so after Apply, and
// calls [Plan.ApplyDirs] then, because each rename changes the time of a directory.
//
// MD5 is not here for security: whoever can write a source can do without a collision.
package mtime
