package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// frame encodes one frame.
func frame(h wire.Header, meta, data []byte) []byte {
	h.MetaBytes, h.DataBytes = uint32(len(meta)), uint32(len(data))
	b := make([]byte, wire.HeaderBytes)
	h.Encode(b, meta)
	return append(append(b, meta...), data...)
}

// bare connects without a handshake.
func (w *world) bare() stream {
	o := w.client
	s, err := dialStream(context.Background(), w.addr, &o)
	if err == nil && o.TLS {
		s, err = tlsOver(context.Background(), s, &o, true)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = s.close() })
	return s
}

// raw connects and shakes hands, and leaves the stream to the test.
func (w *world) raw() stream {
	s := w.bare()
	o := w.client
	o.Shm = false
	if _, _, _, err := greet(context.Background(), s, &o, true, nil); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// logBook collects what is logged.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (w *world) keepLog() *logBook {
	l := &logBook{}
	w.server.Log = slog.New(slog.NewTextHandler(l, nil))
	return l
}

// Claim: whatever a peer sends after the handshake that is no frame, it is disconnected with one line in the log that says why;
// others are served on, and nothing of the arena stays taken.
func TestHostileFrames(t *testing.T) {
	meta := (&wire.AppendResp{Len: 5}).Append(nil)
	good := frame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, meta, nil)
	put := func(b []byte, at int, v uint32) []byte {
		b = bytes.Clone(b)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	big := frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: 5}, meta, make([]byte, 8<<20))
	second := frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: 6}, meta, make([]byte, 8<<20))
	flood := []byte{}
	for i := range maxQueued + 1 {
		flood = append(flood, frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: uint64(i)}, nil, nil)...)
	}
	cases := map[string]struct {
		send []byte
		shut bool // the peer closes after sending
		want string
	}{
		"random bytes":        {send: randomBytes(1000), want: "magic"},
		"wrong magic":         {send: put(good, 0, 0x12345678), want: "magic"},
		"giant meta":          {send: put(good, 32, 1<<31), want: "lengths"},
		"giant data":          {send: put(good, 36, 1<<32-1), want: "lengths"},
		"wrong checksum":      {send: put(good, 56, 1), want: "checksum"},
		"changed meta":        {send: put(good, 64, 9), want: "checksum"},
		"unknown kind":        {send: frame(wire.Header{Kind: 77}, nil, nil), want: "kind 77"},
		"one-way":             {send: frame(wire.Header{Kind: wire.FrameOneWay}, nil, nil), want: "one-way"},
		"cancel with data":    {send: frame(wire.Header{Kind: wire.FrameCancel}, nil, make([]byte, 4096)), want: "data in a frame"},
		"answer to nothing":   {send: frame(wire.Header{Kind: wire.FrameResponse, ID: 99}, nil, nil), want: "not asked"},
		"credit, big meta":    {send: frame(wire.Header{Kind: wire.FrameCredit}, make([]byte, 100_000), nil), want: "meta in a frame"},
		"same id twice":       {send: append(frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: 1}, nil, nil), frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: 1}, nil, nil)...), want: "twice"},
		"past the window":     {send: append(big, second...), want: "window"},
		"too many requests":   {send: flood, want: "window"},
		"truncated header":    {send: good[:20], shut: true, want: "unexpected EOF"},
		"truncated meta":      {send: good[:66], shut: true, want: "unexpected EOF"},
		"truncated data":      {send: big[:100_000], shut: true, want: "unexpected EOF"},
		"truncated long meta": {send: frame(wire.Header{Kind: wire.FrameRequest}, make([]byte, 1<<20), nil)[:100_000], shut: true, want: "unexpected EOF"},
	}
	eachTransport(t, func(t *testing.T, w *world) {
		book := w.keepLog()
		w.serve()
		honest := w.dial()
		for name, c := range cases {
			before := len(book.text())
			s := w.raw()
			go func() {
				_ = writeFull(s, c.send)
				if c.shut {
					_ = s.close()
				}
			}()
			eventually(t, name+" to be logged", func() bool { return strings.Contains(book.text()[before:], "peer dropped") })
			if !c.shut {
				_ = s.setDeadline(time.Now().Add(5 * time.Second))
				if _, err := io.Copy(io.Discard, streamReader{s}); isTimeout(err) {
					t.Errorf("%s: the peer is not disconnected", name)
				}
			}
			if line := book.text()[before:]; strings.Count(line, "\n") != 1 || !strings.Contains(line, c.want) || !strings.Contains(line, "bad frame") {
				t.Errorf("%s: want one line about %q, got %q", name, c.want, line)
			}
			if err := honest.Do(t.Context(), &Call{Method: mEcho}); err != nil {
				t.Fatalf("%s: an honest peer: %v", name, err)
			}
		}
		eventually(t, "the arena to be free", func() bool { return w.serverA.Used() == 0 })
	})
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

type streamReader struct{ s stream }

func (r streamReader) Read(b []byte) (int, error) { return r.s.readv([][]byte{b}) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(7)).Read(b)
	return b
}

// Claim: a malformed meta section gets an error answer, and the connection lives.
func TestMalformedMeta(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		s := w.raw()
		if err := writeFull(s, frame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, []byte{1, 2, 3}, nil)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, wire.HeaderBytes)
		if err := readFull(s, b); err != nil {
			t.Fatal(err)
		}
		h, err := wire.DecodeHeader(b)
		if err != nil || h.Status != wire.KindBadFrame || h.ID != 1 {
			t.Errorf("%+v %v", h, err)
		}
	})
}

// Claim: a handshake that never ends, or is none, is over after the timeout, or at once, and logged once.
func TestHostileHandshake(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		book := w.keepLog()
		w.serve()
		hello := ownHello(&w.client).encode()
		changed := bytes.Clone(hello)
		changed[70] ^= 1
		for name, send := range map[string][]byte{"http": []byte("GET / HTTP/1.1\r\n" + strings.Repeat("x", 200)), "random": randomBytes(500), "changed": changed, "half, then closed": hello[:64]} {
			before := len(book.text())
			s := w.bare()
			_ = writeFull(s, send)
			if len(send) < helloBytes {
				_ = s.close()
			}
			eventually(t, name, func() bool { return strings.Contains(book.text()[before:], "handshake failed") })
			if n := strings.Count(book.text()[before:], "\n"); n != 1 {
				t.Errorf("%s: %d lines", name, n)
			}
		}
	})
}

// Claim: connections that say nothing cannot keep an honest peer out.
func TestHandshakeFlood(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.keepLog()
		w.serve()
		for range maxHandshakes + 50 {
			w.bare()
		}
		start := time.Now()
		c := w.dial()
		if err := c.Do(t.Context(), &Call{Method: mEcho}); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Error("took", d)
		}
		w.listener.mu.Lock()
		if n := len(w.listener.shakes); n > maxHandshakes {
			t.Error(n, "handshakes under way")
		}
		w.listener.mu.Unlock()
	})
}

// Claim: who may speak to whom, and what is said when not.
func TestHandshakeVerdict(t *testing.T) {
	other := wire.ClusterID{9}
	tests := []struct {
		name             string
		client, server   wire.ClusterID
		clientAny, any   bool
		lowest, highest  uint16 // of the client; 0: the present ones
		want             wire.Kind
		mention, serverM string
	}{
		{name: "same cluster", client: testCluster, server: testCluster},
		{name: "other cluster", client: other, server: testCluster, want: wire.KindRefused, mention: "other cluster: this process is of 09"},
		{name: "tool", server: testCluster, any: true},
		{name: "tool, not allowed", server: testCluster, want: wire.KindRefused, mention: "refused by the peer"},
		{name: "none and none", want: wire.KindRefused, mention: "refused by the peer"},
		{name: "none and none, allowed", any: true},
		{name: "server of none", client: testCluster, want: wire.KindRefused, mention: "the peer of none"},
		{name: "newer", client: testCluster, server: testCluster, lowest: 7, highest: 9, want: wire.KindVersion},
		{name: "wider", client: testCluster, server: testCluster, lowest: 1, highest: 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &hello{self: Self{Cluster: tt.client, Role: wire.RoleCompute, Proc: 3, Version: "2.5"}, lowest: minVersion, highest: maxVersion, windowReqs: 1}
			if tt.highest != 0 {
				c.lowest, c.highest = tt.lowest, tt.highest
			}
			s := &hello{self: Self{Cluster: tt.server, Role: wire.RoleDrive, Proc: 2, Version: "1.0"}, lowest: minVersion, highest: maxVersion, windowReqs: 1}
			_, cerr := judge(c, s, tt.clientAny, true)
			version, serr := judge(s, c, tt.any, false)
			if got := max(wire.KindOf(cerr), wire.KindOf(serr)); got != tt.want {
				t.Errorf("client says %v, server %v; want %v", cerr, serr, tt.want)
			}
			if tt.want == wire.KindVersion {
				for _, err := range []error{cerr, serr} {
					for _, part := range []string{"7 to 9", "1 to 1", "2.5", "1.0", "compute", "drive"} {
						if err == nil || !strings.Contains(err.Error(), part) {
							t.Errorf("%v does not tell %s", err, part)
						}
					}
				}
			}
			if tt.want == wire.KindNone && version != 1 {
				t.Error("version", version)
			}
		})
	}
}

// Claim: over the wire both sides learn why they may not speak.
func TestHandshakeRefused(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		book := w.keepLog()
		w.serve()
		w.client.Self.Cluster = wire.ClusterID{9}
		if _, err := Dial(t.Context(), w.addr, w.client); wire.KindOf(err) != wire.KindRefused || !strings.Contains(err.Error(), "other cluster") {
			t.Error(err)
		}
		eventually(t, "log", func() bool { return strings.Contains(book.text(), "other cluster") })
		w.client.Self.Cluster = wire.ClusterID{}
		if _, err := Dial(t.Context(), w.addr, w.client); wire.KindOf(err) != wire.KindRefused || !strings.Contains(err.Error(), "refused by the peer") {
			t.Error(err)
		}
	})
}

// Claim: dialling what is no Crake process, or nobody, or badly, gives a typed error soon.
func TestDialErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(strings.Repeat("SSH-2.0-OpenSSH", 20)))
		}
	}()
	o := Options{Self: Self{Cluster: testCluster}, DialTimeout: 300 * time.Millisecond}
	silent, err := net.Listen("unix", t.TempDir()+"/silent")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	for addr, want := range map[string]wire.Kind{
		"tcp:" + l.Addr().String():           wire.KindBadFrame,
		"unix:" + t.TempDir() + "/none":      wire.KindUnavailable,
		"tcp:127.0.0.1:1":                    wire.KindUnavailable,
		"mem:x":                              wire.KindInvalid,
		"carrier-pigeon:x":                   wire.KindInvalid,
		"unix:":                              wire.KindInvalid,
		"":                                   wire.KindInvalid,
		"unix:" + silent.Addr().String():     wire.KindTimeout,
		"tcp:no.such.host.invalid.example:1": wire.KindUnavailable,
	} {
		if _, err := Dial(t.Context(), addr, o); wire.KindOf(err) != want {
			t.Errorf("%s: %v, want %v", addr, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Dial(ctx, "unix:"+silent.Addr().String(), o); wire.KindOf(err) != wire.KindInterrupted {
		t.Error(err)
	}
}

// Claim: the bytes of the handshake are frozen.
func TestHelloGolden(t *testing.T) {
	h := &hello{
		status: wire.KindRefused, self: Self{Cluster: wire.ClusterID{1, 2, 3, 15: 16}, Role: wire.RoleFrontend, Proc: 0x01020304, Version: "1.2.3-rc1"},
		lowest: 1, highest: 2, windowReqs: 1024, windowData: 8 << 20, features: 0x8000000000000001, nonce: [16]byte{0xa0, 15: 0xaf},
	}
	const want = "4352414b4548" + "4c4f" + "0b00" + "03" + "00" + "04030201" + "01020300000000000000000000000010" + "0100" + "0200" + "00040000" +
		"0000800000000000" + "0100000000000080" + "a00000000000000000000000000000af" + "312e322e332d726331"
	b := h.encode()
	if got := hexOf(b[:len(want)/2]); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if again, err := decodeHello(b); err != nil || again != *h {
		t.Errorf("%+v, %v", again, err)
	}
	if len(b) != 128 || binary.LittleEndian.Uint64(b[120:]) != 0x0 && hexOf(b[120:]) == "" {
		t.Error("length")
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if _, err := decodeHello(c); wire.KindOf(err) != wire.KindBadFrame {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

func FuzzHello(f *testing.F) {
	f.Add(ownHello(&Options{}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == helloBytes { // let the fuzzer past the checksum
			copy(b, helloMagic)
			sumHello(b)
		}
		h, err := decodeHello(b)
		if err != nil {
			if wire.KindOf(err) != wire.KindBadFrame {
				t.Error(err)
			}
			return
		}
		own := ownHello(&Options{Self: Self{Cluster: testCluster}})
		if v, err := judge(own, &h, true, false); err == nil && (v < minVersion || v > maxVersion) {
			t.Error("version", v)
		}
	})
}

// FuzzFrames feeds arbitrary bytes to a connection after the handshake: it ends or lives, and nothing leaks or panics.
func FuzzFrames(f *testing.F) {
	meta := (&wire.AppendResp{Len: 5}).Append(nil)
	f.Add(frame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, meta, nil), false)
	f.Add(frame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, meta, make([]byte, 100)), true)
	f.Add(append(frame(wire.Header{Kind: wire.FrameCancel, ID: 1}, nil, nil), frame(wire.Header{Kind: wire.FrameResponse, ID: 1}, meta, nil)...), true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix {
			b = fixSums(b)
		}
		a, err := wire.NewArena(1<<20, wire.ArenaDebug())
		if err != nil {
			t.Fatal(err)
		}
		m := NewMem()
		o := Options{Self: Self{Cluster: testCluster}, Arena: a, Handler: echo, Net: m, Log: slog.New(slog.DiscardHandler)}
		l, err := Listen("mem:x", o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- l.Serve(ctx) }()
		s, err := m.dial(ctx, "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := shake(s, &o, true, nil); err != nil {
			t.Fatal(err)
		}
		_, _ = s.writev([][]byte{b}, true)
		_ = s.close()
		_ = s.setDeadline(time.Now().Add(time.Second))
		cancel()
		<-done
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// fixSums corrects magic and checksum of the frames in b, as far as they are whole.
func fixSums(b []byte) []byte {
	b = bytes.Clone(b)
	for p := b; len(p) >= wire.HeaderBytes; {
		binary.LittleEndian.PutUint32(p, wire.HeaderMagic)
		h, err := wire.DecodeHeader(p)
		n := wire.HeaderBytes + int(h.MetaBytes)
		if h.Flags&wire.FlagReferences == 0 {
			n += int(h.DataBytes)
		}
		if err != nil || n > len(p) {
			break
		}
		h.Encode(p, p[wire.HeaderBytes:wire.HeaderBytes+int(h.MetaBytes)])
		p = p[n:]
	}
	return b
}

func newLog(l *logBook) *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
