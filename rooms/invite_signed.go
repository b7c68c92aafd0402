package rooms

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/storage"
)

// An invite of a local user to a room that this server is in comes as an event, too. But whoever sent it may know already that this server was
// removed from the room, and then it does not: the invite that was signed is kept until the event is here, and stands if this server turns out to
// be outside.

// signedInviteLife is how long an invite may be on its way as an event.
const signedInviteLife = 7 * 24 * time.Hour

// keepSigned stores an invite that this server is about to have signed.
func (r *room) keepSigned(ctx context.Context, signed *event.Event, user matrix.UserID, stripped [][]byte) error {
	known, err := r.eventsByID(ctx, []matrix.EventID{signed.ID()})
	if err != nil || known[signed.ID()] != nil {
		return err
	}
	nids, err := r.e.db.Intern(ctx, string(user))
	if err != nil {
		return err
	}
	err = r.e.db.Write(ctx, func(tx *storage.Tx) error {
		return storage.PutSignedInvite(ctx, tx, storage.SignedInvite{Room: r.nid, User: nids[0], PDU: signed.JSON(), State: strippedJSON(stripped), TS: r.e.now()})
	})
	if err != nil {
		return err
	}
	// This server may have been removed meanwhile, or before.
	if resident, err := r.resident(ctx); err != nil || resident {
		r.e.awaitSigned(r.nid)
		return err
	}
	return r.e.takeSignedInvites(ctx, r.nid)
}

// settleSignedInvites makes the invites to a room stand in which this server does not take part any more.
func (e *Engine) settleSignedInvites(room storage.RoomNID) {
	e.background(func() {
		if err := e.takeSignedInvites(e.life, room); err != nil && e.life.Err() == nil {
			e.log.Error().Err(err).Int64("room", int64(room)).Msg("invites to a room that was left are not shown until the next start")
		}
	})
}

// settleAllSignedInvites does so for all rooms, after a start, and forgets invites that nobody waits for any more.
func (e *Engine) settleAllSignedInvites(ctx context.Context) error {
	oldest := e.now().Add(-signedInviteLife)
	if err := e.db.Write(ctx, func(tx *storage.Tx) error { return storage.DropSignedInvitesBefore(ctx, tx, oldest) }); err != nil {
		return err
	}
	rooms, err := storage.RoomsOfSignedInvites(ctx, e.db)
	if err != nil {
		return err
	}
	for _, nid := range rooms {
		if err := e.takeSignedInvites(ctx, nid); err != nil {
			return fmt.Errorf("room %d: %w", nid, err)
		}
		e.awaitSigned(nid)
	}
	return nil
}

// takeSignedInvites makes the invites to a room stand, unless this server is in it.
func (e *Engine) takeSignedInvites(ctx context.Context, nid storage.RoomNID) error {
	invites, err := storage.SignedInvites(ctx, e.db, nid)
	if err != nil || len(invites) == 0 {
		return err
	}
	r, err := e.roomByNID(ctx, nid)
	if err != nil {
		return err
	}
	defer r.release()
	if resident, err := r.resident(ctx); err != nil || resident {
		return err
	}
	for _, i := range invites {
		if err := e.takeSignedInvite(ctx, r, i); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) takeSignedInvite(ctx context.Context, r *room, i storage.SignedInvite) error {
	drop := func(ctx context.Context, tx *storage.Tx) error {
		return storage.DropSignedInvites(ctx, tx, []storage.MemberKey{{Room: i.Room, User: i.User}})
	}
	ev, err := event.Parse(r.version, i.PDU)
	if err != nil {
		return err
	}
	key, _ := ev.StateKey()
	user := matrix.UserID(key)
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return err
	}
	known, err := r.eventsByID(ctx, []matrix.EventID{ev.ID()})
	if err != nil {
		return err
	}
	refused := e.mayInvite(ctx, user, ev.Sender())
	if _, ok := matrix.AsError(refused); refused != nil && !ok {
		return refused
	}
	if known[ev.ID()] != nil || refused != nil || m.Membership == storage.MembershipBan || i.TS < e.now().Add(-signedInviteLife) {
		return e.db.Write(ctx, func(tx *storage.Tx) error { return drop(ctx, tx) })
	}
	return r.setApart(ctx, ev, user, m.Membership, slices.Collect(canonicaljson.Elements(i.State)), nil)
}
