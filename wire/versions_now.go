//go:build !crake_next

package wire

// The versions that this software speaks.
const (
	LowestVersion  = Version1
	HighestVersion = Version1
)
