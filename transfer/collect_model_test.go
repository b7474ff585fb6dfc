package transfer

import (
	"cmp"
	"flag"
	"fmt"
	"hash/maphash"
	"math/bits"
	"os"
	"strings"
	"testing"
	"time"
)

// This file checks the collection protocol itself, apart from its code: an explicit-state search through all
// interleavings of single requests of savers, collectors and somebody who drops indexes, each of which may stop for
// ever, or be killed so that its last request is executed at any later time, or never. COLLECT.md has the results for
// larger sizes, which -model runs.
//
// The store is a handful of bits. A chunk key is one of two contents with one of four epochs. What a collector condemns
// is any subset of the chunks, whatever refers to them: the protocol must be safe with every mark.

var modelFlag = flag.String("model", "small", "the sizes of the collection protocol's model: small, large or all")

const (
	modelNames    = 2
	modelContents = 2
	modelEpochs   = 4
)

// keySet has a bit for each chunk key: content*modelEpochs + epoch-1.
type keySet uint8

func modelKey(content int, epoch uint8) keySet { return 1 << (content*modelEpochs + int(epoch) - 1) }

// ofContent are all keys of one content.
func ofContent(content int) keySet { return (1<<modelEpochs - 1) << (content * modelEpochs) }

// upTo are all keys of epochs up to e.
func upTo(e uint8) (s keySet) {
	for c := range modelContents {
		s |= (1<<e - 1) << (c * modelEpochs)
	}
	return s
}

// modelIndex is an index object. Epoch 0 says that there is none. Two are the same version if their bytes are the same.
type modelIndex struct {
	epoch     uint8
	refs      keySet
	tombstone bool
	// acked and owner are not in the store: whether a save of these bytes was acknowledged, and whose put it was.
	acked bool
	owner uint8
}

func (x modelIndex) same(y modelIndex) bool {
	return x.epoch == y.epoch && x.refs == y.refs && x.tombstone == y.tombstone
}

// What a process does next. Every step but the first is one request.
const (
	stepDone = iota
	// Savers.
	saverBase  // GET index of some name
	saverState // GET gc/state, and the manifests
	saverHead  // HEAD of a chunk
	saverLate  // GET index of some name, after the state
	saverAgain // GET gc/state, because that index is of a later epoch
	saverPut   // PUT chunk
	saverIndex // PUT index
	saverCheck // GET gc/state
	// Collectors.
	collectState // GET gc/state
	collectMark  // GET indexes, for the mark
	collectList  // LIST chunks, and choose
	collectFence // PUT gc/state
	collectNames // LIST indexes
	collectRead  // GET an index
	collectSweep // PUT gc/state
	collectKill  // DELETE a chunk
	collectIdle  // PUT gc/state
	// Somebody who drops a name.
	dropRead   // GET index
	dropBury   // PUT tombstone
	dropRemove // DELETE tombstone
	// Somebody who puts lost chunks again, and here any that an index refers to.
	repairRead  // GET index
	repairState // GET gc/state, and the manifests
	repairPut   // PUT chunk, under the key that it has
)

var stepNames = []string{
	"done", "GET base", "GET state", "HEAD", "GET dedup base", "GET state again", "PUT chunk", "PUT index",
	"GET state, check", "GET state", "GET index, mark", "LIST chunks, condemn", "PUT state fenced", "LIST indexes",
	"GET index", "PUT state sweeping", "DELETE chunk", "PUT state idle", "GET index, drop", "PUT tombstone",
	"DELETE tombstone", "GET index, repair", "GET state, repair", "PUT chunk again",
}

type modelSaver struct {
	step uint8
	e    uint8  // the epoch that it works in
	need uint8  // contents, a bit each
	todo uint8  // contents that are still to be put
	plan keySet // what its index will refer to
	// from and base are what a base refers to, and its epoch.
	from uint8
	base keySet
	left uint8 // sessions after this one
	// lost says that somebody destroyed its index without having read it.
	lost bool
}

type modelCollector struct {
	step  uint8
	epoch uint8 // as it read gc/state
	set   keySet
	refs  keySet
	todo  uint8 // names to be read
	page  uint8 // the name that is listed next
	// seen are the indexes that the mark has read.
	seen [modelNames]modelIndex
}

type modelDropper struct {
	step, name uint8
	read       modelIndex
}

// modelLate is a request of a process that was killed, to be executed at any time.
type modelLate struct {
	step uint8
	name uint8 // or the epoch of a PUT state
	set  keySet
	x    modelIndex
}

type modelState struct {
	chunks     keySet
	index      [modelNames]modelIndex
	epoch      uint8
	phase      uint8 // 0 idle, 1 fenced, 2 sweeping
	dead       [modelEpochs + 1]keySet
	savers     [3]modelSaver
	collectors [2]modelCollector
	dropper    modelDropper
	late       modelLate
}

// modelConfig is what to search, and which mistake to make.
type modelConfig struct {
	name       string
	savers     int
	sessions   int // of each saver
	collectors int
	dropper    bool
	repairer   bool // who repairs twice; not beside a dropper
	epochs     int  // collections
	late       bool
	// needs are the sets of contents that a saver may need.
	needs []uint8
	// targets are the names that the savers save.
	targets []uint8
	// head lets savers find chunks by HEAD, and not by bases.
	head bool
	// lateBase lets savers read their base after the state, as dedup bases are.
	lateBase bool
	// stateFirst lets savers read the state at the restore as well, and subtract what died until then.
	stateFirst bool
	// realMark condemns only what no index referred to when it was read, and does not read those again that have not
	// changed.
	realMark bool
	// paged lists one name after another.
	paged bool
	// manifests says how many epochs manifests are kept for; 0 for ever.
	manifests int

	// The mistakes.
	naive, noRelist, noCheck, sameKey, trustBase, noSwap, newestOnly, trustOld bool
	plainDelete, plainTombstone, plainRemove                                   bool

	// want is "" if the protocol holds, else what breaks.
	want string
	// states of the whole search, and how large that is: "" or "large".
	states int
	size   string
}

type modelStep struct {
	who, step uint8
	next      modelState
}

// model is one search.
type model struct {
	modelConfig
	seed    maphash.Seed
	visited hashSet
	// buffers are the successors at each depth.
	buffers [][]modelStep
	path    []modelStep
	broken  string
}

// hashSet keeps 64 bits of each state. That two of n states share them has a chance of n*n/2^65: one in a million for
// six million states, and then a state is left out.
type hashSet struct {
	slots []uint64
	count int
}

func (h *hashSet) add(v uint64) bool {
	if v == 0 {
		v = 1
	}
	if h.count*4 >= len(h.slots)*3 {
		old := h.slots
		h.slots = make([]uint64, max(1<<12, 2*len(old)))
		h.count = 0
		for _, o := range old {
			if o != 0 {
				h.add(o)
			}
		}
	}
	mask := uint64(len(h.slots) - 1)
	for i := v & mask; ; i = (i + 1) & mask {
		switch h.slots[i] {
		case 0:
			h.slots[i] = v
			h.count++
			return true
		case v:
			return false
		}
	}
}

// run searches everything and returns how many states there are, and what is broken.
func (m *model) run() (states int, broken string) {
	m.seed = maphash.MakeSeed()
	both := modelKey(0, 1) | modelKey(1, 1)
	s := modelState{chunks: both, epoch: 1}
	s.index[0] = modelIndex{epoch: 1, refs: both, acked: true}
	for i := range m.savers {
		s.savers[i] = m.newSession(m.sessions - 1)
	}
	for i := range m.collectors {
		s.collectors[i].step = collectState
	}
	if m.dropper {
		s.dropper.step = dropRead
	}
	if m.repairer {
		s.dropper.step = repairRead
	}
	m.search(&s, 0)
	return m.visited.count, m.broken
}

func (m *model) newSession(left int) modelSaver {
	first := uint8(saverBase)
	if m.lateBase || m.head {
		first = saverState
	}
	return modelSaver{step: first, left: uint8(left)}
}

func (m *model) search(s *modelState, depth int) {
	if depth == len(m.buffers) {
		m.buffers = append(m.buffers, nil)
	}
	list := m.steps(s, m.buffers[depth][:0])
	m.buffers[depth] = list
	for i := range list {
		if !m.visited.add(maphash.Comparable(m.seed, list[i].next)) {
			continue
		}
		m.path = append(m.path[:depth], list[i])
		if m.broken = m.check(&list[i].next); m.broken != "" {
			return
		}
		if m.search(&list[i].next, depth+1); m.broken != "" {
			return
		}
	}
}

// check says which promise is broken in s.
func (m *model) check(s *modelState) string {
	for i := range m.savers {
		if s.savers[i].step == stepDone && s.savers[i].lost {
			return "dropped"
		}
	}
	for n := range s.index {
		x := s.index[n]
		missing := x.refs &^ s.chunks
		if missing == 0 {
			continue
		}
		if x.acked {
			return "lost"
		}
		if m.want != "" {
			continue // a mistake has to lose what was acknowledged
		}
		for k := keySet(1); k != 0; k <<= 1 {
			if missing&k == 0 {
				continue
			}
			known := false
			for e := x.epoch + 1; e <= s.epoch; e++ {
				known = known || s.dead[e]&k != 0 && (e < s.epoch || s.phase != 1)
			}
			if !known {
				return "not recognisable"
			}
		}
	}
	return ""
}

// steps appends all states that one request leads to.
func (m *model) steps(s *modelState, out []modelStep) []modelStep {
	for i := range m.savers {
		out = m.saverSteps(s, i, out)
	}
	for i := range m.collectors {
		out = m.collectorSteps(s, i, out)
	}
	if s.dropper.step != stepDone {
		out = m.dropperSteps(s, out)
	}
	if s.late.step != stepDone {
		n := *s
		n.late = modelLate{}
		m.execute(&n, &s.late)
		out = append(out, modelStep{9, s.late.step, n})
	}
	return out
}

// deadSince are the keys that died in the epochs after b up to e, and whether that can be known.
func (m *model) deadSince(s *modelState, b, e uint8) (dead keySet, ok bool) {
	for x := b + 1; x <= e; x++ {
		if m.manifests > 0 && int(x)+m.manifests <= int(s.epoch) {
			if !m.trustOld {
				return 0, false
			}
			continue
		}
		if m.newestOnly && x != s.epoch {
			continue
		}
		dead |= s.dead[x]
	}
	return dead, true
}

// newKey is the key under which a saver puts a content.
func (m *model) newKey(content int, e uint8) keySet {
	if m.sameKey || m.naive {
		e = 1
	}
	return modelKey(content, e)
}

// choose sets what the index will refer to, when the saver knows its epoch and its base.
func (m *model) choose(s *modelState, v *modelSaver) {
	usable := v.base
	if !m.trustBase {
		dead, ok := m.deadSince(s, v.from, v.e)
		if usable &^= dead; !ok {
			usable = 0
		}
	}
	v.plan, v.todo = 0, 0
	for c := range modelContents {
		if v.need&(1<<c) == 0 {
			continue
		}
		if k := usable & ofContent(c); k != 0 {
			v.plan |= k
		} else {
			v.plan |= m.newKey(c, v.e)
			v.todo |= 1 << c
		}
	}
	v.from, v.base = 0, 0
	v.step = saverIndex
	if v.todo != 0 {
		v.step = saverPut
	}
}

func (m *model) saverSteps(s *modelState, i int, out []modelStep) []modelStep {
	v := &s.savers[i]
	who := uint8(i)
	target := m.targets[i]
	if m.late && s.late.step == stepDone && v.left > 0 && (v.step == saverPut || v.step == saverIndex) {
		// It is killed, and another session begins.
		n := *s
		n.late = modelLate{step: v.step, name: target}
		if v.step == saverPut {
			n.late.set = m.newKey(bits.TrailingZeros8(v.todo), v.e)
		} else {
			n.late.x = modelIndex{epoch: v.e, refs: v.plan, owner: who + 1}
		}
		n.savers[i] = m.newSession(int(v.left) - 1)
		out = append(out, modelStep{who, v.step, n})
	}
	switch v.step {
	case saverBase:
		for _, need := range m.needs {
			for b := range modelNames {
				n := *s
				n.savers[i].need = need
				n.savers[i].base, n.savers[i].from = s.index[b].refs, s.index[b].epoch
				n.savers[i].step = saverState
				if m.stateFirst {
					// What the notes have: state and base together, and the manifests until then.
					n.savers[i].from = max(n.savers[i].from, s.epoch)
					dead, ok := m.deadSince(s, s.index[b].epoch, s.epoch)
					if n.savers[i].base &^= dead; !ok {
						n.savers[i].base = 0
					}
				}
				if n.savers[i].base == 0 {
					n.savers[i].from = 0
				}
				out = append(out, modelStep{who, v.step, n})
			}
		}
	case saverState:
		switch {
		case m.head || m.lateBase:
			for _, need := range m.needs {
				n := *s
				n.savers[i].e, n.savers[i].need = s.epoch, need
				n.savers[i].step = saverHead
				if m.lateBase {
					n.savers[i].step = saverLate
				} else {
					n.savers[i].todo = need // contents to be asked for
				}
				out = append(out, modelStep{who, v.step, n})
			}
		default:
			n := *s
			n.savers[i].e = s.epoch
			m.choose(s, &n.savers[i])
			out = append(out, modelStep{who, v.step, n})
		}
	case saverHead:
		c := bits.TrailingZeros8(v.todo)
		for g := uint8(0); g <= modelEpochs; g++ { // 0: it does not ask, or there is none
			n := *s
			w := &n.savers[i]
			w.todo &^= 1 << c
			if g > 0 {
				k := modelKey(c, g)
				if s.chunks&k == 0 || g > v.e && !m.naive {
					continue
				}
				// The usable rule: in no manifest after its own epoch. Those are of the state as it was read.
				dead, _ := m.deadUntil(s, g, v.e)
				if !m.naive && dead&k != 0 {
					continue
				}
				w.base |= k
			}
			if w.todo == 0 {
				w.from = v.e // all is subtracted already
				m.choose(s, w)
			}
			out = append(out, modelStep{who, v.step, n})
		}
	case saverLate:
		for b := range modelNames {
			n := *s
			w := &n.savers[i]
			w.base, w.from = s.index[b].refs, s.index[b].epoch
			if w.from > w.e {
				w.step = saverAgain
			} else {
				m.choose(s, w)
			}
			out = append(out, modelStep{who, v.step, n})
		}
	case saverAgain:
		n := *s
		n.savers[i].e = s.epoch
		m.choose(s, &n.savers[i])
		out = append(out, modelStep{who, v.step, n})
	case saverPut:
		n := *s
		w := &n.savers[i]
		c := bits.TrailingZeros8(v.todo)
		n.chunks |= m.newKey(c, v.e)
		if w.todo &^= 1 << c; w.todo == 0 {
			w.step = saverIndex
		}
		out = append(out, modelStep{who, v.step, n})
	case saverIndex:
		n := *s
		m.putIndex(&n, target, modelIndex{epoch: v.e, refs: v.plan, owner: who + 1})
		n.savers[i].step = saverCheck
		if m.noCheck || m.naive {
			m.acknowledge(&n, i)
		}
		out = append(out, modelStep{who, v.step, n})
	case saverCheck:
		n := *s
		if s.epoch-1 < v.e {
			m.acknowledge(&n, i)
		} else {
			w := &n.savers[i]
			dead, ok := m.deadSince(s, v.e, s.epoch)
			if !ok {
				dead = 0xff
			}
			w.e = s.epoch
			for c := range modelContents {
				if w.plan&ofContent(c)&dead != 0 {
					w.plan = w.plan&^ofContent(c) | m.newKey(c, w.e)
					w.todo |= 1 << c
				}
			}
			w.step = saverIndex
			if w.todo != 0 {
				w.step = saverPut
			}
		}
		out = append(out, modelStep{who, v.step, n})
	}
	return out
}

// deadUntil is deadSince for a key that was found by HEAD: the manifests are those of the state as the saver read it,
// at epoch e.
func (m *model) deadUntil(s *modelState, g, e uint8) (dead keySet, ok bool) {
	for x := g + 1; x <= e; x++ {
		if !m.newestOnly || x == e {
			dead |= s.dead[x]
		}
	}
	return dead, true
}

func (m *model) putIndex(s *modelState, name uint8, x modelIndex) {
	if old := s.index[name]; old.same(x) {
		x.acked = old.acked
	}
	s.index[name] = x
}

func (m *model) acknowledge(s *modelState, i int) {
	v := &s.savers[i]
	x := &s.index[m.targets[i]]
	if x.same(modelIndex{epoch: v.e, refs: v.plan}) {
		x.acked = true
	}
	lost := v.lost
	if v.left > 0 && !lost {
		*v = m.newSession(int(v.left) - 1)
	} else {
		*v = modelSaver{lost: lost}
	}
}

// execute does what a process asked for before it was killed.
func (m *model) execute(s *modelState, l *modelLate) {
	switch l.step {
	case saverPut:
		s.chunks |= l.set
	case saverIndex:
		m.putIndex(s, l.name, l.x)
	case collectKill:
		s.chunks &^= l.set
	case collectFence, collectSweep, collectIdle:
		m.swap(s, l.step, l.name, l.set)
	}
}

// swap replaces gc/state, if it is still what was read: the epoch, and the phase that step follows.
func (m *model) swap(s *modelState, step, epoch uint8, set keySet) bool {
	want := map[uint8]uint8{collectFence: 0, collectSweep: 1, collectIdle: 2}[step]
	if !m.noSwap && (s.epoch != epoch || s.phase != want) {
		return false
	}
	switch step {
	case collectFence:
		s.epoch, s.phase = epoch+1, 1
		s.dead[epoch+1] = set
	case collectSweep:
		s.epoch, s.phase = epoch, 2
		s.dead[epoch] = set
	case collectIdle:
		s.epoch, s.phase = epoch, 0
	}
	return true
}

func (m *model) collectorSteps(s *modelState, i int, out []modelStep) []modelStep {
	c := &s.collectors[i]
	who := uint8(3 + i)
	if m.late && s.late.step == stepDone {
		switch c.step {
		case collectFence, collectSweep, collectIdle, collectKill:
			n := *s
			n.late = modelLate{step: c.step, name: c.epoch, set: c.set}
			if c.step == collectKill {
				n.late.name, n.late.set = 0, c.set&-c.set
			}
			n.collectors[i] = modelCollector{step: collectState}
			out = append(out, modelStep{who, c.step, n})
		}
	}
	n := *s
	w := &n.collectors[i]
	switch c.step {
	case collectState:
		*w = modelCollector{epoch: s.epoch}
		switch s.phase {
		case 0:
			if int(s.epoch) > m.epochs {
				return out
			}
			w.step = collectList
			if m.realMark || m.naive {
				w.step, w.todo = collectMark, 1<<modelNames-1
			}
		case 1:
			w.step, w.set = collectNames, s.dead[s.epoch]
		case 2:
			w.step, w.set = collectKill, s.dead[s.epoch]
			if w.set == 0 {
				w.step = collectIdle
			}
		}
	case collectMark:
		b := bits.TrailingZeros8(c.todo)
		x := s.index[b]
		w.refs |= x.refs
		w.seen[b] = modelIndex{epoch: x.epoch, refs: x.refs, tombstone: x.tombstone}
		if w.todo &^= 1 << b; w.todo == 0 {
			w.step = collectList
		}
	case collectList:
		all := s.chunks & upTo(c.epoch) &^ c.refs
		for set := all; set != 0; set = (set - 1) & all { // every subset but the empty one
			n := *s
			w := &n.collectors[i]
			w.set, w.refs, w.step = set, 0, collectFence
			if m.naive {
				w.step = collectKill
			}
			if !m.realMark {
				w.seen = [modelNames]modelIndex{}
			}
			out = append(out, modelStep{who, c.step, n})
		}
		return out
	case collectFence:
		if m.swap(&n, c.step, c.epoch, c.set) {
			w.epoch, w.step = c.epoch+1, collectNames
			if m.noRelist {
				w.step = collectSweep
			}
		} else {
			*w = modelCollector{step: collectState}
		}
	case collectNames:
		for b := int(c.page); b < modelNames; b++ {
			if x := s.index[b]; x.epoch > 0 && !(m.realMark && c.seen[b].epoch > 0 && x.same(c.seen[b])) {
				w.todo |= 1 << b
			}
			if m.paged && b+1 < modelNames {
				w.page = uint8(b + 1)
				return append(out, modelStep{who, c.step, n})
			}
		}
		w.page, w.seen = 0, [modelNames]modelIndex{}
		w.step = collectRead
		if w.todo == 0 {
			w.step = collectSweep
		}
	case collectRead:
		b := bits.TrailingZeros8(c.todo)
		w.set &^= s.index[b].refs
		if w.todo &^= 1 << b; w.todo == 0 {
			w.step = collectSweep
		}
	case collectSweep:
		if m.swap(&n, c.step, c.epoch, c.set) {
			if w.step = collectKill; w.set == 0 {
				w.step = collectIdle
			}
		} else {
			*w = modelCollector{step: collectState}
		}
	case collectKill:
		n.chunks &^= c.set & -c.set
		if w.set &^= c.set & -c.set; w.set == 0 {
			w.step = collectIdle
			if m.naive {
				*w = modelCollector{}
			}
		}
	case collectIdle:
		m.swap(&n, c.step, c.epoch, 0)
		*w = modelCollector{step: collectState}
	default:
		return out
	}
	return append(out, modelStep{who, c.step, n})
}

func (m *model) dropperSteps(s *modelState, out []modelStep) []modelStep {
	d := &s.dropper
	const who = 5
	switch d.step {
	case dropRead:
		for b := range uint8(modelNames) {
			n := *s
			x := s.index[b]
			if x.epoch == 0 || x.tombstone {
				continue
			}
			n.dropper = modelDropper{step: dropBury, name: b, read: modelIndex{epoch: x.epoch, refs: x.refs}}
			out = append(out, modelStep{who, d.step, n})
		}
	case dropBury:
		n := *s
		n.dropper = modelDropper{}
		x := s.index[d.name]
		grave := modelIndex{epoch: d.read.epoch, tombstone: true}
		if !x.same(d.read) {
			if !m.plainDelete && !m.plainTombstone {
				return append(out, modelStep{who, d.step, n})
			}
			m.destroy(&n, x)
		}
		n.index[d.name] = grave
		n.dropper = modelDropper{step: dropRemove, name: d.name, read: grave}
		if m.plainDelete {
			n.index[d.name], n.dropper = modelIndex{}, modelDropper{}
		}
		out = append(out, modelStep{who, d.step, n})
	case dropRemove:
		n := *s
		n.dropper = modelDropper{}
		if x := s.index[d.name]; !x.same(d.read) {
			if !m.plainRemove {
				return append(out, modelStep{who, d.step, n})
			}
			m.destroy(&n, x)
		}
		n.index[d.name] = modelIndex{}
		out = append(out, modelStep{who, d.step, n})
	case repairRead:
		for b := range modelNames {
			n := *s
			x := s.index[b]
			n.dropper = modelDropper{step: repairState, name: d.name, read: modelIndex{epoch: x.epoch, refs: x.refs}}
			out = append(out, modelStep{who, d.step, n})
		}
	case repairState:
		n := *s
		if dead, ok := m.deadSince(s, d.read.epoch, s.epoch); ok && d.read.refs&dead == 0 && d.read.refs != 0 {
			n.dropper.step = repairPut
		} else {
			n.dropper = modelDropper{}
		}
		out = append(out, modelStep{who, d.step, n})
	case repairPut:
		for k := keySet(1); k != 0; k <<= 1 {
			if d.read.refs&k == 0 {
				continue
			}
			n := *s
			n.chunks |= k
			n.dropper = modelDropper{}
			if d.name == 0 { // it counts the repairs
				n.dropper = modelDropper{step: repairRead, name: 1}
			}
			out = append(out, modelStep{who, d.step, n})
		}
	}
	return out
}

// destroy notes that an index goes that whoever drops it has not read.
func (m *model) destroy(s *modelState, x modelIndex) {
	if x.acked {
		s.savers[0].step, s.savers[0].lost = stepDone, true
		return
	}
	if i := int(x.owner) - 1; i >= 0 && s.savers[i].step == saverCheck {
		s.savers[i].lost = true // if that save is acknowledged now, it was lost
	}
}

// trace tells how it came to the state that is broken.
func (m *model) trace() string {
	var b strings.Builder
	for _, p := range m.path {
		s := &p.next
		fmt.Fprintf(&b, "%-11s %-20s chunks %08b index", []string{
			"saver 0", "saver 1", "saver 2", "collector 0", "collector 1", "dropper", "", "", "", "late",
		}[p.who], stepNames[p.step], s.chunks)
		for _, x := range s.index {
			fmt.Fprintf(&b, " %d:%08b", x.epoch, x.refs)
			if x.acked {
				b.WriteString("!")
			}
		}
		fmt.Fprintf(&b, " state %d.%d dead %08b\n", s.epoch, s.phase, s.dead[2:])
	}
	return b.String()
}

var (
	anyNeed  = []uint8{1, 2, 3}
	allNeeds = []uint8{3}
)

// modelConfigs are what is searched. The number of states of a whole search is fixed, so that it is seen when a change
// of the model leaves something out.
var modelConfigs = []modelConfig{
	// The mistakes, each of which loses an acknowledged save.
	{
		name: "naive list and delete, dedup by HEAD", naive: true, head: true, savers: 2, collectors: 1, epochs: 1,
		needs: anyNeed, want: "lost",
	},
	{
		name: "no re-list after the fence", noRelist: true, realMark: true, savers: 2, collectors: 1, epochs: 1,
		needs: anyNeed, want: "lost",
	},
	{
		name: "no check after the index is put", noCheck: true, savers: 2, collectors: 1, epochs: 1, needs: anyNeed,
		want: "lost",
	},
	{
		name: "a condemned chunk uploaded again under the same key", sameKey: true, savers: 2, collectors: 1, epochs: 1,
		needs: anyNeed, want: "lost",
	},
	{
		name: "a late base trusted without the manifests since its epoch", trustBase: true, savers: 2, collectors: 1,
		epochs: 1, needs: allNeeds, want: "lost",
	},
	{
		name: "gc/state written without compare-and-swap", noSwap: true, savers: 1, sessions: 2, collectors: 2, epochs: 1,
		needs: anyNeed, want: "lost",
	},
	{
		name: "HEAD dedup, only the newest manifest subtracted", newestOnly: true, head: true, savers: 2,
		collectors: 1, epochs: 2, late: true, needs: []uint8{1}, want: "lost",
	},
	{
		name: "a base trusted that is older than the manifests", trustOld: true, manifests: 1, savers: 2, collectors: 1,
		epochs: 2, needs: allNeeds, want: "lost",
	},
	{
		name: "an index dropped by a plain DELETE", plainDelete: true, dropper: true, savers: 1, collectors: 1, epochs: 1,
		needs: allNeeds, want: "dropped",
	},
	{
		name: "an index dropped by an unconditional tombstone", plainTombstone: true, dropper: true, savers: 1, collectors: 1,
		epochs: 1, needs: allNeeds, want: "dropped",
	},
	{
		name: "a tombstone removed by a plain DELETE", plainRemove: true, dropper: true, savers: 1, collectors: 1, epochs: 1,
		needs: allNeeds, want: "dropped",
	},

	// The protocol as it is.
	{
		name: "2 savers, 1 collector, killed, 1 epoch", savers: 2, collectors: 1, epochs: 1, needs: anyNeed, late: true,
		states: 401_091,
	},
	{
		name: "1 saver of 2 sessions, 1 collector, both killed, 1 epoch", savers: 1, sessions: 2, collectors: 1, epochs: 1,
		late: true, needs: anyNeed, states: 124_884,
	},
	{name: "2 savers, 2 collectors, 1 epoch", savers: 2, collectors: 2, epochs: 1, needs: allNeeds, states: 119_577},
	{name: "2 savers, 1 collector, 2 epochs", savers: 2, collectors: 1, epochs: 2, needs: allNeeds, states: 314_123},
	{name: "3 savers, 1 collector, 1 epoch", savers: 3, collectors: 1, epochs: 1, needs: allNeeds, states: 169_236},
	{
		name: "HEAD dedup, 2 savers, 2 collectors, 1 epoch", savers: 2, collectors: 2, epochs: 1, needs: allNeeds, head: true,
		states: 180_499,
	},
	{
		name: "dedup bases, 2 savers, 2 collectors, 1 epoch", savers: 2, collectors: 2, epochs: 1, needs: allNeeds,
		lateBase: true, states: 118_470,
	},
	{
		name: "a mark that reads, 2 savers, 2 collectors, 1 epoch", savers: 2, collectors: 2, epochs: 1, needs: anyNeed,
		realMark: true, states: 128_601,
	},
	{
		name: "listings in pages, 2 savers, 2 collectors, 1 epoch", savers: 2, collectors: 2, epochs: 1, needs: anyNeed,
		realMark: true, paged: true, states: 166_523,
	},
	{
		name: "listings in pages, a dropper, 2 savers, 1 collector, 1 epoch", savers: 2, collectors: 1, epochs: 1,
		needs: allNeeds, paged: true, dropper: true, states: 67_675,
	},
	{
		name: "a dropper, 2 savers, 1 collector, 1 epoch", savers: 2, collectors: 1, epochs: 1, needs: allNeeds,
		dropper: true,
		states:  60_166,
	},
	{
		name: "repairs, 2 savers, 1 collector, 1 epoch", savers: 2, collectors: 1, epochs: 1, needs: allNeeds,
		repairer: true, states: 78_605,
	},
	{
		name: "repairs, HEAD dedup, 1 saver, 1 collector, 2 epochs", savers: 1, sessions: 2, collectors: 1, epochs: 2,
		needs: allNeeds, head: true, repairer: true, states: 569_745,
	},
	{
		name: "manifests kept for 1 epoch, 2 savers, 1 collector, 2 epochs", savers: 2, collectors: 1, epochs: 2,
		needs: allNeeds, manifests: 1, states: 308_840,
	},
	{
		name: "state read at the restore, too, 2 savers, 1 collector, 1 epoch", savers: 2, collectors: 1, epochs: 1,
		needs: anyNeed, stateFirst: true, states: 47_545,
	},

	{
		size: "large", name: "2 savers, 1 collector, 3 epochs", savers: 2, collectors: 1, epochs: 3, needs: allNeeds,
		states: 23_008_694,
	},
	{
		size: "large", name: "2 savers, 2 collectors, 2 epochs", savers: 2, collectors: 2, epochs: 2, needs: allNeeds,
		states: 20_557_507,
	},
	{
		size: "large", name: "3 savers, 2 collectors, 1 epoch", savers: 3, collectors: 2, epochs: 1, needs: allNeeds,
		states: 3_138_864,
	},
	{
		size: "large", name: "3 savers, 1 collector, 2 epochs", savers: 3, collectors: 1, epochs: 2, needs: allNeeds,
		states: 26_923_543,
	},
	{
		size: "large", name: "2 savers, 1 collector, killed, 2 epochs", savers: 2, collectors: 1, epochs: 2, needs: allNeeds,
		late: true, states: 8_631_032,
	},
	{
		size: "large", name: "HEAD dedup, 2 savers, 2 collectors, 2 epochs", savers: 2, collectors: 2, epochs: 2,
		needs: allNeeds, head: true, states: 26_898_632,
	},
	{
		size: "large", name: "HEAD dedup, 3 savers, 2 collectors, 1 epoch", savers: 3, collectors: 2, epochs: 1,
		needs: allNeeds, head: true, states: 6_020_369,
	},
	{
		size: "large", name: "dedup bases, 2 savers, 2 collectors, 2 epochs", savers: 2, collectors: 2, epochs: 2,
		needs: allNeeds, lateBase: true, states: 20_803_458,
	},
	{
		size: "large", name: "a mark that reads, 2 savers, 2 collectors, 2 epochs", savers: 2, collectors: 2, epochs: 2,
		needs: anyNeed, realMark: true, states: 2_488_178,
	},
	{
		size: "large", name: "a dropper, 2 savers, 2 collectors, 1 epoch, killed", savers: 2, collectors: 2, epochs: 1,
		needs: allNeeds, dropper: true, late: true, states: 11_340_410,
	},
	{
		size: "large", name: "listings in pages, 2 savers, 2 collectors, 2 epochs", savers: 2, collectors: 2, epochs: 2,
		needs: anyNeed, realMark: true, paged: true, states: 3_514_010,
	},
	{
		size: "large", name: "repairs, 2 savers, 2 collectors, 1 epoch", savers: 2, collectors: 2, epochs: 1,
		needs: allNeeds, repairer: true, states: 1_395_681,
	},
	{
		size: "large", name: "repairs, 2 savers, 1 collector, 2 epochs", savers: 2, collectors: 1, epochs: 2,
		needs: allNeeds, repairer: true, states: 5_656_905,
	},
	{
		size: "large", name: "repairs, HEAD dedup, 2 savers, 1 collector, 1 epoch, killed", savers: 2, collectors: 1,
		epochs: 1, needs: allNeeds, head: true, late: true, repairer: true, states: 1_045_436,
	},
	{
		size: "large", name: "manifests kept for 1 epoch, 2 savers, 1 collector, 3 epochs", savers: 2, collectors: 1,
		epochs: 3, needs: allNeeds, manifests: 1, states: 22_599_798,
	},
	{
		size: "large", name: "state read at the restore, too, 2 savers, 2 collectors, 2 epochs", savers: 2, collectors: 2,
		epochs: 2, needs: allNeeds, stateFirst: true, states: 21_661_321,
	},
}

// TestModelIsDocumented: COLLECT.md has what was searched.
func TestModelIsDocumented(t *testing.T) {
	data, err := os.ReadFile("COLLECT.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range modelConfigs {
		n := fmt.Sprintf("| %d |", c.states)
		if c.want != "" {
			n = "| " + c.name + " |"
		}
		if !strings.Contains(strings.NewReplacer(",", "", "`", "").Replace(string(data)), strings.ReplaceAll(n, ",", "")) {
			t.Errorf("COLLECT.md does not have %s: %d", c.name, c.states)
		}
	}
}

func TestModel(t *testing.T) {
	for _, c := range modelConfigs {
		t.Run(c.name, func(t *testing.T) {
			if *modelFlag != "all" && *modelFlag != cmp.Or(c.size, "small") {
				t.Skip("another size: see -model")
			}
			c.sessions = max(1, c.sessions)
			if c.targets == nil {
				c.targets = []uint8{0, 1, 0}
			}
			m := &model{modelConfig: c}
			start := time.Now()
			states, broken := m.run()
			t.Logf("%d states in %v: %q", states, time.Since(start).Round(time.Millisecond), broken)
			if broken != c.want {
				t.Errorf("it is %q, want %q\n%s", broken, c.want, m.trace())
			} else if c.want == "" && states != c.states {
				t.Errorf("%d states, and it were %d", states, c.states)
			}
		})
	}
}
