package signing

import (
	"crypto/ed25519"
	"fmt"
	"runtime"
	"testing"
	"time"
)

func benchChecks(b *testing.B, n int) []Check {
	key := specKey(b)
	checks := make([]Check, n)
	for i := range checks {
		m := fmt.Appendf(nil, "%01000d", i)
		checks[i] = Check{key.Public(), m, ed25519.Sign(key.Private, m)}
	}
	return checks
}

// BenchmarkVerifyBatch prints the time per signature and what one core would
// need at least, divided by the cores: 1 is the physical floor.
func BenchmarkVerifyBatch(b *testing.B) {
	for _, n := range []int{1, 50, 1000} {
		checks := benchChecks(b, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			var raw, batch time.Duration
			for b.Loop() {
				start := time.Now()
				for i := range min(n, 50) {
					ed25519.Verify(checks[i].Public, checks[i].Message, checks[i].Signature)
				}
				raw += time.Since(start) / time.Duration(min(n, 50)) * time.Duration(n)
				start = time.Now()
				VerifyBatch(checks)
				batch += time.Since(start)
			}
			floor := float64(raw) / float64(min(n, runtime.GOMAXPROCS(0)))
			b.ReportMetric(float64(batch.Nanoseconds())/float64(b.N*n), "ns/signature")
			b.ReportMetric(float64(raw.Nanoseconds())/float64(b.N*n), "ns/ed25519.Verify")
			b.ReportMetric(float64(batch)/floor, "x-floor")
		})
	}
}

func BenchmarkSign(b *testing.B) {
	key := specKey(b)
	doc := []byte(`{"a":"` + fmt.Sprintf("%01000d", 1) + `"}`)
	b.Run("Key.Sign", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := key.Sign("domain", doc); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ed25519.Sign", func(b *testing.B) {
		for b.Loop() {
			ed25519.Sign(key.Private, doc)
		}
	})
}
