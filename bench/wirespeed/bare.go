package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/crakefs/crake/wire/spin"
)

// A bare request begins with its length and that of the answer wanted.
const bareHeadBytes = 8

// bareAsker asks with nothing of ours.
type bareAsker struct {
	c               net.Conn
	request, answer []byte
	spin            *spin.Spinner
}

func (c benchCase) dialBare(path string, s *spin.Spinner) (asker, error) {
	nc, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	in, out := c.bareBytes()
	b := &bareAsker{c: nc, request: make([]byte, in), answer: make([]byte, out), spin: s}
	binary.LittleEndian.PutUint32(b.request, uint32(in))
	binary.LittleEndian.PutUint32(b.request[4:], uint32(out))
	return b, nil
}

func (b *bareAsker) ask(context.Context) error {
	if _, err := b.c.Write(b.request); err != nil {
		return err
	}
	_, err := io.ReadFull(b.c, b.answer)
	b.spin.Note()
	return err
}

func (b *bareAsker) allocs(context.Context) (uint64, error) { return 0, nil } // there are none

func (b *bareAsker) close() error { return b.c.Close() }

// serveBare answers one connection until it ends.
func serveBare(ctx context.Context, path string, s *spin.Spinner) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	c, err := l.Accept()
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	buf := make([]byte, maxBareBytes)
	for {
		if _, err := io.ReadFull(c, buf[:bareHeadBytes]); err != nil {
			<-ctx.Done() // the asker has gone; we end when we are told to
			return nil
		}
		in, out := binary.LittleEndian.Uint32(buf), binary.LittleEndian.Uint32(buf[4:])
		if in < bareHeadBytes || max(in, out) > maxBareBytes {
			return fmt.Errorf("bare exchange of %d and %d bytes", in, out)
		}
		if _, err := io.ReadFull(c, buf[bareHeadBytes:in]); err != nil {
			return ignoreEnd(ctx, err)
		}
		s.Note()
		if _, err := c.Write(buf[:out]); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
}

// ignoreEnd forgets an error after ctx has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
