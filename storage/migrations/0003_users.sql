-- What belongs to users. User and room IDs are text here, not numbers: these rows are
-- few per user, and finding or erasing all that is held about somebody must need no other table.

CREATE TABLE accounts (
    user_id       TEXT    NOT NULL PRIMARY KEY,
    kind          TEXT    NOT NULL,
    password_hash TEXT    NOT NULL, -- argon2id or bcrypt in their text form, '' for none
    admin         INTEGER NOT NULL,
    deactivated   INTEGER NOT NULL,
    erased        INTEGER NOT NULL,
    locked        INTEGER NOT NULL,
    suspended     INTEGER NOT NULL,
    local_only    INTEGER NOT NULL, -- 1: may not be in rooms that federate
    created_ts    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE registration_tokens (
    token        TEXT    NOT NULL PRIMARY KEY,
    uses_allowed INTEGER,
    completed    INTEGER NOT NULL,
    expires_ts   INTEGER
) STRICT, WITHOUT ROWID;

-- Tokens are stored as their SHA-256 only.
CREATE TABLE access_tokens (
    hash         BLOB    NOT NULL PRIMARY KEY,
    user_id      TEXT    NOT NULL,
    device_id    TEXT    NOT NULL,
    expires_ts   INTEGER, -- NULL: never
    refresh_hash BLOB,    -- the refresh token that goes with it
    replaces     BLOB     -- the refresh token it was got with, until it is used
) STRICT, WITHOUT ROWID;
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_refresh ON access_tokens (refresh_hash) WHERE refresh_hash IS NOT NULL;
CREATE INDEX access_tokens_replaces ON access_tokens (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE refresh_tokens (
    hash      BLOB NOT NULL PRIMARY KEY,
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    replaces  BLOB -- the refresh token before it, until this one or its access token is used
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_replaces ON refresh_tokens (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE login_tokens (
    hash       BLOB    NOT NULL PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    expires_ts INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- openid_tokens prove to third parties who somebody is.
CREATE TABLE openid_tokens (
    hash       BLOB    NOT NULL PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    expires_ts INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- uia_sessions are user-interactive authentications under way.
CREATE TABLE uia_sessions (
    session_id TEXT    NOT NULL PRIMARY KEY,
    operation  BLOB    NOT NULL,
    user_id    TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    completed  BLOB    NOT NULL, -- JSON
    expires_ts INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX uia_sessions_expiry ON uia_sessions (expires_ts);

CREATE TABLE devices (
    user_id      TEXT    NOT NULL,
    device_id    TEXT    NOT NULL,
    display_name BLOB    NOT NULL,
    last_seen_ts INTEGER NOT NULL, -- 0: never
    last_seen_ip TEXT    NOT NULL, -- '' unless the operator keeps addresses
    user_agent   BLOB    NOT NULL, -- likewise
    keys         BLOB,             -- device keys as uploaded, NULL: none
    PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE one_time_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    algorithm TEXT    NOT NULL,
    upload    INTEGER NOT NULL, -- orders uploads; keys are given out oldest upload first
    key_id    TEXT    NOT NULL,
    key       BLOB    NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, upload, key_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE fallback_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    algorithm TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    key       BLOB    NOT NULL,
    used      INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm)
) STRICT, WITHOUT ROWID;

-- cross_signing_keys of local users as uploaded, of remote users as their server last sent them.
CREATE TABLE cross_signing_keys (
    user_id    TEXT NOT NULL,
    usage      TEXT NOT NULL,
    public_key TEXT NOT NULL, -- unpadded base64
    key        BLOB NOT NULL,
    PRIMARY KEY (user_id, usage)
) STRICT, WITHOUT ROWID;

-- key_signatures were added by signature uploads: they are merged into keys when these are queried.
CREATE TABLE key_signatures (
    target_user TEXT NOT NULL,
    target_id   TEXT NOT NULL, -- a device ID, or a cross-signing public key
    signer      TEXT NOT NULL,
    key_id      TEXT NOT NULL,
    signature   TEXT NOT NULL,
    PRIMARY KEY (target_user, target_id, signer, key_id)
) STRICT, WITHOUT ROWID;

-- device_list_changes has the last change of each user's devices or keys.
CREATE TABLE device_list_changes (
    user_id   TEXT    NOT NULL PRIMARY KEY,
    position  INTEGER NOT NULL,
    ts        INTEGER NOT NULL, -- when that was
    stream_id INTEGER NOT NULL -- of a local user: what other servers were last sent in m.device_list_update, 0: nothing
) STRICT, WITHOUT ROWID;
CREATE INDEX device_list_changes_position ON device_list_changes (position);

-- unannounced_joins are the local users with a join of which other servers were not told in an m.device_list_update.
CREATE TABLE unannounced_joins (
    user_id  TEXT    NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL -- of the last join
) STRICT, WITHOUT ROWID;

-- private_key_changes are changes that only observer may see: signatures by their user-signing key.
CREATE TABLE private_key_changes (
    observer TEXT    NOT NULL,
    user_id  TEXT    NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (observer, user_id)
) STRICT, WITHOUT ROWID;

-- remote_device_lists are the remote users whose devices are cached.
CREATE TABLE remote_device_lists (
    user_id   TEXT    NOT NULL PRIMARY KEY,
    stream_id INTEGER NOT NULL,
    seen      BLOB    NOT NULL, -- JSON, the latest stream_ids applied
    stale     INTEGER NOT NULL, -- 1: must be fetched again before it is used
    failures  INTEGER NOT NULL,
    retry_ts  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX remote_device_lists_stale ON remote_device_lists (stale, retry_ts);

CREATE TABLE remote_devices (
    user_id      TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    display_name BLOB NOT NULL,
    keys         BLOB, -- NULL: the device has none
    PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE to_device (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    position  INTEGER NOT NULL,
    event     BLOB    NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
) STRICT, WITHOUT ROWID;

-- to_device_sent and to_device_received keep retries from having an effect twice.
CREATE TABLE to_device_sent (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    txn_id    BLOB    NOT NULL,
    ts        INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, txn_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX to_device_sent_ts ON to_device_sent (ts);

CREATE TABLE to_device_received (
    server     TEXT    NOT NULL,
    message_id BLOB    NOT NULL,
    ts         INTEGER NOT NULL,
    PRIMARY KEY (server, message_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX to_device_received_ts ON to_device_received (ts);

CREATE TABLE backups (
    user_id   TEXT    NOT NULL,
    version   INTEGER NOT NULL,
    algorithm TEXT    NOT NULL,
    auth_data BLOB    NOT NULL,
    etag      INTEGER NOT NULL,
    key_count INTEGER NOT NULL,
    deleted   INTEGER NOT NULL, -- 1: kept so that its number is not used again
    PRIMARY KEY (user_id, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE backup_keys (
    user_id             TEXT    NOT NULL,
    version             INTEGER NOT NULL,
    room_id             TEXT    NOT NULL,
    session_id          TEXT    NOT NULL,
    first_message_index INTEGER NOT NULL,
    forwarded_count     INTEGER NOT NULL,
    is_verified         INTEGER NOT NULL,
    session_data        BLOB    NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE account_data (
    user_id  TEXT    NOT NULL,
    room_id  TEXT    NOT NULL, -- '' if global
    type     TEXT    NOT NULL,
    content  BLOB,             -- NULL: deleted
    position INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
) STRICT, WITHOUT ROWID;
CREATE INDEX account_data_position ON account_data (user_id, position);

-- push_rules holds what a user changed in the predefined rules, and the rules they added.
CREATE TABLE push_rules (
    user_id  TEXT    NOT NULL PRIMARY KEY,
    changes  BLOB    NOT NULL, -- JSON
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX push_rules_position ON push_rules (position);

CREATE TABLE pushers (
    user_id       TEXT    NOT NULL,
    app_id        BLOB    NOT NULL,
    pushkey       BLOB    NOT NULL,
    user_nid      INTEGER NOT NULL,
    device_id     TEXT    NOT NULL,
    pusher        BLOB    NOT NULL, -- JSON, as clients see it
    gateway       TEXT    NOT NULL, -- scheme and host of its URL; '' if it has none
    set_ts        INTEGER NOT NULL, -- ms
    last_position INTEGER NOT NULL, -- of the last event that it was told of, or that was not worth telling
    badge         INTEGER NOT NULL, -- the count of unread messages it was told last; -1: none yet
    failing_since INTEGER NOT NULL, -- ms; 0: not failing
    retry_ts      INTEGER NOT NULL, -- ms, when to try again; 0: as soon as there is something
    refused       INTEGER NOT NULL, -- 1: the gateway answers, but with an error
    PRIMARY KEY (user_id, app_id, pushkey)
) STRICT, WITHOUT ROWID;
CREATE INDEX pushers_key ON pushers (app_id, pushkey);
CREATE INDEX pushers_retry ON pushers (retry_ts) WHERE retry_ts > 0;
CREATE INDEX pushers_waiting ON pushers (gateway) WHERE retry_ts > 0;

CREATE TABLE filters (
    user_id    TEXT    NOT NULL,
    filter_id  TEXT    NOT NULL,
    filter     BLOB    NOT NULL,
    created_ts INTEGER NOT NULL,
    PRIMARY KEY (user_id, filter_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE receipts (
    room_id    TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    thread     TEXT    NOT NULL, -- '': unthreaded
    event_id   TEXT    NOT NULL,
    ts         INTEGER NOT NULL,
    sort_order INTEGER NOT NULL, -- place of the event in the room, 0: unknown
    position   INTEGER NOT NULL,
    PRIMARY KEY (room_id, user_id, type, thread)
) STRICT, WITHOUT ROWID;
CREATE INDEX receipts_room_position ON receipts (room_id, position);
CREATE INDEX receipts_position ON receipts (position);

CREATE TABLE profiles (
    user_id TEXT NOT NULL,
    field   TEXT NOT NULL,
    value   BLOB NOT NULL, -- JSON
    PRIMARY KEY (user_id, field)
) STRICT, WITHOUT ROWID;

-- directory_users can be found by those who may see them: local users, and those of other servers who are in a room here.
CREATE TABLE directory_users (
    user_nid INTEGER NOT NULL PRIMARY KEY,
    name     BLOB    NOT NULL, -- displayname
    avatar   BLOB    NOT NULL  -- avatar_url
) STRICT;

CREATE TABLE directory_words (
    word     BLOB    NOT NULL, -- folded; with ':' before it the name of the user's server
    user_nid INTEGER NOT NULL,
    PRIMARY KEY (word, user_nid)
) STRICT, WITHOUT ROWID;

CREATE INDEX directory_words_user ON directory_words (user_nid);

-- open_rooms are those that anybody may join or read. Who is in one can be found by everybody.
CREATE TABLE open_rooms (
    room_nid INTEGER NOT NULL PRIMARY KEY
) STRICT;

-- presences is who was not offline, or left a message behind, when it was last written: it is kept in memory.
CREATE TABLE presences (
    user_id    TEXT NOT NULL PRIMARY KEY,
    state      TEXT NOT NULL,
    status_msg BLOB NOT NULL -- UTF-8
) STRICT, WITHOUT ROWID;

-- thread_subscriptions are the threads a user follows, and those they ceased to.
CREATE TABLE thread_subscriptions (
    user_id    TEXT    NOT NULL,
    room_id    TEXT    NOT NULL,
    root       TEXT    NOT NULL, -- event ID of the thread's root
    subscribed INTEGER NOT NULL,
    automatic  INTEGER NOT NULL,
    position   INTEGER NOT NULL, -- of the last change
    PRIMARY KEY (user_id, room_id, root)
) STRICT, WITHOUT ROWID;
CREATE INDEX thread_subscriptions_position ON thread_subscriptions (user_id, position);

-- notices_rooms are the rooms in which the server speaks to a user.
CREATE TABLE notices_rooms (
    user_id TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- delayed_events are events to be sent later, and for a while those that are done with. spec: MSC4140
CREATE TABLE delayed_events (
    delay_id     TEXT    NOT NULL PRIMARY KEY,
    user_id      TEXT    NOT NULL,
    device_id    TEXT    NOT NULL, -- scope of txn_id
    txn_id       TEXT,             -- NULL: the request was not idempotent
    room_id      TEXT    NOT NULL,
    type         BLOB    NOT NULL,
    state_key    BLOB,             -- NULL: not a state event
    content      BLOB    NOT NULL, -- JSON
    sticky       INTEGER,          -- milliseconds; NULL: not sticky
    delay        INTEGER NOT NULL, -- milliseconds
    since_ts     INTEGER NOT NULL, -- when it was scheduled or last restarted
    send_ts      INTEGER,          -- NULL: it is done with
    finalised_ts INTEGER,          -- NULL: it is scheduled
    event_id     TEXT,             -- what it was sent as
    error        BLOB              -- JSON: why it was not sent
) STRICT, WITHOUT ROWID;
CREATE INDEX delayed_events_due ON delayed_events (send_ts, delay_id) WHERE send_ts IS NOT NULL;
CREATE INDEX delayed_events_user ON delayed_events (user_id, send_ts, delay_id);
CREATE INDEX delayed_events_finalised ON delayed_events (finalised_ts) WHERE finalised_ts IS NOT NULL;
CREATE UNIQUE INDEX delayed_events_txn ON delayed_events (user_id, txn_id, device_id, room_id, type) WHERE txn_id IS NOT NULL;
