package users

import (
	"context"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/storage"
)

// Presence says who is online. It lives in memory only: after a restart everybody is offline until
// they are seen. spec: client-server-api#presence
type Presence struct {
	*core

	mu     sync.Mutex
	states map[matrix.UserID]*PresenceState
	recent storage.Recency[matrix.UserID]
}

// PresenceState is one user's presence.
type PresenceState struct {
	User       matrix.UserID
	State      string // PresenceOnline, PresenceUnavailable or PresenceOffline
	StatusMsg  string
	LastActive time.Time // zero if unknown
	Active     bool      // currently active
	Position   storage.Position

	synced time.Time // last seen on /sync
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
	maxStatusMsg = 1024   // bytes
	maxPresences = 50_000 // users kept; the longest unseen remote ones go
)

func newPresence(c *core) *Presence {
	return &Presence{core: c, states: map[matrix.UserID]*PresenceState{}}
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
		s.State, s.Active, s.synced = state, state == PresenceOnline, now
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
		s.State, s.synced = state, now
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
	p.mu.Lock()
	s := p.states[user]
	if s == nil {
		s = &PresenceState{User: user, State: PresenceOffline}
		p.makeRoom()
		p.states[user] = s
	}
	changed := fn(s)
	now := *s
	p.mu.Unlock()
	if !changed {
		return nil
	}
	if p.local(user) {
		aud, err := p.audienceOf(ctx, user)
		if err != nil {
			return err
		}
		if len(aud.servers) > 0 {
			p.Outbox.SendVolatile(aud.servers, eduPresence, p.edu(now))
		}
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

// makeRoom drops a tenth of the presences if there are too many: those unseen for longest. p.mu is held.
func (p *Presence) makeRoom() {
	if len(p.states) < maxPresences {
		return
	}
	all := make([]*PresenceState, 0, len(p.states))
	for _, s := range p.states {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *PresenceState) int { return a.LastActive.Compare(b.LastActive) })
	for _, s := range all[:maxPresences/10] {
		delete(p.states, s.User)
		p.recent.Forget(s.User)
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
	for _, u := range push.Push {
		if !validRemoteUser(u.UserID, origin) || !validPresence(u.Presence) || len(u.StatusMsg) > maxStatusMsg || !utf8.ValidString(u.StatusMsg) {
			continue
		}
		active := p.Clock().Add(-time.Duration(min(max(u.LastActiveAgo, 0), 1<<40)) * time.Millisecond)
		err := p.change(ctx, u.UserID, func(s *PresenceState) bool {
			was := *s
			s.State, s.StatusMsg, s.LastActive, s.Active = u.Presence, u.StatusMsg, active, u.CurrentlyActive
			return was.State != s.State || was.StatusMsg != s.StatusMsg || was.Active != s.Active
		})
		if err != nil {
			return err
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

// idle marks local users who do nothing as unavailable, and those whose clients do not sync as offline.
func (p *Presence) idle(ctx context.Context) error {
	now := p.Clock()
	var due []matrix.UserID
	p.mu.Lock()
	for user, s := range p.states {
		if p.local(user) && s.State != PresenceOffline && (now.Sub(s.synced) > offlineAfter || s.Active && now.Sub(s.LastActive) > idleAfter) {
			due = append(due, user)
		}
	}
	p.mu.Unlock()
	for _, user := range due {
		err := p.change(ctx, user, func(s *PresenceState) bool {
			switch {
			case now.Sub(s.synced) > offlineAfter:
				s.State, s.Active = PresenceOffline, false
			default:
				s.State, s.Active = PresenceUnavailable, false
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}
