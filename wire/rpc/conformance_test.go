package rpc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
)

var testCluster = wire.ClusterID{1, 2, 3}

// world is a listener and what is needed to dial it, over one transport.
type world struct {
	t        testing.TB
	addr     string
	server   Options
	client   Options
	listener *Listener
	stop     func() // ends the listener and waits
	serverA  *wire.Arena
	clientA  *wire.Arena
}

// newWorld makes a world over the transport of this name.
func newWorld(t testing.TB, name string) *world {
	w := &world{t: t}
	checkDescriptors(t)
	checkGoroutines(t)
	w.serverA, w.clientA = testArena(t, 64<<20), testArena(t, 64<<20)
	w.server = Options{Self: Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: 2, Version: "1.0"}, Arena: w.serverA, Handler: echo}
	w.client = Options{Self: Self{Cluster: testCluster, Role: wire.RoleCompute, Proc: 3, Version: "1.1"}, Arena: w.clientA}
	i := slices.IndexFunc(transports, func(tr transport) bool { return tr.name == name })
	transports[i].prepare(t, w)
	return w
}

// prove gives both sides identities.
func (w *world) prove() {
	ca := testCA(w.t)
	w.server.Identity, w.client.Identity = testIdentity(w.t, ca, w.server.Self), testIdentity(w.t, ca, w.client.Self)
}

func testCA(t testing.TB) *identity.CA {
	ca, err := identity.NewCA(testCluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func testIdentity(t testing.TB, ca *identity.CA, s Self) *identity.Identity {
	id, err := ca.Issue(s.Role, s.Proc)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func testArena(t testing.TB, size int) *wire.Arena {
	a, err := wire.NewArena(size, wire.ArenaDebug())
	if err != nil {
		t.Fatal(err)
	}
	closeArena(t, a)
	return a
}

// closeArena closes an arena when all else is cleaned up, and fails the test if any of it is lent or taken then.
func closeArena(t testing.TB, a *wire.Arena) {
	t.Cleanup(func() {
		eventually(t, "what is lent to come back", func() bool { return a.Stats().Lent == 0 })
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// checkGoroutines fails the test if goroutines of this package are left when all else is cleaned up.
func checkGoroutines(t testing.TB) {
	t.Cleanup(func() {
		buf := make([]byte, 1<<20)
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			stacks := string(buf[:runtime.Stack(buf, true)])
			left := ""
			for _, g := range strings.Split(stacks, "\n\n")[1:] {
				if strings.Contains(g, "wire/rpc.") && !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "testing.(*B)") && !strings.Contains(g, "testing.(*F)") {
					left += g + "\n\n"
				}
			}
			if left == "" {
				return
			}
			if time.Now().After(end) {
				t.Errorf("goroutines are left:\n%s", left)
				return
			}
		}
	})
}

// checkDescriptors fails the test if descriptors are left when all else is cleaned up that were not there before: sockets, memory, pipes.
func checkDescriptors(t testing.TB) {
	open := func() map[string]string {
		all := map[string]string{}
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			// The target tells a descriptor from a later one of the same number. Those of the reading itself are gone by now.
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.Contains(to, "anon_inode") {
				all[e.Name()+" "+to] = to
			}
		}
		return all
	}
	before := open()
	t.Cleanup(func() {
		var left []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			left = left[:0]
			for fd := range open() {
				if _, ok := before[fd]; !ok {
					left = append(left, fd)
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("descriptors are left: %q", left)
	})
}

// serve starts the listener; the cleanup stops it and waits.
func (w *world) serve() {
	l, err := Listen(w.addr, w.server)
	if err != nil {
		w.t.Fatal(err)
	}
	w.listener, w.addr = l, l.Addr()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error("Serve:", err)
		}
	})
	w.t.Cleanup(w.stop)
}

func (w *world) dial() *Conn {
	c, err := Dial(context.Background(), w.addr, w.client)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close(); <-c.finished })
	return c
}

// Methods of the test handler.
const (
	mEcho  wire.Method = 0x7001 // the data comes back
	mSleep wire.Method = 0x7002 // answers when ctx has ended, with its error
	mFail  wire.Method = 0x7003 // answers an error
	mMake  wire.Method = 0x7004 // answers Len bytes of a pattern
	mBack  wire.Method = 0x7005 // asks mEcho back on the same connection
)

func echo(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
	switch r.Header.Method {
	case mEcho:
		var m wire.AppendResp
		if err := m.Decode(r.Meta); err != nil {
			r.Data.Release()
			return nil, nil, err
		}
		return &m, r.Data, nil
	case mSleep:
		r.Data.Release()
		<-ctx.Done()
		return nil, nil, ctx.Err()
	case mBack:
		r.Data.Release()
		var m wire.AppendResp
		if err := r.Conn.Do(ctx, &Call{Method: mEcho, Req: &wire.AppendResp{Len: 77}, Resp: &m}); err != nil {
			return nil, nil, err
		}
		return &m, nil, nil
	case mFail:
		r.Data.Release()
		return nil, nil, wire.Errorf("test.fail", wire.KindNoSpace, "x1", "the cause")
	}
	r.Data.Release()
	return nil, nil, wire.Errorf("test", wire.KindVersion, "", "unknown method %#x", uint16(r.Header.Method))
}

func fill(b []byte, seed int) {
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
}

func (w *world) data(n, seed int) wire.Data {
	b, err := w.clientA.Alloc(context.Background(), n)
	if err != nil {
		w.t.Fatal(err)
	}
	fill(b.Bytes(), seed)
	return b.Data(n)
}

func flat(d wire.Data) []byte {
	var b []byte
	for _, s := range d {
		b = append(b, s.B...)
	}
	return b
}

// Requests and answers of every size come through whole, from many callers at once.
func TestEcho(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		c := w.dial()
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i, n := range []int{0, 1, 100, 4096, 4097, 65536, 1 << 20, 3<<20 + 4096, 0, 8 << 20} {
					var d wire.Data
					if n > 0 {
						d = w.data(n, g)
					}
					var resp wire.AppendResp
					call := Call{Method: mEcho, Req: &wire.AppendResp{Len: uint64(n + g)}, Data: d, Resp: &resp}
					if err := c.Do(context.Background(), &call); err != nil {
						t.Error(g, i, err)
						return
					}
					if resp.Len != uint64(n+g) || !bytes.Equal(flat(call.RespData), flat(d)) {
						t.Error(g, i, "wrong answer", resp.Len, call.RespData.Len())
					}
					call.RespData.Release()
					d.Release()
				}
			})
		}
		wg.Wait()
	})
}

func TestDeadlineAndCancel(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		c := w.dial()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		if err := c.Do(ctx, &Call{Method: mSleep}); wire.KindOf(err) != wire.KindTimeout {
			t.Error(err)
		}
		ctx2, cancel2 := context.WithCancel(context.Background())
		time.AfterFunc(20*time.Millisecond, cancel2)
		if err := c.Do(ctx2, &Call{Method: mSleep}); wire.KindOf(err) != wire.KindInterrupted {
			t.Error(err)
		}
		err := c.Do(context.Background(), &Call{Method: mFail})
		if fmt.Sprint(err) != "test.fail x1: no space: the cause" {
			t.Error(err)
		}
	})
}
