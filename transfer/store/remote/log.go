package remote

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// logWindow and logLines bound what one client can write into the daemon's log with requests that end alike: a build
	// that is refused a hundred times a second must not push out what others have to say, or fill a disk.
	logWindow = time.Minute
	logLines  = 30
)

// ledger writes the log of a daemon, and leaves out what is too much of the same.
type ledger struct {
	log    *slog.Logger
	window time.Duration // logWindow, unless a test has no time

	mu     sync.Mutex
	pages  map[pageKey]*page
	closed bool
}

// pageKey tells lines apart that are counted apart.
type pageKey struct {
	peer         Peer // without its PID
	kind, result string
}

// page counts the lines of one key within a window. It is gone at the end of it.
type page struct {
	lines, leftOut int
	end            *time.Timer
}

func newLedger(log *slog.Logger) *ledger {
	return &ledger{log: log, window: logWindow, pages: map[pageKey]*page{}}
}

// write writes a line, or counts it.
func (l *ledger) write(ctx context.Context, level slog.Level, k pageKey, attrs func() []any) {
	if !l.log.Enabled(ctx, level) {
		return
	}
	// Who asks for debug lines wants all of them.
	if level >= slog.LevelInfo && !l.room(k) {
		return
	}
	l.log.Log(ctx, level, k.kind, attrs()...)
}

func (l *ledger) room(k pageKey) bool {
	k.peer.PID = 0
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pages[k]
	if p == nil && l.closed {
		return true
	}
	if p == nil {
		p = &page{}
		p.end = time.AfterFunc(l.window, func() { l.turn(k) })
		l.pages[k] = p
	}
	if p.lines == logLines {
		p.leftOut++
		return false
	}
	p.lines++
	return true
}

// turn ends a window, and says how many lines it has left out.
func (l *ledger) turn(k pageKey) {
	l.mu.Lock()
	p := l.pages[k]
	delete(l.pages, k)
	l.mu.Unlock()
	if p == nil || p.leftOut == 0 {
		return
	}
	attrs := []any{"kind", k.kind, "result", k.result, "lines", p.leftOut}
	if k.peer.Known {
		attrs = append(attrs, "uid", k.peer.UID)
	}
	l.log.Warn("left out of this log", attrs...)
}

// close ends all windows. Afterwards nothing is left out.
func (l *ledger) close() {
	l.mu.Lock()
	l.closed = true
	var keys []pageKey
	for k, p := range l.pages {
		p.end.Stop()
		keys = append(keys, k)
	}
	l.mu.Unlock()
	for _, k := range keys {
		l.turn(k)
	}
}
