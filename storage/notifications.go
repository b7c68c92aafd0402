package storage

import (
	"context"
	"fmt"
)

// Notification is an event that notifies a user, read or not.
type Notification struct {
	User      NameNID
	Room      RoomNID
	EventPos  Position
	Event     EventNID
	Thread    string // the root of the event's thread, or one of the names below
	Highlight bool
	Tweaks    []byte   // canonical JSON object of what the push rule says about how to notify; nil: nothing
	Pos       Position // when it was added
}

// Names in place of a thread.
const (
	MainThread   = "main"   // of events that are in no thread
	InviteThread = "invite" // of invites, which are told of and not counted
)

// AddNotification stores one; an event notifies a user once. It returns when the user's notifications in the room had changed before, at the latest.
func AddNotification(ctx context.Context, tx *Tx, n Notification) (before Position, err error) {
	tx.note(n.Pos, Subject{Topic: TopicNotified, UserNID: n.User})
	before = tx.note(n.Pos, n.subject())
	_, err = tx.Exec(ctx, `INSERT INTO notifications (user_nid, room_nid, event_pos, event_nid, thread, highlight, tweaks, pos)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (user_nid, room_nid, event_pos) DO NOTHING`,
		int64(n.User), int64(n.Room), int64(n.EventPos), int64(n.Event), n.Thread, n.Highlight, append([]byte{}, n.Tweaks...), int64(n.Pos))
	if err != nil {
		return 0, fmt.Errorf("add notification: %w", err)
	}
	return before, nil
}

func (n *Notification) subject() Subject { return UserNotifications(n.User, n.Room) }

// UserNotifications is the subject of changes of a user's notifications in a room.
func UserNotifications(user NameNID, room RoomNID) Subject {
	return Subject{Topic: TopicNotifications, UserNID: user, RoomNID: room}
}

// TrimNotifications keeps the newest of a user's notifications in a room, up to a number.
func TrimNotifications(ctx context.Context, tx *Tx, user NameNID, room RoomNID, keep int) error {
	if _, err := tx.Exec(ctx, `DELETE FROM notifications WHERE user_nid = $1 AND room_nid = $2 AND event_pos <= (SELECT event_pos FROM notifications
		WHERE user_nid = $1 AND room_nid = $2 ORDER BY event_pos DESC LIMIT 1 OFFSET $3)`, int64(user), int64(room), int64(keep)); err != nil {
		return fmt.Errorf("trim notifications: %w", err)
	}
	return nil
}

// DropEventNotifications removes those that an event caused, because it was redacted, and returns whose they were.
func DropEventNotifications(ctx context.Context, tx *Tx, event EventNID) ([]NameNID, error) {
	if err := tx.noteNext(Subject{Topic: TopicRedactedNotifications}); err != nil {
		return nil, err
	}
	users, err := collectNumbers[NameNID](tx.Query(ctx, `SELECT user_nid FROM notifications WHERE event_nid = $1`, int64(event)))
	if err == nil && len(users) > 0 {
		err = lowerCounts(ctx, tx, event, users)
	}
	if err != nil {
		return nil, fmt.Errorf("drop notifications of an event: %w", err)
	}
	return users, nil
}

func lowerCounts(ctx context.Context, tx *Tx, event EventNID, users []NameNID) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	for _, user := range users {
		tx.note(pos, Subject{Topic: TopicNotified, UserNID: user})
	}
	if _, err := tx.Exec(ctx, `INSERT INTO lowered_counts (user_nid, room_nid, pos)
		SELECT user_nid, room_nid, CAST($2 AS BIGINT) FROM notifications WHERE event_nid = $1
		ON CONFLICT (user_nid, room_nid) DO UPDATE SET pos = excluded.pos`, int64(event), int64(pos)); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `DELETE FROM notifications WHERE event_nid = $1`, int64(event))
	return err
}

const notificationColumns = `user_nid, room_nid, event_pos, event_nid, thread, highlight, tweaks, pos`

// UnreadNotifications lists a user's notifications in a room for events after a position, in order of event; those of
// the main timeline only after a position of its own.
func UnreadNotifications(ctx context.Context, q Querier, user NameNID, room RoomNID, after, mainAfter Position) ([]Notification, error) {
	return notifications(q.Query(ctx, `SELECT `+notificationColumns+` FROM notifications
		WHERE user_nid = $1 AND room_nid = $2 AND event_pos > $3 AND (event_pos > $4 OR thread <> 'main') ORDER BY event_pos`,
		int64(user), int64(room), int64(after), int64(mainAfter)))
}

// NotificationsBefore lists up to limit of a user's notifications that were added before a place, the newest first;
// only highlights, or all.
func NotificationsBefore(ctx context.Context, q Querier, user NameNID, pos, eventPos Position, highlights bool, limit int) ([]Notification, error) {
	return notifications(q.Query(ctx, `SELECT `+notificationColumns+` FROM notifications
		WHERE user_nid = $1 AND (pos, event_pos) < ($2, $3) AND highlight >= $4 ORDER BY pos DESC, event_pos DESC LIMIT $5`,
		int64(user), int64(pos), int64(eventPos), highlights, int64(limit)))
}

// NotifiedRooms lists the rooms in which a user got notifications, or lost some to redactions, in (from, to].
func NotifiedRooms(ctx context.Context, q Querier, user NameNID, from, to Position) ([]RoomNID, error) {
	return collectNumbers[RoomNID](q.Query(ctx, `SELECT room_nid FROM notifications WHERE user_nid = $1 AND pos > $2 AND pos <= $3
		UNION SELECT room_nid FROM lowered_counts WHERE user_nid = $1 AND pos > $2 AND pos <= $3`,
		int64(user), int64(from), int64(to)))
}

// NotificationsAfter lists up to limit of a user's notifications for events after a position, in the order in which they were added,
// which is that of the events.
func NotificationsAfter(ctx context.Context, q Querier, user NameNID, after Position, limit int) ([]Notification, error) {
	// What was added at or before a position is for events before it.
	return notifications(q.Query(ctx, `SELECT `+notificationColumns+` FROM notifications
		WHERE user_nid = $1 AND pos > $2 AND event_pos > $2 ORDER BY pos, event_pos LIMIT $3`, int64(user), int64(after), int64(limit)))
}

// RoomsWithNotifications lists the rooms in which a user has notifications, read or not.
func RoomsWithNotifications(ctx context.Context, q Querier, user NameNID) ([]RoomNID, error) {
	// From room to room: there may be a thousand rows in each.
	return collectNumbers[RoomNID](q.Query(ctx, `WITH RECURSIVE found (room) AS (
			SELECT min(room_nid) FROM notifications WHERE user_nid = $1
			UNION ALL SELECT (SELECT min(room_nid) FROM notifications WHERE user_nid = $1 AND room_nid > found.room) FROM found WHERE found.room IS NOT NULL)
		SELECT room FROM found WHERE room IS NOT NULL`, int64(user)))
}

func notifications(rows *Rows, err error) ([]Notification, error) {
	if err != nil {
		return nil, fmt.Errorf("notifications: %w", err)
	}
	defer rows.Close()
	var out []Notification
	for rows.Next() {
		var n Notification
		if err := rows.Scan(&n.User, &n.Room, &n.EventPos, &n.Event, &n.Thread, &n.Highlight, &n.Tweaks, &n.Pos); err != nil {
			return nil, fmt.Errorf("notifications: %w", err)
		}
		if len(n.Tweaks) == 0 {
			n.Tweaks = nil
		}
		out = append(out, n)
	}
	return out, rows.Err()
}
