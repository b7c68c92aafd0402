package rooms

import (
	"context"

	"hanok/matrix"
	"hanok/matrix/event"
)

// Farewell is the event with which the last user of this server left a room, for a server that goes on to send us events of it: it came into the room
// through one that had not heard of the leave, and nobody else would tell it. nil if there is none, or if the events that it sent do not show that
// the server knows the room: one has to be properly signed, and to build on something that is known here.
func (e *Engine) Farewell(ctx context.Context, room matrix.RoomID, pdus [][]byte) (*Event, error) {
	r, err := e.room(ctx, room)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.release()
	if resident, err := r.resident(ctx); resident || err != nil || r.allowsSharing() != nil {
		return nil, err
	}
	c, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	var leave *Event
	for _, t := range c.head.tips {
		ev, err := r.event(ctx, t.nid)
		if err != nil {
			return nil, err
		}
		if ev.Type() == "m.room.member" && ev.Membership() == "leave" && e.isLocal(ev.Sender()) && !ev.Outlier {
			leave = ev
		}
	}
	if leave == nil {
		return nil, nil
	}
	for _, pdu := range pdus {
		ev, err := event.Parse(r.version, pdu)
		if err != nil || ev.RoomID() != room {
			continue
		}
		if key, _ := ev.StateKey(); ev.Type() == "m.room.member" && e.isLocal(matrix.UserID(key)) {
			continue // sent to us for our user's sake
		}
		known, err := r.eventsByID(ctx, ev.AuthEvents())
		if err != nil {
			return nil, err
		}
		if len(known) > 0 && e.verify(ctx, []*event.Event{ev})[0] == nil {
			return leave, nil
		}
	}
	return nil, nil
}
