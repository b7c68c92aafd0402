package eventauth

import (
	"cmp"
	"strings"
	"sync"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// Check applies all rules that look at the event and at state; CheckAuthEvents
// has the others. The result is nil, a *Rejection, or a failure of the look-up.
// In v12 the state must give the create event although it is no auth event.
//
// Check reads the create event and the power levels anew each time. Who checks
// many events of one room uses a Checker.
// spec: rooms/*#authorisation-rules
func Check(e *event.Event, state State) error { return (*Checker)(nil).Check(e, state) }

// Checker checks the events of one room and keeps what it read from the create
// event and from power levels events, by the identity of the *event.Event that
// the State returns. The zero Checker is ready, and safe for concurrent use; a
// nil one keeps nothing.
type Checker struct {
	// Budget is how many bytes of power levels events to keep; 0: some that suit a room
	// that is in one state, most of the time.
	Budget int

	mu        sync.Mutex
	create    *event.Event
	federates bool
	levels    map[*event.Event]*PowerLevels // by m.room.power_levels event; nil for none
	kept      int                           // bytes
}

const (
	defaultBudget  = 128_000
	levelsOverhead = 500 // bytes of a power levels event beside its content
)

// Levels is the function Levels with a memory.
func (k *Checker) Levels(create, powerLevels *event.Event) (*PowerLevels, error) {
	if k == nil {
		return Levels(create, powerLevels)
	}
	k.mu.Lock()
	k.room(create)
	p, ok := k.levels[powerLevels]
	k.mu.Unlock()
	if ok {
		return p, nil
	}
	p, err := Levels(create, powerLevels)
	if err != nil {
		return nil, err
	}
	cost := levelsOverhead
	if powerLevels != nil {
		cost += 2 * len(powerLevels.Content()) // as it came, and as it was read
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.room(create)
	if _, ok := k.levels[powerLevels]; ok {
		return p, nil
	}
	if k.kept+cost > cmp.Or(k.Budget, defaultBudget) {
		clear(k.levels)
		k.kept = 0
	}
	if k.levels == nil {
		k.levels = make(map[*event.Event]*PowerLevels)
	}
	k.levels[powerLevels] = p
	k.kept += cost
	return p, nil
}

// isFederated reports whether users of other servers may take part.
func (k *Checker) isFederated(create *event.Event) bool {
	if k == nil {
		return federates(create)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.room(create)
	return k.federates
}

// room forgets what is known of a room with another create event; k.mu is held.
func (k *Checker) room(create *event.Event) {
	if k.create != create {
		k.create, k.federates = create, federates(create)
		clear(k.levels)
		k.kept = 0
	}
}

// check is one run of the rules.
type check struct {
	k      *Checker
	e      *event.Event
	v      *roomversion.Version
	state  State
	create *event.Event
	levels *PowerLevels
}

// Check is the function Check with a memory.
func (k *Checker) Check(e *event.Event, state State) error {
	if e.Type() == typeCreate {
		return checkCreate(e)
	}
	c := check{k: k, e: e, v: e.Version(), state: state}
	var err error
	if c.create, err = state.StateEvent(typeCreate, ""); err != nil {
		return err
	}
	if c.v.RoomIDIsCreateHash {
		if err := checkRoomID(e, c.create); err != nil {
			return err
		}
	} else if c.create == nil {
		return c.reject(authNoCreate, "the room has no create event")
	}
	// spec: rooms/v12#authorisation-rules 4
	if !k.isFederated(c.create) && e.Sender().Server() != c.create.Sender().Server() {
		return c.reject(ruleFederate, "the room does not federate, and the sender is of another server")
	}
	if c.v.AliasesAuth && e.Type() == typeAliases {
		return c.aliases()
	}
	powerLevels, err := state.StateEvent(typePowerLevels, "")
	if err != nil {
		return err
	}
	if c.levels, err = k.Levels(c.create, powerLevels); err != nil {
		return err
	}
	if e.Type() == typeMember {
		return c.member()
	}

	// spec: rooms/v12#authorisation-rules 6
	membership, err := c.membership(string(e.Sender()))
	if err != nil {
		return err
	}
	if membership != "join" {
		return c.reject(ruleJoined, "the sender is not in the room")
	}
	level := c.levels.User(e.Sender())
	// spec: rooms/v12#authorisation-rules 7
	if e.Type() == typeThirdPartyInvite {
		if level < c.levels.Invite() {
			return c.reject(thirdPartyInviteLevel, "the sender's level does not suffice to invite")
		}
		return nil
	}
	// spec: rooms/v12#authorisation-rules 8
	stateKey, isState := e.StateKey()
	if level < c.levels.Event(e.Type(), isState) {
		return c.reject(ruleRequiredLevel, "the sender's level does not suffice to send events of this type")
	}
	// spec: rooms/v12#authorisation-rules 9
	if isState && c.v.OwnedState {
		if err := c.ownedState(stateKey, level); err != nil {
			return err
		}
	} else if isState && strings.HasPrefix(stateKey, "@") && stateKey != string(e.Sender()) {
		return c.reject(ruleUserStateKey, "the state key is the ID of another user")
	}
	switch {
	case e.Type() == typePowerLevels:
		return c.powerLevels()
	case e.Type() == typeRedaction && c.v.RedactionAuth:
		return c.redaction()
	}
	return nil
}

// ownedState lets users have many state events of a type that are theirs, and those above them change these. spec: MSC3757
func (c *check) ownedState(stateKey string, level int64) error {
	malformed := func(reason string) error {
		r := reject(c.v, ruleUserStateKey, reason)
		r.Malformed = true
		return r
	}
	if !strings.HasPrefix(stateKey, "@") {
		if len(stateKey) > event.MaxFieldSize {
			return malformed("the state key is too long for one without a user ID in front")
		}
		return nil
	}
	owner := stateKey
	if colon := strings.IndexByte(stateKey, ':'); colon >= 0 {
		if end := strings.IndexByte(stateKey[colon:], '_'); end >= 0 {
			owner = stateKey[:colon+end]
		}
	}
	if _, err := matrix.ParseUserID(owner); err != nil {
		return malformed("the state key begins with an @ that does not begin a user ID")
	}
	if len(stateKey)-len(owner) > event.MaxFieldSize+1 {
		return malformed("the state key is too long behind its user ID")
	}
	if matrix.UserID(owner) != c.e.Sender() && level <= c.levels.User(matrix.UserID(owner)) {
		return c.reject(ruleUserStateKey, "the state key is of another user, who is not below the sender")
	}
	return nil
}

func (c *check) reject(r rule, reason string) error { return reject(c.v, r, reason) }

// membership is a user's current membership, "" if there is none.
func (c *check) membership(user string) (string, error) {
	e, err := c.state.StateEvent(typeMember, user)
	if err != nil || e == nil {
		return "", err
	}
	return e.Membership(), nil
}

// aliases lets servers name their own aliases, member of the room or not.
// spec: rooms/v5#authorisation-rules 4
func (c *check) aliases() error {
	stateKey, ok := c.e.StateKey()
	if !ok {
		return c.reject(aliasesStateKey, "the event has no state key")
	}
	if matrix.ServerName(stateKey) != c.e.Sender().Server() {
		return c.reject(aliasesDomain, "the state key is not the sender's server")
	}
	return nil
}

// redaction is an authorisation rule in v1 and v2 only; see rooms/v3#handling-redactions for the others.
// spec: rooms/v2#authorisation-rules 11
func (c *check) redaction() error {
	if c.levels.User(c.e.Sender()) >= c.levels.Redact() {
		return nil
	}
	redacts, ok := c.e.Redacts()
	if ok && domainOf(string(redacts)) == domainOf(string(c.e.ID())) {
		return nil
	}
	return c.reject(redactionOtherwise, "the sender's level does not suffice to redact events of other servers")
}
