package member

import (
	"cmp"
	"slices"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// links sums up the connections of the process by peer and transport, in that order. Those with mgmt and with tools are left out: no
// data goes there.
func links(conns []*rpc.Conn) []wire.LinkStat {
	type key struct {
		peer      wire.ProcID
		transport string
	}
	sums := map[key]*wire.LinkStat{}
	for _, c := range conns {
		peer := c.Peer()
		if peer.Role == wire.RoleMgmt || peer.Role == wire.RoleClient {
			continue
		}
		k := key{peer.Proc, c.Transport()}
		if sums[k] == nil {
			sums[k] = &wire.LinkStat{Peer: peer.Proc, Role: peer.Role, Transport: k.transport}
		}
		st := c.Stats()
		add(sums[k], wire.LinkStat{
			Conns: 1, SentInline: st.InlineSentBytes, SentByRef: st.LentBytes, ReceivedInline: st.InlineReceivedBytes,
			ReceivedByRef: st.BorrowedBytes, Loans: uint32(st.LoansOut), LoanBytes: uint64(st.LoansOutBytes),
		})
	}
	out := make([]wire.LinkStat, 0, len(sums))
	for _, s := range sums {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b wire.LinkStat) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Transport, b.Transport))
	})
	return bound(out)
}

// bound sums up what is over the limit of a heartbeat, by transport.
func bound(all []wire.LinkStat) []wire.LinkStat {
	if len(all) <= wire.MaxPeerLinks {
		return all
	}
	out := slices.Clone(all[:wire.MaxPeerLinks-maxTransports])
	var rest []wire.LinkStat
	for _, s := range all[len(out):] {
		i := slices.IndexFunc(rest, func(r wire.LinkStat) bool { return r.Transport == s.Transport })
		if i < 0 {
			i = len(rest)
			rest = append(rest, wire.LinkStat{Transport: s.Transport})
		}
		add(&rest[i], s)
	}
	return append(out, rest...)
}

// add adds the numbers of a link to another.
func add(to *wire.LinkStat, s wire.LinkStat) {
	to.Conns += s.Conns
	to.SentInline += s.SentInline
	to.SentByRef += s.SentByRef
	to.ReceivedInline += s.ReceivedInline
	to.ReceivedByRef += s.ReceivedByRef
	to.Loans += s.Loans
	to.LoanBytes += s.LoanBytes
}
