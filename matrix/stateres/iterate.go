package stateres

import (
	"errors"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
)

// apply is the iterative auth checks algorithm: each event goes into the state
// if it is allowed there.
// spec: rooms/v12#definitions "Iterative auth checks"
func (r *resolution) apply(events []int32) error {
	for _, i := range events {
		allowed, err := r.allowed(i, r.chains.auth(i))
		if err != nil {
			return err
		}
		if allowed {
			r.cell(r.known(i).slot).state = i + 1
		}
	}
	return nil
}

// allowed reports whether an event, which is loaded, passes the rules that look at state. auth
// are the events to fall back on.
func (r *resolution) allowed(i int32, auth []int32) (bool, error) {
	f := r.known(i)
	again, err := r.looksTheSame(&f.verdict, auth)
	if err != nil || again {
		return f.verdict.allowed, err
	}
	r.view.auth, r.view.looked = auth, r.view.looked[:0]
	err = r.checker.Check(f.event, &r.view)
	if rejection := (*eventauth.Rejection)(nil); err != nil && !errors.As(err, &rejection) {
		return false, err
	}
	r.note(f, err == nil, r.view.looked)
	return err == nil, nil
}

// looksTheSame reports whether the look-ups of a check that was made would come to the same today.
func (r *resolution) looksTheSame(v *verdict, auth []int32) (bool, error) {
	if v.era != r.era {
		return false, nil
	}
	for _, l := range v.looked {
		found, err := r.lookUp(l.slot, auth)
		if err != nil || found != l.found {
			return false, err
		}
	}
	// Whether the events themselves are what they were is known when all of them are loaded.
	return v.era == r.era, nil
}

// view is the state against which one event is checked. It notes what is looked up.
type view struct {
	*resolution
	auth   []int32
	looked []look
}

// StateEvent implements eventauth.State.
func (w *view) StateEvent(eventType, stateKey string) (*event.Event, error) {
	slot := w.slot(matrix.StateKey{Type: eventType, Key: stateKey})
	found, err := w.lookUp(slot, w.auth)
	if err != nil {
		return nil, err
	}
	if l := (look{slot, found}); !slices.Contains(w.looked, l) {
		w.looked = append(w.looked, l)
	}
	if found == 0 {
		return nil, nil
	}
	return w.known(found - 1).event, nil
}

// lookUp finds the event for a slot, and loads it: what is in the state so far, else what all states
// agree on, else the one among the event's own auth events, if it was not rejected. It is an
// auth chain index plus one; 0: there is none.
func (r *resolution) lookUp(slot int32, auth []int32) (int32, error) {
	found := r.cell(slot).state
	// The create event is no auth event in v12: the room ID names it.
	if found == 0 && (!r.emptyStart() || slot == r.create) {
		var err error
		if found, err = r.unconflicted(slot); err != nil {
			return 0, err
		}
	}
	if found != 0 {
		_, err := r.at(found - 1)
		return found, err
	}
	for _, i := range auth {
		a, err := r.at(i)
		if err != nil {
			return 0, err
		}
		if a.slot == slot && !a.rejected {
			return i + 1, nil
		}
	}
	return 0, nil
}
