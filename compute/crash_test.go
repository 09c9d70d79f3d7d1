package compute

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// isolate cuts a host off from everything, as kill -9 would for all others; what it still tries is lost or held.
func (c *cluster) isolate(host string, others ...string) {
	for _, o := range others {
		c.net.Partition(host, o)
		c.net.Break(host, o)
	}
}

// TestCrashes: compute processes vanish at random moments, one or both at once, while clients rename files between
// directories in different buckets, make and remove directories, and write. New runs take over. Every request is answered
// as if nothing had happened, and none waits for long; each file is in exactly one place; what was cut off in the middle is all or
// nothing. CRAKE_SEED chooses one seed.
func TestCrashes(t *testing.T) {
	first, count := uint64(0), uint64(3)
	if env := os.Getenv("CRAKE_SEED"); env != "" {
		if _, err := fmt.Sscan(env, &first); err != nil {
			t.Fatalf("CRAKE_SEED: %v", err)
		}
		count = 1
	}
	for seed := first; seed < first+count; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { crashes(t, seed) })
	}
}

func crashes(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 77))
	c := newCluster(t)
	hosts := map[wire.ProcID]string{11: "a0", 12: "b0"}
	runs := []*run{c.compute(11, "a0"), c.compute(12, "b0")}
	spread := func() {
		c.mgmt.assign(11, 0, 2)
		c.mgmt.assign(12, 1, 3)
	}
	spread()
	c.waitServed()
	c.makeRoot()
	const clients, tokens = 3, 4
	var cls []*client
	var dirs []wire.Ino
	for i := range clients {
		cl := c.client(wire.ProcID(21 + i))
		cls = append(cls, cl)
		dirs = append(dirs, cl.mustCreate(c.root, fmt.Sprintf("dir%d", i), modeDir))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	pace := newPace(t, clients)
	for i, cl := range cls {
		for k := range tokens {
			cl.mustCreate(dirs[0], fmt.Sprintf("t%d-%d", i, k), modeFile)
		}
		at := make([]int, tokens)
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for ; ; pace.did(i) {
				select {
				case <-stop:
					return
				default:
				}
				if err := cl.shuffle(rnd, i, dirs, at); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
	var old []*run
	for round := range 4 {
		time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
		which := [][]wire.ProcID{{11}, {12}, {11, 12}}[rnd.IntN(3)]
		for _, p := range which {
			c.isolate(hosts[p], "mgmt", "drives", "client21", "client22", "client23", hosts[23-p])
			old = append(old, runs[p-11])
		}
		for _, p := range which {
			hosts[p] = fmt.Sprintf("%c%d", 'a'+rune(p-11), round+1)
			runs[p-11] = c.compute(p, hosts[p])
		}
		if len(which) == 1 && rnd.IntN(2) == 0 {
			c.mgmt.assign(23 - which[0]) // the other takes all
		} else {
			spread()
		}
		c.waitServed()
	}
	after := pace.counts()
	for i := range cls {
		eventually(t, fmt.Sprintf("client %d gets on", i), func() bool { return pace.counts()[i] >= after[i]+10 || t.Failed() })
	}
	pace.end()
	close(stop)
	wg.Wait()
	for i, cl := range cls {
		var got []string
		for d := range dirs {
			for _, n := range cl.names(dirs[d]) {
				if n[0] == 't' && n[1] == byte('0'+i) {
					got = append(got, n)
				} else if n[0] != 't' {
					t.Errorf("left: %s", n)
				}
			}
		}
		slices.Sort(got)
		if len(got) != tokens || len(slices.Compact(got)) != tokens {
			t.Errorf("client %d: %v", i, got)
		}
	}
	for round := range 5 {
		for _, p := range []string{"a", "b"} {
			for _, o := range []string{"mgmt", "drives"} {
				c.net.Heal(fmt.Sprint(p, round), o)
			}
		}
	}
	for _, r := range old {
		if err := <-r.err; err != nil && !errors.Is(err, wire.KindStaleSession) {
			t.Errorf("an old run ends with %v", err)
		}
	}
}

// shuffle does one operation and checks what its answer says.
func (cl *client) shuffle(rnd *rand.Rand, me int, dirs []wire.Ino, at []int) error {
	k := rnd.IntN(len(at))
	name := fmt.Sprintf("t%d-%d", me, k)
	to := rnd.IntN(len(dirs))
	if rnd.IntN(4) == 0 {
		dir := fmt.Sprintf("d%d", me)
		if _, err := cl.create(dirs[to], dir, modeDir); err != nil {
			return fmt.Errorf("mkdir: %w", err)
		}
		if err := cl.try(dirs[to].Bucket(), wire.MUnlink, &wire.UnlinkReq{Op: cl.op(), Parent: dirs[to], Name: dir, Dir: true}, &wire.UnlinkResp{}); err != nil {
			return fmt.Errorf("rmdir: %w", err)
		}
		return nil
	}
	err := cl.try(dirs[at[k]].Bucket(), wire.MRename, &wire.RenameReq{
		Op: cl.op(), OldParent: dirs[at[k]], NewParent: dirs[to], OldName: name, NewName: name, Flags: wire.RenameNoReplace,
	}, &wire.RenameResp{})
	if at[k] == to && errors.Is(err, wire.KindExists) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("rename %s from %d to %d: %w", name, at[k], to, err)
	}
	at[k] = to
	if _, err := cl.lookup(dirs[to], name); err != nil {
		return fmt.Errorf("lookup %s in %d: %w", name, to, err)
	}
	return nil
}
