package wire

// Spare structs that a ring keeps at most, and how many of the youngest it does not give away: who still uses one of those by mistake, such as
// by a second Release, finds it unused, and panics, rather than that of another.
const (
	maxSpare = 1024
	minSpare = 16
	// maxSpareParts bounds the parts of a Loan that is kept.
	maxSpareParts = 16
)

// ring keeps structs that are not in use for later, the oldest first.
type ring[T any] struct {
	at  []*T // made with the first
	out int  // index of the oldest
	n   int
}

// put keeps x, or leaves it to the collector of garbage when there is no room.
func (q *ring[T]) put(x *T) {
	if q.at == nil {
		q.at = make([]*T, maxSpare)
	}
	if q.n < len(q.at) {
		q.at[(q.out+q.n)%len(q.at)] = x
		q.n++
	}
}

// get gives the oldest, or nil where only the youngest are left.
func (q *ring[T]) get() *T {
	if q.n <= minSpare {
		return nil
	}
	x := q.at[q.out]
	q.at[q.out] = nil
	q.out = (q.out + 1) % len(q.at)
	q.n--
	return x
}
