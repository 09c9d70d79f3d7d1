package meta

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// sample is a record with its key and a decoder that gives an equal one.
type sample struct {
	name   string
	key    key
	value  []byte
	want   any
	decode func([]byte) (any, error)
}

func sampleLocation() location {
	return location{live: 77, loc: wire.Location{Kind: wire.LocStripe, K: 4, M: 2, Degraded: true, Blocks: 100,
		ID: wire.MakeStripID(3, wire.ClassData, 0, 99, 0, 0xabcdef), Drives: []wire.DriveID{1, 2, 3, 0, 5, 300}}}
}

func samples() []sample {
	ino := wire.MakeIno(3, 0x12345)
	n := &inode{flags: flagInline | flagXattrs, fs: 3, truncSeq: 4, local: 5, remote: 600, inline: []byte("inline"),
		attr: wire.Attr{Ino: ino, Mode: unix.S_IFREG | 0644, Nlink: 2, UID: 1000, GID: 100, Size: 6, Atime: 1, Mtime: -2, Ctime: 3, Btime: 4, Version: 9}}
	n.setBlocks()
	dir := &inode{flags: flagCollided, fs: 3, parent: 77, entries: 8, attr: wire.Attr{Ino: ino, Mode: unix.S_IFDIR | 0755, Nlink: 3, Size: 8, Version: 1}}
	link := &inode{fs: 3, target: "to/there", attr: wire.Attr{Ino: ino, Mode: unix.S_IFLNK | 0777, Nlink: 1, Size: 8, Version: 1}}
	d := dentry{name: "näme", ino: ino, typ: unix.S_IFDIR}
	e := extent{block: 1030, length: 5000, number: 99, locBlock: 7, sums: []uint64{1, 1 << 63}}
	l := sampleLocation()
	o := owner{ino: ino, block: 12, blocks: 3}
	f := foreign{blocks: 3, version: 4, dropSeq: 5, dropped: true}
	m := remote{blocks: 1 << 20, version: 8}
	c := cleanupRec{from: 1 << 40, gone: true}
	id := wire.TxnID{Coordinator: 2, Epoch: 7, Seq: 300}
	dec := decision{id: id, participants: []wire.BucketID{1, 5, 65000}}
	p := preparedTxn{id: id, session: 6, ops: []wire.TxnOp{{Kind: opTouch, Ino: ino, Name: "n", Extra: []byte{1}}}, attrs: []wire.Attr{{Ino: ino}}}
	sum := counters{1, -2, 3, 1 << 40}
	inodeOf := func(b []byte) (any, error) { return decodeInode(ino, b) }
	return []sample{
		{"inode of a file", inodeKey(ino), n.append(nil), n, inodeOf},
		{"inode of a directory", inodeKey(ino), dir.append(nil), dir, inodeOf},
		{"inode of a symlink", inodeKey(ino), link.append(nil), link, inodeOf},
		{"dentry", dentryKey(ino, 0x1122334455667788), d.append(nil), d, func(b []byte) (any, error) { return decodeDentry(b) }},
		{"extent", extentKey(ino, 1030), e.append(nil), e, func(b []byte) (any, error) { return decodeExtent(1030, b) }},
		{"xattr", xattrKey(ino, "user.x"), []byte{recordVersion, 'v'}, []byte("v"), func(b []byte) (any, error) { return decodeXattr(b) }},
		{"marker", markerKey(ino, 9), appendFlagRecord(nil), nil, nil},
		{"remote blocks", remoteKey(ino, 0x102), m.append(nil), m, func(b []byte) (any, error) { return decodeRemote(b) }},
		{"foreign inode", foreignKey(ino), f.append(nil), f, func(b []byte) (any, error) { return decodeForeign(b) }},
		{"report", reportKey(ino), appendFlagRecord(nil), nil, nil},
		{"location", locKey(99), l.append(nil), &l, func(b []byte) (any, error) { return decodeLocation(b) }},
		{"owner", ownerKey(99, 7), o.append(nil), o, func(b []byte) (any, error) { return decodeOwner(b) }},
		{"zero segment", zeroKey(99), appendFlagRecord(nil), nil, nil},
		{"reply", replyKey(6, 1000), (&wire.UnlinkResp{Ino: ino}).Append([]byte{recordVersion}), nil, nil},
		{"orphan", orphanKey(ino), appendFlagRecord(nil), nil, nil},
		{"decision", decidedKey(id), dec.append(nil), &dec, func(b []byte) (any, error) { return decodeDecision(id, b) }},
		{"prepare", prepareKey(id), p.append(nil), &p, func(b []byte) (any, error) { return decodePrepared(id, b) }},
		{"clean-up", cleanupKey(ino, 4), c.append(nil), c, func(b []byte) (any, error) { return decodeCleanup(b) }},
		{"counters", systemKey(sysCounters), sum.append(nil), sum, func(b []byte) (any, error) { return decodeCounters(b) }},
	}
}

// Every record reads back as it was written, and its bytes are those of the golden file: no release may change them.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "golden_v1.txt")
	var out strings.Builder
	for _, s := range samples() {
		fmt.Fprintf(&out, "%s | %x | %x\n", s.name, []byte(s.key), s.value)
	}
	if os.Getenv("CRAKE_GOLDEN") == "write" {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(out.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(golden), "\n") {
		// Prepares and replies hold wire messages, which may grow at the end (wire keeps their goldens).
		now := strings.Split(out.String(), "\n")[i]
		if name, _, _ := strings.Cut(line, " |"); line != now && name != "prepare" && name != "reply" {
			t.Errorf("written now:\n%s\ngolden:\n%s", now, line)
		}
	}
	lines := map[string][]byte{}
	sc := bufio.NewScanner(strings.NewReader(string(golden)))
	for sc.Scan() {
		parts := strings.Split(sc.Text(), " | ")
		v, err := hex.DecodeString(parts[2])
		if err != nil {
			t.Fatal(err)
		}
		lines[parts[0]] = v
	}
	for _, s := range samples() {
		if s.decode == nil {
			continue
		}
		got, err := s.decode(lines[s.name])
		if err != nil || !reflect.DeepEqual(got, s.want) {
			t.Errorf("%s: read %+v, %v; want %+v", s.name, got, err, s.want)
		}
		// Nothing shorter, longer or of another version is taken.
		v := lines[s.name]
		for i := range v {
			if _, err := s.decode(v[:i]); s.name != "xattr" && !errors.Is(err, wire.KindCorrupt) {
				t.Errorf("%s cut to %d bytes: %v", s.name, i, err)
			}
		}
		other := append([]byte{recordVersion + 1}, v[1:]...)
		if _, err := s.decode(other); !errors.Is(err, wire.KindCorrupt) {
			t.Errorf("%s of a later version: %v", s.name, err)
		}
		if _, err := s.decode(append(append([]byte{}, v...), 0)); s.name != "xattr" && !errors.Is(err, wire.KindCorrupt) {
			t.Errorf("%s with a byte too many: %v", s.name, err)
		}
	}
	if formatMajor != 21 {
		t.Errorf("Pebble's format major version is %d: FORMAT.md says 21", formatMajor)
	}
	names := map[byte]bool{}
	for _, s := range samples() {
		names[s.key[0]] = true
	}
	if len(names) != 17 {
		t.Errorf("%d of 17 kinds of record have a golden", len(names))
	}
}

// Any bytes give a record or KindCorrupt, and what is read encodes and reads back the same, for every kind of record.
func FuzzRoundTrip(f *testing.F) {
	for i, s := range samples() {
		f.Add(uint8(i), s.value)
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		s := samples()[int(which)%len(samples())]
		if s.decode == nil {
			return
		}
		got, err := s.decode(b)
		if err != nil {
			if !errors.Is(err, wire.KindCorrupt) {
				t.Fatalf("%s: %v", s.name, err)
			}
			return
		}
		enc, ok := got.(interface{ append([]byte) []byte })
		if !ok {
			if reflect.ValueOf(got).Kind() != reflect.Struct {
				return
			}
			p := reflect.New(reflect.TypeOf(got))
			p.Elem().Set(reflect.ValueOf(got))
			enc = p.Interface().(interface{ append([]byte) []byte })
		}
		again, err := s.decode(enc.append(nil))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%s: %+v, then %+v, %v", s.name, got, again, err)
		}
	})
}
