package mgmt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// TestMain makes this binary play crake: mgmt is the real one, the other roles only speak with mgmt.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		var err error
		switch os.Args[1] {
		case "mgmt":
			err = Run(ctx, Config{Dir: flagOf("--dir"), Version: "test", Worker: os.Args[len(os.Args)-1] == "--worker"})
		case "drive", "compute", "frontend":
			err = runFake(ctx, os.Args[1])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func flagOf(name string) string {
	for i, a := range os.Args {
		if a == name && i+1 < len(os.Args) {
			return os.Args[i+1]
		}
	}
	return ""
}

// fake is a process of a role that registers, heartbeats, and as a compute answers for the buckets that the map gives it.
type fake struct {
	self   rpc.Self
	role   string
	id     *identity.Identity
	router *route.Router
	mu     sync.Mutex
	held   []wire.BucketReport
	hung   bool
}

func runFake(ctx context.Context, role string) error {
	proc, err := strconv.ParseUint(flagOf("--proc"), 10, 32)
	if err != nil {
		return err
	}
	f := &fake{role: role, self: rpc.Self{Proc: wire.ProcID(proc), Version: "test"}}
	f.self.Role = map[string]wire.Role{"drive": wire.RoleDrive, "compute": wire.RoleCompute, "frontend": wire.RoleFrontend}[role]
	for i := range f.self.Cluster {
		b, err := strconv.ParseUint(flagOf("--cluster")[2*i:2*i+2], 16, 8)
		if err != nil {
			return err
		}
		f.self.Cluster[i] = byte(b)
	}
	if f.id, err = identity.Load(flagOf("--identity")); err != nil {
		return err
	}
	if strings.Contains(flagOf("--mount"), "cursed") {
		return fmt.Errorf("mount point %s is cursed", flagOf("--mount"))
	}
	if role == "drive" {
		f.openSlowly(ctx)
		if err := f.cannotOpen(); err != nil {
			return err
		}
	}
	f.router = route.New(route.Config{Self: f.self, Mgmt: flagOf("--mgmt"), OnMap: f.onMap, Identity: f.id})
	defer f.router.Close()
	l, err := f.router.Listen([]string{flagOf("--listen")}, rpc.Options{Handler: f.handle})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // makes it hang
	go func() { _ = l.Serve(ctx) }()
	go func() { _ = f.router.Run(ctx) }()
	var reg wire.RegisterResp
	for {
		req := &wire.RegisterReq{Proc: f.self.Proc, Role: f.self.Role, PID: uint32(os.Getpid()), Name: flagOf("--name"), Version: "test", Addrs: l.Addrs()}
		if err = f.router.Mgmt(ctx, &rpc.Call{Method: wire.MRegister, Req: req, Resp: &reg}); err == nil {
			break
		}
		slog.Info("register", "err", err)
		if k := wire.KindOf(err); k == wire.KindRefused || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	slog.Info("registered", "incarnation", reg.Incarnation, "session", reg.Session)
	f.router.SetMap(&reg.Map)
	return f.beat(ctx, hup, &reg)
}

func (f *fake) beat(ctx context.Context, hup <-chan os.Signal, reg *wire.RegisterResp) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-hup:
			f.hung = true
		case <-ctx.Done():
			bye, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return f.router.Mgmt(bye, &rpc.Call{Method: wire.MGoodbye, Req: &wire.GoodbyeReq{Proc: f.self.Proc, Incarnation: reg.Incarnation}})
		case <-t.C:
		}
		if f.hung {
			continue
		}
		f.mu.Lock()
		hb := &wire.HeartbeatReq{
			Proc: f.self.Proc, Incarnation: reg.Incarnation, Session: reg.Session, Ready: true, Buckets: f.held, Generation: f.router.Map().Generation,
		}
		if f.role == "drive" {
			hb.Drives = f.says()
		}
		// A process of the map, and one that is not in it.
		hb.Links = []wire.LinkStat{{Peer: 7, Role: wire.RoleCompute, Conns: 2, Transport: "shm", SentByRef: 5}, {Peer: 77, Role: wire.RoleDrive, Transport: "tcp"}}
		hb.Arena = wire.ArenaReport{Bytes: 1 << 20, Used: 1 << 12, Lent: 3, Quarantined: 2}
		f.mu.Unlock()
		if err := f.router.Mgmt(ctx, &rpc.Call{Method: wire.MHeartbeat, Req: hb, Resp: &wire.HeartbeatResp{}}); wire.KindOf(err) == wire.KindStaleSession {
			return err
		}
	}
}

// driveFile is where a test tells a fake drive what to do.
func driveFile(device, what string) string { return device + "." + what }

// openSlowly waits as a drive does whose device hangs, if the test wants that, until it does not any more.
func (f *fake) openSlowly(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := os.Stat(driveFile(flagOf("--device"), "hangs")); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cannotOpen does what a drive does that cannot open its device, if the test wants that.
func (f *fake) cannotOpen() error {
	why, err := os.ReadFile(driveFile(flagOf("--device"), "broken"))
	if err != nil {
		return nil
	}
	id, err := strconv.ParseUint(flagOf("--drive-id"), 10, 32)
	if err != nil {
		return err
	}
	conn, err := rpc.Dial(context.Background(), flagOf("--mgmt"), rpc.Options{Self: f.self, Identity: f.id})
	if err != nil {
		return err
	}
	defer conn.Close()
	req := &wire.DriveTroubleReq{Proc: f.self.Proc, PID: uint32(os.Getpid()), Drive: wire.DriveID(id), Text: string(why)}
	err = conn.Do(context.Background(), &rpc.Call{Method: wire.MDriveTrouble, Req: req, Resp: &wire.Empty{}})
	return errors.Join(errors.New(string(why)), err)
}

// says gives what a drive tells of its device: what the test wrote.
func (f *fake) says() []wire.DriveStatResp {
	b, err := os.ReadFile(driveFile(flagOf("--device"), "says"))
	if err != nil {
		return nil
	}
	var st wire.DriveStatResp
	if err := json.Unmarshal(b, &st); err != nil {
		return nil // half written
	}
	return []wire.DriveStatResp{st}
}

func (f *fake) onMap(m *wire.ClusterMap) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = nil
	for i, o := range m.Owners {
		if o.Proc == f.self.Proc {
			f.held = append(f.held, wire.BucketReport{Bucket: wire.BucketID(i), Epoch: o.Epoch, State: wire.BucketServing})
		}
	}
}

func (f *fake) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	req.Data.Release()
	switch req.Header.Method {
	case wire.MMakeRoot:
		return &wire.Empty{}, nil, nil
	case wire.MDropRoot:
		var r wire.MakeRootReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		if m := f.router.Map(); m.FS("full") != nil && m.FS("full").ID == r.FS {
			return nil, nil, wire.Errorf("compute.droproot", wire.KindNotEmpty, "full", "it has 1 name")
		}
		return &wire.Empty{}, nil, nil
	case wire.MBucketStat:
		var r wire.BucketStatReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		return &wire.BucketStatResp{Bucket: r.Bucket, State: wire.BucketServing, Inodes: 7}, nil, nil
	}
	return nil, nil, wire.Errorf("fake", wire.KindVersion, "", "method %d", req.Header.Method)
}
