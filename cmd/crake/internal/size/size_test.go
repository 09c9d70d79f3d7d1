package size

import "testing"

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64 // -1: refused
	}{
		{"4GiB", 4 << 30}, {"512MiB", 512 << 20}, {"512mib", 512 << 20}, {"1.5G", 3 << 29}, {"10KB", 10_000}, {"4096", 4096},
		{"12B", 12}, {"2 TiB", 2 << 40}, {"0", 0},
		{"", -1}, {"GiB", -1}, {"-1GiB", -1}, {"1e9", -1}, {"0x10", -1}, {"1x", -1}, {"99999999TiB", -1}, {"NaN", -1}, {"inf", -1},
	} {
		got, err := Parse(c.in)
		if err != nil {
			got = -1
		}
		if got != c.want {
			t.Errorf("Parse(%q) = %d, %v; want %d", c.in, got, err, c.want)
		}
	}
	for _, n := range []int64{0, 1, 1023, 4 << 30, 512 << 20, 3 << 29} {
		if back, err := Parse(Format(n)); err != nil || back != n {
			t.Errorf("Format(%d) = %s, which reads as %d, %v", n, Format(n), back, err)
		}
	}
}
