package dump

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/crakefs/crake/wire"
)

// jsonEvent is a line of JSON; keys never change meaning, and what is not known or zero is left out.
type jsonEvent struct {
	Type       Type           `json:"type"`
	Offset     int64          `json:"offset"`
	Time       *time.Time     `json:"time,omitempty"`
	Connection uint32         `json:"connection,omitempty"`
	From       string         `json:"from,omitempty"`
	To         string         `json:"to,omitempty"`
	At         string         `json:"at,omitempty"`
	Software   string         `json:"software,omitempty"`
	Versions   []uint16       `json:"versions,omitempty"`
	Features   uint64         `json:"features,omitempty"`
	Kind       string         `json:"kind,omitempty"`
	Method     string         `json:"method,omitempty"`
	ID         uint64         `json:"id,omitempty"`
	Epoch      uint64         `json:"epoch,omitempty"`
	Generation uint64         `json:"generation,omitempty"`
	MetaBytes  uint32         `json:"meta_bytes,omitempty"`
	DataBytes  uint32         `json:"data_bytes,omitempty"`
	DeadlineMs uint32         `json:"deadline_ms,omitempty"`
	Trace      string         `json:"trace,omitempty"`
	Status     string         `json:"status,omitempty"`
	StatusNum  uint16         `json:"status_number,omitempty"`
	Flags      []string       `json:"flags,omitempty"`
	References []Reference    `json:"references,omitempty"`
	Released   []uint64       `json:"released,omitempty"`
	TookNs     int64          `json:"took_ns,omitempty"`
	Message    map[string]any `json:"message,omitempty"`
	Problem    string         `json:"problem,omitempty"`
	Data       string         `json:"data,omitempty"`
	Lost       uint64         `json:"lost,omitempty"`
	Text       string         `json:"text,omitempty"`
}

func (p *printer) json(e *Event, method wire.Method, took time.Duration) error {
	h := &e.Header
	j := jsonEvent{Type: e.Type, Offset: e.At, Connection: e.Conn, From: e.From, To: e.To, At: e.Name, Lost: e.Lost, Text: e.Text, Data: hex.EncodeToString(e.Data)}
	if !e.Time.IsZero() {
		j.Time = &e.Time
	}
	switch e.Type {
	case TypeConn:
		j.Software, j.Versions, j.Features = e.Hello.Version, []uint16{e.Hello.Lowest, e.Hello.Highest}, uint64(e.Hello.Features)
		j.Status, j.StatusNum = refusal(e.Hello.Status), uint16(e.Hello.Status)
	case TypeFrame:
		j.Kind, j.ID, j.Epoch, j.Generation = kindName(h.Kind), h.ID, uint64(h.Epoch), uint64(h.Generation)
		j.MetaBytes, j.DataBytes, j.DeadlineMs = h.MetaBytes, h.DataBytes, h.DeadlineMs
		j.Status, j.StatusNum = refusal(h.Status), uint16(h.Status)
		j.Flags, j.References = flagNames(h.Flags), references(e)
		if method != 0 {
			j.Method = methodName(method)
		}
		if h.Trace != 0 {
			j.Trace = fmt.Sprintf("%x", h.Trace)
		}
		if h.Kind == wire.FrameRelease {
			j.Released = released(e)
		}
		if took >= 0 {
			j.TookNs = int64(took)
		}
		m, err := message(e, method)
		if err != nil {
			j.Problem = err.Error()
		} else if m != nil {
			j.Message, _ = jsonValue(reflect.ValueOf(m).Elem()).(map[string]any)
		}
	}
	return json.NewEncoder(p.w).Encode(&j)
}
