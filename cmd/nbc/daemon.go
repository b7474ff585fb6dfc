package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"nbc/transfer/store"
	"nbc/transfer/store/remote"
)

// daemonOptions are the values of the flags that only the daemon has.
type daemonOptions struct {
	listen                  string
	socketMode              fs.FileMode
	socketGroup             string
	allowRead, allowWrite   []string
	allowUsers, allowGroups []string
	rules                   string
	metrics                 string
	drain                   time.Duration
	logFormat               logFormat
	logLevel                slog.Level
	connections, serving    int
	memory                  int64
	wait                    time.Duration
}

// logFormat is how the daemon writes its log.
type logFormat string

const (
	logText logFormat = "text"
	logJSON logFormat = "json"
)

func daemonCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon --listen unix:SOCKET --store URL [flags]",
		Short: "Serve a store to the builds of this machine, over a Unix socket",
		Long: `daemon serves a store over a Unix socket, so that builds need neither the
network nor credentials: sandboxed Nix builds above all. They name the socket as
their store: --store unix:/run/nbc/nbc.sock. Without --listen it serves the
socket that systemd passes to it.

Nobody may do anything until a rule allows it. Rules are about cache names: in a
GLOB, * is any text without a slash, ** any text, ? one character. Of a cache
name the part from its last @ on does not count, unless it has a slash: Nix
builds put a hash of their inputs there. To write implies nothing about reading. A file of rules has one on
each line:

  read  myapp/**
  write myapp/pr-*  gid=nixbld
  write myapp/main  uid=ci

With --allow-uid and --allow-gid the rules of --allow-read and --allow-write are
for these users and groups only. Builds that should not be able to write the
same names, but cannot be told apart by their users, need a daemon each.

It looks at all that is to be written: chunks must be what their name says,
indexes must decode. It deletes nothing. On SIGTERM it finishes what it has
begun.`,
		Example: `  nbc daemon --listen unix:/run/nbc/nbc.sock --socket-group nixbld \
    --store s3://bucket --near /var/cache/nbc \
    --allow-read '**' --allow-write 'pr/**'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.daemon(cmd)
			if err != nil {
				return err
			}
			sig := listen()
			defer sig.stop()
			// A signal is how a daemon ends. A second one ends it at once.
			if err := d.run(sig.working(cmd.Context())); err != nil {
				a.failed(err)
			}
			return nil
		},
	}
	o := &a.options.daemon
	f := cmd.Flags()
	f.Var(&value[string]{&o.listen, socketURL, "", "URL"}, "listen",
		"where to listen: unix:/run/nbc/nbc.sock; by default the socket that systemd passes")
	a.options.storeFlags(f)
	f.Var(&list{&o.allowRead, nameGlob, "GLOB"}, "allow-read", "cache names that may be read; may be repeated")
	f.Var(&list{&o.allowWrite, nameGlob, "GLOB"}, "allow-write", "cache names that may be written; may be repeated")
	f.Var(&list{&o.allowUsers, userName, "USER"}, "allow-uid",
		"users, by name or number, that --allow-read and --allow-write are for; may be repeated")
	f.Var(&list{&o.allowGroups, groupName, "GROUP"}, "allow-gid", "groups that they are for; may be repeated")
	f.Var(&value[string]{&o.rules, anything, "", "FILE"}, "rules", "more rules, one on each line")
	o.socketMode = remote.DefaultMode
	f.Var(&value[fs.FileMode]{&o.socketMode, socketMode, "0660", "MODE"}, "socket-mode",
		"permissions of the socket: who may write to it may connect")
	f.Var(&value[string]{&o.socketGroup, groupName, "", "GROUP"}, "socket-group",
		"group of the socket, by name or number")
	f.Var(&value[string]{&o.metrics, address, "", "HOST:PORT"}, "metrics",
		"where to serve /metrics for Prometheus, /healthz and /livez, such as 127.0.0.1:9137; by default nowhere")
	o.drain = remote.DefaultDrain
	f.Var(&value[time.Duration]{&o.drain, positiveDuration, o.drain.String(), "DURATION"}, "drain",
		"how long requests have to end when the daemon is told to")
	f.Var(&value[int]{&o.connections, positive, "", "N"}, "max-connections",
		fmt.Sprintf("connections at once, half of them by one user (default %d)", remote.DefaultConns))
	f.Var(&value[int]{&o.serving, positive, "", "N"}, "max-requests",
		fmt.Sprintf("requests that are served at once, half of them for one user (default %d)", remote.DefaultRequests))
	f.Var(&value[int64]{&o.memory, byteCount, "", "SIZE"}, "max-bytes",
		fmt.Sprintf("bytes of objects on their way, half of them for one user (default %dM)", remote.DefaultBytes>>20))
	o.wait = remote.DefaultWait
	f.Var(&value[time.Duration]{&o.wait, positiveDuration, o.wait.String(), "DURATION"}, "max-wait",
		"how long a request waits for its turn before the build is told that there is no room")
	o.logFormat = logText
	f.Var(&value[logFormat]{&o.logFormat, parseLogFormat, string(logText), "FORMAT"}, "log-format",
		"how the log on stderr is written: text or json")
	f.Var(&value[slog.Level]{&o.logLevel, parseLogLevel, "info", "LEVEL"}, "log-level",
		"what is written there: debug, info, warn or error")
	return finish(cmd)
}

// daemon is a daemon that is to run: its flags, checked.
type daemon struct {
	app    *app
	flags  daemonOptions
	store  location
	rules  remote.Rules
	socket remote.Socket
	log    *slog.Logger
}

func (a *app) daemon(cmd *cobra.Command) (*daemon, error) {
	d := &daemon{app: a, flags: a.options.daemon}
	var err error
	if d.store, err = parseStore(a.options.store); err != nil {
		return nil, usagef("%s: %w", origin(cmd, "store"), err)
	}
	if d.store.unix != "" {
		return nil, usagef("%s: a daemon serves no other daemon's store", origin(cmd, "store"))
	}
	if d.rules, err = d.flags.parseRules(); err != nil {
		return nil, usagef("%s: %w", origin(cmd, "rules"), err)
	}
	if d.flags.listen != "" {
		// It was checked when it was set.
		l, err := parseStore(d.flags.listen)
		if err != nil {
			return nil, usagef("%s: %w", origin(cmd, "listen"), err)
		}
		d.socket = remote.Socket{Path: l.unix, Mode: d.flags.socketMode}
		if d.flags.socketGroup != "" {
			gid, err := remote.ParseGroup(d.flags.socketGroup)
			if err != nil {
				return nil, usagef("%s: %w", origin(cmd, "socket-group"), err)
			}
			d.socket.Group = &gid
		}
	}
	w := cmd.ErrOrStderr()
	o := &slog.HandlerOptions{Level: d.flags.logLevel}
	if d.flags.logFormat == logJSON {
		d.log = slog.New(slog.NewJSONHandler(w, o))
	} else {
		d.log = slog.New(slog.NewTextHandler(w, o))
	}
	return d, nil
}

// parseRules returns the rules of the flags and of the file.
func (o *daemonOptions) parseRules() (remote.Rules, error) {
	var rules remote.Rules
	var uids, gids []uint32
	for _, u := range o.allowUsers {
		id, err := remote.ParseUser(u)
		if err != nil {
			return nil, err
		}
		uids = append(uids, id)
	}
	for _, g := range o.allowGroups {
		id, err := remote.ParseGroup(g)
		if err != nil {
			return nil, err
		}
		gids = append(gids, id)
	}
	add := func(right remote.Right, globs []string) {
		for _, glob := range globs {
			rules = append(rules, remote.Rule{Right: right, Glob: glob, UIDs: uids, GIDs: gids})
		}
	}
	add(remote.Reading, o.allowRead)
	add(remote.Writing, o.allowWrite)
	if o.rules != "" {
		data, err := os.ReadFile(o.rules)
		if err != nil {
			return nil, err
		}
		more, err := remote.ParseRules(string(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.rules, err)
		}
		rules = append(rules, more...)
	}
	return rules, nil
}

// run serves until ctx ends.
func (d *daemon) run(ctx context.Context) (err error) {
	l, err := d.listen()
	if err != nil {
		return err
	}
	serving := false
	defer func() {
		if !serving {
			err = errors.Join(err, l.Close())
		}
	}()
	s, err := d.app.openStore(ctx, d.store, d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	h, registry, err := d.handler(s)
	if err != nil {
		return err
	}
	if d.flags.metrics != "" {
		end, err := d.tell(ctx, h, registry)
		if err != nil {
			return err
		}
		defer end()
	}
	if len(d.rules) == 0 {
		d.log.Warn("no rule allows anything: see --allow-read, --allow-write and --rules")
	}
	d.log.Info("serving", "socket", l.Addr().String(), "rules", len(d.rules), "version", version())
	serving = true
	err = h.Serve(ctx, l, d.flags.drain)
	d.log.Info("ended")
	return err
}

// listen makes the socket, or takes over the one that systemd passes.
func (d *daemon) listen() (net.Listener, error) {
	if d.socket.Path != "" {
		return remote.Listen(d.socket)
	}
	l, err := remote.Activated()
	if errors.Is(err, remote.ErrNotActivated) {
		return nil, &hinted{usagef("no --listen, and %w", err), "say where, for example --listen unix:/run/nbc/nbc.sock"}
	}
	return l, err
}

func (d *daemon) handler(s store.Store) (*remote.Handler, *prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	metrics, err := remote.NewMetrics(registry)
	if err != nil {
		return nil, nil, err
	}
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// The half of a limit that one user may have leaves the other half to the others.
	half := func(n int) int { return max(n/2, 1) }
	limits := remote.Limits{Conns: d.flags.connections, Requests: d.flags.serving, Bytes: d.flags.memory, Wait: d.flags.wait}
	if limits.Conns > 0 {
		limits.ClientConns = half(limits.Conns)
	}
	if limits.Requests > 0 {
		limits.ClientRequests = half(limits.Requests)
	}
	if limits.Bytes > 0 {
		limits.ClientBytes = max(limits.Bytes/2, 1)
	}
	return &remote.Handler{Store: s, Rules: d.rules, Limits: limits, Log: d.log, Metrics: metrics}, registry, nil
}

// tellingEnd is longer than a look at the far store's health takes.
const tellingEnd = 5 * time.Second

// tell serves metrics and health at an address of their own. End ends it.
func (d *daemon) tell(ctx context.Context, h *remote.Handler, registry *prometheus.Registry) (end func(), err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.flags.metrics)
	if err != nil {
		return nil, fmt.Errorf("serving metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/", h.Health())
	s := &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	d.log.Info("metrics", "address", l.Addr().String())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are no longer served", "error", err)
		}
	}()
	return func() {
		// An answer of the far store may still be waited for. Whoever takes longer may look at another time.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellingEnd)
		defer cancel()
		if s.Shutdown(limited) != nil {
			_ = s.Close() // nobody is told any more
		}
		<-done
	}, nil
}

// socketURL passes URLs of sockets.
func socketURL(s string) (string, error) {
	l, err := parseStore(s)
	if err == nil && l.unix == "" {
		err = &hinted{fmt.Errorf("%q is no socket", s), "it begins with unix: unix:/run/nbc/nbc.sock"}
	}
	return s, err
}

func nameGlob(s string) (string, error) { return s, remote.CheckGlob(s) }

func userName(s string) (string, error) {
	_, err := remote.ParseUser(s)
	return s, err
}

func groupName(s string) (string, error) {
	_, err := remote.ParseGroup(s)
	return s, err
}

func socketMode(s string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return 0, fmt.Errorf("%q is no mode such as 0660", s)
	}
	return fs.FileMode(n), nil
}

func address(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", fmt.Errorf("%q is no address such as 127.0.0.1:9137", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q is no port", port)
	}
	return s, nil
}

func positive(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a number from 1 on", s)
	}
	return n, nil
}

func parseLogFormat(s string) (logFormat, error) {
	if f := logFormat(s); slices.Contains([]logFormat{logText, logJSON}, f) {
		return f, nil
	}
	return "", fmt.Errorf("%q is neither %s nor %s", s, logText, logJSON)
}

func parseLogLevel(s string) (slog.Level, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	l, ok := levels[s]
	if !ok {
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", s)
	}
	return l, nil
}
