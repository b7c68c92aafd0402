package eventauth

// powerLevels checks an m.room.power_levels event.
// spec: rooms/v12#authorisation-rules 10
// spec: rooms/v11#authorisation-rules 9
func (c *check) powerLevels() error {
	proposed, err := c.k.Levels(c.create, c.e)
	if err != nil {
		return err
	}
	next := &proposed.content
	if c.v.PrivilegedCreators {
		for _, creator := range c.levels.creators {
			if _, ok := next.users.get(string(creator)); ok {
				return c.reject(levelsCreators, "users lists a creator of the room, whose level is not for it to say")
			}
		}
	}
	if c.levels.first {
		return nil
	}
	current, own := &c.levels.content, c.levels.User(c.e.Sender())

	for i := range scalarNames {
		// A property that is not stated has its default: adding it changes the
		// level, and removing it too.
		was, is := current.scalars[i], next.scalars[i]
		switch {
		case was == is:
		case was.value > own:
			return c.reject(scalarCurrent, scalarNames[i]+" is above the sender's level")
		case is.value > own:
			return c.reject(scalarNew, scalarNames[i]+" would be above the sender's level")
		}
	}
	if err := c.eventLevels(current.events, next.events, own); err != nil {
		return err
	}
	if c.v.NotificationLevels {
		if err := c.eventLevels(current.notifications, next.notifications, own); err != nil {
			return err
		}
	}
	sender := string(c.e.Sender())
	for change := range changes(current.users, next.users) {
		// A user may give up their own level, but take it from nobody who has the same.
		if change.was != nil && change.was.value >= own && change.was.key != sender {
			return c.reject(userCurrent, "the level of a user with at least the sender's level would change")
		}
		if change.is != nil && change.is.value > own {
			return c.reject(userNew, "a user's level would be above the sender's")
		}
	}
	return nil
}

// eventLevels checks the changes to `events` or `notifications`.
// spec: rooms/v12#authorisation-rules 10.7, 10.8
func (c *check) eventLevels(current, next levelMap, own int64) error {
	for change := range changes(current, next) {
		if change.was != nil && change.was.value > own {
			return c.reject(eventCurrent, "a level above the sender's would change")
		}
		if change.is != nil && change.is.value > own {
			return c.reject(eventNew, "a level would be above the sender's")
		}
	}
	return nil
}

// change is an entry that was changed, added (was is nil) or removed (is is nil).
type change struct {
	was, is *entry
}

// changes yields what differs between two maps, by merging them.
func changes(was, is levelMap) func(func(change) bool) {
	return func(yield func(change) bool) {
		for len(was) > 0 || len(is) > 0 {
			var c change
			switch {
			case len(is) == 0 || len(was) > 0 && was[0].key < is[0].key:
				c.was, was = &was[0], was[1:]
			case len(was) == 0 || is[0].key < was[0].key:
				c.is, is = &is[0], is[1:]
			default:
				c.was, c.is, was, is = &was[0], &is[0], was[1:], is[1:]
				if c.was.value == c.is.value {
					continue
				}
			}
			if !yield(c) {
				return
			}
		}
	}
}
