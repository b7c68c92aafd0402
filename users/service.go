package users

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"hanok/internal/recent"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

// Clock tells the time; tests hand in their own.
type Clock func() time.Time

// Remote asks other homeservers. Each call respects ctx and bounds what it
// reads; none is made inside a transaction.
type Remote interface {
	// QueryKeys asks for device keys; an empty list of devices means all. spec: ss/queryUserEncryptionKeys
	QueryKeys(ctx context.Context, server matrix.ServerName, devices map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error)
	// ClaimKeys claims one-time keys: user, device, algorithm. spec: ss/claimUserEncryptionKeys
	ClaimKeys(ctx context.Context, server matrix.ServerName, claims Claims) (ClaimedKeys, error)
	// UserDevices fetches a user's whole device list with its stream id. spec: ss/getUserDevices
	UserDevices(ctx context.Context, user matrix.UserID) (*DeviceList, error)
	// Profile asks for a whole profile, or one field of it if field is not empty. spec: ss/queryProfile
	Profile(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error)
	// Answers says whether a server was heard from and has not failed to answer since.
	Answers(server matrix.ServerName) bool
}

// Notifier wakes whoever waits for news. It is called after the commit and must not block.
type Notifier interface {
	WakeUsers(users ...matrix.UserID)
	// WakeRoom wakes the local members of a room (receipts).
	WakeRoom(room matrix.RoomID)
}

// SharedRooms tells who is in a room with whom. Only joined members count.
type SharedRooms interface {
	// Sharing lists the users, local and remote, who share a room with a local user.
	Sharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error)
	// LocalSharing lists the local users who share a room with a remote user.
	LocalSharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error)
	// JoinedUsers lists the members of a room, JoinedServers their servers.
	JoinedUsers(ctx context.Context, room matrix.RoomID) ([]matrix.UserID, error)
	JoinedServers(ctx context.Context, room matrix.RoomID) ([]matrix.ServerName, error)
	// PartialServers lists servers in rooms of a local user whose members are not known yet: they do not follow from Sharing.
	PartialServers(ctx context.Context, user matrix.UserID) ([]matrix.ServerName, error)
	// SharesPartialRoom reports whether a server may have users in such a room, PartialAudience lists the local users in them.
	SharesPartialRoom(server matrix.ServerName) bool
	PartialAudience(ctx context.Context, server matrix.ServerName) ([]matrix.UserID, error)
	// ReturnedUnawares says whether the server of a user who has joined a room was out of it for a while, as far as we saw, and does not know that.
	ReturnedUnawares(ctx context.Context, room matrix.RoomID, user matrix.UserID) (bool, error)
	// NewServer returns, if the server of a user who has joined a room was not in it before and we were, the local users in the room, and when that
	// server says that the join was made.
	NewServer(ctx context.Context, room matrix.RoomID, user matrix.UserID) (local []matrix.UserID, made matrix.Timestamp, err error)
	// SharedSince says whether a local user shares a room with a server, and did before a position.
	SharedSince(ctx context.Context, user matrix.UserID, server matrix.ServerName, pos storage.Position) (bool, error)
	// Parting returns when a remote user left a room last, as other servers say, and since when another is shared with local users, if one is.
	Parting(ctx context.Context, user matrix.UserID) (left, shared matrix.Timestamp, known bool, err error)
}

// Outbox sends EDUs to other servers.
type Outbox interface {
	// QueueEDU stores an EDU for each destination in tx and sends it after the commit.
	QueueEDU(ctx context.Context, tx *storage.Tx, destinations []matrix.ServerName, eduType string, content []byte) error
	// SendVolatile sends an EDU that may be lost (presence). It must not block.
	SendVolatile(destinations []matrix.ServerName, eduType string, content []byte)
}

// Policy decides what may be relayed; the privacy package has the answer.
type Policy interface {
	// ToDevice returns a *matrix.Error if a to-device message of this type may not
	// travel with this content.
	ToDevice(eventType string, content []byte) error
}

// Options is what a Service is made from. All fields without a default noted are required.
type Options struct {
	DB         *storage.DB
	ServerName matrix.ServerName
	Log        zerolog.Logger
	Clock      Clock  // time.Now if nil
	Remote     Remote // nil, like Outbox: there are no other servers
	Notifier   Notifier
	Rooms      SharedRooms
	Outbox     Outbox
	Policy     Policy

	// PushGateways say where pushers may send to; the zero value allows any https URL.
	PushGateways PushGateways
	// Hashing says what a password hash costs; the zero value is for production.
	Hashing HashCost
	// LocalOnly keeps new accounts to this server.
	LocalOnly bool
	// RegistrationTokens are tokens of the configuration: good for any number of accounts, beside those stored.
	RegistrationTokens []string
	// RegistrationSecret allows shared-secret registration; empty turns it off.
	RegistrationSecret string
	// Services says that there are application services, and so accounts that are theirs.
	Services bool
	// Reserved says which user IDs are only for the application service that has them in an exclusive namespace; nil means none.
	Reserved func(user matrix.UserID) bool
	// MakeUser gives whoever could make an account of this server that does not exist the occasion to do so, and waits; nil means there is nobody.
	MakeUser func(ctx context.Context, user matrix.UserID) error
	// Notices is who sends server notices, whose invites everybody gets; "" for nobody.
	Notices matrix.UserID
	// AccessTokenLifetime is the life of access tokens of clients that can refresh; 5 minutes if zero.
	AccessTokenLifetime time.Duration
	// MinPasswordLength is in characters; 0 refuses the empty password only.
	MinPasswordLength int
	// KeepAddresses stores the IP address and user agent a device was last seen with.
	KeepAddresses bool
	// RemoteTimeout bounds a key query or claim at other servers; 10 s if zero.
	RemoteTimeout time.Duration
}

// Service is everything that belongs to users.
type Service struct {
	Accounts           *Accounts
	RegistrationTokens *RegistrationTokens
	Sessions           *Sessions
	UIA                *UIA
	Devices            *Devices
	Keys               *Keys
	CrossSigning       *CrossSigning
	DeviceLists        *DeviceLists
	ToDevice           *ToDevice
	Backups            *Backups
	AccountData        *AccountData
	PushRules          *PushRules
	Pushers            *Pushers
	Filters            *Filters
	Receipts           *Receipts
	Threads            *ThreadSubscriptions
	Profiles           *Profiles
	Directory          *Directory
	Presence           *Presence
	Reports            *Reports

	core *core
}

// maxRemembered is of how many users or devices is remembered what every /sync asks.
const maxRemembered = 10_000

// New makes the service.
func New(o Options) *Service {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.AccessTokenLifetime == 0 {
		o.AccessTokenLifetime = 5 * time.Minute
	}
	if o.Remote == nil {
		o.Remote = offlineRemote{}
	}
	if o.Outbox == nil {
		o.Outbox = offlineOutbox{}
	}
	if o.Reserved == nil {
		o.Reserved = func(matrix.UserID) bool { return false }
	}
	if o.MakeUser == nil {
		o.MakeUser = func(context.Context, matrix.UserID) error { return nil }
	}
	if o.RemoteTimeout == 0 {
		o.RemoteTimeout = 10 * time.Second
	}
	c := &core{Options: o}
	devices := &Devices{core: c, seen: map[deviceKey]storage.Device{}, stored: map[deviceKey]matrix.Timestamp{}}
	hasher := newHasher(o.Hashing)
	accounts := &Accounts{core: c, hasher: hasher, ignored: storage.NewMemo[matrix.UserID, map[matrix.UserID]bool](o.DB, maxRemembered), ofService: recent.NewMap[matrix.UserID, bool](maxOfService)}
	lists := &DeviceLists{core: c, wake: make(chan struct{}, 1), memberships: make(chan membershipChange, 4096), arrivals: make(chan membershipChange, 4096)}
	keys := &Keys{core: c, lists: lists, counts: storage.NewMemo[deviceKey, *KeyCounts](o.DB, maxRemembered), claims: newClaimMemory()}
	return &Service{
		Accounts:           accounts,
		RegistrationTokens: &RegistrationTokens{core: c},
		Sessions:           &Sessions{core: c},
		UIA:                &UIA{core: c, accounts: accounts},
		Devices:            devices,
		Keys:               keys,
		CrossSigning:       &CrossSigning{core: c, keys: keys},
		DeviceLists:        lists,
		ToDevice:           &ToDevice{core: c, oldest: storage.NewMemo[deviceKey, storage.Position](o.DB, maxRemembered)},
		Backups:            &Backups{core: c},
		AccountData:        &AccountData{core: c},
		PushRules:          newPushRules(c),
		Pushers:            newPushers(c),
		Filters:            newFilters(c),
		Receipts:           &Receipts{core: c},
		Threads:            &ThreadSubscriptions{core: c},
		Profiles:           &Profiles{core: c},
		Directory:          &Directory{core: c},
		Presence:           newPresence(c),
		Reports:            &Reports{core: c},
		core:               c,
	}
}

// Run does the background work: fetching stale device lists, storing when devices were seen, removing what has
// expired. It returns when ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.DeviceLists.run(ctx) })
	g.Go(func() error { return s.Devices.run(ctx) })
	g.Go(func() error { return s.core.every(ctx, 10*time.Minute, s.core.expire) })
	g.Go(func() error { return s.core.every(ctx, 30*time.Second, s.Presence.idle) })
	g.Go(func() error { return s.Presence.run(ctx) })
	return g.Wait()
}

// core is what all parts of the service share.
type core struct{ Options }

func (c *core) now() matrix.Timestamp { return matrix.TimestampOf(c.Clock()) }

func (c *core) local(user matrix.UserID) bool { return user.Server() == c.ServerName }

// number is that of a user.
func (c *core) number(ctx context.Context, user matrix.UserID) (storage.NameNID, error) {
	nids, err := c.DB.Intern(ctx, string(user))
	if err != nil {
		return 0, fmt.Errorf("number of a user: %w", err)
	}
	return nids[0], nil
}

// every calls fn at intervals until ctx ends; errors are logged.
func (c *core) every(ctx context.Context, interval time.Duration, fn func(context.Context) error) error {
	wake.Every(ctx, interval, func() {
		if err := fn(ctx); err != nil && ctx.Err() == nil {
			c.Log.Error().Err(err).Msg("users: background work failed")
		}
	})
	return nil
}

// expire removes what is over: tokens, authentication sessions, notes of messages that can no longer be repeated.
func (c *core) expire(ctx context.Context) error {
	now := c.now()
	return c.DB.Write(ctx, func(tx *storage.Tx) error {
		if err := storage.DeleteExpired(ctx, tx, now); err != nil {
			return err
		}
		return storage.ExpireToDeviceNotes(ctx, tx, now.Add(-toDeviceMemory))
	})
}

// audience is who is told about a change of a local user's devices and keys.
type audience struct {
	local   []matrix.UserID // the user included
	servers []matrix.ServerName
}

// audienceOf asks who shares a room with a local user. It is asked before the transaction: a
// server that joins in between fetches the whole list anyway.
func (c *core) audienceOf(ctx context.Context, user matrix.UserID) (audience, error) {
	sharing, err := c.Rooms.Sharing(ctx, user)
	if err != nil {
		return audience{}, fmt.Errorf("users sharing a room: %w", err)
	}
	a := audience{local: []matrix.UserID{user}}
	seen := map[matrix.ServerName]bool{}
	for _, other := range sharing {
		switch server := other.Server(); {
		case other == user:
		case server == c.ServerName:
			a.local = append(a.local, other)
		case !seen[server]:
			seen[server] = true
			a.servers = append(a.servers, server)
		}
	}
	partial, err := c.Rooms.PartialServers(ctx, user)
	if err != nil {
		return audience{}, fmt.Errorf("servers sharing a room: %w", err)
	}
	for _, server := range partial {
		if !seen[server] {
			seen[server] = true
			a.servers = append(a.servers, server)
		}
	}
	return a, nil
}

// wake makes the transaction wake users after its commit.
func (c *core) wake(tx *storage.Tx, users ...matrix.UserID) {
	tx.OnVisible(func() { c.Notifier.WakeUsers(users...) })
}
