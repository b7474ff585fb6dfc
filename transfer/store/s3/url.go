package s3

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"nbc/transfer/store"
)

// location is what a store's URL says.
type location struct {
	bucket    string
	prefix    string // with a slash at its end, or empty
	region    string
	endpoint  string
	pathStyle bool
}

func (l location) String() string {
	s := strings.TrimSuffix("s3://"+l.bucket+"/"+l.prefix, "/")
	if l.endpoint != "" {
		s += " at " + l.endpoint
	}
	return s
}

// isBucket allows what AWS and the other servers do, more than AWS allows today. No colon: an ARN is another thing. (As a
// regular expression, 254 copies of a class, it took every start of the program 4 ms to compile.)
func isBucket(name string) bool {
	if len(name) < 2 || len(name) > 255 {
		return false
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// maxPrefix in bytes leaves room for every key within the 1024 that S3 allows.
const maxPrefix = 1024 - store.MaxKey

// CheckURL says what is wrong with a store's URL, without looking at anything else.
func CheckURL(rawURL string) error {
	_, err := parse(rawURL)
	return err
}

// parse does not repeat the URL in its errors, which may hold what somebody took for the place of a secret.
func parse(rawURL string) (l location, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return l, withoutURL(err)
	}
	if u.Scheme != "s3" || u.Opaque != "" {
		return l, errors.New("not of the form s3://bucket/prefix")
	}
	if u.User != nil {
		return l, &failure{text: "credentials in the URL", hint: credentialsHint}
	}
	if !isBucket(u.Host) {
		return l, fmt.Errorf("%q is not a bucket's name", u.Host)
	}
	if u.Fragment != "" {
		return l, errors.New("it has a fragment (#…)")
	}
	l.bucket = u.Host
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		if err := store.CheckKey(prefix); err != nil || len(prefix) >= maxPrefix {
			return l, fmt.Errorf("prefix %q: letters, digits and ./_-+@=~ are allowed", prefix)
		}
		l.prefix = prefix + "/"
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return l, fmt.Errorf("parameters: %w", err)
	}
	for name, values := range query {
		if len(values) != 1 || values[0] == "" {
			return l, fmt.Errorf("parameter %q needs one value", name)
		}
		value := values[0]
		switch name {
		case "region":
			l.region = value
		case "endpoint":
			l.endpoint, err = parseEndpoint(value)
		case "path-style":
			if l.pathStyle = value == "true"; !l.pathStyle && value != "false" {
				err = fmt.Errorf("path-style is true or false, not %q", value)
			}
		default:
			err = fmt.Errorf("unknown parameter %q; known are region, endpoint and path-style", name)
		}
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

func parseEndpoint(value string) (string, error) {
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return "", fmt.Errorf("endpoint: %w", withoutURL(err))
	case u.User != nil:
		return "", &failure{text: "credentials in the endpoint", hint: credentialsHint}
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("endpoint: not of the form https://host:port")
	}
	return strings.TrimSuffix(value, "/"), nil
}

func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
