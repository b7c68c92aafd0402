package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hanok/api"
	"hanok/appservice"
	"hanok/delayed"
	"hanok/federation"
	"hanok/federation/discovery"
	"hanok/federation/identity"
	fedserver "hanok/federation/server"
	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/media"
	"hanok/notices"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// wire builds all parts on the open database.
func (s *Server) wire(ctx context.Context) (err error) {
	if !s.cfg.Federation.Disabled {
		if s.outbound, err = s.openOutbound(ctx); err != nil {
			return err
		}
		s.metrics.watchOutbox(s.outbound.Queue)
	}
	if err := s.openDomain(); err != nil {
		return err
	}
	if !s.cfg.Push.Disabled {
		if err := s.openPush(); err != nil {
			return err
		}
	}
	if err := s.openNotices(ctx); err != nil {
		return err
	}
	if err := s.services.OpenAccounts(ctx, s.users.Accounts); err != nil {
		return err
	}
	s.client = s.clientAPI()
	if s.outbound != nil {
		s.federation = fedserver.New(fedserver.Options{
			ServerName: s.name, Version: s.version, DB: s.db, Keys: s.outbound.Keys, Peers: s.outbound.Peers,
			Rooms: s.rooms, Users: s.users, Media: s.media, Typing: s.feed.Typing, Outbox: s.outbound.Queue, BehindProxy: s.cfg.Server.BehindProxy,
			Observe: s.metrics.observer("federation"), Log: s.part("federation"),
		})
	}
	return nil
}

// openDomain builds rooms, users, feed and media. They know each other through small
// interfaces; where two need one another, the first is given a function that finds the second when it is called.
func (s *Server) openDomain() (err error) {
	cfg := s.cfg
	s.services = appservice.New(appservice.Options{
		ServerName: s.name, Registrations: cfg.Appservices.Registrations, UnverifiedTLS: cfg.Appservices.UnverifiedTLS, DB: s.db, Sent: s.metrics.observeServiceTransaction, Log: s.part("appservice"),
	})
	s.metrics.watchServices(s.services)
	s.hub = feed.NewHub(func(room matrix.RoomID) []matrix.UserID {
		local, err := s.rooms.LocalUsers(s.requests, room)
		if err != nil {
			s.log.Error().Err(err).Msg("wake a room")
		}
		return local
	}, func() {
		s.services.Wake()
		pushes{s}.MayHaveRead()
	})
	listening := listeners{s.hub, deviceLists{s}, pushes{s}}
	if !s.services.None() {
		listening = append(listening, s.services)
	}
	if s.outbound != nil {
		listening = append(listening, s.outbound.Queue)
	}
	roomOptions := rooms.Options{
		DB: s.db, ServerName: s.name, Key: s.key, Policy: roomPolicy{s.policy}, Notices: s.noticesSender(), Listener: listening, Log: s.part("rooms"),
		DefaultVersion: roomversion.ID(cfg.Rooms.DefaultVersion),
		Profile: func(ctx context.Context, user matrix.UserID) (string, string, error) {
			return s.users.Profiles.Local(ctx, user)
		},
		ForgetOnLeave: cfg.Rooms.ForgetOnLeave, NoDummyEvents: cfg.Rooms.NoDummyEvents, LocalByDefault: cfg.Rooms.LocalByDefault,
		MayFederate: func(ctx context.Context, user matrix.UserID) error {
			return s.users.Accounts.CheckFederates(ctx, user)
		},
		Erased:    func(ctx context.Context, user matrix.UserID) (bool, error) { return s.users.Accounts.Erased(ctx, user) },
		MakeAlias: s.services.MakeAlias,
		MayInvite: func(ctx context.Context, invited, inviter matrix.UserID) error {
			// The invite is made in any case: a service that is down finds it when it is back.
			if err := s.services.MakeUser(ctx, invited); err != nil {
				s.log.Info().Err(err).Msg("an application service was asked in vain whether an invited user exists")
			}
			return s.users.Accounts.CheckInvite(ctx, invited, inviter)
		},
		StateCompleted: func(ctx context.Context, tx *storage.Tx, c *rooms.Completion) error {
			return s.users.DeviceLists.RoomCompleted(ctx, tx, users.RoomCompletion{Since: c.Since, Local: c.Local, Learned: c.Learned, Servers: c.Servers, Misled: c.Misled})
		},
	}
	userOptions := users.Options{
		DB: s.db, ServerName: s.name, Log: s.part("users"), Policy: s.policy, Notices: s.noticesSender(), Notifier: s.hub,
		PushGateways: users.PushGateways{Disabled: cfg.Push.Disabled, Insecure: cfg.Push.AllowPrivateAddresses, Hosts: cfg.Push.Gateways},
		LocalOnly:    cfg.Registration.LocalOnly, RegistrationTokens: cfg.Registration.Tokens, RegistrationSecret: cfg.Registration.SharedSecret, KeepAddresses: s.policy.KeepIP(),
		Services: !s.services.None(),
		Reserved: func(user matrix.UserID) bool { return s.services.UserReserved(user, nil) }, MakeUser: s.services.MakeUser,
	}
	feedOptions := feed.Options{DB: s.db, Hub: s.hub, Notified: pushes{s}.Notified, Recounted: pushes{s}.Recounted, Log: s.part("feed")}
	mediaOptions := media.Options{
		DB: s.db, Dir: filepath.Join(cfg.Server.DataDir, "media"), Server: s.name, Policy: s.policy,
		MaxUpload: int64(cfg.Media.MaxUpload), MaxRemote: int64(cfg.Media.MaxRemote), UserQuota: int64(cfg.Media.UserQuota),
		MaxPixels: cfg.Media.MaxPixels, RemoteMaxAge: time.Duration(cfg.Media.RemoteMaxDays) * 24 * time.Hour,
		ServeLegacy: cfg.Media.ServeLegacy, Now: time.Now, Log: s.part("media"),
	}
	if s.outbound != nil {
		roomOptions.Answers = func(name matrix.ServerName) bool { _, wait := s.outbound.Peers.RetryAt(name); return !wait }
		roomOptions.Identity = identity.New(identity.Options{Trusted: cfg.Identity.TrustedServers, HTTP: s.outbound.Resolver.HTTPClient()})
		roomOptions.Remote = s.outbound
		userOptions.Remote, userOptions.Outbox = s.outbound, s.outbound.Queue
		feedOptions.SendTyping, mediaOptions.Remote = s.sendTyping, s.outbound
	}
	if s.rooms, err = rooms.New(roomOptions); err != nil {
		return fmt.Errorf("open the rooms: %w", err)
	}
	userOptions.Rooms = s.rooms
	s.users = users.New(userOptions)
	feedOptions.Rooms, feedOptions.Users = s.rooms, s.users
	s.feed = feed.New(feedOptions)
	s.delayed = delayed.New(delayed.Options{
		DB: s.db, Rooms: s.rooms, MaySend: s.users.Accounts.CheckMaySend,
		MaxDelay: time.Duration(cfg.Limits.MaxDelay), MaxScheduled: cfg.Limits.MaxDelayedEvents, Log: s.part("delayed"),
	})
	if s.media, err = media.New(mediaOptions); err != nil {
		return err
	}
	if cfg.Media.URLPreviews {
		resolver := discovery.New(discovery.Options{})
		if s.outbound != nil {
			resolver = s.outbound.Resolver
		}
		s.previews = media.NewPreviews(s.media, resolver.HTTPClient())
	}
	return nil
}

// noticesSender is who sends server notices, "" if nobody does.
func (s *Server) noticesSender() matrix.UserID {
	if s.cfg.Notices.Localpart == "" {
		return ""
	}
	return matrix.UserID("@" + s.cfg.Notices.Localpart + ":" + string(s.name))
}

func (s *Server) openNotices(ctx context.Context) (err error) {
	if sender := s.noticesSender(); sender != "" {
		cfg := s.cfg.Notices
		s.notices, err = notices.Open(ctx, notices.Options{DB: s.db, Rooms: s.rooms, Users: s.users, Sender: sender, Name: cfg.Name, Avatar: cfg.Avatar})
	}
	return err
}

func (s *Server) openOutbound(ctx context.Context) (*federation.Outbound, error) {
	cfg := s.cfg.Federation
	notaries := make([]matrix.ServerName, len(cfg.TrustedNotaries))
	for i, n := range cfg.TrustedNotaries {
		notaries[i] = matrix.ServerName(n)
	}
	silent := 0
	if files, ok := openFiles(); ok && files < 4*reservedFiles {
		silent = files / 16
	}
	return federation.NewOutbound(ctx, federation.Options{
		ServerName: s.name, Key: s.key, DB: s.db, Version: s.version,
		AllowPrivateAddresses: cfg.AllowPrivateAddresses, TrustedCAFiles: cfg.TrustedCAFiles, Notaries: notaries,
		AllowServers: cfg.AllowServers, DenyServers: cfg.DenyServers,
		Observe: s.metrics.observeOutbound, Delivered: s.metrics.observeDelivery, MaxSilent: silent, Log: s.part("federation"),
	})
}

// sendTyping tells the other servers in a room that a local user types or stops.
// spec: server-server-api#typing-notifications
func (s *Server) sendTyping(ctx context.Context, room matrix.RoomID, user matrix.UserID, typing bool) {
	joined, err := s.rooms.JoinedServers(ctx, room)
	if err != nil {
		return // it is worth nothing by the time it could be tried again
	}
	servers := slices.DeleteFunc(slices.Clone(joined), func(name matrix.ServerName) bool { return name == s.name })
	if len(servers) == 0 {
		return
	}
	content, err := json.Marshal(map[string]any{"room_id": room, "user_id": user, "typing": typing})
	if err != nil {
		s.log.Error().Err(err).Msg("encode a typing notice")
		return
	}
	s.outbound.Queue.SendVolatile(servers, "m.typing", content)
}

func (s *Server) clientAPI() http.Handler {
	cfg := s.cfg
	o := api.Options{
		ServerName: s.name, BaseURL: strings.TrimSuffix(cfg.Server.PublicBaseURL, "/"),
		DB: s.db, Rooms: s.rooms, Users: s.users, Feed: s.feed, Media: s.media, Delayed: s.delayed, Notices: s.notices, Services: s.services, Previews: s.previews,
		Registration: api.Registration{
			Open: cfg.Registration.Open, RequireToken: !cfg.Registration.Open && len(cfg.Registration.Tokens) > 0,
			Guests: cfg.Registration.Guests, PasswordLogin: true,
		},
		Encryption: cfg.Privacy.Encryption, ForgetOnLeave: cfg.Rooms.ForgetOnLeave,
		ServeOpenID: s.outbound == nil,
		LiveKit:     cfg.RTC.LiveKitServiceURLs,
		TURN: api.TURN{
			URIs: cfg.TURN.URIs, Secret: cfg.TURN.SharedSecret, Username: cfg.TURN.Username, Password: cfg.TURN.Password,
			TTL: time.Duration(cfg.TURN.Lifetime),
		},
		RateLimits: !cfg.Limits.NoRateLimits, BehindProxy: cfg.Server.BehindProxy,
		Observe: s.metrics.observer("client"), Log: s.part("api"),
	}
	if s.outbound != nil {
		o.Remote = s.outbound
	}
	return api.New(o).Handler()
}
