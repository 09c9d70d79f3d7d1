package dev

import (
	"strings"
	"testing"

	"github.com/crakefs/crake/mgmt/api"
)

// TestSettings: what was said is written, what was not said stays; what does not fit together is refused; a running cluster is
// bothered only by what differs.
func TestSettings(t *testing.T) {
	yes, no := true, false
	encrypted := api.ClusterFile{Computes: 2, Wire: "tcp", WireEncryption: true, DriveArena: 1 << 26}
	for _, c := range []struct {
		name    string
		file    api.ClusterFile
		said    Config
		want    api.ClusterFile
		changes bool
		refused string
	}{
		{"nothing said", encrypted, Config{}, encrypted, false, ""},
		{"the same said", encrypted, Config{Computes: 2, Wire: "tcp", Encrypt: &yes, Arenas: Arenas{Drive: 1 << 26}}, encrypted, false, ""},
		{"all changed", encrypted, Config{Computes: 3, Wire: "unix", Encrypt: &no, APIListen: ":1", Arenas: Arenas{1, 2, 3}},
			api.ClusterFile{Computes: 3, Wire: "unix", APIListen: ":1", DriveArena: 1, ComputeArena: 2, FrontendArena: 3}, true, ""},
		{"encryption of the file without tcp", encrypted, Config{Wire: "shm"}, api.ClusterFile{}, true, "--wire-encryption=false"},
		{"encryption without tcp", api.ClusterFile{Computes: 2}, Config{Encrypt: &yes}, api.ClusterFile{}, true, "--wire tcp"},
		{"computes", encrypted, Config{Computes: 1000}, api.ClusterFile{}, true, "--compute"},
	} {
		err := c.said.checkSettings(c.file)
		if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want %q", c.name, err, c.refused)
		}
		if got := c.said.changes(c.file); got != c.changes {
			t.Errorf("%s: changes %v", c.name, got)
		}
		if err == nil {
			got := c.file
			c.said.settings(&got)
			if got.Wire != c.want.Wire || got.WireEncryption != c.want.WireEncryption || got.Computes != c.want.Computes || got.APIListen != c.want.APIListen ||
				got.DriveArena != c.want.DriveArena || got.ComputeArena != c.want.ComputeArena || got.FrontendArena != c.want.FrontendArena {
				t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
			}
		}
	}
}
