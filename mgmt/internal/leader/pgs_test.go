package leader

import (
	"slices"
	"testing"

	"github.com/crakefs/crake/wire"
)

func testDrives(servers, perServer int, byDrive bool) []Drive {
	var out []Drive
	for s := range servers {
		for range perServer {
			id := len(out) + 1
			d := Drive{ID: wire.DriveID(id), Domain: uint32(s + 1), SizeBytes: 1 << 40}
			if byDrive {
				d.Domain = uint32(id)
			}
			out = append(out, d)
		}
	}
	return out
}

func checkPGs(t *testing.T, pgs []wire.PGInfo, drives []Drive, width int, slack int) {
	t.Helper()
	domain := map[wire.DriveID]uint32{}
	places, at := map[wire.DriveID]int{}, map[wire.DriveID][]int{}
	for _, d := range drives {
		domain[d.ID] = d.Domain
		at[d.ID] = make([]int, width)
	}
	ids := map[wire.PGID]bool{}
	for _, pg := range pgs {
		if ids[pg.ID] || pg.ID == 0 || len(pg.Drives) != width {
			t.Fatalf("group %+v: id twice or zero, or not %d wide", pg, width)
		}
		ids[pg.ID] = true
		used := map[uint32]bool{}
		for pos, d := range pg.Drives {
			if domain[d] == 0 || used[domain[d]] {
				t.Fatalf("group %+v: drive %d unknown or its domain is twice in it", pg, d)
			}
			used[domain[d]] = true
			places[d]++
			at[d][pos]++
		}
	}
	mean := len(pgs) * width / len(drives)
	for _, d := range drives {
		if n := places[d.ID]; n < mean-slack || n > mean+1+slack {
			t.Fatalf("drive %d is in %d groups, mean is %d", d.ID, n, mean)
		}
		for pos, n := range at[d.ID] {
			if n > (mean+width-1)/width+2+slack || n == 0 && mean >= 3*width {
				t.Fatalf("drive %d is %d times at position %d, mean %d: %v", d.ID, n, pos, mean/width, at[d.ID])
			}
		}
	}
}

// Claim: groups have distinct failure domains, and drives are used evenly, at every position.
func TestPGsBalanced(t *testing.T) {
	for _, c := range []struct {
		servers, perServer, width int
		byDrive                   bool
	}{
		{1, 6, 6, true}, {1, 7, 6, true}, {1, 24, 6, true}, {1, 3, 3, true}, {6, 4, 6, false}, {20, 8, 18, false}, {100, 5, 20, false},
	} {
		drives := testDrives(c.servers, c.perServer, c.byDrive)
		pgs, next := BuildPGs(nil, drives, c.width, 1)
		if len(pgs) < len(drives) || int(next) != len(pgs)+1 {
			t.Fatalf("%+v: %d groups, next id %d", c, len(pgs), next)
		}
		checkPGs(t, pgs, drives, c.width, 0)
		again, _ := BuildPGs(pgs, drives, c.width, next)
		if !equalPGs(pgs, again) {
			t.Fatalf("%+v: building again changed groups", c)
		}
	}
}

// Claim: the largest cluster of the design is built in a bounded time.
func TestPGsLargeCluster(t *testing.T) {
	drives := testDrives(1000, 20, false)
	pgs, _ := BuildPGs(nil, drives, 18, 1)
	checkPGs(t, pgs, drives, 18, 0)
}

// Claim: new drives leave the groups that exist alone and come into new ones; a failed drive is replaced only in its places.
func TestPGsStable(t *testing.T) {
	drives := testDrives(1, 8, true)
	before, next := BuildPGs(nil, drives, 6, 1)
	more := testDrives(1, 10, true)
	after, next2 := BuildPGs(before, more, 6, next)
	if !equalPGs(before, after[:len(before)]) {
		t.Fatal("groups that existed were changed")
	}
	if int(next2-next) != len(after)-len(before) || len(after) != 10*PGsPerDrive {
		t.Fatalf("%d groups, next id %d -> %d", len(after), next, next2)
	}
	left := slices.DeleteFunc(slices.Clone(more), func(d Drive) bool { return d.ID == 3 })
	repaired, _ := BuildPGs(after, left, 6, next2)
	for i, pg := range repaired {
		for pos, d := range pg.Drives {
			if old := after[i].Drives[pos]; d == 3 || d != old && old != 3 {
				t.Fatalf("group %d: %v became %v", pg.ID, after[i].Drives, pg.Drives)
			}
		}
	}
	checkPGs(t, repaired, left, 6, 8)
}

// Claim: too few domains give no groups rather than groups that lie.
func TestPGsTooFewDomains(t *testing.T) {
	if pgs, next := BuildPGs(nil, testDrives(1, 5, true), 6, 1); len(pgs) != 0 || next != 1 {
		t.Fatalf("%v, %d", pgs, next)
	}
}
