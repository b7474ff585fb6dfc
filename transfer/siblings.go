package transfer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

// A save that knows no index of its own name, and none of a fallback, would send everything, though the store may hold
// nearly all of it: the first save of a branch, or one under another key of a Nix build (name@key). So it looks for
// siblings, the indexes of names that are most like its own, and where there are none, at the chunks themselves.
//
//	LIST index/ by up to 4 prefixes -> the most similar, newest names -> GET their chunk keys -> the usable ones
//	LIST chunks/, if no sibling was of use                           -> the usable ones
//
// All of it happens while the tree is walked, within the budgets below. Nothing that goes wrong here is an error of the
// save, except that the state is found to be lost: it only sends more.
//
// What a sibling refers to is trusted as the index of a fallback is, by its epoch; a chunk that was listed, by its own
// one: to a key it is the same whether a HEAD or a LIST has found it, which COLLECT.md has a model of.
const (
	// siblingNames is how many names are listed for each prefix, and chunkPages how many thousand chunks: what S3 answers
	// in one request, and in eight. The chunks are those of a tree of 1.3 GB.
	siblingNames = page
	chunkPages   = 8
	// siblingsRead is how many siblings are read, and siblingBytes how much of their chunk keys together: those of
	// 250,000 chunks, or 40 GB of contents.
	siblingsRead = 8
	siblingBytes = 8 << 20
	// siblingManifest is the largest manifest that is read for their sake, that of some 400,000 dead chunks. An older
	// sibling would need a larger one.
	siblingManifest = 1 << 20
	// emptyIndex is more than a tombstone has, and less than an index that is worth a request.
	emptyIndex = 420
)

// siblingPatience is how long a save waits for all this when it has nothing else to do any more: not long if there is
// not much to send.
func siblingPatience(tree *index.Tree) time.Duration {
	const (
		least, most = 200 * time.Millisecond, 5 * time.Second
		rate        = 20 << 20 // bytes a second: what is not found has to be compressed and sent
	)
	var bytes int64
	for i := range tree.Artifacts {
		bytes += min(tree.Artifacts[i].Stat.Size, rate*int64(most/time.Second))
	}
	bytes = min(bytes, rate*int64(most/time.Second))
	return min(least+time.Duration(bytes*int64(time.Second)/rate), most)
}

// alone says whether a save that has found no dedup base may look for siblings. After a restore that met a damaged chunk
// it may not: others may refer to the same chunk, which would never be sent again.
func (s *saving) alone() bool {
	return !s.baseUsable() && (s.receipt == nil || len(s.receipt.Damaged) == 0)
}

// findSiblings adds chunks to the known ones that the indexes of other names refer to, or that are just there. The
// state is that of the store at the beginning. The error is that of a state that was lost.
func (s *saving) findSiblings(ctx context.Context) error {
	var lost error
	try := func(found []*index.Index) (useful bool) {
		err := s.learnSome(ctx, found)
		if errors.Is(err, ErrStateLost) {
			lost = err
		}
		return len(s.known) > 0
	}
	names := s.listSiblings(ctx)
	found := s.readSiblings(ctx, names)
	if len(found) > 0 && try(found) || lost != nil || ctx.Err() != nil {
		return lost
	}
	if found = s.listChunks(ctx); len(found) > 0 {
		try(found)
	}
	return lost
}

// sibling is a name whose index may have many of the chunks of this save.
type sibling struct {
	store.Info
	name  string
	alike int
}

// siblingPrefixes returns the prefixes of the keys of names that are like name, the most similar ones first: those with
// the same name under another input key, those in the same directory, those in the top one, and all.
func siblingPrefixes(name string) []string {
	bare, _, _ := index.CutInputKey(name)
	list := []string{index.PathPrefix(bare + "@")}
	if i := strings.LastIndexByte(bare, '/'); i >= 0 {
		list = append(list, index.PathPrefix(bare[:i+1]))
		if j := strings.IndexByte(bare, '/'); j < i {
			list = append(list, index.PathPrefix(bare[:j+1]))
		}
	}
	return append(list, index.Prefix)
}

// listSiblings returns the names that are most like this save's own, the best first.
func (s *saving) listSiblings(ctx context.Context) []sibling {
	prefixes := siblingPrefixes(s.o.Name)
	var mu sync.Mutex
	found := map[string]sibling{}
	var group errgroup.Group
	for i, prefix := range prefixes {
		group.Go(func() error {
			n := 0
			_ = s.cache.Store.List(ctx, prefix, func(info store.Info) error { // an error only ends the looking
				if n++; n > siblingNames {
					return errStopped
				}
				name, err := index.ParsePath(info.Key)
				if err != nil || name == s.o.Name || info.Size < emptyIndex {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				if old, ok := found[name]; !ok || old.alike < len(prefixes)-i {
					found[name] = sibling{info, name, len(prefixes) - i}
				}
				return nil
			})
			return nil
		})
	}
	_ = group.Wait() // the functions return nothing but nil
	list := make([]sibling, 0, len(found))
	for _, c := range found {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b sibling) int {
		return cmp.Or(b.alike-a.alike, b.Modified.Compare(a.Modified), strings.Compare(a.name, b.name))
	})
	return list[:min(len(list), siblingsRead)]
}

// readSiblings reads the chunk keys of names, and returns what can be read of them, the best last.
func (s *saving) readSiblings(ctx context.Context, names []sibling) []*index.Index {
	list := make([]*index.Index, len(names))
	var left atomic.Int64
	left.Store(siblingBytes)
	var group errgroup.Group
	for i, c := range names {
		group.Go(func() error {
			x, err := s.cache.readKeysWithin(ctx, c.Key, keysFirst, &left)
			if err == nil && len(x.Chunks) > 0 {
				list[len(names)-1-i] = x
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return nothing but nil
	list = slices.DeleteFunc(list, func(x *index.Index) bool { return x == nil })
	return list
}

// listChunks returns the chunks that are in the store, or the first of them, as if there were an index of those of each
// epoch. Chunks of later epochs than the state's are left out.
func (s *saving) listChunks(ctx context.Context) []*index.Index {
	by := map[uint64]*index.Index{}
	n := 0
	_ = s.cache.Store.List(ctx, chunk.Prefix, func(info store.Info) error { // an error only ends the looking
		if n++; n > chunkPages*page {
			return errStopped
		}
		k, err := chunk.ParsePath(info.Key)
		if err != nil || k.Epoch > s.state.Epoch {
			return nil
		}
		if by[k.Epoch] == nil {
			by[k.Epoch] = &index.Index{Epoch: k.Epoch}
		}
		by[k.Epoch].Chunks = append(by[k.Epoch].Chunks, index.Chunk{Key: k})
		return nil
	})
	list := make([]*index.Index, 0, len(by))
	for _, x := range by {
		list = append(list, x)
	}
	// Of a chunk that is there twice the newer one wins.
	slices.SortFunc(list, func(a, b *index.Index) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return list
}

// learnSome is learn for those of bases that no large manifest is needed for.
func (s *saving) learnSome(ctx context.Context, bases []*index.Index) error {
	cheap := slices.DeleteFunc(slices.Clone(bases), func(x *index.Index) bool {
		m := s.state.manifest(x.Epoch)
		return x.Epoch < s.state.Epoch && (m == nil || m.Bytes > siblingManifest)
	})
	return s.learn(ctx, cheap)
}
