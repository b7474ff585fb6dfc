package main

import (
	"context"

	"github.com/spf13/cobra"

	"nbc/transfer"
)

func saveCommand(a *app) *cobra.Command {
	o := &a.options
	cmd := &cobra.Command{
		Use:   "save [NAME --dir PATTERN...] [flags]",
		Short: "Save the directories, after a build",
		Long: `save stores the build's directories: run it after the build. Without NAME it
saves what the nbc restore before the build was about; it then need not read
what the build has not touched, and knows which sources were built. What is
given here all the same (--dir, --exclude, --ignore-source, --output-path,
--no-rewrite) replaces what the restore was given.

With NAME and --dir it needs no restore, and hashes the sources only now, after
the build: what has changed since the build read it is taken for built.`,
		Example: `  nbc save
  nbc save --failed
  nbc save myapp/main --dir dist`,
		Args:              cobra.MatchAll(cobra.MaximumNArgs(1), nameArg),
		ValidArgsFunction: a.completeOneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := transfer.SaveOptions{Failed: o.failed}
			if len(args) > 0 {
				opts.Name = args[0]
				if err := o.needDirs(); err != nil {
					return err
				}
			} else if cmd.Flags().Changed("fallback") && origin(cmd, "fallback") == "--fallback" {
				return usagef("--fallback needs a NAME: without one, they are those of the restore")
			}
			p, err := a.place(cmd)
			if err != nil {
				return err
			}
			opts.Tree, opts.Outputs, opts.Fallbacks = p.tree, p.outputs, o.fallbacks
			if opts.Name == "" && len(o.ignoreSource) == 0 {
				opts.IgnoreSources = nil // the receipt has nbc's own files, too
			}
			rep := &transfer.SaveReport{Report: a.emptyReport("save", opts.Name)}
			doing := "saving"
			if opts.Name != "" {
				doing += " " + opts.Name
			}
			err = a.step(cmd, p, doing, func(ctx context.Context, s *session) error {
				r, err := a.save(ctx, s, opts)
				if r != nil {
					rep = r
				}
				return err
			})
			a.report(err, saveSummary(rep), saveJSON{rep, newFailure(err)})
			return nil
		},
	}
	o.treeFlags(cmd.Flags())
	o.outputFlags(cmd.Flags())
	o.placeFlags(cmd.Flags())
	cmd.Flags().BoolVar(&o.failed, "failed", false,
		"the build failed: keep what it has made only where that replaces nothing better")
	o.workFlags(cmd.Flags())
	o.stepFlags(cmd.Flags())
	return finish(cmd)
}

// saveJSON is what --json prints of a save.
type saveJSON struct {
	*transfer.SaveReport
	failure
}
