package rooms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"hanok/internal/flights"
	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Options are what an Engine works with.
type Options struct {
	DB         *storage.DB
	ServerName matrix.ServerName
	Key        signing.Key
	Remote     Remote          // nil: federation is off
	Identity   IdentityServers // nil: nobody is invited by e-mail address or phone number
	Policy     Policy          // nil: everything is allowed
	// Notices is who sends server notices, whose invites nobody can turn down; "" for nobody. spec: client-server-api#server-notices
	Notices  matrix.UserID
	Listener Listener // nil: nobody listens
	// DefaultVersion is that of rooms whose creator names none; "" means roomversion.Default.
	DefaultVersion roomversion.ID
	// Profile gives a local user's display name and avatar URL for membership events; nil means none.
	Profile func(ctx context.Context, user matrix.UserID) (displayName, avatarURL string, err error)
	// Erased reports whether a local user has asked for what they sent to be erased; nil means nobody has. spec: cs/deactivateAccount
	Erased func(ctx context.Context, user matrix.UserID) (bool, error)
	// MayInvite refuses an invite that a local user does not want; nil means all may be invited. spec: client-server-api#invite-permission
	MayInvite func(ctx context.Context, invited, inviter matrix.UserID) error
	// MakeAlias gives whoever could make an alias of this server that does not exist the occasion to do so, and waits; nil means there is nobody.
	MakeAlias func(ctx context.Context, alias matrix.RoomAlias) error
	// ForgetOnLeave makes rooms forgotten by whoever leaves them or is removed. spec: client-server-api#mforget_forced_upon_leave-capability
	ForgetOnLeave bool
	// NoDummyEvents leaves the branches of a room as they are until somebody here says something.
	NoDummyEvents bool
	// MayFederate refuses a local user who is kept to this server (a *matrix.Error); nil means nobody is.
	MayFederate func(ctx context.Context, user matrix.UserID) error
	// Answers says whether another server answered lately; nil means that all do.
	Answers func(server matrix.ServerName) bool
	// LocalByDefault makes rooms for users of this server only, unless their creator says otherwise (m.federate).
	LocalByDefault bool
	// StateCompleted is told, in the transaction that does it, that the whole state of a room is known which was joined
	// without its members; nil means nobody is. It may be called more than once.
	StateCompleted func(ctx context.Context, tx *storage.Tx, c *Completion) error
	// Now is the clock; nil means the system's.
	Now func() matrix.Timestamp
	// Random is where the IDs of new rooms come from; nil means crypto/rand.
	Random io.Reader
	// Gather, if set, is called before a batch of what is to be committed is closed; see storage.Options.
	Gather func()
	Log    zerolog.Logger

	CacheBytes int64 // memory for events and state nodes; 0 means 64 MiB
	CacheRooms int   // loaded rooms kept while idle; 0 means 1000
}

// Policy is what the operator's rules say about events. A refusal is a *matrix.Error.
type Policy interface {
	// CheckLocal decides whether a local user's event may be sent. encrypted says whether the room is.
	CheckLocal(ctx context.Context, e *event.Event, encrypted bool) error
	// CheckRemote decides about an accepted event of another server. redact means: keep
	// its redacted form only and soft-fail it.
	CheckRemote(ctx context.Context, e *event.Event, encrypted bool) (redact bool)
	// InitialState returns further initial state of a room about to be created
	// (m.room.encryption), or refuses the creation.
	InitialState(ctx context.Context, r *CreateRequest) ([]StateInput, error)
}

// Listener is told what happened, after the commit, in order of position, from one goroutine: it must not block.
type Listener interface {
	RoomUpdated(u *Update)
}

// Update is one commit to one room. It and what it points to is shared: do not change it.
type Update struct {
	Room        matrix.RoomID
	RoomNID     storage.RoomNID
	Events      []*Event           // in order of position
	Memberships []MembershipChange // changes of current memberships, in order
	Local       []matrix.UserID    // local users joined after this update
	NewState    bool               // the room's current state changed
	Position    storage.Position   // the highest position in the update
}

// MembershipChange is a user's new membership in a room.
type MembershipChange struct {
	User     matrix.UserID
	Local    bool   // a user of this server
	Previous string // "" if there was none
	Current  string
	Event    matrix.EventID
	Position storage.Position
}

// MadeEvent is a template made by another server. spec: ss/makeJoin, ss/makeLeave, ss/makeKnock
type MadeEvent struct {
	Version roomversion.ID
	Event   []byte
}

// SentJoin is the answer to a join. spec: ss/sendJoinV2
type SentJoin struct {
	Event     []byte   // the join as signed by the resident server; may be nil
	State     [][]byte // the room's state before the join
	AuthChain [][]byte

	MembersOmitted bool                // the state lacks memberships
	Servers        []matrix.ServerName // those in the room before the join
}

// Remote is what the engine needs of other servers. PDUs are raw JSON, unchecked.
// Implementations bound the size and time of every answer.
type Remote interface {
	// Verify checks the signatures an event must carry (event.RequiredSigners), fetching
	// keys as needed; result i is nil when events[i] is properly signed.
	Verify(ctx context.Context, events []*event.Event) []error

	MakeJoin(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (MadeEvent, error)
	// SendJoin lets the other server leave out the memberships. spec: ss/sendJoinV2 omit_members
	SendJoin(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) (SentJoin, error)
	MakeLeave(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID) (MadeEvent, error)
	SendLeave(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) error
	MakeKnock(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (MadeEvent, error)
	SendKnock(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) (stripped [][]byte, err error)
	// Invite sends an invite to the invited user's server and returns it with that server's signature. spec: ss/sendInviteV2
	Invite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, version roomversion.ID, pdu []byte, stripped [][]byte) ([]byte, error)

	// ExchangeThirdPartyInvite asks the server of whoever invited an address to invite the user that it belongs to.
	// spec: ss/exchangeThirdPartyInvite
	ExchangeThirdPartyInvite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, event []byte) error

	Event(ctx context.Context, dest matrix.ServerName, id matrix.EventID) ([]byte, error)
	State(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth [][]byte, err error)
	StateIDs(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth []matrix.EventID, err error)
	EventAuth(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([][]byte, error)
	Backfill(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([][]byte, error)
	MissingEvents(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([][]byte, error)
	// TimestampToEvent asks for the event closest to a time, before it (dir "b") or after it ("f"). spec: ss/getEventByTimestamp
	TimestampToEvent(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, ts matrix.Timestamp, dir string) (matrix.EventID, matrix.Timestamp, error)
	// Hierarchy asks about a space and its children. spec: ss/getSpaceHierarchy
	Hierarchy(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*Hierarchy, error)
	// PolicySign asks a policy server for its signature of an event. urgent: also if it did not answer lately.
	// What it says against the event is the error, word for word. spec: ss/askPolicyServerToSign
	PolicySign(ctx context.Context, dest matrix.ServerName, pdu []byte, urgent bool) (signature []byte, err error)
	// Directory resolves an alias at the server it belongs to.
	Directory(ctx context.Context, dest matrix.ServerName, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error)
}

// Event is a stored event with what this server knows of it. Shared: do not change it.
type Event struct {
	*event.Event
	NID     storage.EventNID
	RoomNID storage.RoomNID
	// Pos orders a room's events for /sync. 0: not part of the timeline (outlier,
	// rejected, soft-failed); negative: history fetched by backfill.
	Pos         storage.Position
	ReceivedTS  matrix.Timestamp
	Rejected    bool
	SoftFailed  bool
	Relay       bool            // this server sends it to the others: made here, or taken for the room by send_join and its like
	Partial     bool            // the state before it lacks memberships, see partial.go; it was checked as far as possible
	Outlier     bool            // known only as part of an auth chain or of a state
	RedactedBy  matrix.EventID  // the redaction that was applied; the event is in redacted form then
	TxnDevice   matrix.DeviceID // the local device that sent the event, and its transaction id
	TxnID       string
	Delayed     bool // TxnID is the ID under which a local user scheduled the event. spec: MSC4140
	redactedBy  storage.EventNID
	stateBefore statetree.Ref
	prevs       []storage.EventNID // those known when it came; see room.prevsOf
	auths       []storage.EventNID
	typ, skey   storage.NameNID // skey is 0 for message-like events
	sender      storage.NameNID
	was         storage.EventNID // the number it had before this commit, 0 if the same or none
}

// Engine is the room engine of one server.
type Engine struct {
	db             *storage.DB
	server         matrix.ServerName
	own            storage.NameNID // the number of our server name
	key            signing.Key
	remote         Remote
	identity       IdentityServers
	policy         Policy
	listener       Listener
	notices        matrix.UserID
	profile        func(context.Context, matrix.UserID) (string, string, error)
	mayInvite      func(ctx context.Context, invited, inviter matrix.UserID) error
	makeAlias      func(ctx context.Context, alias matrix.RoomAlias) error
	completed      func(ctx context.Context, tx *storage.Tx, c *Completion) error
	forgetOnLeave  bool
	noDummyEvents  bool
	mayFederate    func(ctx context.Context, user matrix.UserID) error
	answers        func(matrix.ServerName) bool
	localByDefault bool
	now            func() matrix.Timestamp
	random         io.Reader
	log            zerolog.Logger
	defaultVersion roomversion.ID
	erased         func(ctx context.Context, user matrix.UserID) (bool, error)

	forest    *statetree.Forest
	events    *eventCache
	forms     *clientForms
	resolved  *recent.Map[string, statetree.Tree] // what sets of states resolved to
	memories  *memories
	servers   *serverCounts
	doubted   *recent.Set[matrix.EventID]
	dropped   *recent.Set[matrix.EventID] // events that were rejected and not stored: see outsiders.go
	outsiders *outside
	dry       *recent.Set[dryServer]
	// residences has when others were asked whether this server is in a room; awaited has the rooms to which a signed invite is waited for.
	residences *recent.Map[storage.RoomNID, matrix.Timestamp]
	awaited    sync.Map
	userRooms  *userRooms
	directory  *published
	recent     recentChanges
	partials   *partials
	isolation  isolation
	committer  *committer
	txns       flights.Flights[txnKey, matrix.EventID]
	joins      flights.Flights[matrix.RoomID, struct{}]
	fills      flights.Flights[storage.RoomNID, bool]
	upgrades   flights.Flights[matrix.RoomID, matrix.RoomID]
	untold     chan struct{} // a leave is to be told later
	// hierarchies are answers of other servers about spaces.
	hierarchies *recent.Map[hierarchyKey, cachedHierarchy]
	maxRooms    int

	life  context.Context // until Close
	end   context.CancelFunc
	works sync.WaitGroup // what was begun in the background

	mu    sync.Mutex // begins no work once life has ended
	byID  map[matrix.RoomID]*room
	byNID map[storage.RoomNID]*room
}

// New makes an engine. Close it before the database.
func New(o Options) (*Engine, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.CacheRooms == 0 {
		o.CacheRooms = 1000
	}
	if o.DefaultVersion == "" {
		o.DefaultVersion = roomversion.Default
	}
	if o.Now == nil {
		o.Now = func() matrix.Timestamp { return matrix.Timestamp(time.Now().UnixMilli()) }
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.MayInvite == nil {
		o.MayInvite = func(context.Context, matrix.UserID, matrix.UserID) error { return nil }
	}
	if o.MakeAlias == nil {
		o.MakeAlias = func(context.Context, matrix.RoomAlias) error { return nil }
	}
	if o.Answers == nil {
		o.Answers = func(matrix.ServerName) bool { return true }
	}
	if o.MayFederate == nil {
		o.MayFederate = func(context.Context, matrix.UserID) error { return nil }
	}
	if o.StateCompleted == nil {
		o.StateCompleted = func(context.Context, *storage.Tx, *Completion) error { return nil }
	}
	if o.Profile == nil {
		o.Profile = func(context.Context, matrix.UserID) (string, string, error) { return "", "", nil }
	}
	if o.Remote == nil {
		o.Remote = isolated{}
	}
	if o.Identity == nil {
		o.Identity = noIdentityServers{}
	}
	if o.Policy == nil {
		o.Policy = permissive{}
	}
	if o.Listener == nil {
		o.Listener = deaf{}
	}
	// A name that has no number is looked up in the database each time it is asked for: these are asked for with every event.
	nids, err := o.DB.Intern(context.Background(), append([]string{string(o.ServerName)}, hotNames...)...)
	if err != nil {
		return nil, fmt.Errorf("intern server name: %w", err)
	}
	e := &Engine{
		db: o.DB, server: o.ServerName, own: nids[0], key: o.Key, remote: o.Remote, identity: o.Identity, policy: o.Policy, listener: o.Listener, notices: o.Notices,
		profile: o.Profile, mayInvite: o.MayInvite, makeAlias: o.MakeAlias, completed: o.StateCompleted, forgetOnLeave: o.ForgetOnLeave, noDummyEvents: o.NoDummyEvents, mayFederate: o.MayFederate, answers: o.Answers, localByDefault: o.LocalByDefault, now: o.Now, random: o.Random, log: o.Log, defaultVersion: o.DefaultVersion, erased: o.Erased,
		forest:   statetree.New(nodeStore{o.DB}, o.CacheBytes/2),
		forms:    newClientForms(),
		resolved: recent.NewMap[string, statetree.Tree](maxResolutions), memories: newMemories(), userRooms: newUserRooms(), recent: recentChanges{since: o.DB.Current()},
		servers: newServerCounts(),
		doubted: recent.NewSet[matrix.EventID](maxDoubted),
		dropped: recent.NewSet[matrix.EventID](maxDropped),
		dry:     recent.NewSet[dryServer](maxDry),

		residences: recent.NewMap[storage.RoomNID, matrix.Timestamp](maxResidences),
		maxRooms:   o.CacheRooms,
		byID:       make(map[matrix.RoomID]*room),
		byNID:      make(map[storage.RoomNID]*room),
		untold:     make(chan struct{}, 1),
	}
	e.life, e.end = context.WithCancel(context.Background())
	if e.partials, err = loadPartials(context.Background(), o.DB); err != nil {
		return nil, err
	}
	e.events = newEventCache(o.CacheBytes/2, func(room storage.RoomNID) bool { return e.partials.get(room) != nil })
	e.outsiders = newOutside(o.Now())
	e.directory = newPublished(e)
	e.hierarchies = newHierarchyCache()
	if err := e.isolation.load(context.Background(), o.DB); err != nil {
		return nil, err
	}
	e.committer = newCommitter(e, o.Gather)
	return e, nil
}

// hotNames are the types and state keys of what is looked up for most events.
var hotNames = []string{
	"", "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "m.room.server_acl",
	"m.room.encryption", "m.room.policy", "m.room.name", "m.room.topic", "m.room.avatar", "m.room.canonical_alias", "m.room.guest_access", "m.room.redaction", "m.room.message", "m.room.encrypted",
}

// DefaultVersion is the version of rooms whose creator names none.
func (e *Engine) DefaultVersion() roomversion.ID { return e.defaultVersion }

// Close ends requests that nobody waits for any more, and waits for the commits under way; later calls fail.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.end()
	e.mu.Unlock()
	e.works.Wait()
	e.committer.close()
	return nil
}

// nodeStore lets state trees live in the database.
type nodeStore struct{ db *storage.DB }

func (s nodeStore) LoadNodes(ctx context.Context, id int64) ([]byte, error) {
	return storage.LoadStateNodes(ctx, s.db, id)
}

func (s nodeStore) Allocate() (int64, error) { return s.db.AllocateStateNode() }

// permissive is the policy of an engine that was given none.
type permissive struct{}

func (permissive) CheckLocal(context.Context, *event.Event, bool) error { return nil }
func (permissive) CheckRemote(context.Context, *event.Event, bool) bool { return false }
func (permissive) InitialState(context.Context, *CreateRequest) ([]StateInput, error) {
	return nil, nil
}

type deaf struct{}

func (deaf) RoomUpdated(*Update) {}

// domain is the part of a user ID or alias behind the first colon.
func domain[T ~string](id T) matrix.ServerName {
	if i := strings.IndexByte(string(id), ':'); i >= 0 {
		return matrix.ServerName(id[i+1:])
	}
	return ""
}

func (e *Engine) isLocal(user matrix.UserID) bool { return domain(user) == e.server }

// notFound turns storage.ErrNotFound into M_NOT_FOUND.
func notFound(err error, message string) error {
	if errors.Is(err, storage.ErrNotFound) {
		return matrix.NotFound("%s", message)
	}
	return err
}

func ignoreNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}
