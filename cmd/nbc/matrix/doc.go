// Package matrix holds the tests that build with nbc and real build tools, and nothing else.
//
// Each tool builds one small project many times over. Before every build the source tree is deleted and written anew at
// the same path, so that nothing but the cache survives. After each, two things are compared: what the tool compiled,
// with what it compiles in a tree that is edited in place and never deleted; and what the program prints, with what one
// prints that was built without a cache.
//
//	projects in testdata --steps.go--> states of the sources --chain--> builds with nbc     --\
//	                                                         --chain--> builds edited in place --> compared, MATRIX.md
//	                                                         ---------> clean builds          --/
//
// MATRIX.md is the result, and says how to read it. The tests compare it with what they measure; with -update they
// write it. A tool that is missing is skipped, unless the environment variable NBC_REQUIRE names it.
package matrix
