package rpc

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// TestMemCloseHeld: who closes its own end of a connection does not wait for what a partition holds, even if the peer has
// closed before; and what was held before the peer closed arrives when the partition ends.
func TestMemCloseHeld(t *testing.T) {
	n := NewMem()
	pipe := func() *memPipe {
		n.Partition("a", "b")
		p := n.n.newPipe("a", "b")
		p.foreign = true
		if _, err := p.writev([][]byte{[]byte("xyz")}, true); err != nil {
			t.Fatal(err)
		}
		p.end(io.EOF)
		return p
	}
	read := func(p *memPipe) chan error {
		got := make(chan error, 1)
		go func() {
			b := make([]byte, 3)
			_, err := p.readv([][]byte{b})
			got <- err
		}()
		select {
		case err := <-got:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		return got
	}
	p := pipe()
	got := read(p)
	p.end(net.ErrClosed)
	select {
	case err := <-got:
		if !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the reader waits for ever")
	}
	p = pipe()
	got = read(p)
	n.Heal("a", "b")
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	p.end(net.ErrClosed)
	n.n.mu.Lock()
	defer n.n.mu.Unlock()
	if len(n.n.pipes) != 0 {
		t.Fatalf("%d pipes are left", len(n.n.pipes))
	}
}
