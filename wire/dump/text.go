package dump

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/crakefs/crake/wire"
)

func (p *printer) text(e *Event, method wire.Method, took time.Duration) error {
	var err error
	switch e.Type {
	case TypeConn:
		h := &e.Hello
		_, err = fmt.Fprintf(p.w, "# connection %d: %s, software %q, versions %d to %d, window %d requests and %d bytes, features %#x%s%s\n", e.Conn,
			e.From, h.Version, h.Lowest, h.Highest, h.WindowRequests, h.WindowBytes, h.Features, prefixed(", at ", e.Name), prefixed(", refuses: ", refusal(h.Status)))
	case TypeLost:
		_, err = fmt.Fprintf(p.w, "# %s lost: the capture could not follow\n", plural(e.Lost, "record"))
	case TypeProof:
		_, err = fmt.Fprintf(p.w, "# proof: %s\n", e.Text)
	case TypeEnd:
		_, err = fmt.Fprintf(p.w, "# end: %s\n", e.Text)
	case TypeData:
		for i := 0; i < len(e.Data); i += 32 {
			fmt.Fprintf(p.w, "    %04x  %s\n", i, hex.EncodeToString(e.Data[i:min(i+32, len(e.Data))]))
		}
		if e.Whole > len(e.Data) {
			_, err = fmt.Fprintf(p.w, "    ... of %d bytes\n", e.Whole)
		}
	case TypeFrame:
		m, merr := message(e, method)
		if _, err = fmt.Fprintln(p.w, line(e, method, took, m)); err != nil || !p.o.Messages {
			return err
		}
		if merr != nil {
			fmt.Fprintf(p.w, "    %v\n", merr)
		} else if m != nil {
			printFields(p.w, reflect.ValueOf(m).Elem(), "    ")
		}
		for i, r := range references(e) {
			fmt.Fprintf(p.w, "    reference %d: arena %d, offset %d, %d bytes\n", i, r.Arena, r.Offset, r.Len)
		}
	}
	return err
}

// line describes a frame.
func line(e *Event, method wire.Method, took time.Duration, m wire.Message) string {
	h := &e.Header
	var b strings.Builder
	if e.Time.IsZero() {
		fmt.Fprintf(&b, "byte %-10d", e.At)
	} else {
		b.WriteString(e.Time.Format("15:04:05.000000"))
	}
	fmt.Fprintf(&b, "  %s > %s  %s", orUnknown(e.From), orUnknown(e.To), kindName(h.Kind))
	if method != 0 {
		fmt.Fprintf(&b, " %s", methodName(method))
	}
	if h.Kind == wire.FrameRelease {
		fmt.Fprintf(&b, " of %d loans", len(released(e)))
	} else {
		fmt.Fprintf(&b, " id %d", h.ID)
	}
	for _, f := range []struct {
		name  string
		value uint64
	}{{"epoch", uint64(h.Epoch)}, {"gen", uint64(h.Generation)}, {"meta", uint64(h.MetaBytes)}, {"data", uint64(h.DataBytes)}} {
		if f.value != 0 {
			fmt.Fprintf(&b, " %s %d", f.name, f.value)
		}
	}
	if h.DeadlineMs != 0 {
		fmt.Fprintf(&b, " within %d ms", h.DeadlineMs)
	}
	if h.Trace != 0 {
		fmt.Fprintf(&b, " trace %x", h.Trace)
	}
	if names := flagNames(h.Flags); len(names) > 0 {
		fmt.Fprintf(&b, " %s", strings.Join(names, " "))
	}
	if n := len(references(e)); n > 0 {
		fmt.Fprintf(&b, " in %s", plural(uint64(n), "part"))
	}
	if took >= 0 {
		fmt.Fprintf(&b, " after %v", took.Round(time.Microsecond))
	}
	if h.Status != wire.KindNone {
		fmt.Fprintf(&b, " ERROR %s", h.Status.Error())
		if body, ok := m.(*wire.ErrorBody); ok {
			fmt.Fprintf(&b, " (%s)", strings.Join(strings.Fields(body.Op+" "+body.ID+": "+body.Text), " "))
		}
	}
	return b.String()
}

func orUnknown(s string) string {
	if s == "" {
		return "?"
	}
	return s
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func refusal(k wire.Kind) string {
	if k == wire.KindNone {
		return ""
	}
	return k.Error()
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
