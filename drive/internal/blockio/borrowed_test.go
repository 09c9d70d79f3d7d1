package blockio

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// TestBorrowedMemory: data that lies in memory of another process, mapped read only, is written like any other, by plain IO, also when that
// process has let its memory go.
func TestBorrowedMemory(t *testing.T) {
	for _, choice := range []Choice{ChoosePread, ChooseIOUring} {
		t.Run(string(choice), func(t *testing.T) {
			e, arena := newEngine(t, EngineConfig{Choice: choice})
			d := open(t, e, makeFile(t, t.TempDir(), 1<<20))
			owner, err := wire.NewArena(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			own := alloc(t, owner, 64<<10)
			fillPattern(own.Bytes(), 9)
			want := bytes.Clone(own.Bytes())
			loan := borrow(t, arena, owner, own)
			own.Release()
			if err := owner.Close(); err != nil {
				t.Fatal(err)
			}
			for n := range 2 * regionHeat {
				p := loan.Data()[0].B
				if err := d.WriteAt(p[n%4*Align:], int64(n%4)*Align); err != nil {
					t.Fatal(err)
				}
			}
			got := AlignedBytes(64 << 10)
			if err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Error("other data was written:", err)
			}
			if r, ok := d.(*ringDevice); ok {
				if _, in := r.g.regions.at(loan.Data()[0].B); in {
					t.Error("borrowed memory counts as the arena's")
				}
			}
			loan.Data().Release()
		})
	}
}

// borrow makes a loan of b, as a connection does.
func borrow(t *testing.T, arena, owner *wire.Arena, b *wire.Buf) *wire.Loan {
	t.Helper()
	fd, err := owner.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	dup, err := unix.Dup(fd)
	var pipe [2]int
	if err := errors.Join(err, unix.Pipe2(pipe[:], unix.O_CLOEXEC)); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(pipe[0])
	f, err := wire.MapForeign(dup, pipe[1], owner.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release() // the loan keeps it
	loan := wire.NewLoans(arena, func(uint64, int) {}).Begin(2, 1, false)
	loan.Add(f, owner.Offset(b.Bytes()), len(b.Bytes()))
	return loan
}
