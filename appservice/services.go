package appservice

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"hanok/config"
	"hanok/feed"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Options are what Services work with. All fields are required unless noted.
type Options struct {
	ServerName    matrix.ServerName
	Registrations []config.Appservice
	UnverifiedTLS bool // take any certificate of theirs
	DB            *storage.DB
	// Sent is told of every attempt to deliver a transaction; nil for none.
	Sent func(service string, delivered bool, events int)
	Now  func() time.Time // nil is time.Now
	Log  zerolog.Logger
}

// Services are the registered application services. A nil *Services has none.
type Services struct {
	Options
	list    []*Service
	byToken map[[sha256.Size]byte]*Service
	queries singleflight.Group
}

// Service is one application service. Immutable but for what its reader keeps.
type Service struct {
	config.Appservice
	server   matrix.ServerName
	client   *http.Client
	now      func() time.Time
	news     chan struct{} // holds a token when there may be something to tell
	heard    chan struct{} // holds a token when the service made a request
	asking   chan struct{} // bounds queries under way
	progress progress
	known    protocols
	interest *interest
}

// maxAsking is how many queries a service is asked at a time.
const maxAsking = 16

// New makes the services; nothing runs yet.
func New(o Options) *Services {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Services{Options: o, byToken: make(map[[sha256.Size]byte]*Service, len(o.Registrations))}
	client := newClient(o.UnverifiedTLS)
	for _, reg := range o.Registrations {
		x := &Service{
			Appservice: reg, server: o.ServerName, client: client, now: o.Now,
			news: make(chan struct{}, 1), heard: make(chan struct{}, 1), asking: make(chan struct{}, maxAsking),
		}
		x.interest = newInterest(x, o.DB)
		s.list = append(s.list, x)
		s.byToken[sha256.Sum256([]byte(reg.ASToken))] = x
	}
	return s
}

// None reports that there are no services.
func (s *Services) None() bool { return s == nil || len(s.list) == 0 }

// All lists the services.
func (s *Services) All() []*Service {
	if s == nil {
		return nil
	}
	return s.list
}

// ByToken finds the service that an as_token belongs to; nil if there is none. A service that shows its token is there: what waits for it is tried again.
func (s *Services) ByToken(token string) *Service {
	if s.None() {
		return nil
	}
	x := s.byToken[sha256.Sum256([]byte(token))]
	if x != nil {
		wake.Up(x.heard)
	}
	return x
}

// OpenAccounts makes the accounts of the services' own users that do not exist. spec: application-service-api#registration
func (s *Services) OpenAccounts(ctx context.Context, accounts *users.Accounts) error {
	for _, x := range s.All() {
		_, err := accounts.Get(ctx, x.Sender)
		if errors.Is(err, storage.ErrNotFound) {
			_, err = accounts.Register(ctx, users.Registration{Localpart: x.Sender.Localpart(), Kind: users.KindService, Historical: true})
		}
		if err != nil {
			return fmt.Errorf("account of application service %q: %w", x.ID, err)
		}
	}
	return nil
}

// OwnsUser reports whether a user is the service's own one or in its namespaces. Only users of this server are.
func (x *Service) OwnsUser(user matrix.UserID) bool {
	return user == x.Sender || user.Server() == x.server && within(x.Users, string(user))
}

// OwnsAlias reports whether an alias is in the service's namespaces.
func (x *Service) OwnsAlias(alias matrix.RoomAlias) bool { return within(x.Aliases, string(alias)) }

func within(list []config.Namespace, id string) bool {
	return slices.ContainsFunc(list, func(n config.Namespace) bool { return n.Pattern.MatchString(id) })
}

func reserved(list []config.Namespace, id string) bool {
	return slices.ContainsFunc(list, func(n config.Namespace) bool { return n.Exclusive && n.Pattern.MatchString(id) })
}

// UserReserved reports whether a service other than by has a user ID for itself; by may be nil.
func (s *Services) UserReserved(user matrix.UserID, by *Service) bool {
	return slices.ContainsFunc(s.All(), func(x *Service) bool {
		return x != by && (user == x.Sender || user.Server() == x.server && reserved(x.Users, string(user)))
	})
}

// AliasReserved reports whether a service other than by has an alias for itself; by may be nil.
func (s *Services) AliasReserved(alias matrix.RoomAlias, by *Service) bool {
	return slices.ContainsFunc(s.All(), func(x *Service) bool { return x != by && reserved(x.Aliases, string(alias)) })
}

// Limited reports whether requests that the service makes as a user have rate limits. spec: application-service-api#registration
func (x *Service) Limited(user matrix.UserID) bool { return x.RateLimited && user != x.Sender }

// Sources are what the readers follow.
type Sources struct {
	Rooms  *rooms.Engine
	Users  *users.Service
	Typing *feed.Typing
}

// Run tells the services what concerns them, until ctx ends.
func (s *Services) Run(ctx context.Context, from Sources) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, x := range s.All() {
		if x.URL != "" {
			group.Go(func() error { return s.newReader(x, from).run(ctx) })
		}
	}
	return group.Wait()
}

// RoomUpdated tells the readers of a commit. It does not block.
func (s *Services) RoomUpdated(u *rooms.Update) {
	for _, x := range s.All() {
		if x.URL == "" {
			continue
		}
		for _, m := range u.Memberships {
			if m.Local && (m.Current == "join") != (m.Previous == "join") && x.OwnsUser(m.User) && !has(u.Events, m.Event) {
				x.interest.forget(u.RoomNID)
				break
			}
		}
		wake.Up(x.news)
	}
}

// has reports whether a reader meets an event in the stream.
func has(events []*rooms.Event, id matrix.EventID) bool {
	return slices.ContainsFunc(events, func(ev *rooms.Event) bool { return ev.ID() == id })
}

// Wake has the readers look for typing, receipts and presence. It does not block.
func (s *Services) Wake() {
	for _, x := range s.All() {
		if x.URL != "" && x.Ephemeral != config.EphemeralNone {
			wake.Up(x.news)
		}
	}
}
