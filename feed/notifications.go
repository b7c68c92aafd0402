package feed

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/pushrules"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// notificationReader names the cursor of Run in the database.
const notificationReader = "notifications"

// retryAfter is how long Run waits when the database failed.
const retryAfter = 5 * time.Second

// readBatch bounds how many events Run works on in one transaction.
const readBatch = 100

// maxKept is how many notifications of a user are kept in a room; counts do not go much beyond it. They are trimmed
// now and then: with about one in trimEvery.
const (
	maxKept   = 1000
	trimEvery = 64
)

// Run reads the event stream and keeps each local user's unread notifications, until ctx ends. Its
// cursor moves with what it stores, so nothing is missed or counted twice over a restart.
func (f *Feed) Run(ctx context.Context) error {
	return f.follow(ctx, "count notifications", f.Hub.news, f.countBatch)
}

// follow has a reader of a stream work, until ctx ends: batch says whether there may be more to read, and is called again at once then,
// otherwise when there is news.
func (f *Feed) follow(ctx context.Context, what string, news <-chan struct{}, batch func(context.Context) (more bool, err error)) error {
	for {
		more, err := batch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if more {
			continue
		}
		var retry <-chan time.Time
		if err != nil {
			f.Log.Error().Err(err).Msg(what)
			retry = time.After(retryAfter)
		}
		select {
		case <-news:
		case <-retry:
		case <-ctx.Done():
			return nil
		}
	}
}

// countBatch works on the next events of the stream; more says that there may be others.
func (f *Feed) countBatch(ctx context.Context) (more bool, err error) {
	since, err := storage.Cursor(ctx, f.DB, notificationReader)
	if err != nil {
		return false, err
	}
	until := f.DB.Current()
	if until <= since {
		return false, nil
	}
	events, err := f.Rooms.EventsAfter(ctx, since, until, readBatch)
	if err != nil {
		return false, err
	}
	if len(events) == readBatch {
		more, until = true, events[len(events)-1].Pos
	}
	found, err := f.notifiedInvites(ctx, since, until)
	if err != nil {
		return false, err
	}
	if len(events) == 0 && len(found) == 0 {
		return false, nil // the cursor moves with the next event: an idle stream costs no writes
	}
	var redacted []matrix.EventID
	for _, ev := range events {
		n, err := f.notified(ctx, ev)
		if err != nil {
			return false, fmt.Errorf("event %s: %w", ev.ID(), err)
		}
		found = append(found, n...)
		if err := f.followUpgrade(ctx, ev); err != nil {
			return false, fmt.Errorf("event %s: %w", ev.ID(), err)
		}
		if err := f.followGuestAccess(ctx, ev); err != nil {
			return false, fmt.Errorf("event %s: %w", ev.ID(), err)
		}
		if id, ok := ev.Redacts(); ok && ev.Type() == "m.room.redaction" {
			redacted = append(redacted, id)
		}
	}
	gone, err := f.redactedEvents(ctx, redacted)
	if err != nil {
		return false, err
	}
	notified, err := f.usersOf(ctx, found)
	if err != nil {
		return false, err
	}
	return more, f.DB.Write(ctx, func(tx *storage.Tx) error {
		var recounted []storage.NameNID
		if len(found) > 0 {
			pos, err := tx.NextPosition()
			if err != nil {
				return err
			}
			added := make(map[unreadRoom]*addedNotifications)
			for _, n := range found {
				n.Pos = pos
				before, err := storage.AddNotification(ctx, tx, n)
				if err != nil {
					return err
				}
				key := unreadRoom{n.User, n.Room}
				if added[key] == nil {
					added[key] = &addedNotifications{before: before}
				}
				added[key].list = append(added[key].list, n)
				if n.Event%trimEvery == 0 {
					if err := storage.TrimNotifications(ctx, tx, n.User, n.Room, maxKept); err != nil {
						return err
					}
				}
			}
			tx.OnVisible(func() {
				for _, a := range added {
					f.unreads.added(a.list, a.before)
				}
				f.Hub.Wake(notified...)
				f.Notified(notified...)
			})
		}
		for _, nid := range gone {
			had, err := storage.DropEventNotifications(ctx, tx, nid)
			if err != nil {
				return err
			}
			recounted = append(recounted, had...)
		}
		if len(recounted) > 0 {
			users, err := f.userIDs(ctx, recounted)
			if err != nil {
				return err
			}
			tx.OnVisible(func() {
				f.Hub.Wake(users...)
				f.Recounted(recounted...)
			})
		}
		return storage.SetCursor(ctx, tx, notificationReader, until)
	})
}

// addedNotifications are of one user in one room. Before them there were none after before.
type addedNotifications struct {
	list   []storage.Notification
	before storage.Position
}

// redactedEvents finds those of the events that were really redacted.
func (f *Feed) redactedEvents(ctx context.Context, ids []matrix.EventID) ([]storage.EventNID, error) {
	var out []storage.EventNID
	for _, id := range ids {
		ev, err := f.Rooms.Event(ctx, id)
		switch {
		case matrix.HasCode(err, "M_NOT_FOUND"):
		case err != nil:
			return nil, err
		case ev.RedactedBy != "":
			out = append(out, ev.NID)
		}
	}
	return out, nil
}

// usersOf names the users of notifications, each once.
func (f *Feed) usersOf(ctx context.Context, list []storage.Notification) ([]matrix.UserID, error) {
	nids := make([]storage.NameNID, len(list))
	for i, n := range list {
		nids[i] = n.User
	}
	return f.userIDs(ctx, nids)
}

// userIDs names users, each once.
func (f *Feed) userIDs(ctx context.Context, nids []storage.NameNID) ([]matrix.UserID, error) {
	nids = slices.Clone(nids)
	slices.Sort(nids)
	return f.DB.UserIDs(ctx, slices.Compact(nids)...)
}

// notified lists whom an event notifies among the local members of its room.
func (f *Feed) notified(ctx context.Context, ev *rooms.Event) ([]storage.Notification, error) {
	if ev.RedactedBy != "" || ev.Is("m.room.create", "") {
		return nil, nil
	}
	local, err := f.Rooms.LocalUsers(ctx, ev.RoomID())
	if err != nil || len(local) == 0 {
		return nil, err
	}
	var out []storage.Notification
	var flat *pushrules.Flat
	var room *pushrules.Room
	var state rooms.State
	var thread string
	for _, user := range local {
		if user == ev.Sender() {
			continue
		}
		// Nobody looks at what a service's users are notified of, and a room may have thousands of them.
		if ghost, err := f.Users.Accounts.OfService(ctx, user); err != nil {
			return nil, err
		} else if ghost {
			continue
		}
		if flat == nil {
			flat = pushrules.Flatten(ev.Event)
			if room, state, err = f.pushRoom(ctx, ev); err != nil {
				return nil, err
			}
		}
		r := *room
		member, err := state.Event(ctx, "m.room.member", string(user))
		if err != nil {
			return nil, err
		}
		if member == nil || member.Membership() != "join" {
			continue // joined later, perhaps before this was looked at
		}
		r.DisplayName, _ = member.ContentString("displayname")
		n, ok, err := f.judge(ctx, user, ev, flat, r)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if thread == "" {
			if thread, err = f.threadOf(ctx, ev); err != nil {
				return nil, err
			}
		}
		n.EventPos, n.Thread = ev.Pos, thread
		out = append(out, n)
	}
	return out, nil
}

// notifiedInvites lists the notifications of invites that came in (since, until].
func (f *Feed) notifiedInvites(ctx context.Context, since, until storage.Position) ([]storage.Notification, error) {
	invites, err := f.Rooms.InvitesBetween(ctx, since, until)
	if err != nil {
		return nil, err
	}
	var out []storage.Notification
	for _, i := range invites {
		if i.Event.RedactedBy != "" {
			continue
		}
		if ghost, err := f.Users.Accounts.OfService(ctx, i.User); err != nil {
			return nil, err
		} else if ghost {
			continue
		}
		rules, err := f.Users.Accounts.InviteRules(ctx, f.DB, i.User)
		if err != nil {
			return nil, err
		}
		if rules.For(i.Event.Sender()) != users.InviteAllowed {
			continue
		}
		room := &pushrules.Room{} // of a room that this server is not in, nothing is known
		if !i.Event.Outlier {
			if room, _, err = f.pushRoom(ctx, i.Event); err != nil {
				return nil, err
			}
		}
		room.DisplayName, _ = i.Event.ContentString("displayname")
		n, ok, err := f.judge(ctx, i.User, i.Event, pushrules.Flatten(i.Event.Event), *room)
		if err != nil {
			return nil, err
		}
		if ok {
			n.EventPos, n.Thread = i.Position, storage.InviteThread
			out = append(out, n)
		}
	}
	return out, nil
}

// maxTweaks is the size of what is kept of how to notify; of more, only what the specification names.
const maxTweaks = 1024

// judge asks a user's push rules about an event; ok is false if they say nothing, or the user ignores the sender.
func (f *Feed) judge(ctx context.Context, user matrix.UserID, ev *rooms.Event, flat *pushrules.Flat, room pushrules.Room) (n storage.Notification, ok bool, err error) {
	rules, err := f.Users.PushRules.Compiled(ctx, user)
	if err != nil {
		return n, false, err
	}
	outcome := rules.Evaluate(flat, room)
	if !outcome.Notify {
		return n, false, nil
	}
	ignored, err := f.Users.Accounts.Ignored(ctx, f.DB, user)
	if err != nil || ignored[ev.Sender()] {
		return n, false, err
	}
	nids, err := f.DB.Intern(ctx, string(user))
	if err != nil {
		return n, false, err
	}
	n = storage.Notification{User: nids[0], Room: ev.RoomNID, Event: ev.NID, Highlight: outcome.Highlight}
	if len(outcome.Tweaks) > maxTweaks {
		outcome.Tweaks = outcome.StandardTweaks()
	}
	if len(outcome.Tweaks) > len("{}") {
		n.Tweaks = outcome.Tweaks
	}
	return n, true, nil
}

// threadOf names the timeline that an event is in, for receipts and counts.
func (f *Feed) threadOf(ctx context.Context, ev *rooms.Event) (string, error) {
	root, err := f.Rooms.ThreadOf(ctx, ev)
	if root == "" {
		return storage.MainThread, err
	}
	return string(root), err
}

// pushRoom is what push conditions ask of a room as it was before an event.
func (f *Feed) pushRoom(ctx context.Context, ev *rooms.Event) (*pushrules.Room, rooms.State, error) {
	state, err := f.Rooms.StateBefore(ctx, ev)
	if err != nil {
		return nil, rooms.State{}, err
	}
	levels, err := state.PowerLevels(ctx)
	if err != nil {
		return nil, rooms.State{}, err
	}
	summary, err := f.Rooms.MemberSummary(ctx, ev.RoomNID, ev.Sender())
	if err != nil {
		return nil, rooms.State{}, err
	}
	members := summary.Joined
	if ev.Partial {
		// Of a room of one other server it may be known by now that its sender is in it, and no more. One that is open is no chat of two.
		open, err := state.Open(ctx)
		if err != nil {
			return nil, rooms.State{}, err
		}
		if open {
			members = max(members, 3)
		}
	}
	return &pushrules.Room{
		MemberCount: members, SenderPower: levels.User(ev.Sender()), NotificationLevel: levels.Notification,
	}, state, nil
}
