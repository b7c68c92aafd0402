package server

import (
	"context"

	"hanok/feed"
	"hanok/privacy"
	"hanok/rooms"
)

// listeners tells several readers of a commit.
type listeners []rooms.Listener

func (l listeners) RoomUpdated(u *rooms.Update) {
	for _, one := range l {
		one.RoomUpdated(u)
	}
}

// roomPolicy is what privacy says, in the terms of rooms.
type roomPolicy struct{ *privacy.Policy }

const encryptionType = "m.room.encryption"

// InitialState puts the encryption that privacy demands in the place of what the creator asked for.
func (p roomPolicy) InitialState(_ context.Context, r *rooms.CreateRequest) ([]rooms.StateInput, error) {
	var requested []byte
	kept := make([]rooms.StateInput, 0, len(r.InitialState))
	for _, in := range r.InitialState {
		if in.Type == encryptionType && in.StateKey == "" {
			requested = in.Content
			continue
		}
		kept = append(kept, in)
	}
	content, err := p.NewRoom(r.Creator, requested)
	if err != nil {
		return nil, err
	}
	r.InitialState = kept
	if content == nil {
		return nil, nil
	}
	return []rooms.StateInput{{Type: encryptionType, Content: content}}, nil
}

// deviceLists are told who shares rooms.
type deviceLists struct{ server *Server }

func (d deviceLists) RoomUpdated(u *rooms.Update) { feed.FollowMembers(d.server.users.DeviceLists, u) }
