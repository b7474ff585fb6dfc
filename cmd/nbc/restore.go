package main

import (
	"context"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func restoreCommand(a *app) *cobra.Command {
	o := &a.options
	cmd := &cobra.Command{
		Use:   "restore NAME --dir PATTERN... [flags]",
		Short: "Put back what is saved under NAME, before a build",
		Long: `restore puts the directories that are saved under the cache name NAME back
into the source tree, and makes the file times say which sources have changed
since: run it before the build. Where there is nothing to restore the tree
stays as it is, the build runs cold, and the exit code is 0. Either way the
nbc save after the build knows what to save.`,
		Example: `  nbc restore myapp/$BRANCH --fallback myapp/main --dir dist --dir 'packages/*/dist'
  nbc restore myapp/main --dir build --store 's3://bucket/nbc?region=eu-west-1'`,
		Args:              cobra.MatchAll(nameArg, cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeOneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.needDirs(); err != nil {
				return err
			}
			p, err := a.place(cmd)
			if err != nil {
				return err
			}
			opts := o.restore(args[0], p)
			rep := &transfer.RestoreReport{Report: a.emptyReport("restore", args[0])}
			err = a.step(cmd, p, "restoring "+args[0], func(ctx context.Context, s *session) error {
				r, err := s.build.Restore(ctx, opts)
				if r != nil {
					rep = r
				}
				return err
			})
			a.report(err, restoreSummary(rep), restoreJSON{rep, newFailure(err)})
			return nil
		},
	}
	o.treeFlags(cmd.Flags())
	o.outputFlags(cmd.Flags())
	o.placeFlags(cmd.Flags())
	o.restoreFlags(cmd.Flags())
	o.workFlags(cmd.Flags())
	o.stepFlags(cmd.Flags())
	return finish(cmd)
}

// restoreJSON is what --json prints of a restore.
type restoreJSON struct {
	*transfer.RestoreReport
	failure
}

// restore returns what the flags say of a restore.
func (o *options) restore(name string, p place) transfer.RestoreOptions {
	return transfer.RestoreOptions{
		Tree:      p.tree,
		Outputs:   p.outputs,
		Name:      name,
		Fallbacks: o.fallbacks,
		Times:     o.times,
		OnSkew:    o.onSkew,
		Moved:     o.moved,
		Replace:   o.replace,
	}
}
