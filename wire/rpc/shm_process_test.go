package rpc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// What these tests kill are processes: this test binary, started again. The test's own process is always the one whose memory is lent.
//
//	test (lends) ---- drive: holds data in a gated device
//	test (lends) ---- compute: passes it on ---- drive

// shmProcessEnv tells a process what it is: "drive ADDRESS GATE", or "compute ADDRESS DRIVES-ADDRESS".
const shmProcessEnv = "CRAKE_RPC_SHM_PROCESS"

const (
	mPut  wire.Method = 0x7020 // the drive writes the data to its device, and answers when that is done
	mKeep wire.Method = 0x7021 // the drive answers, and keeps the data until its gate opens
	mRead wire.Method = 0x7022 // answers 1 MiB of a pattern
)

// TestShmProcess is such a process; by itself it tests nothing.
func TestShmProcess(t *testing.T) {
	args := strings.Fields(os.Getenv(shmProcessEnv))
	if len(args) != 3 {
		t.Skip("only as a process that a test starts")
	}
	arena, err := wire.NewArena(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	p := &shmProcess{arena: arena, o: Options{Self: Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: 2}, Arena: arena, Shm: true}}
	if args[0] == "drive" {
		p.gate = args[2]
		p.o.Handler = p.drive
	} else {
		d, err := Dial(t.Context(), args[2], p.o)
		if err != nil {
			t.Fatal(err)
		}
		p.next = d
		p.o.Handler = p.forward
	}
	l, err := Listen(args[1], p.o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends with the test
		cancel()
	}()
	fmt.Println("ready")
	_ = l.Serve(ctx)
}

type shmProcess struct {
	o     Options
	arena *wire.Arena
	gate  string // a named pipe; reading from it is the slow device
	next  *Conn
}

// device does what a slow device does with data: it looks at the memory only after the gate has opened, and writes what it found.
func (p *shmProcess) device(d wire.Data) {
	_ = os.WriteFile(p.gate+".reached", nil, 0o600)
	g, err := os.OpenFile(p.gate, os.O_RDONLY, 0) // waits until the test opens it to write
	if err != nil {
		panic(err)
	}
	out, _ := io.ReadAll(g)
	_ = os.WriteFile(string(bytes.TrimSpace(out)), flat(d), 0o600)
	_ = g.Close()
}

func (p *shmProcess) drive(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
	switch r.Header.Method {
	case mPut:
		p.device(r.Data)
	case mKeep:
		go func() {
			p.device(r.Data)
			r.Data.Release()
		}()
		return nil, nil, nil
	case mRead:
		b, err := p.arena.Alloc(ctx, 1<<20)
		if err != nil {
			return nil, nil, err
		}
		fill(b.Bytes(), 5)
		return nil, b.Data(1 << 20), nil
	case mEcho:
		return nil, r.Data, nil
	}
	r.Data.Release()
	return nil, nil, nil
}

// forward passes a request on with its data, as a compute does with a strip.
func (p *shmProcess) forward(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
	defer r.Data.Release()
	call := Call{Method: r.Header.Method, Data: r.Data}
	for { // until the drive has mapped the memory: the test is about what passes by reference
		before := p.next.Stats().LentBytes
		if r.Header.Method == mPut || r.Header.Method == mKeep {
			warm := Call{Method: 0x7fff, Data: r.Data}
			if err := p.next.Do(ctx, &warm); err != nil {
				return nil, nil, err
			}
			if p.next.Stats().LentBytes == before {
				continue
			}
		}
		err := p.next.Do(ctx, &call)
		return nil, call.RespData, err
	}
}

// shmRig is the test's side.
type shmRig struct {
	t     *testing.T
	dir   string
	arena *wire.Arena
	o     Options
}

func newShmRig(t *testing.T) *shmRig {
	checkGoroutines(t)
	r := &shmRig{t: t, dir: t.TempDir(), arena: testArena(t, 16<<20)}
	r.o = Options{Self: Self{Cluster: testCluster, Role: wire.RoleFrontend, Proc: 9}, Arena: r.arena, Shm: true}
	if err := unix.Mkfifo(r.dir+"/gate", 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

// start starts a process and gives what kills it (and waits).
func (r *shmRig) start(role, next string) (kill func()) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestShmProcess$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s unix:%s/%s %s", shmProcessEnv, role, r.dir, role, next))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = in.Close()
	})
	r.t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		r.t.Fatalf("the %s said %q: %v", role, line, err)
	}
	return kill
}

// dial connects to a process and waits until it has taken our memory, and we its.
func (r *shmRig) dial(role string) *Conn {
	c, err := Dial(r.t.Context(), "unix:"+r.dir+"/"+role, r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close(); <-c.finished })
	sharing(r.t, c)
	return c
}

// sharing waits until data passes by reference both ways.
func sharing(t testing.TB, c *Conn) {
	t.Helper()
	eventually(t, "memory to be shared", func() bool { return c.shm != nil && c.shm.lend.ready() && c.shm.borrow.ready() })
}

func (r *shmRig) data(n int) wire.Data {
	b, err := r.arena.Alloc(r.t.Context(), n)
	if err != nil {
		r.t.Fatal(err)
	}
	fill(b.Bytes(), 1)
	return b.Data(n)
}

// open lets the device of the drive go on, and gives what it has found in the memory.
func (r *shmRig) open() []byte {
	out := r.dir + "/out"
	if err := os.WriteFile(r.dir+"/gate", []byte(out), 0o600); err != nil { // waits for the device to read
		r.t.Fatal(err)
	}
	eventually(r.t, "the device's write", func() bool { st, err := os.Stat(out); return err == nil && st.Size() == 1<<20 })
	b, _ := os.ReadFile(out)
	return b
}

// pattern is what data gives.
func pattern() []byte {
	b := make([]byte, 1<<20)
	fill(b, 1)
	return b
}

// reuse takes all memory that the arena has to give and overwrites it, as other requests would.
func (r *shmRig) reuse() {
	var all wire.Data
	for {
		d := r.arena.TryAllocData(1<<20, wire.UseResponse)
		if d == nil {
			break
		}
		for _, s := range d {
			fill(s.B, 99)
		}
		all = append(all, d...)
	}
	all.Release()
}

// Claim: a process that passes borrowed memory on and is killed leaves the memory to whom it passed it: the owner does not use it again before the
// device's IO there has ended, and then gets it back.
func TestShmForwarderDies(t *testing.T) {
	for name, m := range map[string]wire.Method{"asked": mPut, "answered": mKeep} {
		t.Run(name, func(t *testing.T) {
			r := newShmRig(t)
			r.start("drive", r.dir+"/gate")
			kill := r.start("compute", "unix:"+r.dir+"/drive")
			c := r.dial("compute")
			d := r.data(1 << 20)
			done := make(chan error, 1)
			go func() { done <- c.Do(context.Background(), &Call{Method: m, Data: d}) }()
			r.atTheDevice()
			if m == mKeep {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
			kill()
			<-c.Done()
			if m == mPut {
				if err := <-done; !errors.Is(err, wire.KindConnLost) {
					t.Error(err)
				}
			}
			d.Release()
			<-c.finished
			r.stays(c)
			if !bytes.Equal(r.open(), pattern()) {
				t.Error("the device has written what others put into the memory")
			}
			eventually(t, "the memory to come back", func() bool { return r.arena.Used() == 0 })
			if s := r.arena.Stats(); s.Lent != 0 || s.Quarantined != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// atTheDevice waits until the drive's device waits for the gate.
func (r *shmRig) atTheDevice() {
	eventually(r.t, "the data to be at the device", func() bool { return os.Remove(r.dir+"/gate.reached") == nil })
}

// stays says that what is lent is still out although its connection is over, and that nobody is given it.
func (r *shmRig) stays(c *Conn) {
	r.t.Helper()
	for range 20 {
		r.reuse()
		if s := r.arena.Stats(); s.Lent != 1<<20 || s.Used != 1<<20 {
			r.t.Fatalf("%+v while a device reads the memory", s)
		}
		time.Sleep(time.Millisecond) // not for anything: room for a mistake to show
	}
	if st := c.Stats(); st.LoansOut != 1 || st.LoansOutBytes != 1<<20 {
		r.t.Errorf("%+v", st)
	}
}

// Claim: a borrower that is killed gives everything back at once, also what it had not given back when it answered.
func TestShmBorrowerDies(t *testing.T) {
	r := newShmRig(t)
	kill := r.start("drive", r.dir+"/gate")
	c := r.dial("drive")
	d := r.data(1 << 20)
	if err := c.Do(t.Context(), &Call{Method: mKeep, Data: d}); err != nil {
		t.Fatal(err)
	}
	r.atTheDevice()
	if !d[0].Buf.Shared() {
		t.Error("the memory is not shared while the borrower has it")
	}
	d.Release()
	r.stays(c)
	kill()
	eventually(t, "the memory to come back", func() bool { return r.arena.Used() == 0 })
}

// Claim: a connection that breaks off while both processes live leaves what the borrower still has alone until it gives it back.
func TestShmConnectionEnds(t *testing.T) {
	r := newShmRig(t)
	r.start("drive", r.dir+"/gate")
	c := r.dial("drive")
	d := r.data(1 << 20)
	if err := c.Do(t.Context(), &Call{Method: mKeep, Data: d}); err != nil {
		t.Fatal(err)
	}
	r.atTheDevice()
	d.Release()
	_ = c.Close()
	<-c.finished
	r.stays(c)
	if s := r.arena.Stats(); s.Quarantined != 1<<20 {
		t.Errorf("%+v", s)
	}
	if !bytes.Equal(r.open(), pattern()) {
		t.Error("the device has written what others put into the memory")
	}
	eventually(t, "the memory to come back", func() bool { return r.arena.Used() == 0 })
}

// Claim: what a lender that was killed has lent stays readable until it is released, and its memory goes then.
func TestShmLenderDies(t *testing.T) {
	for _, through := range []bool{false, true} {
		r := newShmRig(t)
		kill := r.start("drive", r.dir+"/gate")
		to := "drive"
		if through {
			kill2 := r.start("compute", "unix:"+r.dir+"/drive")
			first := kill
			kill, to = func() { first(); kill2() }, "compute"
		}
		c := r.dial(to)
		call := Call{Method: mRead}
		for lent := uint64(0); lent == 0; lent = c.Stats().BorrowedBytes { // through the compute, once we have taken the drive's memory
			call.RespData.Release()
			if err := c.Do(t.Context(), &call); err != nil {
				t.Fatal(err)
			}
		}
		kill()
		<-c.finished
		want := make([]byte, 1<<20)
		fill(want, 5)
		if !bytes.Equal(flat(call.RespData), want) {
			t.Error("borrowed memory has changed with the death of its owner")
		}
		f := call.RespData[0].Buf.Foreign()
		gone := make(chan struct{})
		f.OnGone(func() { close(gone) })
		call.RespData.Release()
		<-gone
	}
}
