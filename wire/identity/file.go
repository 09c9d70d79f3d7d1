package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/crakefs/crake/wire"
)

// Types of PEM blocks.
const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY" // PKCS #8
)

// Write writes the identity to a file of mode 0600: certificate, key, and the certificate of the CA, in PEM. The file is whole or
// not there; it is not synced, since no identity outlives the machine's processes.
func (id *Identity) Write(path string) error {
	key, err := encodeKey(id.key)
	if err != nil {
		return err
	}
	return writeFile(path, false, &pem.Block{Type: pemCert, Bytes: id.der}, key, &pem.Block{Type: pemCert, Bytes: id.ca.Raw})
}

// Load reads what Write wrote. Errors have KindAuthentication, name the file and say what to do.
func Load(path string) (*Identity, error) {
	blocks, err := readFile(path)
	var id *Identity
	if err == nil {
		id, err = decodeIdentity(blocks)
	}
	if err != nil {
		return nil, wire.E("identity.load", wire.KindAuthentication, path, fmt.Errorf("%w; mgmt writes this file when it starts a process", err))
	}
	return id, nil
}

// LoadIf is Load, and nil where there is no path: in tests, see member.Place.
func LoadIf(path string) (*Identity, error) {
	if path == "" {
		return nil, nil
	}
	return Load(path)
}

func decodeIdentity(blocks []*pem.Block) (*Identity, error) {
	if len(blocks) != 3 || blocks[0].Type != pemCert || blocks[1].Type != pemKey || blocks[2].Type != pemCert {
		return nil, errors.New("not a certificate, a key and a certificate")
	}
	key, err := decodeKey(blocks[1])
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(blocks[2].Bytes)
	if err != nil {
		return nil, err
	}
	return newIdentity(blocks[0].Bytes, key, ca)
}

// OpenCA reads the CA of a cluster from a file, or makes it, durably, when there is none. A file that is damaged, or of another
// cluster, is an error: with a new CA no running process could speak with those that start later.
func OpenCA(path string, cluster wire.ClusterID) (*CA, error) {
	blocks, err := readFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return makeCA(path, cluster)
	}
	var ca *CA
	if err == nil {
		ca, err = decodeCA(blocks, cluster)
	}
	if err != nil {
		return nil, wire.E("identity.ca", wire.KindCorrupt, path,
			fmt.Errorf("%w; restore it, or stop the cluster and remove it: then all processes get new identities", err))
	}
	return ca, nil
}

func makeCA(path string, cluster wire.ClusterID) (*CA, error) {
	ca, err := NewCA(cluster)
	if err != nil {
		return nil, err
	}
	key, err := encodeKey(ca.key)
	if err != nil {
		return nil, err
	}
	return ca, writeFile(path, true, &pem.Block{Type: pemCert, Bytes: ca.cert.Raw}, key)
}

func decodeCA(blocks []*pem.Block, cluster wire.ClusterID) (*CA, error) {
	if len(blocks) != 2 || blocks[0].Type != pemCert || blocks[1].Type != pemKey {
		return nil, errors.New("not a certificate and a key")
	}
	cert, err := x509.ParseCertificate(blocks[0].Bytes)
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(blocks[1])
	if err != nil {
		return nil, err
	}
	want := url.URL{Scheme: scheme, Host: cluster.String()}
	switch public, ok := cert.PublicKey.(ed25519.PublicKey); {
	case !cert.IsCA || !ok || !public.Equal(key.Public()):
		return nil, errors.New("it is no CA, or the key does not belong to it")
	case len(cert.URIs) != 1 || *cert.URIs[0] != want:
		return nil, fmt.Errorf("it is %q, not the CA of cluster %s", cert.Subject.CommonName, cluster)
	}
	return &CA{cluster: cluster, cert: cert, key: key}, nil
}

func encodeKey(key ed25519.PrivateKey) (*pem.Block, error) {
	b, err := x509.MarshalPKCS8PrivateKey(key)
	return &pem.Block{Type: pemKey, Bytes: b}, err
}

func decodeKey(b *pem.Block) (ed25519.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T, want Ed25519", parsed)
	}
	return key, nil
}

// writeFile writes blocks to a file of mode 0600, whole or not at all.
func writeFile(path string, durable bool, blocks ...*pem.Block) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails when it was renamed: that is the good case
	for _, b := range blocks {
		err = errors.Join(err, pem.Encode(tmp, b))
	}
	if durable {
		err = errors.Join(err, tmp.Sync())
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil || !durable {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readFile reads the PEM blocks of a file that holds nothing else.
func readFile(path string) ([]*pem.Block, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("more than %d bytes", maxFileBytes)
	}
	var blocks []*pem.Block
	for len(b) > 0 {
		block, rest := pem.Decode(b)
		if block == nil {
			return nil, errors.New("what it holds is not PEM")
		}
		blocks, b = append(blocks, block), rest
	}
	return blocks, nil
}
