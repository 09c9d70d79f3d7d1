//go:build crake_next

package rpc

import (
	"context"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
)

// Claim: the test build finds a field that is missing, wrong, or there where the peer's version has none; and only that.
func TestNextField(t *testing.T) {
	right := wire.NextOf(3, wire.MDriveAppend) // process 3 asks, see newWorld
	for _, tt := range []struct {
		name    string
		highest uint16 // of the peer
		field   wire.Next
		taken   bool // by Start
		bad     bool
	}{
		{name: "filled", highest: wire.VersionNext, field: right},
		{name: "filled, taken", highest: wire.VersionNext, field: right, taken: true},
		{name: "missing", highest: wire.VersionNext, bad: true},
		{name: "missing, taken", highest: wire.VersionNext, taken: true, bad: true},
		{name: "of another method", highest: wire.VersionNext, field: wire.NextOf(3, wire.MDrivePut), bad: true},
		{name: "older", highest: wire.Version1},
		{name: "older, and there", highest: wire.Version1, field: right, bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "unix")
			book := w.keepLog()
			done := make(chan struct{}, 1)
			w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
				done <- struct{}{}
				return nil, nil, nil
			}
			if tt.taken {
				w.server.Start = func(_ context.Context, r *Request) bool {
					r.Answer(nil, nil, nil)
					done <- struct{}{}
					return true
				}
			}
			w.serve()
			s := w.bare()
			h := ownHello(nil, &w.client)
			h.highest = tt.highest
			meta := (&wire.AppendReq{Next: tt.field}).Append(nil)
			ask := frame(wire.Header{Kind: wire.FrameRequest, Method: wire.MDriveAppend, ID: 1}, meta, nil)
			if err := writeFull(s, append(h.encode(), ask...)); err != nil {
				t.Fatal(err)
			}
			<-done
			if text := book.text(); strings.Contains(text, "next: a field is not what it must be") != tt.bad {
				t.Errorf("logged: %s", text)
			}
		})
	}
}
