-- How events of the timeline relate to others: content.m.relates_to. Written by rooms with the event, removed when it is redacted.

CREATE TABLE relations (
    child_nid  INTEGER NOT NULL PRIMARY KEY,
    room_nid   INTEGER NOT NULL,
    parent     TEXT    NOT NULL, -- event ID, of any room and perhaps unknown
    rel_type   BLOB    NOT NULL, -- may contain NUL
    type_nid   INTEGER NOT NULL, -- of the child, as are all that follow
    sender_nid INTEGER NOT NULL,
    depth      INTEGER NOT NULL,
    pos        INTEGER NOT NULL,
    ts         INTEGER NOT NULL  -- origin_server_ts
) STRICT;

CREATE INDEX relations_parent ON relations (room_nid, parent, depth, pos);
CREATE INDEX relations_count ON relations (room_nid, parent, rel_type, sender_nid, type_nid, pos);
CREATE INDEX relations_room ON relations (room_nid, rel_type, depth, pos);
