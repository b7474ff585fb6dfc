package s3_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"nbc/transfer/store"
	"nbc/transfer/store/s3"
	"nbc/transfer/store/storetest"
)

// open returns the store at url until the test ends.
func open(t testing.TB, url string) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	url := storetest.S3(t)
	var n atomic.Int64
	storetest.Test(t, func(t *testing.T) store.Store {
		return open(t, strings.Replace(url, "/test?", fmt.Sprintf("/test/%d?", n.Add(1)), 1))
	})
}
