package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/crakefs/crake/wire"
)

// Claim: every kind has an errno, those that programs act upon the right one, and what nobody foresaw is EIO.
func TestErrno(t *testing.T) {
	if status(nil) != fuse.OK {
		t.Error("nil is an error")
	}
	for k := wire.KindOther; k <= wire.KindAuthentication; k++ {
		if errno(k) == 0 {
			t.Errorf("%v has no errno", k)
		}
	}
	for k, want := range map[wire.Kind]syscall.Errno{
		wire.KindNotFound: syscall.ENOENT, wire.KindExists: syscall.EEXIST, wire.KindNoSpace: syscall.ENOSPC, wire.KindStale: syscall.ESTALE,
		wire.KindNotEmpty: syscall.ENOTEMPTY, wire.KindCrossDevice: syscall.EXDEV, wire.KindDeadlock: syscall.EDEADLK,
		wire.KindWouldBlock: syscall.EAGAIN, wire.KindIO: syscall.EIO, wire.KindCorrupt: syscall.EIO, wire.Kind(9999): syscall.EIO,
	} {
		err := fmt.Errorf("outer: %w", wire.E("op", k, "id", errors.New("cause")))
		if got := status(err); got != fuse.Status(want) {
			t.Errorf("%v gives %v, want %v", k, got, want)
		}
	}
	if status(errors.New("x")) != fuse.EIO {
		t.Error("an error without a kind is not EIO")
	}
}

// Claim: the context of a call does not end at an interrupt while its caller lives, and ends when the filesystem stops; its children
// learn of it.
func TestCall(t *testing.T) {
	cancel, stop := make(chan struct{}), make(chan struct{})
	h := &fuse.InHeader{}
	h.Pid = uint32(os.Getpid())
	c := newCall(cancel, stop, h)
	child, free := context.WithCancel(c)
	defer free()
	close(cancel)
	select {
	case <-child.Done():
		t.Error("an interrupt ended the call of a living process")
	case <-time.After(3 * killPoll):
	}
	close(stop)
	select {
	case <-child.Done():
	case <-time.After(5 * time.Second):
		t.Error("the call goes on after the filesystem has stopped")
	}
	if c.Err() == nil {
		t.Error("no error after the end")
	}
	c.finish()

	// A caller that is gone.
	cancel = make(chan struct{})
	h.Pid = 1 << 30
	c = newCall(cancel, make(chan struct{}), h)
	defer c.finish()
	close(cancel)
	select {
	case <-c.Done():
	case <-time.After(5 * time.Second):
		t.Error("the call of a dead process goes on")
	}
	if w := (waiting{c, cancel}); w.Err() == nil {
		t.Error("an interrupt does not end a wait for a lock")
	}
}
