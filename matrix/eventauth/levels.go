package eventauth

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// Infinite is the level of a v12 room creator. No event can state it.
const Infinite = int64(1<<63 - 1)

// PowerLevels are a room's power levels, defaults filled in. They are
// immutable and may be shared between goroutines.
type PowerLevels struct {
	creators []matrix.UserID // those who have the level `creator`, whatever content says
	creator  int64
	first    bool // there is no m.room.power_levels event yet
	content  levels
}

// Levels reads power levels. create must be given; powerLevels may be nil: then
// creators have level 100 (before v12) and everybody else 0.
// The error is a *Rejection: the event in powerLevels is malformed.
func Levels(create, powerLevels *event.Event) (*PowerLevels, error) {
	v := create.Version()
	p := &PowerLevels{first: powerLevels == nil, content: defaultLevels}
	switch {
	case v.PrivilegedCreators:
		p.creators, p.creator = Creators(create), Infinite
	case p.first:
		p.creators, p.creator = Creators(create), 100
	}
	if powerLevels != nil {
		var err error
		if p.content, err = parseLevels(v, powerLevels.Content()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// User is the level of a user.
func (p *PowerLevels) User(u matrix.UserID) int64 {
	if slices.Contains(p.creators, u) {
		return p.creator
	}
	if level, ok := p.content.users.get(string(u)); ok {
		return level
	}
	return p.content.scalars[usersDefault].value
}

// Event is the level required to send events of a type.
// spec: server-server-api#definitions
func (p *PowerLevels) Event(eventType string, isState bool) int64 {
	if level, ok := p.content.events.get(eventType); ok {
		return level
	}
	if isState {
		return p.content.scalars[stateDefault].value
	}
	return p.content.scalars[eventsDefault].value
}

// Invite, Kick, Ban and Redact are the levels required for these actions.
func (p *PowerLevels) Invite() int64 { return p.content.scalars[invite].value }
func (p *PowerLevels) Kick() int64   { return p.content.scalars[kick].value }
func (p *PowerLevels) Ban() int64    { return p.content.scalars[ban].value }
func (p *PowerLevels) Redact() int64 { return p.content.scalars[redact].value }

// EventsDefault is the level required for message-like events of types that are not listed.
func (p *PowerLevels) EventsDefault() int64 { return p.content.scalars[eventsDefault].value }

// UsersDefault is the level of users who are not listed.
func (p *PowerLevels) UsersDefault() int64 { return p.content.scalars[usersDefault].value }

// Notification is the level required to trigger a notification, as in "room".
// spec: client-server-api#mroompower_levels
func (p *PowerLevels) Notification(key string) int64 {
	if level, ok := p.content.notifications.get(key); ok {
		return level
	}
	return 50
}

// Users calls fn for every listed user, in order, until it returns false.
// Creators of v12 are not listed.
func (p *PowerLevels) Users(fn func(u matrix.UserID, level int64) bool) {
	for _, l := range p.content.users {
		if !fn(matrix.UserID(l.key), l.value) {
			return
		}
	}
}

// The integer-valued properties, in the order of the specification.
const (
	usersDefault = iota
	eventsDefault
	stateDefault
	ban
	redact
	kick
	invite
	scalarCount
)

var scalarNames = [scalarCount]string{"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}

// levels is the content of an m.room.power_levels event.
type levels struct {
	scalars                      [scalarCount]scalar
	events, notifications, users levelMap
}

// scalar is an integer-valued property. Absent ones hold their default.
type scalar struct {
	value  int64
	stated bool
}

// spec: client-server-api#mroompower_levels
var defaultLevels = levels{scalars: [scalarCount]scalar{
	stateDefault: {value: 50}, ban: {value: 50}, redact: {value: 50}, kick: {value: 50},
}}

// levelMap is sorted by key, as canonical JSON is.
type levelMap []entry

type entry struct {
	key   string
	value int64
}

func compareEntry(e entry, key string) int { return strings.Compare(e.key, key) }

func (m levelMap) get(key string) (int64, bool) {
	if i, ok := slices.BinarySearchFunc(m, key, compareEntry); ok {
		return m[i].value, true
	}
	return 0, false
}

// parseLevels reads the content of an m.room.power_levels event. The error is a *Rejection.
// spec: rooms/v12#authorisation-rules 10.1, 10.2, 10.3
// spec: rooms/v9#authorisation-rules 9.1
func parseLevels(v *roomversion.Version, content []byte) (levels, error) {
	l := defaultLevels
	scalarRule, mapRule := levelsScalars, levelsMaps
	if !v.IntegerPowerLevels {
		// Earlier versions have no rule of their own for these, but no level can be
		// read from anything else.
		scalarRule, mapRule = levelsUsers, levelsUsers
	}
	for name, raw := range canonicaljson.Members(content) {
		switch name {
		case "users":
			m, ok := parseLevelMap(v, raw)
			if !ok {
				return l, reject(v, levelsUsers, "users must be an object of user IDs and integers")
			}
			for _, e := range m {
				if !namesUser(e.key) {
					return l, reject(v, levelsUsers, "a key in users is not a user ID")
				}
			}
			l.users = m
		case "events":
			m, ok := parseLevelMap(v, raw)
			if !ok {
				return l, reject(v, mapRule, "events must be an object of integers")
			}
			l.events = m
		case "notifications":
			m, ok := parseLevelMap(v, raw)
			// Before v6 no rule looks at them.
			if !ok && v.NotificationLevels {
				return l, reject(v, mapRule, "notifications must be an object of integers")
			}
			if ok {
				l.notifications = m
			}
		default:
			i := slices.Index(scalarNames[:], name)
			if i < 0 {
				continue
			}
			value, ok := parseLevel(v, raw)
			if !ok {
				return l, reject(v, scalarRule, name+" must be an integer")
			}
			l.scalars[i] = scalar{value, true}
		}
	}
	return l, nil
}

// namesUser is all that is asked of the keys of users: rooms hold power levels
// for IDs whose domain no server could have, and an event with such a key must
// not be accepted by some servers and rejected by others.
func namesUser(s string) bool {
	return strings.HasPrefix(s, "@") && strings.Contains(s, ":")
}

func parseLevelMap(v *roomversion.Version, object []byte) (levelMap, bool) {
	if !canonicaljson.IsObject(object) {
		return nil, false
	}
	n := 0
	for range canonicaljson.Members(object) {
		n++
	}
	m := make(levelMap, 0, n)
	for key, raw := range canonicaljson.Members(object) {
		value, ok := parseLevel(v, raw)
		if !ok {
			return nil, false
		}
		m = append(m, entry{key, value})
	}
	return m, true
}

func parseLevel(v *roomversion.Version, raw []byte) (int64, bool) {
	if v.IntegerPowerLevels {
		return canonicaljson.Int(raw)
	}
	return parseLaxLevel(raw)
}

// maxLevel bounds the levels of room versions that put no bound on them;
// beyond it, levels are equal. It keeps Infinite out of reach.
const maxLevel = 1 << 62

// parseLaxLevel reads a level of room versions 1 to 9: an integer, a float
// (cut off at the decimal point), or a string of an integer.
// spec: rooms/v9#mroompower_levels-events-accept-values-as-strings
// spec: rooms/v9#mroompower_levels-events-accept-values-as-floats
func parseLaxLevel(raw []byte) (int64, bool) {
	if len(raw) == 0 {
		return 0, false
	}
	if s, ok := canonicaljson.String(raw); ok {
		digits := strings.TrimFunc(s, unicode.IsSpace)
		// ParseInt takes one sign and any number of leading zeroes, and nothing else.
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil && !isRange(err) {
			return 0, false
		}
		return clamp(n), true
	}
	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, false
	}
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil || isRange(err) {
		return clamp(n), true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return 0, false
	}
	return int64(math.Trunc(max(-maxLevel, min(f, maxLevel)))), true
}

// isRange reports that the number was too large: ParseInt then gives the nearest it can.
func isRange(err error) bool {
	e, ok := err.(*strconv.NumError)
	return ok && e.Err == strconv.ErrRange
}

func clamp(n int64) int64 { return max(-maxLevel, min(n, maxLevel)) }
