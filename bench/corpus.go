package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// corpus is a tree that is saved and restored.
type corpus struct {
	Dir   string `json:"-"`
	What  string `json:"what"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

// measureTree counts the regular files below dir, and finds the largest.
func measureTree(dir string) (c corpus, largest string, err error) {
	c.Dir = dir
	var most int64 = -1
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		c.Files++
		c.Bytes += info.Size()
		if info.Size() > most {
			most, largest = info.Size(), path
		}
		return nil
	})
	return c, largest, err
}

// kept calls build with an empty directory for the corpus name, unless an earlier run has kept that.
func (b *bench) kept(name string, build func(dir string) error) (string, error) {
	top := b.keep
	if top == "" {
		top = filepath.Join(b.work, "corpora")
	}
	dir, err := filepath.Abs(filepath.Join(top, name))
	if err != nil || exists(dir) {
		return dir, err
	}
	part := dir + ".part"
	if err := errors.Join(removeAll(part), os.MkdirAll(part, 0o700)); err != nil {
		return "", err
	}
	b.say("making %s", name)
	if err := build(part); err != nil {
		return "", fmt.Errorf("making the corpus %s: %w", name, err)
	}
	return dir, os.Rename(part, dir)
}

// platforms are what the standard library and this module are compiled for, one after another, until the build cache
// has the size that is wanted: some 180 MB and 2,600 files each.
var platforms = []string{
	runtime.GOOS + "/" + runtime.GOARCH, "linux/arm64", "linux/amd64", "darwin/arm64", "linux/riscv64", "linux/ppc64le",
	"linux/s390x", "linux/loong64", "freebsd/amd64", "linux/386", "linux/arm", "darwin/amd64", "linux/mips64le",
}

// goCache makes a Go build cache of at least that size by compiling this module.
func (b *bench) goCache(ctx context.Context, mb, files int) (corpus, error) {
	dir, err := b.kept(fmt.Sprintf("gocache-%d-%d", mb, files), func(dir string) error {
		for i, platform := range platforms {
			if slices.Contains(platforms[:i], platform) {
				continue
			}
			system, arch, _ := strings.Cut(platform, "/")
			env := []string{"GOCACHE=" + dir, "GOOS=" + system, "GOARCH=" + arch, "CGO_ENABLED=0", "GOFLAGS="}
			packages := []string{"nbc/chunk", "nbc/index"}
			if mb > 100 {
				packages = append(packages, "std", "nbc/cmd/nbc")
			}
			if _, err := output(ctx, b.module, env, append([]string{"go", "build"}, packages...)...); err != nil {
				return err
			}
			c, _, err := measureTree(dir)
			if err != nil {
				return err
			}
			b.say("  %s: %d MB, %d files", platform, c.Bytes>>20, c.Files)
			if c.Bytes >= int64(mb)<<20 && c.Files >= files {
				return nil
			}
		}
		return errors.New("no more platforms to compile for")
	})
	if err != nil {
		return corpus{}, err
	}
	c, _, err := measureTree(dir)
	c.What = "Go build cache"
	return c, err
}

// change edits one file in a hundred below dir, and the largest, in place, as a build that compiles and links again
// does: in each megabyte that was begun 64 bytes are others and 16 are new. Which files and which places depends on
// names and sizes alone. It returns how many files it has changed.
func change(dir string) (int, error) {
	_, largest, err := measureTree(dir)
	if err != nil {
		return 0, err
	}
	count := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(filepath.ToSlash(rel))) // never fails
		if h.Sum64()%100 != 0 && path != largest {
			return nil
		}
		count++
		return edit(path, h.Sum64())
	})
	return count, err
}

func edit(path string, seed uint64) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var data []byte
	for part := range slices.Chunk(old, 1<<20) {
		seed = seed*6364136223846793005 + 1442695040888963407
		at := int(seed>>33) % len(part)
		data = append(data, part[:at]...)
		for i := range 10 {
			data = binary.LittleEndian.AppendUint64(data, seed*uint64(i+1))
		}
		data = append(data, part[min(at+64, len(part)):]...)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, fs.ErrPermission) {
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// bigFiles makes a tree of few big files, as an archive and programs are, by joining those of c.
func (b *bench) bigFiles(c corpus) (corpus, error) {
	const size = 110 << 20
	count := int(min(max(c.Bytes/size, 1), 3))
	dir, err := b.kept(fmt.Sprintf("big-%d-%d", c.Bytes, c.Files), func(dir string) error {
		var list []string
		err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				list = append(list, path)
			}
			return err
		})
		for i := range count {
			if err == nil {
				err = join(filepath.Join(dir, fmt.Sprintf("big%d", i)), list[i*len(list)/count:(i+1)*len(list)/count], size)
			}
		}
		return err
	})
	if err != nil {
		return corpus{}, err
	}
	big, _, err := measureTree(dir)
	big.What = "few big files"
	return big, err
}

// join writes the files of list, one after another, until size is reached.
func join(path string, list []string, size int64) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	for sum := int64(0); len(list) > 0 && sum < size && err == nil; list = list[1:] {
		var n int64
		n, err = appendFile(out, list[0])
		sum += n
	}
	return errors.Join(err, out.Close())
}

func appendFile(out io.Writer, path string) (int64, error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, in.Close())
}

// times makes a tree of n copies of c that have no chunk in common, and compress as well as c does: each file of a copy
// has 8 bytes of its own every 16 KB.
func (c corpus) times(n int, dir string) (corpus, error) {
	for i := range n {
		top := filepath.Join(dir, fmt.Sprint(i))
		err := filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(c.Dir, path)
			if err != nil {
				return err
			}
			to := filepath.Join(top, rel)
			switch {
			case d.IsDir():
				return os.MkdirAll(to, 0o700)
			case !d.Type().IsRegular():
				return nil
			}
			data, err := os.ReadFile(path) // #nosec G122 -- nobody else writes there
			if err != nil {
				return err
			}
			for at := 0; at+8 <= len(data); at += 16 << 10 {
				binary.LittleEndian.PutUint64(data[at:], uint64(i+1)*0x9e3779b97f4a7c15+uint64(at))
			}
			return os.WriteFile(to, data, 0o600) // #nosec G703 -- a directory that bench has made
		})
		if err != nil {
			return corpus{}, err
		}
	}
	large, _, err := measureTree(dir)
	large.What = fmt.Sprintf("%d variants of the corpus", n)
	return large, err
}

// A module of the Haskell corpus has so many types; with all the code that is derived for them it makes an object of
// some 750 KB, as modules of real projects do.
const haskellTypes = 4

// haskellObjects makes what ghc leaves of a project of that size, before and after an edit of one module.
func (b *bench) haskellObjects(ctx context.Context, mb int) (before, after corpus, err error) {
	modules := max(mb*4/3, 2)
	dir, err := b.kept(fmt.Sprintf("haskell-%d", mb), func(dir string) error {
		src := filepath.Join(dir, "src")
		if err := os.Mkdir(src, 0o700); err != nil {
			return err
		}
		for i := range modules {
			if err := haskellModule(src, i, ""); err != nil {
				return err
			}
		}
		build := func(version string) error {
			args := []string{"ghc", "-v0", "-O0", "-g", "-no-link", fmt.Sprintf("-j%d", runtime.NumCPU()), "-outputdir", "../dist"}
			for i := range modules {
				args = append(args, fmt.Sprintf("M%d.hs", i))
			}
			if _, err := output(ctx, src, nil, args...); err != nil {
				return err
			}
			_, err := output(ctx, dir, nil, "cp", "-a", "dist", version)
			return err
		}
		if err := build("before"); err != nil {
			return err
		}
		if err := haskellModule(src, modules/2, "added :: [Int] -> Int\nadded = foldr (\\x s -> 3 * x + s) 7\n"); err != nil {
			return err
		}
		return build("after")
	})
	if err != nil {
		return before, after, err
	}
	before, _, err = measureTree(filepath.Join(dir, "before"))
	if err == nil {
		after, _, err = measureTree(filepath.Join(dir, "after"))
	}
	before.What = "objects of ghc"
	return before, after, err
}

// haskellModule writes module number i, which imports some of those before it.
func haskellModule(dir string, i int, extra string) (err error) {
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("M%d.hs", i)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, "module M%d where\n", i)
	if i > 0 {
		fmt.Fprintf(w, "import M%d (Item%d_0)\n", i/2, i/2)
	}
	kinds := []string{
		"Int", "[Int]", "Maybe String", "(Int, Bool)", "Double", "String", "[Maybe Int]", "Either Int String",
	}
	for k := range haskellTypes {
		fmt.Fprintf(w, "data Item%d_%d = Item%d_%d\n", i, k, i, k)
		for j := range 8 {
			fmt.Fprintf(w, "  %c f%d_%d_%d :: %s\n", "{,,,,,,,"[j], i, k, j, kinds[(i+k+j)%len(kinds)])
		}
		fmt.Fprintf(w, "  } deriving (Eq, Ord, Show, Read)\n")
	}
	if i > 0 {
		fmt.Fprintf(w, "equal%d :: Item%d_0 -> Item%d_0 -> Bool\nequal%d a b = a == b\n", i, i/2, i/2, i)
	}
	fmt.Fprint(w, extra)
	return w.Flush()
}

// sameTree says where the trees differ: in names, kinds, sizes and times of files or, with contents, in a byte.
func sameTree(want, got string, contents bool) error {
	count := 0
	err := filepath.WalkDir(want, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(want, path)
		if err != nil {
			return err
		}
		other := filepath.Join(got, rel)
		a, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.Lstat(other)
		if err != nil {
			return err
		}
		count++
		if a.Mode().Type() != b.Mode().Type() || a.Mode().IsRegular() && a.Size() != b.Size() {
			return fmt.Errorf("%s differs from %s", other, path)
		}
		if !contents || !a.Mode().IsRegular() {
			return nil
		}
		return sameFile(path, other)
	})
	if err != nil {
		return err
	}
	err = filepath.WalkDir(got, func(_ string, _ fs.DirEntry, err error) error {
		count--
		return err
	})
	if err == nil && count != 0 {
		err = fmt.Errorf("%s has %d files more than %s", got, -count, want)
	}
	return err
}

func sameFile(a, b string) error {
	x, err := os.ReadFile(a)
	if err != nil {
		return err
	}
	y, err := os.ReadFile(b)
	if err != nil {
		return err
	}
	if string(x) != string(y) {
		return fmt.Errorf("%s and %s have different contents", a, b)
	}
	return nil
}

// removeAll removes a tree, directories without write permission included.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700) // #nosec G122 -- nobody else writes there
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(dir))
}
