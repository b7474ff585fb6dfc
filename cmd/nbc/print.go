package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// This file is about stdout, for verbs that were asked to tell something. What they print there may be long, so it goes
// out as it comes.

// printer prints on stdout. After an error, which stays, it prints nothing more.
type printer struct {
	w   *bufio.Writer
	err error
}

func (a *app) printer() *printer { return &printer{w: bufio.NewWriterSize(a.stdout, 1<<16)} }

// raw prints text as it is.
func (p *printer) raw(text string) error {
	if p.err == nil {
		_, p.err = p.w.WriteString(text)
	}
	return p.wrapped()
}

// line prints text as one line that can do nothing to a terminal.
func (p *printer) line(text string) error { return p.raw(printable(text) + "\n") }

func (p *printer) flush() error {
	if p.err == nil {
		p.err = p.w.Flush()
	}
	return p.wrapped()
}

func (p *printer) wrapped() error {
	if p.err == nil {
		return nil
	}
	return &printError{p.err}
}

// printError says that stdout takes no more.
type printError struct{ err error }

func (e *printError) Error() string { return "printing: " + e.err.Error() }
func (e *printError) Unwrap() error { return e.err }

// unread reports whether err comes from a pipe that nobody reads any more: what was to be told was told as far as
// somebody wanted it, and the process ends as any other one before such a pipe.
func unread(err error) bool {
	return errors.As(err, new(*printError)) && errors.Is(err, syscall.EPIPE)
}

// stdoutTerminal reports whether somebody looks at stdout.
func (a *app) stdoutTerminal() bool {
	f, ok := a.stdout.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// objectPrinter prints one JSON object, as every verb does, whose lists are too long to be held: each element is
// printed as it comes.
type objectPrinter struct {
	*printer
	begun, inList, more bool
}

// fields prints the fields of v, an object, in the place where the last list has ended.
func (o *objectPrinter) fields(v any) error {
	data, err := plainJSON(v)
	if err != nil {
		return err
	}
	body := bytes.TrimSuffix(bytes.TrimPrefix(data, []byte("{")), []byte("}"))
	if o.inList {
		_ = o.raw("]") // the error stays
		o.inList = false
	}
	switch {
	case !o.begun:
		_ = o.raw("{") // as above
	case len(body) > 0:
		_ = o.raw(",") // as above
	}
	o.begun = true
	return o.raw(string(body))
}

// list begins a list that is a field of its own.
func (o *objectPrinter) list(name string) error {
	if err := o.fields(struct{}{}); err != nil {
		return err
	}
	o.inList, o.more = true, false
	return o.raw(`,"` + name + `":[`)
}

// element prints an element of the list.
func (o *objectPrinter) element(v any) error {
	data, err := plainJSON(v)
	if err != nil {
		return err
	}
	if o.more {
		_ = o.raw(",") // the error stays
	}
	o.more = true
	return o.raw(string(data))
}

// end ends the object.
func (o *objectPrinter) end() error {
	if err := o.fields(struct{}{}); err != nil {
		return err
	}
	_ = o.raw("}\n") // the error stays
	return o.flush()
}

// plainJSON is v as JSON without control characters: JSON itself lets those above 0x7e stand as they are.
func plainJSON(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("making JSON: %w", err)
	}
	odd := func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }
	if !bytes.ContainsFunc(data, odd) {
		return data, nil
	}
	var out []byte
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		switch {
		case !odd(r):
			out = append(out, data[:n]...)
		case r > 0xffff:
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		data = data[n:]
	}
	return out, nil
}
