-- What is interned: event types, state keys and user IDs. BLOB because they may contain NUL.
CREATE TABLE names (
	name_nid INTEGER NOT NULL PRIMARY KEY,
	name     BLOB    NOT NULL UNIQUE
) STRICT;

-- Blocks of numbers handed out in memory: all below "until" may be in use.
CREATE TABLE reserved (
	name  TEXT    NOT NULL PRIMARY KEY,
	until INTEGER NOT NULL
) STRICT;

-- How far each durable reader of the stream has come.
CREATE TABLE cursors (
	reader   TEXT    NOT NULL PRIMARY KEY,
	position INTEGER NOT NULL
) STRICT;
