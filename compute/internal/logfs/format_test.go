package logfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
)

func sampleDescription() *description {
	return &description{
		metaHeader: metaHeader{bucket: 7, epoch: 3, number: 99, stamp: 1234567890},
		kind:       fileTable, name: "db/000012.sst", data: wire.MakeStripID(7, wire.ClassTable, 0, 42, 0, 5),
		length: 70_000 + 10,
		chunks: []chunk{
			{
				loc: wire.Location{
					Kind: wire.LocStripe, K: 2, M: 1, ID: wire.MakeStripID(7, wire.ClassTable, 0, 42, 0, 6), Blocks: 18,
					Drives: []wire.DriveID{1, 2, 3},
				},
				bytes: 70_000, sums: make([]uint64, 18),
			},
			{
				loc: wire.Location{
					Kind: wire.LocSegment, M: 1, ID: wire.MakeStripID(7, wire.ClassTable, 0, 42, 1, 8),
					Drives: []wire.DriveID{4, 5},
				},
				bytes: 10, sums: []uint64{0xfeed},
			},
		},
	}
}

func TestDescriptionRoundTrip(t *testing.T) {
	d := sampleDescription()
	b := d.encode()
	if len(b)%wire.BlockSize != 0 {
		t.Fatalf("%d bytes", len(b))
	}
	got, _, err := decodeMeta(b)
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("%+v, %v", got, err)
	}
	small := &description{metaHeader: d.metaHeader, kind: fileTable, name: "x", data: d.data, length: 3, inline: []byte("abc")}
	if got, _, err = decodeMeta(small.encode()); err != nil || !reflect.DeepEqual(got, small) {
		t.Fatalf("%+v, %v", got, err)
	}
	rec := &openRecord{metaHeader: d.metaHeader, live: []wire.StripID{d.data, small.data}}
	if _, got, err := decodeMeta(rec.encode()); err != nil || !reflect.DeepEqual(got, rec) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestGolden pins the bytes of version 1: what is on disk must be readable for ever.
func TestGolden(t *testing.T) {
	d := &description{
		metaHeader: metaHeader{bucket: 7, epoch: 3, number: 99, stamp: 1234567890}, kind: fileLog, name: "1.log",
		data: wire.StripID{Hi: 0x0007300000000001, Lo: 0x2},
	}
	const want = "434b4644" + "0100" + "01" + "00" + "0700" + "000000000000" + "0300000000000000" + "6300000000000000" +
		"d202964900000000" + "29000000" + "000000000000000000000000"
	b := d.encode()
	if got := hex.EncodeToString(b[:56]); got != want {
		t.Errorf("header\n%s, want\n%s", got, want)
	}
	const body = "01" + "00" + "0500" + "312e6c6f67" + "0000000000000000" + "0100000000300700" + "0200000000000000" +
		"00000000" + "00000000"
	if got := hex.EncodeToString(b[64 : 64+0x29]); got != body {
		t.Errorf("body\n%s, want\n%s", got, body)
	}
	if got := hex.EncodeToString(encodeSegHead(0x1234)); got != "434b4c53"+"0100"+"0000"+"3412000000000000" {
		t.Errorf("head of a segment: %s", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	b := sampleDescription().encode()
	for i := 0; i < len(b); i += 1 + i/40 {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		d, _, err := decodeMeta(bad)
		if body := metaHeaderBytes + int(b[40]) + int(b[41])<<8; err == nil && i < body {
			t.Errorf("byte %d may be anything: %+v", i, d)
		}
	}
	later := bytes.Clone(b)
	later[4] = 2
	n := int(later[40]) + int(later[41])<<8
	resum(later, n)
	if _, _, err := decodeMeta(later); !errors.Is(err, wire.KindVersion) {
		t.Errorf("a later version: %v", err)
	}
	long := sampleDescription()
	long.name = strings.Repeat("n", MaxNameBytes+1)
	if _, _, err := decodeMeta(long.encode()); !errors.Is(err, wire.KindCorrupt) {
		t.Errorf("a name of %d bytes: %v", len(long.name), err)
	}
}

func resum(b []byte, body int) {
	sum := metaSum(b, body)
	for i := range 8 {
		b[56+i] = byte(sum >> (8 * i))
	}
}

// FuzzDescription: any bytes, with a checksum made to fit, are refused or give a description that encodes to the same.
func FuzzDescription(f *testing.F) {
	f.Add(sampleDescription().encode()[:400], true)
	f.Add((&openRecord{live: []wire.StripID{{Hi: 1, Lo: 2}}}).encode()[:100], true)
	f.Add([]byte("CKFD"), false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		b = bytes.Clone(b)
		if fix && len(b) >= metaHeaderBytes {
			copy(b, []byte{0x43, 0x4b, 0x46, 0x44, metaVersion, 0})
			n := len(b) - metaHeaderBytes
			b[40], b[41], b[42], b[43] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
			resum(b, n)
		}
		d, o, err := decodeMeta(b)
		switch {
		case err != nil:
			if d != nil || o != nil {
				t.Fatal("a result with an error")
			}
		case d != nil:
			again, _, err := decodeMeta(d.encode())
			if err != nil || !reflect.DeepEqual(again, d) {
				t.Fatalf("%+v became %+v, %v", d, again, err)
			}
		case o != nil:
			_, again, err := decodeMeta(o.encode())
			if err != nil || !reflect.DeepEqual(again, o) {
				t.Fatalf("%+v became %+v, %v", o, again, err)
			}
		}
	})
}
