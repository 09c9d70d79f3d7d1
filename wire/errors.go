package wire

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what went wrong in a way that programs act upon. Values travel and are append-only.
type Kind uint16

// The kinds. Only one whose text says so promises that the request had no effect.
const (
	KindNone            Kind = 0
	KindOther           Kind = 1  // a failure that has no kind of its own
	KindNotFound        Kind = 2  // no such name, inode, strip, ...
	KindExists          Kind = 3  // the name or id is taken
	KindStaleEpoch      Kind = 4  // the bucket has had a newer owner since
	KindStaleSession    Kind = 5  // the session is not alive
	KindMoved           Kind = 6  // not the owner; refresh the map and ask the owner
	KindNoSpace         Kind = 7  // nothing was written
	KindOverLimit       Kind = 8  // a limit of limits.go was passed
	KindCorrupt         Kind = 9  // bytes that fail their checksum or make no sense
	KindUnavailable     Kind = 10 // try again later; it may have had an effect
	KindRefused         Kind = 11 // not allowed in this state; had no effect
	KindVersion         Kind = 12 // no common protocol version, or unknown method
	KindNotDir          Kind = 13
	KindIsDir           Kind = 14
	KindNotEmpty        Kind = 15
	KindNameTooLong     Kind = 16
	KindInvalid         Kind = 17 // bad argument
	KindPermission      Kind = 18 // EPERM
	KindAccess          Kind = 19 // EACCES
	KindCrossDevice     Kind = 20 // EXDEV
	KindTooManyLinks    Kind = 21 // EMLINK
	KindNoData          Kind = 22 // no such attribute, ENODATA
	KindRange           Kind = 23 // ERANGE
	KindWouldBlock      Kind = 24 // EAGAIN: a lock is held by another
	KindDeadlock        Kind = 25 // EDEADLK
	KindInterrupted     Kind = 26 // EINTR
	KindTooBig          Kind = 27 // EFBIG
	KindNotSupported    Kind = 28 // EOPNOTSUPP
	KindTimeout         Kind = 29 // the deadline passed; it may have had an effect
	KindConnLost        Kind = 30 // the connection broke; it may have had an effect
	KindBadFrame        Kind = 31 // the peer sent what is no frame; the connection is closed
	KindStaleGeneration Kind = 32 // the receiver's map is older than the sender's and could not be refreshed in time
	KindLeaseLost       Kind = 33 // the write lease this request relies on is not held
	KindIO              Kind = 34 // a device failed
	KindShutdown        Kind = 35 // the process is stopping; had no effect
	KindNoSuchAttr      Kind = 36 // reserved
	KindStale           Kind = 37 // ESTALE: the inode is gone
	KindAuthentication  Kind = 38 // the peer could not prove who it is
)

var kindNames = map[Kind]string{
	KindOther: "error", KindNotFound: "not found", KindExists: "exists", KindStaleEpoch: "stale epoch",
	KindStaleSession: "stale session", KindMoved: "moved", KindNoSpace: "no space", KindOverLimit: "over limit",
	KindCorrupt: "corrupt", KindUnavailable: "unavailable", KindRefused: "refused", KindVersion: "unsupported version",
	KindNotDir: "not a directory", KindIsDir: "is a directory", KindNotEmpty: "not empty",
	KindNameTooLong: "name too long", KindInvalid: "invalid", KindPermission: "operation not permitted",
	KindAccess: "permission denied", KindCrossDevice: "cross-device link", KindTooManyLinks: "too many links",
	KindNoData: "no such attribute", KindRange: "out of range", KindWouldBlock: "would block",
	KindDeadlock: "deadlock", KindInterrupted: "interrupted", KindTooBig: "too big",
	KindNotSupported: "not supported", KindTimeout: "timed out", KindConnLost: "connection lost",
	KindBadFrame: "bad frame", KindStaleGeneration: "stale generation", KindLeaseLost: "lease lost",
	KindIO: "device error", KindShutdown: "shutting down", KindStale: "stale handle",
	KindAuthentication: "not authenticated",
}

// Error makes a Kind usable as the target of errors.Is.
func (k Kind) Error() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("error kind %d", uint16(k))
}

// Error is the one error type of the wire. It travels: what a peer answers arrives as an equal Error.
type Error struct {
	Op   string // what was tried, such as "drive.put"
	Kind Kind
	ID   string // what it was tried on: an inode, strip, path, address
	Err  error  // the cause, or nil; of an error that travelled only its text is left
}

// Error gives "op id: kind: cause".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.ID != "" {
		b.WriteByte(' ')
		b.WriteString(e.ID)
	}
	b.WriteString(": ")
	b.WriteString(e.Kind.Error())
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports true for the error's Kind, so errors.Is(err, wire.KindNotFound) works.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// E makes an Error; cause may be nil.
func E(op string, kind Kind, id string, cause error) *Error {
	return &Error{Op: op, Kind: kind, ID: id, Err: cause}
}

// Errorf makes an Error with a formatted cause. A %w in format keeps the chain.
func Errorf(op string, kind Kind, id, format string, args ...any) *Error {
	return &Error{Op: op, Kind: kind, ID: id, Err: fmt.Errorf(format, args...)}
}

// KindOf finds the outermost Kind in err's chain: KindNone for nil, KindOther for an error without one.
func KindOf(err error) Kind {
	if err == nil {
		return KindNone
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return KindOther
}

// Retryable reports whether the same request, with the same (session, sequence), should be sent again, perhaps to
// another owner. It says nothing on whether the request had an effect.
func (k Kind) Retryable() bool {
	switch k {
	case KindStaleEpoch, KindMoved, KindUnavailable, KindTimeout, KindConnLost, KindStaleGeneration, KindShutdown:
		return true
	}
	return false
}
