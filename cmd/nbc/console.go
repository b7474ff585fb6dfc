package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// console is where people read: each call prints one line that begins with "nbc: ". What comes from a store or a source
// tree cannot do anything to the terminal, and writing to a console that is gone is no failure.
type console struct {
	terminal bool

	mu sync.Mutex
	w  io.Writer
	// above, unless nil, writes above the progress bar that is on the terminal at the moment.
	above io.Writer
}

func newConsole(f *os.File) *console {
	return &console{w: f, terminal: term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"}
}

func (c *console) line(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text = "nbc: " + printable(text) + "\n"
	if c.above != nil {
		if _, err := io.WriteString(c.above, text); err == nil {
			return
		}
	}
	_, _ = io.WriteString(c.w, text)
}

func (c *console) warn(text string) { c.line("warning: " + text) }

// fail prints an error, and what to do about it.
func (c *console) fail(err error, hint string) {
	c.line(oneLine(err))
	if hint != "" {
		c.line("hint: " + hint)
	}
}

// printable makes text one line without control characters.
func printable(text string) string {
	plain := func(r rune) bool {
		return r != utf8.RuneError && !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r)
	}
	var b strings.Builder
	for i, r := range text {
		if plain(r) {
			b.WriteRune(r)
			continue
		}
		_, size := utf8.DecodeRuneInString(text[i:])
		for _, c := range []byte(text[i : i+size]) {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// warnings is a [slog.Handler] that prints what the core warns of, once each: a step that is tried again has the same
// to say. What is less than a warning is not for users.
type warnings struct {
	console *console
	said    *sync.Map
	attrs   []slog.Attr
}

func (w *warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	attr := func(a slog.Attr) bool {
		if !a.Equal(slog.Attr{}) {
			fmt.Fprintf(&b, ", %s: %s", a.Key, a.Value.Resolve())
		}
		return true
	}
	for _, a := range w.attrs {
		attr(a)
	}
	r.Attrs(attr)
	if _, again := w.said.LoadOrStore(b.String(), true); !again {
		w.console.warn(b.String())
	}
	return nil
}

func (w *warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &warnings{w.console, w.said, append(w.attrs[:len(w.attrs):len(w.attrs)], attrs...)}
}

// WithGroup is part of the interface; a line for people has no groups.
func (w *warnings) WithGroup(string) slog.Handler { return w }

// jsonVersion is the version of the objects that are printed where there is no report of the core.
const jsonVersion = 1

// printJSON prints v on stdout.
func (a *app) printJSON(v any) {
	data, err := plainJSON(v)
	if err != nil {
		a.console.fail(err, "")
		a.code = otherKind.code
		return
	}
	a.print(string(data) + "\n")
}

// print prints text on stdout.
func (a *app) print(text string) {
	if _, err := io.WriteString(a.stdout, text); err != nil {
		a.console.fail(fmt.Errorf("printing: %w", err), "")
		a.code = otherKind.code
	}
}
