package rooms

import (
	"context"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/storage"
)

// A server that is not in a room by what we know may send us events of it all the same: we may not have heard of its join, or be cut off
// from everybody else. But anybody can make up events that refer to a room's, and whatever they refer to in turn. So of what such a server
// sends
//
//   - nothing is stored that is rejected: no server builds on it. If one does, its event is taken with the state that it tells.
//   - the state and the auth events that are fetched for it, and what is soft-failed, count: a room and this server store a number of
//     bytes a day of that. Who may have missed everything, and whoever waits, is let in once with more than what is left.
//
// What servers in the room send has no such bound: they may as well send valid events.

const (
	outsideOfRoom = 16 << 20  // bytes a day
	outsideOfAll  = 128 << 20 // bytes a day
	maxOutside    = 4096      // rooms of which it is remembered how much they stored
	maxDropped    = 10_000    // events that are remembered to have been rejected
)

var errOutside = matrix.Forbidden("the server is not in the room, and too much was stored lately of what such servers have sent")

// outside is how much may still be stored for servers that are not in a room.
type outside struct {
	mu    sync.Mutex
	all   daily
	rooms *recent.Map[storage.RoomNID, *daily]
}

// daily is a number of bytes that grows to its limit within a day. It may be overdrawn by the last who takes of it.
type daily struct {
	limit, left float64
	at          matrix.Timestamp
}

func newDaily(limit float64, now matrix.Timestamp) *daily {
	return &daily{limit: limit, left: limit, at: now}
}

const day = 24 * 60 * 60 * 1000 // ms

func (d *daily) grow(now matrix.Timestamp) {
	if now > d.at {
		d.left = min(d.limit, d.left+d.limit*float64(now-d.at)/day)
	}
	d.at = now
}

func newOutside(now matrix.Timestamp) *outside {
	return &outside{all: *newDaily(outsideOfAll, now), rooms: recent.NewMap[storage.RoomNID, *daily](maxOutside)}
}

// take says whether so many bytes may be stored in a room now.
func (o *outside) take(room storage.RoomNID, n int, now matrix.Timestamp) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	own := o.rooms.GetOrPut(room, func() *daily { return newDaily(outsideOfRoom, now) })
	o.all.grow(now)
	own.grow(now)
	if o.all.left <= 0 || own.left <= 0 {
		return false
	}
	o.all.left -= float64(n)
	own.left -= float64(n)
	return true
}

// outside says whether the server that sent the batch is not in the room by what is known here.
func (in *inbound) outside(ctx context.Context) (bool, error) {
	if in.inside || in.origin == in.e.server || in.e.partials.get(in.r.nid) != nil { // else not all servers are known that are in it
		return false, nil
	}
	var err error
	in.inside, err = in.r.hasServer(ctx, in.origin)
	return !in.inside, err
}

// mayStore takes n bytes from what may be stored for servers that are not in the room, if the sender of the batch is none: errOutside.
func (in *inbound) mayStore(ctx context.Context, n int) error {
	if outside, err := in.outside(ctx); !outside || err != nil {
		return err
	}
	if !in.e.outsiders.take(in.r.nid, n, in.e.now()) {
		return errOutside
	}
	return nil
}
