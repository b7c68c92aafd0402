-- Federation: keys of other servers, what is to be sent to them, what they sent.

-- A key of another server, with the signed document it was last seen in (notaries hand that on).
CREATE TABLE server_keys (
    server      TEXT NOT NULL,
    key_id      TEXT NOT NULL,
    public_key  BLOB NOT NULL,
    -- Milliseconds. Until when the key may sign; for an old key, when it stopped.
    valid_until INTEGER NOT NULL,
    expired     INTEGER NOT NULL, -- 1: listed among old_verify_keys
    fetched_at  INTEGER NOT NULL,
    document    BLOB NOT NULL,
    PRIMARY KEY (server, key_id)
) STRICT;

-- Servers that did not answer lately. A server that answers has no row.
CREATE TABLE server_backoff (
    server        TEXT PRIMARY KEY,
    failing_since INTEGER NOT NULL, -- milliseconds
    retry_at      INTEGER NOT NULL, -- milliseconds
    attempts      INTEGER NOT NULL,
    reason        TEXT NOT NULL     -- how the last attempt failed, for people
) STRICT;
CREATE INDEX server_backoff_by_retry ON server_backoff (retry_at);

-- Events to be sent. Position is the event's place in the stream, or where it was queued for a server that came later.
CREATE TABLE outbox_pdus (
    destination TEXT NOT NULL,
    position    INTEGER NOT NULL,
    room_nid    INTEGER NOT NULL,
    event_id    TEXT NOT NULL,
    keep_until  INTEGER NOT NULL, -- ms: until then it must be delivered whatever comes after it in its room
    newest      INTEGER NOT NULL, -- 1: it stands for the newest event of its room, for a server that is long gone
    PRIMARY KEY (destination, position)
) STRICT;

-- EDUs to be sent; the body is shared by all destinations.
CREATE TABLE outbox_edu_bodies (
    edu_id     INTEGER PRIMARY KEY,
    edu_type   TEXT NOT NULL,
    content    BLOB NOT NULL,
    expires_at INTEGER NOT NULL -- milliseconds, 0: never
) STRICT;
CREATE TABLE outbox_edus (
    destination TEXT NOT NULL,
    edu_id      INTEGER NOT NULL,
    PRIMARY KEY (destination, edu_id)
) STRICT;
CREATE INDEX outbox_edus_by_body ON outbox_edus (edu_id);

-- The one transaction under way to each destination: everything queued up to these positions.
CREATE TABLE outbox_transactions (
    destination TEXT PRIMARY KEY,
    txn_id      TEXT NOT NULL,
    last_pdu    INTEGER NOT NULL,
    last_edu    INTEGER NOT NULL
) STRICT;

-- Servers that have come into a room through this one lately: they are sent what others say who have not heard of that yet.
CREATE TABLE outbox_newcomers (
    room_nid INTEGER NOT NULL,
    server   TEXT NOT NULL,
    since    INTEGER NOT NULL, -- position of the join
    until_ts INTEGER NOT NULL,
    events   INTEGER NOT NULL, -- how many more of these events it is sent
    PRIMARY KEY (room_nid, server)
) STRICT;
CREATE INDEX outbox_newcomers_until ON outbox_newcomers (until_ts);

-- Answers to transactions of other servers, so that a repeated one gets the same. One with other contents is another, whatever its ID.
CREATE TABLE inbound_transactions (
    origin      TEXT NOT NULL,
    txn_id      TEXT NOT NULL,
    digest      BLOB NOT NULL, -- SHA-256 of the events and EDUs
    response    BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (origin, txn_id)
) STRICT;
CREATE INDEX inbound_transactions_by_time ON inbound_transactions (received_at);

-- Events of transactions that were answered before the room was done with them, in the order they came.
CREATE TABLE inbound_pdus (
    pdu_id INTEGER PRIMARY KEY, -- a stream position
    origin TEXT NOT NULL,
    room   TEXT NOT NULL,
    pdu    BLOB NOT NULL
) STRICT;
CREATE INDEX inbound_pdus_by_room ON inbound_pdus (room, pdu_id);
