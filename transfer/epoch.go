package transfer

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"nbc/chunk"
	"nbc/transfer/store"
)

// This file is the saver's half of the collection protocol, fenced epochs. COLLECT.md specifies its objects.

// StatePath is the key of the collector's state.
const StatePath = "gc/state"

const (
	stateVersion = 1
	// firstEpoch and its fence are those of a store that was never collected, and has no gc/state.
	firstEpoch = 1
	// maxFingerprints is how many 8-byte fingerprints of dead chunks a saver reads at most, over all manifests: 8 MB.
	// Beyond that it is cheaper to trust no earlier chunk, and to send again what is needed.
	maxFingerprints = 1 << 20
)

// State is the collector's state: which epoch new savers work in, and which earlier savers are fenced off. Only a
// collector writes it, by compare-and-swap.
type State struct {
	Version int `json:"version"`
	// Epoch is what a saver that starts now writes behind the IDs of its chunks.
	Epoch uint64 `json:"epoch"`
	// Fence is the highest epoch whose savers are no longer acknowledged.
	Fence uint64 `json:"fence"`
	// Phase of the collection that is under way: "idle", "fenced" or "sweeping".
	Phase string `json:"phase"`
	// Oldest is the lowest epoch whose manifest is still kept. What was learned before it cannot be checked.
	Oldest uint64 `json:"oldest"`
	// Dead are the manifests for savers. Each lists the fingerprints of all chunk keys that are dead in the epochs
	// From to To.
	Dead []Manifest `json:"dead,omitempty"`
}

// Manifest names an object with fingerprints of dead chunk keys.
type Manifest struct {
	Key   string `json:"key"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Count int64  `json:"count"`
}

// readState returns the collector's state; that of a store without one is its first.
func readState(ctx context.Context, s store.Store) (State, error) {
	o, err := s.Get(ctx, StatePath, store.Read{Max: maxSmall})
	if errors.Is(err, store.ErrNotExist) {
		return State{Version: stateVersion, Epoch: firstEpoch, Phase: "idle", Oldest: firstEpoch + 1}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("reading %s: %w", StatePath, err)
	}
	var st State
	if err := json.Unmarshal(o.Data, &st); err != nil {
		return State{}, fmt.Errorf("%w: %s cannot be read: %w", ErrStateLost, StatePath, err)
	}
	if st.Version != stateVersion {
		return State{}, fmt.Errorf("%w: %s has version %d, this nbc knows %d", ErrFormat, StatePath, st.Version, stateVersion)
	}
	if st.Epoch < firstEpoch || st.Fence >= st.Epoch {
		return State{}, fmt.Errorf("%w: %s has epoch %d and fence %d", ErrStateLost, StatePath, st.Epoch, st.Fence)
	}
	return st, nil
}

// checkEpoch says whether an index of that epoch can exist beside st.
func (st State) checkEpoch(name string, epoch uint64) error {
	if epoch > st.Epoch {
		return fmt.Errorf("%w: %s has epoch %d, the index of %s was saved in epoch %d", ErrStateLost, StatePath, st.Epoch,
			name, epoch)
	}
	return nil
}

// Fingerprint is what manifests for savers list instead of a key: 8 bytes. Two keys with the same one cost an upload,
// no more: a saver only asks whether a key is dead.
func Fingerprint(k chunk.Key) uint64 {
	return binary.BigEndian.Uint64(k.ID[:8]) ^ k.Epoch*0x9e3779b97f4a7c15
}

// deadMagic begins a manifest for savers.
const deadMagic = "nbcdead1"

// EncodeManifest returns the manifest of fingerprints, which it sorts: the magic, then each fingerprint once, in rising
// order, 8 bytes big-endian, then the BLAKE3-256 of all before.
func EncodeManifest(fingerprints []uint64) []byte {
	slices.Sort(fingerprints)
	fingerprints = slices.Compact(fingerprints)
	b := make([]byte, 0, len(deadMagic)+8*len(fingerprints)+chunk.IDSize)
	b = append(b, deadMagic...)
	for _, f := range fingerprints {
		b = binary.BigEndian.AppendUint64(b, f)
	}
	sum := chunk.Sum(b)
	return append(b, sum[:]...)
}

// DecodeManifest is the inverse of [EncodeManifest].
func DecodeManifest(data []byte) ([]uint64, error) {
	body := len(data) - chunk.IDSize
	if body < len(deadMagic) || string(data[:len(deadMagic)]) != deadMagic || (body-len(deadMagic))%8 != 0 {
		return nil, errors.New("not a manifest of dead chunks")
	}
	if chunk.Sum(data[:body]) != chunk.ID(data[body:]) {
		return nil, errors.New("manifest of dead chunks is damaged")
	}
	list := make([]uint64, 0, (body-len(deadMagic))/8)
	for b := data[len(deadMagic):body]; len(b) > 0; b = b[8:] {
		f := binary.BigEndian.Uint64(b)
		if len(list) > 0 && f <= list[len(list)-1] {
			return nil, errors.New("manifest of dead chunks is not sorted")
		}
		list = append(list, f)
	}
	return list, nil
}

// dead knows which keys a saver may not refer to: those of the manifests read so far.
//
// The usable rule says that a saver at epoch e may refer to id.g iff it is in no dead(x) with g < x <= e. A collector
// only ever condemns keys older than the epoch that it begins, so "in dead(x)" already means g < x, and x <= e holds
// for all manifests that gc/state names. And whoever put an index at epoch b had subtracted the manifests up to b. So
// it is enough to ask, of a key learned from an index of epoch b, whether it is in any manifest of b+1 to e; those of
// other epochs that come along in the same object can only cost an upload.
type dead struct {
	fingerprints map[uint64]struct{}
	read         map[string]bool
}

func (d *dead) has(k chunk.Key) bool {
	_, ok := d.fingerprints[Fingerprint(k)]
	return ok
}

// learn reads the manifests of the epochs after since, up to st's. It returns false if they cannot all be had for
// a reasonable price: then no key that was learned at epoch since may be referred to.
func (d *dead) learn(ctx context.Context, s store.Store, st State, since uint64) (bool, error) {
	if since >= st.Epoch {
		return true, nil
	}
	if since+1 < st.Oldest {
		return false, nil
	}
	var todo []Manifest
	total := int64(len(d.fingerprints))
	covered := since
	for _, m := range st.Dead { // in the order of the epochs
		if m.To <= since {
			continue
		}
		if m.From > covered+1 {
			break
		}
		covered = max(covered, m.To)
		if !d.read[m.Key] {
			todo = append(todo, m)
			total += m.Count
		}
	}
	if covered < st.Epoch || total > maxFingerprints {
		return false, nil
	}
	for _, m := range todo {
		o, err := s.Get(ctx, m.Key, store.Read{Max: 8*maxFingerprints + 64})
		if errors.Is(err, store.ErrNotExist) || errors.Is(err, store.ErrTooLarge) {
			return false, nil // a later collection has merged it meanwhile; what it said cannot be known from here
		}
		if err != nil {
			return false, fmt.Errorf("reading %s: %w", m.Key, err)
		}
		list, err := DecodeManifest(o.Data)
		if err != nil {
			return false, nil //nolint:nilerr // a damaged manifest says nothing: then no earlier chunk is trusted
		}
		if d.fingerprints == nil {
			d.fingerprints, d.read = map[uint64]struct{}{}, map[string]bool{}
		}
		for _, f := range list {
			d.fingerprints[f] = struct{}{}
		}
		d.read[m.Key] = true
	}
	return true, nil
}
