package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/rpc"
)

// frame encodes a frame.
func frame(h wire.Header, meta, data []byte) []byte {
	h.MetaBytes, h.DataBytes = uint32(len(meta)), uint32(len(data))
	b := make([]byte, wire.HeaderBytes)
	h.Encode(b, meta)
	return append(append(b, meta...), data...)
}

// helloOf makes a hello as PROTOCOL.md has it.
func helloOf(role wire.Role, proc uint32) []byte {
	b := make([]byte, rpc.HelloBytes)
	copy(b, rpc.HelloMagic)
	b[10] = byte(role)
	binary.LittleEndian.PutUint32(b[12:], proc)
	b[16], b[32], b[34], b[36] = 1, 1, 1, 64
	copy(b[72:], "v9")
	binary.LittleEndian.PutUint64(b[120:], xxhash.Sum64(b[:120]))
	return b
}

var (
	askRead = &wire.ReadReq{Drive: 4, Ranges: []wire.ReadRange{{ID: wire.MakeStripID(3, wire.ClassData, 1, 77, 0, 0xabc), Offset: 4096, Len: 8192}}}
	reqRead = wire.Header{Kind: wire.FrameRequest, Method: wire.MDriveRead, ID: 5, Trace: 0xbeef, DeadlineMs: 700, Generation: 9}
	reqPut  = wire.Header{Kind: wire.FrameRequest, Method: wire.MDrivePut, ID: 6, Epoch: 3}
)

// sample is a capture of a drive that is asked by a compute: a read that is answered, a write that fails, a cancel, a method nobody knows.
func sample(t testing.TB) []byte {
	tap := capture.New(capture.Origin{Role: wire.RoleDrive, Proc: 7, Name: "drive6"})
	path := filepath.Join(t.TempDir(), "c")
	ctx, cancel := context.WithCancel(context.Background())
	c := tap.Conn(&capture.ConnInfo{Own: helloOf(wire.RoleDrive, 7), Peer: helloOf(wire.RoleCompute, 3), Version: 1, Name: "compute 3 at unix:/x"})
	done := make(chan error)
	go func() { done <- tap.File(ctx, path) }()
	for {
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			break // frames are kept
		}
	}
	c.Frame(false, frame(reqRead, askRead.Append(nil), nil))
	c.Frame(true, frame(wire.Header{Kind: wire.FrameResponse, Method: wire.MDriveRead, ID: 5, Trace: 0xbeef}, (&wire.ReadResp{Status: []wire.Kind{0}}).Append(nil), make([]byte, 8192))[:wire.HeaderBytes+6])
	c.Frame(false, frame(reqPut, (&wire.PutReq{Drive: 4, Sums: make([]uint64, 20)}).Append(nil), nil))
	body := wire.ErrorBody{Op: "drive.put", ID: "s9", Text: "the device is full"}
	c.Frame(true, frame(wire.Header{Kind: wire.FrameResponse, Method: wire.MDrivePut, ID: 6, Epoch: 3, Status: wire.KindNoSpace}, body.Append(nil), nil))
	c.Frame(false, frame(wire.Header{Kind: wire.FrameRequest, Method: 0x7777, ID: 8}, []byte("later"), nil))
	c.Frame(false, frame(wire.Header{Kind: wire.FrameCancel, ID: 8}, nil, nil))
	refs := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 2), 4096), 81920)
	c.Frame(true, frame(wire.Header{Kind: wire.FrameResponse, Method: wire.MDriveSeal, ID: 9, Flags: wire.FlagReferences | 1<<7, Refs: 1},
		append((&wire.SealResp{Len: 12}).Append(nil), refs...), nil))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func text(t *testing.T, b []byte, o Options) string {
	t.Helper()
	var out bytes.Buffer
	if err := Print(&out, bytes.NewReader(b), o, nil); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func has(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
}

// Claim: a line tells who asked whom what, and how it went; what is not known is shown as numbers.
func TestLines(t *testing.T) {
	got := text(t, sample(t), Options{})
	has(t, got, "# capture of drive6 (drive 7)", `# connection 1: compute 3, software "v9", versions 1 to 1, window 64 requests`, "at compute 3 at unix:/x",
		"compute 3 > drive 7  request DriveRead id 5 gen 9 meta 41 within 700 ms trace beef\n",
		"drive 7 > compute 3  response DriveRead id 5 meta 6 data 8192 trace beef after ",
		"response DrivePut id 6 epoch 3 meta 41 after ", "ERROR no space (drive.put s9: the device is full)\n", "# end: the process ends\n")
	if n := strings.Count(got, "\n"); n != 10 {
		t.Errorf("%d lines, want 10:\n%s", n, got)
	}
}

// Claim: what a newer software says is shown, not refused.
func TestUnknown(t *testing.T) {
	got := text(t, sample(t), Options{Messages: true})
	has(t, got, "request 0x7777 id 8 meta 5\n", "cancel 0x7777 id 8\n", "by-reference flags 0x80 in 1 part", "reference 0: arena 2, offset 81920, 4096 bytes", "    Len: 12\n")
}

// Claim: with messages every field stands there by name, with ids as people read them; long lists are cut in lines and whole in JSON.
func TestMessages(t *testing.T) {
	got := text(t, sample(t), Options{Messages: true})
	has(t, got, "    Drive: 4\n    Ranges[0]:\n      ID: b3/c1/n77.0/p1/000000000abc\n      Offset: 4096\n      Len: 8192\n    Priority: 0\n",
		"    Status: ok\n", `    Text: "the device is full"`, "... (20)\n")
	got = text(t, sample(t), Options{JSON: true})
	var puts int
	for line := range strings.Lines(got) {
		var e struct {
			Type, Kind, Method, From, Status string
			Took                             int64 `json:"took_ns"`
			Message                          map[string]any
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Method == "DrivePut" && e.Kind == "request" && len(e.Message["Sums"].([]any)) == 20 && e.From == "compute 3" {
			puts++
		}
		if e.Status == "no space" && e.Message["Op"] == "drive.put" && e.Took > 0 {
			puts++
		}
	}
	if puts != 2 {
		t.Errorf("JSON:\n%s", got)
	}
}

// Claim: filters choose frames, with their answers and cancels.
func TestFilters(t *testing.T) {
	id, trace := uint64(6), uint64(0xbeef)
	for _, c := range []struct {
		f      Filter
		frames int
	}{
		{Filter{}, 7}, {Filter{Methods: []wire.Method{wire.MDriveRead}}, 2}, {Filter{Methods: []wire.Method{0x7777}}, 2},
		{Filter{ID: &id}, 2}, {Filter{Trace: &trace}, 2}, {Filter{Errors: true}, 1}, {Filter{Errors: true, Methods: []wire.Method{wire.MDriveRead}}, 0},
	} {
		got := text(t, sample(t), Options{Filter: c.f})
		if n := strings.Count(got, "  compute 3 > ") + strings.Count(got, "  drive 7 > "); n != c.frames {
			t.Errorf("%+v: %d frames, want %d:\n%s", c.f, n, c.frames, got)
		}
	}
	for name, want := range map[string]wire.Method{"driveread": wire.MDriveRead, "0x0502": wire.MHeartbeat, "1282": wire.MHeartbeat} {
		if m, err := ParseMethod(name); err != nil || m != want {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	if _, err := ParseMethod("xattr"); err == nil || !strings.Contains(err.Error(), "GetXattr") {
		t.Error(err)
	}
}

// stream is one direction of a connection, from its hello on, with a proof.
func stream() []byte {
	proof := append([]byte("CRAKEPRF\x00\x00\x03\x00\x02\x00\x00\x00"), "cersi"...)
	b := append(helloOf(wire.RoleCompute, 3), proof...)
	b = append(b, frame(reqRead, askRead.Append(nil), nil)...)
	return append(b, frame(reqPut, (&wire.PutReq{Drive: 4}).Append(nil), make([]byte, 5000))...)
}

// Claim: the bytes of one direction are read from the first on, and from a frame on.
func TestStream(t *testing.T) {
	got := text(t, stream(), Options{})
	has(t, got, "# connection 0: compute 3", "# proof: certificate of 3 bytes", "byte 149         compute 3 > ?  request DriveRead id 5 ", "request DrivePut id 6 epoch 3 meta 33 data 5000\n")
	has(t, text(t, stream()[rpc.HelloBytes+21:], Options{Messages: true}), "byte 0           ? > ?  request DriveRead id 5 ", "      Len: 8192\n")
}

// Claim: a stream that is cut anywhere shows what is whole before; the error names the offset of what is not.
func TestCutStream(t *testing.T) {
	b := stream()
	first, second := rpc.HelloBytes+21, rpc.HelloBytes+21+wire.HeaderBytes+41
	for n := 8; n < len(b); n++ {
		var out bytes.Buffer
		err := Print(&out, bytes.NewReader(b[:n]), Options{}, nil)
		whole := n == rpc.HelloBytes || n == first || n == second
		if whole != (err == nil) || err != nil && !strings.Contains(err.Error(), "byte ") {
			t.Errorf("cut at %d: %v", n, err)
		}
		if got := strings.Contains(out.String(), "DriveRead"); got != (n >= second) {
			t.Errorf("cut at %d: shown %v\n%s", n, got, out.String())
		}
	}
}

// Claim: damage is an error with the offset, after what is before it.
func TestDamage(t *testing.T) {
	for _, b := range [][]byte{stream(), sample(t)} {
		c := bytes.Clone(b)
		c[bytes.LastIndex(b, []byte("CRK1"))+10] ^= 1 // the last frame's id
		var out bytes.Buffer
		err := Print(&out, bytes.NewReader(c), Options{}, nil)
		if !errors.Is(err, wire.KindBadFrame) || !strings.Contains(err.Error(), "at byte ") || !strings.Contains(out.String(), "DriveRead") {
			t.Errorf("%v after\n%s", err, out.String())
		}
	}
}

// Claim: what is no capture and no stream is refused with a reason; a packet capture with what to do.
func TestNotOurs(t *testing.T) {
	for in, want := range map[string]string{"": "only 0 bytes", "GET / HTTP/1.1\r\n": `begins with "GET / HT"`, "\xd4\xc3\xb2\xa1\x02\x00\x04\x00": "crake wire capture"} {
		err := Print(&bytes.Buffer{}, strings.NewReader(in), Options{}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// FuzzDump: no bytes make it panic, in lines or JSON.
func FuzzDump(f *testing.F) {
	f.Add(stream(), true)
	f.Add(sample(f), false)
	f.Add(sample(f), true)
	f.Fuzz(func(t *testing.T, b []byte, asJSON bool) {
		var out bytes.Buffer
		_ = Print(&out, bytes.NewReader(b), Options{Messages: true, JSON: asJSON}, nil)
	})
}
