package rooms

import (
	"context"
	"slices"
	"sync"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/storage"
	"hanok/storage/statetree"
)

// That a server was removed from a room it is told once, by the event that did it. If that is lost, or the database is from a backup, the server goes on
// thinking that it is in the room, of which nobody sends it anything. An invite shows that something may be wrong: one of a user who is in
// the room by what is known here, or one that does not come as an event. Then others are asked; those only whose users may remove
// all of ours, so that nobody gets the power to do so by an answer.

const (
	residenceAsked = 5                // servers, and users of ours, that are asked, and asked about
	residenceTime  = 8 * time.Second  // for the answers: who sent the invite waits
	residenceEvery = 30 * time.Second // a room is asked about at most
	maxResidences  = 1000             // rooms of which it is remembered when they were asked about
	// An invite that was signed comes as an event within signedPatience; the pause until it is looked for again grows to signedLast.
	signedPatience = 10 * time.Second
	signedLast     = 6 * time.Hour
)

// residence is what others say about whether this server is in a room.
type residence int

const (
	residenceUnknown residence = iota
	residenceHolds
	residenceOver
)

// settleResidence asks servers in a room whether this one is, the inviter's first; if not, it ends the memberships of local users.
func (e *Engine) settleResidence(ctx context.Context, r *room, inviter matrix.ServerName) (residence, error) {
	now := e.now()
	if last, asked := e.residences.Get(r.nid); asked && now < last.Add(residenceEvery) || e.isolation.has(r.id) || e.partials.get(r.nid) != nil {
		return residenceUnknown, nil
	}
	e.residences.Put(r.nid, now)
	c, err := r.current(ctx)
	if err != nil || len(c.local) == 0 {
		return residenceUnknown, err
	}
	servers, err := e.mayRemove(ctx, r, c)
	if err != nil {
		return residenceUnknown, err
	}
	servers = sortedLast(e.answeringFirst(servers), func(s matrix.ServerName) bool { return s != inviter })
	said := e.askResidence(ctx, r.id, servers[:min(len(servers), residenceAsked)], c.local[:min(len(c.local), residenceAsked)])
	if said != residenceOver {
		return said, nil
	}
	e.log.Warn().Int64("room", int64(r.nid)).Msg("others in a room say that this server is not in it: how its users left it was missed")
	return said, e.endResidence(ctx, r, c.local)
}

// mayRemove lists the servers of which a user may remove any local user from a room.
func (e *Engine) mayRemove(ctx context.Context, r *room, c *committed) ([]matrix.ServerName, error) {
	state := State{e, c.head.state}
	levels, err := state.PowerLevels(ctx)
	if err != nil {
		return nil, err
	}
	create, err := state.Event(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return nil, err
	}
	mighty := eventauth.Creators(create.Event)
	levels.Users(func(u matrix.UserID, _ int64) bool {
		mighty = append(mighty, u)
		return true
	})
	mighty = slices.DeleteFunc(mighty, func(u matrix.UserID) bool {
		level := levels.User(u)
		return e.isLocal(u) || level < levels.Kick() || slices.ContainsFunc(c.local, func(own matrix.UserID) bool { return levels.User(own) >= level })
	})
	var servers []matrix.ServerName
	for _, u := range mighty {
		if slices.Contains(servers, domain(u)) {
			continue
		}
		m, err := state.Membership(ctx, u)
		if err != nil {
			return nil, err
		}
		if m == "join" {
			servers = append(servers, domain(u))
		}
	}
	e.inTurn(r.id, servers)
	return servers, nil
}

// askResidence asks whether any of some local users are in a room: who is could leave it.
func (e *Engine) askResidence(ctx context.Context, id matrix.RoomID, servers []matrix.ServerName, users []matrix.UserID) residence {
	ctx, cancel := context.WithTimeout(ctx, residenceTime)
	defer cancel()
	said := make([]residence, len(servers))
	var asking sync.WaitGroup
	for i, s := range servers {
		asking.Go(func() {
			for _, u := range users {
				_, err := e.remote.MakeLeave(ctx, s, id, u)
				switch {
				case err == nil:
					said[i] = residenceHolds
					return
				case !matrix.HasCode(err, "M_FORBIDDEN"): // silent, or not in the room itself
					return
				}
			}
			said[i] = residenceOver
		})
	}
	asking.Wait()
	for _, says := range []residence{residenceHolds, residenceOver} {
		if slices.Contains(said, says) {
			return says
		}
	}
	return residenceUnknown
}

// endResidence ends the memberships of users by no event: what ended them is not known.
func (e *Engine) endResidence(ctx context.Context, r *room, users []matrix.UserID) error {
	ctx = context.WithoutCancel(ctx)
	if err := r.lockInbound(ctx); err != nil {
		return err
	}
	defer r.unlockInbound()
	en := &entry{room: r, line: &line{}}
	for _, u := range users {
		m, err := e.membershipIn(ctx, r.nid, u)
		if err != nil {
			return err
		}
		if m.Membership == storage.MembershipJoin {
			en.members = append(en.members, memberChange{user: m.User, server: e.own, name: u, previous: "join", current: "leave"})
		}
	}
	if len(en.members) == 0 {
		return nil
	}
	e.committer.add(en)
	return en.wait(ctx)
}

// afterEnd makes changes of membership ones from what local users are by now: where their residence has ended, the room's last state does not say so. It adds those of
// whom the state says, in spite of that, that they are in the room.
func (r *room) afterEnd(ctx context.Context, state statetree.Tree, changes []memberChange) ([]memberChange, error) {
	e := r.e
	for i, ch := range changes {
		if ch.server != e.own {
			continue
		}
		m, err := e.membershipIn(ctx, r.nid, ch.name)
		if err != nil {
			return nil, err
		}
		changes[i].previous = m.Membership.String()
	}
	left, err := storage.LeftOfServer(ctx, e.db, r.nid, e.own, 0)
	if err != nil {
		return nil, err
	}
	names, err := e.db.UserIDs(ctx, left...)
	if err != nil {
		return nil, err
	}
	for i, u := range names {
		if slices.ContainsFunc(changes, func(ch memberChange) bool { return ch.name == u }) {
			continue
		}
		nid, err := e.lookup(ctx, state, "m.room.member", string(u))
		if err != nil {
			return nil, err
		}
		if nid == 0 {
			continue
		}
		ev, err := r.event(ctx, nid)
		if err != nil {
			return nil, err
		}
		if ev.Membership() == "join" {
			m, err := e.membershipIn(ctx, r.nid, u)
			if err != nil {
				return nil, err
			}
			changes = append(changes, memberChange{user: left[i], server: e.own, name: u, previous: m.Membership.String(), current: "join", event: ev})
		}
	}
	return changes, nil
}

// awaitSigned waits in the background for an invite to a room that was signed to come as an event, and looks whether this server is in the room if it does not.
func (e *Engine) awaitSigned(nid storage.RoomNID) {
	if _, waiting := e.awaited.LoadOrStore(nid, true); waiting {
		return
	}
	started := e.background(func() {
		defer e.awaited.Delete(nid)
		for pause := signedPatience; ; pause = min(6*pause, signedLast) {
			if wake.After(e.life, pause, nil) != nil {
				return
			}
			settled, err := e.lookForSigned(e.life, nid)
			if err != nil && e.life.Err() == nil {
				e.log.Error().Err(err).Int64("room", int64(nid)).Msg("whether this server is still in a room")
			}
			if settled {
				return
			}
		}
	})
	if !started {
		e.awaited.Delete(nid)
	}
}

// lookForSigned says whether no signed invite to a room has to be waited for any more.
func (e *Engine) lookForSigned(ctx context.Context, nid storage.RoomNID) (settled bool, err error) {
	invites, err := storage.SignedInvites(ctx, e.db, nid)
	if err != nil {
		return false, err
	}
	oldest := e.now().Add(-signedInviteLife)
	invites = slices.DeleteFunc(invites, func(i storage.SignedInvite) bool { return i.TS < oldest })
	if len(invites) == 0 {
		return true, nil
	}
	r, err := e.roomByNID(ctx, nid)
	if err != nil {
		return false, err
	}
	defer r.release()
	if resident, err := r.resident(ctx); err != nil || !resident {
		return !resident, err // they are settled as that is found out
	}
	ev, err := event.Parse(r.version, invites[0].PDU)
	if err != nil {
		return true, err
	}
	said, err := e.settleResidence(ctx, r, domain(ev.Sender()))
	return said != residenceUnknown, err
}
