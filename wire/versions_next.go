//go:build crake_next

package wire

import "os"

// The versions that the next release speaks. With CRAKE_FAR in its environment a process is of a release of the far future, which has
// dropped all of today's.
var LowestVersion, HighestVersion = func() (lowest, highest uint16) {
	if os.Getenv("CRAKE_FAR") != "" {
		return VersionNext + 1, VersionNext + 3
	}
	return Version1, VersionNext
}()
