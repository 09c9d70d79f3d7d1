package rpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
)

// These benchmarks run both ends in processes of their own, each with one scheduler processor on a core of its own, over a unix socket:
// as a drive limited to one core and its load generator are. Next to the time they tell, for each request and each side, the processor
// time (user and system), the heap allocations, and the system calls that read and write.

// pairEnv tells a process that it is the answering side: how it answers, and where it listens.
const pairEnv = "CRAKE_RPC_PAIR"

// pairCost asks the answering side what it has spent since it began.
const pairCost wire.Method = 0x7010

// pairAnswer is a request of which wire.ReadRange.Len says how much data the answer has.
const pairAnswer wire.Method = 0x7011

// TestPairServer is the answering side; by itself it tests nothing.
func TestPairServer(t *testing.T) {
	mode, addr, ok := strings.Cut(os.Getenv(pairEnv), " ")
	if !ok {
		t.Skip("only as a process that a benchmark starts")
	}
	if mode == "bare" {
		pairBare(t, addr)
		return
	}
	arena, err := wire.NewArena(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s := &pairServer{data: map[uint32]wire.Data{}}
	buf, err := arena.Alloc(context.Background(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, load := range pairLoads {
		s.data[uint32(load.in)] = buf.Data(load.in)
	}
	o := Options{Self: Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: 2}, Arena: arena, Handler: s.handle}
	mode, o.Shm = strings.CutPrefix(mode, "shm-")
	if strings.HasPrefix(addr, schemeTCP+":") {
		o.Identity, o.TLS = pairIdentity(t, "server"), os.Getenv(pairTLS) != ""
	}
	if err := s.options(&o, mode); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(addr, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends with the benchmark
		cancel()
	}()
	fmt.Println("ready", l.Addr())
	if err := l.Serve(ctx); err != nil {
		t.Fatal(err)
	}
}

type pairServer struct {
	data map[uint32]wire.Data // by length

	// later: what Start has taken, since the last Kick and since the last look of the completing goroutine
	mu    sync.Mutex
	begun []*Request
	wake  chan struct{} // capacity 1
}

// options sets the way of answering.
func (s *pairServer) options(o *Options, mode string) error {
	switch mode {
	case "handler":
	case "within": // as a read that is in memory
		o.Start = func(_ context.Context, r *Request) bool {
			if r.Header.Method == pairCost {
				return false
			}
			r.Answer(s.answer(r))
			return true
		}
	case "later": // as a device whose completions one goroutine collects
		s.wake = make(chan struct{}, 1)
		o.Start = func(_ context.Context, r *Request) bool {
			if r.Header.Method == pairCost {
				return false
			}
			s.mu.Lock()
			s.begun = append(s.begun, r)
			s.mu.Unlock()
			return true
		}
		o.Kick = func() {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
		go s.complete()
	default:
		return fmt.Errorf("no mode %q", mode)
	}
	return nil
}

// complete answers what Start has taken.
func (s *pairServer) complete() {
	var done []*Request
	for range s.wake {
		s.mu.Lock()
		done, s.begun = s.begun, done[:0]
		s.mu.Unlock()
		for _, r := range done {
			r.Answer(s.answer(r))
		}
	}
}

func (s *pairServer) handle(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
	if r.Header.Method == pairCost {
		return pairCosts(), nil, nil
	}
	return s.answer(r)
}

func (s *pairServer) answer(r *Request) (wire.Message, wire.Data, error) {
	r.Data.Release()
	var m wire.ReadReq
	if err := m.Decode(r.Meta); err != nil {
		return nil, nil, err
	}
	if len(m.Ranges) != 1 {
		return nil, nil, wire.Errorf("test", wire.KindInvalid, "", "%d ranges", len(m.Ranges))
	}
	if d := s.data[m.Ranges[0].Len]; d.Len() > 0 {
		return nil, d.Retain(), nil
	}
	return nil, nil, nil
}

// pairCosts tells processor time in nanoseconds, allocations, reads and writes of this process.
func pairCosts() *wire.XattrResp {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru)
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	out := binary.LittleEndian.AppendUint64(nil, uint64(ru.Utime.Nano()+ru.Stime.Nano()))
	out = binary.LittleEndian.AppendUint64(out, ms.Mallocs)
	for _, name := range []string{"syscr: ", "syscw: "} {
		b, _ := os.ReadFile("/proc/self/io")
		_, after, _ := strings.Cut(string(b), name)
		line, _, _ := strings.Cut(after, "\n")
		n, _ := strconv.ParseUint(line, 10, 64)
		out = binary.LittleEndian.AppendUint64(out, n)
	}
	return &wire.XattrResp{Value: out}
}

// pairBare sends back 164 bytes with 4 KiB behind, for each 164 bytes, with nothing of ours: what depth 1 is measured against.
func pairBare(t *testing.T, addr string) {
	l, err := net.Listen("unix", strings.TrimPrefix(addr, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready", addr)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 164+4096)
	for {
		if _, err := io.ReadFull(c, buf[:164]); err != nil {
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// onCPU binds all threads of this process to one core, and those that they start.
func onCPU(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, _ := strconv.Atoi(t.Name())
		if err := unix.SchedSetaffinity(tid, &set); err != nil {
			return err
		}
	}
	return nil
}

// startPair starts the answering side on the second core and moves this process to the first.
func startPair(b *testing.B, mode, addr string, env ...string) string {
	var old unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil || runtime.NumCPU() < 2 {
		b.Skip("needs two cores")
	}
	if err := onCPU(1); err != nil {
		b.Skip(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPairServer$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), pairEnv+"="+mode+" "+addr, "GOMAXPROCS=1")
	cmd.Env = append(cmd.Env, env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if !ok {
		b.Fatalf("the answering side said %q: %v", line, err)
	}
	procs := runtime.GOMAXPROCS(1)
	_ = onCPU(0)
	b.Cleanup(func() {
		runtime.GOMAXPROCS(procs)
		for cpu := range runtime.NumCPU() { // the whole machine again
			old.Set(cpu)
		}
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, t := range tasks {
			tid, _ := strconv.Atoi(t.Name())
			_ = unix.SchedSetaffinity(tid, &old)
		}
	})
	return addr
}

// pairLoad is what is asked: so much data there and back, so many at once.
type pairLoad struct {
	name    string
	out, in int
}

var pairLoads = []pairLoad{
	{name: "empty"},
	{name: "read4K", in: 4 << 10},
	{name: "read16K", in: 16 << 10},
	{name: "read128K", in: 128 << 10},
	{name: "read1M", in: 1 << 20},
	{name: "write4K", out: 4 << 10},
	{name: "write16K", out: 16 << 10},
	{name: "write128K", out: 128 << 10},
	{name: "write1M", out: 1 << 20},
}

// BenchmarkPair measures the loads against each way of answering, and with data by reference. Nobody looks at the data: what is measured
// is handing it over.
func BenchmarkPair(b *testing.B) {
	for _, mode := range []string{"handler", "within", "later", "shm-handler", "shm-within"} {
		for _, load := range pairLoads {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/depth%d", load.name, mode, depth), func(b *testing.B) {
					addr := startPair(b, mode, "unix:"+b.TempDir()+"/s")
					benchPair(b, addr, Options{Shm: strings.HasPrefix(mode, "shm-")}, load, depth)
				})
			}
		}
	}
}

// BenchmarkPairTCP measures what encryption costs: some of the loads, and 1 MiB, over TCP with and without.
func BenchmarkPairTCP(b *testing.B) {
	for _, how := range []string{"tcp", "tcp+tls"} {
		for _, load := range []pairLoad{{name: "empty"}, {name: "read4K", in: 4 << 10}, {name: "read128K", in: 128 << 10}, {name: "write1M", out: 1 << 20}} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/depth%d", load.name, how, depth), func(b *testing.B) {
					b.SetBytes(int64(load.in + load.out))
					dir := b.TempDir()
					ca := testCA(b)
					for name, s := range map[string]Self{"server": {Role: wire.RoleDrive, Proc: 2}, "client": {Role: wire.RoleCompute, Proc: 3}} {
						if err := testIdentity(b, ca, s).Write(dir + "/" + name); err != nil {
							b.Fatal(err)
						}
					}
					b.Setenv(pairIDs, dir)
					tls := ""
					if how == TransportTLS {
						tls = "1"
					}
					addr := startPair(b, "handler", "tcp:127.0.0.1:0", pairTLS+"="+tls)
					benchPair(b, addr, Options{Identity: pairIdentity(b, "client"), TLS: tls != ""}, load, depth)
				})
			}
		}
	}
}

// pairIDs tells a process where the identities are; pairTLS, that it encrypts.
const (
	pairIDs = "CRAKE_RPC_IDS"
	pairTLS = "CRAKE_RPC_TLS"
)

func pairIdentity(t testing.TB, name string) *identity.Identity {
	id, err := identity.Load(os.Getenv(pairIDs) + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func benchPair(b *testing.B, addr string, o Options, load pairLoad, depth int) {
	arena, err := wire.NewArena(256 << 20)
	if err != nil {
		b.Fatal(err)
	}
	o.Self, o.Arena = Self{Cluster: testCluster, Role: wire.RoleCompute, Proc: 3}, arena
	c, err := Dial(context.Background(), addr, o)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = c.Close()
		<-c.finished
		if err := arena.Close(); err != nil {
			b.Error(err)
		}
	}()
	var data wire.Data
	if load.out > 0 {
		buf, err := arena.Alloc(context.Background(), load.out)
		if err != nil {
			b.Fatal(err)
		}
		data = buf.Data(load.out)
		defer data.Release()
	}
	req := &wire.ReadReq{Ranges: []wire.ReadRange{{Len: uint32(load.in)}}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour) // one for all: a call without a deadline sets a timer each
	defer cancel()
	round := func(n int) {
		var wg sync.WaitGroup
		for g := range depth {
			wg.Go(func() {
				var resp wire.ReadResp
				call := Call{Method: pairAnswer, Req: req, Resp: &resp, Data: data}
				for i := g; i < n; i += depth {
					if err := c.Do(ctx, &call); err != nil || call.RespData.Len() != load.in {
						b.Error(err, call.RespData.Len())
						return
					}
					call.RespData.Release()
				}
			})
		}
		wg.Wait()
	}
	round(1000)
	theirs := func() []byte {
		var m wire.XattrResp
		if err := c.Do(context.Background(), &Call{Method: pairCost, Resp: &m}); err != nil {
			b.Fatal(err)
		}
		return m.Value
	}
	s0, c0 := theirs(), pairCosts().Value
	b.ResetTimer()
	round(b.N)
	b.StopTimer()
	c1, s1 := pairCosts().Value, theirs()
	for i, name := range []string{"cpu-ns/op", "allocs/op", "reads/op", "writes/op"} {
		each := func(before, after []byte) float64 {
			return float64(binary.LittleEndian.Uint64(after[8*i:])-binary.LittleEndian.Uint64(before[8*i:])) / float64(b.N)
		}
		b.ReportMetric(each(s0, s1), "server-"+name)
		b.ReportMetric(each(c0, c1), "asker-"+name)
	}
}

// BenchmarkPairBare is the same bytes as a 4 KiB read at depth 1 with nothing of ours.
func BenchmarkPairBare(b *testing.B) {
	addr := startPair(b, "bare", "unix:"+b.TempDir()+"/s")
	c, err := net.DialTimeout("unix", strings.TrimPrefix(addr, "unix:"), time.Second)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, 164+4096)
	for b.Loop() {
		_, _ = c.Write(buf[:164])
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}
