package away

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// Claim: only a socket that nobody listens on proves anything.
func TestRefused(t *testing.T) {
	dir, err := os.MkdirTemp("", "away")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed process leaves it
	ask := func(addr string) bool { return Refused(t.Context(), addr) }
	if ask("unix:" + path) {
		t.Error("refused while somebody listens, though it does not accept")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !ask("unix:" + path) {
		t.Error("not refused though nobody listens")
	}
	for _, addr := range []string{"unix:" + path + "-missing", "tcp:127.0.0.1:1", "mem:x", ""} {
		if ask(addr) {
			t.Errorf("%q proves nothing", addr)
		}
	}
}
