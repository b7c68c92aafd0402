package queue

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/matrix"
	"hanok/storage"
)

// What waits for a server that does not answer is kept small: it fetches the events that it missed from the newest ones on, and
// the devices of a user from the last news of them.

const (
	// collapseAt is how many events or EDUs may wait for a server that does not answer before they are made fewer.
	collapseAt = 500
	// collapseAfter is from when on events for such a server take the place of older ones at once.
	collapseAfter = time.Hour
)

func (q *Queue) collapse(ctx context.Context, server matrix.ServerName) {
	n, err := storage.CountOutboxPDUs(ctx, q.opts.DB, server, collapseAt)
	if err == nil && n >= collapseAt {
		err = q.opts.DB.Write(ctx, func(tx *storage.Tx) error {
			txn, err := underWay(ctx, tx, server)
			if err != nil {
				return err
			}
			return storage.CollapseOutbox(ctx, tx, server, txn.LastPDU, matrix.TimestampOf(q.opts.Now()))
		})
	}
	err = errors.Join(err, q.collapseEDUs(ctx, server))
	if err != nil && ctx.Err() == nil {
		q.opts.Log.Error().Err(err).Msg("federation: collapse the outbox")
	}
}

// underWay is the transaction under way to a server, the zero value if there is none.
func underWay(ctx context.Context, tx storage.Querier, server matrix.ServerName) (storage.OutboxTransaction, error) {
	txn, err := storage.GetOutboxTransaction(ctx, tx, server)
	if errors.Is(err, storage.ErrNotFound) {
		err = nil
	}
	return txn, err
}

// collapseEDUs removes EDUs that are stale, and news of a user's devices and keys that are followed by newer: who gets the newer has the keys, or sees
// that some devices are missing, and asks. Messages to devices stay. spec: server-server-api#device-management
func (q *Queue) collapseEDUs(ctx context.Context, server matrix.ServerName) error {
	txn, err := underWay(ctx, q.opts.DB, server)
	if err != nil {
		return err
	}
	now := matrix.TimestampOf(q.opts.Now())
	type last struct {
		position storage.Position
		stream   int64
	}
	words := map[string][]last{}
	var gone []storage.Position
	after := txn.LastEDU
	for {
		edus, err := storage.FindOutboxEDUsAfter(ctx, q.opts.DB, server, after, collapseAt)
		if err != nil || len(edus) < collapseAt && after == txn.LastEDU {
			return err
		}
		for _, e := range edus {
			after = e.ID
			if e.ExpiresAt != 0 && e.ExpiresAt <= now {
				gone = append(gone, e.ID)
				continue
			}
			about, stream, follows := supersedes(e)
			if about == "" {
				continue
			}
			var stand []last
			for _, older := range words[about] {
				if older.stream <= follows {
					gone = append(gone, older.position)
				} else {
					stand = append(stand, older)
				}
			}
			words[about] = append(stand, last{e.ID, stream})
		}
		if len(edus) < collapseAt {
			break
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return q.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteOutboxEDUs(ctx, tx, server, gone) })
}

// supersedes names what an EDU is a word on; "" if it stands for itself. It takes the place of older ones whose stream is no later than follows.
//
// Of device lists that is the update that it follows on: a server that has not got that one asks for the list, and one that has the list from
// then on needs nothing older. One from before that may have to stay, since it is not in the sequence: it was sent to
// have that server alone ask for the list, and of keys of the user that have changed the sequence does not tell.
func supersedes(e storage.OutboxEDU) (about string, stream, follows int64) {
	if e.Type != "m.device_list_update" && e.Type != "m.signing_key_update" {
		return "", 0, 0
	}
	var news struct {
		User   string  `json:"user_id"`
		Stream int64   `json:"stream_id"`
		Prev   []int64 `json:"prev_id"`
	}
	if err := json.Unmarshal(e.Content, &news); err != nil || news.User == "" {
		return "", 0, 0
	}
	for _, prev := range news.Prev {
		follows = max(follows, prev)
	}
	return e.Type + " " + news.User, news.Stream, follows
}

// Of a server that is long gone only the newest event of each room matters, so one row stands for it however many follow: most servers of a
// big room are gone, and an event there is to cost nothing for them. When the server is tried again, the newest event takes the row's place.

// stand notes that an event for a server stands for those that follow in its room from now on; false if one does already.
func (q *Queue) stand(server matrix.ServerName, room storage.RoomNID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.destination(server)
	if d.standing[room] {
		return false
	}
	if d.standing == nil {
		d.standing = map[storage.RoomNID]bool{}
	}
	d.standing[room] = true
	return true
}

// unstand takes that back.
func (q *Queue) unstand(pdus []storage.OutboxPDU) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range pdus {
		if d := q.busy[p.Destination]; d != nil {
			delete(d.standing, p.Room)
		}
	}
}

// settle puts the newest events in the place of those that stand for them, and says whether there were any.
func (q *Queue) settle(ctx context.Context, pdus []storage.OutboxPDU) (bool, error) {
	newest := map[storage.Position]*storage.OutboxPDU{}
	for _, p := range pdus {
		if !p.Newest {
			continue
		}
		e, err := q.rooms.NewestFor(ctx, p.Room, p.Destination, p.Position)
		if err != nil {
			return false, err
		}
		newest[p.Position] = nil
		if e != nil {
			newest[p.Position] = &storage.OutboxPDU{Destination: p.Destination, Position: e.Pos, Room: p.Room, EventID: e.ID(), KeepUntil: keepUntil(e, p.Destination)}
		}
	}
	if len(newest) == 0 {
		return false, nil
	}
	err := q.opts.DB.Write(ctx, func(tx *storage.Tx) error {
		for _, p := range pdus {
			if !p.Newest {
				continue
			}
			if err := storage.ReplaceOutboxPDU(ctx, tx, p, newest[p.Position]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		q.lookAgainAt(newest)
	}
	return true, err
}

// lookAgainAt has destinations look for events once the reader is there. It may come to one after an older one was said to stand for it, and then
// wakes nobody.
func (q *Queue) lookAgainAt(events map[storage.Position]*storage.OutboxPDU) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range events {
		switch {
		case p == nil:
		case p.Position > storage.Position(q.passed.Load()):
			q.ahead[p.Destination] = max(q.ahead[p.Destination], p.Position)
		default:
			q.destination(p.Destination).again = true
		}
	}
}

// longGone says whether a server has been silent for so long that events for it take the place of older ones.
func (q *Queue) longGone(server matrix.ServerName) bool {
	since, failing := q.opts.Peers.FailingSince(server)
	return failing && q.opts.Now().Sub(since) > collapseAfter
}
