//go:build crake_next

package wire

// Next, embedded at the end of a message, is what the next version adds to it: see versions.go. Of the message itself the sender fills
// it; in nested structs it is zero.
//
// wire:fixed
type Next struct {
	From ProcID // who sent the message; zero: the sender speaks no version that has it
	Mark uint64 // depends on From and on the method, so that it cannot be the field of another message
}

// NextOf gives the field of a message of a method, sent by a process.
func NextOf(from ProcID, method Method) Next {
	return Next{From: from, Mark: (uint64(from)<<16 | uint64(method)) * 0x9e3779b97f4a7c15}
}

// AddedNext gives the field itself, for messages that embed it.
func (n *Next) AddedNext() *Next { return n }

// Grown is a message to which the next version adds a field.
type Grown interface {
	Message
	AddedNext() *Next
}

// MNextEcho is what the next version adds to the methods; every process answers it. The number stays reserved for this.
const MNextEcho Method = 0x7e01 // NextEcho -> NextEcho

// NextEcho comes back as it was sent.
//
// wire:message
type NextEcho struct {
	From  ProcID // who asks
	Text  string // any
	Marks []Next // any
}

// GrownRequest gives an empty request of a method, or nil when the next version adds nothing to it.
func GrownRequest(method Method) Grown {
	switch method {
	case MDrivePut:
		return &PutReq{}
	case MDriveAppend:
		return &AppendReq{}
	case MDriveRead:
		return &ReadReq{}
	case MGetAttr:
		return &GetAttrReq{}
	case MWrite:
		return &WriteReq{}
	case MRecall:
		return &RecallReq{}
	case MTxnPrepare:
		return &TxnPrepareReq{}
	case MHeartbeat:
		return &HeartbeatReq{}
	}
	return nil
}
