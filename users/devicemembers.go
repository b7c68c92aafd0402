package users

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// What joins and leaves mean for device lists: whose are followed, and which servers were not told for a while.

// Untrack forgets the cached lists of remote users who share no room with us any more:
// their servers send us no updates from then on.
func (d *DeviceLists) Untrack(ctx context.Context, users ...matrix.UserID) error {
	err := d.DB.Write(ctx, func(tx *storage.Tx) error {
		for _, user := range users {
			if d.local(user) {
				continue
			}
			if err := storage.ForgetRemoteDeviceList(ctx, tx, user); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("untrack device lists: %w", err)
	}
	return nil
}

// membershipChange is a user joining or ceasing to be joined to a room, or a server that is in it again.
type membershipChange struct {
	user   matrix.UserID
	room   matrix.RoomID
	joined bool
}

// MembershipChanged is to be called after a commit in which a user, local or remote, joined a room or ceased to
// be joined. It does not block: the work is done in the background.
func (d *DeviceLists) MembershipChanged(user matrix.UserID, room matrix.RoomID, joined bool) {
	to := d.memberships
	if joined && !d.local(user) {
		to = d.arrivals // there may be thousands
	}
	select {
	case to <- membershipChange{user: user, room: room, joined: joined}:
	default:
		// Too many at once. A list kept too long is found out when it is asked for, at the next start, or by the
		// gap in the user's next update; a join of a local user is announced at the next start; a server that was
		// not told asks when it needs the devices.
	}
}

// followMemberships does what MembershipChanged was told.
func (d *DeviceLists) followMemberships(ctx context.Context) error {
	var a announcements
	if err := d.unannounced(ctx, &a); err != nil && ctx.Err() == nil {
		d.Log.Error().Err(err).Msg("users: could not read which joins are to be announced")
	}
	due := time.NewTimer(joinsTogether)
	defer due.Stop()
	for {
		if len(a.waiting) > 0 {
			due.Reset(time.Until(a.waiting[0].due))
		}
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-due.C:
			if len(a.waiting) > 0 {
				err = d.announce(ctx, a.next())
			}
		case m := <-d.arrivals:
			err = d.tellReturned(ctx, m.user, m.room)
		case m := <-d.memberships:
			switch {
			case m.joined:
				err = d.announceSoon(ctx, &a, m.user, m.room)
			case d.local(m.user):
				err = d.untrackRoom(ctx, m.room)
			default:
				err = d.userParted(ctx, m.user, false)
			}
		}
		if err != nil && ctx.Err() == nil {
			d.Log.Error().Err(err).Msg("users: could not follow a membership")
		}
	}
}

// notePossible records a change of a remote user who shares no room that we know of, but may be in one whose members are not known
// yet: RoomCompleted tells of it then.
func (d *DeviceLists) notePossible(ctx context.Context, user matrix.UserID) error {
	if !d.Rooms.SharesPartialRoom(user.Server()) {
		return nil
	}
	return d.DB.Write(ctx, func(tx *storage.Tx) error {
		pos, err := tx.NextPosition()
		if err != nil {
			return err
		}
		return storage.SetDeviceListChange(ctx, tx, user, pos, d.now(), 0)
	})
}

// RoomCompletion says what is known when all members of a room are that was joined without them.
type RoomCompletion struct {
	Since   storage.Position    // of our join
	Local   []matrix.UserID     // joined users of this server
	Learned []matrix.UserID     // joined users of other servers who were not known to be
	Servers []matrix.ServerName // servers that were in the room since then and were not known to be
	Misled  []matrix.UserID     // of whom it was believed for a while that they were in the room, or that they were not
}

// RoomCompleted makes good for what was missed while the members were unknown: local users are told of device lists that changed
// since, and servers of those of local users.
func (d *DeviceLists) RoomCompleted(ctx context.Context, tx *storage.Tx, c RoomCompletion) error {
	if err := d.doubt(ctx, tx, c.Misled, c.Local); err != nil {
		return err
	}
	now, err := tx.NextPosition()
	if err != nil {
		return err
	}
	changed, err := storage.DeviceListChanges(ctx, tx, c.Since, now)
	if err != nil || len(changed) == 0 {
		return err
	}
	has := make(map[matrix.UserID]bool, len(changed))
	for _, user := range changed {
		has[user] = true
	}
	for _, user := range c.Learned {
		if has[user] {
			if err := d.noteRemote(ctx, tx, user, c.Local); err != nil {
				return err
			}
		}
	}
	if len(c.Servers) == 0 {
		return nil
	}
	for _, user := range c.Local {
		if has[user] {
			if err := d.announceTo(ctx, tx, user, c.Servers); err != nil {
				return err
			}
		}
	}
	return nil
}

// doubt has the lists of remote users fetched anew: while it was not so that we shared a room with them, their server did not tell us of changes.
func (d *DeviceLists) doubt(ctx context.Context, tx *storage.Tx, users, local []matrix.UserID) error {
	lists, err := storage.ListRemoteDeviceLists(ctx, tx, users)
	if err != nil {
		return fmt.Errorf("doubt device lists: %w", err)
	}
	for _, l := range lists {
		l.Stale, l.RetryAt = true, d.now()
		if err := storage.PutRemoteDeviceList(ctx, tx, l); err != nil {
			return fmt.Errorf("doubt device lists: %w", err)
		}
		if err := d.noteRemote(ctx, tx, l.UserID, local); err != nil {
			return err
		}
	}
	if len(lists) > 0 {
		tx.OnVisible(d.resync)
	}
	return nil
}

// joinsTogether is how long a join waits to be announced. Many come in series: of the rooms of a space, of an account that moves. And who
// has just logged in has keys by then; what tells of them shows servers that are new that they have missed something.
const joinsTogether = 2 * time.Second

// announcement is of a local user who has joined a room.
type announcement struct {
	user   matrix.UserID
	stream int64            // of the user's last update then
	joined storage.Position // the last join, 0 if it was announced already
	due    time.Time
}

// announcements are those that wait, one for each user, the oldest first.
type announcements struct {
	waiting []*announcement
	of      map[matrix.UserID]*announcement
}

func (a *announcements) add(user matrix.UserID, stream int64, joined storage.Position) {
	if has := a.of[user]; has != nil {
		has.stream, has.joined = stream, joined
		return
	}
	if a.of == nil {
		a.of = map[matrix.UserID]*announcement{}
	}
	a.of[user] = &announcement{user: user, stream: stream, joined: joined, due: time.Now().Add(joinsTogether)}
	a.waiting = append(a.waiting, a.of[user])
}

func (a *announcements) next() *announcement {
	first := a.waiting[0]
	a.waiting = a.waiting[1:]
	delete(a.of, first.user)
	return first
}

// unannounced lets the announcements wait that a server that was killed has not sent.
func (d *DeviceLists) unannounced(ctx context.Context, a *announcements) error {
	for after := matrix.UserID(""); ; {
		joins, err := storage.ListUnannouncedJoins(ctx, d.DB, after, 500)
		if err != nil || len(joins) == 0 {
			return err
		}
		for _, j := range joins {
			stream, err := storage.DeviceListStreamID(ctx, d.DB, j.UserID)
			if err != nil {
				return err
			}
			a.add(j.UserID, stream, j.Pos)
		}
		after = joins[len(joins)-1].UserID
	}
}

// announceSoon lets the announcement of a local user wait who has joined a room, if other servers are in that.
func (d *DeviceLists) announceSoon(ctx context.Context, a *announcements, user matrix.UserID, room matrix.RoomID) error {
	servers, err := d.Rooms.JoinedServers(ctx, room)
	if err != nil {
		return fmt.Errorf("announce device list: %w", err)
	}
	joined, err := storage.UnannouncedJoinOf(ctx, d.DB, user)
	if err != nil {
		return fmt.Errorf("announce device list: %w", err)
	}
	if !slices.ContainsFunc(servers, func(s matrix.ServerName) bool { return s != d.ServerName }) {
		if joined == 0 || a.of[user] != nil {
			return nil // or it goes with what waits
		}
		return d.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteUnannouncedJoin(ctx, tx, user, joined) })
	}
	stream, err := storage.DeviceListStreamID(ctx, d.DB, user)
	if err == nil {
		a.add(user, stream, joined)
	}
	return err
}

// announce sends an update of one device of a local user who has joined rooms with other servers in them, if none was sent since. Servers that
// follow the user's list apply it; the others see that they have missed something, and fetch the list.
func (d *DeviceLists) announce(ctx context.Context, a *announcement) error {
	partial, err := d.Rooms.PartialServers(ctx, a.user)
	if err != nil {
		return fmt.Errorf("announce device list: %w", err)
	}
	return d.DB.Write(ctx, func(tx *storage.Tx) error {
		if err := storage.DeleteUnannouncedJoin(ctx, tx, a.user, a.joined); err != nil {
			return err
		}
		if now, err := storage.DeviceListStreamID(ctx, tx, a.user); err != nil || now != a.stream {
			return err
		}
		if len(partial) > 0 {
			// Who is in the room is hearsay: servers are told if there is something in the list that they would get.
			if _, keys, err := d.announced(ctx, tx, a.user); err != nil || !keys {
				return err
			}
		}
		return d.announceTo(ctx, tx, a.user, nil)
	})
}

// announceTo is announce to all servers that share a room, and some more.
func (d *DeviceLists) announceTo(ctx context.Context, tx *storage.Tx, user matrix.UserID, more []matrix.ServerName) error {
	aud, err := d.audienceOf(ctx, user)
	if err != nil {
		return err
	}
	servers := slices.Concat(aud.servers, more)
	if len(servers) == 0 {
		return nil
	}
	slices.Sort(servers)
	return d.tellOf(ctx, tx, user, slices.Compact(servers))
}

// tellOf sends servers an update of a local user's devices that says nothing new but to those who missed some.
func (d *DeviceLists) tellOf(ctx context.Context, tx *storage.Tx, user matrix.UserID, servers []matrix.ServerName) error {
	device, _, err := d.announced(ctx, tx, user)
	if err != nil || device == "" {
		return err
	}
	last, err := d.sendDevices(ctx, tx, user, servers, []matrix.DeviceID{device})
	if err != nil {
		return err
	}
	// Nothing has changed for those who follow already.
	return storage.SetDeviceListStreamID(ctx, tx, user, int64(last))
}

// announced is the device to tell of where none has changed, "" if there is none: best one with keys, it means something to the others.
func (d *DeviceLists) announced(ctx context.Context, tx *storage.Tx, user matrix.UserID) (device matrix.DeviceID, keys bool, err error) {
	devices, err := storage.ListDeviceKeys(ctx, tx, []matrix.UserID{user})
	if err != nil {
		return "", false, fmt.Errorf("announce device list: %w", err)
	}
	for _, k := range devices {
		if k.Keys != nil {
			return k.DeviceID, true, nil
		}
		if device == "" {
			device = k.DeviceID
		}
	}
	return device, false, nil
}

// tellReturned tells the server of a user who has joined a room of the devices of the local users in it, if that server was not told of changes
// for a while and may not know. Else it asks for what is new to it (spec: server-server-api#device-management).
func (d *DeviceLists) tellReturned(ctx context.Context, user matrix.UserID, room matrix.RoomID) error {
	missed, err := d.missedBy(ctx, user, room)
	for _, u := range missed {
		if err := d.DB.Write(ctx, func(tx *storage.Tx) error { return d.tellMissed(ctx, tx, u, user.Server()) }); err != nil {
			return err
		}
	}
	return err
}

// apart is how far the clocks of two servers may be apart, with the time that it takes until a join or a leave is known.
const apart = time.Hour

// missedBy lists the local users of whose devices the server of a user who has joined a room may miss some without knowing. For that server, the
// room is shared from when the join was made: from then on it takes for complete what it has kept or fetches, and we tell it of changes later.
func (d *DeviceLists) missedBy(ctx context.Context, user matrix.UserID, room matrix.RoomID) ([]matrix.UserID, error) {
	unaware, err := d.Rooms.ReturnedUnawares(ctx, room, user)
	if err != nil {
		return nil, err
	}
	if unaware {
		joined, err := d.Rooms.JoinedUsers(ctx, room)
		return slices.DeleteFunc(joined, func(u matrix.UserID) bool { return !d.local(u) }), err
	}
	local, made, err := d.Rooms.NewServer(ctx, room, user)
	if err != nil || len(local) == 0 {
		return nil, err
	}
	changed, err := storage.DeviceListsChangedSince(ctx, d.DB, local, min(made, d.now())-matrix.Span(apart))
	if err != nil {
		return nil, fmt.Errorf("device lists that a server may have missed: %w", err)
	}
	var missed []matrix.UserID
	for _, c := range changed {
		told, err := d.Rooms.SharedSince(ctx, c.UserID, user.Server(), c.Pos)
		if err != nil {
			return nil, err
		}
		if !told {
			missed = append(missed, c.UserID)
		}
	}
	return missed, nil
}

// tellMissed has a server fetch a local user's list, if there are keys in it: the update follows on one that nobody was sent. The others are told nothing, so the next
// update does not follow on this one.
func (d *DeviceLists) tellMissed(ctx context.Context, tx *storage.Tx, user matrix.UserID, server matrix.ServerName) error {
	device, keys, err := d.announced(ctx, tx, user)
	if err != nil || !keys {
		return err
	}
	unsent, err := tx.NextPosition()
	if err != nil {
		return err
	}
	_, err = d.sendAfter(ctx, tx, user, []matrix.ServerName{server}, []matrix.DeviceID{device}, int64(unsent))
	return err
}

// untrackRoom drops the lists of remote users of a room that a local user left, if they share no other.
func (d *DeviceLists) untrackRoom(ctx context.Context, room matrix.RoomID) error {
	joined, err := d.Rooms.JoinedUsers(ctx, room)
	if err != nil || slices.ContainsFunc(joined, d.local) {
		return err
	}
	lists, err := storage.ListRemoteDeviceLists(ctx, d.DB, joined)
	if err != nil {
		return err
	}
	for _, l := range lists {
		if _, err := d.untrackIfParted(ctx, l.UserID); err != nil {
			return err
		}
	}
	return nil
}

// untrackIfParted drops the list of a remote user who shares no room with a local one; of a list that is kept it returns who shares one.
func (d *DeviceLists) untrackIfParted(ctx context.Context, user matrix.UserID) (local []matrix.UserID, err error) {
	lists, err := storage.ListRemoteDeviceLists(ctx, d.DB, []matrix.UserID{user})
	if err != nil || len(lists) == 0 {
		return nil, err
	}
	if local, err = d.localSharing(ctx, user); err != nil || len(local) > 0 {
		return local, err
	}
	return nil, d.Untrack(ctx, user)
}

// userParted drops the list of a remote user who has left a room, unless another is shared. If to the user's server there may have been none for a
// while, because it made the leave, or heard of it, before it heard that we are in the other, the list is fetched again: it told us of no changes.
// At the start that is for lists that were not fetched since.
func (d *DeviceLists) userParted(ctx context.Context, user matrix.UserID, start bool) error {
	local, err := d.untrackIfParted(ctx, user)
	if err != nil || len(local) == 0 {
		return err
	}
	left, shared, known, err := d.Rooms.Parting(ctx, user)
	if left = min(left, d.now()); err != nil || !known || left > shared+matrix.Span(apart) {
		return err
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		lists, err := storage.ListRemoteDeviceLists(ctx, tx, []matrix.UserID{user})
		if err != nil || len(lists) == 0 {
			return err
		}
		l := lists[0]
		if start && (l.Stale || l.RetryAt > left+matrix.Span(apart)) {
			return nil
		}
		if err := d.fetchAgain(ctx, tx, l); err != nil || !l.Stale {
			return err
		}
		return d.noteRemote(ctx, tx, user, local) // what is being fetched may be too old, see store
	})
	if err != nil {
		return fmt.Errorf("device list of a user who left: %w", err)
	}
	return nil
}
