package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func diffCommand(a *app) *cobra.Command {
	o := &a.options
	var opts transfer.DiffOptions
	cmd := &cobra.Command{
		Use:   "diff NAME NAME [flags]",
		Short: "Say how two saved trees differ",
		Long: `diff lists what the second tree has (+) that the first one has not, the other
way round (-), and what both have but not alike (~): artifacts by content, mode
and the target of links, sources by their MD5. Times count only with --with-times. A
question mark stands for what may differ, such as a source that changed while
its build ran.

Mostly the list of chunks tells whether two files are alike. Where it does not,
because a file shares a chunk with one that has changed, the bytes are compared:
only chunks with such files are fetched, or none with --no-fetch, and then such
files may differ.

As that of diff(1), the exit code is 0 if nothing differs, 1 if something does
or may; a failure of another kind is 2 here.`,
		Example: `  nbc diff myapp/main myapp/pr-17`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("two cache names are to be compared, not %d", len(args))
			}
			for i := range args {
				if err := nameArg(cmd, args[i:]); err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeNames(cmd, args, start)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.From, opts.To = args[0], args[1]
			rep := &transfer.DiffReport{Report: a.emptyReport("diff", ""), From: opts.From, To: opts.To}
			d := &differing{p: a.printer(), json: o.json}
			d.object = objectPrinter{printer: d.p}
			doing := "comparing " + opts.From + " and " + opts.To
			if a.stdoutTerminal() {
				doing = "" // what comes is what there is to be seen
			}
			err := a.catalog(cmd, true, doing, func(ctx context.Context, c *transfer.Cache) error {
				if err := d.begin(rep); err != nil {
					return err
				}
				r, err := c.Diff(ctx, opts, d.change)
				rep = r
				return err
			})
			if a.raise != 0 && err == nil {
				return nil // nobody reads what would be printed
			}
			printing := d.end(rep, err)
			if err == nil {
				err = printing
			}
			a.told(err, diffSummary(rep))
			switch {
			case a.code == otherKind.code:
				a.code = kindOf(usageError{err}).code
			case err == nil && !rep.Same:
				a.code = 1
			}
			return nil
		},
	}
	f := cmd.Flags()
	o.storeFlags(f)
	f.BoolVar(&opts.Times, "with-times", false, "a file with another time is different")
	f.BoolVar(&opts.NoFetch, "no-fetch", false, "fetch no chunks to find out what the lists of chunks do not tell")
	o.catalogWorkFlags(f)
	return finish(cmd)
}

// differing prints differences as they are found.
type differing struct {
	p      *printer
	json   bool
	object objectPrinter
	title  string
}

func (d *differing) begin(r *transfer.DiffReport) error {
	if !d.json {
		return nil
	}
	if err := d.object.fields(head(r.Report)); err != nil {
		return err
	}
	return d.object.list("differences")
}

func (d *differing) change(c transfer.Change) error {
	if d.json {
		return d.object.element(newChangeJSON(c))
	}
	title := "artifacts:"
	if c.Source {
		title = "sources:"
	}
	if d.title != title {
		d.title = title
		_ = d.p.line(title) // the error stays
	}
	sign := map[transfer.What]string{
		transfer.Added: "+", transfer.Deleted: "-", transfer.Changed: "~", transfer.MayDiffer: "?",
	}[c.What]
	return d.p.line("  " + sign + " " + c.Path + changeText(c))
}

func (d *differing) end(r *transfer.DiffReport, err error) error {
	if !d.json {
		return d.p.flush()
	}
	if !d.object.begun {
		if err := d.begin(r); err != nil {
			return err
		}
	}
	if err := d.object.fields(diffJSON{diffBody: diffBody{r}, failure: newFailure(err)}); err != nil {
		return err
	}
	return d.object.end()
}

// changeText says what is different, behind the path.
func changeText(c transfer.Change) string {
	var parts []string
	for _, aspect := range c.Aspects {
		text := string(aspect)
		from, to := c.From, c.To
		switch {
		case from == nil && aspect == transfer.KindAspect:
			text = fmt.Sprintf("%s instead of %s", c.ToSource.Kind, c.FromSource.Kind)
		case from == nil:
		case aspect == transfer.KindAspect:
			text = fmt.Sprintf("%s instead of %s", to.Kind, from.Kind)
		case aspect == transfer.ContentAspect && from.Size != to.Size:
			text = fmt.Sprintf("%s instead of %s bytes", comma(to.Size), comma(from.Size))
		case aspect == transfer.ModeAspect:
			text = fmt.Sprintf("mode %04o instead of %04o", to.Mode, from.Mode)
		case aspect == transfer.TargetAspect:
			text = fmt.Sprintf("leads to %s instead of %s", to.Target, from.Target)
		}
		parts = append(parts, text)
	}
	if c.Reason != "" {
		parts = append(parts, c.Reason)
	}
	if len(parts) == 0 {
		return ""
	}
	return "  (" + strings.Join(parts, ", ") + ")"
}

// changeJSON is a difference in JSON.
type changeJSON struct {
	jsonPath
	Source  bool              `json:"source"`
	What    transfer.What     `json:"what"`
	Aspects []transfer.Aspect `json:"aspects,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	From    any               `json:"from,omitempty"`
	To      any               `json:"to,omitempty"`
}

func newChangeJSON(c transfer.Change) changeJSON {
	j := changeJSON{jsonPath: newJSONPath(c.Path), Source: c.Source, What: c.What, Aspects: c.Aspects, Reason: c.Reason}
	if c.From != nil {
		j.From = newArtifactJSON(c.From)
	}
	if c.To != nil {
		j.To = newArtifactJSON(c.To)
	}
	if c.FromSource != nil {
		j.From = newSourceJSON(c.FromSource)
	}
	if c.ToSource != nil {
		j.To = newSourceJSON(c.ToSource)
	}
	return j
}

// diffJSON is what --json prints behind the differences.
type diffJSON struct {
	noHead
	diffBody
	failure
}

// diffBody has the report one level deeper, so that the fields of noHead win.
type diffBody struct{ *transfer.DiffReport }

func diffSummary(r *transfer.DiffReport) string {
	verb := "differ"
	if r.Same {
		verb = "do not differ"
	}
	parts := []string{
		fmt.Sprintf("%s and %s %s: artifacts: %s", r.From, r.To, verb, diffCounts(r.Artifacts)),
		"sources: " + diffCounts(r.Sources),
		fmt.Sprintf("%s of %s shared", comma(r.Shared), count(r.ToChunks, "chunk")),
	}
	if r.Fetched.Chunks > 0 {
		parts = append(parts, fmt.Sprintf("fetched %s (%s)", count(r.Fetched.Chunks, "chunk"), size(r.Fetched.Bytes)))
	}
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}

func diffCounts(d transfer.DiffCounts) string {
	parts := []string{comma(d.Same) + " alike"}
	for _, p := range []struct {
		n    int
		what string
	}{{d.Added, "added"}, {d.Deleted, "deleted"}, {d.Changed, "changed"}, {d.MayDiffer, "may differ"}} {
		if p.n > 0 {
			parts = append(parts, comma(p.n)+" "+p.what)
		}
	}
	return strings.Join(parts, ", ")
}
