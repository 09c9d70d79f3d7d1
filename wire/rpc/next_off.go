//go:build !crake_next

package rpc

import (
	"sync"

	"github.com/crakefs/crake/wire"
)

// What the test build of the next version does on every connection (next_on.go, wire/versions.go); in this build nothing.

func (c *Conn) startNext(*sync.WaitGroup) {}

func (c *Conn) sendNext(_ wire.Method, m wire.Message) wire.Message { return m }

func (c *Conn) gotNext(*Call) {}
