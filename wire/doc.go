// Package wire is what the roles share: typed ids, errors, the cluster map, messages, buffers and (in its folders rpc
// and route) connections. It knows nothing about what the messages do.
//
// Reading order: ids.go (the vocabulary), errors.go, limits.go, clustermap.go, buf.go (the zero-copy rule), message.go
// and codec.go (how messages are encoded), msg_*.go (the messages, by who answers them), segrecord.go (what lies in a
// segment); then rpc (connections) and route (who owns what, and the one place for retries).
//
// PROTOCOL.md is the specification of the bytes.
package wire
