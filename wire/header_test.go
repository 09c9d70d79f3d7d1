package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// Claim: a header arrives as it was sent; one changed bit anywhere in it or in the meta section is found.
func TestHeader(t *testing.T) {
	b := goldenHeader()
	h, err := DecodeHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	meta := b[HeaderBytes:]
	if err := CheckHeader(b, meta); err != nil {
		t.Fatal(err)
	}
	again := make([]byte, HeaderBytes)
	h.Encode(again, meta)
	if !bytes.Equal(again, b[:HeaderBytes]) {
		t.Errorf("%x became %x", b[:HeaderBytes], again)
	}
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			_, err := DecodeHeader(c)
			if err == nil {
				err = CheckHeader(c, c[HeaderBytes:])
			}
			if KindOf(err) != KindBadFrame {
				t.Errorf("byte %d bit %d changed: %v", i, bit, err)
			}
		}
	}
	for n := range HeaderBytes {
		if _, err := DecodeHeader(b[:n]); KindOf(err) != KindBadFrame {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Claim: lengths past the limits are refused before anything else is done with them.
func TestHeaderLimits(t *testing.T) {
	for at, limit := range map[int]uint32{32: MaxMetaBytes, 36: MaxDataBytes} {
		for _, n := range []uint32{limit + 1, 1<<32 - 1} {
			b := goldenHeader()
			binary.LittleEndian.PutUint32(b[at:], n)
			if _, err := DecodeHeader(b); KindOf(err) != KindBadFrame {
				t.Errorf("length %d at %d: %v", n, at, err)
			}
		}
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(goldenHeader())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err != nil {
			if KindOf(err) != KindBadFrame {
				t.Error(err)
			}
			return
		}
		if h.MetaBytes > MaxMetaBytes || h.DataBytes > MaxDataBytes {
			t.Error("past a limit")
		}
		_ = CheckHeader(b, b[HeaderBytes:])
		c := make([]byte, HeaderBytes)
		h.Encode(c, nil)
		if again, err := DecodeHeader(c); err != nil || again != h {
			t.Errorf("%+v became %+v, %v", h, again, err)
		}
	})
}

// Claim: an error keeps its kind through wrapping, and errors.Is and As see it.
func TestErrors(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("more: %w", E("drive.put", KindNoSpace, "s1", cause))
	if !errors.Is(err, KindNoSpace) || errors.Is(err, KindIO) || !errors.Is(err, cause) || KindOf(err) != KindNoSpace {
		t.Error(err)
	}
	if got := E("drive.put", KindNoSpace, "s1", cause).Error(); got != "drive.put s1: no space: cause" {
		t.Error(got)
	}
	if KindOf(nil) != KindNone || KindOf(cause) != KindOther || KindOf(KindRange) != KindRange {
		t.Error("KindOf")
	}
	for k := KindOther; k <= KindAuthentication; k++ {
		if k != KindNoSuchAttr && kindNames[k] == "" {
			t.Errorf("kind %d has no text", uint16(k))
		}
	}
}
