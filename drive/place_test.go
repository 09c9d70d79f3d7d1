package drive

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// Claim: what has become of a device is seen from its path: shorter at once, gone or replaced when it stays so, and nothing
// else is held against it.
func TestPlace(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(t *testing.T, path string) // before each look but the first
		looks int
		want  string
	}{
		"as it was":            {func(t *testing.T, path string) {}, 30, ""},
		"longer":               {func(t *testing.T, path string) { must(t, os.Truncate(path, 9000)) }, 30, ""},
		"shorter":              {func(t *testing.T, path string) { must(t, os.Truncate(path, 4096)) }, 2, "shorter: 4096 bytes, it had 8192"},
		"empty":                {func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }, 2, "shorter: 0 bytes"},
		"removed":              {func(t *testing.T, path string) { _ = os.Remove(path) }, placeMisses + 1, "nothing is there"},
		"removed a moment ago": {func(t *testing.T, path string) { _ = os.Remove(path) }, placeMisses, ""},
		"replaced": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path+".new", make([]byte, 8192), 0o600))
			must(t, os.Rename(path+".new", path))
		}, placeMisses + 1, "something else is there"},
		"the folder is gone": {func(t *testing.T, path string) { _ = os.RemoveAll(filepath.Dir(path)) }, placeMisses + 1, "nothing is there"},
		"away now and then": {func(t *testing.T, path string) {
			if os.Rename(path, path+".away") != nil {
				must(t, os.Rename(path+".away", path))
			}
		}, 100, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sub", "a")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			must(t, os.WriteFile(path, make([]byte, 8192), 0o600))
			open, err := os.Open(path) // as the process has it: its inode number is not given to another file
			must(t, err)
			defer open.Close()
			at, err := newPlace(path)
			must(t, err)
			got := ""
			for i := range c.looks {
				if i > 0 {
					c.do(t, path)
				}
				got = at.look()
			}
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Claim: a store that takes no writes any more ends the process, after mgmt has heard of the trouble, and of the fault if there is
// one.
func TestDeviceFailedIsTold(t *testing.T) {
	net := rpc.NewMem()
	var mu sync.Mutex
	var troubles []wire.DriveTroubleReq
	var beats []wire.HeartbeatReq
	l, err := rpc.Listen("mem:mgmt", rpc.Options{Net: net, Self: rpc.Self{Cluster: wire.ClusterID{1}, Role: wire.RoleMgmt}, Handler: func(_ context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
		req.Data.Release()
		mu.Lock()
		defer mu.Unlock()
		var tr wire.DriveTroubleReq
		var hb wire.HeartbeatReq
		switch {
		case req.Header.Method == wire.MDriveTrouble && tr.Decode(req.Meta) == nil:
			troubles = append(troubles, tr)
		case req.Header.Method == wire.MHeartbeat && hb.Decode(req.Meta) == nil:
			beats = append(beats, hb)
		}
		return &wire.Empty{}, nil, nil
	}})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	for _, fault := range []string{"", "the device hangs"} {
		p, dev := failingProcess(t, net, fault)
		if err := p.deviceFailed(ctx); err != nil {
			t.Fatalf("a device that is well: %v", err)
		}
		dev.FailFlushes(unix.EIO)
		id := wire.MakeStripID(1, wire.ClassData, 0, 1, 0, 1)
		b, err := p.arena.Alloc(ctx, wire.BlockSize)
		must(t, err)
		clear(b.Bytes())
		data := b.Data(wire.BlockSize)
		if err := p.stores[0].Put(ctx, 1, id, []uint64{0}, data); err == nil {
			t.Fatal("a Put whose flush failed was acknowledged")
		}
		data.Release()
		mu.Lock()
		troubles, beats = nil, nil
		mu.Unlock()
		if err := p.deviceFailed(ctx); !errors.Is(err, wire.KindIO) {
			t.Errorf("failed: %v", err)
		}
		mu.Lock()
		if len(troubles) != 1 || troubles[0].Drive != 3 || !strings.Contains(troubles[0].Text, "input/output error") {
			t.Errorf("troubles %+v", troubles)
		}
		if told := len(beats) == 1 && beats[0].Drives[0].Fault == fault; told != (fault != "") {
			t.Errorf("fault %q: heartbeats %+v", fault, beats)
		}
		mu.Unlock()
	}
}

// failingProcess makes a process whose device does what the test wants.
func failingProcess(t *testing.T, net *rpc.Mem, fault string) (*process, *blockio.FaultDevice) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a")
	must(t, Format(t.Context(), FormatConfig{Path: path, Cluster: wire.ClusterID{1}, Drive: 3, SizeBytes: 64 << 20}))
	file, err := blockio.OpenFile(path)
	must(t, err)
	dev := blockio.NewFaultDevice(flushed{file})
	arena, err := wire.NewArena(64 << 20)
	must(t, err)
	log := slog.New(slog.DiscardHandler)
	monitor := health.New(nil)
	s, err := store.Open(dev, store.Config{Arena: arena, Log: log, Health: monitor})
	must(t, err)
	if fault != "" {
		monitor.Fail(fault)
	}
	p := &process{cfg: Config{Proc: 5, Mgmt: "mem:mgmt"}, log: log, arena: arena, stores: []*store.Store{s}, health: []*health.Monitor{monitor}}
	p.router = route.New(route.Config{Self: rpc.Self{Cluster: wire.ClusterID{1}, Role: wire.RoleDrive, Proc: 5}, Mgmt: "mem:mgmt", Net: net, Log: log})
	p.member = p.newMember()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		p.router.Close()
		must(t, file.Close())
		must(t, arena.Close())
	})
	return p, dev
}

// flushed is a device that says that it needs flushes, wherever its file lies.
type flushed struct{ blockio.Device }

// Info implements blockio.Device.
func (d flushed) Info() blockio.Info {
	i := d.Device.Info()
	i.NeedsFlush = true
	return i
}
