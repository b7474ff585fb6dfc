package s3_test

import (
	"errors"
	"net/http"
	"testing"

	"nbc/transfer/store"
	"nbc/transfer/store/storetest"
)

// Whatever the server makes of the condition, what is asked for goes if it is as it was, and absent is no error.
func TestDeleteIf(t *testing.T) {
	s := open(t, storetest.S3(t))
	ctx := t.Context()
	v, err := s.Put(ctx, "index/a", []byte("a"), store.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteIf(ctx, "index/a", v); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "index/a", store.Read{}); !errors.Is(err, store.ErrNotExist) {
		t.Error(err)
	}
	if err := s.DeleteIf(ctx, "index/a", v); err != nil {
		t.Error(err)
	}
}

func TestDeleteIfAsksForTheVersion(t *testing.T) {
	s, server := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodDelete || r.Header.Get("If-Match") != `"1234"` {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		refuse(http.StatusPreconditionFailed, "PreconditionFailed")(w)
	})
	_ = server
	if err := s.DeleteIf(t.Context(), "index/a", "1234"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("%v", err)
	}
	if err := s.DeleteIf(t.Context(), "../a", "1234"); err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("%v", err)
	}
}
