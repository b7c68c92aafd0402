package server

import (
	"context"
	"slices"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

// Events of a room that takes long are stored and the transaction is answered, so that the sender can go
// on with other rooms. What was stored is worked on by whoever began it; after a
// restart, by resume. Events are stored too if a server cannot be reached that is asked for what comes before them: the
// sender would not send them again, and nothing else may ever refer to them.

// What may be stored. A sender that has more of it waits for its answer: that is the back-pressure.
const (
	maxStaged       = 1000     // events of one room
	maxStagedOrigin = 5000     // events of one server
	maxStagedBytes  = 64 << 20 // of one server
	maxStagedAll    = 256 << 20
)

// staged is how much is stored.
type staged struct {
	rooms   map[matrix.RoomID]int // events
	origins map[matrix.ServerName]stagedPart
	bytes   int
}

func newStaged() *staged {
	return &staged{rooms: map[matrix.RoomID]int{}, origins: map[matrix.ServerName]stagedPart{}}
}

// stagedPart are some events of one server for one room.
type stagedPart struct {
	origin        matrix.ServerName
	room          matrix.RoomID
	events, bytes int
}

func (b *roomBatch) part() stagedPart {
	p := stagedPart{origin: b.origin, room: b.room, events: len(b.pdus)}
	for _, pdu := range b.pdus {
		p.bytes += len(pdu)
	}
	return p
}

// mayStage takes a place for a batch among what is stored.
func (s *Server) mayStage(b *roomBatch) bool {
	p := b.part()
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.staged.origins[p.origin]
	if s.staged.rooms[p.room]+p.events > maxStaged || from.events+p.events > maxStagedOrigin || from.bytes+p.bytes > maxStagedBytes || s.staged.bytes+p.bytes > maxStagedAll {
		return false
	}
	s.count(p, 1)
	return true
}

// unstaged gives places back.
func (s *Server) unstaged(p stagedPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(p, -1)
}

// count adds a part to what is stored, or takes it away; s.mu is held. What a run before has stored was never added.
func (s *Server) count(p stagedPart, sign int) {
	if s.staged.rooms[p.room] += sign * p.events; s.staged.rooms[p.room] <= 0 {
		delete(s.staged.rooms, p.room)
	}
	from := s.staged.origins[p.origin]
	from.events, from.bytes = max(from.events+sign*p.events, 0), max(from.bytes+sign*p.bytes, 0)
	if s.staged.origins[p.origin] = from; from.events == 0 {
		delete(s.staged.origins, p.origin)
	}
	s.staged.bytes = max(s.staged.bytes+sign*p.bytes, 0)
}

// stage stores the events of slow rooms and returns under which IDs.
func stage(ctx context.Context, tx *storage.Tx, from matrix.ServerName, slow []*roomBatch) (map[*roomBatch][]storage.Position, error) {
	ids := make(map[*roomBatch][]storage.Position, len(slow))
	var rows []storage.InboundPDU
	for _, b := range slow {
		for _, p := range b.pdus {
			id, err := tx.NextPosition()
			if err != nil {
				return nil, err
			}
			ids[b] = append(ids[b], id)
			rows = append(rows, storage.InboundPDU{ID: id, Origin: from, Room: b.room, PDU: p})
		}
	}
	if len(rows) == 0 {
		return ids, nil
	}
	return ids, storage.AddInboundPDUs(ctx, tx, rows)
}

// unstage removes what has been worked on. What failed is worked on again, after a while; what was cut short because the server
// stops, after the next start.
func (s *Server) unstage(b *roomBatch, ids []storage.Position) {
	switch {
	case s.life.Err() != nil:
	case b.failed != nil:
		s.retry(b.room)
	default:
		s.drop(b, ids)
	}
}

// drop removes the stored events of a batch.
func (s *Server) drop(b *roomBatch, ids []storage.Position) {
	err := s.opts.DB.Write(s.life, func(tx *storage.Tx) error { return storage.DeleteInboundPDUs(s.life, tx, ids) })
	if err != nil {
		if s.life.Err() == nil {
			s.opts.Log.Error().Err(err).Msg("federation: remove processed events")
		}
		return
	}
	s.unstaged(b.part())
}

// resume works on the events that were stored and not finished before the last stop: rooms side by side, each in order.
func (s *Server) resume(ctx context.Context) error {
	waiting, err := storage.FindInboundRooms(ctx, s.opts.DB)
	if err != nil {
		return err
	}
	for _, room := range waiting {
		s.workers.Go(func() {
			if left := s.resumeRoom(s.life, room); left > 0 {
				s.retry(room)
			}
		})
	}
	return nil
}

// How often stored events are tried that could not be processed, because what they need could not be had: after Options.Retry, then after
// twice as long each time.
const (
	maxRetry    = 10 * time.Minute
	maxAttempts = 100 // which takes a good half of a day
)

// retry tries the stored events of a room until none is left, or it has been often enough.
func (s *Server) retry(room matrix.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.retrying[room]; ok {
		s.retrying[room] = true // also if it is about to find none left
		return
	}
	s.retrying[room] = false
	s.workers.Go(func() {
		for again := true; again && s.life.Err() == nil; again = s.more(room) {
			s.retryAll(room)
		}
	})
}

// more says whether events of a room were stored while others were tried again; if not, that is over.
func (s *Server) more(room matrix.RoomID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	more := s.retrying[room]
	if more {
		s.retrying[room] = false
	} else {
		delete(s.retrying, room)
	}
	return more
}

// retryAll tries the stored events of a room, until none is left or those that were there at first are given up.
func (s *Server) retryAll(room matrix.RoomID) {
	var last storage.Position // of those that were there at first
	for rows := s.stored(s.life, room, 0); len(rows) > 0; rows = s.stored(s.life, room, last) {
		last = rows[len(rows)-1].ID
	}
	wait := s.opts.Retry
	for range maxAttempts {
		if wake.After(s.life, wait, nil) != nil {
			return
		}
		if s.resumeRoom(s.life, room) == 0 {
			return
		}
		wait = min(2*wait, maxRetry)
	}
	s.opts.Log.Warn().Str("room", string(room)).Msg("federation: events given up for which the state cannot be had")
	for rows := s.stored(s.life, room, 0); len(rows) > 0 && rows[0].ID <= last; rows = s.stored(s.life, room, rows[len(rows)-1].ID) {
		rows = slices.DeleteFunc(rows, func(row storage.InboundPDU) bool { return row.ID > last })
		for part := range byOrigin(room, rows) {
			s.drop(part.batch, part.ids)
		}
	}
}

// stored reads a room's events that wait, after a given one; none if that fails.
func (s *Server) stored(ctx context.Context, room matrix.RoomID, after storage.Position) []storage.InboundPDU {
	rows, err := storage.FindInboundPDUs(ctx, s.opts.DB, room, after, maxStaged)
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Error().Err(err).Msg("federation: read stored events")
	}
	return rows
}

// storedBatch are stored events that one server has sent one after the other.
type storedBatch struct {
	batch *roomBatch
	ids   []storage.Position
}

// byOrigin yields the parts of a room's stored events that each came from one server, in order.
func byOrigin(room matrix.RoomID, rows []storage.InboundPDU) func(yield func(storedBatch) bool) {
	return func(yield func(storedBatch) bool) {
		for len(rows) > 0 {
			part := storedBatch{batch: &roomBatch{origin: rows[0].Origin, room: room, done: make(chan struct{})}}
			for len(rows) > 0 && rows[0].Origin == part.batch.origin {
				part.batch.pdus, part.ids = append(part.batch.pdus, rows[0].PDU), append(part.ids, rows[0].ID)
				rows = rows[1:]
			}
			if !yield(part) {
				return
			}
		}
	}
}

// resumeRoom works on the stored events of a room and returns how many have to wait for another time.
func (s *Server) resumeRoom(ctx context.Context, room matrix.RoomID) (left int) {
	for rows := s.stored(ctx, room, 0); len(rows) > 0; rows = s.stored(ctx, room, rows[len(rows)-1].ID) {
		for part := range byOrigin(room, rows) {
			if ctx.Err() != nil {
				break
			}
			s.start(ctx, part.batch)
			<-part.batch.done
			if part.batch.failed != nil {
				left += len(part.ids)
			} else {
				s.drop(part.batch, part.ids)
			}
		}
		if ctx.Err() != nil {
			return left
		}
	}
	return left
}
