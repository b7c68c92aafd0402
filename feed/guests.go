package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// followGuestAccess makes local guests leave a room that does not let guests join: when it ceases to, and when one has come in just
// then. It runs as the stream is read, so a restart loses nothing; done twice, it changes nothing.
// spec: client-server-api#guest-access
func (f *Feed) followGuestAccess(ctx context.Context, ev *rooms.Event) error {
	key, isState := ev.StateKey()
	joins := isState && ev.Type() == "m.room.member" && ev.Membership() == "join"
	if !joins && !ev.Is("m.room.guest_access", "") {
		return nil
	}
	room := ev.RoomID()
	suspects, err := f.Rooms.LocalUsers(ctx, room)
	if err != nil {
		return err
	}
	if joins {
		user := matrix.UserID(key)
		if !slices.Contains(suspects, user) {
			return nil
		}
		suspects = []matrix.UserID{user}
	}
	for _, user := range suspects {
		guest, err := f.isGuest(ctx, user)
		if err != nil {
			return err
		}
		if !guest {
			continue
		}
		state, err := f.Rooms.StateAtPosition(ctx, ev.RoomNID, f.DB.Current())
		if err != nil {
			return err
		}
		admits, err := state.AdmitsGuests(ctx)
		if err != nil || admits {
			return err
		}
		_, err = f.Rooms.Leave(ctx, rooms.MemberRequest{Room: room, Sender: user, Reason: "This room does not let guests join."})
		if _, refused := matrix.AsError(err); err != nil && !refused { // refused: has left meanwhile
			return fmt.Errorf("a guest leaves: %w", err)
		}
	}
	return nil
}

// isGuest reports whether a user is a guest of this server.
func (f *Feed) isGuest(ctx context.Context, user matrix.UserID) (bool, error) {
	account, err := f.Users.Accounts.Get(ctx, user)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil && account.Kind == users.KindGuest, err
}
