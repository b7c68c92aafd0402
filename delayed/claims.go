package delayed

import (
	"context"
	"sync"
)

// claims let one goroutine at a time work on an event: a commit that finds its event finalised by somebody else would
// take other events of the room with it.
type claims struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// take claims an event, waiting until nobody else has it. release ends the claim.
func (c *claims) take(ctx context.Context, id string) (release func(), err error) {
	for {
		c.mu.Lock()
		other, taken := c.held[id]
		if !taken {
			mine := make(chan struct{})
			c.held[id] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.held, id)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
