package remote

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"nbc/index"
)

// Right is what a rule allows to do with a cache name.
type Right string

// The rights. Neither implies the other.
const (
	Reading Right = "read"
	Writing Right = "write"
)

// Rule allows something. What no rule allows is refused.
type Rule struct {
	Right Right
	// Glob matches cache names. In it "*" stands for any text without a slash, "**" for any text, "?" for one character
	// other than a slash, and a backslash takes the meaning from the character after it.
	//
	// The input key of a name does not count (see [index.CutInputKey]): "app/main" and "app/main@4f2c…" are the same to a
	// rule.
	Glob string
	// UIDs and GIDs are those that the peer's process must have: one of each list that is not empty. A process has one
	// GID here, that of its credentials; supplementary groups do not count.
	UIDs, GIDs []uint32
}

// Rules decide what a peer may do. The zero value allows nothing.
type Rules []Rule

// Allow reports whether a peer may read or write the index of a cache name.
func (rs Rules) Allow(p Peer, right Right, name string) bool {
	name, _, _ = index.CutInputKey(name)
	return name != "" && slices.ContainsFunc(rs, func(r Rule) bool {
		return r.Right == right && r.admits(p) && match(r.Glob, name)
	})
}

// Any reports whether there is any name that a peer may read or write.
func (rs Rules) Any(p Peer, right Right) bool {
	return slices.ContainsFunc(rs, func(r Rule) bool { return r.Right == right && r.admits(p) })
}

// maxListings bounds how many listings of the far store one listing for a peer takes.
const maxListings = 16

// prefixes returns the prefixes of keys that together hold every index whose key begins with prefix and that the peer
// may read, in the order of the keys, and hardly any other: so what a listing costs, and how long it takes, tells a peer
// nothing of the names that it may not read.
func (rs Rules) prefixes(p Peer, prefix string) []string {
	var list []string
	for _, r := range rs {
		if r.Right != Reading || !r.admits(p) {
			continue
		}
		switch begin := index.PathPrefix(literal(r.Glob)); {
		case strings.HasPrefix(begin, prefix):
			list = append(list, begin)
		case strings.HasPrefix(prefix, begin):
			return []string{prefix}
		}
	}
	slices.Sort(list)
	var apart []string
	for _, begin := range list {
		// What begins with another one of the list stands behind it.
		if n := len(apart); n == 0 || !strings.HasPrefix(begin, apart[n-1]) {
			apart = append(apart, begin)
		}
	}
	if len(apart) > maxListings {
		return []string{prefix}
	}
	return apart
}

// literal returns the text that every name begins with that glob matches.
func literal(glob string) string {
	var b strings.Builder
	for i := 0; i < len(glob) && glob[i] != '*' && glob[i] != '?'; i++ {
		if glob[i] == '\\' && i+1 < len(glob) {
			i++
		}
		b.WriteByte(glob[i])
	}
	return b.String()
}

// admits reports whether the rule is about this peer. One of which nothing is known is only admitted by rules for all.
func (r Rule) admits(p Peer) bool {
	return (len(r.UIDs) == 0 || p.Known && slices.Contains(r.UIDs, p.UID)) &&
		(len(r.GIDs) == 0 || p.Known && slices.Contains(r.GIDs, p.GID))
}

// CheckGlob refuses a glob that cannot be meant.
func CheckGlob(glob string) error {
	switch {
	case glob == "":
		return errors.New("glob of cache names is empty")
	case !utf8.ValidString(glob) || strings.ContainsFunc(glob, unicode.IsControl):
		return fmt.Errorf("glob %q holds bytes that are not text", glob)
	}
	if rest := strings.TrimRight(glob, `\`); (len(glob)-len(rest))%2 != 0 {
		return fmt.Errorf("glob %q ends in a backslash that quotes nothing", glob)
	}
	return nil
}

// match reports whether glob matches all of name. It takes time in proportion to the product of their lengths.
func match(glob, name string) bool {
	// here[i] says whether what was read of glob matches name[:i].
	here := make([]bool, len(name)+1)
	next := make([]bool, len(name)+1)
	here[0] = true
	for glob != "" {
		clear(next)
		switch {
		case strings.HasPrefix(glob, "**"):
			glob = strings.TrimLeft(glob, "*")
			any := false
			for i := range next {
				any = any || here[i]
				next[i] = any
			}
		case glob[0] == '*':
			glob = glob[1:]
			run := false
			for i := range next {
				run = run && name[i-1] != '/' || here[i]
				next[i] = run
			}
		case glob[0] == '?':
			glob = glob[1:]
			for i := 0; i < len(name); {
				_, n := utf8.DecodeRuneInString(name[i:])
				next[i+n] = here[i] && name[i] != '/'
				i += n
			}
		default:
			if glob[0] == '\\' && len(glob) > 1 {
				glob = glob[1:]
			}
			c := glob[0]
			glob = glob[1:]
			for i := range len(name) {
				next[i+1] = here[i] && name[i] == c
			}
		}
		here, next = next, here
	}
	return here[len(name)]
}

// maxRules bounds a file of rules in lines: every request looks at all of them.
const maxRules = 10_000

// ParseRules reads a file of rules: one on each line; a word that begins with "#" begins a comment.
//
//	read  GLOB [uid=USER]... [gid=GROUP]...
//	write GLOB [uid=USER]... [gid=GROUP]...
//
// USER and GROUP are numbers or names of this machine. A space in a cache name is matched by "?".
func ParseRules(text string) (Rules, error) {
	var rs Rules
	n := 0
	for line := range strings.Lines(text) {
		n++
		fields := strings.Fields(line)
		if i := slices.IndexFunc(fields, func(f string) bool { return f[0] == '#' }); i >= 0 {
			fields = fields[:i]
		}
		if len(fields) == 0 {
			continue
		}
		r, err := parseRule(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		rs = append(rs, r)
		if len(rs) > maxRules {
			return nil, fmt.Errorf("line %d: more than %d rules", n, maxRules)
		}
	}
	return rs, nil
}

func parseRule(fields []string) (Rule, error) {
	r := Rule{Right: Right(fields[0])}
	if r.Right != Reading && r.Right != Writing {
		return r, fmt.Errorf("%q is neither %s nor %s", fields[0], Reading, Writing)
	}
	if len(fields) == 1 {
		return r, fmt.Errorf("%s what? A glob of cache names is missing", fields[0])
	}
	r.Glob = fields[1]
	if err := CheckGlob(r.Glob); err != nil {
		return r, err
	}
	for _, f := range fields[2:] {
		what, who, _ := strings.Cut(f, "=")
		var id uint32
		var err error
		switch what {
		case "uid":
			id, err = ParseUser(who)
			r.UIDs = append(r.UIDs, id)
		case "gid":
			id, err = ParseGroup(who)
			r.GIDs = append(r.GIDs, id)
		default:
			err = fmt.Errorf("%q is neither uid=USER nor gid=GROUP", f)
		}
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// ParseUser returns the UID of a user, who is given by number or name.
func ParseUser(who string) (uint32, error) {
	return parseID(who, func() (string, error) {
		u, err := user.Lookup(who)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

// ParseGroup returns the GID of a group that is given by number or name.
func ParseGroup(who string) (uint32, error) {
	return parseID(who, func() (string, error) {
		g, err := user.LookupGroup(who)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func parseID(who string, lookUp func() (string, error)) (uint32, error) {
	if who == "" {
		return 0, errors.New("user or group is empty")
	}
	if strings.Trim(who, "0123456789") != "" {
		var err error
		if who, err = lookUp(); err != nil {
			return 0, err
		}
	}
	id, err := strconv.ParseUint(who, 10, 32)
	if err != nil || id == 1<<32-1 { // which means "nobody in particular" to system calls
		return 0, fmt.Errorf("%q is no number of a user or group", who)
	}
	return uint32(id), nil
}
