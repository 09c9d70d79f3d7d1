package dump

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// maxOpen bounds the requests that are remembered while their answers are awaited: the window of a thousand connections. Past it a
// request is not remembered, and its answer shows no time.
const maxOpen = 1 << 20

// call names a request: by connection, who asked, and id.
type call struct {
	conn uint32
	sent bool
	id   uint64
}

type asked struct {
	method wire.Method
	at     time.Time
}

// pairs finds the requests of answers.
type pairs map[call]asked

// see takes note of an event in order, and gives the request that a response or a cancel belongs to.
func (p pairs) see(e *Event) (a asked, ok bool) {
	if e.Type != TypeFrame {
		return a, false
	}
	c := call{e.Conn, e.Sent, e.Header.ID}
	switch e.Header.Kind {
	case wire.FrameRequest:
		if len(p) < maxOpen {
			p[c] = asked{e.Header.Method, e.Time}
		}
	case wire.FrameResponse:
		c.sent = !c.sent
		a, ok = p[c]
		delete(p, c)
	case wire.FrameCancel:
		a, ok = p[c]
	}
	return a, ok
}
