package health

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// verdict is what an error says about the device.
type verdict int

const (
	innocent verdict = iota // nothing
	broken                  // an IO failed
	gone                    // there is no device any more
)

// goneErrors are what the kernel answers when a device was pulled out, its driver has given it up, its filesystem was made
// read-only because of errors, or the descriptor is none any more.
var goneErrors = [...]error{
	unix.ENODEV, unix.ENXIO, unix.EBADF, unix.ENOMEDIUM, unix.ESTALE, unix.EROFS, unix.ESHUTDOWN,
	io.ErrUnexpectedEOF, io.ErrShortWrite, // a file or device that has become shorter than it was
}

func judge(err error) verdict {
	for _, g := range goneErrors {
		if errors.Is(err, g) {
			return gone
		}
	}
	switch wire.KindOf(err) {
	case wire.KindNoSpace, wire.KindInvalid, wire.KindInterrupted, wire.KindShutdown, wire.KindOverLimit, wire.KindCorrupt:
		// A thin device that is full, our own mistake or end. What was read well but does not match is not for here:
		// Verify counts it.
		return innocent
	}
	return broken
}

// failed judges an IO that failed.
func (m *Monitor) failed(op Op, err error) {
	switch judge(err) {
	case innocent:
		return
	case gone:
		m.Fail(fmt.Sprintf("the device is gone or has become shorter: %s failed: %v", op, err))
		return
	}
	text, now := err.Error(), m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	kind, limit := Write, writeErrorLimit // of flushes too
	if op == Read {
		if m.repeated(xxhash.Sum64String(text)) {
			return
		}
		kind, limit = Read, readErrorLimit
	}
	if m.errors[kind].add(now) >= limit {
		m.Fail(fmt.Sprintf("%s errors in %d different seconds of the last %v; the last: %s", kind, limit, errorWindow, text))
	}
}

// repeated says that an error was seen a short time ago, and remembers it. Preconditions: mu is held.
func (m *Monitor) repeated(hash uint64) bool {
	if _, ok := m.seen[hash]; ok {
		return true
	}
	delete(m.seen, m.same[m.sameAt])
	m.same[m.sameAt] = hash
	m.seen[hash] = struct{}{}
	m.sameAt = (m.sameAt + 1) % sameErrors
	return false
}

// occurrences remembers when errors happened, oldest first: those of the last errorWindow, more than occurrence apart.
type occurrences []time.Duration

// add adds an error and gives how many occurrences there were. The list stays short: errorWindow has few of them before the
// drive has failed, and then nobody looks any more.
func (o *occurrences) add(now time.Duration) int {
	list := *o
	if n := len(list); n > 0 && now-list[n-1] < occurrence {
		return n
	}
	for len(list) > 0 && (now-list[0] > errorWindow || len(list) >= maxOccurrences) {
		list = list[1:]
	}
	*o = append(list, now)
	return len(*o)
}
