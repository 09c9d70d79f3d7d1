package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/crakefs/crake/wire"
)

// featureProof is set in a hello whose sender has an identity. If both have set it, each side proves who it is right after the hellos:
//
//	dialler                      listener
//	   | ------- proof ----------> |     certificate and signature; the listener verifies them and asks Options.Admit
//	   | <------ proof ----------- |     its own, or why it refuses
//	   | ------- verdict --------> |     empty: accepted; or why the dialler refuses
//
// So the listener tells nobody who it is who has not proved himself, and both know why when nothing comes of it. The dialler sends its
// first frames right behind the verdict.
const featureProof = 1 << 1

// A proof is, little-endian:
//
//	0 magic 8 bytes "CRAKEPRF"   8 status u16 (a wire.Kind)   10 certificate length u16   12 signature length u16   14 text length u16
//	16 certificate (DER), signature (Ed25519), text (UTF-8)
//
// A status other than zero refuses, and text says why; there is neither certificate nor signature then. A verdict has none of the three.
const (
	proofMagic     = "CRAKEPRF"
	proofHeadBytes = 16
	signatureBytes = 64
)

type proof struct {
	status    wire.Kind
	cert      []byte
	signature []byte
	text      string
}

func (p *proof) encode() []byte {
	b := make([]byte, proofHeadBytes, proofHeadBytes+len(p.cert)+len(p.signature)+len(p.text))
	le := binary.LittleEndian
	copy(b, proofMagic)
	le.PutUint16(b[8:], uint16(p.status))
	le.PutUint16(b[10:], uint16(len(p.cert)))
	le.PutUint16(b[12:], uint16(len(p.signature)))
	le.PutUint16(b[14:], uint16(len(p.text)))
	return append(append(append(b, p.cert...), p.signature...), p.text...)
}

// proofBytes gives the length of a proof from its head. An error has KindBadFrame.
func proofBytes(head []byte) (int, error) {
	if string(head[:8]) != proofMagic {
		return 0, wire.Errorf("rpc.proof", wire.KindBadFrame, "", "it began with %q, want %s", head[:8], proofMagic)
	}
	le := binary.LittleEndian
	n := proofHeadBytes + int(le.Uint16(head[10:])) + int(le.Uint16(head[12:])) + int(le.Uint16(head[14:]))
	if n > maxProofBytes {
		return 0, wire.Errorf("rpc.proof", wire.KindBadFrame, "", "%d bytes, at most %d are taken", n, maxProofBytes)
	}
	return n, nil
}

// decodeProof takes a whole proof apart; an error has KindBadFrame. It says nothing of what is in it. What it gives points into b.
func decodeProof(b []byte) (p proof, err error) {
	if len(b) < proofHeadBytes {
		return p, wire.Errorf("rpc.proof", wire.KindBadFrame, "", "%d bytes", len(b))
	}
	n, err := proofBytes(b)
	if err != nil {
		return p, err
	}
	if n != len(b) {
		return p, wire.Errorf("rpc.proof", wire.KindBadFrame, "", "%d bytes, its head says %d", len(b), n)
	}
	le := binary.LittleEndian
	p.status = wire.Kind(le.Uint16(b[8:]))
	cert, sig := int(le.Uint16(b[10:])), int(le.Uint16(b[12:]))
	b = b[proofHeadBytes:]
	p.cert, p.signature, p.text = b[:cert], b[cert:cert+sig], printable(string(b[cert+sig:]))
	switch {
	case p.status != wire.KindNone && cert+sig > 0:
		return p, wire.Errorf("rpc.proof", wire.KindBadFrame, "", "a refusal with a certificate")
	case sig != 0 && sig != signatureBytes, (sig == 0) != (cert == 0):
		return p, wire.Errorf("rpc.proof", wire.KindBadFrame, "", "a certificate of %d bytes with a signature of %d", cert, sig)
	}
	return p, nil
}

// mustProve decides from the features of both hellos whether there is to be a proof. A side with an identity refuses a peer without, but
// for a tool at a listener that takes tools (Options.AnyCluster). A side without an identity takes anybody.
func mustProve(own, peer *hello, o *Options, dialled bool) (bool, error) {
	can := own.features&peer.features&featureProof != 0
	tool := !dialled && o.AnyCluster && peer.self.Role == wire.RoleClient
	if can || o.Identity == nil || tool {
		return can, nil
	}
	return false, wire.Errorf("rpc.handshake", wire.KindAuthentication, peer.self.who(),
		"it cannot prove who it is: it was started without an identity, or is of a version that knows none; let mgmt start it")
}

// prover is one side of a proof.
type prover struct {
	s       stream
	o       *Options
	own     *hello
	peer    *hello
	dialled bool
	binding []byte // of the TLS channel; nil: there is none
}

// greet is the whole handshake: hellos, then proofs. s is a stream of TLS where that is wanted.
func greet(ctx context.Context, s stream, o *Options, dialled bool, room func() error) (own, peer *hello, version uint16, err error) {
	own, peer, version, err = shake(s, o, dialled, room)
	if err == nil {
		err = prove(ctx, s, o, own, peer, dialled)
	}
	return own, peer, version, err
}

// prove exchanges proofs on a stream whose hellos were exchanged, if both can, and notes the peer's key in its hello. It waits no longer
// than the deadline that the stream has, and for Options.Admit at most admitTimeout.
func prove(ctx context.Context, s stream, o *Options, own, peer *hello, dialled bool) error {
	must, err := mustProve(own, peer, o, dialled)
	if !must || err != nil {
		return err
	}
	p := &prover{s: s, o: o, own: own, peer: peer, dialled: dialled}
	if t, ok := s.(*tlsStream); ok {
		if p.binding, err = t.binding(); err != nil {
			return err
		}
	}
	if dialled {
		return p.dial(ctx)
	}
	return p.listen(ctx)
}

func (p *prover) dial(ctx context.Context) error {
	if err := p.send(p.sign()); err != nil {
		return err
	}
	theirs, err := p.receive()
	if err != nil {
		return err
	}
	err = p.judge(ctx, theirs)
	return errors.Join(err, p.send(verdict(err)))
}

func (p *prover) listen(ctx context.Context) error {
	theirs, err := p.receive()
	if err != nil {
		return err
	}
	if err := p.judge(ctx, theirs); err != nil {
		return errors.Join(err, p.send(verdict(err)))
	}
	if err := p.send(p.sign()); err != nil {
		return err
	}
	last, err := p.receive()
	if err == nil && len(last.cert) > 0 {
		err = wire.Errorf("rpc.proof", wire.KindBadFrame, p.peer.self.who(), "a second proof instead of a verdict")
	}
	return err
}

// verdict tells the peer what was found.
func verdict(err error) *proof {
	if err == nil {
		return &proof{}
	}
	text := err.Error()
	return &proof{status: wire.KindOf(err), text: text[:min(len(text), maxProofText)]}
}

func (p *prover) send(m *proof) error {
	if err := writeFull(p.s, m.encode()); err != nil {
		return wire.E("rpc.proof", wire.KindConnLost, p.s.name(), err)
	}
	return nil
}

// receive reads a proof or verdict. That the peer refuses is an error of the kind that it gave.
func (p *prover) receive() (*proof, error) {
	b := make([]byte, proofHeadBytes, maxProofBytes)
	err := readFull(p.s, b)
	if err == nil {
		var n int
		if n, err = proofBytes(b); err != nil {
			return nil, err
		}
		b = b[:n]
		err = readFull(p.s, b[proofHeadBytes:])
	}
	if err != nil {
		return nil, wire.E("rpc.proof", wire.KindConnLost, p.s.name(), fmt.Errorf("the peer left, or was silent, before it was done: %w", err))
	}
	m, err := decodeProof(b)
	if err == nil && m.status != wire.KindNone {
		err = wire.Errorf("rpc.proof", m.status, p.peer.self.who(), "the peer refuses this process: %s", m.text)
	}
	return &m, err
}

// sign makes this side's proof.
func (p *prover) sign() *proof {
	return &proof{cert: p.o.Identity.Certificate(), signature: p.o.Identity.Sign(p.transcript(p.dialled))}
}

// transcript is what a side signs: what was said so far, and which side it is. The nonces in the hellos make it new each time, so a proof
// is good for this connection only; the direction, for this side only; the channel binding, inside this TLS channel only.
func (p *prover) transcript(dialler bool) []byte {
	first, second, side := p.own.raw, p.peer.raw, byte(0)
	if !p.dialled {
		first, second = second, first
	}
	if !dialler {
		side = 1
	}
	b := append([]byte("crake proof v1"), side)
	b = append(append(b, first...), second...)
	return append(b, p.binding...)
}

// judge verifies the peer's proof and asks whether it may come in.
func (p *prover) judge(ctx context.Context, theirs *proof) error {
	who := p.peer.self.who()
	refuse := func(format string, args ...any) error {
		return wire.Errorf("rpc.proof", wire.KindAuthentication, who, format, args...)
	}
	if len(theirs.cert) == 0 {
		return refuse("it sent no certificate")
	}
	cert, err := p.o.Identity.Verify(theirs.cert)
	if err != nil {
		return refuse("%w", err)
	}
	said := p.peer.self
	if cert.Role != said.Role || cert.Proc != said.Proc || cert.Cluster != said.Cluster {
		return refuse("its certificate is of %s %d of cluster %s", cert.Role, cert.Proc, cert.Cluster)
	}
	if !cert.Check(p.transcript(!p.dialled), theirs.signature) {
		return refuse("its signature is not of this conversation and its certificate's key: it has another's certificate, or somebody " +
			"in between changes or repeats what is said")
	}
	if p.o.Admit != nil {
		ctx, cancel := context.WithTimeout(ctx, admitTimeout)
		defer cancel()
		if err := p.o.Admit(ctx, said, cert.Key); err != nil {
			return err
		}
	}
	p.peer.key = cert.Key
	return nil
}

// who names a peer, for people.
func (s Self) who() string { return fmt.Sprintf("%s %d", s.Role, s.Proc) }
