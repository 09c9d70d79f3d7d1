package leader

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/crakefs/crake/wire"
)

const testLease = 5000

// fixture is a cluster of some drives and computes, and fakes of their processes.
type fixture struct {
	t    *testing.T
	now  Millis
	c    *Core
	pid  uint32
	runs map[wire.ProcID]*wire.HeartbeatReq // what each living process would send
	out  Output                             // everything since the start
}

func newFixture(t *testing.T, drives, computes, buckets int) *fixture {
	t.Helper()
	f := &fixture{t: t, now: 1000, pid: 100, runs: map[wire.ProcID]*wire.HeartbeatReq{}}
	c, err := New(Form(Settings{Cluster: "0102030405060708090a0b0c0d0e0f10", Name: "t", K: 4, M: 2, Buckets: buckets}), testLease, f.now)
	if err != nil {
		t.Fatal(err)
	}
	f.c = c
	for i := range drives {
		id := f.add(Proc{Name: fmt.Sprintf("drive%d", i), Role: wire.RoleDrive, Server: 1, Drive: wire.DriveID(i + 1)})
		if err := c.AddDrive(f.now, Drive{ID: wire.DriveID(i + 1), Proc: id, Server: 1, Domain: uint32(i + 1), SizeBytes: 1 << 30}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range drives {
		f.start(fmt.Sprintf("drive%d", i))
	}
	for i := range computes {
		f.add(Proc{Name: fmt.Sprintf("compute%d", i), Role: wire.RoleCompute, Server: 1})
	}
	return f
}

func (f *fixture) add(p Proc) wire.ProcID {
	f.t.Helper()
	id, err := f.c.AddProc(f.now, p)
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

func (f *fixture) id(name string) wire.ProcID {
	f.t.Helper()
	p := f.c.s.ProcNamed(name)
	if p == nil {
		f.t.Fatalf("no %s", name)
	}
	return p.ID
}

// start lets a process register with a new pid.
func (f *fixture) start(name string) Registered {
	f.t.Helper()
	f.pid++
	return f.register(name, f.pid)
}

func (f *fixture) register(name string, pid uint32) Registered {
	f.t.Helper()
	p := f.c.s.ProcNamed(name)
	r, err := f.c.Register(f.now, &wire.RegisterReq{Proc: p.ID, Name: name, Role: p.Role, PID: pid, Version: "v", Addrs: []string{"mem:" + name}}, wire.ProcKey{byte(pid)})
	if err != nil {
		f.t.Fatal(err)
	}
	f.runs[p.ID] = &wire.HeartbeatReq{Proc: p.ID, Incarnation: r.Incarnation, Session: r.Session, Ready: true}
	f.take()
	return r
}

func (f *fixture) take() {
	o := f.c.Take()
	f.out.Events = append(f.out.Events, o.Events...)
	f.out.Kills = append(f.out.Kills, o.Kills...)
	f.out.Changed = f.out.Changed || o.Changed
}

func (f *fixture) exit(name string) {
	p := f.c.s.ProcNamed(name)
	delete(f.runs, p.ID)
	f.c.Exited(f.now, p.ID, p.PID)
	f.take()
}

// run lets time pass; every living process but the silent ones works by the newest map and sends heartbeats.
func (f *fixture) run(ms Millis, silent ...string) {
	f.t.Helper()
	for end := f.now + ms; f.now < end; {
		f.now += TickMs
		f.c.Tick(f.now)
		f.take()
		for id, hb := range f.runs {
			p := f.c.s.Procs[id]
			if p == nil || slices.Contains(silent, p.Name) || (uint64(f.now)/TickMs+uint64(id))%5 != 0 {
				continue
			}
			f.beat(id, hb)
		}
		f.check()
	}
}

// beat is what a process does: by the map of its last beat it serves buckets and reports them.
func (f *fixture) beat(id wire.ProcID, hb *wire.HeartbeatReq) {
	if err := f.c.Heartbeat(f.now, hb); err != nil {
		if wire.KindOf(err) != wire.KindStaleSession {
			f.t.Fatal(err)
		}
		delete(f.runs, id)
	}
	f.take()
	m := f.c.Map()
	hb.Generation, hb.Buckets = m.Generation, nil
	for i, o := range m.Owners {
		if o.Proc == id {
			hb.Buckets = append(hb.Buckets, wire.BucketReport{Bucket: wire.BucketID(i), Epoch: o.Epoch, State: wire.BucketServing})
		}
	}
}

// check is the safety of ownership: what a process that still runs reports as served is never named for another.
func (f *fixture) check() {
	f.t.Helper()
	m := f.c.Map()
	for id, hb := range f.runs {
		p := f.c.s.Procs[id]
		if p == nil || p.Incarnation != hb.Incarnation || p.State == wire.ProcDown {
			continue // declared dead: it has stopped serving by itself at T/2
		}
		for _, r := range hb.Buckets {
			if o := m.Owners[r.Bucket]; o.Proc != 0 && (o.Proc != id || o.Epoch != r.Epoch) {
				f.t.Fatalf("bucket %d: %d serves it with epoch %d, the map names %d with epoch %d", r.Bucket, id, r.Epoch, o.Proc, o.Epoch)
			}
		}
	}
}

func (f *fixture) owned() map[string]int {
	n := map[string]int{}
	for _, o := range f.c.Map().Owners {
		n[f.c.name(o.Proc)]++
	}
	return n
}

func (f *fixture) wantOwned(want map[string]int) {
	f.t.Helper()
	if got := f.owned(); !maps.Equal(got, want) {
		f.t.Fatalf("owners: %v, want %v", got, want)
	}
}

func (f *fixture) epochs() []wire.Epoch {
	var e []wire.Epoch
	for _, o := range f.c.Map().Owners {
		e = append(e, o.Epoch)
	}
	return e
}

// Claim: the first assignment waits for all computes, so that buckets are spread without any move.
func TestFirstAssignmentWaitsForAll(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.run(1500)
	f.wantOwned(map[string]int{"process 0": 16})
	f.start("compute1")
	f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
	f.run(5000)
	for i, e := range f.epochs() {
		if e != 1 {
			t.Fatalf("bucket %d has epoch %d: it was moved", i, e)
		}
	}
}

// Claim: at the start of a cluster owners are named when the drives are there, but a drive that stays away holds nothing up
// for longer than the hold.
func TestFirstAssignmentWaitsForDrives(t *testing.T) {
	for _, comes := range []bool{true, false} {
		f := newFixture(t, 6, 2, 16)
		f.exit("drive3")
		f.start("compute0")
		f.start("compute1")
		f.run(1000)
		f.wantOwned(map[string]int{"process 0": 16})
		if comes {
			f.start("drive3")
		} else {
			f.run(SpreadHoldMs)
		}
		f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
		f.exit("drive3") // later it is no reason to wait
		f.exit("compute1")
		f.wantOwned(map[string]int{"compute0": 16})
	}
}

// Claim: a compute that does not come is not waited for longer than the hold; when it comes later, it gets its share.
func TestLateComputeGetsItsShare(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.run(SpreadHoldMs + 200)
	f.wantOwned(map[string]int{"compute0": 16})
	f.start("compute1")
	f.run(30_000)
	f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
	moved := 0
	for _, e := range f.epochs() {
		moved += int(e) - 1
	}
	if moved != 8 {
		t.Fatalf("%d changes of owner, want 8", moved)
	}
}

// Claim: an exit that is seen moves the buckets to the survivor in the same step, each with a higher epoch.
func TestExitFailsOverAtOnce(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.start("compute1")
	f.run(1000)
	before := f.epochs()
	owners := f.c.Map().Owners
	f.exit("compute1")
	f.wantOwned(map[string]int{"compute0": 16})
	for i, e := range f.epochs() {
		if raised := e > before[i]; raised != (owners[i].Proc == f.id("compute1")) {
			t.Fatalf("bucket %d: epoch %d -> %d", i, before[i], e)
		}
	}
	f.start("compute1")
	f.run(30_000)
	f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
}

// Claim: silence moves buckets only after the whole lease, and asks for the kill of the process.
func TestSilenceFailsOverAfterLease(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.start("compute1")
	f.run(2000)
	last := f.c.Live(f.id("compute1")).Heard
	for f.now <= last+testLease-TickMs {
		f.run(TickMs, "compute1")
		f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
	}
	f.run(3*TickMs, "compute1")
	f.wantOwned(map[string]int{"compute0": 16})
	if len(f.out.Kills) != 1 || f.out.Kills[0].Name != "compute1" {
		t.Fatalf("kills: %+v", f.out.Kills)
	}
	hb := f.runs[f.id("compute1")]
	if err := f.c.Heartbeat(f.now, hb); wire.KindOf(err) != wire.KindStaleSession {
		t.Fatalf("a run that was declared dead came back: %v", err)
	}
}

// Claim: a bucket is given to the next owner only when the last one has said that it let go.
func TestMoveWaitsForRelease(t *testing.T) {
	f := newFixture(t, 6, 2, 4)
	f.start("compute0")
	f.run(SpreadHoldMs + 1000)
	f.start("compute1")
	f.run(1000)
	// From here on compute0 sends heartbeats but does not look at maps any more.
	stale := *f.runs[f.id("compute0")]
	delete(f.runs, f.id("compute0"))
	for range 100 {
		f.run(TickMs)
		if err := f.c.Heartbeat(f.now, &stale); err != nil {
			t.Fatal(err)
		}
		f.take()
	}
	f.wantOwned(map[string]int{"compute0": 2, "process 0": 2})
	// It has seen the map but still closes one of the two.
	taken := slices.IndexFunc(f.c.Map().Owners, func(o wire.BucketOwner) bool { return o.Proc == 0 })
	stale.Generation = f.c.Map().Generation
	stale.Buckets = []wire.BucketReport{{Bucket: wire.BucketID(taken), Epoch: 1, State: wire.BucketServing}}
	if err := f.c.Heartbeat(f.now, &stale); err != nil {
		t.Fatal(err)
	}
	f.wantOwned(map[string]int{"compute0": 2, "compute1": 1, "process 0": 1})
	stale.Buckets = nil
	if err := f.c.Heartbeat(f.now, &stale); err != nil {
		t.Fatal(err)
	}
	f.wantOwned(map[string]int{"compute0": 2, "compute1": 2})
}

// Claim: a second run of a slot does not get what the first had until the first is dead.
func TestSecondRunWaitsForFirst(t *testing.T) {
	for _, seen := range []bool{true, false} {
		f := newFixture(t, 6, 1, 4)
		f.start("compute0")
		f.run(1000)
		id := f.id("compute0")
		old := f.c.s.Procs[id].PID
		f.start("compute0")
		f.wantOwned(map[string]int{"process 0": 4})
		if len(f.out.Kills) != 1 || f.out.Kills[0].PID != old {
			t.Fatalf("kills: %+v", f.out.Kills)
		}
		if seen {
			f.c.Exited(f.now, id, old)
		} else {
			f.run(testLease - 1000)
			f.wantOwned(map[string]int{"process 0": 4})
			f.run(1500)
		}
		f.wantOwned(map[string]int{"compute0": 4})
		for _, e := range f.epochs() {
			if e != 2 {
				t.Fatalf("epochs %v, want 2", f.epochs())
			}
		}
	}
}

// Claim: a process that registers again (its answer was lost) keeps what it has, with new epochs.
func TestRegisterTwice(t *testing.T) {
	f := newFixture(t, 6, 1, 4)
	a := f.start("compute0")
	f.run(1000)
	b := f.register("compute0", f.pid)
	if b.Incarnation <= a.Incarnation {
		t.Fatalf("incarnation %d after %d", b.Incarnation, a.Incarnation)
	}
	f.wantOwned(map[string]int{"compute0": 4})
	if f.epochs()[0] != 2 || len(f.out.Kills) != 0 {
		t.Fatalf("epochs %v, kills %v", f.epochs(), f.out.Kills)
	}
}

// Claim: a new leader moves nothing of a compute that it has not heard until a whole lease has passed.
func TestNewLeaderWaitsALease(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.start("compute1")
	f.run(1000)
	f.now += 60_000 // nobody led for a minute
	docs, err := f.c.s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Decode(docs)
	if err != nil {
		t.Fatal(err)
	}
	gen, sum := f.c.s.Generation, f.c.s.MapSum
	if f.c, err = New(s, testLease, f.now); err != nil {
		t.Fatal(err)
	}
	if f.c.s.Generation != gen || f.c.s.MapSum != sum {
		t.Fatalf("generation %d, sum %x after a restart without changes, was %d, %x", f.c.s.Generation, f.c.s.MapSum, gen, sum)
	}
	f.run(testLease-TickMs, "compute1")
	f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
	f.run(1000, "compute1")
	f.wantOwned(map[string]int{"compute0": 16})
}

// Claim: when the leader itself slept, nobody is declared dead for it.
func TestStallGivesGrace(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.start("compute1")
	f.run(1000)
	f.now += 20_000
	f.run(4000)
	f.wantOwned(map[string]int{"compute0": 8, "compute1": 8})
	if len(f.out.Kills) != 0 {
		t.Fatalf("kills: %+v", f.out.Kills)
	}
}

// Claim: sessions live as long as their run; an evicted one is gone only when its process is dead or its lease has run out.
func TestSessions(t *testing.T) {
	f := newFixture(t, 6, 1, 4)
	f.start("compute0")
	f.add(Proc{Name: "frontend0", Role: wire.RoleFrontend, Server: 1})
	a := f.start("frontend0")
	f.run(1000)
	if m := f.c.Map(); !m.HasSession(a.Session) || m.Proc(f.id("frontend0")).State != wire.ProcUp {
		t.Fatalf("map after start: %+v", m)
	}
	f.exit("frontend0")
	if f.c.Map().HasSession(a.Session) {
		t.Fatal("session outlived its process")
	}
	b := f.start("frontend0")
	if b.Session <= a.Session {
		t.Fatalf("session %d after %d", b.Session, a.Session)
	}
	f.run(1000)
	if !f.c.Evict(f.now, b.Session, "test") || !f.c.Map().HasSession(b.Session) {
		t.Fatal("evicted session must stay until its process is dead")
	}
	f.take()
	if len(f.out.Kills) != 1 {
		t.Fatalf("kills: %+v", f.out.Kills)
	}
	f.run(testLease + 500)
	if f.c.Map().HasSession(b.Session) {
		t.Fatal("evicted session outlived its lease")
	}
	if f.c.Evict(f.now, b.Session, "again") {
		t.Fatal("evicted a session that is gone")
	}
}

// Claim: bad registrations are refused and change nothing.
func TestRegisterRefused(t *testing.T) {
	f := newFixture(t, 6, 1, 4)
	good := wire.RegisterReq{Proc: f.id("compute0"), Name: "compute0", Role: wire.RoleCompute, PID: 7}
	for name, edit := range map[string]func(r *wire.RegisterReq){
		"process":   func(r *wire.RegisterReq) { r.Proc = 99 },
		"name":      func(r *wire.RegisterReq) { r.Name = "compute1" },
		"role":      func(r *wire.RegisterReq) { r.Role = wire.RoleDrive },
		"pid":       func(r *wire.RegisterReq) { r.PID = 0 },
		"drive":     func(r *wire.RegisterReq) { r.Drives = []wire.DriveInfo{{ID: 1}} }, // of another process
		"addresses": func(r *wire.RegisterReq) { r.Addrs = make([]string, MaxAddrs+1) },
	} {
		r := good
		edit(&r)
		gen := f.c.s.Generation
		if _, err := f.c.Register(f.now, &r, wire.ProcKey{}); wire.KindOf(err) != wire.KindRefused {
			t.Errorf("%s: %v, want refused", name, err)
		}
		if f.c.s.Generation != gen {
			t.Errorf("%s: the map changed", name)
		}
	}
	if _, err := f.c.Register(f.now, &good, wire.ProcKey{}); err != nil {
		t.Error(err)
	}
}

// Claim: a compute that is not wanted gives its buckets up in order and is forgotten.
func TestUnwantedComputeLeaves(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	f.start("compute1")
	f.run(1000)
	f.c.SetWanted(f.now, f.id("compute1"), false)
	f.run(2000)
	f.wantOwned(map[string]int{"compute0": 16})
	f.exit("compute1")
	if f.c.s.ProcNamed("compute1") != nil {
		t.Fatal("slot is still there")
	}
}

// Claim: filesystems appear in the map when their root is made, and ids are not used again.
func TestFilesystems(t *testing.T) {
	f := newFixture(t, 6, 1, 4)
	a, err := f.c.AddFS(f.now, "a")
	if err != nil || f.c.Map().FS("a") != nil {
		t.Fatalf("%v, map %v", err, f.c.Map().FSs)
	}
	f.c.FSMade(f.now, a.ID)
	if got := f.c.Map().FS("a"); got == nil || got.Root != wire.RootIno(a.ID, 4) {
		t.Fatalf("got %+v", got)
	}
	if _, err := f.c.AddFS(f.now, "a"); wire.KindOf(err) != wire.KindExists {
		t.Fatal(err)
	}
	for _, bad := range []string{"", ".", "-x", "a/b", "ä", "a b", string(make([]byte, 65))} {
		if _, err := f.c.AddFS(f.now, bad); wire.KindOf(err) != wire.KindInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	f.c.FSGone(f.now, a.ID)
	b, err := f.c.AddFS(f.now, "a")
	if err != nil || b.ID == a.ID {
		t.Fatalf("%v, id %d after %d", err, b.ID, a.ID)
	}
}

// TestRandomHistory is the property test of ownership: whatever happens, in any order, what runs report is never named for
// others (fixture.check), epochs and the generation only rise, equal generations have equal maps, and when things calm
// down every bucket has a living owner and loads differ by at most one.
func TestRandomHistory(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() { // under the race detector, where each takes twenty times as long
		seeds = 10
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		f := newFixture(t, 6, 2+r.IntN(4), 1+r.IntN(64))
		names := []string{}
		for _, p := range f.c.s.Procs {
			if p.Role == wire.RoleCompute {
				names = append(names, p.Name)
			}
		}
		slices.Sort(names)
		seen := map[wire.Generation][]byte{}
		epochs := f.epochs()
		for range 60 {
			f.randomStep(r, names)
			m := f.c.Map()
			enc := m.Append(nil)
			if old, ok := seen[m.Generation]; ok && !slices.Equal(old, enc) {
				t.Fatalf("seed %d: two maps of generation %d", seed, m.Generation)
			}
			seen[m.Generation] = enc
			for i, e := range f.epochs() {
				if e < epochs[i] {
					t.Fatalf("seed %d: bucket %d: epoch %d after %d", seed, i, e, epochs[i])
				}
				epochs[i] = e
			}
		}
		for _, n := range names {
			if p := f.c.s.ProcNamed(n); f.runs[p.ID] == nil {
				f.start(n)
			}
		}
		f.run(60_000)
		lo, hi := 1<<30, 0
		got := f.owned()
		for _, n := range names {
			lo, hi = min(lo, got[n]), max(hi, got[n])
		}
		if got["process 0"] != 0 || hi-lo > 1 {
			t.Fatalf("seed %d: not spread when calm: %v", seed, got)
		}
	}
}

func (f *fixture) randomStep(r *rand.Rand, names []string) {
	n := names[r.IntN(len(names))]
	p := f.c.s.ProcNamed(n)
	switch r.IntN(7) {
	case 0, 1:
		if f.runs[p.ID] != nil {
			f.exit(n)
		}
	case 2, 3:
		if f.runs[p.ID] == nil {
			f.start(n)
		}
	case 4: // hangs for a while
		f.run(Millis(r.IntN(8000)), n)
	case 5: // a new leader with the state as it was stored
		docs, err := f.c.s.Encode()
		if err != nil {
			f.t.Fatal(err)
		}
		s, err := Decode(docs)
		if err != nil {
			f.t.Fatal(err)
		}
		if !reflect.DeepEqual(normal(s), normal(f.c.s)) {
			f.t.Fatalf("decoded state differs")
		}
		if f.c, err = New(s, testLease, f.now); err != nil {
			f.t.Fatal(err)
		}
	case 6: // a second run while the first lives
		if f.runs[p.ID] != nil && len(p.Old) == 0 {
			f.start(n)
		}
	}
	f.run(Millis(r.IntN(3000)))
}

// normal makes nil and empty slices equal.
func normal(s *State) State {
	c := *s
	c.Procs = map[wire.ProcID]*Proc{}
	for id, p := range s.Procs {
		q := *p
		if len(q.Old) == 0 {
			q.Old = nil
		}
		if len(q.Addrs) == 0 {
			q.Addrs = nil
		}
		if len(q.Cores) == 0 {
			q.Cores = nil
		}
		c.Procs[id] = &q
	}
	return c
}

// Claim: damaged documents are an error that names the key, never a panic or a half state.
func TestDecodeDamage(t *testing.T) {
	f := newFixture(t, 6, 2, 16)
	f.start("compute0")
	docs, err := f.c.s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Decode(nil); s != nil || err != nil {
		t.Fatalf("nothing stored: %v, %v", s, err)
	}
	for key := range docs {
		for _, bad := range []string{"", "{", `"x"`, `{"id":77}`, `[{"o":"x"}]`} {
			d := maps.Clone(docs)
			d[key] = []byte(bad)
			_, err := Decode(d)
			if err != nil && wire.KindOf(err) != wire.KindCorrupt {
				t.Errorf("%s = %q: %v", key, bad, err)
			}
			if err == nil && bad != `{"id":77}` {
				t.Errorf("%s = %q: accepted", key, bad)
			}
		}
	}
	for _, key := range []string{"settings", "counters", "map", "buckets/0"} {
		d := maps.Clone(docs)
		delete(d, key)
		if _, err := Decode(d); wire.KindOf(err) != wire.KindCorrupt {
			t.Errorf("without %s: %v", key, err)
		}
	}
}

// Claim: what a heartbeat says of links and the arena is kept while the run lives; more links than an honest process has are refused.
func TestLinksOfHeartbeats(t *testing.T) {
	f := newFixture(t, 6, 1, 1)
	f.start("compute0")
	id := f.id("compute0")
	p := f.c.s.Procs[id]
	hb := &wire.HeartbeatReq{Proc: id, Incarnation: p.Incarnation, Arena: wire.ArenaReport{Bytes: 10, Used: 3}, Links: make([]wire.LinkStat, wire.MaxPeerLinks)}
	if err := f.c.Heartbeat(f.now, hb); err != nil {
		t.Fatal(err)
	}
	if l := f.c.Live(id); len(l.Links) != wire.MaxPeerLinks || l.Arena != hb.Arena {
		t.Errorf("%d links, arena %+v", len(l.Links), l.Arena)
	}
	hb.Links = append(hb.Links, wire.LinkStat{})
	if err := f.c.Heartbeat(f.now, hb); wire.KindOf(err) != wire.KindOverLimit {
		t.Errorf("too many links: %v", err)
	}
	hb.Links = []wire.LinkStat{{Transport: string(make([]byte, MaxTransportBytes+1))}}
	if err := f.c.Heartbeat(f.now, hb); wire.KindOf(err) != wire.KindOverLimit {
		t.Errorf("a long name: %v", err)
	}
	f.c.Exited(f.now, id, p.PID)
	if l := f.c.Live(id); len(l.Links) != 0 || l.Arena != (wire.ArenaReport{}) {
		t.Errorf("a run that is over has %d links", len(l.Links))
	}
}
