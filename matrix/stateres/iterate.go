package stateres

import (
	"errors"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
)

// apply is the iterative auth checks algorithm: each event goes into the state
// if it is allowed there.
// spec: rooms/v12#definitions "Iterative auth checks"
func (r *resolution) apply(events []int32) error {
	for _, i := range events {
		e := r.known(i)
		allowed, err := r.allowed(e, r.chains.auth(i))
		if err != nil {
			return err
		}
		if key, _ := keyOf(e); allowed {
			r.state[key] = r.chains.nodes[i].ref
		}
	}
	return nil
}

// allowed reports whether an event passes the rules that look at state. auth
// are the events to fall back on.
func (r *resolution) allowed(e *Entry, auth []int32) (bool, error) {
	err := r.checker.Check(e.Event, view{r, auth})
	if rejection := (*eventauth.Rejection)(nil); errors.As(err, &rejection) {
		return false, nil
	}
	return err == nil, err
}

// view is the state against which one event is checked: what is in the state so
// far, else what all states agree on, else the event's own auth events as far
// as they were not rejected.
type view struct {
	*resolution
	auth []int32
}

// StateEvent implements eventauth.State.
func (w view) StateEvent(eventType, stateKey string) (*event.Event, error) {
	key := matrix.StateKey{Type: eventType, Key: stateKey}
	ref := w.state[key]
	// The create event is no auth event in v12: the room ID names it.
	if ref == 0 && (!w.emptyStart() || eventType == "m.room.create") {
		var err error
		if ref, err = w.unconflicted(key); err != nil {
			return nil, err
		}
	}
	if ref != 0 {
		e, err := w.entry(ref)
		if err != nil {
			return nil, err
		}
		return e.Event, nil
	}
	for _, i := range w.auth {
		e, err := w.at(i)
		if err != nil {
			return nil, err
		}
		if e.Event != nil && !e.Rejected && e.Event.Is(eventType, stateKey) {
			return e.Event, nil
		}
	}
	return nil, nil
}
