package server

import (
	"context"

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

// deviceLists tells users who joined a room and who ceased to be joined: device lists
// are followed for those who share rooms only.
type deviceLists struct{ server *Server }

func (d deviceLists) RoomUpdated(u *rooms.Update) {
	for _, m := range u.Memberships {
		if joined := m.Current == "join"; joined != (m.Previous == "join") {
			d.server.users.DeviceLists.MembershipChanged(m.User, u.Room, joined)
		}
		if m.Revived && !m.Local {
			d.server.users.DeviceLists.ServerReturned(m.User.Server(), u.Room)
		}
	}
}
