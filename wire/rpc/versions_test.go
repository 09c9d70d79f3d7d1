package rpc

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
)

// Claim: two sides speak the highest version that both have, whoever dials; without one both refuse, and name both ranges and both software
// versions.
func TestVersionPicked(t *testing.T) {
	for _, tt := range []struct {
		a, b [2]uint16 // lowest and highest
		want uint16    // 0: none
	}{
		{a: [2]uint16{1, 1}, b: [2]uint16{1, 1}, want: 1},
		{a: [2]uint16{1, 1}, b: [2]uint16{1, 2}, want: 1},
		{a: [2]uint16{1, 2}, b: [2]uint16{1, 2}, want: 2},
		{a: [2]uint16{1, 2}, b: [2]uint16{2, 3}, want: 2},
		{a: [2]uint16{1, 4}, b: [2]uint16{2, 3}, want: 3},
		{a: [2]uint16{1, 1}, b: [2]uint16{2, 3}},
		{a: [2]uint16{1, 2}, b: [2]uint16{3, 5}},
	} {
		side := func(v [2]uint16, role wire.Role, software string) *hello {
			return &hello{self: Self{Cluster: testCluster, Role: role, Proc: 2, Version: software}, lowest: v[0], highest: v[1], windowReqs: 1}
		}
		a, b := side(tt.a, wire.RoleCompute, "soft-a"), side(tt.b, wire.RoleDrive, "soft-b")
		for _, dialled := range []bool{true, false} {
			va, ea := judge(a, b, false, dialled)
			vb, eb := judge(b, a, false, !dialled)
			if va != tt.want || vb != tt.want {
				t.Errorf("%v and %v speak %d and %d, want %d", tt.a, tt.b, va, vb, tt.want)
			}
			for _, err := range []error{ea, eb} {
				if (err == nil) != (tt.want != 0) || err != nil && wire.KindOf(err) != wire.KindVersion {
					t.Fatalf("%v and %v: %v", tt.a, tt.b, err)
				}
				for _, part := range []string{"compute", "drive", "soft-a", "soft-b", fmt.Sprintf("%d to %d", tt.a[0], tt.a[1]), fmt.Sprintf("%d to %d", tt.b[0], tt.b[1])} {
					if err != nil && !strings.Contains(err.Error(), part) {
						t.Errorf("%q does not tell %q", err, part)
					}
				}
			}
		}
	}
}

// Claim: a feature is used when both sides have set its bit; bits that this software does not know are ignored, whoever sets them.
func TestFeaturesAgreed(t *testing.T) {
	const unknown = 1 << 63
	for _, tt := range []struct{ own, peer, want Features }{
		{0, 0, 0},
		{FeatureShm, 0, 0},
		{0, FeatureShm, 0},
		{FeatureShm, FeatureProof, 0},
		{FeatureShm | FeatureProof, FeatureProof, FeatureProof},
		{FeatureShm | FeatureProof, ^Features(0), FeatureShm | FeatureProof},
		{FeatureShm | unknown, FeatureShm | unknown, FeatureShm},
	} {
		if got := agreed(&hello{features: tt.own}, &hello{features: tt.peer}); got != tt.want {
			t.Errorf("%#x and %#x: %#x, want %#x", tt.own, tt.peer, got, tt.want)
		}
	}
	if FeatureShm != 1 || FeatureProof != 2 {
		t.Error("the bits are those of the protocol")
	}
}

// Claim: a peer that sets feature bits which nobody knows yet, and speaks more versions, is served at the highest common version.
func TestNewerPeer(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		conns := make(chan *Conn, 1)
		w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
			conns <- r.Conn
			return nil, r.Data, nil
		}
		w.serve()
		s, o := w.bare(), w.client
		o.Shm = false // there is no channel here
		h := ownHello(s, &o)
		h.highest += 7
		h.features |= ^knownFeatures
		h.raw = string(h.encode())
		if err := writeFull(s, []byte(h.raw)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, helloBytes)
		if err := readFull(s, b); err != nil {
			t.Fatal(err)
		}
		peer, err := decodeHello(b)
		if err != nil || peer.status != wire.KindNone {
			t.Fatalf("%+v %v", peer, err)
		}
		peer.raw = string(b)
		if err := prove(t.Context(), s, &o, h, &peer, true); err != nil {
			t.Fatal(err)
		}
		if err := writeFull(s, requests(1, 1, nil)); err != nil {
			t.Fatal(err)
		}
		answers(t, s, 1, nil)
		if c := <-conns; c.Version() != wire.HighestVersion || c.Features() != o.offered(s) {
			t.Errorf("version %d, features %#x", c.Version(), c.Features())
		}
	})
}
