package spin

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Claim: the bound follows what recent waits were like.
func TestPolicy(t *testing.T) {
	us := time.Microsecond
	for _, c := range []struct {
		name string
		gaps []time.Duration // in turn
		want time.Duration
	}{
		{"requests one after the other", []time.Duration{20 * us}, 32 * us},
		{"a device between them", []time.Duration{5 * us, 90 * us}, 128 * us},
		{"half of the waits are long", []time.Duration{5 * us, 90 * us, time.Second, time.Second}, 128 * us},
		{"a request now and then, a device behind it", []time.Duration{90 * us, 5 * time.Millisecond}, 128 * us},
		{"nearly always long", []time.Duration{time.Second, time.Second, time.Second, time.Second, time.Second, time.Second, time.Second, 600 * us}, 0},
		{"heartbeats", []time.Duration{100 * time.Millisecond}, 0},
		{"a little too far apart", []time.Duration{maxSpin + 1}, 0},
		{"at once", []time.Duration{0}, minGap},
	} {
		var p policy
		for range 10 * memory { // another life before
			p.add(time.Duration(rand.Int64N(int64(2 * maxSpin))))
		}
		for i := range 8 * memory {
			p.add(c.gaps[i%len(c.gaps)])
		}
		if p.bound != c.want {
			t.Errorf("%s: %v, want %v", c.name, p.bound, c.want)
		}
	}
}

// Claim: before anything is known it does not spin, and it learns within chooseEvery waits.
func TestPolicyLearns(t *testing.T) {
	var p policy
	for i := range chooseEvery {
		if p.bound != 0 {
			t.Errorf("%v after %d waits", p.bound, i)
		}
		p.add(30 * time.Microsecond)
	}
	if p.bound != 32*time.Microsecond {
		t.Errorf("%v after %d waits of 30 us", p.bound, chooseEvery)
	}
}

// Claim: no other bound would have cost less on the waits that it remembers.
func TestPolicyBest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	cost := func(p *policy, bound time.Duration) time.Duration {
		sum := time.Duration(0)
		for i, n := range p.gaps {
			gap := minGap << i
			if gap <= bound {
				sum += time.Duration(n) * gap
			} else {
				sum += time.Duration(n) * (bound + wakeWorth)
			}
		}
		return sum
	}
	for range 2000 {
		var p policy
		for i := range p.gaps {
			p.gaps[i] = rng.Uint32N(20)
			p.total += p.gaps[i]
		}
		p.choose()
		for b := minGap / 2; b <= maxSpin; b *= 2 {
			other := b
			if b < minGap {
				other = 0
			}
			if cost(&p, other) < cost(&p, p.bound) {
				t.Fatalf("%v: %v costs %v, %v costs %v", p.gaps, p.bound, cost(&p, p.bound), other, cost(&p, other))
			}
		}
	}
}
