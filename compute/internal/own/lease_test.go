package own

import (
	"testing"
	"time"
)

// Claim: a lease lasts half its time from when it was asked for; the absence of mgmt lengthens one that is not over and
// never revives one that is.
func TestLease(t *testing.T) {
	now := time.Hour
	l := NewLease(func() time.Duration { return now })
	const leaseTime = 10 * time.Second
	if l.Valid() || l.Extend(now, leaseTime) || l.Valid() {
		t.Fatal("a lease that was never given is valid")
	}
	l.Renew(now, leaseTime)
	now += 4 * time.Second
	if !l.Valid() || !l.Extend(now, leaseTime) {
		t.Fatal("a lease that is not over was not lengthened")
	}
	now += 4 * time.Second
	if !l.Valid() {
		t.Fatal("over though it was lengthened")
	}
	if at := now - 3*time.Second; !l.Extend(at, leaseTime) || !l.Valid() {
		t.Fatal("an old moment shortened the lease")
	}
	now += 2 * time.Second
	if l.Valid() || l.Extend(now, leaseTime) || l.Valid() {
		t.Fatal("a lease that is over was revived")
	}
	l.Renew(now, leaseTime)
	if !l.Valid() {
		t.Fatal("a heartbeat did not revive it")
	}
}
