package wire

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// updateGoldens adds the goldens of new messages; those that are there stay.
var updateGoldens = os.Getenv("CRAKE_GOLDEN") == "write"

// randomize fills v with random values; lists have up to 3 elements.
func randomize(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.Intn(2) == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> (64 - v.Type().Bits()))
	case reflect.Int64, reflect.Int32:
		v.SetInt(int64(r.Uint64()) >> (64 - v.Type().Bits()))
	case reflect.String:
		b := make([]byte, r.Intn(9))
		r.Read(b)
		v.SetString(string(b))
	case reflect.Array:
		for i := range v.Len() {
			randomize(r, v.Index(i))
		}
	case reflect.Slice:
		n := r.Intn(4)
		if n == 0 {
			return // nil: an empty list arrives as nil
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			randomize(r, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			randomize(r, v.Field(i))
		}
	default:
		panic("no way to fill a " + v.Type().String())
	}
}

func nameOf(m Message) string { return reflect.TypeOf(m).Elem().Name() }

func zeroLike(m Message) Message { return reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message) }

// Claim: every message arrives as it was sent, also into a value that was used before.
func TestMessagesRoundTrip(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for _, m := range newMessages() {
		used := zeroLike(m)
		randomize(r, reflect.ValueOf(used).Elem())
		for range 50 {
			sent := zeroLike(m)
			randomize(r, reflect.ValueOf(sent).Elem())
			b := sent.Append([]byte("before"))[len("before"):]
			for _, into := range []Message{zeroLike(m), used} {
				if err := into.Decode(b); err != nil {
					t.Fatalf("%s: %v", nameOf(m), err)
				}
				if !reflect.DeepEqual(sent, into) {
					t.Fatalf("%s: sent %+v\ngot %+v", nameOf(m), sent, into)
				}
			}
		}
	}
}

// Claim: what a newer sender adds at the end is skipped, at the top and in nested structs; what an older one lacks is zero.
func TestMessagesGrow(t *testing.T) {
	sent := AttrResp{Attr: Attr{Ino: 7, Version: 9}, Lease: Lease{Mode: LeaseWrite, Seq: 5}}
	b := sent.Append(nil)
	var got AttrResp
	if err := got.Decode(append(b, 1, 2, 3)); err != nil || got != sent {
		t.Error("excess at the end:", got, err)
	}
	// The nested Attr, 88 bytes, grown by 4: its length counts them.
	attr := sent.Attr.Append(nil)
	grown := appendStr(nil, append(bytes.Clone(attr), 0xff, 0xff, 0xff, 0xff))
	grown = append(grown, b[4+len(attr):]...)
	if err := got.Decode(grown); err != nil || got != sent {
		t.Error("excess in a nested struct:", got, err)
	}
	// An Attr that knows no Version yet.
	older := appendStr(nil, attr[:len(attr)-8])
	older = append(older, b[4+len(attr):]...)
	want := sent
	want.Attr.Version = 0
	if err := got.Decode(older); err != nil || got != want {
		t.Error("a nested struct that lacks a field:", got, err)
	}
	if err := got.Decode(b[:4+len(attr)]); err != nil || got != (AttrResp{Attr: sent.Attr}) {
		t.Error("a message that lacks a field:", got, err)
	}
	if err := got.Decode(nil); err != nil || got != (AttrResp{}) {
		t.Error("an empty message:", got, err)
	}
}

// boundaries gives the lengths at which the encoding of the top struct v may end without being cut: between its fields.
func boundaries(v reflect.Value) map[int]bool {
	at := map[int]bool{0: true}
	t := v.Type()
	for i := range t.NumField() {
		// Encode with all later fields gone: the length up to and with field i is what all earlier fields take.
		at[prefixLen(v, i+1)] = true
	}
	return at
}

// prefixLen gives the encoded length of the first n fields of v, by the difference to the rest being zero.
func prefixLen(v reflect.Value, n int) int {
	c := reflect.New(v.Type())
	zero := reflect.New(v.Type())
	for i := range v.NumField() {
		if i < n {
			c.Elem().Field(i).Set(v.Field(i))
		}
	}
	full := len(c.Interface().(Message).Append(nil))
	rest := len(zero.Interface().(Message).Append(nil))
	first := 0 // of the zero struct: what its first n fields take
	for i := range n {
		first += zeroLen(v.Field(i).Type())
	}
	return full - (rest - first)
}

// zeroLen gives the encoded length of a zero field.
func zeroLen(t reflect.Type) int {
	switch t.Kind() {
	case reflect.Slice, reflect.String:
		return 4
	case reflect.Struct:
		n := len(reflect.New(t).Interface().(Message).Append(nil))
		if t == reflect.TypeFor[StripID]() {
			return n
		}
		return 4 + n
	}
	return int(t.Size())
}

// Claim: a message cut anywhere but between two of its own fields is an error.
func TestMessagesTruncated(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	cuts := 0
	for _, m := range newMessages() {
		if nameOf(m) == "StripID" {
			continue // fixed: tested as a field
		}
		for range 10 {
			randomize(r, reflect.ValueOf(m).Elem())
			b := m.Append(nil)
			ok := boundaries(reflect.ValueOf(m).Elem())
			if !ok[len(b)] {
				t.Fatalf("%s: the test's lengths are wrong: %v, whole %d", nameOf(m), ok, len(b))
			}
			for n := range b {
				err := zeroLike(m).Decode(b[:n])
				if (err == nil) != ok[n] {
					t.Fatalf("%s %+v cut at %d of %d: %v", nameOf(m), m, n, len(b), err)
				}
				if err != nil && KindOf(err) != KindBadFrame {
					t.Fatalf("%s: %v", nameOf(m), err)
				}
				cuts++
			}
		}
	}
	t.Log(cuts, "cuts")
}

// Claim: a false count or length cannot make a decoder take more memory than a small multiple of the message.
func TestMessagesFalseCounts(t *testing.T) {
	const n = 64 << 10
	for _, m := range newMessages() {
		for skip := range 48 {
			var before, after runtime.MemStats
			b := make([]byte, skip+4+4*n)
			b[skip+2] = n >> 16 // n empty structs, or lists, or strings
			runtime.ReadMemStats(&before)
			_ = zeroLike(m).Decode(b)
			runtime.ReadMemStats(&after)
			if got := after.TotalAlloc - before.TotalAlloc; got > budgetBase+(budgetFactor+1)*uint64(len(b)) {
				t.Fatalf("%s took %d bytes for a message of %d", nameOf(m), got, len(b))
			}
			if skip == 0 && reflect.TypeOf(m).Elem().NumField() == 0 {
				break
			}
		}
	}
}

// FuzzMessages: no bytes make a decoder panic, and what was decoded encodes to something that decodes to the same.
func FuzzMessages(f *testing.F) {
	r := rand.New(rand.NewSource(3))
	golden := readGoldens(f, filepath.Join("testdata", "golden_v1.txt"))
	if n := len(newMessages()); n > 256 {
		f.Fatalf("%d messages: one byte does not tell them apart any more", n)
	}
	for i, m := range newMessages() {
		randomize(r, reflect.ValueOf(m).Elem())
		f.Add(uint8(i), m.Append(nil))
		old, err := hex.DecodeString(strings.TrimSpace(golden[nameOf(m)]))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), old)
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := newMessages()
		m := all[int(which)%len(all)]
		if err := m.Decode(b); err != nil {
			if KindOf(err) != KindBadFrame {
				t.Error(err)
			}
			return
		}
		again := zeroLike(m)
		if err := again.Decode(m.Append(nil)); err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%s: %+v became %+v, %v", nameOf(m), m, again, err)
		}
	})
}

// Claim: every method has a name and its messages, and no two methods a number or name.
func TestMethods(t *testing.T) {
	names, known := map[string]bool{}, map[string]bool{}
	for _, m := range newMessages() {
		known[nameOf(m)] = true
	}
	for _, m := range Methods() {
		info, ok := m.Info()
		if !ok || info.Name == "" || names[info.Name] || !known[nameOf(info.NewReq())] || !known[nameOf(info.NewResp())] {
			t.Errorf("method %#x: %+v, %v", uint16(m), info, ok)
		}
		names[info.Name] = true
	}
	if len(names) < 40 {
		t.Errorf("only %d methods", len(names))
	}
	if _, ok := Method(0x7777).Info(); ok {
		t.Error("a method that is none")
	}
}

// Claim: the bytes of version 1 stay: goldens decode to the same values, and those encode to the same bytes, where the message has
// not grown. A message that has grown decodes its golden still.
func TestGoldens(t *testing.T) {
	path := filepath.Join("testdata", "golden_v1.txt")
	golden := readGoldens(t, path)
	if updateGoldens {
		var add strings.Builder
		for line := range strings.Lines(makeGoldens()) {
			if name, _, _ := strings.Cut(line, " "); golden[name] == "" {
				add.WriteString(line)
			}
		}
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(add.String()); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		golden = readGoldens(t, path)
	}
	for _, m := range newMessages() {
		want, ok := golden[nameOf(m)]
		if !ok {
			t.Errorf("%s has no golden: make golden", nameOf(m))
			continue
		}
		b, err := hex.DecodeString(strings.TrimSpace(want))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Decode(b); err != nil {
			t.Errorf("%s: the golden does not decode: %v", nameOf(m), err)
			continue
		}
		// Compared as far as the golden goes: nested structs that grew change lengths in the middle, so then only a value
		// that was decoded from both is compared.
		now := m.Append(nil)
		again := zeroLike(m)
		if err := again.Decode(now); err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%s: %v", nameOf(m), err)
		}
		if fresh := goldenValue(m); len(fresh) == len(b) && !bytes.Equal(fresh, b) {
			t.Errorf("%s: the encoding has changed:\n%x\nwas\n%x", nameOf(m), fresh, b)
		} else if len(fresh) < len(b) {
			t.Errorf("%s has become shorter: a message only grows", nameOf(m))
		}
	}
	if got := hex.EncodeToString(goldenHeader()); got != golden["frame-header"] {
		t.Errorf("frame header %s, was %s", got, golden["frame-header"])
	}
	if got := hex.EncodeToString(goldenSegment()); got != golden["segment-record"] {
		t.Errorf("segment record %s, was %s", got, golden["segment-record"])
	}
}

func readGoldens(t testing.TB, path string) map[string]string {
	text, err := os.ReadFile(path)
	if err != nil && !updateGoldens {
		t.Fatal(err)
	}
	golden := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, b, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		golden[name] = b + " "[:1-min(1, len(b))] // never empty: an empty message has no bytes
	}
	return golden
}

// goldenValue encodes a value of the type of m that depends on its name only.
func goldenValue(m Message) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(nameOf(m)))
	v := zeroLike(m)
	count(reflect.ValueOf(v).Elem(), new(uint64))
	return v.Append(nil)
}

// count fills v with rising numbers, lists with two elements: so that a field added at the end changes nothing before it.
func count(v reflect.Value, n *uint64) {
	*n++
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(*n%2 == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(*n * 0x0101010101010101 >> (64 - v.Type().Bits()))
	case reflect.Int64, reflect.Int32:
		v.SetInt(-int64(*n))
	case reflect.String:
		v.SetString(fmt.Sprint("text", *n))
	case reflect.Array:
		for i := range v.Len() {
			count(v.Index(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			count(v.Index(i), n)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			count(v.Field(i), n)
		}
	default:
		panic("no way to fill a " + v.Type().String())
	}
}

func goldenHeader() []byte {
	meta := (&AppendResp{Len: 5}).Append(nil)
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

func makeGoldens() string {
	var s strings.Builder
	for _, m := range newMessages() {
		fmt.Fprintf(&s, "%s %x\n", nameOf(m), goldenValue(m))
	}
	fmt.Fprintf(&s, "frame-header %x\nsegment-record %x\n", goldenHeader(), goldenSegment())
	return s.String()
}
