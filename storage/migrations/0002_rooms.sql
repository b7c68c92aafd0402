-- Rooms, their events, states and members. Written by rooms.

CREATE TABLE rooms (
    nid       INTEGER NOT NULL PRIMARY KEY,
    room_id   TEXT    NOT NULL UNIQUE,
    version   TEXT    NOT NULL,
    head      BLOB    NOT NULL, -- packed numbers of the forward extremities; empty: never joined
    state     INTEGER NOT NULL, -- tree of the current state
    pos       INTEGER NOT NULL, -- of the newest event in the timeline
    published INTEGER NOT NULL
) STRICT;

CREATE INDEX rooms_published ON rooms (published) WHERE published = 1;

CREATE TABLE events (
    nid          INTEGER NOT NULL PRIMARY KEY,
    event_id     TEXT    NOT NULL UNIQUE,
    room_nid     INTEGER NOT NULL,
    type_nid     INTEGER NOT NULL,
    skey_nid     INTEGER,          -- NULL: not a state event
    sender_nid   INTEGER NOT NULL,
    depth        INTEGER NOT NULL,
    pos          INTEGER,          -- NULL: not in the timeline; negative: backfilled
    ts           INTEGER NOT NULL, -- received, ms
    origin_ts    INTEGER NOT NULL, -- origin_server_ts, ms
    flags        INTEGER NOT NULL,
    state_before INTEGER NOT NULL, -- tree; 0 for outliers
    refs         BLOB    NOT NULL, -- packed numbers of prev and auth events
    redacted_by  INTEGER,
    txn_device   TEXT,
    txn_id       TEXT,
    json         BLOB    NOT NULL
) STRICT;

CREATE INDEX events_timeline ON events (room_nid, pos) WHERE pos IS NOT NULL;
CREATE INDEX events_topology ON events (room_nid, depth, pos) WHERE pos IS NOT NULL;
CREATE INDEX events_time ON events (room_nid, origin_ts) WHERE pos IS NOT NULL;
CREATE INDEX events_stream ON events (pos) WHERE pos > 0;
CREATE INDEX events_partial ON events (room_nid, nid) WHERE (flags & 32) <> 0; -- see partial_rooms
CREATE UNIQUE INDEX events_txn ON events (sender_nid, txn_id, txn_device, room_nid, type_nid) WHERE txn_id IS NOT NULL;

-- What a room's current state was from a position on.
CREATE TABLE room_states (
    room_nid INTEGER NOT NULL,
    pos      INTEGER NOT NULL,
    state    INTEGER NOT NULL,
    PRIMARY KEY (room_nid, pos)
) STRICT;

CREATE INDEX room_states_pos ON room_states (pos);

-- Nodes of state trees; those made by one change are one row.
CREATE TABLE state_nodes (
    id   INTEGER NOT NULL PRIMARY KEY,
    data BLOB    NOT NULL
) STRICT;

-- Prev events that we do not have: the backward extremities.
CREATE TABLE missing_prevs (
    room_nid  INTEGER NOT NULL,
    event_id  TEXT    NOT NULL,
    child_nid INTEGER NOT NULL,
    depth     INTEGER NOT NULL, -- of the child
    state     INTEGER NOT NULL, -- tree after the missing event, as a server told it; 0: it was not asked for
    PRIMARY KEY (room_nid, event_id, child_nid)
) STRICT;

CREATE INDEX missing_prevs_depth ON missing_prevs (room_nid, depth);

-- Rooms that were joined without their members. The events of which only that much of the state is known have a flag.
CREATE TABLE partial_rooms (
    room_nid INTEGER NOT NULL PRIMARY KEY,
    join_nid INTEGER NOT NULL, -- our join, the first such event
    servers  BLOB    NOT NULL, -- JSON array: those in the room before it
    full_pos INTEGER           -- when the whole state was known; NULL: not yet
) STRICT;

-- Rooms that the operator keeps apart from other servers.
CREATE TABLE isolated_rooms (
    room_id  TEXT    NOT NULL PRIMARY KEY, -- which need not be known here
    since_ts INTEGER NOT NULL
) STRICT;

-- Users who are to leave all rooms that other servers can be in.
CREATE TABLE withdrawals (
    user_id TEXT NOT NULL PRIMARY KEY
) STRICT;

-- Redactions that came before what they redact.
CREATE TABLE early_redactions (
    event_id      TEXT    NOT NULL,
    redaction_nid INTEGER NOT NULL,
    PRIMARY KEY (event_id, redaction_nid)
) STRICT;

-- Events that clients are told of whatever a timeline's limit, until they expire. spec: MSC4354
CREATE TABLE sticky_events (
    event_nid  INTEGER NOT NULL PRIMARY KEY,
    room_nid   INTEGER NOT NULL,
    pos        INTEGER,          -- where in the stream clients meet it; NULL: soft-failed
    own        INTEGER NOT NULL, -- 1: of this server
    expires_ts INTEGER NOT NULL
) STRICT;

CREATE INDEX sticky_events_room ON sticky_events (room_nid, pos);
CREATE INDEX sticky_events_stream ON sticky_events (pos);
CREATE INDEX sticky_events_expiry ON sticky_events (expires_ts);

-- Current memberships.
CREATE TABLE memberships (
    room_nid   INTEGER NOT NULL,
    user_nid   INTEGER NOT NULL,
    server_nid INTEGER NOT NULL,
    membership INTEGER NOT NULL,
    event_nid  INTEGER NOT NULL,
    sender_nid INTEGER NOT NULL,
    pos        INTEGER NOT NULL,
    left_pos   INTEGER, -- when the user last ceased to be joined; NULL: never, or joined now
    forgotten  INTEGER NOT NULL,
    PRIMARY KEY (room_nid, user_nid)
) STRICT;

CREATE INDEX memberships_user ON memberships (user_nid, membership);
CREATE INDEX memberships_room ON memberships (room_nid, membership, server_nid);
CREATE INDEX memberships_invites ON memberships (pos) WHERE membership = 1;

-- The newest membership of a local user in a room in which this server did not take part, for readers of the stream: its event has no place in the timeline.
CREATE TABLE apart_memberships (
    room_nid INTEGER NOT NULL,
    user_nid INTEGER NOT NULL,
    event_id TEXT    NOT NULL,
    pos      INTEGER NOT NULL,
    PRIMARY KEY (room_nid, user_nid)
) STRICT;
CREATE INDEX apart_memberships_pos ON apart_memberships (pos);

-- Stripped state that came with an invite or a knock of a local user.
CREATE TABLE stripped_states (
    room_nid INTEGER NOT NULL,
    user_nid INTEGER NOT NULL,
    state    BLOB    NOT NULL, -- JSON array
    PRIMARY KEY (room_nid, user_nid)
) STRICT;

-- Invites of local users to rooms that this server was in when it signed them, until they come as events. Whoever sent one may know already that this
-- server is not in the room any more, and then does not send it as an event.
CREATE TABLE signed_invites (
    room_nid INTEGER NOT NULL,
    user_nid INTEGER NOT NULL,
    invite   BLOB    NOT NULL, -- PDU
    state    BLOB    NOT NULL, -- stripped, JSON array
    ts       INTEGER NOT NULL, -- when it was signed
    PRIMARY KEY (room_nid, user_nid)
) STRICT;
CREATE INDEX signed_invites_ts ON signed_invites (ts);

-- Leaves of local users from outside of a room, of which nobody in the room could be told yet.
CREATE TABLE untold_leaves (
    room_nid  INTEGER NOT NULL,
    user_nid  INTEGER NOT NULL,
    event_nid INTEGER NOT NULL, -- the leave, which stayed on this server
    servers   BLOB    NOT NULL, -- JSON array: those to tell
    since_ts  INTEGER NOT NULL,
    tries     INTEGER NOT NULL,
    next_ts   INTEGER NOT NULL, -- when to try again
    PRIMARY KEY (room_nid, user_nid)
) STRICT;
CREATE INDEX untold_leaves_next ON untold_leaves (next_ts);

CREATE TABLE aliases (
    alias       TEXT    NOT NULL PRIMARY KEY,
    room_nid    INTEGER NOT NULL,
    creator_nid INTEGER NOT NULL
) STRICT;

CREATE INDEX aliases_room ON aliases (room_nid);
