package frontend

import (
	"context"
	"errors"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/wire"
)

// Client is a session in a filesystem without a mount, for tools.
type Client struct {
	m *member
}

// NewClient registers a process at mgmt, like a frontend with this Config but without Mount, and opens the filesystem. Close it.
func NewClient(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.validateClient(); err != nil {
		return nil, wire.E("frontend.client", wire.KindInvalid, cfg.Name, err)
	}
	m, err := join(ctx, cfg)
	if err != nil {
		return nil, err
	}
	m.ready.Store(true)
	return &Client{m: m}, nil
}

// Close ends the session.
func (c *Client) Close() error { return c.m.leave() }

// Root gives the root directory.
func (c *Client) Root() wire.Ino { return c.m.fs.Root() }

// ReadDir calls f for each entry of a directory, without "." and "..", until it gives false.
func (c *Client) ReadDir(ctx context.Context, dir wire.Ino, f func(e *wire.DirEntry) bool) error {
	return c.m.fs.OpenDir(dir).Read(ctx, core.FirstCookie, false, f)
}

// RemoveAll removes everything below a directory, and gives how many names that were. The directory stays.
func (c *Client) RemoveAll(ctx context.Context, dir wire.Ino) (int, error) {
	removed := 0
	for {
		var batch []wire.DirEntry
		err := c.ReadDir(ctx, dir, func(e *wire.DirEntry) bool {
			batch = append(batch, *e)
			return len(batch) < removeBatch
		})
		if err != nil || len(batch) == 0 {
			return removed, err
		}
		for i := range batch {
			n, err := c.remove(ctx, dir, &batch[i])
			removed += n
			if err != nil {
				return removed, err
			}
		}
	}
}

// removeBatch is how many names RemoveAll holds for each directory on its way.
const removeBatch = 256

func (c *Client) remove(ctx context.Context, dir wire.Ino, e *wire.DirEntry) (int, error) {
	const typeMask, typeDir = 0o170000, 0o040000
	var n int
	var err error
	if e.Type&typeMask == typeDir {
		if n, err = c.RemoveAll(ctx, e.Ino); err == nil {
			err = c.m.fs.Rmdir(ctx, dir, e.Name)
		}
	} else {
		err = c.m.fs.Unlink(ctx, dir, e.Name)
	}
	if errors.Is(err, wire.KindNotFound) {
		return n, nil // somebody else was faster
	}
	if err != nil {
		return n, err
	}
	return n + 1, nil
}
