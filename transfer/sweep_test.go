package transfer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestOldReceiptsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	put := func(name string, age time.Duration) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte("x"), 0o600), os.Chtimes(path, now.Add(-age), now.Add(-age))); err != nil {
			t.Fatal(err)
		}
		return path
	}
	there := func(path string) bool {
		t.Helper()
		_, err := os.Lstat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	}
	sweep := func(at time.Time) {
		t.Helper()
		if err := sweepReceipts(dir, at); err != nil {
			t.Fatal(err)
		}
	}
	old, young := put("a.receipt", 31*24*time.Hour), put("b.receipt", 20*24*time.Hour)
	busy, journal := put("c.receipt", 99*24*time.Hour), put("a.receipt.journal", 99*24*time.Hour)
	s, err := openState(busy)
	if err != nil {
		t.Fatal(err)
	}
	sweep(now)
	if there(old) || !there(young) || !there(busy) || !there(journal) {
		t.Fatalf("there: old %v, young %v, of a build at work %v, journal %v", there(old), there(young), there(busy), there(journal))
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	sweep(now.Add(time.Hour)) // too early for another look
	if !there(busy) {
		t.Fatal("it was swept twice a day")
	}
	sweep(now.Add(25 * time.Hour))
	if there(busy) || !there(young) {
		t.Fatalf("a day later: free %v, young %v", there(busy), there(young))
	}
}
