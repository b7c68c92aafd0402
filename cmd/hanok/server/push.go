package server

import (
	"context"

	"hanok/federation"
	"hanok/federation/discovery"
	"hanok/matrix"
	"hanok/push"
	"hanok/rooms"
	"hanok/storage"
)

// openPush makes what sends to push gateways.
func (s *Server) openPush() error {
	roots, err := federation.CertPool(s.cfg.Federation.TrustedCAFiles)
	if err != nil {
		return err
	}
	o := discovery.Options{Roots: roots}
	if s.cfg.Push.AllowPrivateAddresses {
		o.AllowPrivate = discovery.Everywhere()
	}
	s.push = push.New(push.Options{
		ServerName: s.name, DB: s.db, Rooms: s.rooms, Users: s.users, Feed: s.feed, HTTP: discovery.New(o).PooledClient(push.MaxPerGateway),
		Version: s.version, Details: push.Details(s.cfg.Push.Details), Observe: s.metrics.observePush, Log: s.part("push"),
	})
	s.metrics.watchPush(s.push)
	return nil
}

// PushGateways lists the gateways that notifications are sent to.
func (s *Server) PushGateways(ctx context.Context) ([]storage.GatewayUse, error) {
	return storage.FindGatewayUses(ctx, s.db)
}

// pushes tells the sender of pushes, which is made after those who have something to tell it, if there is one.
type pushes struct{ s *Server }

func (p pushes) Notified(users ...matrix.UserID) {
	if p.s.push != nil {
		p.s.push.Notified(users...)
	}
}

func (p pushes) Recounted(users ...storage.NameNID) {
	if p.s.push != nil {
		p.s.push.Recounted(users...)
	}
}

func (p pushes) RoomUpdated(u *rooms.Update) {
	if p.s.push != nil {
		p.s.push.RoomUpdated(u)
	}
}

func (p pushes) MayHaveRead() {
	if p.s.push != nil {
		p.s.push.MayHaveRead()
	}
}
