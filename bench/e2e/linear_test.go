package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// What several clients see of a shared file and of shared names is linearizable, also while computes and drives are
// killed: every answer fits to one order of all operations, in which each takes place between its call and its return.
func TestLinearizable(t *testing.T) {
	c := start(t, devcluster.Options{})
	mounts := []string{c.Mount, addMount(t, c, "default")}
	r := random(t)
	var h history
	stop := make(chan struct{})
	var wg sync.WaitGroup
	must(t, os.WriteFile(filepath.Join(c.Mount, "register"), make([]byte, 8), 0o600))
	for client := range 6 {
		wg.Add(1)
		r := rand.New(rand.NewPCG(r.Uint64(), uint64(client)))
		go func() {
			defer wg.Done()
			if err := h.client(client, mounts[client%2], r, stop); err != nil {
				t.Error(err)
			}
		}()
	}
	for round := range 4 {
		time.Sleep(400 * time.Millisecond)
		role := []string{"compute", "drive"}[round%2]
		ps, err := c.Find(role)
		must(t, err)
		if p := ps[r.IntN(len(ps))]; p.PID != 0 {
			_, err := c.Kill(p.Name)
			must(t, err)
		}
	}
	time.Sleep(400 * time.Millisecond)
	close(stop)
	wg.Wait()
	for key, ops := range h.byKey() {
		switch res := porcupine.CheckOperationsTimeout(model, ops, 30*time.Second); res {
		case porcupine.Ok:
			t.Logf("%s: %d operations are linearizable", key, len(ops))
		default:
			t.Errorf("%s: %d operations: %v", key, len(ops), res)
		}
	}
}

// Kinds of operations. On the register: read, write. On a name: stat, create, remove.
const (
	opRead = iota
	opWrite
	opStat
	opCreate
	opRemove
)

// input is an operation on a key; value is what a write writes.
type input struct {
	key   string
	kind  int
	value uint64
}

// output is its answer: a value read, or whether the name was there.
type output struct {
	value uint64
	there bool
}

// model is a register (an uint64), or a name (0 absent, 1 there).
var model = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, in, out any) (bool, any) {
		s, i, o := state.(uint64), in.(input), out.(output)
		switch i.kind {
		case opRead:
			return o.value == s, s
		case opWrite:
			return true, i.value
		case opStat:
			return o.there == (s == 1), s
		case opCreate: // there: refused because it was
			return o.there == (s == 1), uint64(1)
		}
		return o.there == (s == 1), uint64(0) // remove
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// history is what was called and answered.
type history struct {
	mu  sync.Mutex
	ops []porcupine.Operation
}

func (h *history) byKey() map[string][]porcupine.Operation {
	out := map[string][]porcupine.Operation{}
	for _, op := range h.ops {
		k := op.Input.(input).key
		out[k] = append(out[k], op)
	}
	return out
}

// client does random operations until stop.
func (h *history) client(id int, mount string, r *rand.Rand, stop chan struct{}) error {
	f, err := os.OpenFile(filepath.Join(mount, "register"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for n := uint64(1); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		in := input{key: "register", kind: r.IntN(2), value: uint64(id+1)<<32 | n}
		if r.IntN(2) == 0 {
			in = input{key: fmt.Sprintf("name%d", r.IntN(3)), kind: opStat + r.IntN(3)}
		}
		call := time.Now().UnixNano()
		out, err := do(f, filepath.Join(mount, in.key), in)
		if err != nil {
			return fmt.Errorf("%+v: %w", in, err)
		}
		h.mu.Lock()
		h.ops = append(h.ops, porcupine.Operation{ClientId: id, Input: in, Call: call, Output: out, Return: time.Now().UnixNano()})
		h.mu.Unlock()
	}
}

// do runs one operation.
func do(f *os.File, path string, in input) (out output, err error) {
	var b [8]byte
	switch in.kind {
	case opRead:
		_, err = f.ReadAt(b[:], 0)
		return output{value: binary.LittleEndian.Uint64(b[:])}, err
	case opWrite:
		binary.LittleEndian.PutUint64(b[:], in.value)
		_, err = f.WriteAt(b[:], 0)
		return output{}, err
	case opStat:
		_, err = os.Lstat(path)
	case opCreate:
		var g *os.File
		if g, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			return output{}, g.Close()
		}
	case opRemove:
		err = os.Remove(path)
	}
	switch {
	case err == nil:
		return output{there: true}, nil
	case errors.Is(err, fs.ErrExist):
		return output{there: true}, nil
	case errors.Is(err, fs.ErrNotExist):
		return output{}, nil
	}
	return output{}, err
}
