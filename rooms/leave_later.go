package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"hanok/internal/backoff"
	"hanok/internal/wake"
	"hanok/storage"
)

// Who rejects an invite or takes back a knock is rid of it at once, also while no server in the room can be reached. Those in the room would
// go on to see it; so they are told later.

// When servers in a room are tried again.
const (
	untoldFirst = 30 * time.Second
	untoldLast  = 6 * time.Hour
	untoldLife  = 14 * 24 * time.Hour // after that nobody is told any more
	untoldTime  = 20 * time.Second    // for one try
	untoldBatch = 100                 // looked at together
)

// tellLater returns what stores, with a leave that stays here, whom to tell of it.
func (e *Engine) tellLater(ctx context.Context, r *room, q MemberRequest) (func(context.Context, *storage.Tx, *Event) error, error) {
	named, known, err := e.serversToTry(ctx, q)
	if err != nil {
		return nil, err
	}
	servers, err := json.Marshal(slices.Concat(named, known))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, tx *storage.Tx, leave *Event) error {
		now := e.now()
		err := storage.PutUntoldLeave(ctx, tx, storage.UntoldLeave{
			Room: r.nid, User: leave.skey, Event: leave.NID, Servers: servers, Since: now, Next: now.Add(untoldFirst),
		})
		if err == nil {
			tx.OnVisible(func() { wake.Up(e.untold) })
		}
		return err
	}, nil
}

// tellLeaves tells servers in rooms of leaves that they could not be told of at first, until ctx ends.
func (e *Engine) tellLeaves(ctx context.Context) {
	for {
		wait, err := e.tellDueLeaves(ctx)
		if err != nil && ctx.Err() == nil {
			e.log.Error().Err(err).Msg("tell rooms of leaves")
			wait = untoldFirst
		}
		if wake.After(ctx, wait, e.untold) != nil {
			return
		}
	}
}

// tellDueLeaves tries those whose time has come, and returns how long it is to the next.
func (e *Engine) tellDueLeaves(ctx context.Context) (time.Duration, error) {
	leaves, err := storage.UntoldLeaves(ctx, e.db, e.now().Add(untoldLast), untoldBatch)
	if err != nil {
		return 0, err
	}
	for _, l := range leaves {
		if wait := time.Duration(l.Next-e.now()) * time.Millisecond; wait > 0 {
			return wait, nil
		}
		if err := e.tellLeave(ctx, l); err != nil {
			return 0, fmt.Errorf("room %d: %w", l.Room, err)
		}
	}
	if len(leaves) > 0 {
		return 0, nil
	}
	return untoldLast, nil
}

// tellLeave tries once, and notes what came of it.
func (e *Engine) tellLeave(ctx context.Context, l storage.UntoldLeave) error {
	r, err := e.roomByNID(ctx, l.Room)
	if err != nil {
		return err
	}
	defer r.release()
	var over bool
	// While a leave is being sent of what was a refused invite the user must not enter the room with another. Until then whoever wants to comes first.
	// What others send of the room concerns neither, and goes on: this lets nobody into it.
	_, shared, err := e.joins.DoYielding(ctx, r.id, func(wanted <-chan struct{}) (struct{}, error) {
		over, err = e.tryToTell(ctx, r, l, wanted)
		return struct{}{}, err
	})
	if err != nil && !shared { // else that is what became of somebody's attempt to enter the room
		return err
	}
	return e.db.Write(ctx, func(tx *storage.Tx) error {
		if over || l.Since < e.now().Add(-untoldLife) {
			return storage.DropUntoldLeave(ctx, tx, l)
		}
		l.Tries++
		l.Next = e.now().Add(backoff.Doubled(untoldFirst, untoldLast, l.Tries))
		return storage.PutUntoldLeave(ctx, tx, l)
	})
}

// tryToTell asks the servers; over says that there is no need to ask again. It gives up when it is wanted elsewhere before a leave is sent.
func (e *Engine) tryToTell(ctx context.Context, r *room, l storage.UntoldLeave, wanted <-chan struct{}) (over bool, err error) {
	users, err := e.db.UserIDs(ctx, l.User)
	if err != nil {
		return false, err
	}
	m, err := e.membershipIn(ctx, l.Room, users[0])
	if err != nil {
		return false, err
	}
	resident, err := r.resident(ctx)
	if err != nil {
		return false, err
	}
	if m.Membership != storage.MembershipLeave || m.Event != l.Event || resident {
		return true, nil
	}
	leave, err := e.eventByNID(ctx, l.Event)
	if err != nil {
		return false, err
	}
	q := MemberRequest{Room: r.id, Sender: users[0], Timestamp: leave.OriginServerTS()}
	if err := json.Unmarshal(l.Servers, &q.Via); err != nil {
		return false, err
	}
	asking, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var settled atomic.Bool // whether it is given up or sent
	go func() {
		select {
		case <-wanted:
			if settled.CompareAndSwap(false, true) {
				giveUp()
			}
		case <-asking.Done():
		}
	}()
	mayBegin := func() bool { return settled.CompareAndSwap(false, true) }
	if _, _, err = e.leaveAway(asking, q, leave.Content(), untoldTime, mayBegin); err != nil {
		e.log.Debug().Err(err).Int64("room", int64(l.Room)).Int("tries", l.Tries).Msg("a leave is not told")
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return err == nil || nothingToLeave(err), nil
}
