package feed

import (
	"context"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
)

// followUpgrade takes over what a local user set for a room when they join the one that replaces it, and what this server's
// directory has of it. It runs as
// the stream is read, so a restart loses nothing; done twice, it changes nothing.
// spec: client-server-api#room-upgrades
func (f *Feed) followUpgrade(ctx context.Context, ev *rooms.Event) error {
	key, ok := ev.StateKey()
	if ok && key == "" && ev.Type() == "m.room.tombstone" {
		// Another server's: it may come later than the first join to the new room.
		text, _ := ev.ContentString("replacement_room")
		replacement, err := matrix.ParseRoomID(text)
		if err != nil {
			return nil //nolint:nilerr // it names no room
		}
		return f.followEntries(ctx, ev.RoomID(), replacement)
	}
	if !ok || ev.Type() != "m.room.member" || ev.Membership() != "join" {
		return nil
	}
	user, room := matrix.UserID(key), ev.RoomID()
	if local, err := f.Rooms.LocalUsers(ctx, room); err != nil || !slices.Contains(local, user) {
		return err
	}
	state, err := f.Rooms.StateBefore(ctx, ev)
	if err != nil {
		return err
	}
	if was, err := state.Membership(ctx, user); err != nil || was == "join" {
		return err
	}
	create, err := state.Event(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return err
	}
	predecessor, ok := canonicaljson.GetObject(create.Content(), "predecessor")
	if !ok {
		return nil
	}
	text, _ := canonicaljson.GetString(predecessor, "room_id")
	old, err := matrix.ParseRoomID(text)
	if err != nil || old == room {
		return nil //nolint:nilerr // it names no room
	}
	if err := f.followEntries(ctx, old, room); err != nil {
		return err
	}
	if err := f.Users.FollowUpgrade(ctx, user, old, room); err != nil {
		if _, refused := matrix.AsError(err); refused {
			f.Log.Info().Err(err).Msg("the settings of an upgraded room were not taken over")
			return nil
		}
		return fmt.Errorf("take over settings: %w", err)
	}
	return nil
}

// followEntries moves aliases and the directory entry from a room to the one that replaces it.
func (f *Feed) followEntries(ctx context.Context, old, replacement matrix.RoomID) error {
	if err := f.Rooms.FollowUpgrade(ctx, old, replacement); err != nil {
		return fmt.Errorf("move aliases: %w", err)
	}
	return nil
}
