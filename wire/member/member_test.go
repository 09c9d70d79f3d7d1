package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

var cluster = wire.ClusterID{7}

// fakeMgmt answers as the test says, and remembers what it was told. It lives in the time of synctest.
type fakeMgmt struct {
	t   *testing.T
	net *rpc.Mem

	mu  sync.Mutex
	log bytes.Buffer
	// err answers a method instead of what is right; mute methods get no answer.
	err  map[wire.Method]error
	mute map[wire.Method]bool
	at   map[wire.Method][]time.Duration // when each request came, since the start
	regs []wire.RegisterReq
	hbs  []wire.HeartbeatReq
	evs  []wire.EventReq
	byes []wire.GoodbyeReq

	start time.Time
}

// inTime runs f in a bubble of synctest with a mgmt that listens unless late, and waits for all that f started.
func inTime(t *testing.T, late bool, f func(g *fakeMgmt)) {
	synctest.Test(t, func(t *testing.T) {
		g := &fakeMgmt{t: t, net: rpc.NewMem(), err: map[wire.Method]error{}, mute: map[wire.Method]bool{},
			at: map[wire.Method][]time.Duration{}, start: time.Now()}
		if !late {
			g.listen(cluster)
		}
		f(g)
	})
}

func (g *fakeMgmt) listen(c wire.ClusterID) {
	l, err := rpc.Listen("mem:mgmt", rpc.Options{
		Self: rpc.Self{Cluster: c, Role: wire.RoleMgmt}, Handler: g.handle, Net: g.net.Host("mgmt"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx) }()
	g.t.Cleanup(func() { cancel(); <-done })
}

// member makes one that has its own connection.
func (g *fakeMgmt) member(cfg Config) *Member {
	pool := rpc.NewPool(rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleDrive, Proc: 5, Version: "v1"}, Net: g.net.Host("here"),
		Log: slog.New(slog.DiscardHandler)})
	g.t.Cleanup(pool.Close)
	cfg.Self, cfg.Name, cfg.Cores = rpc.Self{Cluster: cluster, Role: wire.RoleDrive, Proc: 5, Version: "v1"}, "drive0", []uint32{1}
	cfg.Log = slog.New(slog.NewTextHandler(g, nil))
	cfg.Ask = func(ctx context.Context, call *rpc.Call) error {
		c, err := pool.Get(ctx, []string{"mem:mgmt"})
		if err != nil {
			return err
		}
		return c.Do(ctx, call)
	}
	return New(cfg)
}

// registered gives one that has.
func (g *fakeMgmt) registered(cfg Config) *Member {
	m := g.member(cfg)
	if _, err := m.Register(context.Background(), []string{"mem:here"}, nil); err != nil {
		g.t.Fatal(err)
	}
	return m
}

func (g *fakeMgmt) handle(ctx context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	method := r.Header.Method
	g.at[method] = append(g.at[method], time.Since(g.start))
	if g.mute[method] {
		g.mu.Unlock()
		<-ctx.Done()
		g.mu.Lock()
		return nil, nil, ctx.Err()
	}
	if err := g.err[method]; err != nil {
		return nil, nil, err
	}
	var resp wire.Message = &wire.Empty{}
	var err error
	switch method {
	case wire.MRegister:
		err = decode(r.Meta, &g.regs)
		resp = &wire.RegisterResp{Incarnation: 9, Session: 77, Map: wire.ClusterMap{Generation: 3, LeaseMs: 3000}}
	case wire.MHeartbeat:
		err = decode(r.Meta, &g.hbs)
		resp = &wire.HeartbeatResp{Generation: 4, LeaseMs: 3000}
	case wire.MEvent:
		err = decode(r.Meta, &g.evs)
	case wire.MGoodbye:
		err = decode(r.Meta, &g.byes)
	default:
		err = wire.E("mgmt", wire.KindVersion, "", nil)
	}
	return resp, nil, err
}

func decode[T any, PT interface {
	*T
	wire.Message
}](meta []byte, to *[]T) error {
	var q T
	err := PT(&q).Decode(meta)
	*to = append(*to, q)
	return err
}

// set changes how mgmt answers a method.
func (g *fakeMgmt) set(m wire.Method, mute bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mute[m], g.err[m] = mute, err
}

func (g *fakeMgmt) count(m wire.Method) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.at[m])
}

// Write implements io.Writer: the log of the member.
func (g *fakeMgmt) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.Write(b)
}

// logged counts how often the log has a text.
func (g *fakeMgmt) logged(text string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Count(g.log.String(), text)
}

// told gives what mgmt was told so far by one of its lists.
func told[T any](g *fakeMgmt, list *[]T) []T {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(*list)
}

// pass lets time pass, and what is due at its end happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Claim: a process that starts before mgmt, or meets one that does not answer, registers when it can, with pauses that grow to a second;
// what it says is right, and so is what it remembers.
func TestRegisterRetries(t *testing.T) {
	inTime(t, true, func(g *fakeMgmt) {
		m := g.member(Config{})
		g.set(wire.MRegister, true, nil)
		time.AfterFunc(3*time.Second, func() { g.listen(cluster) })
		time.AfterFunc(8*time.Second, func() { g.set(wire.MRegister, false, wire.E("mgmt", wire.KindUnavailable, "", nil)) })
		time.AfterFunc(20*time.Second, func() { g.set(wire.MRegister, false, nil) })
		drives := []wire.DriveInfo{{ID: 4, Path: "/x"}}
		resp, err := m.Register(g.t.Context(), []string{"mem:here"}, drives)
		if err != nil || resp.Map.Generation != 3 || m.Session() != 77 || m.incarnation != 9 {
			t.Fatal(resp, err, m.Session(), m.incarnation)
		}
		q := g.regs[0]
		if len(g.regs) != 1 || q.Proc != 5 || q.Role != wire.RoleDrive || q.PID == 0 || q.Name != "drive0" || q.Version != "v1" ||
			fmt.Sprint(q.Addrs, q.Cores) != "[mem:here] [1]" || len(q.Drives) != 1 || q.Drives[0].ID != 4 {
			t.Errorf("%+v", g.regs)
		}
		if now := time.Since(g.start); now < 20*time.Second || now > 22*time.Second {
			t.Error("registered after", now)
		}
		// Two attempts of 2 s that were not answered and a dozen refusals: not a storm.
		if n := g.count(wire.MRegister); n < 10 || n > 20 {
			t.Error(n, "attempts")
		}
	})
}

// Claim: what no patience changes ends the attempts at once: a refusal, another cluster, another version. So does ctx.
func TestRegisterEnds(t *testing.T) {
	for _, k := range []wire.Kind{wire.KindRefused, wire.KindVersion, wire.KindAuthentication} {
		inTime(t, false, func(g *fakeMgmt) {
			g.set(wire.MRegister, false, wire.E("mgmt", k, "", nil))
			if _, err := g.member(Config{}).Register(g.t.Context(), nil, nil); !errors.Is(err, k) || time.Since(g.start) > 0 {
				t.Error(err, "after", time.Since(g.start))
			}
		})
	}
	inTime(t, true, func(g *fakeMgmt) {
		g.listen(wire.ClusterID{8})
		if _, err := g.member(Config{}).Register(g.t.Context(), nil, nil); !errors.Is(err, wire.KindRefused) {
			t.Error(err)
		}
	})
	inTime(t, true, func(g *fakeMgmt) {
		ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
		defer cancel()
		if _, err := g.member(Config{}).Register(ctx, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if d := time.Since(g.start); d != 10*time.Second {
			t.Error("ended after", d)
		}
	})
}

// Claim: heartbeats come twice a second and carry who is speaking and what the role adds; while mgmt is silent (no answer, a
// connection refused or of another version) they are tried more often and the role hears of each; the log has one line for the
// beginning of a silence and one for its end; the end of ctx is no error.
func TestSilence(t *testing.T) {
	inTime(t, false, func(g *fakeMgmt) {
		var silent, answered atomic.Int32
		m := g.registered(Config{
			Beat:     func(q *wire.HeartbeatReq) { q.Note = "mine" },
			Answered: func(context.Context, *wire.HeartbeatResp) error { answered.Add(1); return nil },
			Silent:   func(context.Context) { silent.Add(1) },
		})
		ctx, cancel := context.WithCancel(g.t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Heartbeats(ctx) }()
		phase := func(d time.Duration) (beats, yes, no int32) {
			b, y, n := g.count(wire.MHeartbeat), answered.Load(), silent.Load()
			pass(d)
			return int32(g.count(wire.MHeartbeat) - b), answered.Load() - y, silent.Load() - n
		}
		if beats, yes, no := phase(10 * time.Second); beats < 18 || beats > 21 || yes != beats || no != 0 {
			t.Errorf("%d heartbeats in 10 s, %d answered, %d silent", beats, yes, no)
		}
		if q := told(g, &g.hbs)[0]; q.Proc != 5 || q.Incarnation != 9 || q.Session != 77 || q.RSSBytes == 0 || !q.Ready || q.Note != "mine" {
			t.Errorf("%+v", q)
		}
		for i, how := range []error{nil, wire.E("mgmt", wire.KindVersion, "", nil), wire.E("mgmt", wire.KindAuthentication, "", nil)} {
			g.set(wire.MHeartbeat, how == nil, how)
			beats, yes, no := phase(10 * time.Second)
			if least := []int32{4, 80, 80}[i]; no < least || yes > 0 {
				t.Errorf("%v: %d heartbeats, %d answered, %d silent", how, beats, yes, no)
			}
			g.set(wire.MHeartbeat, false, nil)
			if _, yes, _ := phase(5 * time.Second); yes < 4 {
				t.Errorf("%v: %d answered afterwards", how, yes)
			}
			if a, b := g.logged("does not answer"), g.logged("answers heartbeats again"); a != i+1 || b != i+1 {
				t.Errorf("%v: the log tells %d silences and %d ends", how, a, b)
			}
		}
		g.set(wire.MHeartbeat, true, nil)
		pass(3 * time.Second)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Claim: that a newer run exists, the session is over, or the process is refused, ends the life at once and tells why.
func TestHeartbeatEnds(t *testing.T) {
	for _, k := range []wire.Kind{wire.KindStaleSession, wire.KindRefused} {
		inTime(t, false, func(g *fakeMgmt) {
			silent := 0
			m := g.registered(Config{Silent: func(context.Context) { silent++ }})
			time.AfterFunc(4*time.Second, func() { g.set(wire.MHeartbeat, false, wire.E("mgmt", k, "", nil)) })
			ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
			defer cancel()
			if err := m.Heartbeats(ctx); !errors.Is(err, k) || silent != 0 {
				t.Error(err, silent)
			}
			if d := time.Since(g.start); d < 4*time.Second || d > 5*time.Second {
				t.Error("after", d)
			}
		})
	}
}

// Claim: an answer that the role cannot use is silence, within the heartbeat's time.
func TestAnsweredFails(t *testing.T) {
	inTime(t, false, func(g *fakeMgmt) {
		silent := 0
		m := g.registered(Config{
			HeartbeatTimeout: time.Second,
			Answered:         func(ctx context.Context, _ *wire.HeartbeatResp) error { <-ctx.Done(); return ctx.Err() },
			Silent:           func(context.Context) { silent++ },
		})
		ctx, cancel := context.WithTimeout(g.t.Context(), 11*time.Second)
		defer cancel()
		if err := m.Heartbeats(ctx); err != nil || silent != 10 { // 1 s each and 100 ms of pause
			t.Error(err, silent)
		}
	})
}

// Claim: the role's check runs after every heartbeat, answered or not, and its error ends the life; it may tell mgmt once more.
func TestCheck(t *testing.T) {
	inTime(t, false, func(g *fakeMgmt) {
		broken := errors.New("broken")
		checks := 0
		var m *Member
		m = g.registered(Config{Check: func(ctx context.Context) error {
			switch checks++; checks {
			case 1:
				g.set(wire.MHeartbeat, false, wire.E("mgmt", wire.KindUnavailable, "", nil))
			case 3:
				g.set(wire.MHeartbeat, false, nil)
				return errors.Join(broken, m.Heartbeat(ctx))
			}
			return nil
		}})
		if err := m.Heartbeats(g.t.Context()); !errors.Is(err, broken) || checks != 3 || g.count(wire.MHeartbeat) != 4 || len(g.hbs) != 2 {
			t.Error(err, checks, g.count(wire.MHeartbeat), len(g.hbs))
		}
	})
}

// Claim: a change is told at once, and many changes at once share a heartbeat.
func TestKick(t *testing.T) {
	inTime(t, false, func(g *fakeMgmt) {
		m := g.registered(Config{})
		ctx, cancel := context.WithCancel(g.t.Context())
		defer cancel()
		go func() { _ = m.Heartbeats(ctx) }()
		pass(100 * time.Millisecond)
		for range 1000 {
			m.Kick()
		}
		synctest.Wait()
		if n := g.count(wire.MHeartbeat); n != 2 {
			t.Errorf("%d heartbeats, want the first and one for the changes", n)
		}
		for range 100 { // and through time: at most one each heartbeatGap
			m.Kick()
			pass(time.Millisecond)
		}
		if n := g.count(wire.MHeartbeat) - 2; n < 10 || n > int(100*time.Millisecond/heartbeatGap)+1 {
			t.Errorf("%d heartbeats in 100 ms", n)
		}
	})
}

// Claim: events are sent once each, in order; past the bound they are dropped without a wait, and counted in the log; one that mgmt
// does not take is logged with its text and not sent again.
func TestEvents(t *testing.T) {
	inTime(t, false, func(g *fakeMgmt) {
		m := g.registered(Config{})
		for i := range maxEvents + 10 {
			m.Event(wire.SeverityError, "some.type", fmt.Sprint("text", i))
		}
		if time.Since(g.start) > 0 {
			t.Error("Event waited")
		}
		ctx, cancel := context.WithCancel(g.t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.SendEvents(ctx) }()
		pass(time.Second)
		if len(told(g, &g.evs)) != maxEvents {
			t.Fatalf("%d events", len(told(g, &g.evs)))
		}
		for i, e := range told(g, &g.evs) {
			if e.Proc != 5 || e.Severity != wire.SeverityError || e.Type != "some.type" || e.Text != fmt.Sprint("text", i) || e.Time == 0 {
				t.Fatalf("%d: %+v", i, e)
			}
		}
		if g.logged("dropped=10") != 1 || g.logged("were not told") != 1 {
			t.Error("the log tells otherwise")
		}
		g.set(wire.MEvent, true, nil)
		m.Event(wire.SeverityInfo, "lost", "into the void")
		pass(time.Minute)
		if n := g.count(wire.MEvent); n != maxEvents+1 || g.logged("into the void") != 1 {
			t.Error(n, "sent")
		}
		g.set(wire.MEvent, false, nil)
		for _, k := range []wire.Kind{wire.KindNotFound, wire.KindRange, wire.KindCorrupt, wire.KindIO} {
			m.BadStrip(strip.Bad{Drive: 3, ID: wire.MakeStripID(1, wire.ClassData, 0, 2, 0, 9), Kind: k})
		}
		pass(time.Second)
		var types []string
		for _, e := range told(g, &g.evs)[maxEvents:] {
			types = append(types, e.Type)
			if !strings.Contains(e.Text, "drive 3") || e.Severity != wire.SeverityWarning {
				t.Errorf("%+v", e)
			}
		}
		if fmt.Sprint(types) != "[strip.missing strip.missing strip.corrupt strip.unreadable]" {
			t.Error(types)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Claim: a goodbye goes out once the process has registered, names the run, and holds nobody up.
func TestGoodbye(t *testing.T) {
	inTime(t, false, func(g *fakeMgmt) {
		g.member(Config{}).Goodbye(g.t.Context())
		if n := g.count(wire.MGoodbye); n != 0 {
			t.Error("a goodbye of nobody")
		}
		m := g.registered(Config{})
		m.Goodbye(g.t.Context())
		if len(g.byes) != 1 || g.byes[0] != (wire.GoodbyeReq{Proc: 5, Incarnation: 9}) {
			t.Errorf("%+v", g.byes)
		}
		g.set(wire.MGoodbye, true, nil)
		before := time.Now()
		m.Goodbye(g.t.Context())
		if d := time.Since(before); d != goodbyeTimeout || g.logged("did not take the goodbye") != 1 {
			t.Error("took", d)
		}
	})
}

// Claim: all that is wrong with a place is told at once, by the names of the flags.
func TestPlace(t *testing.T) {
	if errs := (Place{Name: "a", Proc: 1, Cluster: cluster, Mgmt: "unix:/a", Identity: "/id", Listen: []string{"tcp:host:1"}}).Check(); errs != nil {
		t.Error(errs)
	}
	all := fmt.Sprint(Place{Mgmt: "unix:", Listen: []string{"unix:/a", "http://x"}, Wire: "pigeon"}.Check())
	for _, want := range []string{"--name", "--proc", "--cluster", "--mgmt", `--listen: address "http://x"`, "--wire", "--identity"} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not told in %s", want, all)
		}
	}
	good := Place{Name: "a", Proc: 1, Cluster: cluster, Mgmt: "unix:/a", Identity: "/id"}
	for n, want := range map[int]string{0: "--listen is missing", maxListen: "[]", maxListen + 1: "at most 8"} {
		good.Listen = slices.Repeat([]string{"tcp:host:1"}, n)
		if got := fmt.Sprint(good.Check()); !strings.Contains(got, want) {
			t.Errorf("%d addresses: %s, want %s", n, got, want)
		}
	}
}
