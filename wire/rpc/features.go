package rpc

// Features are what two processes may use beyond the protocol's version, because of what they are and where they run. Each side sets in
// its hello the bits of what it can and may do; what both have set is used on the connection. Bits are never reused; one that
// this software does not know is ignored, and so never used.
type Features uint64

// The bits.
const (
	// FeatureShm, on unix sockets only: a descriptor channel follows the handshake (shm_channel.go), and data may pass by reference
	// (docs/decisions/0007).
	FeatureShm Features = 1 << 0
	// FeatureProof: each side proves who it is right after the hellos (auth.go, docs/decisions/0008).
	FeatureProof Features = 1 << 1

	knownFeatures = FeatureShm | FeatureProof
)

// offered gives the features that a side with these options sets in its hello on a stream.
func (o *Options) offered(s stream) Features {
	var f Features
	if k := socketOf(s); o.Shm && o.Arena != nil && k != nil && k.unix() {
		f |= FeatureShm
	}
	if o.Identity != nil {
		f |= FeatureProof
	}
	return f
}

// agreed gives the features that both sides of a connection have set and this software knows.
func agreed(own, peer *hello) Features { return own.features & peer.features & knownFeatures }

// has reports whether all bits of which are set.
func (f Features) has(which Features) bool { return f&which == which }
