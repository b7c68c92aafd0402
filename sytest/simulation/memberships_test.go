package simulation

import (
	"context"
	"encoding/json"
	"slices"

	"hanok/matrix"
	"hanok/rooms"
)

// checkMemberships: a user's own server knows of the user's membership what those in the room know, and says in
// its table what the state says.
func (w *world) checkMemberships(ctx context.Context, r *room) {
	residents := w.residents(ctx, r)
	if len(residents) == 0 {
		return
	}
	first := r.voice(residents)
	inside := first.current()
	for _, u := range w.users {
		if r.excluded[u.s] {
			continue
		}
		want, err := inside.rooms.MembershipOf(ctx, r.id, u.id)
		if err != nil {
			w.fail("%s: %v", first.short, err)
		}
		got, err := u.s.current().rooms.MembershipOf(ctx, r.id, u.id)
		if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
			w.fail("%s: %v", u.s.short, err)
		}
		if want.Membership == got.Membership {
			continue
		}
		switch {
		case want.Membership == "invite" && got.Membership == "leave":
			// Refused while nobody in the room could be reached: it is over for the user all the same.
		case r.doubtful[u] && !slices.Contains(residents, u.s):
			// It was changed, and the word that it was got lost on the way back.
		case !r.spoken[first] && w.untiedSay(ctx, r, residents, u, got.Membership):
			// The first has soft-failed what stays an end of the room to others, and to the user's server; nobody may tie it to the rest.
		case w.softFailedBy(ctx, r, residents, u, got):
			// The same, though the first may speak: those who may not have what it soft-failed.
		case r.version == "1" && w.follows(ctx, first, got, want):
			// Resolutions of states of that version go back to an earlier membership where a later one follows on one in between.
		case w.lostAtHome(ctx, r, first, u):
			// Nobody took it away.
		case want.Membership == "" && got.Membership == "leave":
			// It joined at a time when others had closed the room.
		case (got.Membership == "invite" || got.Membership == "knock") && want.Membership != "join" && !slices.Contains(residents, u.s) && !w.follows(ctx, first, want, got):
			// The invite or knock lost against something else in a resolution of states: there is no event that takes it back.
		case want.Event == "" && got.Event == "" && outside(want.Membership) && outside(got.Membership):
			// It was never one here, and was lost in a resolution of states there.
		case outside(want.Membership) && outside(got.Membership) && !slices.Contains(residents, u.s):
			// Of no interest to a server that is not in the room.
		default:
			w.fail("%s in %s: %q says %s, %q says %s", u, r.name, want.Membership, first.short, got.Membership, u.s.short)
		}
	}
}

// untiedSay says whether a server with other ends of a room than the first resident takes a user's membership for the given one.
func (w *world) untiedSay(ctx context.Context, r *room, residents []*server, u *user, membership string) bool {
	_, ends := w.state(ctx, r.voice(residents), r)
	return slices.ContainsFunc(residents, func(s *server) bool {
		_, other := w.state(ctx, s, r)
		m, err := s.current().rooms.MembershipOf(ctx, r.id, u.id)
		if err != nil {
			w.fail("%s: %v", s.short, err)
		}
		return m.Membership == membership && !slices.Equal(sorted(ends), sorted(other))
	})
}

// softFailedBy says whether the first resident has soft-failed the membership that a user has at the user's own server, where a branch that the first
// soft-failed stays an end of the room: nobody who has that end may speak and tie it to the rest.
func (w *world) softFailedBy(ctx context.Context, r *room, residents []*server, u *user, own rooms.Membership) bool {
	first := r.voice(residents).current()
	failed := func(id matrix.EventID) bool {
		ev, err := first.rooms.Event(ctx, id)
		return err == nil && ev.SoftFailed
	}
	if !slices.Contains(residents, u.s) || own.Event == "" || !failed(own.Event) {
		return false
	}
	_, ends := w.state(ctx, u.s, r)
	return slices.ContainsFunc(ends, func(end matrix.EventID) bool {
		return failed(end) && !slices.ContainsFunc(residents, func(s *server) bool {
			_, theirs := w.state(ctx, s, r)
			return r.spoken[s] && slices.Contains(theirs, end)
		})
	})
}

// lost says whether a user's membership as its own server s sees it went in a resolution of states at another, there: no event ended it, but
// there is none any more, or one prevails that was made earlier. That was sent, if at all, when s knew nothing of the room or had left it.
func (w *world) lost(ctx context.Context, s, there *server, theirs, own rooms.Membership) bool {
	if theirs.Event == own.Event {
		return false
	}
	if !outside(theirs.Membership) {
		// A knock may also be made beside the join: through a server that had heard that the room was closed, when another one had not.
		return own.Membership == "join" && (theirs.Membership == "knock" || w.follows(ctx, s, own, theirs)) && w.joinRulesChanged(ctx, there, own)
	}
	if theirs.Event == "" || w.follows(ctx, s, own, theirs) || w.endedByNobody(ctx, s, theirs) || w.follows(ctx, s, theirs, own) && w.undone(ctx, s, theirs) {
		return true
	}
	ended, err := there.current().rooms.Event(ctx, theirs.Event)
	if err != nil {
		w.fail("%s: %v", there.short, err)
		return false
	}
	began, err := s.current().rooms.Event(ctx, own.Event)
	if err != nil {
		w.fail("%s: %v", s.short, err)
		return false
	}
	return ended.OriginServerTS() < began.OriginServerTS() && !w.follows(ctx, there, theirs, own)
}

// joinRulesChanged says whether a room's join rules are others, as there sees it, than those by which somebody joined.
func (w *world) joinRulesChanged(ctx context.Context, there *server, joined rooms.Membership) bool {
	ev, err := there.current().rooms.Event(ctx, joined.Event)
	if err != nil {
		return false
	}
	snap, err := there.current().rooms.Snapshot(ctx, ev.RoomID())
	if err != nil {
		w.fail("%s: %v", there.short, err)
		return false
	}
	rules, err := snap.State.Event(ctx, "m.room.join_rules", "")
	if err != nil {
		w.fail("%s: %v", there.short, err)
	}
	return rules != nil && !slices.Contains(ev.AuthEvents(), rules.ID())
}

// endedByNobody says whether s knows the event that ended a membership, and soft-failed it for somebody's who was not in the room or had
// not the power, as far as s knows: what lets the sender do it is no part of the state there, because it was soft-failed before.
func (w *world) endedByNobody(ctx context.Context, s *server, ended rooms.Membership) bool {
	ev, err := s.current().rooms.Event(ctx, ended.Event)
	if err != nil || !ev.SoftFailed {
		return false
	}
	snap, err := s.current().rooms.Snapshot(ctx, ev.RoomID())
	if err != nil {
		w.fail("%s: %v", s.short, err)
		return false
	}
	basis, err := snap.State.Events(ctx, matrix.StateKey{Type: "m.room.member", Key: string(ev.Sender())}, matrix.StateKey{Type: "m.room.power_levels"})
	if err != nil {
		w.fail("%s: %v", s.short, err)
	}
	return slices.ContainsFunc(basis, func(e *rooms.Event) bool { return e == nil || !slices.Contains(ev.AuthEvents(), e.ID()) })
}

// undone says whether s knows the event that ended a membership, and that its sender has lost power since. Where the power levels are in conflict, the
// later ones may be ordered before it in a resolution: it comes after the join that it ends, whose sender need not have any power. Another resolution,
// in which all agree on the power levels, lets it hold, but who has been removed by that is not told what was resolved.
func (w *world) undone(ctx context.Context, s *server, ended rooms.Membership) bool {
	ev, err := s.current().rooms.Event(ctx, ended.Event)
	if err != nil || ev.SoftFailed || ev.Sender() == ended.User {
		return false
	}
	level := func(e *rooms.Event) int {
		var levels struct {
			Users map[matrix.UserID]int `json:"users"`
		}
		if err := json.Unmarshal(e.Content(), &levels); err != nil {
			w.fail("%s: %v", s.short, err)
		}
		return levels.Users[ev.Sender()]
	}
	snap, err := s.current().rooms.Snapshot(ctx, ev.RoomID())
	if err != nil {
		w.fail("%s: %v", s.short, err)
		return false
	}
	now, err := snap.State.Event(ctx, "m.room.power_levels", "")
	if err != nil {
		w.fail("%s: %v", s.short, err)
	}
	return now != nil && slices.ContainsFunc(ev.AuthEvents(), func(id matrix.EventID) bool {
		then, err := s.current().rooms.Event(ctx, id)
		return err == nil && then.Is("m.room.power_levels", "") && level(then) > level(now)
	})
}

// follows says whether a membership came after another one of the same user, as far as s knows.
func (w *world) follows(ctx context.Context, s *server, m, earlier rooms.Membership) bool {
	for next := m.Event; next != ""; {
		ev, err := s.current().rooms.Event(ctx, next)
		if err != nil {
			return false
		}
		if next = ""; slices.Contains(ev.AuthEvents(), earlier.Event) {
			return true
		}
		for _, id := range ev.AuthEvents() {
			if a, err := s.current().rooms.Event(ctx, id); err == nil && a.Is("m.room.member", string(m.User)) {
				next = id
			}
		}
	}
	return false
}

func outside(membership string) bool {
	return membership == "" || membership == "leave" || membership == "ban"
}
