// Package format is the drive's layout on its device: superblock, journal batches, checkpoints and the records in both,
// as ../../FORMAT.md draws them, one struct a file. It encodes, decodes and checks; it does no IO but for Inspect, which
// looks at a device before it is formatted. Bytes that are not what they should be give a *wire.Error of KindCorrupt.
package format

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

// Version is the version of the whole layout, in every structure.
type Version uint16

// The versions. A drive reads all of them and writes the newest.
const (
	Version1 Version = 1 // the first
)

// CurrentVersion is what is written.
const CurrentVersion = Version1

// BlockSize is the unit of the layout, in bytes.
const BlockSize = wire.BlockSize

var le = binary.LittleEndian

// sum2 hashes two stretches of bytes as one: cheaper than a streaming digest.
func sum2(a, b []byte) uint64 {
	return xxhash.Sum64(a)*0x9e3779b97f4a7c15 ^ xxhash.Sum64(b)
}

func corrupt(what, format string, args ...any) error {
	return wire.Errorf("drive.format", wire.KindCorrupt, what, format, args...)
}
