package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// updateGoldens writes goldens: of a released version those of new messages are added, the next version's are written anew.
var updateGoldens = os.Getenv("CRAKE_GOLDEN") == "write"

// goldenFile holds messages and frames as one version of the protocol encodes them: lines of a name and hexadecimal digits.
type goldenFile struct {
	version int
	// The first lines of the file are what was released, and stay for ever as they are: their number, and their SHA-256. A message that
	// came later without a new version adds a line.
	released int
	sum      string
}

// goldenFiles are those of all versions that there have been. The next version has not been released: its file follows the code.
var goldenFiles = []goldenFile{
	{version: Version1, released: 99, sum: "3ed1c820edfd6b0a8af0b86d9ddd5956f690c361451deeb20640d243a175301c"},
	{version: VersionNext},
}

func (f goldenFile) path() string {
	return filepath.Join("testdata", fmt.Sprintf("golden_v%d.txt", f.version))
}

// read gives the lines by name.
func (f goldenFile) read(t testing.TB) map[string]string {
	t.Helper()
	text, err := os.ReadFile(f.path())
	if err != nil && !updateGoldens {
		t.Fatal(err)
	}
	if err := f.verify(text); err != nil {
		t.Error(err)
	}
	golden := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, b, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		golden[name] = b
	}
	return golden
}

// verify says whether what was released is in the file as it was.
func (f goldenFile) verify(text []byte) error {
	lines := bytes.SplitAfter(text, []byte("\n"))
	h := sha256.New()
	for _, l := range lines[:min(len(lines), f.released)] {
		h.Write(l)
	}
	if got := hex.EncodeToString(h.Sum(nil)); f.released > 0 && got != f.sum {
		return fmt.Errorf("%s: the first %d lines were released with version %d and have changed (SHA-256 %s)", f.path(), f.released, f.version, got)
	}
	return nil
}

// Claim: the bytes of every version stay: this build and the next version's decode the goldens of both. What a version encodes now is what
// its golden holds, unless the message has grown; a message never becomes shorter.
func TestGoldens(t *testing.T) {
	if updateGoldens {
		writeGoldens(t)
	}
	v1, next := goldenFiles[0].read(t), goldenFiles[1].read(t)
	for _, m := range newMessages() {
		b, ok := v1[nameOf(m)]
		if !ok {
			t.Errorf("%s has no golden: make golden", nameOf(m))
			continue
		}
		checkGolden(t, m, b)
	}
	known := map[string]Message{}
	for _, m := range allMessages() {
		known[nameOf(m)] = m
		if _, ok := next[nameOf(m)]; HighestVersion == VersionNext && nextGrows(reflect.TypeOf(m).Elem()) != ok {
			t.Errorf("%s has a golden of the next version: %v; make golden", nameOf(m), ok)
		}
	}
	for name, b := range next {
		if m := known[name]; m != nil {
			checkNextGolden(t, m, b)
		} else if HighestVersion == VersionNext && name != "frame-echo" {
			t.Errorf("the golden of %s is of no message: make golden", name)
		}
	}
	for name, fresh := range map[string][]byte{"frame-header": goldenHeader(), "segment-record": goldenSegment()} {
		if got := hex.EncodeToString(fresh); got != v1[name] {
			t.Errorf("%s is %s, was %s", name, got, v1[name])
		}
	}
	checkFrame(t, v1["frame-header"], &AppendResp{Len: 5})
	checkFrame(t, next["frame-echo"], known["NextEcho"])
}

// writeGoldens writes what this build is to write: of version 1 what is missing, or the next version's.
func writeGoldens(t *testing.T) {
	t.Helper()
	var all strings.Builder
	if HighestVersion == VersionNext {
		for _, m := range allMessages() {
			if nextGrows(reflect.TypeOf(m).Elem()) {
				fmt.Fprintf(&all, "%s %x\n", nameOf(m), goldenValue(m, true).Append(nil))
			}
		}
		fmt.Fprintf(&all, "frame-echo %x\n", goldenEcho())
		if err := os.WriteFile(goldenFiles[1].path(), []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	golden := goldenFiles[0].read(t)
	text, err := os.ReadFile(goldenFiles[0].path())
	if err != nil {
		t.Fatal(err)
	}
	all.Write(text)
	for _, m := range newMessages() {
		if _, ok := golden[nameOf(m)]; !ok {
			fmt.Fprintf(&all, "%s %x\n", nameOf(m), goldenValue(m, true).Append(nil))
		}
	}
	if err := os.WriteFile(goldenFiles[0].path(), []byte(all.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkGolden compares a message with its golden of version 1.
func checkGolden(t *testing.T, m Message, golden string) {
	t.Helper()
	b := unhex(t, golden)
	got := decodeGolden(t, m, b)
	// What was decoded arrives again as it is. (Nested structs that grew change lengths in the middle, so bytes are compared only when the
	// message has not grown.)
	again := zeroLike(m)
	if err := again.Decode(got.Append(nil)); err != nil || !reflect.DeepEqual(got, again) {
		t.Errorf("%s: %v", nameOf(m), err)
	}
	fresh := goldenValue(m, true).Append(nil)
	switch {
	case len(fresh) == len(b) && !bytes.Equal(fresh, b):
		t.Errorf("%s: the encoding has changed:\n%x\nwas\n%x", nameOf(m), fresh, b)
	case len(fresh) < len(b):
		t.Errorf("%s has become shorter: a message only grows", nameOf(m))
	}
}

// checkNextGolden compares a message with its golden of the next version: each build sees all that it knows of, and nothing else.
func checkNextGolden(t *testing.T, m Message, golden string) {
	t.Helper()
	b := unhex(t, golden)
	if got, want := decodeGolden(t, m, b), goldenValue(m, true); !reflect.DeepEqual(got, want) {
		t.Errorf("%s of the next version decodes to\n%+v, want\n%+v; if the message has grown: make golden", nameOf(m), got, want)
	}
	if fresh := goldenValue(m, true).Append(nil); HighestVersion == VersionNext && !bytes.Equal(fresh, b) {
		t.Errorf("%s: the encoding has changed:\n%x\nwas\n%x\nmake golden", nameOf(m), fresh, b)
	}
	// What a sender of version 1 sends of it lacks that version's field, and nothing else.
	old := goldenValue(m, false)
	if got := decodeGolden(t, m, old.Append(nil)); !reflect.DeepEqual(got, old) {
		t.Errorf("%s without the next version's field decodes to\n%+v, want\n%+v", nameOf(m), got, old)
	}
}

// checkFrame decodes a golden frame: its header is sound and of its meta section, and that is the message, where this build knows it.
func checkFrame(t *testing.T, golden string, m Message) {
	t.Helper()
	b := unhex(t, golden)
	h, err := DecodeHeader(b)
	if err == nil {
		err = CheckHeader(b, b[HeaderBytes:])
	}
	if err != nil || int(h.MetaBytes) != len(b)-HeaderBytes {
		t.Errorf("a golden frame: %+v, %v", h, err)
	}
	if m == nil {
		return
	}
	decodeGolden(t, m, b[HeaderBytes:])
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decodeGolden(t *testing.T, m Message, b []byte) Message {
	t.Helper()
	got := zeroLike(m)
	if err := got.Decode(b); err != nil {
		t.Errorf("%s: the golden does not decode: %v", nameOf(m), err)
	}
	return got
}

// nextGrows says that the next version adds something to messages of the type, or that it is of that version.
func nextGrows(typ reflect.Type) bool {
	switch {
	case typ == reflect.TypeFor[Next]():
		return true
	case typ.Kind() == reflect.Slice:
		return nextGrows(typ.Elem())
	case typ.Kind() == reflect.Struct:
		for i := range typ.NumField() {
			if nextGrows(typ.Field(i).Type) {
				return true
			}
		}
	}
	return false
}

// goldenValue makes a value of the type of m that depends on the type only; with or without what the next version adds.
func goldenValue(m Message, next bool) Message {
	v := zeroLike(m)
	c := counter{next: next}
	c.fill(reflect.ValueOf(v).Elem())
	return v
}

// counter fills values with rising numbers.
type counter struct {
	n    uint64
	next bool // fill what the next version adds, too
}

// fill fills v, lists with two elements: so that a field added at the end changes nothing before it. What the next version adds counts
// nowhere, so that all else has the same values in both builds.
func (c *counter) fill(v reflect.Value) {
	if v.Type() == reflect.TypeFor[Next]() {
		for i := range v.NumField() {
			if c.next {
				v.Field(i).SetUint(0x7e7e7e7e7e7e7e7e >> (64 - v.Field(i).Type().Bits()))
			}
		}
		return
	}
	c.n++
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(c.n%2 == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(c.n * 0x0101010101010101 >> (64 - v.Type().Bits()))
	case reflect.Int64, reflect.Int32:
		v.SetInt(-int64(c.n))
	case reflect.String:
		v.SetString(fmt.Sprint("text", c.n))
	case reflect.Array:
		for i := range v.Len() {
			c.fill(v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			c.fill(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			c.fill(v.Field(i))
		}
	default:
		panic("no way to fill a " + v.Type().String())
	}
}

func goldenHeader() []byte {
	meta := (&AppendResp{Len: 5}).Append(nil)[:8] // as version 1 encodes it
	h := Header{
		Kind: FrameResponse, Flags: 1, Method: MDriveAppend, ID: 0x1112131415161718, Epoch: 3, Generation: 4,
		MetaBytes: uint32(len(meta)), DataBytes: 8192, DeadlineMs: 60000, Status: KindNoSpace, Trace: 0x2122232425262728,
	}
	b := make([]byte, HeaderBytes)
	h.Encode(b, meta)
	return append(b, meta...)
}

func goldenSegment() []byte {
	r := SegRecord{ID: MakeStripID(3, ClassSegment, 1, 77, 0, 0xabcdef), Offset: 8192, Epoch: 9, Payload: 5000, Sums: []uint64{1, 2}}
	b := make([]byte, r.HeadBytes())
	r.EncodeHead(b, nil)
	inline := SegRecord{ID: r.ID, Offset: 4096, Epoch: 9, Payload: 5}
	c := make([]byte, BlockSize)
	inline.EncodeHead(c, []byte("hello"))
	return append(b[:SegHeaderBytes+24], c[:SegHeaderBytes+8]...)
}

// Claim: a golden of a released version that was changed, moved or lost is found; one that was added is not a change.
func TestGoldenReleased(t *testing.T) {
	f := goldenFiles[0]
	text, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.verify(append(bytes.Clone(text), "NewMessage 00\n"...)); err != nil {
		t.Error(err)
	}
	changed := bytes.Clone(text)
	changed[len(text)/2] ^= 1
	first := bytes.IndexByte(text, '\n') + 1
	moved := append(bytes.Clone(text[first:]), text[:first]...)
	for _, bad := range [][]byte{changed, moved, text[first:], text[:first], nil} {
		if f.verify(bad) == nil {
			t.Errorf("%d bytes instead of %d are taken", len(bad), len(text))
		}
	}
}
