package feed

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Request is one /sync. spec: cs/sync
type Request struct {
	User       matrix.UserID
	Device     matrix.DeviceID
	Since      Token // zero: an initial sync
	Filter     *Filter
	FullState  bool
	StateAfter bool // state at the end of the timeline, in state_after
	// UnstableStateAfter names that member as MSC4222 did before it was merged.
	UnstableStateAfter bool
	Timeout            time.Duration
}

func (r *Request) initial() bool { return r.Since == Token{} }

const (
	defaultTimeline = 10
	maxTimeline     = 100
	maxToDevice     = 100
)

// Sync answers a /sync with a JSON body, at once if there is news or nothing to wait for,
// else when there is, or after the timeout with an empty one.
func (f *Feed) Sync(ctx context.Context, r Request) ([]byte, error) {
	woken, done := f.Hub.Register(r.User)
	defer done()
	timer := time.NewTimer(r.Timeout)
	defer timer.Stop()
	// What the client has seen of its to-device messages is done with.
	if !r.initial() && r.Device != "" {
		if err := f.Users.ToDevice.Acknowledge(ctx, r.User, r.Device, r.Since.ToDevice); err != nil {
			return nil, fmt.Errorf("acknowledge to-device messages: %w", err)
		}
	}
	wait := !r.initial() && !r.FullState && r.Timeout > 0
	for {
		res, err := f.build(ctx, &r, f.DB.Current())
		if err != nil {
			return nil, err
		}
		if !wait || !res.empty() || f.Hub.Stopping() {
			return res.encode(), nil
		}
		select {
		case <-woken:
		case <-timer.C:
			wait = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// response is a /sync response before it is written.
type response struct {
	request     *Request
	next        Token
	join        []joinedRoom
	invite      []strippedRoom
	knock       []strippedRoom
	leave       []joinedRoom
	presence    []json.RawMessage
	accountData []json.RawMessage
	toDevice    []json.RawMessage
	changed     []matrix.UserID // device_lists
	left        []matrix.UserID
	keys        *users.KeyCounts
}

// empty reports that the client would learn nothing; key counts alone do not count.
func (s *response) empty() bool {
	return len(s.join) == 0 && len(s.invite) == 0 && len(s.knock) == 0 && len(s.leave) == 0 && len(s.presence) == 0 &&
		len(s.accountData) == 0 && len(s.toDevice) == 0 && len(s.changed) == 0 && len(s.left) == 0
}

type strippedRoom struct {
	room   matrix.RoomID
	events [][]byte
}

// syncer holds what one build of a response needs in several places.
type syncer struct {
	*Feed
	ctx     context.Context
	r       *Request
	since   storage.Position
	until   storage.Position
	now     matrix.Timestamp
	ignored map[matrix.UserID]bool
	lists   deviceListChanges
	data    []users.AccountDatum // what the response may show of account data, of all rooms

	inviteRules *users.InviteRules     // loaded when the first invite is met
	sharing     map[matrix.UserID]bool // loaded by shares
	sharingErr  error
}

// build makes the response for everything in (Since, until].
func (f *Feed) build(ctx context.Context, r *Request, until storage.Position) (*response, error) {
	ignored, err := f.Users.Accounts.Ignored(ctx, f.DB, r.User)
	if err != nil {
		return nil, fmt.Errorf("ignored users: %w", err)
	}
	until = max(until, r.Since.Pos)
	s := &syncer{Feed: f, ctx: ctx, r: r, since: r.Since.Pos, until: until, now: matrix.Timestamp(time.Now().UnixMilli()), ignored: ignored}
	res := &response{request: r, next: At(until)}
	if s.data, err = s.accountData(); err != nil {
		return nil, err
	}
	if err := s.rooms(res); err != nil {
		return nil, err
	}
	s.globalAccountData(res)
	if err := s.presence(res); err != nil {
		return nil, err
	}
	if err := s.device(res); err != nil {
		return nil, err
	}
	return res, nil
}

// device fills in what belongs to the requesting device: messages to it, its key counts, and whose devices changed.
func (s *syncer) device(res *response) error {
	if s.r.Device == "" {
		return nil
	}
	messages, more, err := s.Users.ToDevice.Pending(s.ctx, s.DB, s.r.User, s.r.Device, s.r.Since.ToDevice, s.until, maxToDevice)
	if err != nil {
		return fmt.Errorf("to-device messages: %w", err)
	}
	for _, m := range messages {
		res.toDevice = append(res.toDevice, m.Event)
	}
	if more {
		res.next.ToDevice = messages[len(messages)-1].Position
	}
	if res.keys, err = s.Users.Keys.Counts(s.ctx, s.DB, s.r.User, s.r.Device); err != nil {
		return fmt.Errorf("key counts: %w", err)
	}
	if s.r.initial() {
		return nil // the client asks for the keys of everybody it sees
	}
	res.changed, res.left, err = s.deviceLists()
	return err
}

func (s *syncer) globalAccountData(res *response) {
	for _, d := range s.data {
		if d.Room == "" && s.r.Filter.AccountData.Accepts(d.Type, "") {
			res.accountData = append(res.accountData, accountDataEvent(d))
		}
	}
}

// accountData reads the account data that the response may show, of all rooms.
func (s *syncer) accountData() ([]users.AccountDatum, error) {
	var data []users.AccountDatum
	var err error
	if s.r.initial() {
		data, err = s.Users.AccountData.All(s.ctx, s.DB, s.r.User)
	} else {
		data, err = s.Users.AccountData.Changed(s.ctx, s.DB, s.r.User, s.since, s.until)
	}
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	return data, nil
}

// rooms fills in join, invite, knock and leave.
func (s *syncer) rooms(res *response) error {
	work, err := s.roomWork()
	if err != nil {
		return err
	}
	for _, w := range work {
		if !s.r.initial() && (w.events || w.section == "leave") {
			if err := s.roomMembers(w.membership); err != nil {
				return err
			}
		}
		if !s.r.Filter.Room.acceptsRoom(w.room) {
			continue
		}
		switch w.section {
		case "join":
			j, err := s.joined(w)
			if err != nil {
				return fmt.Errorf("sync of room %s: %w", w.room, err)
			}
			if !j.empty() || w.whole || w.notified {
				res.join = append(res.join, *j)
			}
		case "leave":
			l, err := s.left(w)
			if err != nil {
				return fmt.Errorf("sync of left room %s: %w", w.room, err)
			}
			if l != nil {
				res.leave = append(res.leave, *l)
			}
		case "invite", "knock":
			if w.section == "invite" {
				shown, err := s.showsInvite(w.membership.Sender)
				if err != nil {
					return err
				}
				if !shown {
					continue
				}
			}
			events, err := s.Rooms.InviteState(s.ctx, s.r.User, w.room)
			if err != nil {
				return fmt.Errorf("stripped state of room %s: %w", w.room, err)
			}
			if w.section == "invite" {
				res.invite = append(res.invite, strippedRoom{w.room, events})
			} else {
				res.knock = append(res.knock, strippedRoom{w.room, events})
			}
		}
	}
	return nil
}

// showsInvite reports whether the user sees invites by somebody. spec: client-server-api#invite-permission
func (s *syncer) showsInvite(inviter matrix.UserID) (bool, error) {
	if s.ignored[inviter] {
		return false, nil
	}
	if s.inviteRules == nil {
		rules, err := s.Users.Accounts.InviteRules(s.ctx, s.DB, s.r.User)
		if err != nil {
			return false, err
		}
		s.inviteRules = rules
	}
	return s.inviteRules.For(inviter) == users.InviteAllowed, nil
}

// roomWork is what must be told of one room.
type roomWork struct {
	room       matrix.RoomID
	nid        storage.RoomNID
	section    string // join, invite, knock or leave
	whole      bool   // the room is new to the client: all of its state
	membership rooms.Membership
	events     bool // there are events in (since, until]
	// what changed besides events
	accountData []users.AccountDatum
	receipts    []users.Receipt
	typing      bool
	notified    bool // the counts of unread notifications changed
}
