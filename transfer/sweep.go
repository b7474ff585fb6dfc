package transfer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// receiptAge is how old a receipt in the default directory becomes: its tree is gone, or nothing was built in it for
	// so long that reading it once costs nobody anything.
	receiptAge = 30 * 24 * time.Hour
	// sweepEvery is how often old ones are looked for.
	sweepEvery = 24 * time.Hour
	sweptName  = "swept"
)

// sweepReceipts removes receipts of trees in which nothing was built for a long time: each is as large as the index that
// it proves, and where every build has a directory of its own nobody else would ever remove them. Locks, which are
// empty, stay (see openState), and so do journals, which name what is to be cleaned up in a tree.
func sweepReceipts(dir string, now time.Time) error {
	mark := filepath.Join(dir, sweptName)
	if fi, err := os.Lstat(mark); err == nil && now.Sub(fi.ModTime()).Abs() < sweepEvery {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := replaceFile(mark, nil); err != nil {
		return err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if fi, err := e.Info(); err != nil || !strings.HasSuffix(e.Name(), receiptSuffix) || now.Sub(fi.ModTime()) < receiptAge {
			continue
		}
		s, err := openState(path)
		if errors.Is(err, ErrBusy) {
			continue
		}
		if err == nil {
			err = errors.Join(removeReceipt(path), s.close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
