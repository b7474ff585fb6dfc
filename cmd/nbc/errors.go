package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer"
	"nbc/transfer/store"
)

// exitCodes is the part of the help that says what codeOf returns.
const exitCodes = `Exit codes:
    0  done; that there was nothing to restore is no failure
    1  a failure of another kind
    2  wrong use: nothing was done
   10  unavailable: the store could not be reached, or kept failing
   11  refused: the store does not allow it
   12  format: the store was written in a way that this version does not know
   13  damaged: what the store holds is not what was put there
   14  state-lost: the store's record of its garbage collections is gone
   15  busy: another nbc is at work in this source tree
   16  changing: files changed while they were saved, or were about to be replaced
   17  no-receipt: a save without a name, or times, and no restore before it
   18  timeout: not finished within --timeout
   19  absent: there is no such cache name, for verbs that are about one
128+N  ended by signal N; 130 is Ctrl-C

With --best-effort all but wrong use and signals become a warning and 0. nbc run
exits as its command does: 126 says that this cannot be executed, 127 that there
is none of that name, 2 and 128+N may also be nbc's own. nbc diff exits with 1
if the trees differ; a failure of another kind is 2 there. The words before the
colons are the "kind" of a failure in JSON.`

// kind is a failure as scripts see it.
type kind struct {
	name string
	code int
}

var otherKind = kind{"other", 1}

// kindOf is the one place where errors become exit codes.
func kindOf(err error) kind {
	var stop *interrupted
	switch {
	case errors.As(err, &stop):
		return kind{"interrupted", 128 + int(stop.signal)}
	case errors.As(err, new(*timedOut)):
		return kind{"timeout", 18}
	case errors.As(err, new(usageError)), errors.Is(err, transfer.ErrUsage):
		return kind{"usage", 2}
	case errors.Is(err, transfer.ErrBusy):
		return kind{"busy", 15}
	case errors.Is(err, transfer.ErrNoReceipt):
		return kind{"no-receipt", 17}
	case errors.Is(err, transfer.ErrChanging):
		return kind{"changing", 16}
	case errors.Is(err, transfer.ErrStateLost):
		return kind{"state-lost", 14}
	case errors.Is(err, transfer.ErrFormat), errors.Is(err, index.ErrVersion):
		return kind{"format", 12}
	case errors.Is(err, transfer.ErrMissing), errors.Is(err, chunk.ErrCorrupt), errors.Is(err, index.ErrInvalid):
		return kind{"damaged", 13}
	case errors.Is(err, store.ErrUnavailable):
		return kind{"unavailable", 10}
	case errors.Is(err, store.ErrRefused) && !errors.As(err, new(*fs.PathError)):
		// With a path it is a file of the source tree or of nbc's state that may not be read or written.
		return kind{"refused", 11}
	case errors.As(err, new(*absentName)):
		return kind{"absent", 19}
	}
	return otherKind
}

func codeOf(err error) int { return kindOf(err).code }

// hintFor says what to do about an error, or "" if there is nothing to say that the error does not.
func hintFor(err error) string {
	if h := store.Hint(err); h != "" {
		return h
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return "make room on the disk, or name another place with --store, --state or TMPDIR"
	}
	switch kindOf(err).name {
	case "unavailable":
		return "is the address in --store right, and can this machine reach it?"
	case "refused":
		return "for S3, check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID and the like) and the bucket's policy; " +
			"for a directory, who owns it"
	case "format":
		return "use the version of nbc that wrote this store, or give this one a prefix or directory of its own"
	case "damaged":
		return "the next save under this name stores it again"
	case "state-lost":
		return "somebody deleted gc/state or put back an old copy; use an empty prefix or directory until it is restored; or, " +
			"if it is one index that makes the epoch up, drop it with nbc rm"
	case "busy":
		return "wait for it to end, or for the flock that calls nbc; builds that run at the same time need a source tree each"
	case "changing":
		return "is the build over? Nothing may write to the directories while nbc saves or restores them"
	case "no-receipt":
		return "name it: nbc save NAME --dir DIR, or restore first: nbc restore NAME --dir DIR"
	case "timeout":
		return "give it more time with --timeout"
	}
	return ""
}

// usageError is a mistake of whoever called nbc. Nothing was done.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// hintUsage is the hint for a command line that makes no sense.
func hintUsage(cmd *cobra.Command, err error) string {
	if h := hintFor(err); h != "" {
		return h
	}
	return fmt.Sprintf("see %s --help", cmd.CommandPath())
}

// hinted is an error that knows best what to do about it.
type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }
func (e *hinted) Hint() string  { return e.hint }

// interrupted says that a signal ended the work.
type interrupted struct{ signal syscall.Signal }

func (e *interrupted) Error() string {
	if e.signal == syscall.SIGINT {
		return "interrupted"
	}
	return fmt.Sprintf("ended by signal %d (%s)", int(e.signal), e.signal)
}

// timedOut says that --timeout has passed.
type timedOut struct {
	after time.Duration
	err   error
}

func (e *timedOut) Error() string { return fmt.Sprintf("not finished within %s: %s", e.after, e.err) }
func (e *timedOut) Unwrap() error { return e.err }

// because puts the reason why ctx ended before what came of it: "context canceled" tells nobody anything.
func because(ctx context.Context, timeout time.Duration, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	var stop *interrupted
	if errors.As(context.Cause(ctx), &stop) {
		return stop
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &timedOut{timeout, err}
	}
	return err
}

// failure is the part of the JSON that says what went wrong.
type failure struct {
	Error string `json:"error,omitempty"`
	Kind  string `json:"kind,omitempty"`
}

func newFailure(err error) failure {
	if err == nil {
		return failure{}
	}
	return failure{Error: oneLine(err), Kind: kindOf(err).name}
}

// oneLine joins the lines of joined errors.
func oneLine(err error) string {
	var parts []string
	for l := range strings.Lines(err.Error()) {
		if l = strings.TrimSpace(l); l != "" {
			parts = append(parts, l)
		}
	}
	return strings.Join(parts, "; ")
}
