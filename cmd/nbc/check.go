package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func checkCommand(a *app) *cobra.Command {
	o := &a.options
	var opts transfer.CheckOptions
	var repair bool
	cmd := &cobra.Command{
		Use:   "check [NAME...] [flags]",
		Short: "Find out whether all that was saved can be restored",
		Long: `check reads which chunks the saved trees need and finds out whether the store
has them: by one listing, or, if names are given, by a request for each chunk.
A NAME may be a pattern, as those of nbc list. With --read-data it reads every
chunk as well and verifies it, as a restore does; with --sample 5% a twentieth
of them, others each time.

What cannot be restored is told on stdout: a line for each file, or with --json
the "files" of one object, as they are found. A missing or damaged chunk costs
a build its cache, and nothing else: the next restore finds it out, and the
save after that sends it again. With --repair, copies in the near store are
put in its place at once.

It may run at any time, and changes nothing without --repair or --probe. The
latter tries out the store's conditional writes, which nbc gc and nbc rm rely
on, and notes what it finds for them.`,
		Example: `  nbc check
  nbc check 'myapp/**' --read-data --repair
  nbc check --sample 5% --probe`,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Names = args
			opts.ReadData = opts.ReadData || opts.Sample > 0
			p := a.printer()
			object := &objectPrinter{printer: p}
			rep := &transfer.CheckReport{Report: a.emptyReport("check", "")}
			watched := func() {} // ends the progress bar, which lines on a terminal would run into
			begin := func() error {
				if !o.json || object.begun {
					return nil
				}
				return errors.Join(object.fields(head(rep.Report)), object.list("files"), p.flush())
			}
			found := func(f transfer.BrokenFile) error {
				watched()
				if o.json {
					return errors.Join(begin(), object.element(f), p.flush())
				}
				return errors.Join(p.line(fmt.Sprintf("%s: %s: chunk %s is %s", f.Name, f.Path, f.Chunk, f.Problem)), p.flush())
			}
			err := a.catalog(cmd, false, "", func(ctx context.Context, c *transfer.Cache) (err error) {
				watched = sync.OnceFunc(a.watch("checking", c.Progress))
				defer watched()
				if repair {
					l, err := parseStore(o.store)
					if err != nil {
						return err
					}
					near, err := o.openNear(l)
					switch {
					case err != nil:
						return &hinted{err, "name another directory with --near or NBC_NEAR"}
					case near == nil:
						return &hinted{usagef("--repair: there is no near store"), "name one with --near DIR"}
					}
					defer func() { err = errors.Join(err, near.Close()) }()
					opts.Repair = near
				}
				r, err := c.Check(ctx, opts, found)
				rep = r
				return err
			})
			rep.Reason, err = a.looked(args, rep.Unreadable, rep.Reason, err)
			for _, b := range rep.Broken {
				a.console.warn(brokenLine(b))
			}
			if !o.quiet {
				for _, line := range checkLines(rep) {
					a.console.line(line)
				}
			}
			err = checkHint(err, rep, repair)
			if a.raise != 0 && err == nil {
				return nil // nobody reads what would be printed
			}
			if o.json {
				err = errors.Join(err, begin(),
					object.fields(checkJSON{checkBody: checkBody{rep}, failure: newFailure(err)}), object.end())
			}
			a.told(err, checkSummary(rep))
			return nil
		},
	}
	f := cmd.Flags()
	o.storeFlags(f)
	f.BoolVar(&opts.ReadData, "read-data", false, "read all chunks and verify them")
	f.Var(&value[float64]{&opts.Sample, percentage, "", "N%"}, "sample", "read so many of them only, such as 5%")
	f.BoolVar(&repair, "repair", false, "put what is missing or damaged again, from the near store")
	f.BoolVar(&opts.Probe, "probe", false, "try out the store's conditional writes as well")
	o.catalogWorkFlags(f)
	return finish(cmd)
}

// percentage reads a share such as 5% or 0.5%.
func percentage(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(n > 0 && n <= 100) {
		return 0, fmt.Errorf("%q is not a share such as 5%% or 0.5%%", s)
	}
	return n, nil
}

// checkHint says what to do about what a check has found.
func checkHint(err error, r *transfer.CheckReport, repair bool) error {
	switch {
	case err == nil:
		return nil
	case len(r.Broken) > 0 && repair:
		return &hinted{err, "the near store has no copy; the next restore finds it out, and the save after that sends it again"}
	case len(r.Broken) > 0:
		return &hinted{err, "the next restore finds it out, and the save after that sends it again; or try --repair where " +
			"a near store is"}
	case errors.Is(err, transfer.ErrUnsafe):
		return &hinted{err, "nbc gc says what it takes to do without them"}
	}
	return unreadableHint(err, r.Unreadable)
}

// checkJSON is what --json prints behind the files.
type checkJSON struct {
	noHead
	checkBody
	failure
}

// checkBody has the report one level deeper, so that the fields of noHead win.
type checkBody struct{ *transfer.CheckReport }

func brokenLine(b transfer.BrokenName) string {
	var parts []string
	if b.Missing > 0 {
		parts = append(parts, count(b.Missing, "chunk")+" missing")
	}
	if b.Damaged > 0 {
		parts = append(parts, count(b.Damaged, "chunk")+" damaged")
	}
	return fmt.Sprintf("%s cannot be restored in full: %s, of %s", b.Name, strings.Join(parts, ", "), count(b.Files, "file"))
}

// checkLines are the report, besides what is broken.
func checkLines(r *transfer.CheckReport) []string {
	var lines []string
	if n := len(r.Dead); n > 0 {
		lines = append(lines, fmt.Sprintf("%s never acknowledged, which the next nbc gc drops: %s", count(n, "save"),
			some(r.Dead)))
	}
	if c := r.Conditions; c != nil {
		for _, p := range []struct {
			what   string
			answer transfer.Answer
		}{{"creating", c.Create}, {"replacing", c.Swap}, {"dropping", c.Drop}, {"deleting", c.Delete}} {
			if p.answer == (transfer.Answer{}) {
				continue // what comes before it does not work
			}
			works := "does not work"
			if p.answer.Works {
				works = "works"
			}
			lines = append(lines, fmt.Sprintf("conditional writes: %s %s: %s", p.what, works, p.answer.Found))
		}
	}
	q := r.Requests
	if q == (transfer.Requests{}) {
		return lines
	}
	return append(lines, fmt.Sprintf("requests: %s LIST, %s GET, %s PUT, %s", comma(q.List), comma(q.Get), comma(q.Put),
		dollars(r.Cost)))
}

func checkSummary(r *transfer.CheckReport) string {
	if r.Reason != "" {
		return r.Reason
	}
	parts := []string{fmt.Sprintf("checked %s, %s", count(r.Names, "name"), count(int(r.Chunks), "chunk"))}
	if r.Read.Chunks > 0 {
		parts = append(parts, "read and verified "+amount(r.Read))
	}
	if r.Repaired > 0 {
		parts = append(parts, "repaired "+count(int(r.Repaired), "chunk"))
	}
	parts = append(parts, "all is there")
	return strings.Join(append(parts, seconds(r.Seconds)), "; ")
}
