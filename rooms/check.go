package rooms

import (
	"context"
	"errors"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/storage"
	"hanok/storage/statetree"
)

// checkEvent runs the auth rules against the event's auth events and the state before it, or what there is of that.
// The rejection is nil when it passes.
func (r *room) checkEvent(ctx context.Context, ev *event.Event, before statetree.Tree, partial bool) (rejection, err error) {
	if rejection, err = r.checkOnlyCreate(ctx, ev); rejection != nil || err != nil {
		return rejection, err
	}
	rejection, err = r.checkAuthEvents(ctx, ev, before, partial)
	if rejection != nil || err != nil {
		return rejection, err
	}
	if partial {
		if before, err = r.withAuth(ctx, before, ev.AuthEvents()); err != nil {
			return nil, err
		}
	}
	return split(r.checker.Check(ev, treeState{ctx, r, before}))
}

var errSecondCreate = matrix.Forbidden("the room has another create event")

// checkOnlyCreate rejects a second create event: the rules allow it to the server whose name is in the room ID, and it
// would bring everything into conflict that was ever set in the room.
func (r *room) checkOnlyCreate(ctx context.Context, ev *event.Event) (rejection, err error) {
	if ev.Type() != "m.room.create" {
		return nil, nil
	}
	r.mu.Lock()
	if err = r.load(ctx); err != nil {
		r.mu.Unlock()
		if errors.Is(err, storage.ErrNotFound) { // about to be joined
			err = nil
		}
		return nil, err
	}
	state := r.head.state
	r.mu.Unlock()
	create, err := treeState{ctx, r, state}.StateEvent("m.room.create", "")
	if err != nil || create == nil || create.ID() == ev.ID() {
		return nil, err
	}
	return errSecondCreate, nil
}

// checkAuthEvents checks an event against its own auth events, which are all stored.
func (r *room) checkAuthEvents(ctx context.Context, ev *event.Event, before statetree.Tree, partial bool) (rejection, err error) {
	known, err := r.eventsByID(ctx, ev.AuthEvents())
	if err != nil {
		return nil, err
	}
	create, err := treeState{ctx, r, before}.StateEvent("m.room.create", "")
	if err != nil {
		return nil, err
	}
	return r.checkAgainst(ev, known, create, partial)
}

// checkAgainst runs the rules on an event's auth events, given all of them. provisional: those whose rejection is not the last word, since the state before
// them is partial, count as if they were not rejected: what builds on them is as good as they are, and is checked by the state, which has none of them.
func (r *room) checkAgainst(ev *event.Event, known map[matrix.EventID]*Event, create *event.Event, provisional bool) (rejection, err error) {
	auth := make([]*event.Event, 0, len(ev.AuthEvents()))
	for _, id := range ev.AuthEvents() {
		a := known[id]
		if a == nil {
			return errNoAuthEvents, nil
		}
		auth = append(auth, a.Event)
	}
	rejected := func(id matrix.EventID) bool {
		a := known[id]
		return a != nil && a.Rejected && !(provisional && a.Partial)
	}
	if rejection, err = split(eventauth.CheckAuthEvents(ev, auth, rejected, create)); rejection != nil || err != nil {
		return rejection, err
	}
	state := eventauth.EventsOf(auth...)
	if create != nil && ev.Version().RoomIDIsCreateHash {
		state[matrix.StateKey{Type: "m.room.create"}] = create
	}
	return split(r.checker.Check(ev, state))
}

// split tells a rejection from a failure.
func split(result error) (rejection, err error) {
	var rej *eventauth.Rejection
	if errors.As(result, &rej) {
		return rej, nil
	}
	return nil, result
}
