package remote

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what a daemon counts, for Prometheus. [NewMetrics] makes them.
type Metrics struct {
	requests    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	chunks      *prometheus.CounterVec
	joined      prometheus.Counter
	refused     *prometheus.CounterVec
	farSeconds  *prometheus.HistogramVec
	inFlight    prometheus.Gauge
	bytesHeld   prometheus.Gauge
	connections prometheus.Gauge
	turnedAway  prometheus.Counter
	busy        *prometheus.CounterVec
}

// NewMetrics registers the metrics of one Handler at r. They all begin with "nbc_daemon_".
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	name := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "nbc", Subsystem: "daemon", Name: name, Help: help}
	}
	gauge := func(n, help string) prometheus.Gauge { return prometheus.NewGauge(prometheus.GaugeOpts(name(n, help))) }
	m := &Metrics{
		requests: prometheus.NewCounterVec(name("requests_total",
			"Requests, by kind (chunks: many chunks at once; get, put: one object; list; may-put: a question) and result."),
			[]string{"kind", "result"}),
		bytes: prometheus.NewCounterVec(name("bytes_total",
			"Bytes of objects that came from builds (in) and went to them (out)."), []string{"direction"}),
		chunks: prometheus.NewCounterVec(name("chunks_total",
			"Chunks that were fetched, by where they were: near, far."), []string{"source"}),
		joined: prometheus.NewCounter(name("joined_total",
			"Chunks that were not fetched because another build was fetching them already.")),
		refused: prometheus.NewCounterVec(name("refused_total",
			"Requests and chunks that the rules or the checks refused, by kind of request."), []string{"kind"}),
		farSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "nbc", Subsystem: "daemon", Name: "far_seconds",
			Help: "How long requests of the far store took, its retries included; near copies are not counted.",
			// From a directory on this machine to a store that is retried.
			Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 100},
		}, []string{"op"}),
		inFlight:    gauge("requests_in_flight", "Requests that are being served."),
		bytesHeld:   gauge("bytes_in_flight", "Bytes that are set aside for objects on their way."),
		connections: gauge("connections", "Open connections of builds."),
		turnedAway:  prometheus.NewCounter(name("turned_away_total", "Connections that one client had too many of.")),
		busy: prometheus.NewCounterVec(name("busy_total",
			"Requests and chunks for which there was no room for too long, by what they waited for."), []string{"what"}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.requests, m.bytes, m.chunks, m.joined, m.refused, m.farSeconds, m.inFlight, m.bytesHeld, m.connections,
		m.turnedAway, m.busy,
	} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *Metrics) near(near bool) {
	if near {
		m.chunks.WithLabelValues("near").Inc()
	} else {
		m.chunks.WithLabelValues("far").Inc()
	}
}

func (m *Metrics) far(op string, took time.Duration) {
	m.farSeconds.WithLabelValues(op).Observe(took.Seconds())
}
