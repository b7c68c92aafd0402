// Package push sends notifications to push gateways.
//
// What is to be sent is in the database: feed makes a notification for each event that notifies a user, and each pusher
// has the position of the last one that it was told of. So a pusher with nothing to send is a row and nothing else, and
// whatever is not known to be sent is sent after a restart.
//
// The dispatcher (this file) is told which users have news and finds their pushers. A pusher with something to send
// becomes a delivery (delivery.go), whose steps are one request each and take turns at its gateway (gateways.go).
// A pusher that fails waits in the database until it is due (waiting.go). Counts of unread messages are
// sent when somebody has read something (reads.go). What a gateway is told is in notification.go.
// spec: push-gateway-api#homeserver-behaviour, client-server-api#push-notifications
package push

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"hanok/feed"
	"hanok/internal/recent"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Options are what a Sender works with. All fields are required unless noted.
type Options struct {
	ServerName matrix.ServerName
	DB         *storage.DB
	Rooms      *rooms.Engine
	Users      *users.Service
	Feed       *feed.Feed
	// HTTP makes the requests. It must not follow redirects, nor connect to where the operator does not want it to.
	HTTP    *http.Client
	Version string // of this software, for the User-Agent header
	Details Details
	Observe func(Attempt)    // is told of every notification that is done with; nil for none
	Now     func() time.Time // nil is time.Now
	Log     zerolog.Logger
}

// Attempt is what became of a notification.
type Attempt struct {
	Kind   string // "event" or "counts"
	Result string // "sent", "failed", "rejected", or "dropped": not worth sending any more
	// Request is how long the gateway took, and Age how old the event was when it had answered; 0 where there was none.
	Request, Age time.Duration
}

// Sender sends notifications to gateways.
type Sender struct {
	opts     Options
	composed *recent.Map[*rooms.Event, *composed]

	fresh fresh
	saver saver
	due   chan struct{} // holds a token when pushers begin to wait, or are due before they were
	reads reads

	mu       sync.Mutex
	ctx      context.Context // of Run; nil while it does not run
	requests context.Context // of requests to gateways, which may go on for a moment when the server stops
	steps    sync.WaitGroup
	active   map[storage.PusherKey]*delivery
	full     bool // there were more deliveries than maxActive
	gateways map[string]*gateway
	turn     []*gateway // those that may take a step, in the order in which they do
	running  int        // steps under way
}

// stopGrace is how long a request to a gateway may still take when the server stops. One that is cut off is made again after the start.
const stopGrace = 3 * time.Second

// maxActive bounds the pushers that are in memory because they have something to send.
const maxActive = 50_000

// New makes a sender. Nothing is sent before Run.
func New(o Options) *Sender {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Observe == nil {
		o.Observe = func(Attempt) {}
	}
	return &Sender{
		opts: o, composed: recent.NewMap[*rooms.Event, *composed](maxComposed), due: make(chan struct{}, 1),
		fresh: newFresh(), saver: newSaver(), reads: reads{poke: make(chan struct{}, 1)},
		active: make(map[storage.PusherKey]*delivery), gateways: make(map[string]*gateway),
	}
}

// Run sends until ctx ends, and lets requests that are under way end.
func (s *Sender) Run(ctx context.Context) error {
	// What a gateway has accepted is noted, also when the server stops.
	saving, stopSaving := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSaving()
	requests, stopRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRequests()
	s.mu.Lock()
	s.ctx, s.requests = ctx, requests
	s.mu.Unlock()
	s.fresh.rescan()
	var save errgroup.Group
	save.Go(func() error { return s.save(saving) })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.dispatch(ctx) })
	group.Go(func() error { return s.followReads(ctx) })
	group.Go(func() error { return s.followWaiting(ctx) })
	err := group.Wait()
	s.mu.Lock()
	s.ctx = nil
	s.mu.Unlock()
	grace := time.AfterFunc(stopGrace, stopRequests)
	s.steps.Wait()
	grace.Stop()
	stopSaving()
	if saveErr := save.Wait(); err == nil {
		err = saveErr
	}
	return err
}

// Notified tells of users who have new notifications. It does not block.
func (s *Sender) Notified(users ...matrix.UserID) { s.fresh.add(false, users...) }

// Recounted tells of users who may have fewer unread messages. It does not block.
func (s *Sender) Recounted(users ...storage.NameNID) { s.fresh.addNumbers(users...) }

// RoomUpdated notes who has left a room: what is unread there counts no more. It does not block.
func (s *Sender) RoomUpdated(u *rooms.Update) {
	for _, m := range u.Memberships {
		if m.Local && m.Previous == "join" && m.Current != "join" {
			s.fresh.add(true, m.User)
		}
	}
}

// fresh are users for whom there may be something to send.
type fresh struct {
	news chan struct{} // holds a token when there is something

	mu      sync.Mutex
	users   map[matrix.UserID]bool // true: their counts may have changed
	numbers []storage.NameNID      // whose counts may have changed
	all     bool                   // everybody: too many to remember, or nobody knows
}

// maxFresh bounds the users remembered. Beyond it, the database is asked who has notifications.
const maxFresh = 50_000

func newFresh() fresh {
	return fresh{news: make(chan struct{}, 1), users: make(map[matrix.UserID]bool)}
}

func (f *fresh) add(counts bool, users ...matrix.UserID) {
	f.mu.Lock()
	for _, u := range users {
		if len(f.users) >= maxFresh {
			clear(f.users)
			f.all = true
		}
		f.users[u] = f.users[u] || counts
	}
	f.mu.Unlock()
	wake.Up(f.news)
}

func (f *fresh) addNumbers(users ...storage.NameNID) {
	f.mu.Lock()
	if len(f.numbers) < maxFresh { // who is not told now is told with the next change
		f.numbers = append(f.numbers, users...)
	}
	f.mu.Unlock()
	wake.Up(f.news)
}

func (f *fresh) rescan() {
	f.mu.Lock()
	f.all = true
	f.mu.Unlock()
	wake.Up(f.news)
}

func (f *fresh) take() (users map[matrix.UserID]bool, numbers []storage.NameNID, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	users, numbers, all = f.users, f.numbers, f.all
	f.users, f.numbers, f.all = make(map[matrix.UserID]bool), nil, false
	return users, numbers, all
}

// retryAfter is how long the dispatcher waits when the database failed.
const retryAfter = 5 * time.Second

// dispatch finds the pushers of users who have news.
func (s *Sender) dispatch(ctx context.Context) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.fresh.news:
		case <-retry:
			s.fresh.rescan()
		}
		retry = nil
		if err := s.dispatchOnce(ctx); err != nil && ctx.Err() == nil {
			s.opts.Log.Error().Err(err).Msg("push: find what is to be sent")
			retry = time.After(retryAfter)
		}
	}
}

func (s *Sender) dispatchOnce(ctx context.Context) error {
	fresh, numbers, all := s.fresh.take()
	users, err := s.opts.DB.UserIDs(ctx, numbers...)
	if err != nil {
		return err
	}
	for _, user := range users {
		fresh[user] = true
	}
	for user, counts := range fresh {
		if err := s.look(ctx, user, counts); err != nil {
			return err
		}
	}
	if all {
		return s.lookAtAll(ctx)
	}
	return nil
}

const lookBatch = 500

// lookAtAll finds everybody who has something to be sent.
func (s *Sender) lookAtAll(ctx context.Context) error {
	for after := matrix.UserID(""); ; {
		batch, err := storage.PusherOwnersBehind(ctx, s.opts.DB, after, lookBatch)
		if err != nil {
			return fmt.Errorf("pushers that are behind: %w", err)
		}
		for _, user := range batch {
			if err := s.look(ctx, user, false); err != nil {
				return err
			}
		}
		if len(batch) < lookBatch {
			return nil
		}
		after = batch[len(batch)-1]
	}
}

// look starts the pushers of a user that need not wait.
func (s *Sender) look(ctx context.Context, user matrix.UserID, counts bool) error {
	pushers, err := s.opts.Users.Pushers.Usable(ctx, user)
	if err != nil {
		return fmt.Errorf("pushers of a user: %w", err)
	}
	now := s.now()
	for i := range pushers {
		if pushers[i].RetryAt <= now {
			s.start(pushers[i].Key(), pushers[i].Gateway, counts)
		}
	}
	return nil
}

func (s *Sender) now() matrix.Timestamp { return matrix.TimestampOf(s.opts.Now()) }

// Active is how many pushers have something to send now.
func (s *Sender) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.active)
}

// Waiting is how many pushers wait because they failed.
func (s *Sender) Waiting() int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	n, err := storage.CountWaitingPushers(ctx, s.opts.DB)
	if err != nil {
		s.opts.Log.Error().Err(err).Msg("push: count the pushers that wait")
	}
	return n
}
