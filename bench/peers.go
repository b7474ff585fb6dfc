package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// peer is a tool that does the same work as nbc.
type peer struct {
	name string
	// beside is which of nbc's stores it is compared with.
	beside string
	// s3 says that it stores on the server, so that it can be measured through proxies.
	s3 bool
	// init makes an empty repository in r.dir or on the server; it is not measured.
	init func(ctx context.Context, r *round) error
	// save saves tree/dist, and restore restores it below the empty directory out, where it then is in restored.
	save     func(r *round, address, tree string) command
	restore  func(r *round, address, out string) command
	restored func(tree, out string) string
	// stored is the directory of what it has stored.
	stored func(r *round) string
}

// Names of rows.
const (
	nbcS3    = "nbc, S3"
	nbcDir   = "nbc, directory"
	cpName   = "cp -a"
	findName = "find, lstat of all files"
	oldWay   = "tar, zstd -T0, aws s3 cp"
	oldSDK   = "tar, zstd -T0, SDK"
	restic   = "restic, S3"
	borg     = "borg, directory"
	casync   = "casync, directory"
	desync   = "desync, directory"
)

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// findPeers returns the peers that are on this machine and that the flags ask for, and names the others.
func (b *bench) findPeers(ctx context.Context) {
	wanted := func(name string) bool {
		if b.tools == "" {
			return true
		}
		for t := range strings.SplitSeq(b.tools, ",") {
			if t == name {
				return true
			}
		}
		return false
	}
	add := func(name string, found bool, p *peer) {
		switch {
		case !wanted(name):
		case !found:
			b.missing = append(b.missing, name)
		default:
			b.peers = append(b.peers, p)
		}
	}
	hasTar := tool(ctx, "tar", "--version") && tool(ctx, "zstd", "--version") && tool(ctx, "bash", "--version")
	if tool(ctx, "aws", "--version") {
		add("old", hasTar, b.tarPeer(oldWay, func(_ *round, address, verb string) string {
			object, endpoint := "s3://"+bucket+"/"+b.prefix()+"tar/cache.tar.zst", "--endpoint-url http://"+address
			if verb == "send" {
				return "aws s3 cp --only-show-errors " + endpoint + " - " + object
			}
			return "aws s3 cp --only-show-errors " + endpoint + " " + object + " -"
		}))
	} else {
		b.missing = append(b.missing, "aws")
		add("old", hasTar, b.tarPeer(oldSDK, func(_ *round, address, verb string) string {
			return quote(b.self) + " " + verb + " " + quote(storeURL(address, b.prefix()+"tar"))
		}))
	}
	add("restic", tool(ctx, "restic", "version"), resticPeer())
	add("borg", tool(ctx, "borg", "--version"), borgPeer())
	add("casync", tool(ctx, "casync", "--version"), casyncPeer())
	add("desync", tool(ctx, "desync", "--help"), desyncPeer())
	b.hasCp = wanted("cp") && tool(ctx, "cp", "--version")
	b.hasFind = wanted("find") && tool(ctx, "find", "--version")
}

// tarPeer is the old way: one archive, with a program that sends stdin or receives to stdout.
func (b *bench) tarPeer(name string, client func(r *round, address, verb string) string) *peer {
	pipe := func(command_ string) []string { return []string{"bash", "-c", "set -o pipefail; " + command_} }
	return &peer{
		name: name, beside: nbcS3, s3: true,
		init: func(context.Context, *round) error { return nil },
		save: func(r *round, address, tree string) command {
			return command{
				args: pipe("tar -cf - -C " + quote(tree) + " dist | zstd -q -T0 | " + client(r, address, "send")),
			}
		},
		restore: func(r *round, address, out string) command {
			return command{
				args: pipe(client(r, address, "receive") + " | zstd -q -d | tar -xf - -C " + quote(out)),
			}
		},
		restored: func(_, out string) string { return filepath.Join(out, "dist") },
		stored:   func(r *round) string { return filepath.Join(r.server.data, filepath.FromSlash(r.prefix()), "tar") },
	}
}

func resticPeer() *peer {
	run := func(r *round, address string, args ...string) command {
		return command{
			args: append([]string{"restic", "-q", "--cache-dir", filepath.Join(r.dir, "restic")}, args...),
			env: []string{
				"RESTIC_REPOSITORY=s3:http://" + address + "/" + bucket + "/" + r.prefix() + "restic", "RESTIC_PASSWORD=bench",
			},
		}
	}
	return &peer{
		name: restic, beside: nbcS3, s3: true,
		init: func(ctx context.Context, r *round) error {
			c := run(r, r.server.address, "init")
			_, err := output(ctx, "", c.env, c.args...)
			return err
		},
		save: func(r *round, address, tree string) command {
			return run(r, address, "backup", filepath.Join(tree, "dist"))
		},
		restore: func(r *round, address, out string) command {
			return run(r, address, "restore", "latest", "--target", out)
		},
		restored: func(tree, out string) string { return filepath.Join(out, tree, "dist") },
		stored:   func(r *round) string { return filepath.Join(r.server.data, filepath.FromSlash(r.prefix()), "restic") },
	}
}

func borgPeer() *peer {
	repo := func(r *round) string { return filepath.Join(r.dir, "borg", "repo") }
	env := func(r *round) []string {
		return []string{
			"BORG_BASE_DIR=" + filepath.Join(r.dir, "borg"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes",
			"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes",
		}
	}
	last := "" // the archive that is restored
	return &peer{
		name: borg, beside: nbcDir,
		init: func(ctx context.Context, r *round) error {
			if err := os.Mkdir(filepath.Dir(repo(r)), 0o700); err != nil {
				return err
			}
			_, err := output(ctx, "", env(r), "borg", "init", "-e", "none", repo(r))
			return err
		},
		save: func(r *round, _, tree string) command {
			last = r.next()
			return command{
				args: []string{"borg", "create", "--compression", "zstd,1", repo(r) + "::" + last, "dist"}, dir: tree, env: env(r),
			}
		},
		restore: func(r *round, _, out string) command {
			return command{args: []string{"borg", "extract", repo(r) + "::" + last}, dir: out, env: env(r)}
		},
		restored: func(_, out string) string { return filepath.Join(out, "dist") },
		stored:   repo,
	}
}

func casyncPeer() *peer {
	dir := func(r *round) string { return filepath.Join(r.dir, "casync") }
	file := func(r *round) string { return filepath.Join(dir(r), "dist.caidx") }
	store := func(r *round) string { return "--store=" + filepath.Join(dir(r), "store") }
	return &peer{
		name: casync, beside: nbcDir,
		init: func(_ context.Context, r *round) error { return os.Mkdir(dir(r), 0o700) },
		save: func(r *round, _, tree string) command {
			return command{args: []string{"casync", "make", store(r), file(r), filepath.Join(tree, "dist")}}
		},
		restore: func(r *round, _, out string) command {
			return command{args: []string{"casync", "extract", store(r), file(r), filepath.Join(out, "dist")}}
		},
		restored: func(_, out string) string { return filepath.Join(out, "dist") },
		stored:   dir,
	}
}

func desyncPeer() *peer {
	dir := func(r *round) string { return filepath.Join(r.dir, "desync") }
	file := func(r *round) string { return filepath.Join(dir(r), "dist.caidx") }
	store := func(r *round) string { return filepath.Join(dir(r), "store") }
	return &peer{
		name: desync, beside: nbcDir,
		init: func(_ context.Context, r *round) error {
			return errors.Join(os.Mkdir(dir(r), 0o700), os.Mkdir(store(r), 0o700))
		},
		save: func(r *round, _, tree string) command {
			return command{args: []string{"desync", "tar", "-i", "-s", store(r), file(r), filepath.Join(tree, "dist")}}
		},
		restore: func(r *round, _, out string) command {
			return command{args: []string{"desync", "untar", "-i", "-s", store(r), file(r), out}}
		},
		restored: func(_, out string) string { return out },
		stored:   dir,
	}
}
