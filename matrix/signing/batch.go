package signing

import (
	"crypto/ed25519"
	"runtime"
	"sync"
	"sync/atomic"
)

// Check is one signature to verify.
type Check struct {
	Public    ed25519.PublicKey
	Message   []byte
	Signature []byte
}

// verify is ed25519.Verify without its panic on a public key of the wrong length.
func (c Check) verify() bool {
	return len(c.Public) == ed25519.PublicKeySize && ed25519.Verify(c.Public, c.Message, c.Signature)
}

// VerifyBatch verifies many signatures on all cores; result i belongs to check i.
// A key or signature of the wrong length is just false.
//
// Each signature is verified on its own. The faster sum over a batch accepts
// signatures that single verification refuses (ones with a small-order
// part), and servers that disagree on one event split the room.
func VerifyBatch(checks []Check) []bool {
	results := make([]bool, len(checks))
	workers := min(runtime.GOMAXPROCS(0), len(checks))
	var next atomic.Int64
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(checks) {
				return
			}
			results[i] = checks[i].verify()
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return results
}
