package rooms

import (
	"context"

	"hanok/matrix"
)

// erasures remembers which senders have asked to be erased, for one answer.
// spec: cs/deactivateAccount erase
type erasures struct {
	memo map[matrix.UserID]bool
}

// asked reports whether the sender of an event is a user of this server who has asked for what they sent to be erased.
func (x *erasures) asked(ctx context.Context, e *Engine, ev *Event) (bool, error) {
	sender := ev.Sender()
	if e.erased == nil || domain(sender) != e.server {
		return false, nil
	}
	if erased, known := x.memo[sender]; known {
		return erased, nil
	}
	erased, err := e.erased(ctx, sender)
	if err != nil {
		return false, err
	}
	if x.memo == nil {
		x.memo = make(map[matrix.UserID]bool)
	}
	x.memo[sender] = erased
	return erased, nil
}

// blank is a copy of an event in its redacted form.
func blank(ev *Event) *Event {
	redacted := *ev
	redacted.Event = ev.Redact()
	return &redacted
}

// show returns an event as the user may see it, nil if not at all. What a user sent who has asked to be erased is
// shown whole only to those who were in the room at the time. spec: cs/deactivateAccount erase
func (v *viewer) show(ctx context.Context, ev *Event) (*Event, error) {
	ok, err := v.sees(ctx, ev)
	if err != nil || !ok {
		return nil, err
	}
	then, err := v.at(ctx, ev.stateBefore)
	if err != nil || then.membership == "join" || ev.Sender() == v.user {
		return ev, err
	}
	erased, err := v.erasures.asked(ctx, v.e, ev)
	if err != nil || !erased {
		return ev, err
	}
	return blank(ev), nil
}

// showsWhole reports whether the user may see what is in an event.
func (v *viewer) showsWhole(ctx context.Context, ev *Event) (bool, error) {
	shown, err := v.show(ctx, ev)
	return shown == ev, err
}
