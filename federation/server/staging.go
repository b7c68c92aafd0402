package server

import (
	"context"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// Events of a room that takes long are stored and the transaction is answered, so that the sender can go
// on with other rooms. What was stored is worked on by whoever began it; after a
// restart, by resume. Events are stored too if a server cannot be reached that is asked for what comes before them: the
// sender would not send them again, and nothing else may ever refer to them.

// maxStaged bounds how many events may be stored for one room. A sender that has
// more of them waits for its answer: that is the back-pressure.
const maxStaged = 1000

// mayStage takes a place for a batch among what is stored for its room.
func (s *Server) mayStage(b *roomBatch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged[b.room]+len(b.pdus) > maxStaged {
		return false
	}
	s.staged[b.room] += len(b.pdus)
	return true
}

// unstaged gives places back.
func (s *Server) unstaged(room matrix.RoomID, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged[room] -= n; s.staged[room] <= 0 {
		delete(s.staged, room)
	}
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
		s.drop(b.room, ids)
	}
}

// drop removes stored events.
func (s *Server) drop(room matrix.RoomID, ids []storage.Position) {
	err := s.opts.DB.Write(s.life, func(tx *storage.Tx) error { return storage.DeleteInboundPDUs(s.life, tx, ids) })
	if err != nil {
		if s.life.Err() == nil {
			s.opts.Log.Error().Err(err).Msg("federation: remove processed events")
		}
		return
	}
	s.unstaged(room, len(ids))
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

// retry tries the stored events of a room until none is left or it has been often enough.
func (s *Server) retry(room matrix.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retrying[room] {
		return
	}
	s.retrying[room] = true
	s.workers.Go(func() {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.retrying, room)
		}()
		wait := s.opts.Retry
		for range maxAttempts {
			timer := time.NewTimer(wait)
			select {
			case <-s.life.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			if s.resumeRoom(s.life, room) == 0 {
				return
			}
			wait = min(2*wait, maxRetry)
		}
		s.opts.Log.Warn().Str("room", string(room)).Msg("federation: events given up for which the state cannot be had")
		for rows := s.stored(s.life, room, 0); len(rows) > 0; rows = s.stored(s.life, room, rows[len(rows)-1].ID) {
			s.drop(room, idsOf(rows))
		}
	})
}

// stored reads a room's events that wait, after a given one; none if that fails.
func (s *Server) stored(ctx context.Context, room matrix.RoomID, after storage.Position) []storage.InboundPDU {
	rows, err := storage.FindInboundPDUs(ctx, s.opts.DB, room, after, maxStaged)
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Error().Err(err).Msg("federation: read stored events")
	}
	return rows
}

func idsOf(rows []storage.InboundPDU) []storage.Position {
	ids := make([]storage.Position, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	return ids
}

// resumeRoom works on the stored events of a room and returns how many have to wait for another time.
func (s *Server) resumeRoom(ctx context.Context, room matrix.RoomID) (left int) {
	for rows := s.stored(ctx, room, 0); len(rows) > 0; rows = s.stored(ctx, room, rows[len(rows)-1].ID) {
		for part := rows; len(part) > 0 && ctx.Err() == nil; {
			n := 1
			for n < len(part) && part[n].Origin == part[0].Origin {
				n++
			}
			b := &roomBatch{room: room, done: make(chan struct{})}
			for _, row := range part[:n] {
				b.pdus = append(b.pdus, row.PDU)
			}
			s.start(ctx, part[0].Origin, b)
			<-b.done
			if b.failed != nil {
				left += n
			} else {
				s.drop(room, idsOf(part[:n]))
			}
			part = part[n:]
		}
		if ctx.Err() != nil {
			return left
		}
	}
	return left
}
