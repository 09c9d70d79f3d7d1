package leader

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
)

// say lets the process of a drive say something of it in its heartbeats from now on.
func (f *fixture) say(drive int, edit func(st *wire.DriveStatResp)) {
	f.t.Helper()
	hb := f.runs[f.id(fmt.Sprintf("drive%d", drive-1))]
	if hb == nil {
		f.t.Fatalf("drive %d does not run", drive)
	}
	if len(hb.Drives) == 0 {
		hb.Drives = []wire.DriveStatResp{{Drive: wire.DriveID(drive), Engine: "e", Flush: "f", SizeBytes: 1 << 30}}
	}
	edit(&hb.Drives[0])
}

func (f *fixture) fault(drive int, why string) {
	f.say(drive, func(st *wire.DriveStatResp) { st.Fault = why })
}

// states gives the states of the drives in the map, a letter each: u(p), d(own), f(ailed).
func (f *fixture) states() string {
	s := ""
	for _, d := range f.c.Map().Drives {
		s += d.State.String()[:1]
	}
	return s
}

func (f *fixture) wantStates(want string) {
	f.t.Helper()
	if got := f.states(); got != want {
		f.t.Errorf("at %d: drives are %s, want %s", f.now, got, want)
	}
}

// events gives the texts of the events of a type so far.
func (f *fixture) events(typ string) []string {
	var out []string
	for _, e := range f.out.Events {
		if e.Type == typ {
			out = append(out, e.Proc+": "+e.Text)
		}
	}
	return out
}

func (f *fixture) wantEvents(typ string, n int, part string) {
	f.t.Helper()
	got := f.events(typ)
	if len(got) != n || n > 0 && !strings.Contains(got[n-1], part) {
		f.t.Errorf("events %s: %q, want %d, the last with %q", typ, got, n, part)
	}
}

// reload gives the cluster a new leader with what is stored.
func (f *fixture) reload() {
	f.t.Helper()
	docs, err := f.c.State().Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := Decode(docs)
	if err != nil {
		f.t.Fatal(err)
	}
	f.now += 100
	if f.c, err = New(s, testLease, f.now); err != nil {
		f.t.Fatal(err)
	}
}

// A drive that says Fault is failed within two seconds, once, with the reason; it stays so when its process ends, comes back
// and is well, and when the leader changes. Placement leaves it.
func TestFaultFails(t *testing.T) {
	f := newFixture(t, 8, 0, 4)
	f.run(3000)
	f.fault(3, "the device is gone")
	f.run(2000)
	f.wantStates("uufuuuuu")
	f.wantEvents("drive.failed", 1, "drive2: drive 3 (): the device is gone")
	for _, pg := range f.c.State().PGs {
		for _, d := range pg.Drives {
			if d == 3 {
				t.Errorf("group %d still has it: %v", pg.ID, pg.Drives)
			}
		}
	}
	f.run(5000)
	f.exit("drive2")
	f.wantStates("uufuuuuu")
	f.start("drive2")
	f.run(2000)
	f.reload()
	f.run(5000)
	f.wantStates("uufuuuuu")
	f.wantEvents("drive.failed", 1, "")
	if d := f.c.State().Drives[3]; d.Reason != "the device is gone" {
		t.Errorf("reason %q", d.Reason)
	}
}

// Never more failure domains than the protection bears are failed by themselves: the third is told of once, and is failed when
// another has come back.
func TestNoMoreThanParity(t *testing.T) {
	f := newFixture(t, 8, 0, 4)
	f.run(1000)
	f.fault(1, "a")
	f.run(2000)
	f.exit("drive7") // down, expected back
	f.fault(2, "b")
	f.run(6000)
	f.wantStates("fuuuuuud")
	f.wantEvents("drive.failed", 1, "")
	f.wantEvents("drive.fault", 1, "drive 2 is not failed, since with it 3 failure domains would be out (drives down or failed already: 1, 8), and protection 4+2 bears 2. What is wrong: b")
	if h := f.c.DriveHealth(2); h.Alert != "b" {
		t.Errorf("health %+v", h)
	}
	f.start("drive7")
	f.run(2000)
	f.wantStates("ffuuuuuu")
	f.fault(3, "c")
	f.run(20000)
	f.wantStates("ffuuuuuu")
	f.wantEvents("drive.fault", 2, "What is wrong: c")
	f.start("drive2") // a new run is well
	f.run(2000)
	if h := f.c.DriveHealth(3); h.Alert != "" {
		t.Errorf("health %+v of a new run", h)
	}
}

// The same in one failure domain with many drives: all of it may fail, since a stripe has one strip there.
func TestDomainsCount(t *testing.T) {
	f := newFixture(t, 12, 0, 4)
	for i := range 12 {
		f.c.s.Drives[wire.DriveID(i+1)].Domain = uint32(i / 4 * 10) // three servers of four drives
	}
	f.c.s.Settings.K, f.c.s.Settings.M = 2, 1
	f.run(1000)
	for i := range 4 {
		f.fault(i+1, "gone")
	}
	f.fault(5, "gone too")
	f.run(3000)
	f.wantStates("ffffuuuuuuuu")
}

// A wide parity in few drives: failing may leave too few for the replicas of a log, and then is not done.
func TestLogsNeedDrives(t *testing.T) {
	f := newFixture(t, 4, 0, 4)
	f.c.s.Settings.K, f.c.s.Settings.M = 2, 2
	f.run(1000)
	f.fault(1, "gone")
	f.fault(2, "gone")
	f.run(3000)
	f.wantStates("fuuu")
	f.wantEvents("drive.fault", 1, "the logs of protection 2+2 need 3: all writes would wait")
}

// trouble lets a run of a drive's process end because of the device, after it had registered or before.
func (f *fixture) trouble(drive int, ran bool) {
	f.t.Helper()
	name := fmt.Sprintf("drive%d", drive-1)
	p := f.c.s.ProcNamed(name)
	f.pid++
	pid := f.pid
	if ran {
		f.register(name, pid)
	}
	for range 2 { // each is sent twice
		if err := f.c.Trouble(f.now, &wire.DriveTroubleReq{Proc: p.ID, PID: pid, Drive: wire.DriveID(drive), Text: "no such file"}); err != nil {
			f.t.Fatal(err)
		}
	}
	delete(f.runs, p.ID)
	f.c.Exited(f.now, p.ID, pid)
	f.take()
}

// Runs that end because of the device: again and again over some time they fail the drive, a burst of restarts and one now and
// then do not, and troubles of opening are forgotten when it opens.
func TestTroubles(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(f *fixture)
		want string
	}{
		{"cannot be opened, tried every five seconds", func(f *fixture) {
			for range 8 {
				f.trouble(1, false)
				f.run(5000)
			}
		}, "fuuuuu"},
		{"not yet", func(f *fixture) {
			for range 6 {
				f.trouble(1, false)
				f.run(5000)
			}
		}, "duuuuu"},
		{"many restarts in a moment, then well", func(f *fixture) {
			for range 20 {
				f.trouble(1, true)
				f.run(300)
			}
			f.start("drive0")
			f.run(120_000)
		}, "uuuuuu"},
		{"appears late after a boot, later one glitch", func(f *fixture) {
			for range 6 {
				f.trouble(1, false)
				f.run(4000)
			}
			f.start("drive0")
			f.run(60_000)
			f.trouble(1, true)
			f.run(1000)
			f.start("drive0")
			f.run(5000)
		}, "uuuuuu"},
		{"stops taking writes five times", func(f *fixture) {
			for range 5 {
				f.trouble(1, true)
				f.run(8000)
			}
		}, "fuuuuu"},
		{"stops taking writes four times", func(f *fixture) {
			for range 4 {
				f.trouble(1, true)
				f.run(16_000)
			}
			f.start("drive0")
			f.run(2000)
		}, "uuuuuu"},
		{"hangs five times", func(f *fixture) {
			for range 5 {
				f.start("drive0")
				f.run(20_000, "drive0")
			}
		}, "fuuuuu"},
		{"hangs once", func(f *fixture) {
			f.run(20_000, "drive0")
			f.start("drive0")
			f.run(60_000)
		}, "uuuuuu"},
		{"a glitch every six minutes", func(f *fixture) {
			for range 6 {
				f.trouble(1, true)
				f.start("drive0")
				f.run(360_000)
			}
		}, "uuuuuu"},
		{"more than the protection bears", func(f *fixture) {
			for range 10 {
				for d := range 4 {
					f.trouble(d+1, false)
				}
				f.run(5000)
			}
		}, "ffdduu"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, 6, 0, 4)
			f.run(1000)
			tc.do(f)
			f.wantStates(tc.want)
			if n := strings.Count(tc.want, "f"); len(f.events("drive.failed")) != n {
				t.Errorf("events %q", f.events("drive.failed"))
			}
		})
	}
}

// What is no drive of the process that tells is refused.
func TestTroubleOfOthers(t *testing.T) {
	f := newFixture(t, 6, 0, 4)
	for _, r := range []wire.DriveTroubleReq{{Proc: f.id("drive0"), PID: 7, Drive: 2}, {Proc: 99, PID: 7, Drive: 1}, {Proc: f.id("drive0"), Drive: 1}, {Proc: f.id("drive0"), PID: 1, Drive: 99}} {
		if err := f.c.Trouble(f.now, &r); wire.KindOf(err) != wire.KindRefused {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// Who is slow: the table is of mean times in microseconds of six drives, for how long, and what becomes of the last.
func TestSlow(t *testing.T) {
	type row struct {
		reads, writes, flushes [6]int
		ms                     Millis
		want                   string
		warned                 bool
	}
	even := [6]int{1000, 1000, 1000, 1000, 1000, 1000}
	for name, r := range map[string]row{
		"all alike":                      {reads: even, writes: even, flushes: even, ms: 60_000, want: "uuuuuu"},
		"reads nine times":               {reads: [6]int{1000, 1100, 900, 1000, 1200, 9900}, ms: 42_000, want: "uuuuuf", warned: true},
		"not for long":                   {reads: [6]int{1000, 1100, 900, 1000, 1200, 9900}, ms: 25_000, want: "uuuuuu", warned: true},
		"a moment":                       {reads: [6]int{1000, 1100, 900, 1000, 1200, 9900}, ms: 8000, want: "uuuuuu"},
		"reads seven times":              {reads: [6]int{1000, 1100, 900, 1000, 1200, 7000}, ms: 60_000, want: "uuuuuu"},
		"reads a hundred times, yet 4ms": {reads: [6]int{40, 40, 40, 40, 40, 4000}, ms: 60_000, want: "uuuuuu"},
		"writes":                         {writes: [6]int{2000, 2000, 2000, 2000, 2000, 20_000}, ms: 42_000, want: "uuuuuf", warned: true},
		"flushes":                        {flushes: [6]int{2000, 2000, 2000, 2000, 2000, 51_000}, ms: 42_000, want: "uuuuuf", warned: true},
		"all are slow":                   {reads: [6]int{90_000, 80_000, 99_000, 90_000, 90_000, 99_000}, ms: 60_000, want: "uuuuuu"},
		"two with nothing to do":         {reads: [6]int{0, 0, 1000, 1000, 1000, 99_000}, ms: 42_000, want: "uuuuuf", warned: true},
		"too few peers":                  {reads: [6]int{0, 0, 0, 1000, 1000, 99_000}, ms: 60_000, want: "uuuuuu"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, 6, 0, 4)
			for i := range 6 {
				f.say(i+1, func(st *wire.DriveStatResp) {
					st.ReadNs, st.WriteNs, st.FlushNs = uint64(r.reads[i])*1000, uint64(r.writes[i])*1000, uint64(r.flushes[i])*1000
				})
			}
			f.run(r.ms)
			f.wantStates(r.want)
			if got := len(f.events("drive.slow")) > 0; got != r.warned {
				t.Errorf("events %q", f.events("drive.slow"))
			}
		})
	}
}

// A drive that is slow whenever it can be compared, but often cannot, is slow: a slow drive is given little to do, and its peers wait
// for it. After a minute without a comparison it is forgotten.
func TestSlowWithGaps(t *testing.T) {
	f := newFixture(t, 6, 0, 4)
	set := func(ms ...uint64) {
		for i, v := range ms {
			f.say(i+1, func(st *wire.DriveStatResp) { st.WriteNs = v * 1e6 })
		}
	}
	for range 3 {
		set(1, 1, 1, 1, 1, 500)
		f.run(9000)
		set(1, 0, 0, 0, 1, 500)
		f.run(9000)
		set(1, 1, 1, 1, 1, 0)
		f.run(9000)
	}
	f.wantStates("uuuuuu")
	f.wantEvents("drive.slow", 1, "drive 6: for 15 s writes take 500.0 ms")
	set(1, 1, 1, 1, 1, 500)
	f.run(6000)
	f.wantStates("uuuuuf")
	f = newFixture(t, 6, 0, 4)
	set(1, 1, 1, 1, 1, 500)
	f.run(25_000)
	set(1, 1, 1, 1, 1, 0)
	f.run(62_000)
	f.wantEvents("drive.slow", 2, "not slower")
	set(1, 1, 1, 1, 1, 500)
	f.run(25_000)
	f.wantStates("uuuuuu")
}

// A spell of slowness that ends is told, and the next counts from its own beginning; other kinds of device are no peers; and
// slowness alone never uses up the last of the protection.
func TestSlowSpellsKindsAndMargin(t *testing.T) {
	f := newFixture(t, 8, 0, 4)
	set := func(drive int, ms uint64) {
		f.say(drive, func(st *wire.DriveStatResp) { st.ReadNs = ms * 1e6 })
	}
	for i := range 8 {
		set(i+1, 1)
	}
	for range 4 {
		set(1, 20)
		f.run(22_000)
		set(1, 1)
		f.run(3000)
	}
	f.wantStates("uuuuuuuu")
	f.wantEvents("drive.slow", 8, "drive 1 is not slower than its peers any more")
	set(1, 20)
	f.say(1, func(st *wire.DriveStatResp) { st.SizeBytes = 12 }) // a disk among flash
	f.run(60_000)
	f.wantStates("uuuuuuuu")
	f.say(1, func(st *wire.DriveStatResp) { st.SizeBytes = 1 << 30 })
	set(2, 30)
	f.run(60_000)
	f.wantStates("fuuuuuuu")
	f.wantEvents("drive.fault", 1, "of which 1 is kept for a failure to come")
	if h := f.c.DriveHealth(2); h.Slow == "" || h.Alert == "" {
		t.Errorf("health %+v", h)
	}
	f.fault(3, "gone") // this does
	f.run(2000)
	f.wantStates("fufuuuuu")
}

// By hand: refused in numbers when data would become unavailable, unless forced; back with Activate, which kills a run that
// said Fault, and does not fail the drive again by what that run says.
func TestByHand(t *testing.T) {
	f := newFixture(t, 8, 0, 4)
	f.run(1000)
	deactivate := func(id wire.DriveID, force bool, want wire.Kind) {
		t.Helper()
		err := f.c.Deactivate(f.now, id, "to be swapped", force)
		f.take()
		if wire.KindOf(err) != want {
			t.Errorf("deactivate %d: %v, want %v", id, err, want)
		}
	}
	activate := func(id wire.DriveID, want wire.Kind) {
		t.Helper()
		err := f.c.Activate(f.now, id)
		f.take()
		if wire.KindOf(err) != want {
			t.Errorf("activate %d: %v, want %v", id, err, want)
		}
	}
	deactivate(99, true, wire.KindNotFound)
	activate(99, wire.KindNotFound)
	activate(1, wire.KindExists)
	deactivate(1, false, wire.KindNone)
	deactivate(1, true, wire.KindExists)
	deactivate(2, false, wire.KindNone)
	deactivate(3, false, wire.KindRefused)
	f.wantStates("ffuuuuuu")
	deactivate(3, true, wire.KindNone)
	f.wantStates("fffuuuuu")
	f.wantEvents("drive.failed", 3, "drive2: drive 3 (): deactivated by hand: to be swapped")
	f.run(60_000)
	for id := range wire.DriveID(3) {
		activate(id+1, wire.KindNone)
	}
	f.run(1000)
	f.wantStates("uuuuuuuu")

	f.fault(4, "gone")
	f.run(2000)
	f.wantStates("uuufuuuu")
	kills := len(f.out.Kills)
	activate(4, wire.KindNone)
	if len(f.out.Kills) != kills+1 || f.out.Kills[kills].Name != "drive3" {
		t.Errorf("kills %+v", f.out.Kills)
	}
	f.run(2000) // it goes on saying so until it is dead
	f.wantStates("uuuuuuuu")
	f.exit("drive3")
	f.start("drive3")
	f.run(2000)
	f.wantStates("uuuuuuuu")
	f.fault(4, "gone again")
	f.run(2000)
	f.wantStates("uuufuuuu")
	f.exit("drive3")
	activate(4, wire.KindNone) // what the dead run said counts no more
	f.run(3000)
	f.wantStates("uuuduuuu")
}

// A drive that is used again gets groups again, and about its share; the others keep theirs but for that.
func TestActivatedDriveGetsGroups(t *testing.T) {
	f := newFixture(t, 12, 0, 4)
	before := len(f.c.State().PGs)
	for range 3 {
		if err := f.c.Deactivate(f.now, 5, "", false); err != nil {
			t.Fatal(err)
		}
		if err := f.c.Activate(f.now, 5); err != nil {
			t.Fatal(err)
		}
	}
	n := map[wire.DriveID]int{}
	for _, pg := range f.c.State().PGs {
		domains := map[wire.DriveID]bool{}
		for _, d := range pg.Drives {
			n[d]++
			domains[d] = true
		}
		if len(domains) != 6 {
			t.Errorf("group %d has %v", pg.ID, pg.Drives)
		}
	}
	for d, places := range n {
		if places < 20 || places > 28 { // 48 groups of six places on twelve drives
			t.Errorf("drive %d is in %d groups", d, places)
		}
	}
	if len(f.c.State().PGs) != before || len(n) != 12 {
		t.Errorf("%d groups, were %d; %d drives in them", len(f.c.State().PGs), before, len(n))
	}
}

// Nobody waits for a failed drive when a cluster starts: the buckets are given out without the two seconds' hold.
func TestStartWithFailedDrive(t *testing.T) {
	f := newFixture(t, 6, 1, 4)
	if err := f.c.Deactivate(f.now, 2, "", false); err != nil {
		t.Fatal(err)
	}
	f.take()
	f.exit("drive1")
	f.reload()
	f.start("compute0")
	if f.c.Map().Owners[0].Proc == 0 {
		t.Error("the buckets wait for a drive that failed")
	}
}
