package rpc

// Transports, as Conn.Transport tells them.
const (
	TransportShm  = "shm"
	TransportUnix = "unix"
	TransportTCP  = "tcp"
	TransportTLS  = "tcp+tls" // encrypted
	TransportMem  = "mem"
)

// ConnStats counts what a connection has carried since it began, and what is lent now. All bytes are of data sections.
type ConnStats struct {
	InlineSentBytes     uint64 // through the socket
	InlineReceivedBytes uint64
	LentBytes           uint64 // sent by reference
	BorrowedBytes       uint64 // received by reference
	LoansOut            int    // frames whose data the peer has and has not given back
	LoansOutBytes       int    // memory that they hold, of this process and passed on; of an ended connection: in quarantine
}

// Transport tells how data passes: "shm" (by reference), "unix", "tcp", "tcp+tls" (encrypted) or "mem".
func (c *Conn) Transport() string {
	s := c.s
	if n, ok := s.(*namedStream); ok {
		s = n.stream
	}
	if _, ok := s.(*tlsStream); ok {
		return TransportTLS
	}
	k := socketOf(c.s)
	switch {
	case k == nil:
		return TransportMem
	case c.shm.on():
		return TransportShm
	case k.unix():
		return TransportUnix
	}
	return TransportTCP
}

// Stats tells what the connection has carried.
func (c *Conn) Stats() ConnStats {
	st := ConnStats{InlineSentBytes: c.w.txData.Load(), InlineReceivedBytes: c.landed.Load()}
	if c.shm != nil {
		st.LentBytes, st.BorrowedBytes = c.shm.lend.sentBytes.Load(), c.shm.borrow.receivedBytes.Load()
		st.LoansOut, st.LoansOutBytes = c.shm.lend.state()
	}
	return st
}
