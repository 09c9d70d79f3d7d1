package member

import (
	"context"
	"fmt"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

// Event queues an event for mgmt, or drops it when too many wait. It does not block.
func (m *Member) Event(severity uint8, typ, text string) {
	e := &wire.EventReq{Proc: m.cfg.Self.Proc, Severity: severity, Type: typ, Text: text, Time: time.Now().UnixNano()}
	select {
	case m.events <- e:
	default:
		m.dropped.Add(1)
	}
}

// BadStrip reports a strip that a read found bad. It does not block.
func (m *Member) BadStrip(bad strip.Bad) {
	m.Event(wire.SeverityWarning, badType(bad.Kind), fmt.Sprintf("drive %d, strip %v: %v", bad.Drive, bad.ID, bad.Kind))
}

// badType names what is wrong with a strip: it is not there as far as it should be, other bytes are there, or the device fails to say.
func badType(k wire.Kind) string {
	switch k {
	case wire.KindNotFound, wire.KindRange:
		return "strip.missing"
	case wire.KindCorrupt:
		return "strip.corrupt"
	}
	return "strip.unreadable"
}

// SendEvents sends what is queued, once each, until ctx ends. It always gives nil.
func (m *Member) SendEvents(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-m.events:
			err := m.ask(ctx, eventTimeout, wire.MEvent, e, &wire.Empty{})
			if n := m.dropped.Swap(0); err != nil && ctx.Err() == nil || n > 0 {
				m.log.Warn("events were not told to mgmt", "type", e.Type, "text", e.Text, "dropped", n, "err", err)
			}
		}
	}
}
