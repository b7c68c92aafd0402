package rooms

import (
	"context"

	"hanok/matrix"
	"hanok/matrix/event"
)

// maxIdleTips is how many forward extremities a room may have before an event of ours brings them together. Every event
// that comes in costs the resolution of the states of all of them.
const maxIdleTips = 10

// mergeTips sends a dummy event to a room that other servers have made many branches of, if a local user may send one. It is not shown to
// anybody and not sent on: whoever gets the event that is built on it asks for it.
func (e *Engine) mergeTips(ctx context.Context, r *room) error {
	if e.noDummyEvents {
		return nil
	}
	for range maxTips / maxParents {
		c, err := r.current(ctx)
		if err != nil || len(c.head.tips) <= maxIdleTips {
			return err
		}
		sender, err := e.dummySender(ctx, c)
		if err != nil || sender == "" {
			return err
		}
		d := &draft{sender: sender, typ: event.DummyType, content: []byte("{}")}
		en, err := r.append(ctx, []*draft{d}, appendOptions{unchecked: true, unasked: true})
		if err != nil {
			return err
		}
		if err := en.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// dummySender finds a joined local user who may send a dummy event, "" if there is none.
func (e *Engine) dummySender(ctx context.Context, c *committed) (matrix.UserID, error) {
	if len(c.local) == 0 {
		return "", nil
	}
	levels, err := State{e, c.head.state}.PowerLevels(ctx)
	if err != nil {
		return "", err
	}
	for _, u := range c.local {
		if levels.User(u) >= levels.Event(event.DummyType, false) {
			return u, nil
		}
	}
	return "", nil
}
