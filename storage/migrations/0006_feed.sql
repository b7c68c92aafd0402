-- What readers of the stream are told: notifications, read or not, the newest of each user and room, and where they are. Written by feed.

CREATE TABLE notifications (
    user_nid  INTEGER NOT NULL,
    room_nid  INTEGER NOT NULL,
    event_pos INTEGER NOT NULL, -- of the event that notifies
    event_nid INTEGER NOT NULL,
    thread    TEXT    NOT NULL, -- root of its thread; "main" if it is in none, "invite" for invites
    highlight INTEGER NOT NULL,
    tweaks    BLOB    NOT NULL, -- JSON object of what the push rule says about how to notify; empty: nothing
    pos       INTEGER NOT NULL, -- when the count changed
    PRIMARY KEY (user_nid, room_nid, event_pos)
) STRICT;

CREATE INDEX notifications_user ON notifications (user_nid, pos);
CREATE INDEX notifications_event ON notifications (event_nid);

-- When a user's count in a room last went down because an event was redacted: the notifications are gone then.
CREATE TABLE lowered_counts (
    user_nid INTEGER NOT NULL,
    room_nid INTEGER NOT NULL,
    pos      INTEGER NOT NULL,
    PRIMARY KEY (user_nid, room_nid)
) STRICT, WITHOUT ROWID;

-- What the connections of sliding sync have been told of which rooms, after each response that may be continued from.
CREATE TABLE sliding_connections (
	version   INTEGER NOT NULL PRIMARY KEY, -- a stream position: it is in the pos that the client has
	user_id   TEXT    NOT NULL,
	device_id TEXT    NOT NULL,
	conn_id   TEXT    NOT NULL,
	used_ts   INTEGER NOT NULL, -- ms, to the hour
	state     BLOB    NOT NULL
) STRICT;

CREATE INDEX sliding_connections_device ON sliding_connections (user_id, device_id);
CREATE INDEX sliding_connections_used ON sliding_connections (used_ts);
