package wire

import (
	"bytes"
	"encoding/hex"
	"math/rand"
	"reflect"
	"runtime"
	"testing"
)

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

// allMessages makes one zero value of every message of this build.
func allMessages() []Message { return append(newMessages(), nextMessages()...) }

// isFixed says that the struct never grows, and stands without a length where it is a field: it is tested as that.
func isFixed(t reflect.Type) bool {
	return t == reflect.TypeFor[StripID]() || t == reflect.TypeFor[Next]()
}

func nameOf(m Message) string { return reflect.TypeOf(m).Elem().Name() }

func zeroLike(m Message) Message { return reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message) }

// Claim: every message arrives as it was sent, also into a value that was used before.
func TestMessagesRoundTrip(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for _, m := range allMessages() {
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
		n := len(reflect.New(t).Interface().(interface{ Append([]byte) []byte }).Append(nil))
		if isFixed(t) {
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
	for _, m := range allMessages() {
		if isFixed(reflect.TypeOf(m).Elem()) {
			continue // tested as a field
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
	for _, m := range allMessages() {
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
	golden := goldenFiles[0].read(f)
	if n := len(allMessages()); n > 256 {
		f.Fatalf("%d messages: one byte does not tell them apart any more", n)
	}
	for i, m := range allMessages() {
		randomize(r, reflect.ValueOf(m).Elem())
		f.Add(uint8(i), m.Append(nil))
		old, err := hex.DecodeString(golden[nameOf(m)])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), old)
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := allMessages()
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
