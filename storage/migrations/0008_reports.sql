-- What users reported to the administrators. Written by users.

CREATE TABLE reports (
    id       INTEGER NOT NULL PRIMARY KEY, -- a position of the stream: later reports have greater ones
    ts       INTEGER NOT NULL,
    reporter TEXT    NOT NULL,
    room_id  TEXT    NOT NULL, -- of a room or an event, else ""
    event_id TEXT    NOT NULL, -- of an event, else ""
    user_id  TEXT    NOT NULL, -- of a user, or the sender of an event, else ""
    reason   BLOB    NOT NULL  -- may contain NUL
) STRICT;
