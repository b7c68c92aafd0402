package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span, written as in "90s", "15m", "12h" or "7d".
type Duration time.Duration

// UnmarshalText reads a Duration.
func (d *Duration) UnmarshalText(b []byte) error {
	s := strings.TrimSpace(string(b))
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(strings.TrimSpace(days), 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a time span; write it as in 90s, 15m, 12h or 7d", s)
		}
		*d = Duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a time span; write it as in 90s, 15m, 12h or 7d", s)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes it as UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) {
	if day := Duration(24 * time.Hour); d != 0 && d%day == 0 {
		return fmt.Appendf(nil, "%dd", d/day), nil
	}
	return []byte(time.Duration(d).String()), nil
}

// Bytes is a size, written as in "512 KiB", "100 MiB", "2 GB" or a plain number of bytes.
type Bytes int64

var byteUnits = []struct {
	name string
	size int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText reads a Bytes.
func (b *Bytes) UnmarshalText(text []byte) error {
	s, size := strings.TrimSpace(string(text)), int64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			s, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/size {
		return fmt.Errorf("%q is not a size; write it as in 512 KiB, 100 MiB or 2 GB", text)
	}
	*b = Bytes(n * size)
	return nil
}

// MarshalText writes it as UnmarshalText reads it.
func (b Bytes) MarshalText() ([]byte, error) {
	for _, u := range []int{3, 2, 1, 0} {
		if size := Bytes(byteUnits[u].size); b != 0 && b%size == 0 {
			return fmt.Appendf(nil, "%d %s", b/size, byteUnits[u].name), nil
		}
	}
	return fmt.Appendf(nil, "%d", b), nil
}
