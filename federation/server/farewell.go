package server

import (
	"context"
	"time"

	"hanok/matrix"
)

// A server that goes on to send us events of a room that we left has missed that we did. It is told again, now and then.

const (
	farewellEvery = 6 * time.Hour
	maxFarewells  = 10_000 // rooms and servers that are remembered, and when they were told
)

type farewellKey struct {
	server matrix.ServerName
	room   matrix.RoomID
}

// sayFarewell tells a server that we left a room, if we did and it sent events that show that it has missed it. Those may have been taken: where
// somebody of ours was removed, that may turn out not to hold.
func (s *Server) sayFarewell(ctx context.Context, to matrix.ServerName, room matrix.RoomID, pdus [][]byte) {
	key := farewellKey{to, room}
	if at, told := s.farewells.Get(key); s.opts.Outbox == nil || told && s.opts.Now().Sub(at) < farewellEvery {
		return
	}
	leave, err := s.opts.Rooms.Farewell(ctx, room, pdus)
	if err == nil && leave != nil {
		if err = s.opts.Outbox.QueueAgain(ctx, to, leave); err == nil {
			s.farewells.Put(key, s.opts.Now())
		}
	}
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Error().Err(err).Str("server", string(to)).Msg("federation: tell a server that we left a room")
	}
}
