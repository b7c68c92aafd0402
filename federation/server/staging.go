package server

import (
	"context"

	"hanok/matrix"
	"hanok/storage"
)

// Events of a room that takes long are stored and the transaction is answered, so that the sender can go
// on with other rooms. What was stored is worked on by whoever began it; after a
// restart, by resume.

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
	s.release(b)
	return true
}

// release gives the places back when the batch is done.
func (s *Server) release(b *roomBatch) {
	s.workers.Go(func() {
		<-b.done
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.staged[b.room] -= len(b.pdus); s.staged[b.room] <= 0 {
			delete(s.staged, b.room)
		}
	})
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

// unstage removes what has been worked on. What failed, or was cut short because the server
// stops, is worked on again after the next start.
func (s *Server) unstage(b *roomBatch, ids []storage.Position) {
	if b.failed != nil || s.life.Err() != nil {
		return
	}
	err := s.opts.DB.Write(s.life, func(tx *storage.Tx) error { return storage.DeleteInboundPDUs(s.life, tx, ids) })
	if err != nil && s.life.Err() == nil {
		s.opts.Log.Error().Err(err).Msg("federation: remove processed events")
	}
}

// resume works on the events that were stored and not finished before the last stop: rooms side by side, each in order.
func (s *Server) resume(ctx context.Context) error {
	waiting, err := storage.FindInboundRooms(ctx, s.opts.DB)
	if err != nil {
		return err
	}
	for _, room := range waiting {
		s.workers.Go(func() {
			if err := s.resumeRoom(s.life, room); err != nil && s.life.Err() == nil {
				s.opts.Log.Error().Err(err).Msg("federation: resume a room")
			}
		})
	}
	return nil
}

func (s *Server) resumeRoom(ctx context.Context, room matrix.RoomID) error {
	var after storage.Position
	for {
		rows, err := storage.FindInboundPDUs(ctx, s.opts.DB, room, after, maxStaged)
		if err != nil || len(rows) == 0 {
			return err
		}
		for len(rows) > 0 && ctx.Err() == nil {
			n := 1
			for n < len(rows) && rows[n].Origin == rows[0].Origin {
				n++
			}
			b := &roomBatch{room: room, done: make(chan struct{})}
			ids := make([]storage.Position, n)
			for i, row := range rows[:n] {
				b.pdus, ids[i] = append(b.pdus, row.PDU), row.ID
			}
			s.start(ctx, rows[0].Origin, b)
			<-b.done
			s.unstage(b, ids)
			after, rows = ids[n-1], rows[n:]
		}
	}
}
