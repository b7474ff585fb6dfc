package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nbc/index"
	"nbc/mtime"
	"nbc/transfer"
)

// options are the values of all flags. A verb defines those that it has; the others keep their zero values.
type options struct {
	store, source, state string
	near                 string
	nearSize             int64
	dirs, exclude        []string
	ignoreSource         []string
	fallbacks            []string
	outputPaths          []string
	noRewrite            []string
	times                mtime.Times
	onSkew               mtime.OnSkew
	moved, replace       bool
	failed               bool
	bestEffort           bool
	timeout              time.Duration
	requests             int
	json, quiet          bool
	jsonFile             string
	gc                   transfer.CollectOptions
	daemon               daemonOptions
}

// maxRequests is far above what one machine can make use of; it bounds what a typing error can do to a store.
const maxRequests = 1024

// The flags come in groups, each defined at one place, so that a flag means the same in every verb.

// treeFlags say which files of the source tree it is about.
func (o *options) treeFlags(f *pflag.FlagSet) {
	f.Var(&list{&o.dirs, pattern, "PATTERN"}, "dir",
		"directories that the build leaves its intermediate files in, relative to --source; may be repeated")
	f.Var(&list{&o.exclude, pattern, "PATTERN"}, "exclude", "files in them that are not saved; may be repeated")
	f.Var(&list{&o.ignoreSource, pattern, "PATTERN"}, "ignore-source",
		"source files that cannot influence the build; may be repeated")
	f.Var(&list{&o.fallbacks, cacheName, "NAME"}, "fallback",
		"cache name to use when there is nothing for the first one; may be repeated, in order")
}

// outputFlags are about the paths that Nix builds into.
func (o *options) outputFlags(f *pflag.FlagSet) {
	f.Var(&list{&o.outputPaths, outputPath, "NAME=PATH"}, "output-path",
		"output of the Nix derivation, such as out=$out: its path is what artifacts hold after a restore; may be repeated")
	f.Var(&list{&o.noRewrite, pattern, "PATTERN"}, "no-rewrite",
		"artifacts in which output paths stay as they are; may be repeated")
}

// outputs returns the outputs, each once.
func (o *options) outputs(cmd *cobra.Command) ([]index.Output, error) {
	var all []index.Output
	for _, text := range o.outputPaths {
		out, err := index.ParseOutput(text)
		if err != nil {
			return nil, usagef("%s: %w", origin(cmd, "output-path"), err)
		}
		all = append(all, out)
	}
	slices.SortFunc(all, func(a, b index.Output) int { return strings.Compare(a.Name, b.Name) })
	if err := index.CheckOutputs(all); err != nil {
		return nil, usagef("%s: %w", origin(cmd, "output-path"), err)
	}
	return all, nil
}

// storeFlags say where the store is, and what is kept near of it.
func (o *options) storeFlags(f *pflag.FlagSet) {
	f.Var(&value[string]{&o.store, anything, "", "URL"}, "store",
		"s3://bucket/prefix or a directory (see nbc help stores); by default a directory in your cache directory")
	f.Var(&value[string]{&o.near, anything, "", "DIR"}, "near",
		"where copies of what was fetched from S3 are kept, or off; by default a directory in your cache directory")
	f.Var(&value[int64]{&o.nearSize, byteCount, "", "SIZE"}, "near-size",
		"how much is kept there at most, such as 500M or 20G (default 10G)")
}

// placeFlags say where the store, the tree and the receipt are.
func (o *options) placeFlags(f *pflag.FlagSet) {
	o.storeFlags(f)
	o.source = "."
	f.Var(&value[string]{&o.source, notEmpty, o.source, "DIR"}, "source", "the source tree")
	f.Var(&value[string]{&o.state, anything, "", "FILE"}, "state",
		"where a restore leaves the receipt for the save; by default a file for each tree in your state directory")
}

// restoreFlags say how to restore.
func (o *options) restoreFlags(f *pflag.FlagSet) {
	o.times, o.onSkew = mtime.Recorded, mtime.Miss
	f.Var(&value[mtime.Times]{&o.times, mtime.ParseTimes, string(o.times), "RULE"}, "times",
		"file times: recorded, or two-hours (moved back until the newest is two hours old)")
	f.Var(&value[mtime.OnSkew]{&o.onSkew, mtime.ParseOnSkew, string(o.onSkew), "RULE"}, "on-skew",
		"when recorded times are in the future here: miss, or shift (move them back as two-hours does)")
	f.BoolVar(&o.moved, "moved", false, "restore also what was saved in another directory")
	f.BoolVar(&o.replace, "replace", false, "give up what the directories hold, even if nbc did not put it there")
}

// workFlags say how to go about it.
func (o *options) workFlags(f *pflag.FlagSet) {
	f.Var(&value[time.Duration]{&o.timeout, positiveDuration, "", "DURATION"}, "timeout",
		"give up after so long, such as 90s or 5m; a restore and a save have this each, a command has none")
	f.Var(&value[int]{&o.requests, requestCount, "", "N"}, "requests",
		fmt.Sprintf("how many requests may be under way at once, 1 to %d (default 64)", maxRequests))
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print warnings and errors only")
}

// stepFlags are for verbs that are about the cache alone, so that their exit code and stdout are free to speak of it.
func (o *options) stepFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.bestEffort, "best-effort", false, "turn every failure of the cache into a warning and exit code 0")
	f.BoolVar(&o.json, "json", false, "print one JSON object on stdout")
}

// completions offers the values of the flags that have few, and files or nothing for the others.
func completions(cmd *cobra.Command) {
	for flag, values := range map[string][]string{
		"times":       {string(mtime.Recorded), string(mtime.TwoHours)},
		"on-skew":     {string(mtime.Miss), string(mtime.Shift)},
		"timeout":     nil,
		"requests":    nil,
		"fallback":    nil,
		"output-path": nil,
		"near-size":   nil,

		"listen":          nil,
		"allow-read":      nil,
		"allow-write":     nil,
		"allow-uid":       nil,
		"allow-gid":       nil,
		"socket-mode":     nil,
		"socket-group":    nil,
		"metrics":         nil,
		"drain":           nil,
		"max-connections": nil,
		"max-requests":    nil,
		"max-bytes":       nil,
		"max-wait":        nil,
		"log-format":      {string(logText), string(logJSON)},
		"log-level":       {"debug", "info", "warn", "error"},
	} {
		if cmd.Flags().Lookup(flag) != nil {
			// The only error is that the flag is not there, or was registered before.
			_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	for _, flag := range []string{"source", "dir", "near"} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.MarkFlagDirname(flag)
		}
	}
}

// variable returns the name of the environment variable of a flag.
func variable(flag string) string {
	return "NBC_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// hasVariable tells flags of nbc from those that the command library adds.
func hasVariable(f *pflag.Flag) bool { return f.Name != "help" && f.Name != "version" }

// nameVariables puts the name of its variable behind the description of every flag.
func nameVariables(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if hasVariable(f) {
			f.Usage += " [" + variable(f.Name) + "]"
		}
	})
}

// fromVariable marks flags whose value comes from the environment.
const fromVariable = "nbc-variable"

// fromEnvironment gives each flag that is not on the command line the value of its variable. A variable that is empty
// counts as not set, so that it can be switched off where it cannot be unset.
func fromEnvironment(cmd *cobra.Command) error {
	var errs []error
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || !hasVariable(f) {
			return
		}
		text := os.Getenv(variable(f.Name))
		if text == "" {
			return
		}
		var err error
		if l, ok := f.Value.(pflag.SliceValue); ok {
			err = l.Replace(lines(text))
		} else {
			err = f.Value.Set(text)
		}
		if err != nil {
			errs = append(errs, usagef("%s: %w", variable(f.Name), plainNumError(text, err)))
			return
		}
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[fromVariable] = []string{variable(f.Name)}
	})
	return errors.Join(errs...)
}

// origin names a flag as the user gave it, for messages.
func origin(cmd *cobra.Command, flag string) string {
	if f := cmd.Flags().Lookup(flag); f != nil && len(f.Annotations[fromVariable]) > 0 {
		return f.Annotations[fromVariable][0]
	}
	return "--" + flag
}

// plainNumError says of a value for a bool what it should have been.
func plainNumError(text string, err error) error {
	if errors.As(err, new(*strconv.NumError)) {
		return fmt.Errorf("%q is neither true nor false", text)
	}
	return err
}

// lines splits the value of a variable. Empty lines are no items.
func lines(text string) []string {
	var items []string
	for l := range strings.Lines(text) {
		if l = strings.TrimRight(l, "\r\n"); l != "" {
			items = append(items, l)
		}
	}
	return items
}

// value is a flag of one value that is checked as soon as it is set, so that an error names the flag or the variable.
type value[T any] struct {
	p     *T
	parse func(string) (T, error)
	text  string // as it was given; before that, the default
	noun  string // what the help calls it
}

func (v *value[T]) Set(s string) error {
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.p, v.text = t, s
	return nil
}

func (v *value[T]) String() string { return v.text }
func (v *value[T]) Type() string   { return v.noun }

// list is a flag that may be repeated.
type list struct {
	p     *[]string
	check func(string) (string, error)
	noun  string // what the help calls an item
}

func (l *list) Append(s string) error {
	s, err := l.check(s)
	if err != nil {
		return err
	}
	*l.p = append(*l.p, s)
	return nil
}

func (l *list) Replace(items []string) error {
	*l.p = nil
	for _, s := range items {
		if err := l.Append(s); err != nil {
			return err
		}
	}
	return nil
}

func (l *list) Set(s string) error { return l.Append(s) }
func (l *list) GetSlice() []string { return *l.p }
func (l *list) Type() string       { return l.noun }

func (l *list) String() string {
	if l.p == nil {
		return ""
	}
	return strings.Join(*l.p, "\n")
}

// pattern passes patterns that can match inside a tree. One that is absolute is looked at when the tree is known.
func pattern(s string) (string, error) {
	if filepath.IsAbs(s) {
		return s, nil
	}
	_, err := index.CompilePatterns([]string{s})
	if err != nil && strings.ContainsAny(s, "{}") {
		err = &hinted{err, `a backslash before a character makes it literal: "\{"`}
	}
	return s, err
}

// outputPath passes what Nix can build into.
func outputPath(s string) (string, error) {
	_, err := index.ParseOutput(s)
	return s, err
}

func anything(s string) (string, error) { return s, nil }

func notEmpty(s string) (string, error) {
	if s == "" {
		return "", errors.New("is empty")
	}
	return s, nil
}

// cacheName passes names that an index can have.
func cacheName(s string) (string, error) {
	_, err := index.Path(s)
	return s, err
}

func positiveDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 90s or 5m", s)
	}
	if d <= 0 {
		return 0, fmt.Errorf("%q is not more than 0", s)
	}
	return d, nil
}

func requestCount(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxRequests {
		return 0, fmt.Errorf("%q is not a number from 1 to %d", s, maxRequests)
	}
	return n, nil
}

// byteCount reads a size with the units of 1000: K, M, G or T.
func byteCount(s string) (int64, error) {
	digits, unit := s, int64(1)
	for i, suffix := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			digits = rest
			for range i + 1 {
				unit *= 1000
			}
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 1 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a size such as 500M or 20G", s)
	}
	return n * unit, nil
}

// root returns the absolute path of the source tree.
func (o *options) root(cmd *cobra.Command) (string, error) {
	abs, err := filepath.Abs(o.source)
	if err != nil {
		return "", usagef("%s: %w", origin(cmd, "source"), err)
	}
	fi, err := os.Stat(abs)
	if err != nil {
		return "", usagef("%s: %w", origin(cmd, "source"), err)
	}
	if !fi.IsDir() {
		return "", usagef("%s: %s is not a directory", origin(cmd, "source"), o.source)
	}
	return abs, nil
}

// tree returns the patterns, relative to root. A store, a near store and a file of JSON that are in the tree, named or
// by default, are left out of the sources: they change with every build and would count as changed sources. It is an
// error that they are in a cache directory.
func (o *options) tree(cmd *cobra.Command, root string, l location) (transfer.Tree, error) {
	var t transfer.Tree
	for _, p := range []struct {
		flag string
		from []string
		to   *[]string
	}{
		{"dir", o.dirs, &t.Dirs},
		{"exclude", o.exclude, &t.Exclude},
		{"ignore-source", o.ignoreSource, &t.IgnoreSources},
		{"no-rewrite", o.noRewrite, &t.NoRewrite},
	} {
		for _, text := range p.from {
			if filepath.IsAbs(text) {
				rel, err := inside(root, text)
				if err != nil {
					return t, usagef("%s: %w", origin(cmd, p.flag), err)
				}
				if text, err = pattern(rel); err != nil {
					return t, usagef("%s: %w", origin(cmd, p.flag), err)
				}
			}
			*p.to = append(*p.to, text)
		}
	}
	dirs, err := index.CompilePatterns(t.Dirs)
	if err != nil {
		return t, usageError{err}
	}
	for _, own := range []struct{ flag, path string }{
		{"store", l.path()},
		{"near", o.nearPath(l)},
		{"json-file", o.jsonFile},
	} {
		for _, rel := range insides(root, own.path) {
			// The next restore would replace it by an older one, and the one after that would have nothing to read.
			for p := rel; p != "."; p = path.Dir(p) {
				if dirs.Match(p) {
					return t, &hinted{
						usagef("%s: %s is in ./%s, which %s names: a restore would replace it",
							origin(cmd, own.flag), own.path, p, origin(cmd, "dir")),
						"name a place outside of it with --" + own.flag,
					}
				}
			}
			if rel != "." {
				t.IgnoreSources = append(t.IgnoreSources, literal("./"+rel))
			}
		}
	}
	return t, nil
}

// insides returns what a file of nbc's own is called in the source tree: by the name that it was given, and by the one
// that it has when links on the way are followed. Empty are both outside of the tree, and for no path.
func insides(root, path string) []string {
	if path == "" {
		return nil
	}
	var list []string
	for _, p := range []string{path, followed(path)} {
		if rel, err := inside(root, p); err == nil {
			list = append(list, filepath.ToSlash(filepath.Clean(rel)))
		}
	}
	return slices.Compact(list)
}

// followed follows the links in a path that need not be there in full.
func followed(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	for dir := abs; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return real + strings.TrimPrefix(abs, strings.TrimSuffix(dir, "/"))
		}
		if dir == filepath.Dir(dir) {
			return path
		}
	}
}

// inside returns a path relative to root. It begins with "./", so that as a pattern it is about this place only.
func inside(root, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", path, err)
	}
	// The tree may have been named by way of a link, and the path not, or the other way round.
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return "", fmt.Errorf("finding the source tree: %w", err)
	}
	for _, r := range []string{root, real} {
		if rel, err := filepath.Rel(r, abs); err == nil && filepath.IsLocal(rel) {
			return "./" + rel, nil
		}
	}
	return "", fmt.Errorf("%s is not in the source tree %s", path, root)
}

// literal quotes the characters of a path that mean something in a pattern.
func literal(path string) string {
	return strings.NewReplacer(`\`, `\\`,
		"*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`, "{", `\{`, "}", `\}`).Replace(path)
}

// nameArg checks the cache name.
func nameArg(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, err := cacheName(args[0]); err != nil {
		return usageError{err}
	}
	return nil
}

// needDirs checks that there is something to be restored and saved.
func (o *options) needDirs() error {
	if len(o.dirs) > 0 {
		return nil
	}
	return &hinted{
		usagef("no --dir"),
		"say which directories the build leaves its intermediate files in, for example --dir build",
	}
}

// finish completes a verb when its flags are defined.
func finish(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().SortFlags = false
	cmd.DisableFlagsInUseLine = true
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd) }
	cmd.SetUsageTemplate(strings.ReplaceAll(cmd.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 100 "))
	nameVariables(cmd)
	completions(cmd)
	return cmd
}
