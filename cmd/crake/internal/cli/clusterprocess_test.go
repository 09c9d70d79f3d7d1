package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/crakefs/crake/mgmt/api"
)

// TestPrintOneProcess: all that is known of a process is told, links as a table below; JSON and CSV are those of the listing.
func TestPrintOneProcess(t *testing.T) {
	p := api.Process{
		ID: 7, Name: "compute0", Role: "compute", State: "up", PID: 123, Cores: []int{1}, Addrs: []string{"unix:/a", "tcp:b:1"},
		ArenaBytes: 64 << 20, ArenaUsedBytes: 3 << 20, ArenaLentBytes: 1 << 10, ArenaQuarantinedBytes: 2 << 10, Links: []api.Link{
			{Peer: "drive0", Transport: "shm", Connections: 1, SentInlineBytes: 5 << 10, SentByRefBytes: 7 << 20, Loans: 11, LoanBytes: 1 << 20},
			{Peer: "drive1", Transport: "shm", Connections: 2}, {Peer: "", Transport: "tcp+tls", Connections: 3},
		},
	}
	var out bytes.Buffer
	if err := printOneProcess(&out, formatTable, &p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"compute0, compute 7", "123, on cores 1", "3MiB of 64MiB", "1KiB, and 2KiB in quarantine", "unix:/a, tcp:b:1", "shm 3, tcp+tls 3", "SENT BY REF", "5KiB", "7MiB", "11", "others",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
	out.Reset()
	var back api.Process
	if err := printOneProcess(&out, formatJSON, &p); err != nil || json.Unmarshal(out.Bytes(), &back) != nil || len(back.Links) != 3 {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	if err := printOneProcess(&out, formatCSV, &p); err != nil || strings.Count(out.String(), "\n") != 2 || !strings.Contains(out.String(), `"shm 3, tcp+tls 3"`) {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	if err := printOneProcess(&out, formatTable, &api.Process{Name: "mgmt", Role: "mgmt", State: "up"}); err != nil || strings.Contains(out.String(), "PEER") {
		t.Errorf("%v: %s", err, out.String())
	}
}

// TestEngineText: why a drive does not use io_uring stands with how it does IO.
func TestEngineText(t *testing.T) {
	for want, d := range map[string]api.Drive{
		"io_uring": {Engine: "io_uring"}, "pread/pwrite: the kernel forbids it": {Engine: "pread/pwrite", EngineReason: "the kernel forbids it"},
	} {
		if got := engineText(&d); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
