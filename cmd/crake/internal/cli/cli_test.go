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
		{"dev up --dir /x --mount /y --wrong", statusUsage, "--wrong"},
		{"dev up extra --dir /x --mount /y", statusUsage, "extra"},
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
