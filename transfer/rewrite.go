package transfer

import (
	"fmt"
	"slices"
	"strings"

	"nbc/index"
)

// rewriting puts the output paths of this build where the index has placeholders. The zero value does nothing.
type rewriting struct {
	saved index.Outputs
	// were are the texts of the build that was saved, and holders its placeholders, by the place of the output in
	// saved.List; are those of this build, empty where it has no such output.
	were, holders, are []texts
	find               *finder // of the saved paths, for links
	// asSaved says which artifacts get back what they held when they were saved, and leftOut which ones the save was
	// told to leave as they are.
	asSaved, leftOut func(p string) bool
	// outputs and noRewrite are what the restore was given.
	outputs   []index.Output
	noRewrite []string
}

// newRewriting returns a miss if x holds output paths for which this build has none of the same length.
func newRewriting(x *index.Index, outputs []index.Output, tree Tree) (*rewriting, error) {
	w := &rewriting{saved: x.Outputs, outputs: outputs}
	if len(outputs) > 0 {
		w.noRewrite = tree.NoRewrite
	}
	if len(w.saved.List) == 0 {
		if len(outputs) > 0 {
			return nil, missf("it was saved without --output-path, so that the paths of another build may stand in it")
		}
		return w, nil
	}
	var err error
	if w.asSaved, err = tree.noRewrite(); err != nil {
		return nil, err
	}
	if w.leftOut, err = (Tree{NoRewrite: w.saved.NoRewrite}).noRewrite(); err != nil {
		// The format does not say what a pattern is; a newer program may know others.
		return nil, missf("of its artifacts, it is not known which are to be left as they are: %v", err)
	}
	w.find, w.holders = newFinder(w.saved.List), placeholders(w.saved.List)
	w.were, w.are = make([]texts, len(w.saved.List)), make([]texts, len(w.saved.List))
	for i, o := range w.saved.List {
		w.were[i] = texts{o.Text(false), o.Text(true)}
		if now, ok := findOutput(outputs, o.Name); ok {
			w.are[i] = texts{now.Text(false), now.Text(true)}
		}
	}
	return w, w.fits(x)
}

func findOutput(list []index.Output, name string) (index.Output, bool) {
	i := slices.IndexFunc(list, func(o index.Output) bool { return o.Name == name })
	if i < 0 {
		return index.Output{}, false
	}
	return list[i], true
}

// fits returns a miss if this build's outputs cannot take the places of those that x holds.
func (w *rewriting) fits(x *index.Index) error {
	used, named := make([]bool, len(w.saved.List)), make([]bool, len(w.saved.List))
	for _, c := range x.Outputs.Occurrences {
		used[c.Output] = true
		named[c.Output] = named[c.Output] || c.Named
	}
	for i := range x.Entries {
		if e := &x.Entries[i]; e.Kind == index.Link && w.rewrites(e) {
			for c := range w.inLink(e.Target) {
				used[c.Output] = true // of any length
			}
		}
	}
	for i, was := range w.saved.List {
		now, ok := findOutput(w.outputs, was.Name)
		switch {
		case !used[i]:
		case !ok && len(w.outputs) == 0:
			return missf("the output path of its build stands in it, and it is not known what to write instead "+
				"(--output-path %s=PATH)", was.Name)
		case !ok:
			return missf("the path of its output %q stands in it, and this build has no such output "+
				"(--output-path %s=PATH)", was.Name, was.Name)
		case was.Dir() != now.Dir():
			return missf("its output paths are in %s, those of this build in %s", was.Dir(), now.Dir())
		case named[i] && len(was.Base()) != len(now.Base()):
			return missf("%s stands in it, and has not the length of %s", was.Base(), now.Base())
		}
	}
	return nil
}

// inLink finds output paths in what a link holds.
func (w *rewriting) inLink(target string) func(yield func(index.Occurrence) bool) {
	return func(yield func(index.Occurrence) bool) {
		b := []byte(target)
		for i := 0; ; {
			c, ok := w.find.next(b, i, len(b))
			if !ok || !yield(c) {
				return
			}
			i = int(c.Offset + w.saved.Length(c))
		}
	}
}

// rewrites says whether the link e is one of those that are not left as they are.
func (w *rewriting) rewrites(e *index.Entry) bool {
	return len(w.saved.List) > 0 && !w.asSaved(e.Path) && !w.leftOut(e.Path)
}

// target returns what the link e holds in this build, and at how many places that is an output path.
func (w *rewriting) target(e *index.Entry) (text string, places int) {
	if !w.rewrites(e) {
		return e.Target, 0
	}
	var b strings.Builder
	done := 0
	for c := range w.inLink(e.Target) {
		places++
		b.WriteString(e.Target[done:c.Offset])
		b.WriteString(w.are[c.Output].of(c))
		done = int(c.Offset + w.saved.Length(c))
	}
	return b.String() + e.Target[done:], places
}

// write puts output paths into a part of a file, which begins at offset of the contents. Places are those of the file.
func (w *rewriting) write(part []byte, offset int64, f *stagedFile) error {
	if len(f.places) == 0 {
		return nil
	}
	now := w.are
	if f.asSaved {
		now = w.were
	}
	err := replace(part, offset, f.places,
		func(c index.Occurrence) string { return w.holders[c.Output].of(c) },
		func(c index.Occurrence) string { return now[c.Output].of(c) })
	if err != nil {
		return fmt.Errorf("%w: %w for an output path in %q", index.ErrInvalid, err, f.entry.Path)
	}
	return nil
}

// held says what stands at c in a file of an older tree.
func (r *receipt) held(was *index.Index, asSaved func(p string) bool, p string, c index.Occurrence) string {
	if asSaved(p) {
		return was.Outputs.List[c.Output].Text(c.Named)
	}
	o, ok := findOutput(r.FileOutputs, was.Outputs.List[c.Output].Name)
	if !ok {
		return ""
	}
	return o.Text(c.Named)
}
