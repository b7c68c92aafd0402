package rooms

import (
	"context"

	"hanok/matrix"
	"hanok/matrix/event"
)

// CheckSendable refuses an event to be sent later that could not be sent whatever becomes of the room until then: that is too large,
// that the policy does not let through (it must not even be stored), or whose sender is not in the room. Power levels
// are not looked at: what they allow is decided when the event is sent. spec: MSC4140
func (e *Engine) CheckSendable(ctx context.Context, q SendRequest) error {
	if q.Type == "m.room.create" {
		return matrix.InvalidParam("a room is created once")
	}
	r, err := e.joinedRoom(ctx, q.Room, q.Sender)
	if err != nil {
		return err
	}
	defer r.release()
	state, err := r.stateOf(ctx, q.Sender)
	if err != nil {
		return err
	}
	built, err := event.Build(r.version, event.Proto{
		RoomID: r.id, Sender: q.Sender, Type: q.Type, StateKey: q.StateKey, Content: q.Content, Sticky: q.Sticky, Depth: 1, OriginServerTS: e.now(),
	}, e.server)
	if err != nil {
		return err
	}
	encryption, err := state.Event(ctx, "m.room.encryption", "")
	if err != nil {
		return err
	}
	return e.policy.CheckLocal(ctx, built, encryption != nil)
}
