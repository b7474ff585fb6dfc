package transfer

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"nbc/chunk"
)

// state is what a build keeps on disk, outside the source tree: the receipt, and beside it a lock and a journal.
type state struct {
	path string
	lock *os.File
}

// DefaultState returns the file of the receipt of the tree root: in the user's state directory, under a name made from
// the tree's absolute path. Where there is no such directory and none can be made, as in a sandbox without a home, it
// is in a directory of the user's own below the temporary directory.
func DefaultState(root string) (string, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("finding the source tree: %w", err)
	}
	sum := chunk.Sum([]byte(abs))
	name := hex.EncodeToString(sum[:12]) + ".receipt"
	if home := stateHome(); home != "" {
		dir := filepath.Join(home, "nbc")
		if err := os.MkdirAll(dir, 0o700); err == nil {
			return filepath.Join(dir, name), nil
		}
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("nbc-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("making a directory for the receipt: %w", err)
	}
	// The temporary directory belongs to everybody: a directory that somebody else has put there is not ours to trust.
	fi, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("making a directory for the receipt: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || fi.Mode().Perm() != 0o700 || !ok || int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("making a directory for the receipt: %s is not a directory that only you can write to", dir)
	}
	return filepath.Join(dir, name), nil
}

func stateHome() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state")
	}
	return ""
}

// openState takes the lock. The lock file stays when it is given free: removing it would let two processes hold locks
// on two files of the same name.
func openState(path string) (*state, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making a directory for the receipt: %w", err)
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the user names the file
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = errors.Join(err, f.Close())
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (lock %s)", ErrBusy, path+".lock")
		}
		return nil, fmt.Errorf("locking %s: %w", path+".lock", err)
	}
	return &state{path: path, lock: f}, nil
}

func (s *state) close() error { return s.lock.Close() }

// journal says what a restore that was killed has left in the tree.
type journal struct {
	Version int `json:"version"`
	// Work are the absolute paths of work directories: staged files, and old ones moved aside. From the moment a restore
	// has moved the first old directory until it has placed the last new one, the build would find nothing or only
	// a part of what it needs, so all of it can go.
	Work []string `json:"work"`
	// Filling are the absolute paths of cache directories that cannot be renamed and are emptied and filled one child
	// after another. What they hold meanwhile is not a whole tree: it goes as well.
	Filling []string `json:"filling,omitempty"`
}

func (s *state) journalPath() string { return s.path + ".journal" }

// writeJournal puts j in place before anything that it speaks of is done.
func (s *state) writeJournal(j journal) error {
	j.Version = 1
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return replaceFile(s.journalPath(), data)
}

func (s *state) removeJournal() error {
	err := os.Remove(s.journalPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// recover cleans up what the journal of a killed restore names. Without a journal there is nothing to do.
func (s *state) recover() (cleaned bool, err error) {
	data, err := os.ReadFile(s.journalPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the journal of an earlier restore: %w", err)
	}
	var j journal
	if err := json.Unmarshal(data, &j); err != nil || j.Version != 1 {
		// It is put in place by a rename, so this is none of ours; it cannot be followed, and must not block.
		return false, errors.Join(fmt.Errorf("journal %s cannot be read", s.journalPath()), s.removeJournal())
	}
	for _, dir := range j.Filling {
		if err := emptyDir(dir); err != nil {
			return false, fmt.Errorf("cleaning up after an earlier restore: %w", err)
		}
	}
	for _, dir := range j.Work {
		if err := removeTree(dir); err != nil {
			return false, fmt.Errorf("cleaning up after an earlier restore: %w", err)
		}
	}
	return true, s.removeJournal()
}

// removeTree removes dir and all below it, read-only directories too. That it is absent is not an error.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	// A user who is not root cannot remove from a directory without write permission.
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			if fi, e := d.Info(); e == nil && fi.Mode().Perm()&0o700 != 0o700 {
				if e := os.Chmod(path, 0o700); e != nil { //nolint:gosec // a directory needs x
					return e
				}
				if err != nil {
					return nil // WalkDir could not read it before; RemoveAll can now
				}
			}
		}
		return nil
	})
	if err2 := os.RemoveAll(dir); err2 != nil {
		return errors.Join(err2, err)
	}
	return nil
}

// emptyDir removes what is in dir, which itself stays.
func emptyDir(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile puts data at path by way of a temporary file, so that a reader finds the old bytes or the new ones.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
