package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"nbc/transfer"
)

const (
	// progressAfter is when people begin to wonder.
	progressAfter = 500 * time.Millisecond
	// progressEvery is often enough to look smooth, and nothing that a slow terminal line would feel.
	progressEvery = 100 * time.Millisecond
	// progressLine is how often a line is written where there is no terminal: logs stay short, and a system that ends
	// builds without output for some minutes sees that there is life.
	progressLine = 15 * time.Second
)

// watch shows p, what is being done to whom until stop is called, which leaves no trace on a terminal.
func (a *app) watch(doing string, p *transfer.Progress) (stop func()) {
	if a.options.quiet {
		return func() {}
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-done:
		case <-time.After(progressAfter):
			if a.console.terminal {
				a.console.bar(doing, p, done)
			} else {
				a.console.log(doing, p, done)
			}
		}
	}()
	return func() {
		close(done)
		<-stopped
	}
}

// log writes a line now and then.
func (c *console) log(doing string, p *transfer.Progress, done <-chan struct{}) {
	next := time.NewTicker(progressLine)
	defer next.Stop()
	for {
		select {
		case <-done:
			return
		case <-next.C:
			c.line(snapshot(doing, p))
		}
	}
}

// bar draws one line until done. Lines that are printed meanwhile go above it.
func (c *console) bar(doing string, p *transfer.Progress, done <-chan struct{}) {
	out, ok := c.w.(*os.File)
	if !ok {
		out = os.Stderr
	}
	container := mpb.New(mpb.WithOutput(out), mpb.WithRefreshRate(progressEvery))
	known := func(f mpb.BarFiller) mpb.BarFiller {
		return mpb.BarFillerFunc(func(w io.Writer, s decor.Statistics) error {
			if s.Total <= 0 || s.AvailableWidth < 10 {
				return nil
			}
			return f.Fill(w, s)
		})
	}
	bar := container.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.BarFillerMiddleware(known),
		mpb.BarWidth(40),
		mpb.PrependDecorators(decor.Any(func(s decor.Statistics) string {
			return fit("nbc: "+snapshot(doing, p)+" ", s.AvailableWidth)
		})),
	)
	c.mu.Lock()
	c.above = container
	c.mu.Unlock()

	next := time.NewTicker(progressEvery)
	defer next.Stop()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-next.C:
			if total := p.TotalBytes.Load(); total > 0 {
				bar.SetTotal(total, false)
				bar.SetCurrent(min(p.Bytes.Load(), total))
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.above = nil
	bar.Abort(true)
	container.Wait()
}

// fit cuts text to a width, so that the bar stays on one line of a narrow terminal.
func fit(text string, width int) string {
	text = printable(text)
	if width > 0 && len(text) > width {
		runes := []rune(text)
		return string(runes[:min(width, len(runes))])
	}
	return text
}

// snapshot says how far p is: "restoring app: 120 MB of 522 MB", or with what goes on if that is something else.
func snapshot(doing string, p *transfer.Progress) string {
	parts := []string{"starting"}
	if phase := p.Phase.Load(); phase != nil {
		parts[0] = *phase
		if strings.HasPrefix(doing, *phase) {
			parts = nil
		}
	}
	done, total := p.Bytes.Load(), p.TotalBytes.Load()
	switch {
	case total > 0:
		parts = append(parts, fmt.Sprintf("%s of %s", size(min(done, total)), size(total)))
	case done > 0:
		parts = append(parts, size(done))
	case p.Files.Load() > 0:
		parts = append(parts, count(int(p.Files.Load()), "file"))
	}
	return strings.Join(append([]string{doing}, strings.Join(parts, ", ")), ": ")
}
