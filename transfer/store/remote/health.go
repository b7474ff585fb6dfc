package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
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
	mu   sync.Mutex // held while the question is asked: the others wait for its answer
	err  error
	when time.Time
}

// Healthy asks the far store for its format, unless it has done so in the last ten seconds, and returns nil if it
// answers. That it has none yet is an answer.
func (h *Handler) Healthy(ctx context.Context) error {
	h.start()
	h.health.mu.Lock()
	defer h.health.mu.Unlock()
	if !h.health.when.IsZero() && time.Since(h.health.when) < healthFor {
		return h.health.err
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	_, err := h.Store.Get(ctx, formatKey, store.Read{Max: maxSmall}) // past the limits of builds
	if errors.Is(err, store.ErrNotExist) {
		err = nil
	}
	if errors.Is(err, context.Canceled) {
		return err // whoever asked has left; nothing is known
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
