package transfer

import (
	"fmt"
	"path/filepath"
	"testing"

	"nbc/index"
)

// A receipt is read by every save and written by every restore and save.
func BenchmarkReceipt(b *testing.B) {
	r := &receipt{Root: "/r", RootDev: 1, RootIno: 2, BaseData: make([]byte, 700_000)}
	for i := range 10_000 {
		p := fmt.Sprintf("dist/%02x/%064x-d", i*256/10_000, i*0x9e3779b9)
		st := index.Stat{Dev: 25, Ino: uint64(1000 + i), Mode: 0o100644, Links: 1, Size: int64(i), MTime: 1e18 + int64(i), CTime: 1e18}
		r.Files = append(r.Files, receiptFile{Path: p, Stat: st})
		if i%50 == 0 {
			r.Sources = append(r.Sources, index.Source{Path: p, Kind: index.File})
			r.SourceStats = append(r.SourceStats, st)
		}
	}
	path := filepath.Join(b.TempDir(), "receipt")
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := r.write(path); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if readReceipt(path, "/r", index.Stat{Dev: 1, Ino: 2}) == nil {
				b.Fatal("it is not read")
			}
		}
	})
}
