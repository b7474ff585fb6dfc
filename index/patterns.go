package index

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// maxAlternatives bounds what the braces of one pattern may stand for, since each pair multiplies: sixteen pairs of
// two would be 65,536 patterns, each of which is tried on every name.
const maxAlternatives = 256

// Patterns is a set of path patterns. The zero value matches nothing.
//
// In a pattern "*" and "?" match within one element of a path, "[a-z]" and "[^a-z]" match one character, "{a,b/c}"
// stands for its alternatives, "**" as a whole element matches any number of elements, none included, and a backslash
// takes the meaning from the character after it. What a pattern says literally it matches as well: "a[1]" matches the
// file of that name.
type Patterns struct {
	list []pattern
	// whole and anywhere are the states at the top of a tree, for Match and for MatchAnywhere.
	whole, anywhere states
}

// pattern is one of Patterns.
type pattern struct {
	text string
	// alternatives are what the braces stand for, each split into elements.
	alternatives [][]element
	// anywhere says that there is no slash, so that the pattern is about names where that has a meaning.
	anywhere bool
}

// element matches one element of a path, or, if deep is set, any number of them.
type element struct {
	deep bool
	glob string
	// literal is what the element matches when glob is empty.
	literal string
}

var deep = element{deep: true}

// CompilePatterns cleans the patterns ("./a//dist/" becomes "a/dist") and refuses those that cannot match a path
// inside a tree: empty ones, the tree itself, absolute ones, those that lead out of the tree, and malformed ones.
func CompilePatterns(list []string) (Patterns, error) {
	var p Patterns
	for _, text := range list {
		one, err := compile(text)
		if err != nil {
			return Patterns{}, fmt.Errorf("pattern %q: %w", text, err)
		}
		p.list = append(p.list, one)
		for _, elements := range one.alternatives {
			p.whole = append(p.whole, elements)
			if one.anywhere && !elements[0].deep {
				elements = append([]element{deep}, elements...)
			}
			p.anywhere = append(p.anywhere, elements)
		}
	}
	return p, nil
}

func compile(text string) (pattern, error) {
	switch {
	case text == "":
		return pattern{}, fmt.Errorf("is empty")
	case strings.HasPrefix(text, "/"):
		return pattern{}, fmt.Errorf("is absolute: patterns are relative to the source tree")
	case strings.ContainsRune(text, 0):
		return pattern{}, fmt.Errorf("holds a NUL, which no path does")
	}
	alternatives, err := expand(text)
	if err != nil {
		return pattern{}, err
	}
	var p pattern
	for _, a := range alternatives {
		elements, err := split(a)
		if err != nil {
			return pattern{}, err
		}
		p.alternatives = append(p.alternatives, elements)
	}

	clean := path.Clean(text)
	if len(alternatives) > 1 || alternatives[0] != text {
		// Braces may hold slashes and dots of their own ("{a,b/../c}"), which path.Clean would take for the path's.
		clean = strings.TrimRight(text, "/")
		for strings.HasPrefix(clean, "./") {
			clean = strings.TrimLeft(clean[1:], "/")
		}
	}
	p.text, p.anywhere = clean, !strings.Contains(strings.TrimRight(text, "/"), "/")
	if !p.anywhere && !strings.Contains(clean, "/") {
		p.text = "./" + clean
	}
	if strings.ContainsAny(clean, `*?[{\`) && path.Clean(clean) == clean {
		var literal []element
		for name := range strings.SplitSeq(clean, "/") {
			literal = append(literal, element{literal: name})
		}
		p.alternatives = append(p.alternatives, literal)
	}
	return p, nil
}

// split cleans a pattern without braces and cuts it into its elements.
func split(text string) ([]element, error) {
	if strings.HasPrefix(text, "/") {
		return nil, fmt.Errorf("is absolute: patterns are relative to the source tree")
	}
	clean := path.Clean(text)
	if clean == "." {
		return nil, fmt.Errorf("matches the source tree itself")
	}
	var elements []element
	for name := range strings.SplitSeq(clean, "/") {
		if !doublestar.ValidatePattern(name) {
			return nil, fmt.Errorf("is malformed: a bracket or a backslash without its end " +
				`(a backslash before a character makes it literal: "\[")`)
		}
		e := element{glob: name}
		if name == "**" {
			e = deep
		} else if !strings.ContainsAny(name, "*?[") {
			e = element{literal: unescape(name)}
		}
		if e.literal == ".." || e.literal == "." {
			return nil, fmt.Errorf("leads out of the source tree")
		}
		if e.deep && len(elements) > 0 && elements[len(elements)-1].deep {
			continue
		}
		elements = append(elements, e)
	}
	return elements, nil
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// expand returns what the braces in text stand for.
func expand(text string) ([]string, error) {
	var open, depth int
	var cuts []int // of the outermost braces: the commas and the end
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '[':
			// Braces and commas mean nothing in a class. Without an end it is refused later.
			if end := classEnd(text[i:]); end > 0 {
				i += end
			}
		case '{':
			if depth++; depth == 1 {
				open = i
			}
		case ',':
			if depth == 1 {
				cuts = append(cuts, i)
			}
		case '}':
			if depth--; depth < 0 {
				return nil, fmt.Errorf(`is malformed: "}" without "{"`)
			}
			if depth > 0 {
				continue
			}
			var all []string
			from := open + 1
			for _, cut := range append(cuts, i) {
				// What stands before is left out: it has no braces, but a "[" in it could pair up with what follows.
				rest, err := expand(text[from:cut] + text[i+1:])
				if err != nil {
					return nil, err
				}
				for _, r := range rest {
					all = append(all, text[:open]+r)
				}
				if len(all) > maxAlternatives {
					return nil, fmt.Errorf("stands for more than %d alternatives", maxAlternatives)
				}
				from = cut + 1
			}
			return all, nil
		}
	}
	if depth > 0 {
		return nil, fmt.Errorf(`is malformed: "{" without "}"`)
	}
	return []string{text}, nil
}

// classEnd returns where the class at the start of text ends, or 0.
func classEnd(text string) int {
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case ']':
			return i
		}
	}
	return 0
}

// Empty reports whether there are no patterns, so that nothing matches.
func (p Patterns) Empty() bool { return len(p.list) == 0 }

// Strings returns the cleaned patterns. Compiling them again gives the same set: of "./dist" the dot stays, because it
// makes a difference to [Patterns.MatchAnywhere].
func (p Patterns) Strings() []string {
	var all []string
	for _, one := range p.list {
		all = append(all, one.text)
	}
	return all
}

// Match reports whether a pattern matches the whole path, which is relative to the tree. The tree itself (".") is never
// matched.
func (p Patterns) Match(path string) bool { return p.whole.matchPath(path) }

// MatchAnywhere is Match with the rule of --exclude and --ignore-source: a pattern without a slash matches the last
// element of the path, however deep it is.
func (p Patterns) MatchAnywhere(path string) bool { return p.anywhere.matchPath(path) }

// states is what is left to match of patterns somewhere on the way into a tree: so a walk looks at each name once, and
// sees when nothing below a directory can match.
type states [][]element

func (s states) matchPath(path string) bool {
	if path == "." {
		return false
	}
	for {
		name, below, more := strings.Cut(path, "/")
		if !more {
			return s.match(name)
		}
		if s = s.step(name); len(s) == 0 {
			return false
		}
		path = below
	}
}

// match reports whether name itself is matched.
func (s states) match(name string) bool {
	for _, elements := range s {
		if matchLast(elements, name) {
			return true
		}
	}
	return false
}

// matchLast reports whether the elements match name and nothing else. Every "deep" may stand for nothing, and two of
// them never follow each other.
func matchLast(elements []element, name string) bool {
	if elements[0].deep {
		return len(elements) == 1 || matchLast(elements[1:], name)
	}
	ended := len(elements) == 1 || len(elements) == 2 && elements[1].deep
	return ended && elements[0].match(name)
}

// step returns what is left to match below name.
func (s states) step(name string) states {
	var next states
	add := func(elements []element) {
		// Two states of one pattern are the same when they share their memory. Without this check the states of
		// "**/a/**/a/**/a" would double with every element of the path.
		same := func(o []element) bool { return len(o) == len(elements) && &o[0] == &elements[0] }
		if len(elements) > 0 && !slices.ContainsFunc(next, same) {
			next = append(next, elements)
		}
	}
	for _, elements := range s {
		if elements[0].deep {
			add(elements)
			elements = elements[1:]
		}
		if len(elements) > 0 && elements[0].match(name) {
			add(elements[1:])
		}
	}
	return next
}

// names returns the only names that can matter next, or false if they cannot be listed.
func (s states) names() ([]string, bool) {
	var all []string
	for _, elements := range s {
		if elements[0].deep || elements[0].glob != "" {
			return nil, false
		}
		all = append(all, elements[0].literal)
	}
	return all, true
}

func (e element) match(name string) bool {
	if e.glob == "" {
		return e.literal == name
	}
	return doublestar.MatchUnvalidated(e.glob, name)
}
