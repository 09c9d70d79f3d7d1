// Package procfs tells what several parts need to know of a process from the system: its memory, and the cores it may use.
package procfs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// RSS gives the resident memory of a process in bytes, 0 when it is not known.
func RSS(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
