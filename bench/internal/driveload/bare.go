package driveload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The bare exchange shows what a unix socket between two cores costs with nothing of ours: bytes there and back, one request at a
// time, as many as a job's requests and answers have. A request begins with bareHeadBytes: its length and that of the answer wanted.
const (
	bareHeadBytes = 8
	// bareSmallBytes is about what a frame has beside its data.
	bareSmallBytes = 100
	// maxBareBytes bounds what a peer may ask for.
	maxBareBytes = 2 << 20
)

// bareSizes gives the bytes of a request and of its answer.
func (k Kind) bareSizes() (request, answer int) {
	if k.Writes() {
		return bareSmallBytes + k.Bytes(), bareSmallBytes
	}
	return bareSmallBytes, bareSmallBytes + k.Bytes()
}

// ServeBare answers bare exchanges at a path, one connection after the other, until ctx ends.
func ServeBare(ctx context.Context, path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			defer c.Close()
			_ = answerBare(c) // ends when the peer has gone
		})
	}
}

// answerBare answers until the connection ends.
func answerBare(c net.Conn) error {
	buf := make([]byte, maxBareBytes)
	for {
		if _, err := io.ReadFull(c, buf[:bareHeadBytes]); err != nil {
			return err
		}
		in, out := binary.LittleEndian.Uint32(buf), binary.LittleEndian.Uint32(buf[4:])
		if in < bareHeadBytes || max(in, out) > maxBareBytes {
			return fmt.Errorf("bare exchange of %d and %d bytes", in, out)
		}
		if _, err := io.ReadFull(c, buf[bareHeadBytes:in]); err != nil {
			return err
		}
		if _, err := c.Write(buf[:out]); err != nil {
			return err
		}
	}
}

// RunBare measures bare exchanges of a kind and gives how many a second there were.
func RunBare(ctx context.Context, path string, k Kind, duration time.Duration) (perSecond float64, err error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in, out := k.bareSizes()
	request, answer := make([]byte, in), make([]byte, out)
	binary.LittleEndian.PutUint32(request, uint32(in))
	binary.LittleEndian.PutUint32(request[4:], uint32(out))
	n, began := 0, time.Now()
	for time.Since(began) < duration {
		if _, err := c.Write(request); err != nil {
			return 0, errors.Join(ctx.Err(), err)
		}
		if _, err := io.ReadFull(c, answer); err != nil {
			return 0, errors.Join(ctx.Err(), err)
		}
		n++
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// BarePath gives where the bare exchange of an echo is served.
func BarePath(addr string) string { return addr[len("unix:"):] + ".bare" }

// serveBoth serves echo and bare exchange until ctx ends or one of them fails.
func serveBoth(ctx context.Context, addr string, echo func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bare := make(chan error, 1)
	go func() {
		defer cancel()
		bare <- ServeBare(ctx, BarePath(addr))
	}()
	err := echo(ctx)
	cancel()
	return errors.Join(err, <-bare)
}
