package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func timesCommand(a *app) *cobra.Command {
	o := &a.options
	cmd := &cobra.Command{
		Use:   "times [flags]",
		Short: "Set file times again, between configure and the build",
		Long: `times is a second pass, for builds with a configure step: what that has written
again since the nbc restore, with the same contents as at the save, gets its
recorded time back, so that it is not the reason to build everything anew.`,
		Example:           "  nbc restore myapp/main --dir build && ./configure && nbc times && make",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.place(cmd)
			if err != nil {
				return err
			}
			rep := &transfer.TimesReport{Report: a.emptyReport("times", "")}
			err = a.step(cmd, p, "setting times", func(ctx context.Context, s *session) error {
				r, err := s.build.Times(ctx)
				if r != nil {
					rep = r
				}
				if errors.Is(err, transfer.ErrNoReceipt) {
					// Unlike a save it cannot do with a name of its own.
					err = &hinted{err, "restore first: nbc restore NAME --dir DIR"}
				}
				return err
			})
			a.report(err, timesSummary(rep), timesJSON{rep, newFailure(err)})
			return nil
		},
	}
	o.placeFlags(cmd.Flags())
	o.workFlags(cmd.Flags())
	o.stepFlags(cmd.Flags())
	return finish(cmd)
}

// timesJSON is what --json prints of a second pass.
type timesJSON struct {
	*transfer.TimesReport
	failure
}
