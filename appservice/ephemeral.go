package appservice

import (
	"context"
	"encoding/json"
	"slices"

	"hanok/config"
	"hanok/feed"
	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// told is a piece of ephemeral data, as the service is told it, and its place in the stream.
type told struct {
	json []byte
	pos  storage.Position
}

// ephemeral is what happened in (since, until] besides events, and how far everything was taken. Typing and presence are told as they are now: what lies
// behind until comes with its own place. spec: application-service-api#pushing-ephemeral-data
func (r *reader) ephemeral(ctx context.Context, since, until storage.Position) (list []told, last storage.Position, err error) {
	if r.Ephemeral == config.EphemeralNone {
		return nil, until, nil
	}
	receipts, last, err := r.receipts(ctx, since, until)
	if err != nil {
		return nil, 0, err
	}
	typing, err := r.typing(ctx, since, last)
	if err != nil {
		return nil, 0, err
	}
	presence, err := r.presence(ctx, since, last)
	return slices.Concat(receipts, typing, presence), last, err
}

func (r *reader) receipts(ctx context.Context, since, until storage.Position) ([]told, storage.Position, error) {
	if r.s.DB.UnchangedIn(storage.Subject{Topic: storage.TopicReceipts}, since, until) {
		return nil, until, nil
	}
	all, err := storage.ReceiptsAfter(ctx, r.s.DB, since, until, maxEvents)
	if err != nil {
		return nil, 0, err
	}
	if len(all) == maxEvents {
		until = all[len(all)-1].Position
	}
	byRoom := make(map[matrix.RoomID][]storage.Receipt)
	var order []matrix.RoomID
	for _, x := range all {
		if x.Type == users.ReceiptReadPrivate && !r.OwnsUser(x.User) {
			continue
		}
		if byRoom[x.Room] == nil {
			order = append(order, x.Room)
		}
		byRoom[x.Room] = append(byRoom[x.Room], x)
	}
	var list []told
	for _, room := range order {
		if ok, err := r.interest.room(ctx, r.from.Rooms, room); err != nil {
			return nil, 0, err
		} else if ok {
			of := byRoom[room]
			list = append(list, roomData("m.receipt", room, users.ReceiptContent(of), of[len(of)-1].Position))
		}
	}
	return list, until, nil
}

func (r *reader) typing(ctx context.Context, since, until storage.Position) ([]told, error) {
	var list []told
	for _, room := range r.from.Typing.Changed(since) {
		if len(list) == maxEvents {
			break // the service was away for long: it has missed others, too
		}
		typing, pos := r.from.Typing.Users(room)
		if pos > until {
			continue // it has changed again, and is met there
		}
		if ok, err := r.interest.room(ctx, r.from.Rooms, room); err != nil {
			return nil, err
		} else if ok {
			list = append(list, roomData("m.typing", room, marshal(map[string]any{"user_ids": append([]matrix.UserID{}, typing...)}), pos))
		}
	}
	return list, nil
}

// maxPresence is of how many people at most a service is told at once who is online: those seen last.
const maxPresence = 100

func (r *reader) presence(ctx context.Context, since, until storage.Position) ([]told, error) {
	var list []told
	for _, p := range r.from.Users.Presence.Changed(since) { // the newest first
		if p.Position > until {
			continue
		}
		if len(list) == maxPresence {
			break
		}
		if ok, err := r.sees(ctx, p.User); err != nil {
			return nil, err
		} else if ok {
			list = append(list, told{marshal(map[string]any{
				"type": "m.presence", "sender": p.User, "content": feed.PresenceContent(p, r.now()),
			}), p.Position})
		}
	}
	slices.Reverse(list)
	return list, nil
}

// sees reports whether a user is the service's, or in a room with one of them.
func (r *reader) sees(ctx context.Context, user matrix.UserID) (bool, error) {
	if r.OwnsUser(user) {
		return true, nil
	}
	joined, err := r.from.Rooms.RoomsWith(ctx, user)
	if err != nil {
		return false, err
	}
	for _, room := range joined {
		if ok, err := r.interest.room(ctx, r.from.Rooms, room); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// roomData is ephemeral data of a room.
func roomData(eventType string, room matrix.RoomID, content json.RawMessage, pos storage.Position) told {
	return told{marshal(map[string]any{"type": eventType, "room_id": room, "content": content}), pos}
}

// marshal encodes what cannot fail.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only for what JSON has no word for
	}
	return b
}

// jsonArray joins values into an array.
func jsonArray(list [][]byte) []byte {
	out := []byte{'['}
	for i, v := range list {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, v...)
	}
	return append(out, ']')
}
