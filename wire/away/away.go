// Package away answers one question of processes whose lease mgmt renews: is it certain that no mgmt is running?
//
// A connection to a unix socket is refused only when no process listens there. Mgmt listens as long as it decides, and one
// that starts gives every process a whole lease from the moment when it listens (see "When mgmt is away" in package mgmt).
// So a process that finds the connection refused at time t, and whose lease is not over, may treat this as a
// heartbeat that was sent at t. When its lease is over, it may not: it has to wait for a heartbeat that is answered.
//
// Only the refusal counts. A missing socket file, a full backlog, a timeout or any other failure says nothing about whether
// mgmt runs; neither does TCP, where a network may refuse in a machine's name.
package away

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// dialTimeout bounds the question; a connection to a unix socket is made or refused at once.
const dialTimeout = 200 * time.Millisecond

// Refused reports whether it is certain that, at some moment during the call, nobody listened at addr ("unix:/path").
// Take the time for the lease before the call.
func Refused(ctx context.Context, addr string) bool {
	path, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
