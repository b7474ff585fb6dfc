package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"nbc/transfer"
	"nbc/transfer/store"
	"nbc/transfer/store/dir"
)

// A pair is what a build left, and what it left after a change of the sources.
type pair struct {
	what          string
	before, after string
}

// cutting is a choice of where to cut: chunks end where so many bits of the rolling hash are zero, but not before a
// minimum; the average is the sum of the two, and the maximum four times that.
type cutting struct{ bits, min int }

func (c cutting) average() int { return c.min + 1<<c.bits }

func (c cutting) String() string { return fmt.Sprintf("2^%d / %dK", c.bits, c.min>>10) }

var cuttings = []cutting{
	{16, 32 << 10},
	{16, 64 << 10},
	{17, 48 << 10},
	{16, 96 << 10},
	{16, 128 << 10},
	{17, 128 << 10},
	{18, 64 << 10},
	{18, 256 << 10},
}

// cuts measures every choice on every pair, with nbc itself and a store whose format object says how to cut.
func (b *bench) cuts(ctx context.Context, stdout io.Writer) error {
	pairs, err := b.pairs(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s; chunks / MB stored / MB sent after the change, index included / cpu seconds of the first save.\n\n",
		machine())
	fmt.Fprint(stdout, "| 2^bits / minimum |")
	for _, p := range pairs {
		c, _, err := measureTree(p.before)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, " %s, %d MB, %d files |", p.what, c.Bytes/1e6, c.Files)
	}
	fmt.Fprintf(stdout, "\n|---|%s\n", strings.Repeat("---|", len(pairs)))
	for _, c := range cuttings {
		b.say("cutting at %v", c)
		line := fmt.Sprintf("| %v |", c)
		for _, p := range pairs {
			cell, err := b.cut(ctx, p, c)
			if err != nil {
				return fmt.Errorf("%s, %v: %w", p.what, c, err)
			}
			line += " " + cell + " |"
		}
		fmt.Fprintln(stdout, line)
	}
	if len(b.missing) > 0 {
		fmt.Fprintf(stdout, "\nNot on this machine: %s.\n", strings.Join(b.missing, ", "))
	}
	return nil
}

// cut saves a pair, and returns a cell of the table.
func (b *bench) cut(ctx context.Context, p pair, c cutting) (_ string, err error) {
	r := &round{bench: b, dir: filepath.Join(b.work, "cut")}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, removeAll(r.dir)) }()
	s := &nbcStore{tool: nbcDir, url: filepath.Join(r.dir, "store"), near: "off"}
	if err := newStore(ctx, s.url, c); err != nil {
		return "", err
	}
	if s.tree, err = r.builtTree(ctx, "tree", corpus{Dir: p.before}); err != nil {
		return "", err
	}
	u, out, err := b.measure(ctx, r.save(s))
	if err != nil {
		return "", err
	}
	first, err := done(out)
	if err != nil {
		return "", err
	}
	stored, _, err := measureTree(filepath.Join(s.url, "chunks"))
	if err != nil {
		return "", err
	}
	if err := update(filepath.Join(s.tree, "dist"), p.after); err != nil {
		return "", err
	}
	if _, out, err = b.measure(ctx, r.save(s)); err != nil {
		return "", err
	}
	second, err := done(out)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d / %.1f / %.2f / %.2f", first.Chunks, float64(stored.Bytes)/1e6, float64(second.Sent.Bytes)/1e6,
		u.CPU), nil
}

// newStore makes a directory store in which saves cut as c says.
func newStore(ctx context.Context, path string, c cutting) error {
	s, err := dir.Open(path)
	if err != nil {
		return err
	}
	f := transfer.NewFormat()
	f.Chunker.Bits, f.Chunker.Min, f.Chunker.Max = c.bits, c.min, 4*c.average()
	data, err := json.Marshal(f)
	if err == nil {
		_, err = s.Put(ctx, transfer.FormatPath, data, store.Condition{})
	}
	return errors.Join(err, s.Close())
}

// pairs makes what can be made on this machine.
func (b *bench) pairs(ctx context.Context) ([]pair, error) {
	var list []pair
	for _, edit := range []struct{ what, file string }{
		{"Go, a leaf package", "cmd/nbc/version.go"},
		{"Go, a core package", "chunk/id.go"},
	} {
		p, err := b.goPair(ctx, edit.what, edit.file)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	main, err := b.goCache(ctx, b.mb, b.files)
	if err != nil {
		return nil, err
	}
	p, err := b.pair("Go, 1 % of the files", fmt.Sprintf("changed-%d-%d", b.mb, b.files), func(before, after string) error {
		if _, err := output(ctx, "", nil, "cp", "-a", main.Dir, before); err != nil {
			return err
		}
		if _, err := output(ctx, "", nil, "cp", "-a", main.Dir, after); err != nil {
			return err
		}
		_, err := change(after)
		return err
	})
	if err != nil {
		return nil, err
	}
	list = append(list, p)
	if tool(ctx, "ghc", "--version") && b.haskell > 0 {
		before, after, err := b.haskellObjects(ctx, b.haskell)
		if err != nil {
			return nil, err
		}
		list = append(list, pair{"Haskell, a module", before.Dir, after.Dir})
	} else {
		b.missing = append(b.missing, "ghc")
	}
	if tool(ctx, "cargo", "--version") {
		p, err := b.rustPair(ctx)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	} else {
		b.missing = append(b.missing, "cargo")
	}
	return list, nil
}

func (b *bench) pair(what, name string, build func(before, after string) error) (pair, error) {
	top, err := b.kept(name, func(top string) error {
		return build(filepath.Join(top, "before"), filepath.Join(top, "after"))
	})
	return pair{what, filepath.Join(top, "before"), filepath.Join(top, "after")}, err
}

// goPair builds this module's program, and again after a function was added to a file. The tree is the build cache and
// the program.
func (b *bench) goPair(ctx context.Context, what, file string) (pair, error) {
	return b.pair(what, "go-"+strings.ReplaceAll(strings.TrimSuffix(file, ".go"), "/", "-"), func(before, after string) error {
		data, err := os.ReadFile(filepath.Join(b.module, filepath.FromSlash(file)))
		if err != nil {
			return err
		}
		top := filepath.Dir(before)
		changed, overlay := filepath.Join(top, "changed.go"), filepath.Join(top, "overlay.json")
		data = append(data, "\n// Added is what has changed.\nfunc Added(n int) int { return 3*n + 7 }\n"...)
		if err := os.WriteFile(changed, data, 0o600); err != nil { // #nosec G703 -- a directory that bench has made
			return err
		}
		list, err := json.Marshal(map[string]map[string]string{
			"Replace": {filepath.Join(b.module, filepath.FromSlash(file)): changed},
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(overlay, list, 0o600); err != nil {
			return err
		}
		build := func(dir string, args ...string) error {
			args = append([]string{"go", "build", "-o", filepath.Join(dir, "nbc")}, append(args, "./cmd/nbc")...)
			_, err := output(ctx, b.module, []string{"GOCACHE=" + filepath.Join(dir, "cache"), "CGO_ENABLED=0", "GOFLAGS="}, args...)
			return err
		}
		if err := build(before); err != nil {
			return err
		}
		if _, err := output(ctx, "", nil, "cp", "-a", before, after); err != nil {
			return err
		}
		return build(after, "-overlay", overlay)
	})
}

// rustCrates is the size of the Rust workspace.
const rustCrates = 24

// rustPair builds a workspace of local crates with cargo, and again after a function was added to one of them.
func (b *bench) rustPair(ctx context.Context) (pair, error) {
	return b.pair("Rust, a crate", "rust", func(before, after string) error {
		top := filepath.Join(filepath.Dir(before), "src")
		members := make([]string, rustCrates)
		for i := range members {
			members[i] = fmt.Sprintf("%q", fmt.Sprintf("c%d", i))
			if err := rustCrate(top, i, ""); err != nil {
				return err
			}
		}
		text := "[workspace]\nresolver = \"2\"\nmembers = [" + strings.Join(members, ", ") + "]\n"
		if err := os.WriteFile(filepath.Join(top, "Cargo.toml"), []byte(text), 0o600); err != nil {
			return err
		}
		build := func(version string) error {
			if _, err := output(ctx, top, nil, "cargo", "build", "--offline", "--quiet", "--jobs", fmt.Sprint(runtime.NumCPU()),
				"--target-dir", filepath.Join(filepath.Dir(before), "target")); err != nil {
				return err
			}
			_, err := output(ctx, "", nil, "cp", "-a", filepath.Join(filepath.Dir(before), "target"), version)
			return err
		}
		if err := build(before); err != nil {
			return err
		}
		if err := rustCrate(top, rustCrates/2, "pub fn added(n: u64) -> u64 { 3 * n + 7 }\n"); err != nil {
			return err
		}
		return build(after)
	})
}

// rustCrate writes crate number i, which uses some of those before it.
func rustCrate(top string, i int, extra string) error {
	dir := filepath.Join(top, fmt.Sprintf("c%d", i))
	if err := os.MkdirAll(filepath.Join(dir, "src"), 0o700); err != nil {
		return err
	}
	var toml, rs strings.Builder
	fmt.Fprintf(&toml, "[package]\nname = \"c%d\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\n", i)
	if i > 0 {
		fmt.Fprintf(&toml, "c%d = { path = \"../c%d\" }\n", i/2, i/2)
	}
	fmt.Fprint(&rs, "use std::collections::{BTreeMap, HashMap};\n")
	for k := range 40 {
		fmt.Fprintf(&rs, "#[derive(Debug, Clone, PartialEq, Default)]\npub struct S%d_%d { pub a: Vec<u%d>, pub b: BTreeMap<String, i64>, "+
			"pub c: HashMap<u32, String>, pub d: Option<Box<S%d_%d>> }\n", i, k, 8<<(k%4), i, k)
		fmt.Fprintf(&rs, "impl S%d_%d { pub fn sum(&self) -> u64 { let mut n = %du64; for x in &self.a { n += *x as u64; } "+
			"for (k, v) in &self.b { n ^= (k.len() as u64) << (*v as u64 %% 8); } n } }\n", i, k, k)
	}
	if i > 0 {
		fmt.Fprintf(&rs, "pub fn below(s: &c%d::S%d_0) -> u64 { s.sum() + 1 }\n", i/2, i/2)
	}
	rs.WriteString(extra)
	return errors.Join(os.WriteFile(filepath.Join(dir, "Cargo.toml"), []byte(toml.String()), 0o600),
		os.WriteFile(filepath.Join(dir, "src", "lib.rs"), []byte(rs.String()), 0o600))
}
