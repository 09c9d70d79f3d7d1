package opens

import (
	"slices"
	"testing"

	"github.com/crakefs/crake/wire"
)

// TestOpens: a session counts once, and the last one to go is told, by release or by the end of its session.
func TestOpens(t *testing.T) {
	tab := New()
	tab.Opened(0, 9)
	tab.Opened(1, 9)
	tab.Opened(1, 9)
	tab.Opened(2, 9)
	tab.Opened(2, 10)
	if tab.Count(1) != 1 || tab.Count(2) != 2 || !tab.IsOpen(9) || tab.IsOpen(11) {
		t.Fatal("counts")
	}
	if last := tab.Release(1, []wire.Ino{9, 10, 11}); len(last) != 0 {
		t.Fatalf("session 2 still has 9: %v", last)
	}
	if last := tab.Release(1, []wire.Ino{9}); len(last) != 0 {
		t.Fatalf("released twice: %v", last)
	}
	last := tab.EndSession(2)
	slices.Sort(last)
	if !slices.Equal(last, []wire.Ino{9, 10}) || tab.IsOpen(9) || len(tab.byIno)+len(tab.bySession) != 0 {
		t.Fatalf("%v, left %v %v", last, tab.byIno, tab.bySession)
	}
}
