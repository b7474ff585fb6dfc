package transfer

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"nbc/index"
)

// receiptVersion changes whenever a receipt of an earlier nbc must not be used. It is a private file of one machine: an
// unknown one counts as none.
const receiptVersion = 2

// outcome of the restore that left a receipt, or that a save has used it up.
type outcome string

const (
	outcomeHit    outcome = "hit"
	outcomeMiss   outcome = "miss"
	outcomeFailed outcome = "failed"
	outcomeSaved  outcome = "saved"
)

// receipt is the note that a restore leaves for the save of the same build: what it put where, so that the save need
// not read it again, and what the sources were before the build.
//
// A save turns it into one with outcomeSaved. No other save may use that, but a restore still sees by it that what lies
// in the cache directories is in the store, and not somebody's only copy.
type receipt struct {
	Version int     `cbor:"version"`
	Outcome outcome `cbor:"outcome"`

	// Root names the tree by path, device and inode: a receipt is no use in another tree at the same place.
	Root             string `cbor:"root"`
	RootDev, RootIno uint64

	// Store is the ID of the store that was asked (see Format), "" if it had none yet.
	Store string `cbor:"store"`

	Name      string   `cbor:"name"`
	Fallbacks []string `cbor:"fallbacks"`
	Tree      Tree     `cbor:"tree"`
	// Outputs are those of the build.
	Outputs []index.Output `cbor:"outputs"`
	// Absent says that the store was reached and had no index of Name.
	Absent bool `cbor:"absent"`
	// Silent says that the store could not be reached, or did not answer in time.
	Silent bool `cbor:"silent"`
	// Damaged are the names whose index cannot be trusted to have its chunks.
	Damaged []string `cbor:"damaged"`

	// Restored is the name that this build was restored from; "" after a miss.
	Restored string `cbor:"restored"`
	// Base is the name of the index that Files came from, and BaseData the index as it was read or saved, so that the
	// next save sees the same one even if it was replaced meanwhile. BaseStore is the ID of the store that has its chunks.
	Base      string `cbor:"base"`
	BaseStore string `cbor:"basestore"`
	BaseData  []byte `cbor:"-"`

	// Sources and SourceStats are what the build tool saw, before the build, in the same order.
	Sources     []index.Source `cbor:"-"`
	SourceStats []index.Stat   `cbor:"-"`
	// SourceProbe is for SourceStats what Probe is for Files.
	SourceProbe int64 `cbor:"sourceprobe"`
	// Shift is what was added to recorded times, in nanoseconds: 0 or less.
	Shift int64 `cbor:"shift"`

	// Files are the artifacts in place that are not directories, sorted by path, each with its lstat.
	Files []receiptFile `cbor:"-"`
	// Probe is the time, by the clock of the file system, of a moment at which all Files were as their Stats say. A file
	// whose ctime is not older is racy: it may have been written once more within the same tick of that clock.
	Probe int64 `cbor:"probe"`
	// FileOutputs are the outputs whose paths stand in Files where Base has placeholders, but for files that match
	// FileNoRewrite: these hold what they held when Base was saved.
	FileOutputs   []index.Output `cbor:"fileoutputs"`
	FileNoRewrite []string       `cbor:"filenorewrite"`
}

type receiptFile struct {
	Path string
	Stat index.Stat
}

// untouched says whether the file that now has this stat is, byte for byte, what the receipt speaks of.
//
// Each part is needed: size and mtime change with nearly every write, ctime with every one, also when a tool puts the
// mtime back; device and inode tell a file that was renamed into place; the mode belongs to what is saved; and the
// ctime must be older than the probe, since two writes within one tick of the kernel's clock leave the same times
// (git's documentation calls this the racy index). A clock that was set back makes new ctimes that differ from the
// recorded one.
func (f *receiptFile) untouched(now index.Stat, probe int64) bool {
	return f.Stat == now && now.CTime < probe
}

// lookup returns a function that finds a receipt's files by their paths. It is quickest when it is asked for them in
// their order, as nearly everybody does.
func (r *receipt) lookup() func(path string) (*receiptFile, bool) {
	if r == nil {
		return func(string) (*receiptFile, bool) { return nil, false }
	}
	next := 0
	return func(path string) (*receiptFile, bool) {
		if next == len(r.Files) || r.Files[next].Path != path {
			var found bool
			next, found = slices.BinarySearchFunc(r.Files, path, func(f receiptFile, p string) int {
				return strings.Compare(f.Path, p)
			})
			if !found {
				return nil, false
			}
		}
		next++
		return &r.Files[next-1], true
	}
}

var (
	receiptEnc = must(cbor.EncOptions{}.EncMode())
	receiptDec = must(cbor.DecOptions{
		MaxArrayElements:   index.MaxEntries,
		ByteStringToString: cbor.ByteStringToStringAllowed,
		UTF8:               cbor.UTF8DecodeInvalid, // paths are bytes
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options are constants
	}
	return v
}

// write puts the receipt in place, whole.
func (r *receipt) write(path string) error {
	data, err := r.encode()
	if err != nil {
		return fmt.Errorf("writing the receipt: %w", err)
	}
	if err := replaceFile(path, data); err != nil {
		return local(fmt.Errorf("writing the receipt: %w", err))
	}
	return nil
}

// readReceipt returns the receipt of the tree that root and st speak of, or nil: whatever is doubtful is no receipt.
func readReceipt(path, root string, st index.Stat) *receipt {
	data, err := os.ReadFile(path) // the user names the file
	if err != nil {
		return nil
	}
	r := decodeReceipt(data)
	if r == nil || r.Root != root || r.RootDev != st.Dev || r.RootIno != st.Ino || len(r.Sources) != len(r.SourceStats) {
		return nil
	}
	return r
}

// removeReceipt makes sure that no receipt speaks of the tree while it changes.
func removeReceipt(path string) error {
	if err := removeFile(path); err != nil {
		return local(fmt.Errorf("removing the old receipt: %w", err))
	}
	return nil
}
