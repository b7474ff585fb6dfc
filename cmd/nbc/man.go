package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand is for packagers, who know that it is there.
func manCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "man",
		Short:             "Print the man page nbc(1)",
		Args:              cobra.NoArgs,
		Hidden:            true,
		ValidArgsFunction: cobra.NoFileCompletions,
		Run: func(cmd *cobra.Command, _ []string) {
			a.print(manPage(cmd.Root()))
		},
	}
}

// manPage is the help of all verbs and topics as one page, so that a search in it finds everything.
func manPage(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH NBC 1 \"\" \"nbc %s\" \"\"\n", roff(root.Version))
	fmt.Fprintf(&b, ".SH NAME\nnbc \\- %s\n", roff(root.Short))
	b.WriteString(".SH SYNOPSIS\n.nf\n")
	for _, cmd := range root.Commands() {
		if isVerb(cmd) {
			fmt.Fprintf(&b, "nbc %s\n", roff(cmd.Use))
		}
	}
	b.WriteString(".fi\n.SH DESCRIPTION\n")
	manText(&b, strings.TrimSuffix(root.Long, exitCodes))
	for _, cmd := range root.Commands() {
		if isVerb(cmd) {
			manVerb(&b, cmd)
		}
	}
	for _, cmd := range root.Commands() {
		if cmd.IsAdditionalHelpTopicCommand() {
			fmt.Fprintf(&b, ".SH %s\n", roff(strings.ToUpper(strings.ReplaceAll(cmd.Name(), "-", " "))))
			manText(&b, cmd.Long)
		}
	}
	return b.String()
}

// isVerb tells the verbs of nbc from topics and from what the command library adds.
func isVerb(cmd *cobra.Command) bool { return cmd.Runnable() && !cmd.Hidden && cmd.Name() != "help" }

func manVerb(w io.Writer, cmd *cobra.Command) {
	_, _ = fmt.Fprintf(w, ".SH NBC %s\n.B nbc %s\n.PP\n", roff(strings.ToUpper(cmd.Name())), roff(cmd.Use))
	if cmd.Long == "" || cmd.HasSubCommands() {
		manText(w, cmd.Short+".")
		return
	}
	manText(w, cmd.Long)
	if cmd.Example != "" {
		_, _ = fmt.Fprint(w, ".PP\nExamples:\n")
		manText(w, cmd.Example)
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		arg, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		_, _ = fmt.Fprintf(w, ".TP\n\\fB%s\\fR \\fI%s\\fR\n%s\n", roff(name), roff(arg), roff(usage))
	})
}

// manText writes text as it is laid out in the help: indented lines stay as they are, the others are filled.
func manText(w io.Writer, text string) {
	asItIs := false
	for l := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		l = strings.TrimRight(l, "\n")
		switch indented := strings.HasPrefix(l, " ") || table(l); {
		case indented && !asItIs:
			_, _ = io.WriteString(w, ".PP\n.nf\n")
			asItIs = true
		case !indented && asItIs:
			_, _ = io.WriteString(w, ".fi\n")
			asItIs = false
		}
		if l == "" {
			_, _ = io.WriteString(w, ".PP\n")
			continue
		}
		_, _ = io.WriteString(w, roff(l)+"\n")
	}
	if asItIs {
		_, _ = io.WriteString(w, ".fi\n")
	}
}

// table tells a row of a table, which starts at the margin, by the gap in it.
func table(l string) bool { return strings.Contains(l, "  ") }

// roff quotes what would be a command of the formatter.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
