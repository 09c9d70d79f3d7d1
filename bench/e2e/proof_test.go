package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

// This is the handshake with proofs a second time, from PROTOCOL.md and the standard library alone: if the two agree, the document is enough
// to write a third.

// party is who speaks, by an identity file.
type party struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
	ca   *x509.Certificate
	role wire.Role
	proc uint32
}

func readParty(path string) (*party, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var der [][]byte
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		der = append(der, block.Bytes)
	}
	if len(der) != 3 {
		return nil, fmt.Errorf("%s has %d blocks", path, len(der))
	}
	p := &party{}
	if p.cert, err = x509.ParseCertificate(der[0]); err != nil {
		return nil, err
	}
	if p.ca, err = x509.ParseCertificate(der[2]); err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der[1])
	if err != nil {
		return nil, err
	}
	p.key = key.(ed25519.PrivateKey)
	part := strings.Split(p.cert.URIs[0].Path, "/")
	p.role = map[string]wire.Role{"drive": wire.RoleDrive, "compute": wire.RoleCompute, "frontend": wire.RoleFrontend}[part[1]]
	proc, err := strconv.ParseUint(part[2], 10, 32)
	p.proc = uint32(proc)
	return p, err
}

// hello is that of a party that can prove who it is.
func (p *party) hello(cluster wire.ClusterID) []byte {
	b := helloOf(cluster, 1, 1)
	b[10] = byte(p.role)
	binary.LittleEndian.PutUint32(b[12:], p.proc)
	binary.LittleEndian.PutUint64(b[48:], 1<<1)
	_, _ = rand.Read(b[56:72])
	binary.LittleEndian.PutUint64(b[120:], xxhash.Sum64(b[:120]))
	return b
}

// readProof reads one: its status, certificate, signature and text.
func readProof(c net.Conn) (status wire.Kind, cert, signature []byte, text string, err error) {
	head := make([]byte, 16)
	if _, err = io.ReadFull(c, head); err != nil {
		return
	}
	le := binary.LittleEndian
	n := []int{int(le.Uint16(head[10:])), int(le.Uint16(head[12:])), int(le.Uint16(head[14:]))}
	rest := make([]byte, n[0]+n[1]+n[2])
	if _, err = io.ReadFull(c, rest); err != nil {
		return
	}
	if string(head[:8]) != "CRAKEPRF" {
		err = fmt.Errorf("magic %q", head[:8])
	}
	return wire.Kind(le.Uint16(head[8:])), rest[:n[0]], rest[n[0] : n[0]+n[1]], string(rest[n[0]+n[1]:]), err
}

// prove does the dialler's part of the handshake on a new connection. who is the URI of the peer; refused is what it says when it refuses.
func (p *party) prove(c net.Conn, cluster wire.ClusterID) (who, refused string, err error) {
	mine := p.hello(cluster)
	if _, err := c.Write(mine); err != nil {
		return "", "", err
	}
	theirs := make([]byte, 128)
	if _, err := io.ReadFull(c, theirs); err != nil {
		return "", "", err
	}
	if status := wire.Kind(binary.LittleEndian.Uint16(theirs[8:])); status != 0 {
		return "", status.Error(), nil
	}
	transcript := func(side byte) []byte {
		return append(append(append([]byte("crake proof v1"), side), mine...), theirs...)
	}
	signature := ed25519.Sign(p.key, transcript(0))
	proof := append([]byte("CRAKEPRF"), make([]byte, 8)...)
	binary.LittleEndian.PutUint16(proof[10:], uint16(len(p.cert.Raw)))
	binary.LittleEndian.PutUint16(proof[12:], uint16(len(signature)))
	if _, err := c.Write(append(append(proof, p.cert.Raw...), signature...)); err != nil {
		return "", "", err
	}
	status, der, sig, text, err := readProof(c)
	if err != nil || status != 0 {
		return "", text, err
	}
	peer, err := x509.ParseCertificate(der)
	if err != nil {
		return "", "", err
	}
	if err := peer.CheckSignatureFrom(p.ca); err != nil {
		return "", "", err
	}
	if !ed25519.Verify(peer.PublicKey.(ed25519.PublicKey), transcript(1), sig) {
		return "", "", fmt.Errorf("the signature of %s is wrong", peer.URIs[0])
	}
	_, err = c.Write(append([]byte("CRAKEPRF"), make([]byte, 8)...))
	return peer.URIs[0].String(), "", err
}

// identityPath gives the identity file of the present run of a process.
func identityPath(dir, name string) string { return filepath.Join(dir, "run", name+".identity") }
