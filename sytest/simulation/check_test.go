package simulation

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/rooms"
)

// check looks at what there is when all has come to rest.
func (w *world) check() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	all := slices.Clone(w.rooms)
	for _, r := range all {
		w.checkHistory(ctx, r, false, w.findLost(ctx, r))
	}
	// One more message of each user ties together what was sent at the same time, and a last one ties together those. Of each user: the others may
	// soft-fail what one of a server says, and take in its branch of the room with what another one says.
	for range 2 {
		for _, r := range all {
			w.mu.Lock()
			clear(r.spoken)
			w.mu.Unlock()
			for _, s := range w.residents(ctx, r) {
				for _, u := range s.current().joinedUsers(ctx, r.id) {
					w.say(u, r)
					w.pause(time.Microsecond, time.Millisecond)
				}
			}
		}
		w.quiesce()
	}
	for _, r := range all {
		if s := w.residents(ctx, r); len(s) > 0 {
			if u := s[0].current().joinedUsers(ctx, r.id); len(u) > 0 {
				w.say(u[0], r)
				w.pause(time.Microsecond, time.Millisecond)
			}
		}
	}
	w.quiesce()
	for _, r := range all {
		lost := w.findLost(ctx, r)
		w.checkHistory(ctx, r, true, lost)
		maps.Copy(r.excluded, lost)
		w.checkAgreement(ctx, r)
		w.checkMemberships(ctx, r)
		w.checkReceipts(ctx, r)
		w.checkPages(ctx, r)
	}
	w.checkClients(ctx)
	w.checkDeviceLists(ctx)
	if *dumped {
		for _, s := range w.servers {
			w.dump(ctx, s, os.Stderr)
		}
	}
}

// residents are the servers that think that they are in a room, without those that its server ACL shut out at some time.
func (w *world) residents(ctx context.Context, r *room) []*server {
	var in []*server
	for _, s := range w.servers {
		snap, err := s.current().rooms.Snapshot(ctx, r.id)
		if err == nil && snap.Resident && !r.excluded[s] {
			in = append(in, s)
		}
	}
	return in
}

// checkHistory: what was acknowledged is there, at the server that did and at all that were in the room then and are now. A server
// that left may not have been in the room when an event came to it: it has it when, in the end, what it is sent comes after that.
func (w *world) checkHistory(ctx context.Context, r *room, end bool, lost map[*server]bool) {
	residents := slices.DeleteFunc(w.residents(ctx, r), func(s *server) bool {
		doubtful := slices.ContainsFunc(s.users, func(u *user) bool { return r.doubtful[u] }) // it may not have known that the others count it in
		return (r.left[s] || doubtful || w.partial(ctx, s, r)) && !end || lost[s]
	})
	for _, a := range r.acked {
		home := a.by.s.current()
		ev, err := home.rooms.Event(ctx, a.id)
		if err != nil {
			w.fail("%s lost %s, what %s %s: %v", a.by.s.short, a.id, a.by, a.what, err)
			continue
		}
		if len(r.excluded) > 0 || ev.Outlier {
			continue // whom a server ACL excludes may have been the one to send it on
		}
		then, err := home.rooms.ServersAt(ctx, ev)
		if err != nil {
			w.fail("%s: %v", a.by.s.short, err)
		}
		invite := ev.Type() == "m.room.member" && ev.Membership() == "invite"
		for _, s := range residents {
			if !slices.Contains(then, s.name) || invite && !w.inAt(ctx, home, ev, s) { // who came after the invite has it with what follows on it
				continue
			}
			there, err := s.current().rooms.Event(ctx, a.id)
			if err != nil && !w.afterGap(ctx, s, r, a.id) {
				w.fail("%s has not got %s, what %s %s: %v", s.short, a.id, a.by, a.what, err)
			}
			if err == nil && there.Rejected && !(there.Type() == "m.room.redaction" && redactedItself(ctx, a.by, a.id)) { // without what it redacts it is allowed to fewer
				w.fail("%s rejects %s, what %s %s", s.short, a.id, a.by, a.what)
			}
		}
	}
}

// inAt says whether a server was in a room when an event was made, as far as home knows.
func (w *world) inAt(ctx context.Context, home *process, ev *rooms.Event, s *server) bool {
	state, err := home.rooms.StateAfter(ctx, ev)
	if err != nil {
		w.fail("%s: %v", s.short, err)
		return false
	}
	for _, u := range s.users {
		if m, err := state.Membership(ctx, u.id); err != nil {
			w.fail("%s: %v", s.short, err)
		} else if m == "join" {
			return true
		}
	}
	return false
}

// partial says whether a server joined a room without its members and does not know them yet: the others do not count it in.
func (w *world) partial(ctx context.Context, s *server, r *room) bool {
	p := s.current()
	nid, err := p.rooms.RoomNID(ctx, r.id)
	return err == nil && p.rooms.PartialAt(p.db.Current())[nid]
}

// afterGap pages back through a room, which fetches what a server missed while it was not in the room, and
// says whether the event is there then.
func (w *world) afterGap(ctx context.Context, s *server, r *room, id matrix.EventID) bool {
	p := s.current()
	in := p.joinedUsers(ctx, r.id)
	if len(in) == 0 {
		return false
	}
	w.pages(ctx, in[0], r)
	_, err := p.rooms.Event(ctx, id)
	return err == nil
}

// state is the current state that a server has, and its forward extremities.
func (w *world) state(ctx context.Context, s *server, r *room) (map[matrix.StateKey]matrix.EventID, []matrix.EventID) {
	out := map[matrix.StateKey]matrix.EventID{}
	snap, err := s.current().rooms.Snapshot(ctx, r.id)
	if err != nil {
		w.fail("%s: %v", s.short, err)
		return nil, nil
	}
	events, err := snap.State.All(ctx)
	if err != nil {
		w.fail("%s: %v", s.short, err)
		return nil, nil
	}
	for _, ev := range events {
		key, _ := ev.StateKey()
		out[matrix.StateKey{Type: ev.Type(), Key: key}] = ev.ID()
	}
	return out, snap.Extremities
}

// findLost finds servers that joined a room at a time when others had closed it, or had closed it when somebody joined who then removed
// them: to the others they are not in it, so that they are sent nothing that could tell them. That is how Matrix is: what one side
// did is soft-failed by the other, and there is no event that says so.
func (w *world) findLost(ctx context.Context, r *room) map[*server]bool {
	out := map[*server]bool{}
	residents := w.residents(ctx, r)
	for _, s := range residents {
		for _, other := range residents {
			in, err := other.current().rooms.JoinedServers(ctx, r.id)
			if err != nil {
				w.fail("%s: %v", other.short, err)
			}
			if slices.Contains(in, s.name) {
				continue
			}
			gone := func(u *user) bool {
				theirs, err := other.current().rooms.MembershipOf(ctx, r.id, u.id)
				if err != nil {
					w.fail("%s: %v", other.short, err)
				}
				own, err := s.current().rooms.MembershipOf(ctx, r.id, u.id)
				if err != nil {
					w.fail("%s: %v", s.short, err)
				}
				if theirs.Sender != "" && r.excluded[w.byHost[host(theirs.Sender.Server())]] && own.Membership == "join" {
					return true // removed by somebody whose server is excluded: others heard of that by who joined through it
				}
				// Resolutions of states of version 1 may go back to an earlier membership, and of others where a join in between does not last.
				return w.lost(ctx, s, other, theirs, own) || w.follows(ctx, s, theirs, own) && (r.version == "1" || w.rejoinLost(ctx, r, s, theirs, own))
			}
			if !slices.ContainsFunc(s.current().joinedUsers(ctx, r.id), func(u *user) bool { return !gone(u) }) {
				out[s] = true
			}
		}
	}
	return out
}

// rejoinLost says whether somebody joined again after they had left, through a server that had not heard of it, and that join does not last: what is
// resolved then is that join and the one before the leave, which only version 12 (state resolution 2.1) looks at, too.
func (w *world) rejoinLost(ctx context.Context, r *room, s *server, left, own rooms.Membership) bool {
	if r.version == "12" || own.Membership != "join" {
		return false
	}
	leave, err := s.current().rooms.Event(ctx, left.Event)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(r.acked, func(a ackedEvent) bool {
		if a.by.id != own.User || a.id == own.Event {
			return false
		}
		again, err := s.current().rooms.Event(ctx, a.id)
		return err == nil && again.Is("m.room.member", string(own.User)) && again.Membership() == "join" &&
			again.OriginServerTS() >= leave.OriginServerTS() && !slices.Contains(again.AuthEvents(), left.Event)
	})
}

// voice is the server by which others are judged: one whose users may speak, if there is one, which ties loose ends of the room together.
func (r *room) voice(residents []*server) *server {
	return residents[max(0, slices.IndexFunc(residents, func(s *server) bool { return r.spoken[s] }))]
}

// checkAgreement: all servers in a room have the same state and the same end of history, and agree on who is in it.
func (w *world) checkAgreement(ctx context.Context, r *room) {
	residents := w.residents(ctx, r)
	if len(residents) == 0 {
		return
	}
	first := r.voice(residents)
	state, ends := w.state(ctx, first, r)
	in, err := first.current().rooms.JoinedServers(ctx, r.id)
	if err != nil {
		w.fail("%s: %v", first.short, err)
	}
	for _, s := range w.servers {
		doubtful := slices.ContainsFunc(s.users, func(u *user) bool { return r.doubtful[u] })
		if slices.Contains(in, s.name) != slices.Contains(residents, s) && !r.excluded[s] && !doubtful && !w.untold(ctx, r, residents, s) && !w.wentBack(ctx, r, first, s) &&
			!slices.ContainsFunc(s.users, func(u *user) bool { return w.lostAtHome(ctx, r, first, u) }) {
			w.fail("%s is in %s: %s says %v, itself %v", s.short, r.name, first.short, slices.Contains(in, s.name), slices.Contains(residents, s))
		}
	}
	for _, s := range residents {
		other, otherEnds := w.state(ctx, s, r)
		// What some soft-failed stays an end of the room to the others, unless somebody ties it to the rest; who may not speak cannot.
		tied := r.spoken[first] && r.spoken[s]
		if !tied && !slices.Equal(sorted(ends), sorted(otherEnds)) {
			continue
		}
		if diff := cmp.Diff(stateText(state), stateText(other)); diff != "" {
			w.fail("%s and %s disagree on %s: %s", first.short, s.short, r.name, diff)
		}
		if len(r.excluded) == 0 && tied && !slices.Equal(sorted(ends), sorted(otherEnds)) {
			w.fail("%s and %s disagree on the end of %s: %s %s", first.short, s.short, r.name, ends, otherEnds)
		}
	}
}

// wentBack says whether a server counts in users of another one by earlier joins of theirs, to which resolutions of states of version 1 go back.
func (w *world) wentBack(ctx context.Context, r *room, first, s *server) bool {
	return r.version == "1" && !slices.ContainsFunc(s.users, func(u *user) bool {
		theirs, err := first.current().rooms.MembershipOf(ctx, r.id, u.id)
		if err != nil {
			w.fail("%s: %v", first.short, err)
		}
		own, err := s.current().rooms.MembershipOf(ctx, r.id, u.id)
		if err != nil {
			w.fail("%s: %v", s.short, err)
		}
		return theirs.Membership == "join" && !w.follows(ctx, first, own, theirs)
	})
}

// lostAtHome says whether a user's membership went at the user's own server, in a resolution of the states of two branches, one of which the first
// has soft-failed. Before version 12 (state resolution 2.1) a join may be lost so when the join rules are changed, without any event that ends it.
func (w *world) lostAtHome(ctx context.Context, r *room, first *server, u *user) bool {
	home := u.s.current().rooms
	own, err := home.MembershipOf(ctx, r.id, u.id)
	if r.version == "12" || err != nil || own.Membership != "leave" || own.Event != "" {
		return false
	}
	_, ends := w.state(ctx, u.s, r)
	return slices.ContainsFunc(ends, func(id matrix.EventID) bool {
		ev, err := first.current().rooms.Event(ctx, id)
		return err != nil || ev.SoftFailed
	})
}

// untold says whether a server has left a room and others know, but may not speak there: one who was away when it left hears of it
// from what somebody says who knows.
func (w *world) untold(ctx context.Context, r *room, residents []*server, s *server) bool {
	return r.left[s] && slices.ContainsFunc(residents, func(other *server) bool {
		in, err := other.current().rooms.JoinedServers(ctx, r.id)
		if err != nil {
			w.fail("%s: %v", other.short, err)
		}
		return other != s && !r.spoken[other] && !slices.Contains(in, s.name)
	})
}

func sorted(ids []matrix.EventID) []matrix.EventID {
	return slices.Sorted(slices.Values(ids))
}

// checkClients: whoever has followed /sync knows what the server knows, and has got all messages to the device once and in order.
func (w *world) checkClients(ctx context.Context) {
	for _, u := range w.users {
		p := u.s.current()
		if err := u.client.sync(ctx, p); err != nil {
			w.fail("%s syncs: %v", u, err)
			continue
		}
		for _, r := range w.rooms {
			m, err := p.rooms.MembershipOf(ctx, r.id, u.id)
			if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
				w.fail("%s: %v", u, err)
			}
			told := u.client.rooms[r.id]
			switch m.Membership {
			case "join", "invite", "knock":
				if told == nil && r.excluded[u.s] && p.rooms.PartialAt(p.db.Current())[m.RoomNID] {
					continue // whom the others do not count in is not given the members, and its clients wait for them
				}
				if told == nil || told.membership != m.Membership {
					w.fail("%s was not told of %s in %s", u, m.Membership, r.name)
				}
			default:
				if told != nil && told.membership != "leave" {
					w.fail("%s was not told of %s in %s", u, m.Membership, r.name)
				}
			}
			if m.Membership == "join" && told != nil {
				state, _ := w.state(ctx, u.s, r)
				for key := range told.state {
					if _, ok := state[key]; !ok {
						delete(told.state, key) // state that was lost in a resolution: /sync has no word for it
					}
				}
				if diff := cmp.Diff(stateText(state), stateText(told.state)); diff != "" {
					w.fail("%s was told another state of %s than %s has: %s", u, r.name, u.s.short, diff)
				}
			}
		}
		for _, from := range w.users {
			w.checkToDevice(from, u)
		}
	}
}

// dump prints the events that a server has of each room, with the state after them, for who looks for a cause.
func (w *world) dump(ctx context.Context, s *server, out io.Writer) {
	p := s.current()
	events, err := p.rooms.EventsAfter(ctx, 0, p.db.Current(), 10_000)
	if err != nil {
		w.fail("%s: %v", s.short, err)
	}
	for _, ev := range events {
		key, isState := ev.StateKey()
		what := ev.Type()
		if isState {
			what += " " + key
		}
		after, err := p.rooms.StateAfter(ctx, ev)
		if err != nil {
			w.fail("%s: %v", s.short, err)
			continue
		}
		n, _ := after.Len(ctx) //nolint:errcheck // it was read a moment ago
		fmt.Fprintf(out, "%s %s %.8s %d %s by %s %s soft-failed %v, %d state events after, prev %.8s auth %.8s\n",
			s.short, ev.RoomID(), ev.ID(), ev.Depth(), what, ev.Sender(), ev.Membership(), ev.SoftFailed, n, ev.PrevEvents(), ev.AuthEvents())
	}
}
