package dump

import (
	"fmt"
	"io"
	"time"

	"github.com/crakefs/crake/wire"
)

// Options say what is printed, and how.
type Options struct {
	Filter
	Messages bool // with the fields of messages, and the data that was kept
	JSON     bool // an object a line; with messages always
}

// Print prints the events of r until its end. The error names the offset of what could not be read; what comes before is printed.
// flush, if not nil, is called when the input may pause.
func Print(w io.Writer, r io.Reader, o Options, flush func() error) error {
	s, err := Open(r)
	if err != nil {
		return err
	}
	p := &printer{w: w, o: o, pairs: pairs{}}
	if origin, ok := s.Origin(); ok && !o.JSON {
		fmt.Fprintf(w, "# capture of %s (%s), begun %s\n", origin.Name, who(origin.Role, origin.Proc), origin.Start.Format(time.RFC3339))
	}
	for {
		if flush != nil && s.Waits() {
			if err := flush(); err != nil {
				return err
			}
		}
		e, err := s.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := p.event(e); err != nil {
			return err
		}
	}
}

type printer struct {
	w     io.Writer
	o     Options
	pairs pairs
	last  map[call]bool // by connection and way: the last frame was printed, so its data is too
}

func (p *printer) event(e *Event) error {
	a, paired := p.pairs.see(e)
	method := e.Header.Method
	if paired && method == 0 {
		method = a.method
	}
	way := call{conn: e.Conn, sent: e.Sent}
	switch e.Type {
	case TypeFrame:
		if p.last == nil {
			p.last = map[call]bool{}
		}
		wanted := p.o.match(e, method)
		p.last[way] = wanted
		if !wanted {
			return nil
		}
	case TypeData:
		if !p.last[way] || !p.o.Messages && !p.o.JSON {
			return nil
		}
	}
	took := time.Duration(-1)
	if paired && e.Header.Kind == wire.FrameResponse && !e.Time.IsZero() {
		took = e.Time.Sub(a.at)
	}
	if p.o.JSON {
		return p.json(e, method, took)
	}
	return p.text(e, method, took)
}
