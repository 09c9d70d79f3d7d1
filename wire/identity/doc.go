// Package identity lets the processes of a cluster prove who they are to each other. It knows certificates and files; the
// conversation is in package rpc, the decision whether a process that proved who it is may come in is the cluster map's.
//
//  1. Mgmt has the CA of the cluster (OpenCA): a self-signed certificate and an Ed25519 key, in one file that only its user may read.
//  2. At each start of a process mgmt calls CA.Issue: a new key, and a certificate that names cluster, role and process as a URI,
//     "crake://CLUSTER/ROLE/PROC". Identity.Write puts both, with the CA's certificate, into the file that this run is given.
//  3. The process calls Load once. Sign proves that it has the key; Verify checks the certificate of another; Peer.Check its signature.
//  4. Identity.Key names the certificate in 16 bytes. Mgmt puts it into the map when the process registers, so that who has an identity of an
//     earlier run has nothing that anybody takes.
//
// A certificate is good for ten years before and after it was issued: machines' clocks may be wrong, and what ends an identity is the
// next start of its process, not time.
//
// # How it fails, and the test for each
//
//   - A certificate of another CA, of another time, without the URI or with a strange one, of a CA itself: refused, and told why
//     (TestVerifyRefuses).
//   - A certificate that was issued for a cluster, role or process that cannot be: not issued (TestIssueRefuses).
//   - A damaged, foreign or oversized identity file: an error that names the file and what to do (TestLoadRefuses).
//   - A CA file that is damaged or of another cluster: an error, never a new CA in its place (TestOpenCARefuses).
//   - A crash while a file is written: the file is whole or not there (TestFilesAreWhole).
//
// Reading order: ca.go, identity.go, file.go, limits.go.
package identity
