-- What is under way to application services, and the directories of their networks. Their cursors are among those of all readers.

CREATE TABLE appservice_transactions (
    service    TEXT    NOT NULL PRIMARY KEY, -- its ID
    txn_id     INTEGER NOT NULL,
    created_ts INTEGER NOT NULL,             -- events in it are as old as they were then
    events     BLOB    NOT NULL,             -- JSON, their IDs
    ephemeral  BLOB                          -- JSON array; NULL: none
) STRICT;

CREATE TABLE network_rooms (
    network  BLOB    NOT NULL, -- the instance_id that clients are told
    room_nid INTEGER NOT NULL,
    PRIMARY KEY (network, room_nid)
) STRICT, WITHOUT ROWID;

CREATE INDEX network_rooms_room ON network_rooms (room_nid);
