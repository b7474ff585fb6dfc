// Package remote is the store of a daemon: [Client], a Store that speaks to it over a Unix socket, and [Handler], the
// daemon's side, which has the far store, its credentials and near copies, and does for each build what the [Rules]
// allow and no more. PROTOCOL.md specifies what goes over the socket.
//
//	build:  Client --Unix socket--> Handler --guard--> one fetch for all --> near before far
//	                                 limits   rules,
//	                                          checks
//
// [Listen] makes the socket, [Activated] takes one over from systemd, and [Handler.Serve] serves it.
//
// It promises that nothing gets into the far store but chunks that match their ID, indexes that decode and whose name
// the rules allow, and a store's first format; that a Put is answered when the far store has it; and that indexes and
// the collector's state are never older than the far store's. Errors keep their kind and text on their way: what the
// far store says is absent, refused, changed, too large or unreachable, is that for the build.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer/store"
)

const (
	// versionHeader is in each reply, so that a client knows that it speaks to a daemon and not to something else.
	versionHeader   = "Nbc-Protocol"
	protocolVersion = "1"
	// sizeHeader is the size of the whole object, nearHeader is there if it is a near copy.
	sizeHeader = "Nbc-Size"
	nearHeader = "Nbc-Near"

	objectPath = "/v1/object/"
	mayPutPath = "/v1/may-put/"
	chunksPath = "/v1/chunks"
	listPath   = "/v1/list"
)

const (
	// maxKeys bounds one request for chunks. A tree of 500 MB has some 3,000, of which a restore wants 64 at once.
	maxKeys = 512
	// maxKeysBody bounds its body in bytes: a line for a chunk has at most 66 + 32 + 21 + 8.
	maxKeysBody = maxKeys * 200
	// maxLine bounds a line of JSON in a streamed reply, in bytes; the longest is an error's.
	maxLine = 32 << 10
	// maxText bounds the text of an error in bytes.
	maxText = 8 << 10
	// defaultBeat is how long a peer is left without a sign of life while the far store takes its time. It is well below
	// DefaultIdleTimeout, after which a client takes the daemon for dead.
	defaultBeat = 5 * time.Second
)

// maxChunk bounds the stored form of a chunk in bytes.
var maxChunk = int64(chunk.MaxEncoded(chunk.MaxSize))

// maxSmall bounds the format and the collector's state in bytes.
const maxSmall = 1 << 20

// kinds are the errors that keep their meaning on the way. Text is what a build is told of one that the far store, or
// anything else behind the socket, has made: its own words name endpoints, buckets and paths, which are nothing for a
// build, and stand in the daemon's log.
var kinds = []struct {
	name   string
	err    error
	status int
	text   string
}{
	{"unavailable", store.ErrUnavailable, http.StatusServiceUnavailable, "its store could not be reached"},
	{"absent", store.ErrNotExist, http.StatusNotFound, "its store has no such object"},
	{"refused", store.ErrRefused, http.StatusForbidden, "its store does not allow this"},
	{"conflict", store.ErrConflict, http.StatusPreconditionFailed, store.ErrConflict.Error()},
	{"too-large", store.ErrTooLarge, http.StatusRequestEntityTooLarge, store.ErrTooLarge.Error()},
	{"invalid", fs.ErrInvalid, http.StatusBadRequest, "its store takes no such request"},
}

// hintLog is for failures of which a build is not told more.
const hintLog = "whoever runs nbc daemon finds the reason in its log"

const (
	otherKind  = "other"
	methodKind = "method" // 405: a method that no object has
)

// problem is an error on its way from the daemon to the client.
type problem struct {
	Kind   string `json:"kind"`
	Text   string `json:"text"`
	Advice string `json:"hint,omitempty"`
	// Retry, unless 0, says that the daemon had no room for the request, and after how many seconds there may be some.
	Retry int `json:"retry,omitempty"`
}

// newProblem sorts err. What it says itself is told only if the daemon has made it for builds.
func newProblem(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = store.ErrUnavailable // the daemon gave up, not the client
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			p = &problem{Kind: k.name, Text: k.text}
			if k.err == store.ErrUnavailable || k.err == store.ErrRefused {
				p.Advice = hintLog
			}
			return p
		}
	}
	return &problem{Kind: otherKind, Text: "it failed", Advice: hintLog}
}

// busy says that somebody has waited for long enough.
func busy(what string) error {
	p := &problem{Kind: "unavailable", Text: "it has no room for " + what + " at the moment", Retry: 1}
	switch what {
	case aRequest:
		p.Advice = "how many it serves at once is --max-requests of nbc daemon"
	case anObject:
		p.Advice = "how much it has room for is --max-bytes of nbc daemon"
	default:
		p.Advice = "its store may be slow: the log of nbc daemon tells"
	}
	return p
}

// What there may be no room for, and a flag gives more of.
const (
	aRequest = "a request"
	anObject = "an object"
)

// isBusy reports whether err is busy's.
func isBusy(err error) bool {
	var p *problem
	return errors.As(err, &p) && p.Retry > 0
}

// short makes text fit a reply.
func short(text string) string {
	if len(text) > maxText {
		text = text[:maxText] + "…"
	}
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "�")
	}
	return text
}

func (p *problem) Error() string { return p.Text }

// Hint says what to do about it, for store.Hint.
func (p *problem) Hint() string { return p.Advice }

// Is makes it an error of its kind.
func (p *problem) Is(target error) bool {
	for _, k := range kinds {
		if k.name == p.Kind {
			return target == k.err
		}
	}
	return false
}

func (p *problem) status() int {
	for _, k := range kinds {
		if k.name == p.Kind {
			return k.status
		}
	}
	if p.Kind == methodKind {
		return http.StatusMethodNotAllowed
	}
	return http.StatusInternalServerError
}

// refused says that the daemon does not do something.
func refused(hint, format string, args ...any) error {
	return &problem{Kind: "refused", Text: fmt.Sprintf(format, args...), Advice: hint}
}

// invalid says that a request or what came with it breaks the protocol.
func invalid(format string, args ...any) error {
	return &problem{Kind: "invalid", Text: fmt.Sprintf(format, args...)}
}

// frame is a line of the reply to a request for chunks. The bytes of the chunk follow it.
type frame struct {
	// N is which key of the request it is about, from 0 on.
	N int `json:"n"`
	// Bytes is how many follow this line.
	Bytes   int64    `json:"bytes,omitempty"`
	Version string   `json:"version,omitempty"`
	Near    bool     `json:"near,omitempty"`
	Error   *problem `json:"error,omitempty"`
	// Beat is on a line that says only that the daemon is alive, End on the last one.
	Beat bool `json:"beat,omitempty"`
	End  bool `json:"end,omitempty"`
}

// entry is a line of the reply to a request for a listing.
type entry struct {
	Key      string    `json:"key,omitempty"`
	Size     int64     `json:"size,omitempty"`
	Version  string    `json:"version,omitempty"`
	Modified time.Time `json:"modified,omitzero"`
	Error    *problem  `json:"error,omitempty"`
	Beat     bool      `json:"beat,omitempty"`
	End      bool      `json:"end,omitempty"`
}

// isChunk says whether key is where chunks are.
func isChunk(key string) bool { return strings.HasPrefix(key, chunk.Prefix) }

// isIndex says whether key is where indexes are.
func isIndex(key string) bool { return strings.HasPrefix(key, index.Prefix) }

// quotable reports whether a version can stand between quotes in a header.
func quotable(version string) bool {
	for i := range len(version) {
		if c := version[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return version != ""
}
