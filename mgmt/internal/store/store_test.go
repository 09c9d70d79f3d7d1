package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// TestMain makes this binary play a process that writes until it is killed: "writer DIR".
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "writer" {
		s, err := Open(context.Background(), os.Args[2], quiet)
		if err == nil {
			err = s.Lead(context.Background(), "server 1")
		}
		for i := 1; err == nil; i++ {
			doc := []byte(fmt.Sprint(i))
			if err = s.Save(context.Background(), map[string][]byte{"a": doc, "b": doc}, nil); err == nil {
				fmt.Println(i) // acknowledged
			}
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Claim: what was saved is there after kill -9, whole, and the next run of the server leads at once, not after the dead one's
// time to live.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		cmd := exec.Command("/proc/self/exe", "writer", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := 0
		for acked < 20 {
			if _, err := fmt.Fscanln(out, &acked); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Process.Kill()
		for {
			if _, err := fmt.Fscanln(out, &acked); err != nil {
				break
			}
		}
		_ = cmd.Wait()
		s := open(t, dir)
		docs, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		if _, err := fmt.Sscan(string(docs["a"]), &got); err != nil || got < acked || got > acked+1 || string(docs["b"]) != string(docs["a"]) {
			t.Fatalf("a=%s b=%s, acknowledged %d, %v", docs["a"], docs["b"], acked, err)
		}
		began := time.Now()
		if err := s.Lead(t.Context(), "server 1"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("leads after %v", d)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Claim: only the leader's writes count.
func TestOnlyLeaderSaves(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Lead(t.Context(), "server 1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), map[string][]byte{"a": []byte("1"), "gone": []byte("x")}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), nil, []string{"gone"}); err != nil {
		t.Fatal(err)
	}
	// Somebody ends our term.
	if _, err := s.cl.Delete(t.Context(), s.lead.Key()); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), map[string][]byte{"a": []byte("2")}, nil); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("saved without the lead: %v", err)
	}
	docs, err := s.Load(t.Context())
	if err != nil || !maps.EqualFunc(docs, map[string][]byte{"a": []byte("1")}, slices.Equal) {
		t.Fatalf("%v, %v", docs, err)
	}
}

// Claim: another server's lead is not taken from it.
func TestOtherLeads(t *testing.T) {
	s := open(t, t.TempDir())
	lease, err := s.cl.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.cl.Put(t.Context(), leaderPrefix+"/1", "server 2", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Lead(ctx, "server 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("leads beside another: %v", err)
	}
}

// Claim: events are kept in order, the oldest dropped.
func TestEvents(t *testing.T) {
	s := open(t, t.TempDir())
	var list []StoredEvent
	for i := range 30 {
		list = append(list, StoredEvent{ID: uint64(i + 1), Type: "t", Text: fmt.Sprint(i)})
	}
	if err := s.SaveEvents(t.Context(), list[:20], 0); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveEvents(t.Context(), list[20:], 12); err != nil {
		t.Fatal(err)
	}
	got, err := s.LoadEvents(t.Context())
	if err != nil || !slices.Equal(got, list[12:]) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := s.cl.Put(t.Context(), eventKey(31), "{"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadEvents(t.Context()); err == nil {
		t.Fatal("damaged event accepted")
	}
}
