package rpc

import "testing"

// transport is one entry of the table of those that must pass the suite. A new transport adds one here, and nothing else.
type transport struct {
	name string
	// prepare sets w.addr, and in w.server and w.client what this transport needs beyond the usual.
	prepare func(t testing.TB, w *world)
}

var transports = []transport{
	{"unix", func(t testing.TB, w *world) { w.addr = "unix:" + t.TempDir() + "/s" }},
	{"tcp", func(_ testing.TB, w *world) { w.addr = "tcp:127.0.0.1:0" }},
	{"tcp+tls", func(_ testing.TB, w *world) {
		w.addr = "tcp:127.0.0.1:0"
		w.prove()
		w.server.TLS, w.client.TLS = true, true
	}},
	{"shm", func(t testing.TB, w *world) {
		w.addr = "unix:" + t.TempDir() + "/s"
		w.server.Shm, w.client.Shm = true, true
	}},
	{"mem", func(_ testing.TB, w *world) {
		m := NewMem()
		w.addr, w.server.Net, w.client.Net = "mem:s", m.Host("server"), m.Host("client")
	}},
}

// eachTransport runs f once for each transport, each time in a world of its own.
func eachTransport(t *testing.T, f func(t *testing.T, w *world)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) { f(t, newWorld(t, tr.name)) })
	}
}
