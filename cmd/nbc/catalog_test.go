package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// TestCatalog runs testdata/catalog, the verbs about a whole store, for a directory and for an S3 server.
func TestCatalog(t *testing.T) {
	t.Run("dir", func(t *testing.T) {
		catalogScripts(t, func(e *testscript.Env) string { return filepath.Join(e.WorkDir, "store") })
	})
	t.Run("s3", func(t *testing.T) {
		url := storetest.S3(t)
		catalogScripts(t, func(e *testscript.Env) string {
			for _, v := range os.Environ() {
				if strings.HasPrefix(v, "AWS_") {
					e.Vars = append(e.Vars, v)
				}
			}
			// A prefix for each script.
			return strings.Replace(url, "/test?", "/"+filepath.Base(e.WorkDir)+"?", 1)
		})
	})
}

func catalogScripts(t *testing.T, url func(*testscript.Env) string) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/catalog",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", os.Getenv("GORACE"))
			e.Setenv("NBC_STORE", url(e))
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("NL", "\n")
			e.Setenv("TZ", "UTC")
			return nil
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code,
			"json": jsonHas,
			"put":  putObject,
		},
	})
}

// putObject puts a file into the store of the script: "put index/bad file". Without a file it deletes.
func putObject(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: put KEY [FILE]")
	}
	ctx := context.Background()
	l, err := parseStore(ts.Getenv("NBC_STORE"))
	ts.Check(err)
	s, err := l.open(ctx)
	ts.Check(err)
	defer func() { ts.Check(s.Close()) }()
	if len(args) == 1 {
		ts.Check(s.Delete(ctx, args[0]))
		return
	}
	_, err = s.Put(ctx, args[0], []byte(ts.ReadFile(args[1])), store.Condition{})
	ts.Check(err)
}
