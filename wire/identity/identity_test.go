package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

var testCluster = wire.ClusterID{0xc1, 2, 15: 3}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(testCluster)
	must(t, err)
	return ca
}

func issue(t *testing.T, ca *CA, role wire.Role, proc wire.ProcID) *Identity {
	t.Helper()
	id, err := ca.Issue(role, proc)
	must(t, err)
	return id
}

// Claim: an identity says who it is, each has a key and serial number of its own, and others of the same CA can check what it signs.
func TestIssue(t *testing.T) {
	ca := testCA(t)
	drive, compute, again := issue(t, ca, wire.RoleDrive, 3), issue(t, ca, wire.RoleCompute, 7), issue(t, ca, wire.RoleDrive, 3)
	if got := drive.Name().String(); got != "crake://c1020000000000000000000000000003/drive/3" {
		t.Error(got)
	}
	if drive.Key() == again.Key() || drive.Key() == (wire.ProcKey{}) {
		t.Error("two runs have the same key")
	}
	peer, err := compute.Verify(drive.Certificate())
	must(t, err)
	if peer.Name != drive.Name() || peer.Key != drive.Key() {
		t.Errorf("%+v", peer)
	}
	text := []byte("a message")
	if !peer.Check(text, drive.Sign(text)) || peer.Check(text, again.Sign(text)) || peer.Check([]byte("another"), drive.Sign(text)) {
		t.Error("signatures")
	}
	if mgmt := issue(t, ca, wire.RoleMgmt, 0); mgmt.Name().Role != wire.RoleMgmt {
		t.Error(mgmt.Name())
	}
	if n := len(drive.Certificate()); n > MaxCertBytes/2 {
		t.Errorf("a certificate has %d bytes", n)
	}
}

func TestIssueRefuses(t *testing.T) {
	if _, err := NewCA(wire.ClusterID{}); wire.KindOf(err) != wire.KindInvalid {
		t.Error("a CA of no cluster:", err)
	}
	ca := testCA(t)
	for _, n := range []Name{{Role: wire.RoleDrive}, {Role: wire.RoleMgmt, Proc: 1}, {Role: wire.RoleClient, Proc: 1}, {Role: wire.RoleNone, Proc: 1}} {
		if _, err := ca.Issue(n.Role, n.Proc); wire.KindOf(err) != wire.KindInvalid {
			t.Errorf("%s %d: %v", n.Role, n.Proc, err)
		}
	}
}

// Claim: only certificates that this CA issued for a process, and that are good now, are taken; it is told what is wrong with others.
func TestVerifyRefuses(t *testing.T) {
	ca := testCA(t)
	id := issue(t, ca, wire.RoleDrive, 3)
	// odd issues what Issue would not.
	odd := func(edit func(c *x509.Certificate) (public any)) []byte {
		c := template("odd", time.Now())
		public := edit(c)
		if public == nil {
			public = id.key.Public()
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, public, ca.key)
		must(t, err)
		return der
	}
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		must(t, err)
		return []*url.URL{u}
	}
	named := func(text string) []byte {
		return odd(func(c *x509.Certificate) any { c.URIs = uri(text); return nil })
	}
	good := id.Name().String()
	for name, c := range map[string]struct {
		der  []byte
		want string
	}{
		"nothing":       {nil, "0 bytes"},
		"garbage":       {[]byte("not a certificate"), "no certificate"},
		"too long":      {make([]byte, MaxCertBytes+1), "2049 bytes"},
		"cut":           {id.der[:len(id.der)-1], "no certificate"},
		"changed":       {append(append([]byte{}, id.der[:len(id.der)-1]...), id.der[len(id.der)-1]^1), "none that this cluster's mgmt issued"},
		"another CA":    {issue(t, testCA(t), wire.RoleDrive, 3).der, "none that this cluster's mgmt issued"},
		"the CA itself": {ca.cert.Raw, "not of a process"},
		"no name":       {odd(func(*x509.Certificate) any { return nil }), "0 names"},
		"two names":     {odd(func(c *x509.Certificate) any { c.URIs = append(uri(good), uri(good)...); return nil }), "2 names"},
		"a web page":    {named("https://c1020000000000000000000000000003/drive/3"), "names no process"},
		"no such role":  {named("crake://c1020000000000000000000000000003/king/3"), "names no process"},
		"process 0":     {named("crake://c1020000000000000000000000000003/drive/0"), "names no process"},
		"leading zero":  {named("crake://c1020000000000000000000000000003/drive/03"), "names no process"},
		"more behind":   {named(good + "/x"), "names no process"},
		"a query":       {named(good + "?x"), "names no process"},
		"short cluster": {named("crake://c102/drive/3"), "names no process"},
		"an ECDSA key": {odd(func(c *x509.Certificate) any {
			c.URIs = uri(good)
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			must(t, err)
			return k.Public()
		}), "ECDSA key"},
		"for servers only": {odd(func(c *x509.Certificate) any {
			c.URIs, c.ExtKeyUsage = uri(good), []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			return nil
		}), "incompatible key usage"},
	} {
		_, err := id.Verify(c.der)
		if wire.KindOf(err) != wire.KindAuthentication || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	now := time.Now()
	for name, c := range map[string]struct {
		at time.Time
		ok bool
	}{
		"nine years early": {now.AddDate(-9, 0, 0), true}, "nine years late": {now.AddDate(9, 0, 0), true},
		"not yet": {now.AddDate(-11, 0, 0), false}, "expired": {now.AddDate(11, 0, 0), false},
	} {
		if _, err := id.verify(id.der, c.at); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A process cannot issue: its certificate is no CA's.
	child := template("child", now)
	child.URIs = uri(good)
	der, err := x509.CreateCertificate(rand.Reader, child, mustParse(t, id.der), id.key.Public(), id.key)
	must(t, err)
	if _, err := id.Verify(der); wire.KindOf(err) != wire.KindAuthentication {
		t.Errorf("issued by a process: %v", err)
	}
}

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

// Claim: what was written is loaded, only its user may read it, and what is not an identity is refused with what to do.
func TestLoadRefuses(t *testing.T) {
	ca := testCA(t)
	id, other := issue(t, ca, wire.RoleFrontend, 9), issue(t, ca, wire.RoleFrontend, 9)
	path := filepath.Join(t.TempDir(), "id")
	must(t, id.Write(path))
	must(t, id.Write(path)) // over another
	fi, err := os.Stat(path)
	must(t, err)
	back, err := Load(path)
	must(t, err)
	if fi.Mode().Perm() != 0o600 || back.Name() != id.Name() || back.Key() != id.Key() || !back.key.Equal(id.key) {
		t.Errorf("mode %v, %+v", fi.Mode(), back.Name())
	}
	good, err := os.ReadFile(path)
	must(t, err)
	must(t, other.Write(path))
	theirs, err := os.ReadFile(path)
	must(t, err)
	part := func(b []byte, i int) string { return strings.SplitAfter(string(b), "-----END ")[i] }
	for name, text := range map[string]string{
		"empty": "", "garbage": "garbage", "half": string(good[:len(good)/2]), "without the CA": part(good, 0) + part(good, 1),
		"another's key": strings.Replace(string(good), keyText(good), keyText(theirs), 1),
		"a damaged key": strings.Replace(string(good), keyText(good), "AAAA\n", 1),
		"large":         string(good) + strings.Repeat("\n", maxFileBytes),
	} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if _, err := Load(path); wire.KindOf(err) != wire.KindAuthentication || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mgmt writes this file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(path + "x"); wire.KindOf(err) != wire.KindAuthentication || !errors.Is(err, os.ErrNotExist) {
		t.Error("missing:", err)
	}
}

// keyText gives the base64 of the key of a file.
func keyText(b []byte) string {
	_, after, _ := strings.Cut(string(b), "-----BEGIN PRIVATE KEY-----\n")
	text, _, _ := strings.Cut(after, "-----END")
	return text
}

// Claim: a CA is made once and kept; one that cannot be read is never replaced.
func TestOpenCARefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	ca, err := OpenCA(path, testCluster)
	must(t, err)
	again, err := OpenCA(path, testCluster)
	must(t, err)
	id := issue(t, again, wire.RoleDrive, 1)
	if _, err := issue(t, ca, wire.RoleDrive, 2).Verify(id.Certificate()); err != nil {
		t.Error("the same CA:", err)
	}
	fi, err := os.Stat(path)
	must(t, err)
	if fi.Mode().Perm() != 0o600 {
		t.Error(fi.Mode())
	}
	if _, err := OpenCA(path, wire.ClusterID{9}); wire.KindOf(err) != wire.KindCorrupt || !strings.Contains(err.Error(), "not the CA of cluster 09") {
		t.Error("of another cluster:", err)
	}
	good, err := os.ReadFile(path)
	must(t, err)
	must(t, id.Write(path))
	leaf, err := os.ReadFile(path)
	must(t, err)
	leaf = leaf[:strings.LastIndex(string(leaf), "-----BEGIN")] // certificate and key, but of a process
	for name, text := range map[string]string{"empty": "", "garbage": "x", "half": string(good[:len(good)/2]), "a process's": string(leaf)} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if _, err := OpenCA(path, testCluster); wire.KindOf(err) != wire.KindCorrupt || !strings.Contains(err.Error(), "restore it") {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%s: the file was replaced", name)
		}
	}
}

// Claim: a file is whole or not there, and nothing is left beside it, also when it cannot be put in place.
func TestFilesAreWhole(t *testing.T) {
	dir := t.TempDir()
	id := issue(t, testCA(t), wire.RoleDrive, 1)
	path := filepath.Join(dir, "id")
	must(t, os.Mkdir(path, 0o700)) // in the way
	if err := id.Write(path); err == nil {
		t.Error("written over a folder")
	}
	if err := id.Write(filepath.Join(dir, "none", "id")); err == nil {
		t.Error("written into no folder")
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

// FuzzVerify feeds arbitrary bytes as certificates: they are refused with KindAuthentication.
func FuzzVerify(f *testing.F) {
	ca, err := NewCA(testCluster)
	if err != nil {
		f.Fatal(err)
	}
	id, err := ca.Issue(wire.RoleDrive, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(id.der)
	f.Add(ca.cert.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		p, err := id.Verify(der)
		if err != nil && wire.KindOf(err) != wire.KindAuthentication {
			t.Error(err)
		}
		if err == nil && (len(p.public) != ed25519.PublicKeySize || !mayBe(p.Role, p.Proc)) {
			t.Errorf("%+v", p)
		}
	})
}
