package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"strconv"
	"time"

	"github.com/crakefs/crake/wire"
)

// CA issues the identities of one cluster. Safe for concurrent use.
type CA struct {
	cluster wire.ClusterID
	cert    *x509.Certificate
	key     ed25519.PrivateKey
}

// NewCA makes a CA that is in memory only, as tests and measurements want it; OpenCA keeps one.
func NewCA(cluster wire.ClusterID) (*CA, error) { return newCA(cluster, time.Now()) }

func newCA(cluster wire.ClusterID, now time.Time) (*CA, error) {
	if cluster == (wire.ClusterID{}) {
		return nil, wire.Errorf("identity.ca", wire.KindInvalid, "", "the cluster has no id")
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("crake cluster "+cluster.String(), now)
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign
	t.URIs = []*url.URL{{Scheme: scheme, Host: cluster.String()}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, public, key)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{cluster: cluster, cert: cert, key: key}, err
}

// template is what all certificates have: a random serial number, a name for people, and the time in which they are good.
func template(name string, now time.Time) *x509.Certificate {
	var serial [16]byte
	_, _ = rand.Read(serial[:]) // never fails since Go 1.24
	serial[0] &= 0x7f           // a serial number is positive
	serial[15] |= 1
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-validFor), NotAfter: now.Add(validFor),
	}
}

// Issue makes an identity with a new key. KindInvalid: a role that has none, or a process 0 of a role other than mgmt.
func (ca *CA) Issue(role wire.Role, proc wire.ProcID) (*Identity, error) {
	return ca.issue(role, proc, time.Now())
}

func (ca *CA) issue(role wire.Role, proc wire.ProcID, now time.Time) (*Identity, error) {
	if !mayBe(role, proc) {
		return nil, wire.Errorf("identity.issue", wire.KindInvalid, fmt.Sprintf("%s %d", role, proc), "no process can be that")
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template(fmt.Sprintf("crake %s %d", role, proc), now)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	t.URIs = []*url.URL{{Scheme: scheme, Host: ca.cluster.String(), Path: "/" + role.String() + "/" + strconv.FormatUint(uint64(proc), 10)}}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("a certificate: %w", err)
	}
	return newIdentity(der, key, ca.cert)
}

// mayBe reports whether a process of that role and number can be: mgmt is 0, all others have a slot.
func mayBe(role wire.Role, proc wire.ProcID) bool {
	switch role {
	case wire.RoleMgmt:
		return proc == 0
	case wire.RoleDrive, wire.RoleCompute, wire.RoleFrontend:
		return proc != 0
	}
	return false
}
