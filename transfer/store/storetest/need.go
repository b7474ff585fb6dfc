package storetest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Required says whether the environment variable NBC_REQUIRE, a list with commas, names a component of the machine:
// a program, "s3", or a thing that the system may forbid.
func Required(component string) bool {
	return slices.Contains(strings.Split(os.Getenv("NBC_REQUIRE"), ","), component)
}

// Need ends a test that a problem keeps from a component which it needs: as skipped, or, if the component is [Required],
// as failed. Without a problem it does nothing.
func Need(t testing.TB, component string, problem error) {
	t.Helper()
	switch {
	case problem == nil:
	case Required(component):
		t.Fatalf("%s is required: %v", component, problem)
	default:
		t.Skipf("no %s here: %v", component, problem)
	}
}
