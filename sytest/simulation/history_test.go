package simulation

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"hanok/delayed"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// What users read: history to its beginning, receipts, and what was scheduled to be said later.

// maxAhead is how far ahead events are scheduled.
const maxAhead = 20 * time.Second

// scheduled is an event that is to be sent later.
type scheduled struct {
	by   *user
	in   *room
	id   string
	text string
}

// schedule says something later, and may think better of it.
func (w *world) schedule(u *user, r *room) {
	text := fmt.Sprint("later", w.random.IntN(1_000_000))
	ahead := w.between(time.Millisecond, maxAhead).Truncate(time.Millisecond) + time.Millisecond
	cancel := w.random.IntN(4) == 0
	w.perform(u, fmt.Sprintf("schedules %q in %s after %s", text, r.name, ahead), func(ctx context.Context, p *process) (matrix.EventID, error) {
		id, err := p.delayed.Schedule(ctx, delayed.Request{Event: textEvent(u, r, text, nil), Delay: ahead})
		if err != nil || p.dead.Load() {
			return "", err
		}
		if cancel {
			time.Sleep(w.untilTick(ahead / 2))
			messages.await()
			if err := p.delayed.Cancel(ctx, id); err == nil && !p.dead.Load() {
				w.mu.Lock()
				w.cancelled[text] = true
				w.mu.Unlock()
				return "", nil
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.scheduled = append(w.scheduled, scheduled{u, r, id, text})
		return "", nil
	}, nil)
}

// awaitScheduled waits until all that was scheduled has been sent, and takes note of it.
func (w *world) awaitScheduled() {
	if len(w.scheduled) == 0 {
		return
	}
	time.Sleep(w.untilTick(maxAhead + 10*time.Second))
	w.quiesce()
	slices.SortFunc(w.scheduled, func(a, b scheduled) int { return strings.Compare(a.text, b.text) })
	for _, x := range w.scheduled {
		p := x.by.s.current()
		ev, err := p.delayed.Get(p.life, x.by.id, x.id)
		switch {
		case err != nil:
			w.fail("%s lost %q, which %s had scheduled: %v", x.by.s.short, x.text, x.by, err)
		case ev.FinalisedAt == 0:
			w.fail("%q of %s was not sent", x.text, x.by)
		case ev.EventID != "":
			w.note(x.by, x.in, "scheduled "+x.text)(ev.EventID)
		}
	}
}

// readUp marks an event as read.
func (w *world) readUp(u *user, r *room) {
	w.mu.Lock()
	var id matrix.EventID
	if n := len(r.acked); n > 0 {
		id = r.acked[w.random.IntN(n)].id
	}
	w.mu.Unlock()
	p := u.s.current()
	if id == "" || !slices.Contains(p.joinedUsers(p.life, r.id), u) {
		return
	}
	w.perform(u, fmt.Sprintf("has read %s in %s", id, r.name), func(ctx context.Context, p *process) (matrix.EventID, error) {
		told, err := p.rooms.JoinedServers(ctx, r.id)
		if err != nil {
			return "", err
		}
		if err := p.users.Receipts.Set(ctx, users.Receipt{Room: r.id, User: u.id, Type: users.ReceiptRead, EventID: id}); err != nil || p.dead.Load() {
			return "", err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.read[u] != nil {
			return "", nil // what does not move forward is not sent
		}
		r.read[u] = map[*server]bool{}
		for _, name := range told {
			s := w.byHost[host(name)]
			if to := s.current(); to != nil {
				m, err := to.rooms.MembershipOf(ctx, r.id, u.id)
				r.read[u][s] = err == nil && m.Membership == "join" // else it does not know yet that who has read is in the room
			}
		}
		return "", nil
	}, nil)
}

// checkReceipts: those who were in the room have heard that somebody has read there.
func (w *world) checkReceipts(ctx context.Context, r *room) {
	if w.outage {
		return // receipts do not wait for long
	}
	residents := w.residents(ctx, r)
	for _, u := range w.users {
		if r.left[u.s] || !slices.Contains(residents, u.s) {
			continue
		}
		for _, s := range residents {
			if !r.read[u][s] || r.left[s] {
				continue
			}
			got, err := s.current().users.Receipts.OfUser(ctx, s.current().db, r.id, u.id)
			if err != nil || len(got) == 0 {
				w.fail("%s has no receipt of %s in %s: %v", s.short, u, r.name, err)
			}
		}
	}
}

// pages reads a room back to its beginning, which fetches what the server missed while it was not in the room.
func (w *world) pages(ctx context.Context, u *user, r *room) []*rooms.Event {
	var all []*rooms.Event
	var from *rooms.Token
	for range 100 {
		page, err := u.s.current().rooms.Messages(ctx, rooms.MessagesRequest{Room: r.id, User: u.id, From: from, Backward: true, Limit: 100})
		if err != nil {
			w.fail("%s pages back in %s: %v", u, r.name, err)
			return nil
		}
		all = append(all, page.Events...)
		if from = page.End; from == nil {
			break
		}
	}
	return all
}

// checkPages: servers with the same end of a room show the same history of it, back to the beginning if anybody has that still, and each
// event once.
func (w *world) checkPages(ctx context.Context, r *room) {
	var first *user
	var ends []matrix.EventID
	var history map[matrix.EventID]bool
	residents := w.residents(ctx, r)
	for _, s := range residents { // who has got something helps others to it
		if users := s.current().joinedUsers(ctx, r.id); len(users) > 0 && r.spoken[s] {
			w.pages(ctx, users[0], r)
		}
	}
	for _, s := range residents {
		users := s.current().joinedUsers(ctx, r.id)
		if len(users) == 0 || !r.spoken[s] {
			continue
		}
		seen, said := map[matrix.EventID]bool{}, map[string]bool{}
		for _, ev := range w.pages(ctx, users[0], r) {
			text, _ := ev.ContentString("body")
			by := string(ev.Sender()) + text
			if seen[ev.ID()] || ev.Type() == "m.room.message" && text != "" && said[by] {
				w.fail("%s is shown %s %q of %s twice", users[0], ev.ID(), text, r.name)
			}
			if w.cancelled[text] {
				w.fail("%s is shown %q in %s, which was cancelled", users[0], text, r.name)
			}
			seen[ev.ID()], said[by] = true, true
		}
		_, now := w.state(ctx, s, r)
		if first == nil {
			first, ends, history = users[0], now, seen
			continue
		}
		if !slices.Equal(sorted(ends), sorted(now)) {
			continue
		}
		w.compareHistory(ctx, r, first, users[0], history, seen)
		w.compareHistory(ctx, r, users[0], first, seen, history)
	}
}

// compareHistory fails for what a sees and b does not, unless b's server soft-failed it, which is about the moment when it came, or all that
// follows on it: what comes before what was soft-failed is not asked for.
func (w *world) compareHistory(ctx context.Context, r *room, a, b *user, seen, other map[matrix.EventID]bool) {
	var follows map[matrix.EventID][]matrix.EventID
	var excused func(id matrix.EventID) bool
	excused = func(id matrix.EventID) bool {
		if other[id] {
			return false
		}
		ev, err := b.s.current().rooms.Event(ctx, id)
		if err == nil && (ev.SoftFailed || w.sameEffect(ctx, a, b, ev)) {
			return true
		}
		if follows == nil {
			follows = w.children(ctx, a, seen)
		}
		if len(follows[id]) == 0 {
			// What came in through an excluded server reached nobody, and was left behind on joining again; and whoever came later has not got what others soft-failed.
			return len(r.excluded) > 0 || err != nil && w.softFailed(ctx, r, id)
		}
		return !slices.ContainsFunc(follows[id], func(child matrix.EventID) bool { return !excused(child) })
	}
	for _, id := range slices.Sorted(maps.Keys(seen)) {
		if !other[id] && !excused(id) {
			_, err := b.s.current().rooms.Event(ctx, id)
			w.fail("%s sees %s in %s, %s does not: %v", a, id, r.name, b, err)
		}
	}
}

// softFailed says whether a server in a room has soft-failed an event.
func (w *world) softFailed(ctx context.Context, r *room, id matrix.EventID) bool {
	return slices.ContainsFunc(w.residents(ctx, r), func(s *server) bool {
		ev, err := s.current().rooms.Event(ctx, id)
		return err == nil && ev.SoftFailed
	})
}

// children lists those of some events that follow directly on an event, by that.
func (w *world) children(ctx context.Context, u *user, events map[matrix.EventID]bool) map[matrix.EventID][]matrix.EventID {
	out := map[matrix.EventID][]matrix.EventID{}
	for id := range events {
		ev, err := u.s.current().rooms.Event(ctx, id)
		if err != nil {
			w.fail("%s: %v", u.s.short, err)
			continue
		}
		for _, prev := range ev.PrevEvents() {
			out[prev] = append(out[prev], id)
		}
	}
	return out
}

// redactedItself says whether an event was redacted, as a user's server knows.
func redactedItself(ctx context.Context, u *user, id matrix.EventID) bool {
	ev, err := u.s.current().rooms.Event(ctx, id)
	return err == nil && ev.RedactedBy != ""
}

// sameEffect says whether an event is a redaction that two users' servers heed alike. It may have a place of its own with one of them only: it
// has none where it came before what it redacts, or where it takes no effect and the room's state did not change with it.
func (w *world) sameEffect(ctx context.Context, a, b *user, ev *rooms.Event) bool {
	id, ok := ev.Redacts()
	if ev.Type() != "m.room.redaction" {
		return false
	}
	if !ok {
		return redactedItself(ctx, a, ev.ID()) || redactedItself(ctx, b, ev.ID()) // and says no more what it redacts
	}
	one, err := a.s.current().rooms.Event(ctx, id)
	other, otherErr := b.s.current().rooms.Event(ctx, id)
	if err != nil || otherErr != nil {
		return matrix.HasCode(err, "M_NOT_FOUND") || matrix.HasCode(otherErr, "M_NOT_FOUND")
	}
	return (one.RedactedBy == "") == (other.RedactedBy == "")
}
