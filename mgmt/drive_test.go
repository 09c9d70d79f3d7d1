package mgmt

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
)

// says lets the process of a drive say something of its device in its heartbeats from now on.
func (c *cluster) says(st wire.DriveStatResp) {
	c.t.Helper()
	b, err := json.Marshal(&st)
	if err == nil {
		err = os.WriteFile(driveFile(c.f.Drives[st.Drive-1].Path, "says"), b, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) drive(id uint32) api.Drive {
	c.t.Helper()
	all, err := c.c.Drives(c.t.Context())
	if err != nil || int(id) > len(all) {
		return api.Drive{}
	}
	return all[id-1]
}

func (c *cluster) driveIs(id uint32, state string) func() bool {
	return func() bool { return c.drive(id).State == state }
}

// Claim: a drive that says Fault in a real heartbeat is failed, with the reason in the listing, an event, status and advice. It stays
// so over a restart of mgmt; its process is left alone while it runs and not started again when it ends; activate brings it back.
func TestDriveSaysFault(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	c.says(wire.DriveStatResp{Drive: 3, Fault: "the device is gone", ReadNs: 12, Queued: 4, IndexBytes: 5})
	c.until("failed", c.driveIs(3, "failed"))
	if d := c.drive(3); d.Reason != "the device is gone" || d.ReadNs != 12 || d.Queued != 4 || d.IndexBytes != 5 {
		t.Errorf("drive %+v", d)
	}
	st, err := c.c.Status(t.Context())
	if err != nil || st.Drives != (api.DriveCount{Up: 5, Total: 6, Failed: 1}) || st.Health.State != api.HealthDegraded ||
		!strings.Contains(strings.Join(st.Health.Reasons, ";"), "drive 3 has failed: the device is gone") ||
		len(st.Advice) != 1 || !strings.Contains(st.Advice[0], "crake cluster drive activate 3") {
		t.Errorf("status %+v, %v", st, err)
	}
	ev, err := c.c.Events(t.Context(), api.EventFilter{Type: "drive.failed"})
	if err != nil || len(ev) != 1 || ev[0].Severity != api.SeverityError || ev[0].Process != "drive2" || !strings.Contains(ev[0].Text, "the device is gone") {
		t.Errorf("events %+v, %v", ev, err)
	}

	pid := c.proc("drive2").PID
	old := c.kill("mgmt", syscall.SIGKILL)
	c.until("mgmt is back", func() bool { p := c.proc("mgmt"); return p.PID != 0 && p.PID != old })
	c.until("its process is adopted", func() bool { return c.proc("drive2").PID == pid })
	if d := c.drive(3); d.State != "failed" || d.Reason != "the device is gone" {
		t.Errorf("after a restart of mgmt: %+v", d)
	}
	c.kill("drive2", syscall.SIGKILL)
	c.until("it has ended", func() bool { return c.proc("drive2").PID == 0 })
	for range 100 { // the others' first restart takes a tenth of this
		if p := c.proc("drive2"); p.PID != 0 {
			t.Fatalf("the process of a failed drive was started again: %+v", p)
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.says(wire.DriveStatResp{Drive: 3})
	if err := c.c.ActivateDrive(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	c.until("up again", c.driveIs(3, "up"))
	c.until("all is well", func() bool { st, err := c.c.Status(t.Context()); return err == nil && st.Health.State == api.HealthOK })
}

// Claim: activate starts a process anew that has said Fault: only an opening tells how the device is.
func TestActivateRestarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	c.says(wire.DriveStatResp{Drive: 1, Fault: "the device is gone"})
	c.until("failed", c.driveIs(1, "failed"))
	pid := c.proc("drive0").PID
	c.says(wire.DriveStatResp{Drive: 1})
	if err := c.c.ActivateDrive(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	c.until("up, another process", func() bool { p := c.proc("drive0"); return p.State == "up" && p.PID != pid && c.drive(1).State == "up" })
}

// Claim: a drive that cannot be opened says why before its process ends, in an event and the listing.
func TestDriveCannotBeOpened(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	if err := os.WriteFile(driveFile(c.f.Drives[4].Path, "broken"), []byte("the superblock is damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := api.Launch(ctx, c.f.Binary, c.dir); err != nil {
		t.Fatal(err)
	}
	c.until("troubles", func() bool { return c.drive(5).Troubles >= 2 })
	ev, err := c.c.Events(ctx, api.EventFilter{Type: "drive.trouble"})
	if err != nil || len(ev) < 2 || ev[0].Process != "drive4" || !strings.Contains(ev[0].Text, "the superblock is damaged") {
		t.Errorf("events %+v, %v", ev, err)
	}
	if err := os.Remove(driveFile(c.f.Drives[4].Path, "broken")); err != nil {
		t.Fatal(err)
	}
	c.until("it opens", c.driveIs(5, "up"))
	c.until("that is forgotten", func() bool { return c.drive(5).Troubles == 0 })
}

// Claim: of a drive whose opening takes long people hear after ten seconds, in the listing, status and one event, and no more once it
// is open; others are not held up.
func TestDriveOpensLong(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	hangs := driveFile(c.f.Drives[1].Path, "hangs")
	if err := os.WriteFile(hangs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := api.Launch(ctx, c.f.Binary, c.dir); err != nil {
		t.Fatal(err)
	}
	c.until("its process runs", func() bool { return c.proc("drive1").PID != 0 })
	if d := c.drive(2); d.Problem != "" {
		t.Errorf("at once: %+v", d)
	}
	opening := func() []api.Event {
		ev, err := c.c.Events(ctx, api.EventFilter{Type: "drive.opening"})
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	c.until("it is told", func() bool { return strings.HasPrefix(c.drive(2).Problem, "opening for 1") && len(opening()) == 1 })
	said := c.drive(2).Problem // changes each second, and mgmt looks twice as often
	c.until("the next second", func() bool { return c.drive(2).Problem != said })
	said = c.drive(2).Problem
	c.until("the second after that", func() bool { return c.drive(2).Problem != said })
	st, err := c.c.Status(ctx)
	if err != nil || !strings.Contains(strings.Join(st.Health.Reasons, ";"), "drive 2 is opening for") || st.Drives.Up != 5 {
		t.Errorf("status %+v, %v", st, err)
	}
	if ev := opening(); len(ev) != 1 || ev[0].Process != "drive1" || ev[0].Severity != api.SeverityWarning {
		t.Errorf("event %+v", ev[0])
	}
	if err := os.Remove(hangs); err != nil {
		t.Fatal(err)
	}
	c.until("it is open", func() bool { d := c.drive(2); return d.State == "up" && d.Problem == "" })
}

// Claim: the listing has what processes say of their links, by the names of the peers, and of their arenas.
func TestLinksInTheListing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	c.until("links", func() bool { return len(c.proc("drive0").Links) == 2 })
	p := c.proc("drive0")
	want := []api.Link{{Peer: "compute0", Transport: "shm", Connections: 2, SentByRefBytes: 5}, {Peer: "drive 77", Transport: "tcp"}}
	if !slices.Equal(p.Links, want) || p.ArenaBytes != 1<<20 || p.ArenaUsedBytes != 1<<12 || p.ArenaLentBytes != 3 || p.ArenaQuarantinedBytes != 2 {
		t.Errorf("%+v", p)
	}
	if p := c.proc("mgmt"); p.Links == nil {
		t.Error("null is no list")
	}
}

// Claim: by hand, a drive is failed at once and its space does not count; the third of 4+2 is refused in numbers, unless forced.
func TestDeactivateByHand(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	ctx := t.Context()
	for id := range uint32(2) {
		if err := c.c.DeactivateDrive(ctx, id+1, "to be swapped", false); err != nil {
			t.Fatal(err)
		}
		if d := c.drive(id + 1); d.State != "failed" || d.Reason != "deactivated by hand: to be swapped" {
			t.Errorf("%+v", d)
		}
	}
	err := c.c.DeactivateDrive(ctx, 3, "", false)
	var e *api.Error
	if !errors.As(err, &e) || e.Status != 409 || !strings.Contains(e.Message, "3 failure domains would be out (drives down or failed already: 1, 2), and protection 4+2 bears 2") {
		t.Errorf("the third: %v", err)
	}
	if err := c.c.DeactivateDrive(ctx, 2, "", true); !errors.As(err, &e) || e.Status != 409 {
		t.Errorf("twice: %v", err)
	}
	st, err := c.c.Status(ctx)
	if err != nil || st.Capacity.RawBytes != 4<<20 || st.Health.State != api.HealthDegraded || fmt.Sprint(st.Processes["drive"]) != "{6 6}" {
		t.Errorf("status %+v, %v", st, err)
	}
	if err := c.c.DeactivateDrive(ctx, 3, "", true); err != nil {
		t.Fatal(err)
	}
	if st, err := c.c.Status(ctx); err != nil || st.Health.State != api.HealthUnavailable {
		t.Errorf("status %+v, %v", st, err)
	}
	for id := range uint32(3) {
		if err := c.c.ActivateDrive(ctx, id+1); err != nil {
			t.Fatal(err)
		}
	}
	if st := c.ready(); st.Health.State != api.HealthOK || st.Drives.Up != 6 {
		t.Errorf("status %+v", st)
	}
}

// Claim: who has few drives is told that writes would wait when m of them are down.
func TestAdviceOfFewDrives(t *testing.T) {
	h := driveHealth{domains: 4, upDomains: 4}
	if a := h.advice(&api.Protection{Data: 2, Parity: 2}); len(a) != 1 || !strings.Contains(a[0], "with 2 of 4 failure domains down all writes would wait; 5") {
		t.Errorf("advice %q", a)
	}
	h.domains = 5
	if a := h.advice(&api.Protection{Data: 2, Parity: 2}); len(a) != 0 {
		t.Errorf("advice %q", a)
	}
}
