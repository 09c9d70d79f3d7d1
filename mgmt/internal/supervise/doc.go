// Package supervise is the process runtime: it starts the role processes of this server, pinned to their cores, watches
// them by pidfd, starts them again with backoff, and stops them in order. They are not tied to the life of the
// supervisor: the next one finds and adopts them.
package supervise
