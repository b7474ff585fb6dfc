package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func listCommand(a *app) *cobra.Command {
	o := &a.options
	cmd := &cobra.Command{
		Use:   "list [PATTERN...] [flags]",
		Short: "List the cache names of a store",
		Long: `list tells which trees a store holds: under which cache name, how long ago they
were saved by the store's clock, how many files and bytes they have, in how
many chunks, on which machine and in which directory they were saved, and
whether the build had failed. A PATTERN is a name, or a pattern of names as
those of nbc gc --keep: 'myapp/*', '**/main'.

Names are sorted, and told as they come. With --json, stdout has one object
whose "names" are written as they come, too.`,
		Example: `  nbc list
  nbc list 'myapp/**' --json`,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			p := a.printer()
			object := &objectPrinter{printer: p}
			rep := &transfer.ListReport{Report: a.emptyReport("list", "")}
			doing := "listing"
			if a.stdoutTerminal() {
				doing = "" // what comes is what there is to be seen
			}
			var width int
			begin := func(names []string) error {
				width = nameColumn(names)
				if o.json {
					err := object.fields(head(rep.Report))
					return errors.Join(err, object.list("names"), p.flush())
				}
				if len(names) == 0 {
					return nil
				}
				return p.line(fmt.Sprintf("%-*s %6s %9s %8s %7s  %s", width, "NAME", "AGE", "FILES", "SIZE", "CHUNKS", "FROM"))
			}
			now := time.Now()
			err := a.catalog(cmd, false, doing, func(ctx context.Context, c *transfer.Cache) error {
				r, err := c.List(ctx, args, begin, func(t transfer.SavedTree) error {
					if o.json {
						return errors.Join(object.element(t), p.flush())
					}
					return errors.Join(p.line(fmt.Sprintf("%-*s %6s %9s %8s %7s  %s", width, printable(t.Name),
						since(t.When(), now), comma(t.Files), size(t.Bytes), comma(t.Chunks),
						from(t.Host, t.Root, t.Failures))), p.flush())
				})
				rep = r
				return err
			})
			rep.Reason, err = a.looked(args, rep.Unreadable, rep.Reason, err)
			err = unreadableHint(err, rep.Unreadable)
			if a.raise != 0 && err == nil {
				return nil // nobody reads what would be printed
			}
			if o.json {
				if !object.begun {
					err = errors.Join(err, object.fields(head(rep.Report)), object.list("names"))
				}
				err = errors.Join(err, object.fields(listJSON{listBody: listBody{rep}, failure: newFailure(err)}), object.end())
			}
			a.told(err, listSummary(rep))
			return nil
		},
	}
	o.catalogFlags(cmd.Flags())
	o.catalogWorkFlags(cmd.Flags())
	return finish(cmd)
}

// reportHead is the beginning of an object whose lists come before the rest of the report.
type reportHead struct {
	Version int    `json:"version"`
	Action  string `json:"action"`
}

func head(r transfer.Report) reportHead { return reportHead{r.Version, r.Action} }

// noHead leaves out of a report what is in its head.
type noHead struct {
	Version *struct{} `json:"version,omitempty"`
	Action  *struct{} `json:"action,omitempty"`
	Name    *struct{} `json:"name,omitempty"`
}

// listJSON is what --json prints behind the names.
type listJSON struct {
	noHead
	listBody
	failure
}

// listBody has the report one level deeper, so that the fields of noHead win.
type listBody struct{ *transfer.ListReport }

func listSummary(r *transfer.ListReport) string {
	if r.Reason != "" {
		return r.Reason
	}
	return fmt.Sprintf("%s, %s; %s", count(r.Names, "name"), size(r.Bytes), seconds(r.Seconds))
}

// told ends a verb that has printed what it was asked for: with the error, or a summary.
func (a *app) told(err error, summary string) {
	switch {
	case unread(err):
		a.raise = syscall.SIGPIPE
	case err != nil:
		a.failed(err)
	case !a.options.quiet && summary != "":
		a.console.line(summary)
	}
}
