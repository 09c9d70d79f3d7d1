package dump

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/crakefs/crake/wire"
)

// Filter chooses frames; all that is set must fit. The zero Filter takes everything.
type Filter struct {
	Methods []wire.Method // one of these
	ID      *uint64       // of the request
	Trace   *uint64
	Errors  bool // only answers with an error
}

// match says whether an event is wanted. method is that of the request that the frame belongs to.
func (f *Filter) match(e *Event, method wire.Method) bool {
	if e.Type != TypeFrame {
		return true
	}
	h := &e.Header
	switch {
	case len(f.Methods) > 0 && !slices.Contains(f.Methods, method),
		f.ID != nil && *f.ID != h.ID,
		f.Trace != nil && *f.Trace != h.Trace,
		f.Errors && (h.Kind != wire.FrameResponse || h.Status == wire.KindNone):
		return false
	}
	return true
}

// ParseMethod reads a method's name, such as DriveRead, in upper or lower case, or its number, such as 0x0104.
func ParseMethod(s string) (wire.Method, error) {
	if n, err := strconv.ParseUint(s, 0, 16); err == nil {
		return wire.Method(n), nil
	}
	var near []string
	for _, m := range wire.Methods() {
		info, _ := m.Info()
		if strings.EqualFold(info.Name, s) {
			return m, nil
		}
		if strings.Contains(strings.ToLower(info.Name), strings.ToLower(s)) {
			near = append(near, info.Name)
		}
	}
	if len(near) > 0 {
		return 0, fmt.Errorf("no method %q; there are %s", s, strings.Join(near, ", "))
	}
	return 0, fmt.Errorf("no method %q; wire/MESSAGES.md lists them", s)
}

// methodName gives the name of a method, or its number.
func methodName(m wire.Method) string {
	if info, ok := m.Info(); ok {
		return info.Name
	}
	return fmt.Sprintf("0x%04x", uint16(m))
}
