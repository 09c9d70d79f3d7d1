// Package size reads and writes numbers of bytes as people do.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

var _ pflag.Value = (*Flag)(nil)

// Flag is a flag that holds a number of bytes: "4GiB", "512MiB", "1048576". Units are powers of 1024 (KiB, MiB,
// GiB, TiB; K, M, G, T mean the same) or of 1000 (KB, MB, GB, TB).
type Flag int64

var units = []struct {
	name  string
	bytes int64
}{ // longest names first, because of the suffix match
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40},
	{"B", 1},
}

// Parse reads a size. Errors say what a size looks like.
func Parse(s string) (int64, error) {
	num, unit := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if len(num) > len(u.name) && strings.EqualFold(num[len(num)-len(u.name):], u.name) {
			num, unit = strings.TrimSpace(num[:len(num)-len(u.name)]), u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || math.IsNaN(v) || v < 0 || strings.ContainsAny(num, "eExXpP") {
		return 0, fmt.Errorf("%q is no size, want a number with a unit such as 512MiB or 4GiB", s)
	}
	if v*float64(unit) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return int64(v * float64(unit)), nil
}

// Format gives bytes as people write them: 4GiB, 1.5MiB, 12B.
func Format(n int64) string {
	names := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(n), 0
	for math.Abs(v) >= 1024 && i < len(names)-1 {
		v, i = v/1024, i+1
	}
	s := strconv.FormatFloat(v, 'f', 1, 64)
	return strings.TrimSuffix(s, ".0") + names[i]
}

// String gives the size as people write it.
func (s *Flag) String() string {
	if *s == 0 {
		return ""
	}
	return Format(int64(*s))
}

// Type names the flag's value in the help.
func (s *Flag) Type() string { return "SIZE" }

// Set reads a size.
func (s *Flag) Set(text string) error {
	v, err := Parse(text)
	if err == nil {
		*s = Flag(v)
	}
	return err
}
