package transfer

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nbc/index"
)

func drawStat(t *rapid.T) index.Stat {
	return index.Stat{
		Dev: rapid.Uint64().Draw(t, "dev"), Ino: rapid.Uint64().Draw(t, "ino"), Mode: rapid.Uint32().Draw(t, "mode"),
		Links: rapid.Uint32().Draw(t, "links"), Size: rapid.Int64().Draw(t, "size"),
		MTime: rapid.Int64().Draw(t, "mtime"), CTime: rapid.Int64().Draw(t, "ctime"),
	}
}

// Paths are bytes: what a file system allows comes back as it was.
func TestReceiptIsReadAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipt")
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })
		texts := rapid.SliceOfN(text, 1, 3)
		r := &receipt{
			Outcome: outcomeHit, Root: "/" + text.Draw(t, "root"), RootDev: 7, RootIno: rapid.Uint64().Draw(t, "ino"),
			Store: text.Draw(t, "store"), Name: text.Draw(t, "name"), Fallbacks: texts.Draw(t, "fallbacks"),
			Tree:   Tree{Dirs: texts.Draw(t, "dirs"), Exclude: texts.Draw(t, "exclude"), IgnoreSources: texts.Draw(t, "ignore")},
			Absent: rapid.Bool().Draw(t, "absent"), Damaged: texts.Draw(t, "damaged"), Restored: text.Draw(t, "restored"),
			Base: text.Draw(t, "base"), BaseStore: text.Draw(t, "basestore"), BaseData: []byte(text.Draw(t, "data") + "x"),
			SourceProbe: rapid.Int64().Draw(t, "p"), Shift: rapid.Int64().Draw(t, "s"), Probe: rapid.Int64().Draw(t, "q"),
		}
		for range rapid.IntRange(1, 4).Draw(t, "sources") {
			s := index.Source{Path: text.Draw(t, "path"), Kind: index.File, MTime: rapid.Int64().Draw(t, "mtime")}
			copy(s.Sum[:], text.Draw(t, "sum"))
			r.Sources = append(r.Sources, s)
			r.SourceStats = append(r.SourceStats, drawStat(t))
			r.Files = append(r.Files, receiptFile{Path: text.Draw(t, "file"), Stat: drawStat(t)})
		}
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
		got := readReceipt(path, r.Root, index.Stat{Dev: r.RootDev, Ino: r.RootIno})
		if !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v\nwant %+v", got, r)
		}
	})
}

// Each bit of a receipt is covered by its digest.
func TestReceiptWithAnyBitWrongIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipt")
	r := &receipt{Root: "/r", RootDev: 1, RootIno: 2, Name: "n", Files: []receiptFile{{Path: "f"}}}
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	st := index.Stat{Dev: 1, Ino: 2}
	if readReceipt(path, "/r", st) == nil {
		t.Fatal("the receipt is not read")
	}
	for n := range 8 * len(data) {
		bad := append([]byte(nil), data...)
		bad[n/8] ^= 1 << (n % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if readReceipt(path, "/r", st) != nil {
			t.Fatalf("bit %d of %d does not count", n, 8*len(data))
		}
	}
}

// Every field of a Stat counts, and the time of the probe.
func TestUntouchedNeedsEveryField(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := receiptFile{Stat: drawStat(t)}
		if f.Stat.CTime == 1<<63-1 {
			return
		}
		if !f.untouched(f.Stat, f.Stat.CTime+1) {
			t.Fatal("the same Stat, before the probe")
		}
		if f.untouched(f.Stat, f.Stat.CTime) || f.untouched(f.Stat, 0) && f.Stat.CTime >= 0 {
			t.Fatal("a racy file")
		}
		now := f.Stat
		field := reflect.ValueOf(&now).Elem().Field(rapid.IntRange(0, 6).Draw(t, "field"))
		if field.CanInt() {
			field.SetInt(field.Int() ^ 1)
		} else {
			field.SetUint(field.Uint() ^ 1)
		}
		if f.untouched(now, 1<<63-1) {
			t.Fatalf("%+v became %+v", f.Stat, now)
		}
	})
	if n := reflect.TypeFor[index.Stat]().NumField(); n != 7 {
		t.Errorf("a Stat has %d fields", n)
	}
}

func TestDefaultStateIsOneForEachTree(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	a, err := DefaultState("/some/tree")
	if err != nil {
		t.Fatal(err)
	}
	b, err := DefaultState("/some/other")
	if err != nil || a == b || !strings.HasSuffix(a, ".receipt") {
		t.Errorf("%s, %s, %v", a, b, err)
	}
	if again, err := DefaultState("/some/./tree/"); err != nil || again != a {
		t.Errorf("%s instead of %s, %v", again, a, err)
	}
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("TMPDIR", t.TempDir())
	tree := t.TempDir()
	for _, home := range []string{tree, filepath.Join(tree, "home")} {
		t.Setenv("HOME", home)
		if c, err := DefaultState(tree); err != nil || !within(c, os.TempDir()) || within(c, tree) {
			t.Errorf("with a home in the tree: %s, %v", c, err)
		}
	}
	if list, err := os.ReadDir(tree); err != nil || len(list) > 0 {
		t.Errorf("something was made in the tree: %v, %v", list, err)
	}
	t.Setenv("HOME", "/proc/nothing")
	t.Setenv("TMPDIR", t.TempDir())
	for range 2 {
		if c, err := DefaultState("/some/tree"); err != nil || !within(c, os.TempDir()) || filepath.Base(c) != filepath.Base(a) {
			t.Errorf("without a home: %s, %v", c, err)
		}
	}
}

// A list that nbc has not written is none, whatever its bytes are, and takes no more memory than those of an index may.
func TestReceiptListsOfAnyBytes(t *testing.T) {
	good := (&receipt{
		Files:   []receiptFile{{Path: "a/b"}, {Path: "a/c"}},
		Sources: []index.Source{{Path: "s", Kind: index.File}}, SourceStats: []index.Stat{{Dev: 1}}, BaseData: []byte("base"),
	}).appendLong(nil)
	if err := new(receipt).readLong(good); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if new(receipt).readLong(good[:n]) == nil {
			t.Errorf("the first %d bytes of %d are a list", n, len(good))
		}
	}
	if new(receipt).readLong(append(good, 0)) == nil {
		t.Error("a byte more is a list")
	}
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "data")
		if rapid.Bool().Draw(t, "mutate") {
			data = append([]byte(nil), good...)
			data[rapid.IntRange(0, len(data)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		_ = new(receipt).readLong(data) // whatever it says, it does not panic
	})
}
