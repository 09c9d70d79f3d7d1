package locks

import (
	"math/rand/v2"
	"testing"

	"github.com/crakefs/crake/wire"
)

// Claim: the table agrees byte for byte with an array of lock types for each owner.
func TestModel(t *testing.T) {
	const size, owners = 40, 3
	for range 200 {
		var tab Table
		var want [owners][2][size]uint8
		for i := range want {
			for j := range want[i] {
				for k := range want[i][j] {
					want[i][j][k] = wire.LockUnlock
				}
			}
		}
		for range 60 {
			o, f := rand.IntN(owners), rand.IntN(2)
			start := rand.IntN(size)
			end := start + rand.IntN(size-start)
			typ := uint8(rand.IntN(3))
			tab.Set(Held{Owner: uint64(o), Flock: f == 1, Start: uint64(start), End: uint64(end), Type: typ})
			for k := start; k <= end; k++ {
				want[o][f][k] = typ
			}
			for o := range owners {
				for f := range 2 {
					var got [size]uint8
					for k := range got {
						got[k] = wire.LockUnlock
					}
					any := false
					for _, h := range tab.Within(uint64(o), f == 1, 0, size) {
						for k := h.Start; k <= h.End; k++ {
							if got[k] != wire.LockUnlock {
								t.Fatal("two locks of one owner on one byte")
							}
							got[k] = h.Type
							any = true
						}
					}
					if got != want[o][f] {
						t.Fatalf("owner %d flock %d holds %v, want %v", o, f, got, want[o][f])
					}
					if any != tab.Has(uint64(o), f == 1) {
						t.Fatal("Has is wrong")
					}
				}
			}
		}
	}
}
