package rooms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

// The operator may keep a room apart from other servers, for as long as they like: nothing of it is sent to them, nothing of theirs is taken, and
// nobody enters it from elsewhere. Its users of this server go on. When it is given back, the next event shows the others what they missed,
// and they are asked for what we missed, as after any other time without a connection.

var errIsolatedRoom = matrix.Forbidden("the operator of this server keeps this room apart from other servers")

// isolation knows the rooms that are kept apart.
type isolation struct {
	mu    sync.Mutex // held while they are read
	rooms atomic.Pointer[map[matrix.RoomID]matrix.Timestamp]
}

func (i *isolation) load(ctx context.Context, q storage.Querier) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	rows, err := storage.IsolatedRooms(ctx, q)
	if err != nil {
		return err
	}
	all := make(map[matrix.RoomID]matrix.Timestamp, len(rows))
	for _, r := range rows {
		all[r.ID] = r.Since
	}
	i.rooms.Store(&all)
	return nil
}

func (i *isolation) has(room matrix.RoomID) bool {
	_, isolated := (*i.rooms.Load())[room]
	return isolated
}

// Federates says whether the operator lets a room be shared with other servers.
func (e *Engine) Federates(room matrix.RoomID) bool { return !e.isolation.has(room) }

// Isolated lists the rooms that are kept apart, and since when.
func (e *Engine) Isolated() map[matrix.RoomID]matrix.Timestamp {
	return maps.Clone(*e.isolation.rooms.Load())
}

// Isolate keeps a room apart from other servers, or gives it back to them. It need not be known here. Other processes follow within seconds.
func (e *Engine) Isolate(ctx context.Context, room matrix.RoomID, isolated bool) error {
	err := e.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetIsolated(ctx, tx, room, isolated, e.now()) })
	if err != nil {
		return err
	}
	return e.loadIsolated(ctx)
}

// loadIsolated reads which rooms are kept apart. Those of which the members were not known when they were may ask for them again now.
func (e *Engine) loadIsolated(ctx context.Context) error {
	before := *e.isolation.rooms.Load()
	if err := e.isolation.load(ctx, e.db); err != nil || len(before) == 0 {
		return err
	}
	for _, pr := range e.partials.all() {
		if _, was := before[pr.id]; was && !e.isolation.has(pr.id) {
			pr.want()
		}
	}
	return nil
}

// Withdraw has a user who is kept to this server leave all rooms that other servers can be in, and turn down all invites to such; Run sees
// to it, after a restart if need be.
func (e *Engine) Withdraw(ctx context.Context, user matrix.UserID) error {
	return e.db.Write(ctx, func(tx *storage.Tx) error { return storage.RequestWithdrawal(ctx, tx, user) })
}

// FederatedRooms lists the rooms of a user that other servers can be in: those that the user is in, is invited to, or knocks at.
func (e *Engine) FederatedRooms(ctx context.Context, user matrix.UserID) ([]matrix.RoomID, error) {
	all, err := e.Memberships(ctx, user, "join", "invite", "knock")
	if err != nil {
		return nil, err
	}
	var out []matrix.RoomID
	for _, m := range all {
		own, err := e.ownOnly(ctx, m.Room)
		if err != nil {
			return nil, err
		}
		if !own {
			out = append(out, m.Room)
		}
	}
	return out, nil
}

// followEvery is how often the operator's wishes are looked for, which another process writes down.
const followEvery = 3 * time.Second

// followOperator does what the operator asks for on the command line.
func (e *Engine) followOperator(ctx context.Context) {
	follow := func() {
		err := e.loadIsolated(ctx)
		if err = errors.Join(err, e.withdrawAll(ctx)); err != nil && ctx.Err() == nil {
			e.log.Error().Err(err).Msg("follow the operator's wishes")
		}
	}
	follow()
	wake.Every(ctx, followEvery, follow)
}

func (e *Engine) withdrawAll(ctx context.Context) error {
	users, err := storage.FindWithdrawals(ctx, e.db)
	if err != nil {
		return err
	}
	var failed error
	for _, user := range users {
		if err := e.withdraw(ctx, user); err != nil {
			failed = errors.Join(failed, fmt.Errorf("a user's withdrawal: %w", err))
		}
	}
	return failed
}

func (e *Engine) withdraw(ctx context.Context, user matrix.UserID) error {
	// Whose account federates again by now stays.
	refused := e.mayFederate(ctx, user)
	if _, ok := matrix.AsError(refused); refused != nil && !ok {
		return refused
	}
	var rooms []matrix.RoomID
	if refused != nil {
		var err error
		if rooms, err = e.FederatedRooms(ctx, user); err != nil {
			return err
		}
	}
	for _, room := range rooms {
		_, err := e.Leave(ctx, MemberRequest{Room: room, Sender: user})
		if err != nil && !matrix.HasCode(err, "M_FORBIDDEN") {
			return err
		}
	}
	return e.db.Write(ctx, func(tx *storage.Tx) error { return storage.EndWithdrawal(ctx, tx, user) })
}

// outOfTouch returns what says of a room that this server hears nothing of its other servers: it is kept apart, or they say that it is not in it. nil if
// there is no such room.
func (e *Engine) outOfTouch() func(matrix.RoomID) bool {
	refused := e.partials.refused()
	if len(refused) == 0 && len(*e.isolation.rooms.Load()) == 0 {
		return nil
	}
	return func(room matrix.RoomID) bool { return refused[room] || e.isolation.has(room) }
}

// inTouch says whether two users share a room of which this server hears.
func (e *Engine) inTouch(ctx context.Context, a, b matrix.UserID, off func(matrix.RoomID) bool) (bool, error) {
	shared, err := e.SharedRooms(ctx, a, b)
	return slices.ContainsFunc(shared, func(room matrix.RoomID) bool { return !off(room) }), err
}

// sharing leaves out users of other servers with whom a local user shares no other room than such that this server is out of touch with.
func (e *Engine) sharing(ctx context.Context, user matrix.UserID, users []matrix.UserID) ([]matrix.UserID, error) {
	off := e.outOfTouch()
	if off == nil {
		return users, nil
	}
	joined, err := e.Memberships(ctx, user, "join")
	if err != nil {
		return nil, err
	}
	doubtful := make(map[matrix.UserID]bool)
	for _, m := range joined {
		if !off(m.Room) {
			continue
		}
		members, err := e.JoinedUsers(ctx, m.Room)
		if err != nil {
			return nil, err
		}
		for _, u := range members {
			if !e.isLocal(u) {
				doubtful[u] = true
			}
		}
	}
	return deleteFailing(users, func(u matrix.UserID) (bool, error) {
		if !doubtful[u] {
			return false, nil
		}
		shares, err := e.inTouch(ctx, user, u, off)
		return !shares, err
	})
}

// localSharing leaves out local users who share no other room with a user of another server than such whose servers say that we are not in it.
func (e *Engine) localSharing(ctx context.Context, user matrix.UserID, local []matrix.UserID) ([]matrix.UserID, error) {
	refused := e.partials.refused()
	if len(refused) == 0 {
		return local, nil
	}
	off := func(room matrix.RoomID) bool { return refused[room] }
	return deleteFailing(local, func(u matrix.UserID) (bool, error) {
		shares, err := e.inTouch(ctx, u, user, off)
		return !shares, err
	})
}

// deleteFailing is slices.DeleteFunc with a function that may fail.
func deleteFailing[T any](list []T, del func(T) (bool, error)) ([]T, error) {
	var failed error
	list = slices.DeleteFunc(list, func(v T) bool {
		if failed != nil {
			return false
		}
		out, err := del(v)
		failed = err
		return err == nil && out
	})
	return list, failed
}
