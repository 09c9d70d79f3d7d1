package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
)

// proven runs f over each transport between two sides that have identities.
func proven(t *testing.T, f func(t *testing.T, w *world)) {
	eachTransport(t, func(t *testing.T, w *world) {
		if w.server.Identity == nil {
			w.prove()
		}
		f(t, w)
	})
}

// Claim: two sides with identities know each other's certificates, and work.
func TestProof(t *testing.T) {
	proven(t, func(t *testing.T, w *world) {
		var asked []string
		admit := func(name string) func(context.Context, Self, wire.ProcKey) error {
			return func(_ context.Context, peer Self, key wire.ProcKey) error {
				asked = append(asked, name+" about "+peer.who())
				return nil
			}
		}
		w.client.Admit = admit("client")
		keys := make(chan wire.ProcKey, 1)
		w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
			keys <- r.Conn.PeerKey()
			return nil, nil, nil
		}
		w.serve()
		c := w.dial()
		if err := c.Do(t.Context(), &Call{}); err != nil {
			t.Fatal(err)
		}
		if got := <-keys; got != w.client.Identity.Key() || c.PeerKey() != w.server.Identity.Key() {
			t.Error("keys", got, c.PeerKey())
		}
		if strings.Join(asked, ", ") != "client about drive 2" {
			t.Error(asked)
		}
		if tls := c.Transport() == TransportTLS; tls != w.client.TLS {
			t.Error(c.Transport())
		}
	})
}

// Claim: each side refuses a peer that cannot prove who it is, whatever the reason, or that Admit does not take; both are told why.
func TestProofRefused(t *testing.T) {
	const any = ""
	self := Self{Cluster: testCluster, Role: wire.RoleCompute, Proc: 3}
	over := wire.Errorf("test", wire.KindRefused, "compute3", "its session ended")
	tests := []struct {
		name        string
		edit        func(w *world, ca *identity.CA)
		kind        wire.Kind
		dial, serve string // what both say
	}{
		{"client without identity", func(w *world, _ *identity.CA) { w.client.Identity = nil }, wire.KindAuthentication, "refused by the peer", "started without an identity"},
		{"server without identity", func(w *world, _ *identity.CA) { w.server.Identity = nil }, wire.KindAuthentication, "started without an identity", any},
		{"tool where none are taken", func(w *world, _ *identity.CA) {
			w.client.Identity, w.client.Self = nil, Self{Cluster: testCluster, Role: wire.RoleClient}
		}, wire.KindAuthentication, "refused by the peer", "started without an identity"},
		{"client of another CA", func(w *world, _ *identity.CA) { w.client.Identity = testIdentity(w.t, testCA(w.t), self) }, wire.KindAuthentication,
			"the peer refuses this process", "none that this cluster's mgmt issued"},
		{"another process's certificate", func(w *world, ca *identity.CA) {
			w.client.Identity = testIdentity(w.t, ca, Self{Role: wire.RoleCompute, Proc: 4})
		}, wire.KindAuthentication, "its certificate is of compute 4", "its certificate is of compute 4"},
		{"another role's certificate", func(w *world, ca *identity.CA) {
			w.client.Identity = testIdentity(w.t, ca, Self{Role: wire.RoleFrontend, Proc: 3})
		}, wire.KindAuthentication, "its certificate is of frontend 3", "its certificate is of frontend 3"},
		{"server has another's certificate", func(w *world, ca *identity.CA) {
			w.server.Identity = testIdentity(w.t, ca, Self{Role: wire.RoleDrive, Proc: 9})
		}, wire.KindAuthentication, "its certificate is of drive 9", "its certificate is of drive 9"},
		{"server does not admit", func(w *world, _ *identity.CA) {
			w.server.Admit = func(context.Context, Self, wire.ProcKey) error { return over }
		}, wire.KindRefused, "its session ended", "its session ended"},
		{"client does not admit", func(w *world, _ *identity.CA) {
			w.client.Admit = func(context.Context, Self, wire.ProcKey) error { return over }
		}, wire.KindRefused, "its session ended", "its session ended"},
	}
	for _, transport := range []string{"unix", "tcp", "mem"} {
		for _, tt := range tests {
			t.Run(transport+"/"+tt.name, func(t *testing.T) {
				w := newWorld(t, transport)
				ca := testCA(t)
				w.server.Identity, w.client.Identity = testIdentity(t, ca, w.server.Self), testIdentity(t, ca, w.client.Self)
				tt.edit(w, ca)
				book := w.keepLog()
				w.serve()
				if _, err := Dial(t.Context(), w.addr, w.client); wire.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.dial) {
					t.Errorf("the dialler says %v; want %q", err, tt.dial)
				}
				eventually(t, "the listener to say why", func() bool {
					return tt.serve == any || strings.Contains(book.text(), "handshake failed") && strings.Contains(book.text(), tt.serve)
				})
			})
		}
	}
}

// Claim: a listener that takes tools takes them without proof, and nobody else; a tool needs no identity to ask one that has.
func TestToolNeedsNoProof(t *testing.T) {
	proven(t, func(t *testing.T, w *world) {
		if w.client.TLS {
			t.Skip("tools use a unix socket")
		}
		w.keepLog()
		w.server.AnyCluster, w.client.Identity = true, nil
		w.client.Self = Self{Role: wire.RoleClient}
		w.serve()
		c := w.dial()
		if err := c.Do(t.Context(), &Call{Method: mEcho}); err != nil || c.PeerKey() != (wire.ProcKey{}) {
			t.Error(err, c.PeerKey())
		}
		w.client.Self = Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: 1}
		if _, err := Dial(t.Context(), w.addr, w.client); wire.KindOf(err) != wire.KindAuthentication {
			t.Error("no tool:", err)
		}
	})
}

// script is a dialler that says what it wants to a listener with an identity.
type script struct {
	w          *world
	s          stream
	own, peer  *hello
	id         *identity.Identity
	transcript func(dialler bool) []byte
}

// hellos connects and exchanges hellos.
func (w *world) hellos() *script {
	sc := &script{w: w, s: w.bare(), id: w.client.Identity}
	var err error
	if sc.own, sc.peer, _, err = shake(sc.s, &w.client, true, nil); err != nil {
		w.t.Fatal(err)
	}
	p := &prover{own: sc.own, peer: sc.peer, dialled: true}
	if ts, ok := sc.s.(*tlsStream); ok {
		if p.binding, err = ts.binding(); err != nil {
			w.t.Fatal(err)
		}
	}
	sc.transcript = p.transcript
	_ = sc.s.setDeadline(time.Now().Add(10 * time.Second))
	return sc
}

// answer sends bytes and gives the proof that comes back.
func (sc *script) answer(b []byte) (proof, error) {
	if err := writeFull(sc.s, b); err != nil {
		return proof{}, err
	}
	head := make([]byte, proofHeadBytes)
	if err := readFull(sc.s, head); err != nil {
		return proof{}, err
	}
	n, err := proofBytes(head)
	if err != nil {
		return proof{}, err
	}
	rest := make([]byte, n-proofHeadBytes)
	if err := readFull(sc.s, rest); err != nil {
		return proof{}, err
	}
	return decodeProof(append(head, rest...))
}

// Claim: what is no proof, or proves another conversation, direction, transcript or channel, does not get in; the listener says nothing of
// itself to who has proved nothing; it lives on.
func TestHostileProof(t *testing.T) {
	proven(t, func(t *testing.T, w *world) {
		book := w.keepLog()
		w.serve()
		good := func(sc *script) *proof {
			return &proof{cert: sc.id.Certificate(), signature: sc.id.Sign(sc.transcript(true))}
		}
		earlier := good(w.hellos()).encode()
		flip := func(b []byte, at int) []byte {
			b = bytes.Clone(b)
			b[at] ^= 1
			return b
		}
		signed := func(sc *script, text []byte) []byte {
			return (&proof{cert: sc.id.Certificate(), signature: sc.id.Sign(text)}).encode()
		}
		long := (&proof{}).encode()
		binary.LittleEndian.PutUint16(long[14:], maxProofBytes)
		for name, c := range map[string]struct {
			send func(sc *script) []byte
			want string // in the log
			told bool   // the peer is told
		}{
			"garbage":  {func(*script) []byte { return randomBytes(500) }, "it began with", false},
			"a frame":  {func(*script) []byte { return frame(wire.Header{Kind: wire.FrameRequest, ID: 1}, nil, nil) }, "it began with", false},
			"too long": {func(*script) []byte { return long }, "at most 4096", false},
			"half a signature": {func(sc *script) []byte {
				return (&proof{cert: sc.id.Certificate(), signature: make([]byte, 32)}).encode()
			}, "a signature of 32", false},
			"a verdict":           {func(*script) []byte { return (&proof{}).encode() }, "no certificate", true},
			"a refusal":           {func(*script) []byte { return (&proof{status: wire.KindRefused, text: "no, thanks"}).encode() }, "no, thanks", false},
			"replayed":            {func(*script) []byte { return earlier }, "not of this conversation", true},
			"reflected direction": {func(sc *script) []byte { return signed(sc, sc.transcript(false)) }, "not of this conversation", true},
			"changed hello":       {func(sc *script) []byte { return signed(sc, flip(sc.transcript(true), 15+48)) }, "not of this conversation", true},
			"changed answer":      {func(sc *script) []byte { return signed(sc, flip(sc.transcript(true), 15+128+48)) }, "not of this conversation", true},
			"another's certificate": {func(sc *script) []byte {
				p := good(sc)
				p.signature = testIdentity(t, testCA(t), w.client.Self).Sign(sc.transcript(true))
				return p.encode()
			}, "not of this conversation", true},
			"certificate in a refusal": {func(sc *script) []byte {
				p := good(sc)
				p.status = wire.KindRefused
				return p.encode()
			}, "a refusal with a certificate", false},
			"channel binding of another": {func(sc *script) []byte { return signed(sc, append(sc.transcript(true), 1)) }, "not of this conversation", true},
		} {
			before := len(book.text())
			sc := w.hellos()
			p, err := sc.answer(c.send(sc))
			if told := err == nil && p.status == wire.KindAuthentication && strings.Contains(p.text, c.want); told != c.told {
				t.Errorf("%s: told %+v, %v", name, p, err)
			}
			if len(p.cert) > 0 {
				t.Errorf("%s: the listener proved itself to a stranger", name)
			}
			_ = sc.s.close()
			eventually(t, name+" to be logged", func() bool { return strings.Contains(book.text()[before:], c.want) })
			if n := strings.Count(book.text()[before:], "\n"); n != 1 {
				t.Errorf("%s: %d lines in the log", name, n)
			}
		}
		// And the peer's proof cannot be sent back to it.
		sc := w.hellos()
		p, err := sc.answer(good(sc).encode())
		if err != nil || p.status != wire.KindNone {
			t.Fatalf("a good proof: %+v, %v", p, err)
		}
		mirror := w.hellos()
		if q, err := mirror.answer(p.encode()); err != nil || q.status != wire.KindAuthentication {
			t.Errorf("its own proof: %+v, %v", q, err)
		}
		// Nor does it wait for a second proof where a verdict is due.
		before := len(book.text())
		_ = writeFull(sc.s, good(sc).encode())
		eventually(t, "second proof", func() bool { return strings.Contains(book.text()[before:], "instead of a verdict") })
		if err := w.dial().Do(t.Context(), &Call{Method: mEcho}); err != nil {
			t.Error("an honest peer afterwards:", err)
		}
	})
}

// Claim: a peer that stops in the middle of its proof is given up after the handshake's time, and is not admitted.
func TestSlowProof(t *testing.T) {
	w := newWorld(t, "unix")
	w.prove()
	book := w.keepLog()
	w.serve()
	sc := w.hellos()
	if err := writeFull(sc.s, (&proof{cert: sc.id.Certificate(), signature: make([]byte, signatureBytes)}).encode()[:100]); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for !strings.Contains(book.text(), "before it was done") {
		if time.Since(start) > 2*handshakeTimeout {
			t.Fatal("the peer is not given up")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(start); d < handshakeTimeout/2 {
		t.Error("given up after", d)
	}
}

// relay passes what two sides say to each other, with each in a TLS of its own: a man in the middle who has an identity himself.
func relay(t *testing.T, o Options, target string) (addr string) {
	l, err := listenSock(schemeTCP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.close(); wg.Wait() })
	wg.Go(func() {
		a, err := l.accept()
		if err != nil {
			return
		}
		b, err := dialStream(context.Background(), target, &o)
		if err != nil {
			t.Error(err)
			_ = a.close()
			return
		}
		if o.TLS {
			ta, aerr := tlsOver(context.Background(), a, &o, false)
			tb, berr := tlsOver(context.Background(), b, &o, true)
			if err := errors.Join(aerr, berr); err != nil {
				t.Error(err)
				_, _ = a.close(), b.close()
				return
			}
			a, b = ta, tb
		}
		pass := func(from, to stream) {
			buf := make([]byte, 4096)
			for {
				n, err := from.readv([][]byte{buf})
				if err != nil || writeFull(to, buf[:n]) != nil {
					_, _ = a.close(), b.close()
					return
				}
			}
		}
		wg.Go(func() { pass(a, b) })
		wg.Go(func() { pass(b, a) })
	})
	return l.addr()
}

// Claim: who forwards between two sides that encrypt is found by the channel binding, though he has an identity. Without encryption he is
// not: the two have each other, and he sees what they say.
func TestManInTheMiddle(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		t.Run(fmt.Sprint(encrypted), func(t *testing.T) {
			w := newWorld(t, "tcp")
			ca := testCA(t)
			w.server.Identity, w.client.Identity = testIdentity(t, ca, w.server.Self), testIdentity(t, ca, w.client.Self)
			w.server.TLS, w.client.TLS = encrypted, encrypted
			book := w.keepLog()
			w.serve()
			middle := Options{Identity: testIdentity(t, ca, Self{Role: wire.RoleFrontend, Proc: 8}), TLS: encrypted}
			c, err := Dial(t.Context(), relay(t, middle, w.addr), w.client)
			switch {
			case !encrypted && err != nil:
				t.Error(err)
			case !encrypted:
				_ = c.Close()
				<-c.finished
			case wire.KindOf(err) != wire.KindAuthentication || !strings.Contains(err.Error(), "not of this conversation") ||
				!strings.Contains(book.text(), "somebody in between"):
				t.Errorf("%v; the log says %s", err, book.text())
			}
		})
	}
}

// Claim: one side encrypts and the other does not: both are told.
func TestOneSideEncrypts(t *testing.T) {
	for _, client := range []bool{true, false} {
		t.Run(fmt.Sprint(client), func(t *testing.T) {
			w := newWorld(t, "tcp")
			w.prove()
			w.client.TLS, w.server.TLS = client, !client
			book := w.keepLog()
			w.serve()
			_, err := Dial(t.Context(), w.addr, w.client)
			want := map[bool]string{true: "perhaps it does not encrypt", false: "refused by the peer"}[client]
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("client %v: %v", client, err)
			}
			eventually(t, "log", func() bool { return strings.Contains(book.text(), "both without") })
		})
	}
}

// Claim: TLS with a certificate of another CA gets nowhere, and both are told.
func TestTLSOfAnotherCA(t *testing.T) {
	w := newWorld(t, "tcp+tls")
	book := w.keepLog()
	w.client.Identity = testIdentity(t, testCA(t), w.client.Self)
	w.serve()
	if _, err := Dial(t.Context(), w.addr, w.client); wire.KindOf(err) != wire.KindAuthentication {
		t.Error(err)
	}
	eventually(t, "log", func() bool { return strings.Contains(book.text(), "handshake failed") })
}

// Claim: Expel ends the connections of those who may not connect any more, dialled and accepted, and of nobody else; what is expelled while
// it connects does not stay.
func TestExpel(t *testing.T) {
	proven(t, func(t *testing.T, w *world) {
		w.keepLog()
		var mu sync.Mutex
		out := map[wire.ProcKey]bool{}
		over := func(_ Self, key wire.ProcKey) error {
			mu.Lock()
			defer mu.Unlock()
			if out[key] {
				return wire.Errorf("test", wire.KindRefused, "", "over")
			}
			return nil
		}
		w.server.Admit = func(_ context.Context, p Self, key wire.ProcKey) error { return over(p, key) }
		w.serve()
		p := NewPool(w.client)
		defer p.Close()
		pooled, err := p.Get(t.Context(), []string{w.addr})
		if err != nil {
			t.Fatal(err)
		}
		w.listener.Expel(over)
		p.Expel(over)
		if err := pooled.Do(t.Context(), &Call{Method: mEcho}); err != nil {
			t.Error("nobody is over:", err)
		}
		mu.Lock()
		out[w.server.Identity.Key()] = true
		mu.Unlock()
		p.Expel(over)
		<-pooled.Done()
		again := w.dial()
		mu.Lock()
		out[w.client.Identity.Key()] = true
		mu.Unlock()
		w.listener.Expel(over)
		<-again.Done()

		// Admitted by the first question, expelled before the connection stands: the second question finds it.
		mu.Lock()
		clear(out)
		mu.Unlock()
		w.stop()
		asked := 0
		w.server.Admit = func(context.Context, Self, wire.ProcKey) error {
			if asked++; asked > 1 {
				return wire.Errorf("test", wire.KindRefused, "", "over")
			}
			return nil
		}
		w.serve()
		<-w.dial().Done()
	})
}

// Claim: the bytes of a proof stay.
func TestProofGolden(t *testing.T) {
	sig := make([]byte, signatureBytes)
	sig[0], sig[63] = 0xa1, 0xa2
	for _, c := range []struct {
		p    proof
		want string
	}{
		{proof{cert: []byte{1, 2, 3}, signature: sig}, "4352414b45505246" + "0000" + "0300" + "4000" + "0000" + "010203" + "a1" + strings.Repeat("00", 62) + "a2"},
		{proof{status: wire.KindRefused, text: "no"}, "4352414b45505246" + "0b00" + "0000" + "0000" + "0200" + "6e6f"},
		{proof{}, "4352414b45505246" + "0000" + "0000" + "0000" + "0000"},
	} {
		if got := hexOf(c.p.encode()); got != c.want {
			t.Errorf("%s\nwant\n%s", got, c.want)
		}
	}
	own := &hello{raw: strings.Repeat("D", helloBytes)}
	peer := &hello{raw: strings.Repeat("L", helloBytes)}
	p := &prover{own: own, peer: peer, dialled: true, binding: []byte("binding")}
	q := &prover{own: peer, peer: own, binding: p.binding}
	for dialler, side := range map[bool]string{true: "\x00", false: "\x01"} {
		want := "crake proof v1" + side + own.raw + peer.raw + "binding"
		if string(p.transcript(dialler)) != want || string(q.transcript(dialler)) != want {
			t.Errorf("transcript of dialler %v", dialler)
		}
	}
}

// FuzzProof feeds arbitrary bytes to the decoder, and to a listener in the place of a proof.
func FuzzProof(f *testing.F) {
	f.Add((&proof{cert: make([]byte, 300), signature: make([]byte, signatureBytes)}).encode())
	f.Add((&proof{status: wire.KindRefused, text: "why"}).encode())
	ca, err := identity.NewCA(testCluster)
	if err != nil {
		f.Fatal(err)
	}
	server, client := Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: 2}, Self{Cluster: testCluster, Role: wire.RoleCompute, Proc: 3}
	id := testIdentity(f, ca, server)
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decodeProof(b); err == nil && len(p.cert)+len(p.signature) > len(b) {
			t.Error("longer than it is")
		}
		m := NewMem()
		l, err := m.listen("x")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.close() }()
		done := make(chan error, 1)
		go func() {
			s, err := l.accept()
			if err == nil {
				_, _, _, err = greet(context.Background(), s, &Options{Self: server, Identity: id}, false, nil)
			}
			done <- err
		}()
		s, err := m.dial(context.Background(), "x")
		if err != nil {
			t.Fatal(err)
		}
		o := Options{Self: client, Identity: id} // its hello says that it can prove
		if _, _, _, err := shake(s, &o, true, nil); err != nil {
			t.Fatal(err)
		}
		_, _ = s.writev([][]byte{b}, true)
		_ = s.close()
		if <-done == nil {
			t.Error("admitted")
		}
	})
}

// BenchmarkHandshake is a connection made and ended, with and without proofs and encryption.
func BenchmarkHandshake(b *testing.B) {
	for _, how := range []string{"unix", "unix+proof", "tcp", "tcp+tls"} {
		b.Run(how, func(b *testing.B) {
			transport, proof := strings.CutSuffix(how, "+proof")
			w := newWorld(b, transport)
			if proof {
				w.prove()
			}
			w.serve()
			b.ReportAllocs()
			for b.Loop() {
				c, err := Dial(context.Background(), w.addr, w.client)
				if err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
				<-c.finished
			}
		})
	}
}
