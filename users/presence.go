package users

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/storage"
)

// Presence says who is online. It lives in memory, and what changed is stored now and then: a restart must neither lose what
// somebody said of themselves, nor leave clients with people who seem to be there for good. spec: client-server-api#presence
type Presence struct {
	*core

	mu     sync.Mutex
	states map[matrix.UserID]*PresenceState
	recent storage.Recency[matrix.UserID]
	dirty  map[matrix.UserID]bool // to be stored
	// strangers is how many of states are of people who share no room with anybody here: others can make them up.
	strangers int
}

// PresenceState is one user's presence.
type PresenceState struct {
	User       matrix.UserID
	State      string // PresenceOnline, PresenceUnavailable or PresenceOffline
	StatusMsg  string
	LastActive time.Time // zero if unknown
	Active     bool      // currently active
	Position   storage.Position

	seen time.Time // a local user's last /sync; when another server last spoke of its user
	told time.Time // when other servers were last told of a local user

	stranger bool // shares no room with anybody here, as far as is known
	// Unplaced: nobody here is known to share a room with the user, who will be in one whose members are not known yet, since we
	// are told of them.
	Unplaced bool
}

// AmongPartial says whether the user may be in one of the rooms whose members are not known yet and that some servers, sorted, are in.
func (s PresenceState) AmongPartial(servers []matrix.ServerName) bool {
	_, found := slices.BinarySearch(servers, s.User.Server())
	return found && s.Unplaced
}

// The states of presence.
const (
	PresenceOnline      = "online"
	PresenceUnavailable = "unavailable"
	PresenceOffline     = "offline"
)

const (
	eduPresence = "m.presence"
	// idleAfter and offlineAfter are when a user who does nothing is idle, and one whose clients do not sync is gone.
	idleAfter    = 5 * time.Minute
	offlineAfter = 90 * time.Second
	// tellAgainAfter is when other servers are told again of somebody whose presence has not changed, and lostAfter when their
	// users are gone of whom they say nothing: servers forget each other's users after half an hour.
	tellAgainAfter = 20 * time.Minute
	lostAfter      = 35 * time.Minute
	maxStatusMsg   = 1024   // bytes
	maxPresences   = 50_000 // users kept; the longest unseen remote ones go
	maxStrangers   = 2000   // of whom share no room with anybody here
)

func newPresence(c *core) *Presence {
	return &Presence{core: c, states: map[matrix.UserID]*PresenceState{}, dirty: map[matrix.UserID]bool{}}
}

// Set sets a local user's presence: M_INVALID_PARAM for an unknown state. A nil statusMsg keeps
// the message. spec: cs/setPresence
func (p *Presence) Set(ctx context.Context, user matrix.UserID, state string, statusMsg *string) error {
	if !validPresence(state) {
		return matrix.InvalidParam("presence must be online, unavailable or offline")
	}
	if statusMsg != nil && len(*statusMsg) > maxStatusMsg {
		return matrix.InvalidParam("status_msg is longer than %d bytes", maxStatusMsg)
	}
	now := p.Clock()
	return p.change(ctx, user, func(s *PresenceState) bool {
		was := *s
		s.State, s.Active, s.seen = state, state == PresenceOnline, now
		if state != PresenceOffline {
			s.LastActive = now
		}
		if statusMsg != nil {
			s.StatusMsg = *statusMsg
		}
		return was.State != s.State || was.StatusMsg != s.StatusMsg || was.Active != s.Active
	})
}

func validPresence(state string) bool {
	return state == PresenceOnline || state == PresenceUnavailable || state == PresenceOffline
}

// Active notes that a user's client is syncing with set_presence=state: "offline" leaves the presence as it is,
// an unknown state counts as "online". spec: cs/sync
func (p *Presence) Active(ctx context.Context, user matrix.UserID, state string) {
	if state == PresenceOffline {
		return
	}
	now := p.Clock()
	err := p.change(ctx, user, func(s *PresenceState) bool {
		was := *s
		s.State, s.seen = state, now
		if state != PresenceUnavailable {
			s.State, s.LastActive, s.Active = PresenceOnline, now, true
		}
		return was.State != s.State || was.Active != s.Active
	})
	if err != nil && ctx.Err() == nil {
		p.Log.Error().Err(err).Msg("users: could not tell of a presence")
	}
}

// Get returns a user's presence; offline if nothing is known.
func (p *Presence) Get(user matrix.UserID) PresenceState {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.states[user]; s != nil {
		return *s
	}
	return PresenceState{User: user, State: PresenceOffline}
}

// change applies fn to a user's presence and, if it reports a change, tells those who share a room.
func (p *Presence) change(ctx context.Context, user matrix.UserID, fn func(*PresenceState) bool) error {
	if !p.note(user, fn) {
		return nil
	}
	if p.local(user) {
		aud, err := p.audienceOf(ctx, user)
		if err != nil {
			return err
		}
		p.tell(user, aud.servers)
		p.publish(user, aud.local)
		return nil
	}
	local, err := p.localSharing(ctx, user)
	if err != nil {
		return err
	}
	p.publish(user, local)
	return nil
}

// note is change without telling anybody; it returns what fn does.
func (p *Presence) note(user matrix.UserID, fn func(*PresenceState) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.states[user]
	if s == nil {
		s = &PresenceState{User: user, State: PresenceOffline}
		p.makeRoom()
		p.states[user] = s
	}
	was := *s
	changed := fn(s)
	if s.stranger && !was.stranger {
		p.strangers++
	} else if was.stranger && !s.stranger {
		p.strangers--
	}
	if p.strangers > maxStrangers {
		p.drop(maxStrangers / 10)
	}
	if !s.stranger && (was.stranger || s.State != was.State || s.StatusMsg != was.StatusMsg) {
		p.dirty[user] = true
	}
	return changed
}

// tell sends a local user's presence to other servers.
func (p *Presence) tell(user matrix.UserID, servers []matrix.ServerName) {
	p.mu.Lock()
	s := p.states[user]
	if s == nil {
		p.mu.Unlock()
		return
	}
	s.told = p.Clock()
	edu := p.edu(*s)
	p.mu.Unlock()
	if len(servers) > 0 {
		p.Outbox.SendVolatile(servers, eduPresence, edu)
	}
}

// publish gives a change its place in the stream and wakes those who may see it.
func (p *Presence) publish(user matrix.UserID, audience []matrix.UserID) {
	p.DB.EphemeralPosition(func(pos storage.Position) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if s := p.states[user]; s != nil {
			s.Position = pos
			p.recent.Touch(user, pos)
		}
	}, func() { p.Notifier.WakeUsers(audience...) })
}

// makeRoom drops a tenth of the presences if there are too many. p.mu is held.
func (p *Presence) makeRoom() {
	if len(p.states) >= maxPresences {
		p.drop(maxPresences / 10)
	}
}

// drop drops some presences: of strangers first, whom other servers can make up, and of this server's users last; among them,
// those unseen for longest. p.mu is held.
func (p *Presence) drop(count int) {
	all := make([]*PresenceState, 0, len(p.states))
	for _, s := range p.states {
		all = append(all, s)
	}
	rank := func(s *PresenceState) int {
		switch {
		case s.stranger:
			return 0
		case !p.local(s.User):
			return 1
		}
		return 2
	}
	slices.SortFunc(all, func(a, b *PresenceState) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.seen.Compare(b.seen)) })
	for _, s := range all[:count] {
		delete(p.states, s.User)
		p.recent.Forget(s.User)
		if s.stranger {
			p.strangers--
		} else {
			p.dirty[s.User] = true
		}
	}
}

// presencePush is the content of an m.presence EDU. spec: server-server-api#presence
type presencePush struct {
	Push []presenceUpdate `json:"push"`
}

type presenceUpdate struct {
	UserID          matrix.UserID `json:"user_id"`
	Presence        string        `json:"presence"`
	StatusMsg       string        `json:"status_msg,omitempty"`
	LastActiveAgo   int64         `json:"last_active_ago"`
	CurrentlyActive bool          `json:"currently_active,omitzero"`
}

func (p *Presence) edu(s PresenceState) []byte {
	u := presenceUpdate{UserID: s.User, Presence: s.State, StatusMsg: s.StatusMsg, CurrentlyActive: s.Active}
	if !s.LastActive.IsZero() {
		u.LastActiveAgo = max(0, p.Clock().Sub(s.LastActive).Milliseconds())
	}
	return encode(presencePush{[]presenceUpdate{u}})
}

// Receive takes an m.presence EDU; what is malformed or about users of other servers is dropped. spec: server-server-api#presence
func (p *Presence) Receive(ctx context.Context, origin matrix.ServerName, content []byte) error {
	var push presencePush
	if decode(content, &push, "presence") != nil || len(push.Push) > 1000 {
		return nil
	}
	// Of what is said of somebody more than once only the last counts.
	last := make(map[matrix.UserID]int, len(push.Push))
	for i, u := range push.Push {
		last[u.UserID] = i
	}
	for i, u := range push.Push {
		if last[u.UserID] != i {
			continue
		}
		if !validRemoteUser(u.UserID, origin) || !validPresence(u.Presence) || len(u.StatusMsg) > maxStatusMsg || !utf8.ValidString(u.StatusMsg) {
			continue
		}
		active := p.Clock().Add(-time.Duration(min(max(u.LastActiveAgo, 0), 1<<40)) * time.Millisecond)
		local, err := p.localSharing(ctx, u.UserID)
		if err != nil {
			return err
		}
		unplaced := false
		if len(local) == 0 {
			if local, err = p.Rooms.PartialAudience(ctx, origin); err != nil {
				return err
			}
			unplaced = len(local) > 0
		}
		changed := p.note(u.UserID, func(s *PresenceState) bool {
			s.stranger, s.Unplaced = len(local) == 0, unplaced
			was := *s
			s.State, s.StatusMsg, s.LastActive, s.Active = u.Presence, u.StatusMsg, active, u.CurrentlyActive
			s.seen = p.Clock()
			return was.State != s.State || was.StatusMsg != s.StatusMsg || was.Active != s.Active
		})
		if changed {
			p.publish(u.UserID, local)
		}
	}
	return nil
}

// Changed returns the presences that changed after a position, the newest first.
func (p *Presence) Changed(from storage.Position) []PresenceState {
	p.mu.Lock()
	defer p.mu.Unlock()
	var changed []PresenceState
	for _, user := range p.recent.Since(from) {
		changed = append(changed, *p.states[user])
	}
	return changed
}

// Forget ends the presence of a local user who closed the account.
func (p *Presence) Forget(ctx context.Context, user matrix.UserID) error {
	return p.change(ctx, user, func(s *PresenceState) bool {
		changed := s.State != PresenceOffline || s.StatusMsg != ""
		s.State, s.StatusMsg, s.Active = PresenceOffline, "", false
		return changed
	})
}

// idle marks local users who do nothing as unavailable, those whose clients do not sync as offline, and so users whose servers have
// fallen silent. Other servers are told again of those who are still there.
func (p *Presence) idle(ctx context.Context) error {
	now := p.Clock()
	var due, again []matrix.UserID
	p.mu.Lock()
	for user, s := range p.states {
		local := p.local(user)
		switch {
		case s.State == PresenceOffline:
		case local && (now.Sub(s.seen) > offlineAfter || s.Active && now.Sub(s.LastActive) > idleAfter), !local && now.Sub(s.seen) > lostAfter:
			due = append(due, user)
		case local && now.Sub(s.told) > tellAgainAfter:
			again = append(again, user)
		}
	}
	p.mu.Unlock()
	for _, user := range due {
		err := p.change(ctx, user, func(s *PresenceState) bool {
			s.State, s.Active = PresenceUnavailable, false
			if !p.local(user) || now.Sub(s.seen) > offlineAfter {
				s.State = PresenceOffline
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	for _, user := range again {
		aud, err := p.audienceOf(ctx, user)
		if err != nil {
			return err
		}
		p.tell(user, aud.servers)
	}
	return nil
}

// run brings back what was stored, and stores what changes, until ctx ends.
func (p *Presence) run(ctx context.Context) error {
	if err := p.load(ctx); err != nil {
		p.Log.Error().Err(err).Msg("users: could not read the presences from before the restart")
	}
	err := p.every(ctx, time.Minute, p.store)
	if stored := p.store(context.WithoutCancel(ctx)); stored != nil {
		p.Log.Error().Err(stored).Msg("users: could not store the presences")
	}
	return err
}

// load brings back what was stored. It counts as new to clients: they may have missed what happened before the restart.
func (p *Presence) load(ctx context.Context) error {
	list, err := storage.ListPresences(ctx, p.DB, maxPresences)
	if err != nil || len(list) == 0 {
		return err
	}
	now := p.Clock()
	var loaded []matrix.UserID
	p.mu.Lock()
	for _, row := range list {
		s := p.states[row.UserID]
		if s == nil {
			p.states[row.UserID] = &PresenceState{User: row.UserID, State: row.State, StatusMsg: row.StatusMsg, seen: now, told: now}
			loaded = append(loaded, row.UserID)
		} else if s.StatusMsg == "" {
			s.StatusMsg = row.StatusMsg
		}
	}
	p.mu.Unlock()
	p.DB.EphemeralPosition(func(pos storage.Position) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, user := range loaded {
			if s := p.states[user]; s != nil && s.Position == 0 {
				s.Position = pos
				p.recent.Touch(user, pos)
			}
		}
	}, func() {})
	return nil
}

// presenceBatch is how many presences are stored in one transaction.
const presenceBatch = 1000

// store writes what changed since it was last called.
func (p *Presence) store(ctx context.Context) error {
	for {
		var put, gone []storage.Presence
		p.mu.Lock()
		for user := range p.dirty {
			row := storage.Presence{UserID: user, State: PresenceOffline}
			if s := p.states[user]; s != nil {
				row.State, row.StatusMsg = s.State, s.StatusMsg
			}
			if row.State == PresenceOffline && row.StatusMsg == "" {
				gone = append(gone, row)
			} else {
				put = append(put, row)
			}
			delete(p.dirty, user)
			if len(put)+len(gone) == presenceBatch {
				break
			}
		}
		p.mu.Unlock()
		if len(put)+len(gone) == 0 {
			return nil
		}
		err := p.DB.Write(ctx, func(tx *storage.Tx) error {
			if err := storage.PutPresences(ctx, tx, put); err != nil {
				return err
			}
			return storage.DeletePresences(ctx, tx, gone)
		})
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, row := range slices.Concat(put, gone) {
				p.dirty[row.UserID] = true
			}
			return err
		}
	}
}
