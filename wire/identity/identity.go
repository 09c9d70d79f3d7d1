package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/crakefs/crake/wire"
)

// scheme is of the URI that names a process in its certificate.
const scheme = "crake"

// Name is whom a certificate names.
type Name struct {
	Cluster wire.ClusterID
	Role    wire.Role
	Proc    wire.ProcID
}

// String gives the name as the certificate holds it.
func (n Name) String() string { return fmt.Sprintf("%s://%s/%s/%d", scheme, n.Cluster, n.Role, n.Proc) }

// Identity is what one run of a process proves itself with. Immutable; safe for concurrent use.
type Identity struct {
	name  Name
	der   []byte // the certificate
	key   ed25519.PrivateKey
	ca    *x509.Certificate
	roots *x509.CertPool // ca alone
}

func newIdentity(der []byte, key ed25519.PrivateKey, ca *x509.Certificate) (*Identity, error) {
	id := &Identity{der: der, key: key, ca: ca, roots: x509.NewCertPool()}
	id.roots.AddCert(ca)
	self, err := id.Verify(der)
	if err != nil {
		return nil, err
	}
	if !self.public.Equal(key.Public()) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	id.name = self.Name
	return id, nil
}

// Name tells who this is.
func (id *Identity) Name() Name { return id.name }

// Key names the certificate.
func (id *Identity) Key() wire.ProcKey { return keyOf(id.der) }

// Certificate gives the certificate in DER, not to be changed.
func (id *Identity) Certificate() []byte { return id.der }

// Sign signs a message with Ed25519: 64 bytes.
func (id *Identity) Sign(message []byte) []byte { return ed25519.Sign(id.key, message) }

// TLS gives certificate and key as package tls wants them.
func (id *Identity) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{id.der}, PrivateKey: id.key}
}

// Peer is a process whose certificate was verified. That it has the key to it only Check tells.
type Peer struct {
	Name
	Key    wire.ProcKey
	public ed25519.PublicKey
}

// Check reports whether the peer signed the message.
func (p *Peer) Check(message, signature []byte) bool {
	return ed25519.Verify(p.public, message, signature)
}

// Verify checks a certificate in DER: it is of the same CA, good now, of an Ed25519 key, and names a process. Errors have
// KindAuthentication and say what is wrong.
func (id *Identity) Verify(der []byte) (*Peer, error) { return id.verify(der, time.Now()) }

func (id *Identity) verify(der []byte, now time.Time) (*Peer, error) {
	refuse := func(format string, args ...any) (*Peer, error) {
		return nil, wire.Errorf("identity.verify", wire.KindAuthentication, "", format, args...)
	}
	if len(der) == 0 || len(der) > MaxCertBytes {
		return refuse("a certificate of %d bytes, want 1 to %d", len(der), MaxCertBytes)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return refuse("no certificate: %w", err)
	}
	opts := x509.VerifyOptions{Roots: id.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := cert.Verify(opts); err != nil {
		return refuse("the certificate %q is none that this cluster's mgmt issued, or the clock is wrong by years: %w", cert.Subject.CommonName, err)
	}
	public, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || cert.IsCA || len(cert.URIs) != 1 {
		return refuse("the certificate %q is not of a process: %s key, %d names", cert.Subject.CommonName, cert.PublicKeyAlgorithm, len(cert.URIs))
	}
	name, err := parseName(cert.URIs[0].String())
	if err != nil {
		return refuse("the certificate %q: %w", cert.Subject.CommonName, err)
	}
	return &Peer{Name: name, Key: keyOf(der), public: public}, nil
}

// parseName reads "crake://CLUSTER/ROLE/PROC", in exactly the form that String gives.
func parseName(text string) (Name, error) {
	var n Name
	rest, _ := strings.CutPrefix(text, scheme+"://")
	part := strings.Split(rest, "/")
	if len(part) == 3 {
		cluster, _ := hex.DecodeString(part[0]) // what is no number gives another text below
		copy(n.Cluster[:], cluster)
		for _, r := range []wire.Role{wire.RoleDrive, wire.RoleCompute, wire.RoleFrontend, wire.RoleMgmt} {
			if r.String() == part[1] {
				n.Role = r
			}
		}
		proc, _ := strconv.ParseUint(part[2], 10, 32)
		n.Proc = wire.ProcID(proc)
	}
	if n.String() != text || !mayBe(n.Role, n.Proc) {
		return Name{}, fmt.Errorf("%.100q names no process", text)
	}
	return n, nil
}

func keyOf(der []byte) (k wire.ProcKey) {
	sum := sha256.Sum256(der)
	copy(k[:], sum[:])
	return k
}
