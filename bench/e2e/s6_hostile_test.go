package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/wire"
)

// Claim 6: random bytes, a wrong version, a giant length, a truncated frame against every listening process: a clear
// error, nothing crashes, and the mount works on.
func TestS6HostilePeers(t *testing.T) {
	c := start(t, devcluster.Options{})
	before, err := c.Processes()
	must(t, err)
	cluster := clusterID(t, c)
	sockets, err := filepath.Glob(filepath.Join(c.Dir, "run", "*.sock"))
	must(t, err)
	roles := 0
	r := random(t)
	t.Run("Peers", func(t *testing.T) { // ends when all of them have
		for _, path := range sockets {
			name := strings.TrimSuffix(filepath.Base(path), ".sock")
			ours := name == "mgmt" || strings.HasPrefix(name, "drive") || strings.HasPrefix(name, "compute")
			if ours {
				roles++
			}
			r := rand.New(rand.NewPCG(r.Uint64(), 0))
			t.Run(name, func(t *testing.T) {
				t.Parallel() // nearly all of it is waiting for an answer that may not come
				hostile(t, path, ours, cluster, r)
			})
		}
	})
	if roles != 9 {
		t.Errorf("found the sockets of %d roles, want 9 (6 drives, 2 computes, mgmt): %v", roles, sockets)
	}
	must(t, writeSynced(filepath.Join(c.Mount, "after"), []byte("works")))
	if got, err := os.ReadFile(filepath.Join(c.Mount, "after")); err != nil || string(got) != "works" {
		t.Errorf("the mount afterwards: %q, %v", got, err)
	}
	after, err := c.Processes()
	must(t, err)
	for _, b := range before {
		for _, a := range after {
			if a.Name == b.Name && a.PID != b.PID {
				t.Errorf("%s was restarted: it crashed", a.Name)
			}
		}
	}
	if logs := c.Logs(1000); strings.Contains(logs, "panic:") || strings.Contains(logs, "goroutine ") {
		t.Error("a log tells of a panic")
	}
	healthy(t, c)
}

func clusterID(t *testing.T, c *devcluster.Cluster) (id wire.ClusterID) {
	t.Helper()
	var st struct {
		ClusterID string `json:"cluster_id"`
	}
	must(t, c.JSON(&st, "status"))
	if len(st.ClusterID) != 32 {
		t.Fatalf("cluster id %q", st.ClusterID)
	}
	for i := range id {
		id[i] = hexDigit(st.ClusterID[2*i])<<4 | hexDigit(st.ClusterID[2*i+1])
	}
	return id
}

func hexDigit(c byte) byte { return byte(strings.IndexByte("0123456789abcdef", c)) }

// helloOf makes a handshake of a tool, as PROTOCOL.md has it.
func helloOf(cluster wire.ClusterID, lowest, highest uint16) []byte {
	b := make([]byte, 128)
	le := binary.LittleEndian
	copy(b, "CRAKEHLO")
	b[10] = byte(wire.RoleClient)
	copy(b[16:], cluster[:])
	le.PutUint16(b[32:], lowest)
	le.PutUint16(b[34:], highest)
	le.PutUint32(b[36:], 64)
	le.PutUint64(b[40:], 1<<20)
	copy(b[72:], "hostile test")
	sumHello(b)
	return b
}

// sumHello corrects the checksum of a hello.
func sumHello(b []byte) { binary.LittleEndian.PutUint64(b[120:], xxhash.Sum64(b[:120])) }

// frame makes a request frame; sizes may lie about the sections.
func frame(method wire.Method, id uint64, metaBytes, dataBytes uint32, meta []byte) []byte {
	h := wire.Header{Kind: wire.FrameRequest, Method: method, ID: id, MetaBytes: metaBytes, DataBytes: dataBytes, DeadlineMs: 2000}
	b := make([]byte, wire.HeaderBytes)
	h.Encode(b, meta)
	return append(b, meta...)
}

// attack is one hostile conversation.
type attack struct {
	name   string
	as     *party // who shakes hands and proves himself before he attacks; nil: nobody
	of     wire.ClusterID
	send   []byte
	answer func(got []byte) string
}

func hostile(t *testing.T, path string, ours bool, cluster wire.ClusterID, r *rand.Rand) {
	insider, err := readParty(filepath.Join(filepath.Dir(path), "compute0.identity"))
	must(t, err)
	if !ours {
		insider = nil
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		fill(b, r.Uint64())
		return b
	}
	ok := helloOf(cluster, 1, 1)
	stranger := bytes.Clone(ok)
	stranger[10] = byte(wire.RoleFrontend)
	sumHello(stranger)
	badSum := bytes.Clone(ok)
	badSum[50] ^= 1
	badFrame := frame(wire.MGetAttr, 1, 8, 0, noise(8))
	badFrame[60] ^= 1
	attacks := []attack{
		{name: "nothing"},
		{name: "random bytes", send: noise(4096)},
		{name: "a lot of random bytes", send: noise(1 << 20)},
		{name: "an HTTP request", send: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{name: "half a handshake", send: ok[:70]},
		{name: "a handshake with a wrong checksum", send: badSum},
		{name: "a version of the future", send: helloOf(cluster, 900, 999), answer: refusedFor(wire.KindVersion)},
		{name: "a handshake without proof", send: stranger, answer: refusedFor(wire.KindAuthentication)},
		{name: "noise instead of a proof", send: append(insider.helloOr(cluster, ok), noise(5000)...)},
		{name: "half a proof", send: append(insider.helloOr(cluster, ok), "CRAKEPRF\x00\x00\x00\x02"...)},
		{name: "a giant proof", send: append(insider.helloOr(cluster, ok), "CRAKEPRF\x00\x00\xff\xff\xff\xff\xff\xff"...)},
		{name: "versions upside down", send: helloOf(cluster, 9, 1)},
		{name: "another cluster", send: helloOf(wire.ClusterID{1, 2, 3}, 1, 1), answer: refusedFor(wire.KindRefused)},
		{name: "a handshake and random bytes", as: insider, send: noise(100_000)},
		{name: "a truncated header", as: insider, send: badFrame[:30]},
		{name: "a header with a wrong checksum", as: insider, send: badFrame},
		{name: "a giant meta section", as: insider, send: frame(wire.MGetAttr, 1, 1<<31, 0, nil)},
		{name: "a giant data section", as: insider, send: frame(wire.MDrivePut, 1, 0, 1<<32-1, nil)},
		{name: "a data section that never comes", as: insider, send: frame(wire.MDrivePut, 1, 0, 1<<20, nil)},
		{name: "an unknown method", as: insider, send: frame(0xfffe, 7, 0, 0, nil), answer: answersError},
	}
	for _, m := range []wire.Method{
		wire.MDrivePut, wire.MDriveAppend, wire.MDriveRead, wire.MDriveDelete, wire.MDriveList, wire.MLookup, wire.MCreate,
		wire.MRename, wire.MReadDir, wire.MExtents, wire.MWrite, wire.MLock, wire.MReclaim, wire.MTxnPrepare, wire.MTxnDecide,
		wire.MDropRegions, wire.MRegister, wire.MHeartbeat, wire.MEvent, wire.MEvict, wire.MGoodbye,
	} {
		for _, n := range []int{0, 5, 300} {
			meta := noise(n)
			attacks = append(attacks, attack{
				name: "noise as the message of a request", as: insider, send: frame(m, 9, uint32(n), 0, meta),
			})
		}
	}
	for _, a := range attacks {
		a.of = cluster
		got := converse(t, path, a)
		if a.answer != nil && ours {
			if why := a.answer(got); why != "" {
				t.Errorf("%s: %s", a.name, why)
			}
		}
	}
	// After all that it still greets a peer that behaves.
	if ours {
		good := attack{name: "a good handshake", as: insider, of: cluster, send: frame(0xfffe, 7, 0, 0, nil)}
		if why := answersError(converse(t, path, good)); why != "" {
			t.Errorf("a good handshake and a request: %s", why)
		}
	}
}

// refusedFor wants a hello whose status says why.
func refusedFor(k wire.Kind) func([]byte) string {
	return func(got []byte) string {
		if len(got) < 128 || string(got[:8]) != "CRAKEHLO" {
			return "no answer that says why"
		}
		if s := wire.Kind(binary.LittleEndian.Uint16(got[8:])); s != k {
			return "refused as " + s.Error() + ", want " + k.Error()
		}
		return ""
	}
}

// answersError wants a response frame with an error, to request 7, after the handshake.
func answersError(got []byte) string {
	if len(got) < wire.HeaderBytes {
		return "no answer"
	}
	le := binary.LittleEndian
	for b := got; len(b) >= wire.HeaderBytes; {
		if b[4] == byte(wire.FrameResponse) && le.Uint64(b[8:]) == 7 {
			if le.Uint16(b[44:]) == 0 {
				return "success"
			}
			return ""
		}
		skip := wire.HeaderBytes + int(le.Uint32(b[32:])) + int(le.Uint32(b[36:]))
		if skip > len(b) {
			break
		}
		b = b[skip:]
	}
	return "no response frame with an error"
}

// helloOr gives the hello of a party, or another where there is none.
func (p *party) helloOr(cluster wire.ClusterID, other []byte) []byte {
	if p == nil {
		return bytes.Clone(other)
	}
	return p.hello(cluster)
}

// converse sends what an attack sends, reads what comes for a moment, and closes.
func converse(t *testing.T, path string, a attack) []byte {
	t.Helper()
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		t.Fatalf("%s: nobody listens any more: %v", a.name, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if a.as != nil {
		if _, refused, err := a.as.prove(conn, a.of); err != nil || refused != "" {
			t.Fatalf("%s: the handshake: %s, %v", a.name, refused, err)
		}
	}
	if _, err := conn.Write(a.send); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: write: %v", a.name, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
	var got []byte
	buf := make([]byte, 64<<10)
	for len(got) < 1<<20 {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: read: %v", a.name, err)
			}
			break
		}
	}
	return got
}
