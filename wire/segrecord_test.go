package wire

import (
	"bytes"
	"math/rand"
	"reflect"
	"testing"
)

func segmentRecords(r *rand.Rand) (SegRecord, []byte) {
	rec := SegRecord{
		ID: MakeStripID(BucketID(r.Intn(100)), ClassSegment, 0, uint64(r.Intn(1<<30)), 0, r.Uint64()), Epoch: Epoch(r.Uint64()),
		Offset: uint64(r.Intn(1000)) * BlockSize,
	}
	if r.Intn(2) == 0 {
		inline := make([]byte, r.Intn(SegInlineBytes+1))
		r.Read(inline)
		rec.Payload = len(inline)
		return rec, inline
	}
	rec.Sums = make([]uint64, 1+r.Intn(MaxDataBytes/BlockSize))
	if r.Intn(2) == 0 {
		rec.Sums = rec.Sums[:min(len(rec.Sums), 1+r.Intn(8))]
	}
	for i := range rec.Sums {
		rec.Sums[i] = r.Uint64()
	}
	rec.Payload = len(rec.Sums)*BlockSize - r.Intn(BlockSize)
	return rec, nil
}

// Claim: a record's head reads as it was written, whatever lay in the memory before; a head longer than a block says so.
func TestSegRecordRoundTrip(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 500 {
		rec, inline := segmentRecords(r)
		b := make([]byte, rec.HeadBytes())
		r.Read(b)
		rec.EncodeHead(b, inline)
		first, _, need, err := DecodeSegHead(b[:BlockSize])
		if err != nil || need != len(b) {
			t.Fatalf("%+v: need %d of %d, %v", first, need, len(b), err)
		}
		got, payload, need, err := DecodeSegHead(b)
		if err != nil || need != len(b) {
			t.Fatalf("need %d of %d, %v", need, len(b), err)
		}
		if !reflect.DeepEqual(got, rec) || !bytes.Equal(payload, inline) {
			t.Fatalf("%+v became %+v", rec, got)
		}
		if got.Bytes()%BlockSize != 0 || got.Bytes() != len(b)+len(rec.Sums)*BlockSize {
			t.Fatal("length", got.Bytes())
		}
	}
}

// Claim: one changed bit in the header, the checksums or the inline payload is found.
func TestSegRecordFlips(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	for range 40 {
		rec, inline := segmentRecords(r)
		b := make([]byte, rec.HeadBytes())
		rec.EncodeHead(b, inline)
		covered := SegHeaderBytes + 8*len(rec.Sums) + len(inline)
		for range 200 {
			i := r.Intn(covered)
			if r.Intn(2) == 0 {
				i = r.Intn(SegHeaderBytes)
			}
			c := bytes.Clone(b)
			c[i] ^= 1 << r.Intn(8)
			if got, _, need, err := DecodeSegHead(c); err == nil && need <= len(c) {
				t.Fatalf("byte %d of %+v changed: %+v", i, rec, got)
			}
		}
	}
}

func FuzzSegRecord(f *testing.F) {
	f.Add(goldenSegment())
	r := rand.New(rand.NewSource(3))
	for seeds := 0; seeds < 4; {
		rec, inline := segmentRecords(r)
		if len(rec.Sums) > 8 || len(inline) > 100 {
			continue // long inputs make fuzzing slow
		}
		b := make([]byte, rec.HeadBytes())
		rec.EncodeHead(b, inline)
		f.Add(b)
		seeds++
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, inline, need, err := DecodeSegHead(b)
		if err != nil {
			if KindOf(err) != KindCorrupt {
				t.Error(err)
			}
			return
		}
		if need > len(b) {
			if need > 8<<20 {
				t.Error("needs", need)
			}
			return
		}
		c := make([]byte, rec.HeadBytes())
		rec.EncodeHead(c, inline)
		if again, p, _, err := DecodeSegHead(c); err != nil || !reflect.DeepEqual(again, rec) && rec.ID.Pos() == 0 || !bytes.Equal(p, inline) {
			t.Errorf("%+v became %+v, %v", rec, again, err)
		}
	})
}

// Claim: a head of which only some sectors were written over what lay there before is no record, even where its checksums
// do not reach: a record is wholly there or not at all.
func TestSegRecordTornPadding(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	for range 500 {
		rec, inline := segmentRecords(r)
		b := make([]byte, rec.HeadBytes())
		rec.EncodeHead(b, inline)
		torn := append([]byte(nil), b...)
		for at := 0; at < len(torn); at += 512 {
			if r.Intn(2) == 0 {
				r.Read(torn[at : at+512])
			}
		}
		if _, _, _, err := DecodeSegHead(torn); err == nil && !bytes.Equal(torn, b) {
			t.Fatalf("a torn head of %d bytes with %d bytes of payload and %d checksums reads as a record", len(b), rec.Payload, len(rec.Sums))
		}
	}
}
