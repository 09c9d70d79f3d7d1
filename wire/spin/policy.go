package spin

import (
	"math/bits"
	"time"
)

// policy decides for how long to spin. It knows no clock.
//
// To spin for at most b and then to sleep costs, for each wait: its length, if it is shorter than b, else b and the wake-up. The policy
// remembers how long recent waits were, as a histogram, and chooses the b that would have cost least. (With a wake-up's worth as the bound and no
// memory, the cost is at most twice that of one who knows the future; with memory it is less, and waits that are always long cost nothing. See
// Karlin et al., "Competitive randomized algorithms for nonuniform problems", 1990.)
type policy struct {
	gaps  [numGaps + 1]uint32 // waits of up to minGap << i; the last: longer ones
	total uint32
	since int // waits since the bound was chosen
	bound time.Duration
}

// add remembers a wait.
func (p *policy) add(gap time.Duration) {
	p.gaps[class(gap)]++
	if p.total++; p.total >= memory {
		p.total = 0
		for i := range p.gaps {
			p.gaps[i] /= 2
			p.total += p.gaps[i]
		}
	}
	if p.since++; p.since >= chooseEvery {
		p.since = 0
		p.choose()
	}
}

// class gives the index in gaps of a wait.
func class(gap time.Duration) int {
	return min(bits.Len64(uint64(max(gap-1, 0)/minGap)), numGaps)
}

// choose finds the bound that would have cost least.
func (p *policy) choose() {
	longer := time.Duration(p.total)
	best := longer * wakeWorth
	p.bound = 0
	shorter := time.Duration(0) // what the waits within the bound cost
	for i := range numGaps {
		b := minGap << i
		n := time.Duration(p.gaps[i])
		shorter += n * b
		longer -= n
		if cost := shorter + longer*(b+wakeWorth); cost < best {
			best, p.bound = cost, b
		}
	}
}
