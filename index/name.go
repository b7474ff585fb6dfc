package index

import (
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Prefix is where all indexes of a store are.
const Prefix = "index/"

// maxEscaped bounds an escaped cache name, so that it is one file name everywhere.
const maxEscaped = 240

// Path returns the object's key of a cache name: "index/" and the name with every byte other than lower-case letters,
// digits and "._-+@=" written as "~" and two hexadecimal digits, a dot at its start as well. Upper-case letters are not
// left as they are, because there are file systems on which two names that differ by them alone would be one file. It
// refuses names that are empty, too long, not UTF-8, or hold control characters.
func Path(name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("a cache name is empty")
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", fmt.Errorf("cache name %q holds bytes that are not text", name)
	}
	key := PathPrefix(name)
	if n := len(key) - len(Prefix); n > maxEscaped {
		return "", fmt.Errorf("cache name %q is too long: %d bytes when escaped, %d are allowed", name, n, maxEscaped)
	}
	return key, nil
}

// CutInputKey cuts a cache name at its last "@". Nix builds put a hash of all inputs but the sources there, so that
// artifacts are not mixed with those of another compiler: "app/main@4f2c" is the name "app/main" under the key "4f2c".
// A key has no slash, so "org/@scope/package" is a name without one; then, and without an "@", found is false.
func CutInputKey(name string) (bare, key string, found bool) {
	i := strings.LastIndexByte(name, '@')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}

// PathPrefix returns what the keys of all cache names begin with that begin with start, and of no others.
func PathPrefix(start string) string {
	var b strings.Builder
	b.WriteString(Prefix)
	for i := range len(start) {
		c := start[i]
		if plain(c) && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "~%02x", c)
		}
	}
	return b.String()
}

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("._-+@=", c) >= 0
}

// ParsePath is the inverse of [Path]. A key that Path would not have made is refused.
func ParsePath(path string) (name string, err error) {
	rest, ok := strings.CutPrefix(path, Prefix)
	if !ok {
		return "", fmt.Errorf("not an index's path: %q", path)
	}
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		if rest[i] != '~' {
			b.WriteByte(rest[i])
			continue
		}
		c, err := hex.DecodeString(rest[i+1 : min(i+3, len(rest))])
		if err != nil {
			return "", fmt.Errorf("not an index's path: %q", path)
		}
		b.Write(c)
		i += 2
	}
	if again, err := Path(b.String()); err != nil || again != path {
		return "", fmt.Errorf("not an index's path: %q", path)
	}
	return b.String(), nil
}
