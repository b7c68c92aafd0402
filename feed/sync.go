package feed

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// Sync answers a /sync with a JSON body, at once if there is news or nothing to wait for, else when there is, or after the
// timeout with an empty one. The body is written room by room: after an error it is not whole.
func (f *Feed) Sync(ctx context.Context, r Request, w io.Writer) error {
	woken, done := f.Hub.Register(r.User)
	defer done()
	timer := time.NewTimer(r.Timeout)
	defer timer.Stop()
	if r.Since.Pos > f.DB.Current() {
		// It is from before a backup was restored, and tells nothing of what the client knows: it begins anew.
		r.Since = Token{}
	}
	// What the client has seen of its to-device messages is done with.
	if !r.initial() && r.Device != "" {
		if err := f.Users.ToDevice.Acknowledge(ctx, r.User, r.Device, r.Since.ToDevice); err != nil {
			return fmt.Errorf("acknowledge to-device messages: %w", err)
		}
	}
	wait := !r.initial() && !r.FullState && r.Timeout > 0
	for {
		told, err := f.tell(ctx, &r, f.DB.Current(), wait && !f.Hub.Stopping(), w)
		if err != nil || told {
			return err
		}
		select {
		case <-woken:
		case <-timer.C:
			wait = false
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
	data    []users.AccountDatum // what the response may show of account data: for an initial sync global data only
	// completed are rooms whose members were not known and are.
	completed map[storage.RoomNID]bool

	stickyUntil storage.Position // how far the response tells of sticky events

	inviteRules *users.InviteRules     // loaded when the first invite is met
	sharing     map[matrix.UserID]bool // loaded by shares
	sharingErr  error
	// partialServers is loaded by seesPresence.
	partialServers []matrix.ServerName
}

// tell writes the response for everything in (Since, until]. If it may wait and there is nothing to tell, it writes nothing
// and reports false. What belongs to rooms comes first, so that no room is held longer than it takes to write it.
func (f *Feed) tell(ctx context.Context, r *Request, until storage.Position, mayWait bool, w io.Writer) (told bool, err error) {
	ignored, err := f.Users.Accounts.Ignored(ctx, f.DB, r.User)
	if err != nil {
		return false, fmt.Errorf("ignored users: %w", err)
	}
	until = max(until, r.Since.Pos)
	s := &syncer{Feed: f, ctx: ctx, r: r, since: r.Since.Pos, until: until, now: matrix.Timestamp(time.Now().UnixMilli()), ignored: ignored, stickyUntil: until}
	if s.data, err = s.accountData(); err != nil {
		return false, err
	}
	res := newResponse(r, w)
	if err := s.rooms(res); err != nil {
		return false, err
	}
	rest := &tail{next: At(until), accountData: s.globalAccountData()}
	rest.next.Sticky = s.stickyUntil
	if rest.presence, err = s.presence(); err != nil {
		return false, err
	}
	if err := s.device(rest); err != nil {
		return false, err
	}
	if mayWait && !res.begun && rest.empty() && s.stickyUntil == until {
		return false, nil
	}
	return true, res.finish(rest)
}

// device fills in what belongs to the requesting device: messages to it, its key counts, and whose devices changed.
func (s *syncer) device(rest *tail) error {
	if s.r.Device == "" {
		return nil
	}
	messages, more, err := s.Users.ToDevice.Pending(s.ctx, s.DB, s.r.User, s.r.Device, s.r.Since.ToDevice, s.until, maxToDevice)
	if err != nil {
		return fmt.Errorf("to-device messages: %w", err)
	}
	for _, m := range messages {
		rest.toDevice = append(rest.toDevice, m.Event)
	}
	if more {
		rest.next.ToDevice = messages[len(messages)-1].Position
	}
	if rest.keys, err = s.Users.Keys.Counts(s.ctx, s.DB, s.r.User, s.r.Device); err != nil {
		return fmt.Errorf("key counts: %w", err)
	}
	if s.r.initial() {
		return nil // the client asks for the keys of everybody it sees
	}
	rest.changed, rest.left, err = s.deviceLists()
	return err
}

func (s *syncer) globalAccountData() []json.RawMessage {
	var out []json.RawMessage
	filter := &s.r.Filter.AccountData
	for _, d := range s.data {
		if d.Room == "" && filter.Accepts(d.Type, string(s.r.User)) {
			out = append(out, accountDataEvent(d))
		}
	}
	return filter.newest(out)
}

// accountData reads what the response may show of account data.
func (s *syncer) accountData() ([]users.AccountDatum, error) {
	var data []users.AccountDatum
	var err error
	if s.r.initial() {
		data, err = s.Users.AccountData.Global(s.ctx, s.DB, s.r.User)
	} else {
		data, err = s.Users.AccountData.Changed(s.ctx, s.DB, s.r.User, s.since, s.until)
	}
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	return data, nil
}

// rooms writes join, leave, invite and knock.
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
		if err := s.room(res, w); err != nil {
			return fmt.Errorf("sync of room %s: %w", w.room, err)
		}
	}
	return nil
}

func (s *syncer) room(res *response, w *roomWork) error {
	switch w.section {
	case "join":
		if w.whole {
			if err := s.wholeRoom(w); err != nil {
				return err
			}
		}
		j, err := s.joined(w)
		if err != nil {
			return err
		}
		if !j.empty() || w.whole || w.notified || s.completed[w.nid] {
			return res.joined(w.section, j)
		}
	case "leave":
		l, err := s.left(w)
		if err != nil {
			return err
		}
		if l == nil {
			return nil
		}
		if s.r.initial() {
			if w.accountData, err = s.Users.AccountData.InRoom(s.ctx, s.DB, s.r.User, w.room); err != nil {
				return fmt.Errorf("room account data: %w", err)
			}
		}
		s.roomAccountData(l, w)
		return res.joined(w.section, l)
	case "invite", "knock":
		if w.section == "invite" {
			shown, err := s.showsInvite(w.membership.Sender)
			if err != nil || !shown {
				return err
			}
		}
		events, err := s.Rooms.InviteState(s.ctx, s.r.User, w.room)
		if err != nil {
			return fmt.Errorf("stripped state: %w", err)
		}
		return res.stripped(w.section, w.room, events)
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
	sticky      []*rooms.Event
	timeline    []*rooms.Event // what is shown of it
}
