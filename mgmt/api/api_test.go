package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func goodFile() *ClusterFile {
	f := &ClusterFile{
		Version: 1, ClusterID: strings.Repeat("ab", 16), Name: "n", DataStrips: 4, ParityStrips: 2, Buckets: 16, Computes: 2, Mount: "/m",
		Binary: "/bin/crake", LeaseMs: 5000, Cores: []int{0, 1}, DriveArena: 1, Wire: "tcp", WireEncryption: true,
	}
	for i := range 6 {
		f.Drives = append(f.Drives, DriveSpec{ID: uint32(i + 1), Path: fmt.Sprint("/d", i), SizeBytes: 1})
	}
	return f
}

// Claim: a cluster file that was written is read back equal; everything wrong with one is named, all at once.
func TestClusterFile(t *testing.T) {
	dir := t.TempDir()
	f := goodFile()
	if err := WriteClusterFile(dir, f); err != nil {
		t.Fatal(err)
	}
	got, err := ReadClusterFile(dir)
	if err != nil || !reflect.DeepEqual(got, f) {
		t.Fatalf("%+v, %v", got, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.tmp*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for want, edit := range map[string]func(f *ClusterFile){
		"version is 2":               func(f *ClusterFile) { f.Version = 2 },
		"32 hexadecimal":             func(f *ClusterFile) { f.ClusterID = "xy" },
		"all zeros":                  func(f *ClusterFile) { f.ClusterID = strings.Repeat("0", 32) },
		"protection 0+2":             func(f *ClusterFile) { f.DataStrips = 0 },
		"protection 31+2":            func(f *ClusterFile) { f.DataStrips = 31 },
		"buckets is 0":               func(f *ClusterFile) { f.Buckets = 0 },
		"needs at least 6":           func(f *ClusterFile) { f.Drives = f.Drives[:5] },
		"computes is 0":              func(f *ClusterFile) { f.Computes = 0 },
		`mount "m"`:                  func(f *ClusterFile) { f.Mount = "m" },
		`binary "crake"`:             func(f *ClusterFile) { f.Binary = "crake" },
		"lease_ms is 1":              func(f *ClusterFile) { f.LeaseMs = 1 },
		"core -1":                    func(f *ClusterFile) { f.Cores = []int{-1} },
		"drive id 1 is zero or used": func(f *ClusterFile) { f.Drives[3].ID = 1 },
		`path "/d0" is not absolute`: func(f *ClusterFile) { f.Drives[3].Path = "/d0" },
		`wire is "pigeon"`:           func(f *ClusterFile) { f.Wire = "pigeon" },
		"wire_encryption is for":     func(f *ClusterFile) { f.Wire = "" },
		"size is 0":                  func(f *ClusterFile) { f.Drives[3].SizeBytes = 0 },
	} {
		f := goodFile()
		edit(f)
		if err := f.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err := WriteClusterFile(dir, f); err == nil {
			t.Errorf("%s: written", want)
		}
	}
	f.Version, f.Buckets = 7, -1
	if err := f.Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two faults: %v", err)
	}
	for _, bad := range []string{"", "{", `{"version":1,"surprise":2}`, "[]"} {
		if err := os.WriteFile(filepath.Join(dir, ClusterFileName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadClusterFile(dir); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ReadClusterFile(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Claim: a folder whose sockets would have too long paths is refused with the reason.
func TestCheckDir(t *testing.T) {
	if err := CheckDir("/var/lib/crake"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"relative", "/" + strings.Repeat("x", 100)} {
		if err := CheckDir(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// Claim: JSON keys never change meaning. A key that is missing here was renamed or removed: tools in the field break.
func TestStableKeys(t *testing.T) {
	for v, want := range map[any]string{
		&Status{}:     "cluster_id name version generation formed_at time protection lease_ms health processes drives buckets capacity filesystems mounts sessions mgmt advice wire wire_encryption",
		&Process{}:    "id name role state pid cores version incarnation ready started_at restarts rss_bytes heartbeat_age_ms addrs log last_exit note arena_bytes arena_used_bytes arena_lent_bytes arena_quarantined_bytes links",
		&Link{}:       "peer transport connections sent_inline_bytes sent_by_ref_bytes received_inline_bytes received_by_ref_bytes loans loan_bytes",
		&Drive{}:      "id process path state domain size_bytes free_bytes strips reads read_bytes writes write_bytes flushes errors engine engine_reason flush pgs reason problem troubles read_ns write_ns flush_ns queued corrupt scrub_done_bytes scrub_total_bytes scrub_passes discard_bytes index_bytes",
		&DriveCount{}: "up total failed",
		&Bucket{}:     "id owner epoch state error inodes data_bytes stripes segments open_txns leases orphans table_bytes",
		&PG{}:         "id drives up",
		&Filesystem{}: "id name root deleting mounts",
		&Mount{}:      "name fs path ready pid error",
		&Event{}:      "id time severity type process text",
		&Health{}:     "state reasons",
		&Error{}:      "error hint",
	} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		for _, k := range strings.Fields(want) {
			if _, ok := got[k]; !ok {
				t.Errorf("%T has no key %q", v, k)
			}
		}
	}
}

// Claim: the client gives what mgmt refuses as an Error, bad answers as errors, and says when nobody listens.
func TestClient(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(RunDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	c := Open(dir)
	defer c.Close()
	if err := c.Ping(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens: %v", err)
	}
	if err := StopAndWait(t.Context(), dir, false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stop: %v", err)
	}
	l, err := net.Listen("unix", APISocket(dir))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.String() {
		case "GET /api/v1/events?after=3&limit=5&severity=error&type=a.":
			fmt.Fprint(w, `[{"id":4,"severity":"error"}]`)
		case "DELETE /api/v1/filesystems/a%2Fb":
			w.WriteHeader(409)
			fmt.Fprint(w, `{"error":"not empty","hint":"empty it"}`)
		case "GET /api/v1/status":
			fmt.Fprint(w, `{"mounts":[{"path":"/m","fs":"f","error":"cursed"}]}`)
		case "GET /api/v1/drives":
			fmt.Fprint(w, `{"half`)
		default:
			w.WriteHeader(500)
			fmt.Fprint(w, "no json")
		}
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	ev, err := c.Events(t.Context(), EventFilter{Limit: 5, After: 3, Severity: "error", Type: "a."})
	if err != nil || len(ev) != 1 || ev[0].ID != 4 {
		t.Errorf("events %+v, %v", ev, err)
	}
	var e *Error
	if err := c.RemoveFilesystem(t.Context(), "a/b"); !errors.As(err, &e) || e.Status != 409 || err.Error() != "not empty; empty it" {
		t.Errorf("refused: %v", err)
	}
	if _, err := c.Drives(t.Context()); err == nil {
		t.Error("half an answer was taken")
	}
	if _, err := c.PGs(t.Context()); !errors.As(err, &e) || e.Status != 500 {
		t.Errorf("no JSON: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.WaitReady(ctx, nil); err == nil || !strings.Contains(err.Error(), "mount of f at /m failed: cursed") {
		t.Errorf("wait: %v", err)
	}
}
