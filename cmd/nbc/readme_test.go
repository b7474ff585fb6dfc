package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"nbc/chunk"
	"nbc/index"
	"nbc/transfer"
	"nbc/transfer/store"
)

// TestReadme: the README names every flag, and its exit codes are those of the help.
func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := string(data)
	for name, verb := range verbs(t) {
		verb.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if hasVariable(f) && !regexp.MustCompile("`[^`\n]*--"+f.Name+"[ `]").MatchString(readme) {
				t.Errorf("no --%s of %s", f.Name, name)
			}
		})
	}
	codes := regexp.MustCompile(`(?m)^ *(\d+) +(?:([a-z-]+): )?(.*)$`).FindAllStringSubmatch(exitCodes, -1)
	if len(codes) < 12 {
		t.Fatalf("the help has only the codes %q", codes)
	}
	for _, c := range codes {
		row := "| " + c[1] + " | "
		if c[2] != "" {
			row += c[2] + ": "
		}
		if !strings.Contains(readme, "\n"+row) {
			t.Errorf("no exit code %q", row)
		}
	}
}

// TestExitCodes: the help has every kind of failure with its code, and the words are told apart from each other.
func TestExitCodes(t *testing.T) {
	seen := map[string]bool{}
	for _, err := range []error{
		store.ErrUnavailable, store.ErrRefused, transfer.ErrFormat, index.ErrVersion, transfer.ErrMissing,
		chunk.ErrCorrupt, index.ErrInvalid, transfer.ErrStateLost, transfer.ErrBusy, transfer.ErrChanging,
		transfer.ErrNoReceipt, &timedOut{time.Second, store.ErrUnavailable},
	} {
		k := kindOf(fmt.Errorf("doing something: %w", err))
		seen[k.name] = true
		if !strings.Contains(exitCodes, fmt.Sprintf("\n%5d  %s: ", k.code, k.name)) {
			t.Errorf("%v: the help does not have %d %s", err, k.code, k.name)
		}
		if hintFor(err) == "" {
			t.Errorf("no hint for %v", err)
		}
	}
	if len(seen) != 9 {
		t.Errorf("the kinds are %v", seen)
	}
	for err, want := range map[error]kind{
		errors.New("x"):                      {"other", 1},
		usagef("x"):                          {"usage", 2},
		transfer.ErrUsage:                    {"usage", 2},
		&interrupted{syscall.SIGINT}:         {"interrupted", 130},
		&fs.PathError{Err: fs.ErrPermission}: {"other", 1}, // a file of the tree's, and not the store
	} {
		if got := kindOf(err); got != want {
			t.Errorf("%v is of kind %v, not %v", err, got, want)
		}
	}
}
