// Package server answers other servers: the inbound half of the server-server API.
//
// routes.go is the whole API on one page; the files beside it are named for the
// concept they serve. A handler decodes, makes one call to a domain package and
// answers; who is asking was settled before (auth.go).
package server

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"

	"hanok/federation/keyring"
	"hanok/federation/peers"
	"hanok/internal/budget"
	"hanok/internal/endpoint"
	"hanok/internal/gate"
	"hanok/internal/recent"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/media"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Rooms is what the endpoints need of the room engine; *rooms.Engine has it, tests stand in for it.
type Rooms interface {
	AllowsServer(ctx context.Context, room matrix.RoomID, server matrix.ServerName) error
	Snapshot(ctx context.Context, room matrix.RoomID) (*rooms.Snapshot, error)
	Event(ctx context.Context, id matrix.EventID) (*rooms.Event, error)
	MayBeJoined(ctx context.Context, room matrix.RoomID, user matrix.UserID) (bool, error)
	Federates(room matrix.RoomID) bool
	JoinedServers(ctx context.Context, room matrix.RoomID) ([]matrix.ServerName, error)
	PublicRooms(ctx context.Context, r rooms.PublicRoomsRequest) (*rooms.PublicRooms, error)
	ResolveLocalAlias(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error)

	AcceptThirdPartyInvite(ctx context.Context, room matrix.RoomID, sender, target matrix.UserID, signed []byte) error

	Receive(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, pdus [][]byte) []rooms.Received
	Farewell(ctx context.Context, room matrix.RoomID, pdus [][]byte) (*rooms.Event, error)
	MakeJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (rooms.MadeEvent, error)
	SendJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte, omitMembers bool) (rooms.SentJoin, error)
	MakeLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID) (rooms.MadeEvent, error)
	SendLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) error
	MakeKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (rooms.MadeEvent, error)
	SendKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) ([][]byte, error)
	ReceiveInvite(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, version roomversion.ID, pdu []byte, stripped [][]byte) ([]byte, error)
	ServeEvent(ctx context.Context, origin matrix.ServerName, id matrix.EventID) ([]byte, error)
	ServeState(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth [][]byte, err error)
	ServeStateIDs(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth []matrix.EventID, err error)
	ServeEventAuth(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([][]byte, error)
	ServeBackfill(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([][]byte, error)
	ServeMissingEvents(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([][]byte, error)
	ServeEventByTime(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, ts matrix.Timestamp, backward bool) (*rooms.Event, error)
	ServeHierarchy(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*rooms.Hierarchy, error)
}

// Typing takes typing notices of remote users.
type Typing interface {
	Start(room matrix.RoomID, user matrix.UserID, d time.Duration) (changed bool)
	Stop(room matrix.RoomID, user matrix.UserID) (changed bool)
}

// Outbox sends events; *queue.Queue does.
type Outbox interface {
	QueueAgain(ctx context.Context, dest matrix.ServerName, ev *rooms.Event) error
}

// Options are what a Server works with.
type Options struct {
	ServerName matrix.ServerName
	Version    string // of this software
	DB         *storage.DB
	Keys       *keyring.Ring
	Peers      *peers.Peers
	Rooms      Rooms
	Users      *users.Service
	Media      *media.Repository // nil: no media
	Typing     Typing            // nil: typing notices are dropped
	Outbox     Outbox            // nil: who has missed that we left a room is not told
	// Observe is told of every finished request; nil for none.
	Observe     func(operation, method string, status int, elapsed time.Duration)
	BehindProxy bool // a reverse proxy says in X-Forwarded-For who asks
	// Patience is how long a transaction waits for a room that has to fetch what it misses; 0 means 10 s.
	Patience time.Duration
	// Retry is how long it takes until events are tried again for which what comes before them could not be had, the first time; 0 means 15 s.
	Retry time.Duration
	Now   func() time.Time // nil is time.Now
	Log   zerolog.Logger
}

// Server answers other servers.
type Server struct {
	opts         Options
	handler      http.Handler
	transactions singleflight.Group
	heavyWork    *gate.Gate[matrix.ServerName]
	strangers    *gate.Gate[string] // by address
	bodies       *budget.Budget     // by address
	bigBodies    chan struct{}
	received     atomic.Int64 // transactions
	farewells    *recent.Map[farewellKey, time.Time]

	// life is the context of work that outlives the request which began it; workers counts that work.
	life    context.Context
	end     context.CancelFunc
	workers sync.WaitGroup

	mu       sync.Mutex
	staged   *staged                   // events that are stored for rooms that take long
	retrying map[matrix.RoomID]bool    // rooms with stored events that are tried again; true: more came meanwhile
	underWay map[matrix.ServerName]int // how many transactions of a server are being worked on
}

// New makes the handler of everything below /_matrix/federation and /_matrix/key.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	if o.Retry == 0 {
		o.Retry = 15 * time.Second
	}
	s := &Server{
		opts: o, farewells: recent.NewMap[farewellKey, time.Time](maxFarewells), heavyWork: gate.New[matrix.ServerName](heavyAtOnce, heavyWaiting), strangers: gate.New[string](strangersAtOnce, strangersWaiting),
		bodies: budget.New(bodyBudget, bodyShare), bigBodies: make(chan struct{}, bigBodies), staged: newStaged(), retrying: map[matrix.RoomID]bool{}, underWay: map[matrix.ServerName]int{},
	}
	s.life, s.end = context.WithCancel(context.Background())
	common := endpoint.Options{Prefix: "/_matrix", Authorise: s.authorise, Hold: s.holdBody, Observe: o.Observe, Log: o.Log}
	mux := endpoint.NewRouter(common)
	endpoint.Mount(mux, common, s.routes())
	s.handler = mux
	return s
}

// Routes lists all endpoints with their whole paths, for tests that try every one of them.
func (s *Server) Routes() []endpoint.Route { return endpoint.Expand("/_matrix", s.routes()) }

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// holdBody counts a body for the address that it comes from: who sends slowly keeps it for bodyTimeout at most.
func (s *Server) holdBody(r *endpoint.Request) *budget.Hold {
	return s.bodies.Hold(s.address(r.Request), nil)
}

const (
	// rememberTransactions is how long the answer to a transaction is kept.
	rememberTransactions = 7 * 24 * time.Hour
	sweepEvery           = time.Hour
)

// Run finishes what the last run left undone and forgets old transactions until ctx ends. Then it
// ends the work under way: no request may come in any more.
func (s *Server) Run(ctx context.Context) error {
	defer s.workers.Wait()
	defer s.end()
	if err := s.resume(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	wake.Every(ctx, sweepEvery, func() {
		before := matrix.TimestampOf(s.opts.Now().Add(-rememberTransactions))
		err := s.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteInboundTransactions(ctx, tx, before) })
		if err != nil && ctx.Err() == nil {
			s.opts.Log.Error().Err(err).Msg("federation: forget old transactions")
		}
		if err := s.opts.Keys.Forget(ctx); err != nil && ctx.Err() == nil {
			s.opts.Log.Error().Err(err).Msg("federation: forget keys of strangers")
		}
	})
	return nil
}
