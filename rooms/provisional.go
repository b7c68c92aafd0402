package rooms

import (
	"context"
	"slices"

	"hanok/storage"
	"hanok/storage/statetree"
)

// A verdict that a partial state has given is not the last word, nor is what builds on it. Outliers that are authorised by such an event have the flag of events that
// follow on a partial state, and so has what is put on a state with such events in it, whoever told it. restate.go judges all of them.

// provisional says whether what is known before an event is not the last word: the state is partial, or was told with events in it, or has been authorised by
// events, of which only a partial state was there to judge them.
func (r *room) provisional(ctx context.Context, p *placement) (bool, error) {
	if p.partial || r.e.partials.get(r.nid) == nil {
		return p.partial, nil
	}
	auth, err := r.eventsByID(ctx, p.ev.AuthEvents())
	if err != nil {
		return false, err
	}
	for _, a := range auth {
		if a.Partial {
			return true, nil
		}
	}
	if len(p.missing) == 0 {
		return false, nil
	}
	nids, err := r.partialEvents(ctx)
	if err != nil || len(nids) == 0 {
		return false, err
	}
	unsettled := setOf(nids)
	for _, m := range p.missing {
		if found, err := among(ctx, m.after, unsettled, slices.Min(nids)); len(found) > 0 || err != nil {
			return true, err
		}
	}
	return false, nil
}

// among lists those of some events, of which the first is given, that are in a state.
func among(ctx context.Context, state statetree.Tree, some map[storage.EventNID]bool, first storage.EventNID) (found []statetree.Entry, err error) {
	err = state.Newer(ctx, int64(first)-1, func(en statetree.Entry) bool {
		if some[storage.EventNID(en.Event)] {
			found = append(found, en)
		}
		return true
	})
	return found, err
}

// outlier judges an event that is known by reference only again. It passes by its auth events; it is rejected if one of them is now.
// spec: server-server-api#rejection
func (rs *restatement) outlier(ctx context.Context, was *Event) error {
	ev := *was
	ev.Partial = false
	for _, nid := range was.auths {
		auth, err := rs.room.event(ctx, nid)
		if err != nil {
			return err
		}
		ev.Rejected = ev.Rejected || auth.Rejected
	}
	none := rs.room.e.forest.At(0)
	s := &restated{nid: ev.NID, before: none, after: none, flags: ev.flags(), wasRejected: was.Rejected, rejected: ev.Rejected}
	rs.outliers = append(rs.outliers, s)
	rs.judged(s)
	return nil
}

// without leaves rejected events out of a state that another server told.
func (rs *restatement) without(ctx context.Context, told statetree.Tree) (statetree.Tree, error) {
	if len(rs.rejected) == 0 {
		return told, nil
	}
	found, err := among(ctx, told, rs.rejected, rs.first)
	if err != nil || len(found) == 0 {
		return told, err
	}
	for i := range found {
		found[i].Event = 0
	}
	return told.With(ctx, found...)
}

func setOf[K comparable](keys []K) map[K]bool {
	set := make(map[K]bool, len(keys))
	for _, k := range keys {
		set[k] = true
	}
	return set
}
