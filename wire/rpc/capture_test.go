package rpc

import (
	"bytes"
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
)

// looked starts a look at a tap and gives, when called, all records up to then.
func looked(t *testing.T, tap *capture.Tap) (records func() []capture.Record) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.tap")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tap.Serve(ctx, path, newLog(&logBook{})) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	var r *capture.Stream
	for r == nil {
		if c, err := capture.Look(t.Context(), path, 16); err == nil { // else it does not listen yet
			r = c
		}
	}
	rd, err := capture.NewReader(r) // the header comes when frames are kept
	if err != nil {
		t.Fatal(err)
	}
	var out []capture.Record
	wg.Go(func() {
		defer r.Close()
		for {
			rec, err := rd.Next()
			if err != nil {
				return
			}
			rec.Body = bytes.Clone(rec.Body)
			out = append(out, rec)
		}
	})
	return func() []capture.Record { cancel(); wg.Wait(); return out }
}

// flow gives the bodies of one direction's records of a kind, in order.
func flow(all []capture.Record, kind capture.Kind, sent bool) (out [][]byte) {
	for _, r := range all {
		if r.Kind == kind && r.Sent == sent {
			out = append(out, r.Body)
		}
	}
	return out
}

// Claim: a capture has all frames of a connection in the order of the stream, each way, with the beginning of their data: what one end has
// sent is what the other has received.
func TestCapture(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.client.Capture = capture.New(capture.Origin{Role: wire.RoleClient})
		w.server.Capture = capture.New(capture.Origin{Role: wire.RoleDrive})
		here, there := looked(t, w.client.Capture), looked(t, w.server.Capture)
		w.serve()
		c := w.dial()
		const callers, calls = 4, 20
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				for i := range calls {
					d := w.data(1+i*4096, g)
					call := Call{Method: mEcho, Req: &wire.AppendResp{Len: uint64(i)}, Data: d, Resp: &wire.AppendResp{}, Trace: uint64(100*g + i)}
					if err := c.Do(context.Background(), &call); err != nil {
						t.Error(err)
					}
					call.RespData.Release()
					d.Release()
					_ = c.Do(context.Background(), &Call{Method: mFail})
				}
			})
		}
		wg.Wait()
		big := &wire.ErrorBody{Text: string(make([]byte, 100<<10))} // longer than the read buffer, and than what is kept
		_ = c.Do(context.Background(), &Call{Method: mFail, Req: big})
		_ = c.Close()
		<-c.finished
		w.stop()
		mine, theirs := here(), there()
		for _, kind := range []capture.Kind{capture.KindFrame, capture.KindData} {
			for _, sent := range []bool{true, false} {
				a, b := flow(mine, kind, sent), flow(theirs, kind, !sent)
				want := callers * calls
				if kind == capture.KindFrame {
					want = 2*want + 1
				}
				if w.server.Shm {
					// Release frames come in between; and data that leaves by reference is seen by who receives it only.
					if received := map[bool]int{true: len(b), false: len(a)}[sent]; received < want || kind == capture.KindData && received != want {
						t.Errorf("kind %d, sent %v: %d received, want %d", kind, sent, received, want)
					}
					if kind == capture.KindData {
						continue
					}
					want = len(a)
				}
				if len(a) != want || len(b) != want {
					t.Errorf("kind %d, sent %v: %d here, %d there, want %d", kind, sent, len(a), len(b), want)
					continue
				}
				for i := range a {
					if !bytes.Equal(a[i], b[i]) {
						t.Errorf("kind %d, sent %v: record %d differs", kind, sent, i)
						break
					}
				}
			}
		}
		if conns := flow(mine, capture.KindConn, false); len(conns) != 1 {
			t.Errorf("%d connections", len(conns))
		} else if info, err := capture.DecodeConn(conns[0]); err != nil {
			t.Error(err)
		} else if peer, err := ParseHello(info.Peer); err != nil || peer.Role != w.server.Self.Role || peer.Lowest != wire.LowestVersion {
			t.Errorf("%+v, %v", peer, err)
		}
	})
}

// Claim: one who looks and takes nothing holds nobody up, however much passes.
func TestCaptureNeverBlocks(t *testing.T) {
	w := newWorld(t, schemeMem)
	w.client.Capture = capture.New(capture.Origin{})
	path := filepath.Join(t.TempDir(), "x.tap")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.client.Capture.Serve(ctx, path, newLog(&logBook{})) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	var r *capture.Stream
	for r == nil {
		if c, err := capture.Look(t.Context(), path, 0); err == nil {
			r = c
		}
	}
	defer r.Close()
	w.serve()
	c := w.dial()
	req := &wire.ErrorBody{Text: string(make([]byte, 60<<10))}
	for range 600 { // 36 MiB: more than the sink and the socket hold
		if err := c.Do(context.Background(), &Call{Method: mFail, Req: req}); wire.KindOf(err) != wire.KindNoSpace {
			t.Fatal(err)
		}
	}
}
