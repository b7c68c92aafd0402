// Package backoff says how long to wait before what has failed is tried again.
package backoff

import "time"

// Doubled is first, which is more than 0, doubled a number of times, but last at most.
func Doubled(first, last time.Duration, times int) time.Duration {
	for ; times > 0; times-- {
		if first > last/2 {
			return last
		}
		first *= 2
	}
	return min(first, last)
}
