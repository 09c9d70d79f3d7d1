package meta

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// modelNode is an inode of the model filesystem.
type modelNode struct {
	ino    wire.Ino
	dir    bool
	parent *modelNode
	kids   map[string]*modelNode
	nlink  int
}

type model struct {
	root *modelNode
	dirs []*modelNode // that have a name
}

func (m *model) create(d *modelNode, name string, dir bool) wire.Kind {
	if d.kids[name] != nil {
		return wire.KindExists
	}
	n := &modelNode{dir: dir, parent: d, nlink: 1}
	if dir {
		n.kids = map[string]*modelNode{}
		m.dirs = append(m.dirs, n)
	}
	d.kids[name] = n
	return wire.KindNone
}

func (m *model) drop(n *modelNode) {
	n.nlink--
	for i, d := range m.dirs {
		if d == n {
			m.dirs = append(m.dirs[:i], m.dirs[i+1:]...)
			break
		}
	}
}

func (m *model) unlink(d *modelNode, name string, dir bool) wire.Kind {
	n := d.kids[name]
	switch {
	case n == nil:
		return wire.KindNotFound
	case dir && !n.dir:
		return wire.KindNotDir
	case !dir && n.dir:
		return wire.KindIsDir
	case len(n.kids) > 0:
		return wire.KindNotEmpty
	}
	delete(d.kids, name)
	m.drop(n)
	return wire.KindNone
}

func (m *model) link(n, d *modelNode, name string) wire.Kind {
	switch {
	case d.kids[name] != nil:
		return wire.KindExists
	case n.dir:
		return wire.KindPermission
	}
	d.kids[name] = n
	n.nlink++
	return wire.KindNone
}

func (n *modelNode) below(top *modelNode) bool {
	for ; n != nil; n = n.parent {
		if n == top {
			return true
		}
	}
	return false
}

func (m *model) rename(from *modelNode, oldName string, to *modelNode, newName string, flags uint32) wire.Kind {
	a, b := from.kids[oldName], to.kids[newName]
	exchange := flags == wire.RenameExchange
	switch {
	case a == nil || exchange && b == nil:
		return wire.KindNotFound
	case flags == wire.RenameNoReplace && b != nil:
		return wire.KindExists
	case a == b:
		return wire.KindNone
	case !exchange && b != nil && a.dir && !b.dir:
		return wire.KindNotDir
	case !exchange && b != nil && !a.dir && b.dir:
		return wire.KindIsDir
	case a.dir && to.below(a) || exchange && b.dir && from.below(b):
		return wire.KindInvalid
	case !exchange && b != nil && len(b.kids) > 0:
		return wire.KindNotEmpty
	}
	if exchange {
		from.kids[oldName] = b
		b.parent = from
	} else {
		delete(from.kids, oldName)
		if b != nil {
			m.drop(b)
		}
	}
	to.kids[newName] = a
	a.parent = to
	return wire.KindNone
}

// tree describes the model as rig.tree does the buckets.
func (m *model) tree() string {
	var out []string
	var walk func(path string, d *modelNode)
	walk = func(path string, d *modelNode) {
		for name, n := range d.kids {
			p := path + "/" + name
			if n.dir {
				sub := 2
				for _, k := range n.kids {
					if k.dir {
						sub++
					}
				}
				out = append(out, fmt.Sprintf("%s %o nlink=%d size=%d", p, unix.S_IFDIR|0755, sub, len(n.kids)))
				walk(p, n)
			} else {
				out = append(out, fmt.Sprintf("%s %o nlink=%d size=0", p, unix.S_IFREG|0644, n.nlink))
			}
		}
	}
	walk("", m.root)
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// oneStep does a random operation in the model and on the buckets, and compares the answers.
func (m *model) oneStep(r *rig, rng *rand.Rand) (what string, want wire.Kind, err error) {
	dir := func() *modelNode { return m.dirs[rng.IntN(len(m.dirs))] }
	name := func() string { return string(rune('a' + rng.IntN(5))) }
	d, n := dir(), name()
	switch rng.IntN(10) {
	case 0, 1, 2, 3:
		isDir := rng.IntN(2) == 0 && len(m.dirs) < 12
		what, want = fmt.Sprintf("create %x/%s dir=%v", d.ino, n, isDir), m.create(d, n, isDir)
		mode := uint32(unix.S_IFREG | 0644)
		if isDir {
			mode = unix.S_IFDIR | 0755
		}
		var resp *wire.EntryResp
		if resp, err = r.tryCreate(r.opAcked(), d.ino, n, mode); err == nil && want == wire.KindNone {
			d.kids[n].ino = resp.Ino
		}
	case 4:
		isDir := rng.IntN(2) == 0
		what, want = fmt.Sprintf("unlink %x/%s dir=%v", d.ino, n, isDir), m.unlink(d, n, isDir)
		err = r.unlink(d.ino, n, isDir)
	case 5:
		var files []*modelNode
		for _, x := range m.dirs {
			for _, k := range x.kids {
				files = append(files, k)
			}
		}
		if len(files) == 0 {
			return "nothing", 0, nil
		}
		sort.Slice(files, func(i, j int) bool { return files[i].ino < files[j].ino })
		f := files[rng.IntN(len(files))]
		what, want = fmt.Sprintf("link %x to %x/%s", f.ino, d.ino, n), m.link(f, d, n)
		err = r.link(f.ino, d.ino, n)
	default:
		e, n2 := dir(), name()
		flags := []uint32{0, 0, wire.RenameNoReplace, wire.RenameExchange}[rng.IntN(4)]
		what, want = fmt.Sprintf("rename %x/%s %x/%s %d", d.ino, n, e.ino, n2, flags), m.rename(d, n, e, n2, flags)
		err = r.rename(d.ino, n, e.ino, n2, flags)
	}
	return what, want, err
}

// Random operations by one client against a model filesystem, while buckets crash at random steps: every answer is that
// of the model, which does each operation exactly once; after each round the trees and all records agree.
func TestModelWithCrashes(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 2))
			r := newRig(t, 2+int(seed%3), rigOptions{})
			root := &modelNode{ino: r.makeRoot(), dir: true, kids: map[string]*modelNode{}, nlink: 1}
			m := &model{root: root, dirs: []*modelNode{root}}
			defer r.nurse()()
			crashes := 0
			for i := range 400 {
				hit := func() string { return "" }
				if rng.IntN(3) == 0 {
					r.mu.Lock()
					r.keep = []int{0, 50, 100}[rng.IntN(3)]
					r.mu.Unlock()
					hit = r.crashAt(1+rng.IntN(12), rng.IntN(3) == 0)
				}
				what, want, err := m.oneStep(r, rng)
				r.disarm()
				if hit() != "" {
					crashes++
				}
				if wire.KindOf(err) != want {
					t.Fatalf("seed %d step %d: %s: %v, want %v; crash at %q", seed, i, what, err, want, hit())
				}
				if i%40 == 39 {
					r.settle()
					if got, want := r.tree(), m.tree(); got != want {
						t.Fatalf("seed %d step %d: %s:\n%s\n\nwant:\n%s", seed, i, what, got, want)
					}
					r.check()
				}
			}
			if crashes < 20 {
				t.Errorf("only %d crashes", crashes)
			}
		})
	}
}

// Many clients at once in few directories, with and without crashes: no deadlock, and all records agree at the end.
func TestConcurrentNamespace(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			r := newRig(t, 3, rigOptions{})
			root := r.makeRoot()
			dirs := []wire.Ino{root}
			for i := range 4 {
				dirs = append(dirs, r.dir(dirs[i/2], fmt.Sprintf("dir%d", i)))
			}
			stop := r.nurse()
			var wg sync.WaitGroup
			for c := range 8 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					rng := rand.New(rand.NewPCG(uint64(c), 3))
					for range 150 {
						if crash && rng.IntN(40) == 0 {
							r.crashAt(1+rng.IntN(10), rng.IntN(4) == 0)
						}
						randomOp(t, r, rng, dirs)
					}
				}()
			}
			wg.Wait()
			r.disarm()
			stop()
			r.settle()
			r.check()
		})
	}
}

func randomOp(t *testing.T, r *rig, rng *rand.Rand, dirs []wire.Ino) {
	d, e := dirs[rng.IntN(len(dirs))], dirs[rng.IntN(len(dirs))]
	n, n2 := fmt.Sprint(rng.IntN(6)), fmt.Sprint(rng.IntN(6))
	var err error
	switch rng.IntN(8) {
	case 0, 1:
		_, err = r.tryCreate(r.op(), d, n, unix.S_IFREG|0644)
	case 2:
		_, err = r.tryCreate(r.op(), d, n, unix.S_IFDIR|0755)
	case 3:
		err = r.unlink(d, n, rng.IntN(2) == 0)
	case 4: // the directories themselves, which have names like dir0
		i := rng.IntN(4)
		err = r.rename(d, fmt.Sprintf("dir%d", i), e, fmt.Sprintf("dir%d", i), 0)
	case 5:
		if l, lerr := r.lookupRetry(d, n); lerr == nil {
			err = r.link(l.Ino, e, n2)
		}
	default:
		err = r.rename(d, n, e, n2, []uint32{0, wire.RenameNoReplace, wire.RenameExchange}[rng.IntN(3)])
	}
	switch wire.KindOf(err) {
	case wire.KindNone, wire.KindExists, wire.KindNotFound, wire.KindNotEmpty, wire.KindIsDir, wire.KindNotDir, wire.KindInvalid,
		wire.KindPermission:
	default:
		t.Errorf("%v", err)
	}
}

func (r *rig) lookupRetry(parent wire.Ino, name string) (resp *wire.EntryResp, err error) {
	err = r.retry(parent.Bucket(), func(b *Bucket) error {
		var e error
		resp, e = b.Lookup(ctxT(r.t), &wire.LookupReq{Session: r.session, Parent: parent, Name: name})
		return e
	})
	return resp, err
}
