package rooms

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

// canonicalContent is a client's JSON in the form in which it goes into an event.
func canonicalContent(v *roomversion.Version, content []byte) ([]byte, error) {
	c, err := canonicaljson.Canonical(content, v.JSON)
	if err != nil {
		return nil, err
	}
	if !canonicaljson.IsObject(c) {
		return nil, matrix.BadJSON("the content is not a JSON object")
	}
	return c, nil
}

// Redact sends a redaction; the target is erased when the redaction is accepted. M_FORBIDDEN, M_NOT_FOUND. spec: cs/redactEvent
func (e *Engine) Redact(ctx context.Context, r SendRequest, reason string) (matrix.EventID, error) {
	r.Type = "m.room.redaction"
	content := map[string]any{}
	if reason != "" {
		content["reason"] = reason
	}
	raw, err := canonicaljson.Marshal(content)
	if err != nil {
		return "", err
	}
	r.Content = raw
	return e.Send(ctx, r)
}

// redactable prepares a local redaction: it finds the target and checks that the sender may redact it. A target that
// has not come yet is not the sender's own, which we would know.
func (r *room) redactable(ctx context.Context, q SendRequest, d *draft) error {
	target := q.Redacts
	if target == "" {
		content, err := canonicalContent(r.version, q.Content)
		if err != nil {
			return err
		}
		id, ok := canonicaljson.GetString(content, "redacts")
		if !ok {
			return nil
		}
		if target, err = matrix.ParseEventID(id); err != nil {
			return err
		}
		if !r.version.RedactsInContent {
			d.redacts = target // or it would redact nothing for anybody else
		}
	}
	ev, err := r.e.Event(ctx, target)
	unknown := matrix.HasCode(err, "M_NOT_FOUND")
	if err != nil && !unknown {
		return err
	}
	if !unknown && ev.RoomNID != r.nid {
		return matrix.NotFound("no such event in this room")
	}
	c, err := r.current(ctx)
	if err != nil {
		return err
	}
	var ok bool
	if unknown {
		levels, err := State{r.e, c.head.state}.PowerLevels(ctx)
		if err != nil {
			return err
		}
		ok = levels.User(q.Sender) >= levels.Redact()
	} else if ok, err = r.mayRedact(ctx, State{r.e, c.head.state}, q.Sender, ev); err != nil {
		return err
	}
	switch {
	case !ok:
		return matrix.Forbidden("you may not redact this event")
	case !unknown && ev.Type() == "m.room.server_acl":
		// What is left of it allows no server at all.
		return matrix.Forbidden("an access list cannot be redacted, as that would shut out every server: send another one")
	case unknown:
		d.early = target
	case ev.RedactedBy == "":
		d.erase = ev
	}
	return nil
}

// mayRedact says whether a redaction by sender takes effect on an event.
// spec: rooms/v3#handling-redactions
func (r *room) mayRedact(ctx context.Context, state State, sender matrix.UserID, target *Event) (bool, error) {
	if target.Is("m.room.create", "") {
		return false, nil
	}
	if domain(sender) == domain(target.Sender()) && sender == target.Sender() {
		return true, nil
	}
	view := treeState{ctx, r, state.tree} // what gave the sender the power may have come with the redaction, and not be stored yet
	create, err := view.StateEvent("m.room.create", "")
	if err != nil {
		return false, err
	}
	if create == nil {
		return false, errors.New("a state without m.room.create")
	}
	given, err := view.StateEvent("m.room.power_levels", "")
	if err != nil {
		return false, err
	}
	levels, err := eventauth.Levels(create, given)
	if err != nil {
		return false, err
	}
	return levels.User(sender) >= levels.Redact(), nil
}

// erase makes the redacted form of an event, which may be about to get its place in the timeline.
func (p *pendingEvents) erase(target, redaction *Event) erasure {
	p.mu.Lock()
	redacted := *target
	p.mu.Unlock()
	redacted.Event = target.Event.Redact()
	redacted.RedactedBy, redacted.redactedBy = redaction.ID(), redaction.NID
	return erasure{target: &redacted, original: target, redaction: redaction.NID}
}

// applyRedaction finds what a received redaction erases. The redaction is accepted; r.mu is not needed.
// A redaction that came before its target is remembered, and like one that does not take effect it is shown to nobody.
// spec: rooms/v3#handling-redactions
func (r *room) applyRedaction(ctx context.Context, it *item, state State) (early matrix.EventID, err error) {
	target, ok := it.ev.Redacts()
	if !ok || it.ev.Type() != "m.room.redaction" {
		return "", nil
	}
	it.hidden = !r.version.RedactionAuth                       // where the authorisation rules judge redactions, what they let pass is shown
	events, err := r.eventsByID(ctx, []matrix.EventID{target}) // those, too, that came with it and are not stored yet
	if err != nil {
		return "", err
	}
	ev := events[target]
	if ev == nil {
		return target, nil
	}
	allowed, err := r.eraseIfAllowed(ctx, it, ev, it.ev, state)
	it.hidden = it.hidden && !allowed
	return "", err
}

// eraseIfAllowed has an item erase an event, if the redaction takes effect on it and it is not erased yet.
func (r *room) eraseIfAllowed(ctx context.Context, it *item, target, redaction *Event, state State) (allowed bool, err error) {
	if target.RoomNID != r.nid {
		return false, nil
	}
	ok := domain(redaction.Sender()) == domain(target.Sender()) && !target.Is("m.room.create", "")
	if !ok {
		if ok, err = r.mayRedact(ctx, state, redaction.Sender(), target); err != nil {
			return false, err
		}
	}
	if ok && target.RedactedBy == "" {
		it.erased = append(it.erased, r.pending.erase(target, redaction))
	}
	return ok, nil
}

// redactedEarly applies redactions that came before an event about to be stored.
func (r *room) redactedEarly(ctx context.Context, ev *Event) error {
	redactions := r.pending.redactionsOf(ev.ID()) // before the database is asked: one is here or there
	nids, err := storage.EarlyRedactions(ctx, r.e.db, ev.ID())
	if err != nil {
		return err
	}
	stored, err := r.e.eventMap(ctx, nids)
	if err != nil {
		return err
	}
	for _, nid := range nids {
		redactions = append(redactions, stored[nid])
	}
	for _, red := range redactions {
		if red == nil || red.RoomNID != r.nid || red.SoftFailed {
			continue
		}
		it := &item{}
		state, err := r.treeAfter(ctx, red) // which is the state before it, and may not be stored yet either
		if err != nil {
			return err
		}
		if _, err := r.eraseIfAllowed(ctx, it, ev, red, State{r.e, state}); err != nil {
			return err
		}
		if len(it.erased) > 0 {
			*ev = *it.erased[0].target
			return nil
		}
	}
	return nil
}

// redactionsOf finds accepted redactions of an event that are not committed yet.
func (p *pendingEvents) redactionsOf(target matrix.EventID) (found []*Event) {
	p.any(func(ev *Event) bool {
		if ev.Type() == "m.room.redaction" && !ev.Rejected && !ev.Outlier {
			if id, ok := ev.Redacts(); ok && id == target {
				found = append(found, ev)
			}
		}
		return false
	})
	slices.SortFunc(found, func(a, b *Event) int { return cmp.Compare(a.NID, b.NID) })
	return found
}
