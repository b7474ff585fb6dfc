package transfer

import "time"

// ReportVersion is the version of the reports' JSON. Fields may be added to it; a field that changes its meaning or
// goes away changes the version.
const ReportVersion = 1

// Refusal says why a cache name was not used.
type Refusal struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Report is what a restore, a save or a second pass did.
type Report struct {
	Version int    `json:"version"`
	Action  string `json:"action"` // "restore", "save" or "times"
	// Name is the cache name that was asked for.
	Name string `json:"name"`
	// Warnings are what a user should know although it stopped nothing.
	Warnings []string `json:"warnings,omitempty"`
	// Seconds that the work took.
	Seconds float64 `json:"seconds"`
}

// RestoreReport is what a restore did.
type RestoreReport struct {
	Report
	// Hit says that artifacts are in place. Otherwise Reason says why not, and the tree is as it was.
	Hit    bool   `json:"hit"`
	Reason string `json:"reason,omitempty"`
	// Used is the cache name that the artifacts came from.
	Used    string    `json:"used,omitempty"`
	Refused []Refusal `json:"refused,omitempty"`

	Roots   []string `json:"dirs,omitempty"`         // cache directories that were restored
	Skipped []string `json:"skipped_dirs,omitempty"` // cache directories of the index whose parent is not in the tree
	Files   int      `json:"files"`                  // artifacts of any kind but directories
	Bytes   int64    `json:"bytes"`                  // their contents
	Chunks  int      `json:"chunks"`
	Fetched Traffic  `json:"fetched"`
	Sources Sources  `json:"sources"`
	// OutputPaths is where output paths of this build were written.
	OutputPaths Places `json:"output_paths,omitzero"`
	// Shifted says by how much recorded times were moved; never forward.
	Shifted time.Duration `json:"shifted_ns,omitempty"`
	// Waited is how long the restore waited for the clock to pass the newest recorded time.
	Waited time.Duration `json:"waited_ns,omitempty"`
}

// Places counts where output paths stand.
type Places struct {
	Files  int `json:"files"` // or links
	Places int `json:"places"`
}

// Traffic is what went over the wire.
type Traffic struct {
	Chunks int   `json:"chunks"`
	Bytes  int64 `json:"bytes"` // as stored, the index included
}

// Sources counts the sources by what became of them since the index was saved.
type Sources struct {
	Unchanged int `json:"unchanged"`
	Changed   int `json:"changed"`
	New       int `json:"new"`
	Deleted   int `json:"deleted"`
}

// SaveReport is what a save did.
type SaveReport struct {
	Report
	// Saved says that the index was put and acknowledged. Otherwise Reason says why there was nothing to do.
	Saved  bool   `json:"saved"`
	Reason string `json:"reason,omitempty"`
	// Base is the cache name whose chunks were used again.
	Base string `json:"base,omitempty"`

	Roots     []string `json:"dirs,omitempty"`
	Files     int      `json:"files"`     // artifacts of any kind but directories
	Untouched int      `json:"untouched"` // those that were not read
	Bytes     int64    `json:"bytes"`
	Chunks    int      `json:"chunks"`
	Sent      Traffic  `json:"sent"`
	// OutputPaths is where placeholders were saved instead of output paths.
	OutputPaths Places `json:"output_paths,omitzero"`
	// Unknown are the sources that changed while the build ran: the next restore touches them.
	Unknown []string `json:"unknown_sources,omitempty"`
	// HashedAfter says that there was no restore, so the sources were hashed after the build.
	HashedAfter bool `json:"hashed_after_build,omitempty"`
	// Rounds is how often the chunks had to be checked against a collection that ran meanwhile; 1 when none did.
	Rounds int `json:"rounds"`
}

// TimesReport is what a second pass did.
type TimesReport struct {
	Report
	// Files is how many files had changed since the restore and were hashed again; Restored, how many of them got their
	// recorded time back.
	Files    int `json:"files"`
	Restored int `json:"restored"`
}
