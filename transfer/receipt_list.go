package transfer

import (
	"encoding/binary"
	"errors"
	"strings"

	"nbc/chunk"
	"nbc/index"
)

// A receipt's file holds a CBOR map of what is short, then what is long, and then the BLAKE3 of all that. Every restore
// writes one, and every save reads one and writes another. As a part of the CBOR, the lists of 7,000 files took 23 ms
// to read and 40 to write; now those of 10,000 take 33 and 17 in a process that has just begun, where nearly all is memory
// that is touched for the first time, and 6 and 4 in BenchmarkReceipt.
//
//	long    = files, stats of sources, sources, length of the base's index, that index
//	list    = count, length of all paths, rows           numbers are varints, of Go's encoding/binary
//	file    = path, stat
//	source  = path, kind (and whether it is unknown), mtime as a difference, sum
//	path    = what it shares with the one before it, length of the rest, the rest
//	stat    = dev, ino, mode, links, size, mtime, ctime; dev, ino and times as differences

// appendLong appends what is long.
func (r *receipt) appendLong(data []byte) []byte {
	w := rowWriter{data: data}
	w.begin(len(r.Files), func(i int) string { return r.Files[i].Path })
	for i := range r.Files {
		w.path(r.Files[i].Path)
		w.stat(&r.Files[i].Stat)
	}
	w.begin(len(r.SourceStats), nil)
	for i := range r.SourceStats {
		w.stat(&r.SourceStats[i])
	}
	w.begin(len(r.Sources), func(i int) string { return r.Sources[i].Path })
	for i := range r.Sources {
		w.source(&r.Sources[i])
	}
	w.uint(uint64(len(r.BaseData)))
	return append(w.data, r.BaseData...)
}

// longSize is about how many bytes appendLong appends.
func (r *receipt) longSize() int {
	n := 64 + len(r.BaseData) + 30*len(r.SourceStats)
	for i := range r.Files {
		n += 30 + len(r.Files[i].Path)
	}
	for i := range r.Sources {
		n += 30 + len(r.Sources[i].Path)
	}
	return n
}

// readLong is the inverse of appendLong. BaseData is a part of data then.
func (r *receipt) readLong(data []byte) error {
	w := rowReader{data: data}
	r.Files = make([]receiptFile, w.begin())
	for i := range r.Files {
		w.path()
		w.stat(&r.Files[i].Stat)
	}
	for i, p := range w.paths() {
		r.Files[i].Path = p
	}
	r.SourceStats = make([]index.Stat, w.begin())
	for i := range r.SourceStats {
		w.stat(&r.SourceStats[i])
	}
	r.Sources = make([]index.Source, w.begin())
	for i := range r.Sources {
		w.source(&r.Sources[i])
	}
	for i, p := range w.paths() {
		r.Sources[i].Path = p
	}
	r.BaseData = w.bytes(w.uint())
	if w.bad || len(w.data) > 0 {
		return errors.New("a damaged list")
	}
	if len(r.BaseData) == 0 {
		r.BaseData = nil
	}
	return nil
}

// unknownSource is added to the kind of a source that is unknown.
const unknownSource = 1 << 7

// rowWriter appends lists.
type rowWriter struct {
	data   []byte
	before struct { // the row before
		path  string
		stat  index.Stat
		mtime int64
	}
}

// begin begins a list of rows with these paths; nil if they have none.
func (w *rowWriter) begin(count int, path func(i int) string) {
	w.before.path, w.before.stat, w.before.mtime = "", index.Stat{}, 0
	length := 0
	for i := 0; i < count && path != nil; i++ {
		length += len(path(i))
	}
	w.uint(uint64(count))
	w.uint(uint64(length))
}

func (w *rowWriter) uint(n uint64) { w.data = binary.AppendUvarint(w.data, n) }
func (w *rowWriter) int(n int64)   { w.data = binary.AppendVarint(w.data, n) }

func (w *rowWriter) path(p string) {
	was, n := w.before.path, 0
	for n < len(p) && n < len(was) && p[n] == was[n] {
		n++
	}
	w.before.path = p
	w.uint(uint64(n))
	w.uint(uint64(len(p) - n))
	w.data = append(w.data, p[n:]...)
}

// stat may let a difference wrap around; the sum will wrap back.
func (w *rowWriter) stat(s *index.Stat) {
	was := &w.before.stat
	w.uint(s.Dev - was.Dev)
	w.int(int64(s.Ino - was.Ino)) // the bits are meant
	w.uint(uint64(s.Mode))
	w.uint(uint64(s.Links))
	w.int(s.Size)
	w.int(s.MTime - was.MTime)
	w.int(s.CTime - was.CTime)
	*was = *s
}

func (w *rowWriter) source(s *index.Source) {
	w.path(s.Path)
	kind := uint64(s.Kind)
	if s.Unknown {
		kind |= unknownSource
	}
	w.uint(kind)
	w.int(s.MTime - w.before.mtime)
	w.before.mtime = s.MTime
	w.data = append(w.data, s.Sum[:]...)
}

// rowReader reads what a rowWriter has appended. After something that cannot have been, bad is true and all else zero.
type rowReader struct {
	data  []byte
	bad   bool
	text  strings.Builder // of all paths of the list, which has room for them
	ends  []int           // of each path in text
	stats index.Stat
	mtime int64
}

func (w *rowReader) fail() { w.bad, w.data = true, nil }

// begin reads the beginning of a list, and returns how many rows it has.
func (w *rowReader) begin() int {
	count, length := w.uint(), w.uint()
	w.text, w.ends, w.stats, w.mtime = strings.Builder{}, nil, index.Stat{}, 0
	// Paths share bytes with one another, so that they can be longer than their rows.
	if count > uint64(len(w.data)/shortestRow) || length > index.MaxPathBytes {
		w.fail()
		return 0
	}
	if length > 0 {
		w.ends = make([]int, 0, count)
		w.text.Grow(int(length))
	}
	return int(count)
}

// shortestRow is that of a stat: seven numbers.
const shortestRow = 7

func (w *rowReader) uint() uint64 {
	n, k := binary.Uvarint(w.data)
	if k <= 0 {
		w.fail()
		return 0
	}
	w.data = w.data[k:]
	return n
}

func (w *rowReader) int() int64 {
	n, k := binary.Varint(w.data)
	if k <= 0 {
		w.fail()
		return 0
	}
	w.data = w.data[k:]
	return n
}

func (w *rowReader) bytes(n uint64) []byte {
	if n > uint64(len(w.data)) {
		w.fail()
		return nil
	}
	b := w.data[:n:n]
	w.data = w.data[n:]
	return b
}

// path reads a path, which paths returns after all rows are read.
func (w *rowReader) path() {
	same, rest := w.uint(), w.uint()
	begin, end := 0, w.text.Len()
	if k := len(w.ends); k > 1 {
		begin = w.ends[k-2]
	}
	if free := uint64(w.text.Cap() - end); same > uint64(end-begin) || same > free || rest > free-same {
		w.fail()
		return
	}
	w.text.WriteString(w.text.String()[begin : begin+int(same)])
	w.text.Write(w.bytes(rest))
	w.ends = append(w.ends, w.text.Len())
}

// paths yields the paths of a list, which share one piece of memory.
func (w *rowReader) paths() func(yield func(i int, p string) bool) {
	text, ends := w.text.String(), w.ends
	return func(yield func(int, string) bool) {
		begin := 0
		for i, end := range ends {
			if !yield(i, text[begin:end]) {
				return
			}
			begin = end
		}
	}
}

func (w *rowReader) stat(s *index.Stat) {
	was := &w.stats
	was.Dev += w.uint()
	was.Ino += uint64(w.int())
	was.Mode = uint32(w.uint())
	was.Links = uint32(w.uint())
	was.Size = w.int()
	was.MTime += w.int()
	was.CTime += w.int()
	*s = *was
}

func (w *rowReader) source(s *index.Source) {
	w.path()
	kind := w.uint()
	s.Kind, s.Unknown = index.Kind(kind&^unknownSource), kind&unknownSource != 0
	w.mtime += w.int()
	s.MTime = w.mtime
	copy(s.Sum[:], w.bytes(index.SumSize))
}

// encode returns the bytes of the file.
func (r *receipt) encode() ([]byte, error) {
	r.Version = receiptVersion
	head, err := receiptEnc.Marshal(r)
	if err != nil {
		return nil, err
	}
	data := append(make([]byte, 0, len(head)+r.longSize()+chunk.IDSize), head...)
	data = r.appendLong(data)
	// A digest at the end tells a receipt that a power failure has left without its bytes.
	sum := chunk.Sum(data)
	return append(data, sum[:]...), nil
}

// decodeReceipt is the inverse of encode. What is doubtful is no receipt.
func decodeReceipt(data []byte) *receipt {
	if len(data) < chunk.IDSize {
		return nil
	}
	body := data[:len(data)-chunk.IDSize]
	if chunk.Sum(body) != chunk.ID(data[len(body):]) {
		return nil
	}
	r := new(receipt)
	long, err := receiptDec.UnmarshalFirst(body, r)
	if err != nil || r.Version != receiptVersion || r.readLong(long) != nil {
		return nil
	}
	return r
}
