package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// killPoll is how often the caller of an interrupted request is looked at. The kernel tells of the first signal only.
const killPoll = 100 * time.Millisecond

// call is the context of one request. A FUSE interrupt says no more than that the caller got some signal: SIGURG, with which the
// Go runtime preempts goroutines, SIGALRM of a progress display. A call that returned EINTR for those would break programs that
// never see it on another filesystem, and an interrupted mutation may have happened. So the context ends only when the caller
// is being killed; then nobody sees the answer. Only who waits for a lock is woken by every signal (see waiting).
//
// It ends too when the filesystem stops.
type call struct {
	cancel, stop <-chan struct{}
	pid          uint32

	mu    sync.Mutex
	end   chan struct{} // closed by finish; nil when nobody waits
	kill  chan struct{}
	ended bool
	after map[*func()]struct{} // to be run when kill is closed
}

// newCall makes the context of a request. finish must be called when the request has been served.
func newCall(cancel, stop <-chan struct{}, h *fuse.InHeader) *call {
	return &call{cancel: cancel, stop: stop, pid: h.Pid}
}

// Deadline: there is none; an unavailable cluster makes a call wait.
func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value has none.
func (c *call) Value(any) any { return nil }

// Done is closed when the caller is being killed. Only a call that really waits asks for it, so only that costs a goroutine.
func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done()
}

// done is Done; mu is held.
func (c *call) done() <-chan struct{} {
	if c.kill == nil {
		c.end, c.kill = make(chan struct{}), make(chan struct{})
		go c.watch(c.end)
	}
	return c.kill
}

// Err tells whether the caller is being killed, if anybody has asked for Done.
func (c *call) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return context.Canceled
	}
	return nil
}

// AfterFunc is what package context looks for in a parent, to need no goroutine for each child.
func (c *call) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done()
	if c.ended {
		go f()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = map[*func()]struct{}{}
	}
	key := &f
	c.after[key] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, ok := c.after[key]
		delete(c.after, key)
		return ok
	}
}

// finish ends the watching.
func (c *call) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		close(c.end)
	}
}

// watch waits until the call is finished, or its caller is being killed.
func (c *call) watch(end <-chan struct{}) {
	select {
	case <-end:
		return
	case <-c.stop:
	case <-c.cancel:
		t := time.NewTicker(killPoll)
		defer t.Stop()
		for stopped := false; !stopped && !dying(c.pid); {
			select {
			case <-end:
				return
			case <-c.stop:
				stopped = true
			case <-t.C:
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	close(c.kill)
	for f := range c.after {
		go (*f)()
	}
	c.after = nil
}

// sigKill is the bit of SIGKILL in the masks of /proc/PID/status. The kernel puts it there for every signal that ends a process.
const sigKill = 1 << (9 - 1)

// dying reports whether a thread is gone or about to end. One that we cannot see (of another PID namespace) is taken to live.
func dying(pid uint32) bool {
	if pid == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return os.IsNotExist(err)
	}
	for _, key := range []string{"SigPnd:\t", "ShdPnd:\t"} {
		if i := bytes.Index(b, []byte(key)); i >= 0 && len(b) >= i+len(key)+16 {
			mask, err := strconv.ParseUint(string(b[i+len(key):i+len(key)+16]), 16, 64)
			if err == nil && mask&sigKill != 0 {
				return true
			}
		}
	}
	return false
}

// waiting is the context of a call that waits for a lock: every signal ends it.
type waiting struct {
	context.Context
	cancel <-chan struct{}
}

// Done is closed by an interrupt.
func (w waiting) Done() <-chan struct{} { return w.cancel }

// Err tells whether there was one.
func (w waiting) Err() error {
	select {
	case <-w.cancel:
		return context.Canceled
	default:
		return nil
	}
}
