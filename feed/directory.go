package feed

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// directoryReader names the cursor of FollowDirectory in the database.
const directoryReader = "user directory"

const (
	directoryStates = 200  // changes of rooms' states looked at together
	directoryWrites = 200  // users written in one transaction
	directorySlack  = 1000 // changes that matter to nobody and may be looked at again after a restart
)

// FollowDirectory reads what changes in the states of rooms, and keeps in the user directory who of other servers is in a room here and by
// which name, and which rooms are open to everybody, until ctx ends. Its cursor moves when what comes before is stored; done twice, it changes
// nothing. spec: client-server-api#user-directory
func (f *Feed) FollowDirectory(ctx context.Context) error {
	r := directoryFollower{Feed: f, at: -1}
	return f.follow(ctx, "follow rooms for the user directory", f.Hub.states, r.batch)
}

type directoryFollower struct {
	*Feed
	at      storage.Position // how far it has come; -1: as the database says
	unsaved int
}

// batch works on the next changes; more says that there may be others.
func (f *directoryFollower) batch(ctx context.Context) (more bool, err error) {
	if f.at < 0 {
		if f.at, err = storage.Cursor(ctx, f.DB, directoryReader); err != nil {
			f.at = -1
			return false, err
		}
	}
	until := f.DB.Current()
	states, err := storage.RoomStatesAfter(ctx, f.DB, f.at, until, directoryStates)
	if err != nil || len(states) == 0 {
		return false, err
	}
	if len(states) == directoryStates {
		more, until = true, states[len(states)-1].Pos
	}
	stored := false
	seen := make(map[storage.RoomNID]bool)
	for _, s := range states {
		if seen[s.Room] {
			continue
		}
		seen[s.Room] = true
		some, err := f.room(ctx, s.Room, until)
		if err != nil {
			return false, fmt.Errorf("room %d: %w", s.Room, err)
		}
		stored = stored || some
	}
	f.at = until
	if f.unsaved += len(states); stored || f.unsaved >= directorySlack {
		f.unsaved = 0
		err = f.DB.Write(ctx, func(tx *storage.Tx) error { return storage.SetCursor(ctx, tx, directoryReader, until) })
	}
	return more, err
}

// room takes in what changed in a room; stored says that any of it matters.
func (f *directoryFollower) room(ctx context.Context, room storage.RoomNID, until storage.Position) (stored bool, err error) {
	from := f.at
	if f.Rooms.CompletedIn(f.at, until)[room] {
		from = 0 // who has been in it all along is known only now, though not by a change of the state
	}
	before, err := f.Rooms.StateAtPosition(ctx, room, from)
	if err != nil {
		return false, err
	}
	after, err := f.Rooms.StateAtPosition(ctx, room, until)
	if err != nil {
		return false, err
	}
	changes, err := f.Rooms.StateDelta(ctx, before, after)
	if err != nil {
		return false, err
	}
	openness, ours := false, false
	named := make(map[matrix.UserID]*rooms.Event)
	for _, c := range changes {
		switch c.Key.Type {
		case "m.room.join_rules", "m.room.history_visibility":
			openness = true
		case "m.room.member":
			user, err := matrix.ParseUserID(c.Key.Key)
			switch {
			case err != nil:
			case user.Server() == f.Users.Directory.ServerName:
				ours = true
			default:
				named[user] = c.New
			}
		}
	}
	if openness || ours {
		// A room that we have left tells us no more who is in it.
		id, err := f.Rooms.RoomID(ctx, room)
		if err != nil {
			return false, err
		}
		local, err := f.Rooms.LocalUsers(ctx, id)
		if err != nil {
			return false, err
		}
		openness = openness || len(local) <= 1
		open, err := after.Open(ctx)
		if err != nil {
			return false, err
		}
		open = open && len(local) > 0
		if openness {
			err = f.DB.Write(ctx, func(tx *storage.Tx) error { return storage.SetOpenRoom(ctx, tx, room, open) })
		}
		if err != nil {
			return false, err
		}
	}
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(named)), directoryWrites) {
		if err := f.members(ctx, chunk, named); err != nil {
			return false, err
		}
	}
	return openness || len(named) > 0, nil
}

// members takes in users of other servers whose memberships changed.
func (f *directoryFollower) members(ctx context.Context, list []matrix.UserID, member map[matrix.UserID]*rooms.Event) error {
	names := make([]string, len(list))
	for i, user := range list {
		names[i] = string(user)
	}
	nids, err := f.DB.Intern(ctx, names...)
	if err != nil {
		return err
	}
	return f.DB.Write(ctx, func(tx *storage.Tx) error {
		for i, user := range list {
			ev := member[user]
			if ev != nil && ev.Membership() == "join" {
				u := storage.DirectoryUser{NID: nids[i]}
				u.Name, _ = ev.ContentString("displayname")
				u.Avatar, _ = ev.ContentString("avatar_url")
				u.Name, u.Avatar = users.ShownProfile(u.Name, u.Avatar)
				if err := storage.PutDirectoryUser(ctx, tx, u, users.DirectoryWords(user, u.Name)); err != nil {
					return err
				}
				continue
			}
			joined, err := storage.JoinedAnywhere(ctx, tx, nids[i])
			if err != nil {
				return err
			}
			if !joined {
				if err := storage.DropDirectoryUser(ctx, tx, nids[i]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
