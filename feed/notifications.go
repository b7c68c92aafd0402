package feed

import (
	"context"
	"fmt"
	"time"

	"hanok/matrix"
	"hanok/matrix/pushrules"
	"hanok/rooms"
	"hanok/storage"
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

// mainThread stands for events that are in no thread.
const mainThread = "main"

// Run reads the event stream and keeps each local user's unread notifications, until ctx ends. Its
// cursor moves with what it stores, so nothing is missed or counted twice over a restart.
func (f *Feed) Run(ctx context.Context) error {
	for {
		more, err := f.countBatch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if more {
			continue
		}
		var retry <-chan time.Time
		if err != nil {
			f.Log.Error().Err(err).Msg("count notifications")
			retry = time.After(retryAfter)
		}
		select {
		case <-f.Hub.news:
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
	if len(events) == 0 {
		return false, nil // the cursor moves with the next event: an idle stream costs no writes
	}
	if len(events) == readBatch {
		more, until = true, events[len(events)-1].Pos
	}
	var found []storage.Notification
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
	users, err := f.userNames(ctx, found)
	if err != nil {
		return false, err
	}
	return more, f.DB.Write(ctx, func(tx *storage.Tx) error {
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
				f.Hub.Wake(users...)
			})
		}
		for _, nid := range gone {
			if err := storage.DropEventNotifications(ctx, tx, nid); err != nil {
				return err
			}
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

func (f *Feed) userNames(ctx context.Context, list []storage.Notification) ([]matrix.UserID, error) {
	nids := make([]storage.NameNID, len(list))
	for i, n := range list {
		nids[i] = n.User
	}
	names, err := f.DB.Names(ctx, nids...)
	if err != nil {
		return nil, err
	}
	out := make([]matrix.UserID, len(names))
	for i, n := range names {
		out[i] = matrix.UserID(n)
	}
	return out, nil
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
		rules, err := f.Users.PushRules.Compiled(ctx, user)
		if err != nil {
			return nil, err
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
		outcome := rules.Evaluate(flat, r)
		if !outcome.Notify {
			continue
		}
		ignored, err := f.Users.Accounts.Ignored(ctx, f.DB, user)
		if err != nil {
			return nil, err
		}
		if ignored[ev.Sender()] {
			continue
		}
		nids, err := f.DB.Intern(ctx, string(user))
		if err != nil {
			return nil, err
		}
		if thread == "" {
			if thread, err = f.threadOf(ctx, ev); err != nil {
				return nil, err
			}
		}
		out = append(out, storage.Notification{
			User: nids[0], Room: ev.RoomNID, EventPos: ev.Pos, Event: ev.NID, Thread: thread, Highlight: outcome.Highlight,
		})
	}
	return out, nil
}

// threadOf names the timeline that an event is in, for receipts and counts.
func (f *Feed) threadOf(ctx context.Context, ev *rooms.Event) (string, error) {
	root, err := f.Rooms.ThreadOf(ctx, ev)
	if root == "" {
		return mainThread, err
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
	return &pushrules.Room{
		MemberCount: summary.Joined, SenderPower: levels.User(ev.Sender()), NotificationLevel: levels.Notification,
	}, state, nil
}
