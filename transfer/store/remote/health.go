package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"nbc/transfer/store"
)

const (
	// healthFor is how long an answer about the far store is good for. Who looks asks often.
	healthFor = 10 * time.Second
	// healthTimeout bounds the question. It is less than most who look wait.
	healthTimeout = 4 * time.Second
)

// health is what is known of the far store.
type health struct {
	turn chan struct{} // has an element while the question is asked: the others wait for its answer
	err  error
	when time.Time
}

// Healthy asks the far store for its format, unless it has done so in the last ten seconds, and returns nil if it
// answers. That it has none yet is an answer. It is past all limits of builds, and of two who ask at once one waits for
// the other's answer: so it returns within healthTimeout.
func (h *Handler) Healthy(ctx context.Context) error {
	h.start()
	select {
	case h.health.turn <- struct{}{}:
		defer func() { <-h.health.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !h.health.when.IsZero() && time.Since(h.health.when) < healthFor {
		return h.health.err
	}
	// If whoever asks leaves, the answer is for those who wait: else each of them would begin anew.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
	defer cancel()
	_, err := h.Store.Get(ctx, formatKey, store.Read{Max: maxSmall})
	if errors.Is(err, store.ErrNotExist) {
		err = nil
	}
	if was := h.health.err; (was == nil) != (err == nil) {
		if err != nil {
			h.log().Warn("the far store does not answer", "error", short(err.Error()))
		} else {
			h.log().Info("the far store answers again")
		}
	}
	h.health.err, h.health.when = err, time.Now()
	return err
}

// Health returns a handler with two pages, for an address of their own: /livez says that the process works, /healthz
// that it serves builds: that it is not draining, and that the far store answers.
func (h *Handler) Health() http.Handler {
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, status int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = fmt.Fprintln(w, text) // who asked may have left
	}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if h.draining.Load() {
			say(w, http.StatusServiceUnavailable, "draining")
			return
		}
		if err := h.Healthy(r.Context()); err != nil {
			// Every process of this machine can ask.
			say(w, http.StatusServiceUnavailable, "far store: "+newProblem(err).Kind)
			return
		}
		say(w, http.StatusOK, "ok")
	})
	return mux
}
