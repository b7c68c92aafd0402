package server

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"hanok/matrix"
)

// A server that goes on to send us events of a room that we left has missed that we did. It is told again, now and then.

const (
	farewellEvery = 6 * time.Hour
	maxFarewells  = 10_000 // rooms and servers that are remembered
)

type farewellKey struct {
	server matrix.ServerName
	room   matrix.RoomID
}

// farewells remembers who was told, and when.
type farewells struct {
	mu   sync.Mutex
	said *simplelru.LRU[farewellKey, time.Time]
}

func newFarewells() *farewells {
	lru, err := simplelru.NewLRU[farewellKey, time.Time](maxFarewells, nil)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return &farewells{said: lru}
}

// told says whether a server was told lately.
func (f *farewells) told(key farewellKey, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.said.Get(key)
	return ok && now.Sub(at) < farewellEvery
}

func (f *farewells) tell(key farewellKey, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said.Add(key, now)
}

// sayFarewell tells a server that we left a room, if we did and it sent events that show that it has missed it. Those may have been taken: where
// somebody of ours was removed, that may turn out not to hold.
func (s *Server) sayFarewell(ctx context.Context, to matrix.ServerName, room matrix.RoomID, pdus [][]byte) {
	key := farewellKey{to, room}
	if s.opts.Outbox == nil || s.farewells.told(key, s.opts.Now()) {
		return
	}
	leave, err := s.opts.Rooms.Farewell(ctx, room, pdus)
	if err == nil && leave != nil {
		if err = s.opts.Outbox.QueueAgain(ctx, to, leave); err == nil {
			s.farewells.tell(key, s.opts.Now())
		}
	}
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Error().Err(err).Str("server", string(to)).Msg("federation: tell a server that we left a room")
	}
}
