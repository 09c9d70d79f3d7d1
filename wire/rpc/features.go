package rpc

// Features are what two processes may use beyond the protocol's version, because of what they are and where they run. Each side sets in
// its hello the bits of what it can and may do; what both have set is used on the connection. Bits are never reused; one that
// this software does not know is ignored, and so never used.
type Features uint64

// The bits.
const (
	FeatureShm   Features = 1 << 0 // data passes by reference to shared memory (docs/decisions/0007)
	FeatureProof Features = 1 << 1 // both sides prove who they are (docs/decisions/0008)

	knownFeatures = FeatureShm | FeatureProof
)

// offered gives the features that a side with these options sets in its hello: so far none is built.
func (o *Options) offered() Features { return 0 }

// agreed gives the features that both sides of a connection have set and this software knows.
func agreed(own, peer *hello) Features { return Features(own.features&peer.features) & knownFeatures }
