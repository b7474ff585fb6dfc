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
// the tree's absolute path. Where there is no such directory that can be written to and none can be made, as in
// a sandbox without a home, or where it is in the tree and the receipt would be a source, it is in a directory of the
// user's own below the temporary directory.
func DefaultState(root string) (string, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("finding the source tree: %w", err)
	}
	sum := chunk.Sum([]byte(abs))
	name := hex.EncodeToString(sum[:12]) + receiptSuffix
	if home := stateHome(); home != "" {
		dir := filepath.Join(home, "nbc")
		outside := abs == "/" || !within(dir, abs)
		if outside && os.MkdirAll(dir, 0o700) == nil && unix.Access(dir, unix.W_OK|unix.X_OK) == nil {
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

const receiptSuffix = ".receipt"

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
		return nil, local(fmt.Errorf("making a directory for the receipt: %w", err))
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600) // the user names the file
	if err != nil {
		return nil, local(fmt.Errorf("opening the lock: %w", err))
	}
	if err := lockFile(f, lockAlone); err != nil {
		return nil, local(errors.Join(fmt.Errorf("%w (lock %s)", err, path+".lock"), f.Close()))
	}
	return &state{path: path, lock: f}, nil
}

// lockKind is how a file is locked.
type lockKind int

const (
	lockAlone  lockKind = unix.LOCK_EX
	lockShared lockKind = unix.LOCK_SH // beside others of this kind
)

// lockFile takes the lock of an open file or directory without waiting for it. The error is ErrBusy if another process
// has it. It is free again after unlock, and when the process ends in any way.
func lockFile(f *os.File, how lockKind) error {
	for {
		err := unix.Flock(int(f.Fd()), int(how)|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrBusy
		case err != nil:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		return nil
	}
}

// unlock gives the lock of f free, and closes it. Closing alone would not do: a process that is just being started by
// another goroutine has a copy of the descriptor for a moment.
func unlock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_UN)
	if noLocks(err) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

func (s *state) close() error { return unlock(s.lock) }

// journal says what a restore that was killed may have left in the tree.
type journal struct {
	Version int `json:"version"`
	// Work are the absolute paths of work directories: staged files, and old ones that were moved aside. The old ones
	// are not moved back: a build may have run since, and two builds' artifacts are never mixed.
	Work []string `json:"work"`
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

func (s *state) removeJournal() error { return removeFile(s.journalPath()) }

// recover cleans up what killed processes have left in the tree and beside the receipt. Found says what there was, for
// people; that something cannot be removed is part of it, for the next restore may have another way.
func (s *state) recover(tree string) (found string) {
	var errs []error
	for _, p := range []string{s.path, s.journalPath()} {
		errs = append(errs, removeFile(temporary(p)))
	}
	data, err := os.ReadFile(s.journalPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	var j journal
	if err == nil {
		found = "cleaned up after a restore that was killed"
		if err := json.Unmarshal(data, &j); err != nil || j.Version != 1 {
			// It is put in place by a rename, so either a power failure has left it without its bytes, or it is none of ours.
			j, found = journal{}, fmt.Sprintf("journal %s could not be read", s.journalPath())
		}
	}
	for _, dir := range j.Work {
		errs = append(errs, removeDead(dir, true))
	}
	// One that used another receipt has left another journal.
	errs = append(errs, removeDead(filepath.Join(tree, workName), false), sweepClocks(tree))
	if err := errors.Join(errs...); err != nil {
		return fmt.Sprintf("cleaning up after a restore that was killed: %v", err)
	}
	if err := s.removeJournal(); err != nil {
		return fmt.Sprintf("cleaning up after a restore that was killed: %v", err)
	}
	return found
}

// removeTree removes dir and all below it, read-only directories too. That it is absent is not an error.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// A user who is not root cannot remove from a directory without write permission.
	if err2 := os.Chmod(dir, 0o700); err2 != nil { // a directory needs x
		return errors.Join(err, err2)
	}
	root, err2 := os.OpenRoot(dir)
	if err2 != nil {
		return errors.Join(err, err2)
	}
	err2 = errors.Join(openUp(root), root.Close())
	if err3 := os.RemoveAll(dir); err3 != nil {
		return errors.Join(err3, err2)
	}
	return nil
}

// openUp lets the owner write to all directories below dir.
func openUp(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	list, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, e := range list {
		if !e.IsDir() {
			continue
		}
		if err := dir.Chmod(e.Name(), 0o700); err != nil { // as above
			return err
		}
		sub, err := dir.OpenRoot(e.Name())
		if err != nil {
			return err
		}
		if err := errors.Join(openUp(sub), sub.Close()); err != nil {
			return err
		}
	}
	return nil
}

// removeFile removes a file. That it is absent is not an error.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// temporary is the name of the file that becomes path. Whoever holds the lock of the state is the only one to use it,
// and removes what a killed process has left there.
func temporary(path string) string { return path + ".tmp" }

// replaceFile puts data at path by way of a temporary file, so that a reader finds the old bytes or the new ones.
func replaceFile(path string, data []byte) (err error) {
	temp := temporary(path)
	if err := removeFile(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // the user names the file
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeFile(temp))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
