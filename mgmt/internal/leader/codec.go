package leader

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/crakefs/crake/wire"
)

// Chunk sizes: what changes together lies in one document, and a document stays some tens of KiB.
const (
	bucketsPerDoc = 256
	pgsPerDoc     = 512
)

type mapDoc struct {
	Generation wire.Generation `json:"generation"`
	Sum        uint64          `json:"sum"`
}

// Encode gives the state as documents by key, to be stored each as it is. Invariant: Decode(Encode(s)) equals s.
func (s *State) Encode() (map[string][]byte, error) {
	docs := map[string][]byte{}
	var first error
	put := func(key string, v any) {
		b, err := json.Marshal(v)
		if err != nil && first == nil {
			first = fmt.Errorf("%s: %w", key, err)
		}
		docs[key] = b
	}
	put("settings", s.Settings)
	put("counters", s.Counters)
	put("map", mapDoc{s.Generation, s.MapSum})
	for id, p := range s.Procs {
		put(fmt.Sprintf("proc/%d", id), p)
	}
	for id, d := range s.Drives {
		put(fmt.Sprintf("drive/%d", id), d)
	}
	for i := 0; i < len(s.PGs); i += pgsPerDoc {
		put(fmt.Sprintf("pgs/%d", i/pgsPerDoc), s.PGs[i:min(len(s.PGs), i+pgsPerDoc)])
	}
	for i := 0; i < len(s.Buckets); i += bucketsPerDoc {
		put(fmt.Sprintf("buckets/%d", i/bucketsPerDoc), s.Buckets[i:min(len(s.Buckets), i+bucketsPerDoc)])
	}
	for id, f := range s.FSs {
		put(fmt.Sprintf("fs/%d", id), f)
	}
	for id, x := range s.Sessions {
		put(fmt.Sprintf("session/%d", id), x)
	}
	return docs, first
}

// Decode puts a state together from its documents. No settings give nil without an error: there is no cluster yet.
// What does not fit together is KindCorrupt and names the key.
func Decode(docs map[string][]byte) (*State, error) {
	if len(docs) == 0 {
		return nil, nil
	}
	var settings Settings
	if err := decodeDoc(docs, "settings", &settings); err != nil {
		return nil, err
	}
	if settings.Buckets < 1 || settings.Buckets > wire.MaxBuckets || settings.K < 1 || settings.M < 0 || settings.K+settings.M > wire.MaxStripes {
		return nil, corrupt("settings", fmt.Errorf("%d buckets, protection %d+%d", settings.Buckets, settings.K, settings.M))
	}
	s := Form(settings)
	s.Buckets = s.Buckets[:0]
	var m mapDoc
	if err := decodeDoc(docs, "map", &m); err != nil {
		return nil, err
	}
	s.Generation, s.MapSum = m.Generation, m.Sum
	if err := decodeDoc(docs, "counters", &s.Counters); err != nil {
		return nil, err
	}
	for i := 0; docs[fmt.Sprintf("pgs/%d", i)] != nil; i++ {
		var part []wire.PGInfo
		if err := decodeDoc(docs, fmt.Sprintf("pgs/%d", i), &part); err != nil {
			return nil, err
		}
		for _, pg := range part {
			if pg.ID == 0 || len(pg.Drives) == 0 {
				return nil, corrupt(fmt.Sprintf("pgs/%d", i), fmt.Errorf("group %d of %d drives", pg.ID, len(pg.Drives)))
			}
		}
		s.PGs = append(s.PGs, part...)
	}
	for i := 0; len(s.Buckets) < settings.Buckets; i++ {
		var part []Bucket
		if err := decodeDoc(docs, fmt.Sprintf("buckets/%d", i), &part); err != nil {
			return nil, err
		}
		if len(part) == 0 || len(s.Buckets)+len(part) > settings.Buckets {
			return nil, corrupt(fmt.Sprintf("buckets/%d", i), fmt.Errorf("%d buckets after %d of %d", len(part), len(s.Buckets), settings.Buckets))
		}
		s.Buckets = append(s.Buckets, part...)
	}
	return s, s.decodeTables(docs)
}

func (s *State) decodeTables(docs map[string][]byte) error {
	for key := range docs {
		table, num, _ := strings.Cut(key, "/")
		var err error
		switch table {
		case "proc":
			err = decodeRow(docs, key, num, s.Procs, func(p *Proc) wire.ProcID { return p.ID })
		case "drive":
			err = decodeRow(docs, key, num, s.Drives, func(d *Drive) wire.DriveID { return d.ID })
		case "fs":
			err = decodeRow(docs, key, num, s.FSs, func(f *FS) wire.FSID { return f.ID })
		case "session":
			err = decodeRow(docs, key, num, s.Sessions, func(x *Session) wire.SessionID { return x.ID })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeRow[K comparable, V any](docs map[string][]byte, key, num string, into map[K]*V, id func(*V) K) error {
	v := new(V)
	if err := decodeDoc(docs, key, v); err != nil {
		return err
	}
	if got := fmt.Sprint(id(v)); got != num {
		return corrupt(key, fmt.Errorf("holds id %s", got))
	}
	into[id(v)] = v
	return nil
}

func decodeDoc(docs map[string][]byte, key string, v any) error {
	b, ok := docs[key]
	if !ok {
		return corrupt(key, fmt.Errorf("missing"))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return corrupt(key, err)
	}
	return nil
}

func corrupt(key string, err error) error {
	return wire.E("leader.decode", wire.KindCorrupt, key, err)
}
