package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/mgmt/api"
)

// runLine runs a command line and gives what it printed.
func runLine(args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = run(context.Background(), &app{version: "v1", out: &out, err: &err}, args)
	return status, out.String(), err.String()
}

// A wrong command line gives one line that says what to do, status 2, and nothing on standard output.
func TestWrongCommandLines(t *testing.T) {
	empty := t.TempDir()
	for _, c := range []struct {
		line   string
		status int
		says   string
	}{
		{"nonsense", statusUsage, "unknown command"},
		{"statu", statusUsage, "did you mean"},
		{"dev nonsense", statusUsage, "crake dev --help"},
		{"dev up", statusUsage, "--dir"},
		{"dev up --dir /x", statusUsage, "--mount"},
		{"dev up --dir /x --mount /y --drives 0", statusUsage, "--drives"},
		{"dev up --dir /x --mount /y --drives six", statusUsage, "--drives"},
		{"dev up --dir /x --mount /y --protection 4", statusUsage, "4+2"},
		{"dev up --dir /x --mount /y --protection 4+0", statusUsage, "4+2"},
		{"dev up --dir /x --mount /y --drive-size lots", statusUsage, "512MiB"},
		{"dev up --dir /x --mount /y --timeout 0s", statusUsage, "--timeout"},
		{"dev up --dir /x --mount /y --wire pigeon", statusUsage, "want shm, unix or tcp"},
		{"dev up --dir /x --mount /y --arena-drive 31MiB", statusUsage, "a drive needs at least 32MiB"},
		{"dev up --dir /x --mount /y --arena-compute 1 --arena-frontend 1", statusUsage, "a frontend needs at least 8MiB"},
		{"dev up --dir /x --mount /y --wrong", statusUsage, "--wrong"},
		{"cluster process a b", statusUsage, "one argument too many"},
		{"dev up extra --dir /x --mount /y", statusUsage, "extra"},
		{"cluster drive x", statusUsage, "is no drive id"},
		{"cluster drive 0", statusUsage, "is no drive id"},
		{"cluster drive 1 2", statusUsage, "one argument too many"},
		{"cluster drive deactivate", statusUsage, "ID is missing"},
		{"cluster drive deactivate three", statusUsage, "is no drive id"},
		{"cluster drive activate 1 --force", statusUsage, "--force"},
		{"fs create", statusUsage, "NAME"},
		{"fs create a b", statusUsage, "b"},
		{"mount default", statusUsage, "MNT"},
		{"status -f xml", statusUsage, "table or json"},
		{"status --dir " + empty, statusFailed, "holds no cluster"},
		{"dev down --dir " + empty, statusFailed, "holds no cluster"},
		{"dev ps --dir /does/not/exist", statusFailed, "holds no cluster"},
	} {
		status, out, err := runLine(strings.Fields(c.line)...)
		if status != c.status || out != "" || strings.Count(err, "\n") != 1 || !strings.HasPrefix(err, "crake: ") || !strings.Contains(err, c.says) {
			t.Errorf("crake %s: status %d, want %d; stdout %q; stderr %q, want one line with %q", c.line, status, c.status, out, err, c.says)
		}
	}
}

// Every command has help with an example, but the groups, whose children have.
func TestEveryCommandHasHelpAndExamples(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no short help", c.CommandPath())
		}
		if !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk((&app{version: "v1"}).root())
}

func TestVersion(t *testing.T) {
	if status, out, _ := runLine("version"); status != 0 || !strings.HasPrefix(out, "crake v1 go") {
		t.Errorf("version: %d, %q", status, out)
	}
	status, out, _ := runLine("version", "-f", "json")
	var v versionInfo
	if err := json.Unmarshal([]byte(out), &v); status != 0 || err != nil || v.Version != "v1" {
		t.Errorf("version -f json: %d, %q, %v", status, out, err)
	}
}

func TestPrintList(t *testing.T) {
	type row struct {
		Name string `json:"name"`
		N    string `json:"n"`
	}
	rows := []row{{"a", "1"}, {"b,c\nd", ""}}
	columns := []column[row]{{"name", func(r row) string { return r.Name }}, {"n", func(r row) string { return r.N }}}
	for _, c := range []struct{ format, want string }{
		{formatTable, "NAME   N\na      1\nb,c d  -\n"},
		{formatCSV, "name,n\na,1\n\"b,c d\",\n"},
		{formatJSON, "[\n  {\n    \"name\": \"a\",\n    \"n\": \"1\"\n  },\n  {\n    \"name\": \"b,c\\nd\",\n    \"n\": \"\"\n  }\n]\n"},
	} {
		var b bytes.Buffer
		if err := printList(&b, c.format, rows, columns); err != nil || b.String() != c.want {
			t.Errorf("%s: %q, %v; want %q", c.format, b.String(), err, c.want)
		}
	}
	var b bytes.Buffer
	if err := printList(&b, formatJSON, nil, columns); err != nil || b.String() != "[]\n" {
		t.Errorf("an empty list as JSON: %q, %v", b.String(), err)
	}
}

// One drive in full: all that is known, and no line of what is not.
func TestPrintOneDrive(t *testing.T) {
	d := api.Drive{
		ID: 3, Process: "drive2", Path: "/dev/nvme1n1", State: "failed", Reason: "the device is gone", Troubles: 2, SizeBytes: 1 << 40, FreeBytes: 1 << 39,
		Strips: 7, PGs: 4, Engine: "pread/pwrite", EngineReason: "pread/pwrite: no io_uring here", Flush: "fdatasync", Reads: 5, ReadBytes: 20480, ReadNs: 57_000, WriteNs: 1_500_000,
		FlushNs: 2e9, Queued: 1, Errors: 9, Corrupt: 8, ScrubDoneBytes: 1 << 20, ScrubTotalBytes: 1 << 21, ScrubPasses: 1, DiscardBytes: 4096, IndexBytes: 640,
	}
	var b bytes.Buffer
	if err := printOneDrive(&b, formatTable, &d); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"3 at /dev/nvme1n1", "failed: the device is gone", "ended 2 times", "512GiB free of 1TiB, 7 strips, in 4 placement groups", "no io_uring here",
		"5, 20KiB, each 57us", "each 1.5ms", "each 2.0s", "1 request\n", "9 of IO, 8 of checksums", "1 complete, 1MiB of 2MiB of the pass", "4KiB", "640B of memory",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "problem") {
		t.Errorf("a problem of none:\n%s", b.String())
	}
	b.Reset()
	if err := printOneDrive(&b, formatJSON, &d); err != nil || !strings.Contains(b.String(), `"read_ns": 57000`) {
		t.Errorf("%s, %v", b.String(), err)
	}
	if got := driveText(api.DriveCount{Up: 3, Total: 6, Failed: 1}); got != "3 of 6 up, 2 down, 1 failed" {
		t.Errorf("got %s", got)
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(errors.Join(errors.New("a\n"), errors.New("b"))); got != "a; b" {
		t.Errorf("got %q", got)
	}
}

func TestDirComesFromTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CRAKE_DIR", dir)
	if got, err := (&dirFlag{}).find(); got != dir || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := (&dirFlag{dir: "/elsewhere"}).find(); err == nil {
		t.Errorf("--dir must win over the environment, got %s", got)
	}
}
