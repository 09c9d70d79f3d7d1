package identity

import "time"

const (
	// MaxCertBytes bounds a certificate. Ours have some 500 bytes; a proof as a whole (package rpc) has at most 4 KiB.
	MaxCertBytes = 2048
	// validFor is how long a certificate is good, before and after it was issued: longer than any clock is wrong and any process runs.
	validFor = 10 * 365 * 24 * time.Hour
	// maxFileBytes bounds a file that is read: two certificates and a key in PEM have some 2 KiB.
	maxFileBytes = 16 << 10
)
