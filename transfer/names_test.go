package transfer_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbc/transfer"
	"nbc/transfer/store/storetest"
)

// A source belongs to the user whatever its name begins with: only the names that nbc itself uses are not looked at.
func TestSourcesWithNamesLikeNbcsOwn(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("build/out", "made of one")
	write(".nbc-flags", "one")
	cache := &transfer.Cache{Store: storetest.Memory()}
	tree := transfer.Tree{Dirs: []string{"build"}}
	b, err := cache.Open(root, filepath.Join(t.TempDir(), "receipt"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if _, err := b.Save(context.Background(), transfer.SaveOptions{Name: "n", Tree: tree}); err != nil {
		t.Fatal(err)
	}
	write(".nbc-flags", "two")
	rep, err := b.Restore(context.Background(), transfer.RestoreOptions{Name: "n", Tree: tree})
	if err != nil || !rep.Hit || rep.Sources.Changed != 1 {
		t.Errorf("restore: %v, hit %v, %d sources changed; want 1", err, rep.Hit, rep.Sources.Changed)
	}
}

// A link has a time of its own, which make -L and whatever uses lstat look at.
func TestLinksKeepTheirTimes(t *testing.T) {
	root := t.TempDir()
	link := filepath.Join(root, "build", "latest")
	if err := os.Mkdir(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	want := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	ts := []unix.Timespec{unix.NsecToTimespec(want.UnixNano()), unix.NsecToTimespec(want.UnixNano())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, link, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	cache := &transfer.Cache{Store: storetest.Memory()}
	tree := transfer.Tree{Dirs: []string{"build"}}
	b, err := cache.Open(root, filepath.Join(t.TempDir(), "receipt"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if _, err := b.Save(context.Background(), transfer.SaveOptions{Name: "n", Tree: tree}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(link)); err != nil {
		t.Fatal(err)
	}
	if rep, err := b.Restore(context.Background(), transfer.RestoreOptions{Name: "n", Tree: tree}); err != nil || !rep.Hit {
		t.Fatalf("restore: %v, %+v", err, rep)
	}
	fi, err := os.Lstat(link)
	if err != nil || !fi.ModTime().Equal(want) {
		t.Errorf("the link is of %v, %v; want %v", fi.ModTime(), err, want)
	}
}
