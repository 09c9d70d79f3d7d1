// Package machine tells on what a measurement was made.
package machine

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel gives the release of the running kernel, "" when it is not known.
func Kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Model gives what the processors call themselves, "" when that is not known.
func Model() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(info)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
