package procfs

import (
	"os"
	"testing"
)

// Claim: a process that runs has memory, one that does not is told as 0.
func TestRSS(t *testing.T) {
	if n := RSS(os.Getpid()); n < 1<<20 || n > 1<<40 {
		t.Errorf("this process has %d bytes", n)
	}
	if n := RSS(1 << 30); n != 0 { // past the largest pid that Linux gives
		t.Errorf("a process that is not there has %d bytes", n)
	}
}
