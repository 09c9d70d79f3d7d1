package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

var (
	origin  = Origin{Role: wire.RoleDrive, Proc: 7, Cluster: wire.ClusterID{1, 2, 3}, Name: "drive6"}
	connOne = ConnInfo{Own: bytes.Repeat([]byte{'o'}, 128), Peer: bytes.Repeat([]byte{'p'}, 128), Version: 1, Name: "compute 3 at unix:/x"}
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// all reads the records of a capture up to its end.
func all(t *testing.T, r io.Reader) (o Origin, out []Record) {
	t.Helper()
	rd, err := NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	for {
		rec, err := rd.Next()
		if err == io.EOF {
			return rd.Origin, out
		}
		if err != nil {
			t.Fatal(err)
		}
		rec.Body = bytes.Clone(rec.Body)
		out = append(out, rec)
	}
}

// capturing runs f while a file is written, and gives it. f begins when frames are kept.
func capturing(t *testing.T, tap *Tap, f func()) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tap.File(ctx, path) }()
	waitLooked(t, tap, 1)
	f()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// waitLooked waits until so many look.
func waitLooked(t *testing.T, tap *Tap, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s := tap.sinks.Load(); s == nil && want == 0 || s != nil && len(*s) == want {
			return
		}
	}
	t.Fatalf("not %d look", want)
}

// Claim: what a connection sends and receives is in the capture, in order, described once; data only where it was asked for; what is
// longer than the bound is cut and says so; what was before is not there.
func TestCapture(t *testing.T) {
	tap := New(origin)
	c, d := tap.Conn(&connOne), tap.Conn(&connOne)
	c.Frame(true, []byte("before"))
	long := bytes.Repeat([]byte("m"), MaxFrameBytes+5)
	b := capturing(t, tap, func() {
		c.Frame(true, []byte("head"), []byte("meta"))
		c.Data(true, wire.Data{{B: []byte("not asked for")}})
		c.Frame(false, long)
		d.Frame(false, []byte("other"))
	})
	o, got := all(t, bytes.NewReader(b))
	if o.Role != origin.Role || o.Proc != 7 || o.Cluster != origin.Cluster || o.Name != "drive6" || time.Since(o.Start) > time.Minute {
		t.Errorf("origin %+v", o)
	}
	want := []struct {
		kind Kind
		conn uint32
		sent bool
		body string
	}{
		{KindConn, 1, false, string(connOne.encode())}, {KindFrame, 1, true, "headmeta"}, {KindFrame, 1, false, string(long[:MaxFrameBytes])},
		{KindConn, 2, false, string(connOne.encode())}, {KindFrame, 2, false, "other"}, {KindEnd, 0, false, "the process ends"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Kind != w.kind || g.Conn != w.conn || g.Sent != w.sent || string(g.Body) != w.body {
			t.Errorf("record %d: %v of connection %d, sent %v, %d bytes", i, g.Kind, g.Conn, g.Sent, len(g.Body))
		}
		if g.Cut() != (i == 2) || i == 2 && g.Whole != len(long) {
			t.Errorf("record %d: cut %v, whole %d", i, g.Cut(), g.Whole)
		}
	}
	info, err := DecodeConn(got[0].Body)
	if err != nil || !bytes.Equal(info.Own, connOne.Own) || !bytes.Equal(info.Peer, connOne.Peer) || info.Name != connOne.Name || info.Version != 1 {
		t.Errorf("%+v, %v", info, err)
	}
}

// Claim: a nil Tap, and one at which nobody looks, costs no memory and does nothing.
func TestNobodyLooks(t *testing.T) {
	var none *Tap
	head, data := make([]byte, 64), wire.Data{{B: make([]byte, 10)}}
	for _, c := range []*Conn{none.Conn(&connOne), New(origin).Conn(&connOne)} {
		if n := testing.AllocsPerRun(100, func() { c.Frame(true, head); c.Data(false, data) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// Claim: somebody who looks costs no memory for each frame either.
func TestLookedAtAllocates(t *testing.T) {
	tap := New(origin)
	c, head := tap.Conn(&connOne), make([]byte, 200)
	capturing(t, tap, func() {
		c.Frame(true, head)
		if n := testing.AllocsPerRun(1000, func() { c.Frame(true, head) }); n > 1 { // memory for what waits grows now and then
			t.Errorf("%v allocations a frame", n)
		}
	})
}

// Claim: the socket gives the capture with as much data as was asked for; who closes ends it, and the frames cost nothing any more.
func TestServe(t *testing.T) {
	tap, path := New(origin), filepath.Join(t.TempDir(), "drive6.tap")
	stop := serve(t, tap, path)
	r, err := Look(t.Context(), path, 6)
	if err != nil {
		t.Fatal(err)
	}
	waitLooked(t, tap, 1)
	c := tap.Conn(&connOne)
	c.Frame(false, []byte("frame"))
	c.Data(false, wire.Data{{B: []byte("abcd")}, {B: []byte("efgh")}})
	rd, err := NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{string(connOne.encode()), "frame", "abcdef"} {
		rec, err := rd.Next()
		if err != nil || string(rec.Body) != want {
			t.Errorf("%q, want %q: %v", rec.Body, want, err)
		}
		if rec.Kind == KindData && (rec.Whole != 8 || !rec.Cut()) {
			t.Errorf("data of %d bytes", rec.Whole)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	waitLooked(t, tap, 0)
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// serve runs Serve until the test ends or the function given is called.
func serve(t *testing.T, tap *Tap, path string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tap.Serve(ctx, path, quiet()) }()
	for {
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			break
		}
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

// Claim: the process ends while somebody looks: the capture has its end, and Serve returns.
func TestServeEnds(t *testing.T) {
	tap, path := New(origin), filepath.Join(t.TempDir(), "x.tap")
	stop := serve(t, tap, path)
	r, err := Look(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	waitLooked(t, tap, 1)
	stop()
	if _, got := all(t, r); len(got) != 1 || got[0].Kind != KindEnd {
		t.Errorf("%+v", got)
	}
}

// Claim: too many, and who speaks something else or nothing, are turned away, and the others do not notice.
func TestServeRefuses(t *testing.T) {
	tap, path := New(origin), filepath.Join(t.TempDir(), "x.tap")
	serve(t, tap, path)
	var held []io.ReadCloser
	for i := range maxSinks {
		r, err := Look(t.Context(), path, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		held = append(held, r)
		waitLooked(t, tap, i+1)
	}
	r, err := Look(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != 0 || err != nil {
		t.Errorf("one too many got %d bytes, %v", n, err)
	}
	_ = r.Close()
	_ = held[0].Close()
	waitLooked(t, tap, maxSinks-1)
	for _, say := range []string{"GET / HTTP/1.0\r\n\r\n", "short"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, say)
		_ = c.(*net.UnixConn).CloseWrite()
		if n, _ := io.Copy(io.Discard, c); n != 0 {
			t.Errorf("%q got %d bytes", say, n)
		}
		_ = c.Close()
	}
	waitLooked(t, tap, maxSinks-1)
}

// Claim: the socket of a process that was killed is replaced, that of a living one is not.
func TestServeReplacesStale(t *testing.T) {
	tap, path := New(origin), filepath.Join(t.TempDir(), "x.tap")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := tap.Serve(t.Context(), path, quiet()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a living socket: %v", err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	serve(t, tap, path)
}

// stuck is a writer that waits.
type stuck struct{ begun, goOn chan struct{} }

func (s *stuck) Write(b []byte) (int, error) {
	s.begun <- struct{}{}
	<-s.goOn
	return len(b), nil
}

// Claim: when the one who looks takes nothing, frames are kept up to a bound, then counted as lost; the count arrives when there is room.
func TestSlowSink(t *testing.T) {
	tap := New(origin)
	s := tap.newSink(0, 0)
	var out bytes.Buffer
	w := &stuck{begun: make(chan struct{}), goOn: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tap.drain(ctx, s, io.MultiWriter(w, &out)) }()
	<-w.begun
	c, frame := tap.Conn(&connOne), make([]byte, 60<<10)
	const sent = 3 * sinkBytes / (60 << 10)
	for range sent {
		c.Frame(true, frame)
	}
	s.mu.Lock()
	kept, lost := len(s.buf), s.lost
	s.mu.Unlock()
	if kept > sinkBytes || lost == 0 {
		t.Errorf("%d bytes wait, %d frames are lost", kept, lost)
	}
	w.goOn <- struct{}{}
	<-w.begun // what waited
	w.goOn <- struct{}{}
	c.Frame(true, []byte("last"))
	<-w.begun
	cancel()
	go func() {
		for range w.begun { // what is left
			w.goOn <- struct{}{}
		}
	}()
	w.goOn <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(w.begun)
	_, got := all(t, &out)
	frames, told := 0, uint64(0)
	for _, r := range got {
		switch r.Kind {
		case KindFrame:
			frames++
		case KindLost:
			told += binary.LittleEndian.Uint64(r.Body)
		}
	}
	if told != lost || frames+int(told) != sent+1 {
		t.Errorf("%d frames and %d told lost of %d, lost %d", frames, told, sent+1, lost)
	}
}

// Claim: a capture with a bound ends there, and says so.
func TestFileLimit(t *testing.T) {
	tap := New(origin)
	var out bytes.Buffer
	s := tap.newSink(0, 10<<10)
	done := make(chan error)
	go func() { done <- tap.drain(t.Context(), s, &out) }()
	waitLooked(t, tap, 1)
	c := tap.Conn(&connOne)
	for range 1000 {
		c.Frame(true, make([]byte, 100))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.Len() > 11<<10 {
		t.Errorf("%d bytes", out.Len())
	}
	_, got := all(t, &out)
	if last := got[len(got)-1]; last.Kind != KindEnd || !strings.Contains(string(last.Body), "longest") {
		t.Errorf("it ends with %+v", last)
	}
}

// sample makes a small capture.
func sample() []byte {
	s := New(origin).newSink(8, 0)
	c := &Conn{id: 3, info: connOne.encode()}
	s.add(c, &Record{Kind: KindFrame, Conn: 3, Sent: true, Time: time.Unix(1, 0)}, 100, [][]byte{[]byte("frame")})
	s.stop("enough")
	return s.buf
}

// Claim: a capture that is cut off anywhere gives the whole records before, then io.EOF or an error with the offset; nonsense is an error.
func TestReaderErrors(t *testing.T) {
	b := sample()
	ends := map[int]bool{headerBytes: true, len(b): true}
	rd, _ := NewReader(bytes.NewReader(b))
	for {
		if _, err := rd.Next(); err != nil {
			break
		}
		ends[int(rd.at)] = true
	}
	for n := range len(b) {
		rd, err := NewReader(bytes.NewReader(b[:n]))
		if n < headerBytes {
			if err == nil {
				t.Errorf("header of %d bytes", n)
			}
			continue
		}
		for err == nil {
			_, err = rd.Next()
		}
		if (err == io.EOF) != ends[n] || err != io.EOF && !strings.Contains(err.Error(), "record at byte ") {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	for at, with := range map[int]string{0: "X", 8: "\x02"} {
		c := bytes.Clone(b)
		copy(c[at:], with)
		if _, err := NewReader(bytes.NewReader(c)); err == nil {
			t.Errorf("byte %d: taken", at)
		}
	}
	binary.LittleEndian.PutUint32(b[headerBytes:], maxBodyBytes+1)
	rd, _ = NewReader(bytes.NewReader(b))
	if _, err := rd.Next(); err == nil || !strings.Contains(err.Error(), "record at byte 64") {
		t.Errorf("a giant record: %v", err)
	}
}

// FuzzReader: no bytes make the reader panic or take more memory than a record may have.
func FuzzReader(f *testing.F) {
	f.Add(sample())
	f.Fuzz(func(t *testing.T, b []byte) {
		rd, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		for {
			r, err := rd.Next()
			if err != nil {
				return
			}
			if r.Kind == KindConn {
				_, _ = DecodeConn(r.Body)
			}
		}
	})
}
