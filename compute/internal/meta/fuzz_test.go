package meta

import (
	"testing"

	"github.com/crakefs/crake/wire"
)

// FuzzRecords: no bytes in the database make a decoder panic, and what one takes, it takes again as it encodes it.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{recordVersion})
	f.Add((&owner{ino: wire.MakeIno(3, 70_000), block: 5, blocks: 9}).append(nil))
	f.Add(append([]byte{recordVersion}, make([]byte, 200)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeInode(wire.MakeIno(1, 70_000), b)
		_, _ = decodeDentry(b)
		_, _ = decodeExtent(7, b)
		_, _ = decodeLocation(b)
		_, _ = decodeForeign(b)
		_, _ = decodeRemote(b)
		_, _ = decodeCleanup(b)
		_, _ = decodeXattr(b)
		_, _ = decodeCounters(b)
		_, _ = decodeDecision(wire.TxnID{Coordinator: 1, Epoch: 2, Seq: 3}, b)
		_, _ = decodePrepared(wire.TxnID{Coordinator: 1, Epoch: 2, Seq: 3}, b)
		o, err := decodeOwner(b)
		if err != nil {
			return
		}
		again, err := decodeOwner(o.append(nil))
		if err != nil || again != o {
			t.Errorf("owner %+v encodes to what decodes as %+v, %v", o, again, err)
		}
	})
}
