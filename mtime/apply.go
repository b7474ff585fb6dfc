package mtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nbc/index"
)

// Apply sets the times of all sources, those of directories last; now, in nanoseconds since 1970, is that of a [Probe].
//
// A source that is no longer as the walk, or the last call on this plan, left it gets now, whatever was planned, and
// [Plan.Changed] names it. One that has vanished is left out. What already has its recorded time is not touched; what
// gets the present is, always. After an error some times are set and others are not: see [Plan.Undo].
func (p *Plan) Apply(ctx context.Context, root string, now int64) error {
	if err := p.each(ctx, root, filesOf, applying(root, now, false)); err != nil {
		return err
	}
	return p.ApplyDirs(ctx, root, now)
}

// ApplyDirs sets the times of directories as Apply does. To be called again after files were made, moved or removed in
// them. That gives a directory another time, so one is known by its inode alone.
func (p *Plan) ApplyDirs(ctx context.Context, root string, now int64) error {
	return p.each(ctx, root, dirsOf, applying(root, now, false))
}

// TouchAll gives now to all sources: so every artifact that a build finds before the next Apply is out of date.
func (p *Plan) TouchAll(ctx context.Context, root string, now int64) error {
	if err := p.each(ctx, root, filesOf, applying(root, now, true)); err != nil {
		return err
	}
	return p.each(ctx, root, dirsOf, applying(root, now, true))
}

// Changed returns the paths of the files and links that something else has changed, replaced or removed between the
// walk and the last call on this plan, sorted. Their hashes are not those of what a build will read.
func (p *Plan) Changed() []string {
	var all []string
	for _, d := range p.folders {
		for _, s := range d.files {
			if s.changed {
				all = append(append(all, s.path), s.others...)
			}
		}
	}
	slices.Sort(all)
	return all
}

// Undo gives every source back the time that it had in the walk: files and links whose time was set here, and all
// directories. What something else has changed since the walk keeps the time it has, for with the old one a build would
// take it for unchanged. It goes on after an error, and returns all of them.
func (p *Plan) Undo(root string) error {
	var mu sync.Mutex
	var errs []error
	undo := func(dir *os.File, s *setting) error {
		if err := s.undo(dir); err != nil {
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		}
		return nil
	}
	for _, which := range []func(*folder) []*setting{filesOf, dirsOf} {
		// each stops at the error of a directory that cannot be opened: then the others are tried one by one.
		if p.each(context.Background(), root, which, undo) == nil {
			continue
		}
		for _, d := range p.folders {
			one := Plan{folders: []*folder{d}}
			errs = append(errs, one.each(context.Background(), root, which, undo))
		}
	}
	return errors.Join(errs...)
}

func filesOf(d *folder) []*setting { return d.files }
func dirsOf(d *folder) []*setting  { return d.dirs }

// each calls do for settings, in parallel but for those of one folder, with the folder open.
func (p *Plan) each(ctx context.Context, root string, which func(*folder) []*setting,
	do func(dir *os.File, s *setting) error,
) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, d := range p.folders {
		settings := which(d)
		if len(settings) == 0 {
			continue
		}
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			dir, err := index.OpenDir(root, d.path, d.stat)
			if gone(err) {
				for _, s := range settings {
					s.changed = true
				}
				return nil
			}
			if err != nil {
				return fmt.Errorf("opening source directory %q: %w", d.path, cause(err))
			}
			defer func() { _ = dir.Close() }()
			for _, s := range settings {
				if err := groupCtx.Err(); err != nil {
					return fmt.Errorf("setting times: %w", err)
				}
				if err := do(dir, s); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("setting times: %w", err)
	}
	return nil
}

// applying returns what each does to set times; all says that every one is touched.
func applying(root string, now int64, all bool) func(dir *os.File, s *setting) error {
	return func(dir *os.File, s *setting) error {
		_, name := splitPath(s.path)
		st, err := index.LstatAt(dir, name)
		switch {
		case gone(err):
			s.changed = true
		case err != nil:
			return fmt.Errorf("looking at source %q: %w", s.path, cause(err))
		default:
			if !s.as(st) {
				s.changed = true
			}
			if err := s.apply(dir, name, st, now, all); err != nil {
				return err
			}
		}
		if !s.changed {
			return nil
		}
		// The name may have been taken from an inode that the others still have.
		for _, other := range s.others {
			if err := touchOther(root, other, now); err != nil {
				return err
			}
		}
		return nil
	}
}

// as reports whether st is what the source was when it was last looked at.
func (s *setting) as(st index.Stat) bool {
	if s.dir {
		return st.SameFile(s.seen)
	}
	return st == s.seen
}

// apply sets the time of name in dir, which is as st says.
func (s *setting) apply(dir *os.File, name string, st index.Stat, now int64, all bool) error {
	touch := all || s.touch || s.changed
	to := s.mtime
	if touch {
		to = now
	} else if st.MTime == to {
		return nil
	}
	if err := setTime(dir, name, to, touch); err != nil {
		if gone(err) {
			s.changed = true
			return nil
		}
		return fmt.Errorf("setting the time of source %q: %w", s.path, err)
	}
	s.set = true
	st, err := index.LstatAt(dir, name)
	if gone(err) {
		s.changed = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at source %q: %w", s.path, cause(err))
	}
	if !touch && st.MTime > to {
		// Written at this very moment, so it has the present as it is. (Earlier than asked for it may be: not every
		// file system keeps nanoseconds.)
		s.changed = true
	}
	s.seen = st
	return nil
}

// touchOther gives now to one more name of a source that has changed under its first one.
func touchOther(root, path string, now int64) error {
	parent, name := splitPath(path)
	dir, err := index.OpenDir(root, parent, index.Stat{})
	if err == nil {
		defer func() { _ = dir.Close() }()
		err = setTime(dir, name, now, true)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("setting the time of source %q: %w", path, cause(err))
	}
	return nil
}

// undo gives the source its time in the walk.
func (s *setting) undo(dir *os.File) error {
	if !s.dir && (!s.set || s.changed) {
		return nil
	}
	_, name := splitPath(s.path)
	st, err := index.LstatAt(dir, name)
	if err == nil {
		if !s.as(st) || st.MTime == s.was.MTime {
			return nil
		}
		err = setTime(dir, name, s.was.MTime, false)
	}
	if err == nil {
		s.seen, err = index.LstatAt(dir, name)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("setting back the time of source %q: %w", s.path, cause(err))
	}
	return nil
}

// setTime sets the modification time of name in dir, of a link that of the link itself. If present is set, to may be
// replaced by the kernel's own present, which needs no more than the permission to write the file.
func setTime(dir *os.File, name string, to int64, present bool) error {
	set := func(ts []unix.Timespec) error {
		for {
			err := unix.UtimesNanoAt(int(dir.Fd()), name, ts, unix.AT_SYMLINK_NOFOLLOW)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	err := set([]unix.Timespec{{Nsec: utimeOmit}, unix.NsecToTimespec(to)})
	if errors.Is(err, unix.EPERM) && present {
		err = set([]unix.Timespec{{Nsec: utimeNow}, {Nsec: utimeNow}})
	}
	if errors.Is(err, fs.ErrPermission) {
		if present {
			return fmt.Errorf("neither the file's owner nor allowed to write it: %w", err)
		}
		return fmt.Errorf("not the file's owner: %w", err)
	}
	return err
}

// gone reports whether a file is no longer there, or its directory is something else.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ESTALE)
}
