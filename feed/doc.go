// Package feed is what each user must be told: /sync, made from the durable
// streams, and the waiters that long polls hang on.
//
// An idle long poll is a map entry and a channel (waiters.go). Waking is per
// user. Start reading at sync.go.
package feed
