package frontend

import (
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
)

// Claim: everything that is wrong is told at once.
func TestValidate(t *testing.T) {
	good := Config{Name: "frontend0", Proc: 1, Cluster: wire.ClusterID{1}, Mgmt: "unix:/a", Listen: []string{"unix:/b"}, Identity: "/c", FS: "default", Mount: "/mnt/x"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	err := (&Config{Listen: []string{"nonsense"}, Mount: "relative", DirtyBytes: 1}).Validate()
	for _, want := range []string{"--name", "--proc", "--cluster", "--fs", "--mgmt", "--listen", "--identity", "--mount", "--dirty"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not told in %v", want, err)
		}
	}
}
