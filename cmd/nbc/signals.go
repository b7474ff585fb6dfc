package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// echo is how long after the end of the command a signal counts as the one that has ended it: one Ctrl-C goes to the
// command and to nbc, and nbc may see the end of the command first. Nobody presses it twice that fast.
const echo = 200 * time.Millisecond

// signals sends what this process gets to where it belongs. While nbc works it cancels the work; a second one ends the
// process at once, which a restore and a save can bear at any point. While the command runs it is the command's.
type signals struct {
	ch   chan os.Signal
	done chan struct{}

	mu     sync.Mutex
	cancel context.CancelCauseFunc // of the work, if there is any
	build  *os.Process             // the command, while it runs
	ended  time.Time               // when it ended
	first  syscall.Signal          // what was caught and is not the command's
}

// listen begins to catch signals. Those that the process was told to ignore (nohup) stay ignored.
func listen() *signals {
	s := &signals{ch: make(chan os.Signal, 8), done: make(chan struct{})}
	for _, n := range []os.Signal{
		syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
	} {
		if !signal.Ignored(n) {
			signal.Notify(s.ch, n)
		}
	}
	go func() {
		defer close(s.done)
		for n := range s.ch {
			if n, ok := n.(syscall.Signal); ok {
				s.handle(n)
			}
		}
	}()
	return s
}

// stop gives signals their default action again.
func (s *signals) stop() {
	signal.Stop(s.ch)
	close(s.ch)
	<-s.done
	if s.cancel != nil {
		s.cancel(nil)
	}
}

func (s *signals) handle(n syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.build != nil:
		if !fromTerminal(n) {
			_ = s.build.Signal(n) // it may have ended just now
		}
	case !s.ended.IsZero() && time.Since(s.ended) < echo:
	case s.first != 0:
		die(n)
	default:
		s.first = n
		if s.cancel != nil {
			s.cancel(&interrupted{n})
		}
	}
}

// working returns a context for work that a signal may cancel.
func (s *signals) working(ctx context.Context) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, s.cancel = context.WithCancelCause(ctx)
	if s.first != 0 {
		s.cancel(&interrupted{s.first})
	}
	return ctx
}

// building says that signals are the command's from now on. One that came while it was being started is, too.
func (s *signals) building(p *os.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.build = p
	if s.first != 0 {
		_ = p.Signal(s.first) // it may have ended already
		s.first = 0
	}
}

// built says that the command has ended.
func (s *signals) built() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.build, s.ended = nil, time.Now()
}

// caught returns the signal that ended the work, or 0.
func (s *signals) caught() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// fromTerminal reports whether the command has this signal already: what is typed on a terminal goes to all processes
// of the group in its foreground.
func fromTerminal(n syscall.Signal) bool {
	if n != syscall.SIGINT && n != syscall.SIGQUIT {
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false // there is none, so somebody sent it to this process
	}
	defer tty.Close() // nothing was written
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// die ends the process by a signal, as if nbc had not been between the command and whoever waits for it.
func die(n syscall.Signal) {
	setDefault(n)
	_ = syscall.Kill(os.Getpid(), n)
	// It is on its way, unless the process is the first one of a container, which signals do not end.
	time.Sleep(time.Second)
	os.Exit(128 + int(n))
}
