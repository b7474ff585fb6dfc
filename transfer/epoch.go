package transfer

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// This file is what savers and collectors share of the collection protocol, and the saver's half of it. COLLECT.md
// specifies the protocol and its objects.

// StatePath is the key of the collector's state.
const StatePath = "gc/state"

const (
	stateVersion = 1
	// firstEpoch is that of a store that was never collected and has no gc/state. Its fence is 0.
	firstEpoch = 1
)

// phase of the collection that is under way.
type phase string

const (
	// idle: none is.
	idle phase = "idle"
	// fenced: the chunks that may go are condemned, and savers of earlier epochs are fenced off. What indexes refer to
	// all the same is to be found out.
	fenced phase = "fenced"
	// sweeping: what goes is recorded, and is being deleted.
	sweeping phase = "sweeping"
)

// State is the collector's state: which epoch new savers work in, and which earlier savers are fenced off. Only a
// collector writes it, by compare-and-swap.
type State struct {
	Version int `json:"version"`
	// Epoch is what a saver that starts now writes behind the IDs of its chunks.
	Epoch uint64 `json:"epoch"`
	// Fence is the highest epoch whose savers are no longer acknowledged.
	Fence uint64 `json:"fence"`
	Phase phase  `json:"phase"`
	// Dead are the manifests for savers, the longest first. Each holds the fingerprints of all chunk keys that are dead
	// in the epochs From to Epoch, so a saver needs one of them. What was learned before the first one's From cannot be
	// checked any more.
	Dead []Manifest `json:"dead,omitempty"`

	// Earlier is what Dead was before the collection that is under way.
	Earlier []Manifest `json:"earlier,omitempty"`
	// Condemned is what may go in that collection, and Spared what of it stays.
	Condemned *Condemned `json:"condemned,omitempty"`
	Spared    *Manifest  `json:"spared,omitempty"`
	// Writer is random, so that no two collectors ever write the same bytes.
	Writer string `json:"writer"`
}

// Manifest names an object with fingerprints of chunk keys.
type Manifest struct {
	Key   string `json:"key"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Count int64  `json:"count"`
	Bytes int64  `json:"bytes"`
	// Since is when the epoch From began, by the clock of the collector that began it, in seconds since 1970. Only how
	// long the manifest is kept depends on it.
	Since int64 `json:"since,omitempty"`
}

// covers says whether the manifest has all keys that died in the epochs after since, up to that one.
func (m *Manifest) covers(since, to uint64) bool { return m.From <= since+1 && m.To >= to }

// manifest returns the shortest manifest that reaches back to the epoch since, or nil if none does.
func (st *State) manifest(since uint64) *Manifest {
	var best *Manifest
	for i := range st.Dead {
		if m := &st.Dead[i]; m.covers(since, st.Epoch) && (best == nil || m.From > best.From) {
			best = m
		}
	}
	return best
}

// Condemned names objects with whole chunk keys: Key.0, Key.1 and so on, as many as there are Parts.
type Condemned struct {
	Key   string `json:"key"`
	Parts int    `json:"parts"`
	Count int64  `json:"count"`
	// Bytes that the chunks take in the store.
	Bytes int64 `json:"bytes"`
}

// part returns the key of one of the objects.
func (c *Condemned) part(i int) string { return fmt.Sprintf("%s.%d", c.Key, i) }

// readState returns the collector's state; that of a store without one is its first.
func readState(ctx context.Context, s store.Store) (State, error) {
	st, _, err := stateAndVersion(ctx, s)
	return st, err
}

// stateAndVersion returns the version of the object as well: "" if there is none.
func stateAndVersion(ctx context.Context, s store.Store) (State, string, error) {
	o, err := s.Get(ctx, StatePath, store.Read{Max: maxSmall})
	if errors.Is(err, store.ErrNotExist) {
		return State{Version: stateVersion, Epoch: firstEpoch, Phase: idle}, "", nil
	}
	if err != nil {
		return State{}, "", fmt.Errorf("reading %s: %w", StatePath, err)
	}
	var st State
	if err := json.Unmarshal(o.Data, &st); err != nil {
		return State{}, "", fmt.Errorf("%w: %s cannot be read: %w", ErrStateLost, StatePath, err)
	}
	if st.Version != stateVersion {
		return State{}, "", fmt.Errorf("%w: %s has version %d, this nbc knows %d", ErrFormat, StatePath, st.Version,
			stateVersion)
	}
	if st.Epoch < firstEpoch || st.Fence >= st.Epoch {
		return State{}, "", fmt.Errorf("%w: %s has epoch %d and fence %d", ErrStateLost, StatePath, st.Epoch, st.Fence)
	}
	return st, o.Version, nil
}

// checkEpoch says whether an index or a chunk of that epoch can exist beside st. It may have been written in an epoch
// that began after st was read, so st is read once more before the state is called lost.
func (st *State) checkEpoch(ctx context.Context, s store.Store, what string, epoch uint64) error {
	if epoch <= st.Epoch {
		return nil
	}
	now, err := readState(ctx, s)
	if err != nil {
		return err
	}
	if epoch > now.Epoch {
		return fmt.Errorf("%w: %s has epoch %d, %s is of epoch %d", ErrStateLost, StatePath, now.Epoch, what, epoch)
	}
	*st = now
	return nil
}

// dead knows which keys a saver may not refer to: those of the manifests read so far.
//
// The usable rule says that a saver at epoch e may refer to id.g iff it is in no dead(x) with g < x <= e. A collector
// only ever condemns keys older than the epoch that it begins, so "in dead(x)" already means g < x, and x <= e holds
// for all manifests that gc/state names. And whoever put an index at epoch b had subtracted the manifests up to b. So
// it is enough to ask, of a key learned from an index of epoch b, whether it is in any manifest of b+1 to e; those of
// other epochs that come along in the same object can only cost an upload.
type dead struct {
	read []deadKeys
}

type deadKeys struct {
	Manifest
	set fingerprintSet
}

// learn makes sure that what died in the epochs after since, up to st's, is known. It costs one small Get, or none. It
// returns false if it cannot be known: then no key that was learned at epoch since may be referred to.
func (d *dead) learn(ctx context.Context, s store.Store, st State, since uint64) (bool, error) {
	if since >= st.Epoch {
		return true, nil
	}
	for i := range d.read {
		if d.read[i].covers(since, st.Epoch) {
			return true, nil
		}
	}
	best := st.manifest(since)
	if best == nil {
		return false, nil
	}
	set, err := readFingerprints(ctx, s, best.Key, deadWidth, maxManifest)
	switch {
	case errors.Is(err, store.ErrNotExist), errors.Is(err, store.ErrTooLarge), errors.Is(err, errManifest):
		// Two later collections came between the reading of st and now, or it is damaged: what it said cannot be known.
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading %s: %w", best.Key, err)
	}
	d.read = append(d.read, deadKeys{*best, set})
	return true, nil
}

// among returns those keys of chunks that are dead by anything that was read.
func (d *dead) among(chunks []index.Chunk) map[chunk.Key]bool {
	found := map[chunk.Key]bool{}
	if len(d.read) == 0 || len(chunks) == 0 {
		return found
	}
	by := make(map[uint64][]chunk.Key, len(chunks))
	wanted := make([]uint64, 0, len(chunks))
	for i := range chunks {
		f := Fingerprint(chunks[i].Key) >> (64 - deadWidth)
		if _, ok := by[f]; !ok {
			wanted = append(wanted, f)
		}
		by[f] = append(by[f], chunks[i].Key)
	}
	slices.Sort(wanted)
	for i := range d.read {
		d.read[i].set.intersect(wanted, func(f uint64) {
			for _, k := range by[f] {
				found[k] = true
			}
		})
	}
	return found
}

// all says whether each of chunks is dead by anything that was read. That all chunks which an index lacks are is what
// tells a save that was never acknowledged from damage: a single one of many can be a false hit.
func (d *dead) all(chunks []index.Chunk) bool {
	known := d.among(chunks)
	return !slices.ContainsFunc(chunks, func(c index.Chunk) bool { return !known[c.Key] })
}

// randomName returns text that nobody has used before.
func randomName() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = digits[int(b[i])%len(digits)]
	}
	return string(b[:])
}
