package wire

import (
	"fmt"
	"runtime"
	"strings"
)

// callers records where an allocation or release was made.
func callers() []uintptr {
	pcs := make([]uintptr, 16)
	return pcs[:runtime.Callers(3, pcs)]
}

func stackText(pcs []uintptr) string {
	var s strings.Builder
	frames := runtime.CallersFrames(pcs)
	for {
		f, more := frames.Next()
		fmt.Fprintf(&s, "\t%s %s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return s.String()
		}
	}
}

// poison overwrites released memory, so that who still uses it finds nonsense rather than luck.
func poison(b []byte) {
	b[0] = 0xdb
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}
