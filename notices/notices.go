// Package notices sends what the operator has to say to users: as messages of one account of the server, in a room for each user.
//
// Notices are the operator's own words, addressed to one person, and nobody's conversation; package privacy lets them
// pass unencrypted in every mode. The room is the server's: it is made once per user, other servers are kept out, and its user can
// leave it but not turn down the invite, nor speak in it. Start reading at Notices.Send. spec: client-server-api#server-notices
package notices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Options are what Notices work with. All fields are required unless noted.
type Options struct {
	DB    *storage.DB
	Rooms *rooms.Engine
	Users *users.Service
	// Sender is the account that speaks for the server.
	Sender matrix.UserID
	// Name is what that account and its rooms are called; Avatar the mxc: URI of their picture, "" for none.
	Name, Avatar string
}

// Notices sends server notices.
type Notices struct{ Options }

// Open makes the account that notices come from, unless it exists. One of that name that is somebody's is an error: notices have rights
// that no person has.
func Open(ctx context.Context, o Options) (*Notices, error) {
	n := &Notices{o}
	account, err := o.Users.Accounts.Get(ctx, o.Sender)
	if errors.Is(err, storage.ErrNotFound) {
		account, err = o.Users.Accounts.Register(ctx, users.Registration{Localpart: o.Sender.Localpart(), Kind: users.KindNotices})
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("account for server notices: %w", err)
	case account.Kind != users.KindNotices:
		return nil, fmt.Errorf("%s cannot send server notices: it is the account of a user. Set server_notices.localpart to a name that is not taken", o.Sender)
	}
	for field, value := range map[string]string{"displayname": o.Name, "avatar_url": o.Avatar} {
		raw, err := json.Marshal(value)
		if err == nil && value != "" {
			_, err = o.Users.Profiles.Set(ctx, o.Sender, field, raw)
		}
		if err != nil {
			return nil, fmt.Errorf("profile for server notices: %w", err)
		}
	}
	return n, nil
}

// Notice is something to tell a user.
type Notice struct {
	User     matrix.UserID
	Type     string // "" is m.room.message
	StateKey *string
	Content  json.RawMessage
	// By and TxnID make sending it again send nothing; TxnID may be "".
	By    matrix.UserID
	TxnID string
}

// Send invites the user to their notices room, which is made if need be, unless they are in it, and sends the notice there. Errors: M_NOT_FOUND
// for a user that this server does not have, and what sending an event says.
func (n *Notices) Send(ctx context.Context, notice Notice) (matrix.EventID, error) {
	account, err := n.Users.Accounts.Get(ctx, notice.User)
	if errors.Is(err, storage.ErrNotFound) || err == nil && account.Deactivated {
		return "", matrix.NotFound("There is no user %s.", notice.User)
	}
	if err != nil {
		return "", err
	}
	room, err := n.room(ctx, notice.User)
	if err != nil {
		return "", fmt.Errorf("room for server notices: %w", err)
	}
	if err := n.invite(ctx, room, notice.User); err != nil {
		return "", fmt.Errorf("invite to server notices: %w", err)
	}
	q := rooms.SendRequest{Room: room, Sender: n.Sender, Type: notice.Type, StateKey: notice.StateKey, Content: notice.Content}
	if q.Type == "" {
		q.Type = "m.room.message"
	}
	if notice.TxnID != "" {
		// IDs are the administrator's choice: each has a scope of their own.
		q.Device, q.TxnID = matrix.DeviceID(notice.By), notice.TxnID
	}
	return n.Rooms.Send(ctx, q)
}

// room is the user's notices room.
func (n *Notices) room(ctx context.Context, user matrix.UserID) (matrix.RoomID, error) {
	room, err := storage.GetNoticesRoom(ctx, n.DB, user)
	if !errors.Is(err, storage.ErrNotFound) {
		return room, err
	}
	picture := []rooms.StateInput{}
	if n.Avatar != "" {
		content, err := json.Marshal(map[string]string{"url": n.Avatar})
		if err != nil {
			return "", err
		}
		picture = append(picture, rooms.StateInput{Type: "m.room.avatar", Content: content})
	}
	room, err = n.Rooms.CreateRoom(ctx, rooms.CreateRequest{
		Creator: n.Sender, Preset: "private_chat", Name: n.Name, InitialState: picture,
		Content:       json.RawMessage(`{"m.federate":false}`),
		PowerOverride: json.RawMessage(`{"events_default":50,"invite":50}`), // the server speaks, the user reads
		// With the room: two of them for one user, or one that nobody knows of, cannot come to be.
		Commit: func(ctx context.Context, tx *storage.Tx, room matrix.RoomID) error {
			made, err := storage.InsertNoticesRoom(ctx, tx, user, room)
			if err == nil && !made {
				err = errMade
			}
			return err
		},
	})
	if errors.Is(err, errMade) {
		return storage.GetNoticesRoom(ctx, n.DB, user)
	}
	return room, err
}

// errMade: somebody else made the room at the same time.
var errMade = matrix.Errorf(http.StatusConflict, "M_UNKNOWN", "The user has a notices room already.")

// invite makes sure that the user has the room or an invite to it, and that it is tagged for their clients.
func (n *Notices) invite(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	if err := n.Users.AccountData.SetTag(ctx, user, room, "m.server_notice", json.RawMessage(`{}`)); err != nil {
		return err
	}
	m, err := n.Rooms.MembershipOf(ctx, room, user)
	if err != nil || m.Membership == "join" || m.Membership == "invite" {
		return err
	}
	_, err = n.Rooms.Invite(ctx, rooms.MemberRequest{Room: room, Sender: n.Sender, Target: user})
	return err
}
