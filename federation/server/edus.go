package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/users"
)

// receiveEDUs takes the EDUs of a transaction in order. One that makes no sense is dropped, since nobody could
// do anything about it; a failure of ours is returned, so that the transaction is
// sent again and no message to a device gets lost.
func (s *Server) receiveEDUs(ctx context.Context, from matrix.ServerName, edus []edu) error {
	for _, e := range edus {
		err := s.receiveEDU(ctx, from, e)
		if err == nil {
			continue
		}
		var refusal *matrix.Error
		if errors.As(err, &refusal) {
			s.opts.Log.Debug().Err(err).Str("origin", string(from)).Str("type", e.Type).Msg("federation: EDU dropped")
			continue
		}
		return fmt.Errorf("EDU %s: %w", e.Type, err)
	}
	return nil
}

func (s *Server) receiveEDU(ctx context.Context, from matrix.ServerName, e edu) error {
	var panicked error // logged; the EDU is dropped, for it would do the same again
	defer s.recovered(&panicked)
	if len(e.Content) == 0 {
		return matrix.BadJSON("An EDU needs a content.")
	}
	switch e.Type {
	case "m.typing":
		return s.receiveTyping(ctx, from, e.Content)
	case "m.receipt":
		return s.receiveReceipts(ctx, from, e.Content)
	case "m.presence":
		return s.opts.Users.Presence.Receive(ctx, from, e.Content)
	case "m.direct_to_device":
		return s.opts.Users.ToDevice.Receive(ctx, from, e.Content)
	case "m.device_list_update":
		return s.opts.Users.DeviceLists.ReceiveUpdate(ctx, from, e.Content)
	case "m.signing_key_update", "org.matrix.signing_key_update": // servers before v1.1 still say the latter
		return s.opts.Users.DeviceLists.ReceiveSigningKeys(ctx, from, e.Content)
	}
	return nil
}

// typingFor is how long a remote user's notice lasts unless it is renewed.
const typingFor = 30 * time.Second

// spec: server-server-api#typing-notifications
func (s *Server) receiveTyping(ctx context.Context, from matrix.ServerName, content []byte) error {
	var t struct {
		Room   matrix.RoomID `json:"room_id"`
		User   matrix.UserID `json:"user_id"`
		Typing bool          `json:"typing"`
	}
	if err := strictjson.Unmarshal(content, &t); err != nil {
		return err
	}
	if s.opts.Typing == nil {
		return nil
	}
	if err := s.mayTellOf(ctx, from, t.Room, t.User); err != nil {
		return err
	}
	if t.Typing {
		s.opts.Typing.Start(t.Room, t.User, typingFor)
	} else {
		s.opts.Typing.Stop(t.Room, t.User)
	}
	return nil
}

// mayTellOf checks that a user is the sender's own and in a room that admits the server.
func (s *Server) mayTellOf(ctx context.Context, from matrix.ServerName, room matrix.RoomID, user matrix.UserID) error {
	if _, err := matrix.ParseRoomID(string(room)); err != nil {
		return err
	}
	if _, err := matrix.ParseUserID(string(user)); err != nil {
		return err
	}
	if user.Server() != from {
		return matrix.Forbidden("%s is not a user of %s.", user, from)
	}
	if err := s.opts.Rooms.AllowsServer(ctx, room, from); err != nil {
		return err
	}
	in, err := s.opts.Rooms.MayBeJoined(ctx, room, user)
	if err != nil {
		return err
	}
	if !in {
		return matrix.Forbidden("%s is not in the room.", user)
	}
	return nil
}

// maxReceipts bounds what one EDU may make us look up and store.
const maxReceipts = 1000

// spec: server-server-api#receipts
func (s *Server) receiveReceipts(ctx context.Context, from matrix.ServerName, content []byte) error {
	var byRoom map[matrix.RoomID]map[string]map[matrix.UserID]struct {
		EventIDs []matrix.EventID `json:"event_ids"`
		Data     struct {
			TS     matrix.Timestamp `json:"ts"`
			Thread string           `json:"thread_id"`
		} `json:"data"`
	}
	if err := strictjson.Unmarshal(content, &byRoom); err != nil {
		return err
	}
	var receipts []users.Receipt
	looked := 0
	for room, types := range byRoom {
		for user, r := range types[users.ReceiptRead] {
			if looked++; looked > maxReceipts {
				break
			}
			if len(r.EventIDs) != 1 || s.mayTellOf(ctx, from, room, user) != nil {
				continue
			}
			if _, err := matrix.ParseEventID(string(r.EventIDs[0])); err != nil {
				continue
			}
			receipt := users.Receipt{
				Room: room, User: user, Type: users.ReceiptRead, EventID: r.EventIDs[0], Thread: r.Data.Thread, At: r.Data.TS,
			}
			// A receipt may come before its event does; then its place is not known.
			if e, err := s.opts.Rooms.Event(ctx, receipt.EventID); err == nil && e.RoomID() == room {
				receipt.Order = int64(e.Pos)
			}
			receipts = append(receipts, receipt)
		}
	}
	if len(receipts) == 0 {
		return nil
	}
	return s.opts.Users.Receipts.ReceiveRemote(ctx, receipts...)
}
