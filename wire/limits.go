package wire

// Limits of the protocol. Lengths from a peer are checked against these before anything is allocated.
const (
	// MaxMetaBytes bounds the meta section: a write of MaxDataBytes carries 8 bytes of checksum a block (16 KiB), a
	// cluster map of 20,000 drives some MiB.
	MaxMetaBytes = 8 << 20
	// MaxDataBytes bounds the data section of one frame: a few whole stripes, so that one frame cannot hold an arena.
	MaxDataBytes = 8 << 20
	// MaxNameBytes is the longest name of a directory entry, as Linux has it.
	MaxNameBytes = 255
	// MaxSymlinkBytes is the longest target of a symbolic link (PATH_MAX without the final zero).
	MaxSymlinkBytes = 4095
	// MaxXattrBytes is the longest value of an extended attribute, as Linux has it.
	MaxXattrBytes = 64 << 10
	// MaxXattrListBytes bounds the names of all extended attributes of one inode, as Linux has it.
	MaxXattrListBytes = 64 << 10
	// MaxFileBytes is the largest file: 4 PiB, as the design promises.
	MaxFileBytes = 4 << 50
	// MaxInlineBytes is the largest file that lies in its inode record.
	MaxInlineBytes = 2048
	// MaxLinks is the most names of one inode.
	MaxLinks = 1 << 20
	// MaxBuckets bounds the buckets of a cluster (16 bits in an inode number, all ones left free).
	MaxBuckets = 1<<16 - 1
	// MaxStripes bounds k+m: the position in a strip id has 6 bits.
	MaxStripes = 32
	// StripBytes is the largest strip of a stripe.
	StripBytes = 128 << 10
	// ShortStripeBytes is the least data that is encoded at once; less is mirrored in a segment.
	ShortStripeBytes = 64 << 10
	// RegionBytes is the part of a file that one bucket maps.
	RegionBytes = 4 << 20
	// MaxInFlight bounds the requests of one connection that are not answered yet.
	MaxInFlight = 1024
)
