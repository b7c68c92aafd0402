package feed

import (
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// lazyMemory remembers which membership events a device was sent, so that a client which loads
// members lazily is not told the same again. It is a cache: what falls out is sent once more.
type lazyMemory struct {
	rooms *recent.Map[lazyRoom, *lazySent]
}

type lazyRoom struct {
	user   matrix.UserID
	device matrix.DeviceID
	conn   string // of sliding sync: "c" and the conn_id; "" for /sync
	room   matrix.RoomID
}

type lazySent struct {
	mu   sync.Mutex
	sent map[matrix.UserID]sentMember
}

// sentMember is an event and the token it was sent with: the client has it for sure once it comes back with that token.
type sentMember struct {
	event matrix.EventID
	at    storage.Position
}

const maxLazyRooms = 20_000

func newLazyMemory() *lazyMemory {
	return &lazyMemory{recent.NewMap[lazyRoom, *lazySent](maxLazyRooms)}
}

// drop removes the membership events that the device has already, and remembers the others.
func (l *lazyMemory) drop(room lazyRoom, since, until storage.Position, events []*rooms.Event, all bool) []*rooms.Event {
	sent := l.rooms.GetOrPut(room, func() *lazySent { return &lazySent{sent: make(map[matrix.UserID]sentMember)} })
	sent.mu.Lock()
	defer sent.mu.Unlock()
	if since == 0 {
		clear(sent.sent)
	}
	out := events[:0]
	for _, ev := range events {
		key, _ := ev.StateKey()
		if ev.Type() != "m.room.member" {
			out = append(out, ev)
			continue
		}
		user := matrix.UserID(key)
		if s, ok := sent.sent[user]; ok && !all && s.event == ev.ID() && s.at <= since {
			continue
		}
		sent.sent[user] = sentMember{ev.ID(), until}
		out = append(out, ev)
	}
	return out
}
