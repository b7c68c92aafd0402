-- Notifications, read or not, the newest of each user and room. Written by feed.

CREATE TABLE notifications (
    user_nid  INTEGER NOT NULL,
    room_nid  INTEGER NOT NULL,
    event_pos INTEGER NOT NULL, -- of the event that notifies
    event_nid INTEGER NOT NULL,
    thread    TEXT    NOT NULL, -- root of its thread; "main" if it is in none
    highlight INTEGER NOT NULL,
    pos       INTEGER NOT NULL, -- when the count changed
    PRIMARY KEY (user_nid, room_nid, event_pos)
) STRICT;

CREATE INDEX notifications_user ON notifications (user_nid, pos);
CREATE INDEX notifications_event ON notifications (event_nid);
