package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"nbc/index"
	"nbc/transfer"
)

// showOptions say what to show.
type showOptions struct{ artifacts, sources, md5sums bool }

func showCommand(a *app) *cobra.Command {
	o := &a.options
	var opts showOptions
	cmd := &cobra.Command{
		Use:   "show NAME [flags]",
		Short: "Show what is saved under a cache name",
		Long: `show lists the artifacts that are saved under NAME, as ls -l does: mode, size,
time, path, and where a link leads to; an h stands for another name of a file.
Then the sources that they were built from: kind, MD5, the time that the build
saw, path. Question marks stand for the MD5 of a source that changed while the
build ran.

With --md5sums it prints what md5sum -c reads, for the sources that are files:

  nbc show myapp/main --md5sums | (cd /src/myapp && md5sum -c --quiet)

Names are printed so that they cannot do anything to a terminal; only md5sum -c
gets them as they are.`,
		Example: `  nbc show myapp/main
  nbc show myapp/main --json --sources`,
		Args:              cobra.MatchAll(nameArg, cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeOneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.md5sums && (o.json || opts.artifacts || opts.sources) {
				return usagef("%s goes with neither --json nor --artifacts nor --sources", origin(cmd, "md5sums"))
			}
			both := !opts.artifacts && !opts.sources
			s := &showing{
				a: a, p: a.printer(), name: args[0], titles: both,
				artifacts: both || opts.artifacts, sources: both || opts.sources,
			}
			err := a.catalog(cmd, false, "showing "+args[0], func(ctx context.Context, c *transfer.Cache) error {
				x, t, err := c.ReadIndex(ctx, args[0])
				if err != nil {
					return err
				}
				switch {
				case o.json:
					err = s.json(x, t)
				case opts.md5sums:
					err = s.md5sums(x)
				default:
					err = s.list(x)
				}
				s.summary = showSummary(x, t)
				return errors.Join(err, s.p.flush())
			})
			if a.raise != 0 && err == nil {
				return nil // nobody reads what would be printed
			}
			if o.json && err != nil {
				a.printJSON(struct {
					transfer.Report
					failure
				}{a.emptyReport("show", args[0]), newFailure(err)})
			}
			a.told(err, s.summary)
			return nil
		},
	}
	f := cmd.Flags()
	o.catalogFlags(f)
	f.BoolVar(&opts.artifacts, "artifacts", false, "only the artifacts")
	f.BoolVar(&opts.sources, "sources", false, "only the sources")
	f.BoolVar(&opts.md5sums, "md5sums", false, "the MD5s of the sources, as md5sum -c reads them")
	o.catalogWorkFlags(f)
	return finish(cmd)
}

// showing prints one index.
type showing struct {
	a                          *app
	p                          *printer
	name, summary              string
	titles, artifacts, sources bool
}

// showTime is that of ls --full-time.
const showTime = "2006-01-02 15:04:05.000000000 -0700"

func (s *showing) list(x *index.Index) error {
	if s.artifacts {
		if s.titles {
			_ = s.p.line("artifacts:") // the error stays
		}
		for i := range x.Entries {
			e := &x.Entries[i]
			file, link := e, ""
			switch e.Kind {
			case index.Link:
				link = " -> " + e.Target
			case index.HardLink:
				link = " is " + e.Target
				if f, ok := x.Find(e.Target); ok {
					file = f
				}
			}
			err := s.p.line(fmt.Sprintf("%s %12d %s %s%s", modeText(e.Kind, file.Mode), file.Size,
				time.Unix(0, file.MTime).Format(showTime), e.Path, link))
			if err != nil {
				return err
			}
		}
	}
	if s.sources {
		if s.titles {
			_ = s.p.line("sources:") // the error stays
		}
		for i := range x.Sources {
			f := &x.Sources[i]
			sum := strings.Repeat("?", 2*index.SumSize)
			if !f.Unknown {
				sum = hex.EncodeToString(f.Sum[:])
			}
			err := s.p.line(fmt.Sprintf("%s %s %s %s", kindLetter(f.Kind), sum, time.Unix(0, f.MTime).Format(showTime), f.Path))
			if err != nil {
				return err
			}
		}
	}
	return s.p.flush()
}

func kindLetter(k index.Kind) string {
	switch k {
	case index.Dir:
		return "d"
	case index.Link:
		return "l"
	case index.HardLink:
		return "h"
	}
	return "-"
}

// modeText is a mode as ls has it. Links have none of their own.
func modeText(k index.Kind, mode uint16) string {
	if k == index.Link {
		mode = 0o777
	}
	return kindLetter(k) + fs.FileMode(mode).Perm().String()[1:]
}

// md5sums prints the lines that md5sum would print.
func (s *showing) md5sums(x *index.Index) error {
	unknown := 0
	terminal := s.a.stdoutTerminal()
	for i := range x.Sources {
		f := &x.Sources[i]
		switch {
		case f.Kind != index.File:
			continue
		case f.Unknown:
			unknown++
			continue
		}
		line := md5Line(f)
		if terminal {
			line = printable(line)
		}
		if err := s.p.raw(line + "\n"); err != nil {
			return err
		}
	}
	if unknown > 0 {
		s.a.console.warn(fmt.Sprintf("%s changed while the build ran: nobody knows the MD5", count(unknown, "source")))
	}
	return s.p.flush()
}

// md5Line is a line of md5sum. A name with a backslash or the end of a line in it is escaped, which a backslash at the
// start of the line tells.
func md5Line(f *index.Source) string {
	line := hex.EncodeToString(f.Sum[:]) + "  "
	if strings.ContainsAny(f.Path, "\\\n\r") {
		return `\` + line + strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(f.Path)
	}
	return line + f.Path
}

func showSummary(x *index.Index, t transfer.SavedTree) string {
	where := from(t.Host, t.Root, t.Failures)
	if where != "" {
		where = " from " + where
	}
	return fmt.Sprintf("%s: %s, %s, %s; %s; saved %s%s", t.Name, count(t.Files, "file"), size(t.Bytes),
		count(t.Chunks, "chunk"), count(len(x.Sources), "source"), t.Saved.Local().Format("2006-01-02 15:04:05"), where)
}

// jsonPath is a path in JSON, which has no bytes: one that is no text has a second form that tells all of it.
type jsonPath struct {
	Path   string `json:"path"`
	Base64 []byte `json:"path_base64,omitempty"`
}

func newJSONPath(p string) jsonPath {
	if utf8.ValidString(p) {
		return jsonPath{Path: p}
	}
	return jsonPath{p, []byte(p)}
}

type artifactJSON struct {
	jsonPath
	Kind   string `json:"kind"`
	Mode   string `json:"mode,omitempty"` // octal
	Size   int64  `json:"size"`
	Time   int64  `json:"mtime_ns,omitempty"` // since 1970
	Target string `json:"target,omitempty"`
	// TargetBase64 is as that of a path.
	TargetBase64 string `json:"target_base64,omitempty"`
}

func newArtifactJSON(e *index.Entry) artifactJSON {
	j := artifactJSON{
		jsonPath: newJSONPath(e.Path), Kind: e.Kind.String(), Size: e.Size, Time: e.MTime, Target: e.Target,
	}
	if e.Kind == index.File || e.Kind == index.Dir {
		j.Mode = fmt.Sprintf("%04o", e.Mode)
	}
	if !utf8.ValidString(e.Target) {
		j.TargetBase64 = base64.StdEncoding.EncodeToString([]byte(e.Target))
	}
	return j
}

type sourceJSON struct {
	jsonPath
	Kind string `json:"kind"`
	MD5  string `json:"md5,omitempty"` // absent of a source that changed while the build ran
	Time int64  `json:"mtime_ns"`
}

func newSourceJSON(f *index.Source) sourceJSON {
	j := sourceJSON{jsonPath: newJSONPath(f.Path), Kind: f.Kind.String(), Time: f.MTime}
	if !f.Unknown {
		j.MD5 = hex.EncodeToString(f.Sum[:])
	}
	return j
}

// showJSON is what --json prints of a tree, besides its files.
type showJSON struct {
	Modified *struct{} `json:"modified,omitempty"` // one object does not tell when the store got it
	treeBody
	Patterns []string `json:"patterns"`
}

type treeBody struct{ transfer.SavedTree }

func (s *showing) json(x *index.Index, t transfer.SavedTree) error {
	o := &objectPrinter{printer: s.p}
	errs := []error{
		o.fields(head(s.a.emptyReport("show", ""))),
		o.fields(showJSON{treeBody: treeBody{t}, Patterns: x.Build.Patterns}),
	}
	if s.artifacts {
		errs = append(errs, o.list("artifacts"))
		for i := range x.Entries {
			if err := o.element(newArtifactJSON(&x.Entries[i])); err != nil {
				return err
			}
		}
	}
	if s.sources {
		errs = append(errs, o.list("sources"))
		for i := range x.Sources {
			if err := o.element(newSourceJSON(&x.Sources[i])); err != nil {
				return err
			}
		}
	}
	return errors.Join(append(errs, o.end())...)
}
