-- The media repository. Files are on disk, named by their SHA-256; a row says what an mxc:// URI stands for.

CREATE TABLE media (
    server TEXT NOT NULL,            -- the part of the mxc:// URI that says where it comes from
    media_id TEXT NOT NULL,
    user_id TEXT NOT NULL,           -- who uploaded it; '' for media of other servers
    created_ts INTEGER NOT NULL,
    expires_ts INTEGER NOT NULL,     -- when a URI made ahead of its content expires; 0 once there is content
    hash TEXT NOT NULL,              -- hex SHA-256 of the content, '' while there is none
    size INTEGER NOT NULL,           -- in bytes
    content_type TEXT NOT NULL,
    filename TEXT NOT NULL,          -- '' if unknown
    accessed_ts INTEGER NOT NULL,    -- to the day; remote media that nobody asks for go
    PRIMARY KEY (server, media_id)
) STRICT;

CREATE INDEX media_by_user ON media (user_id, size) WHERE user_id <> '';
CREATE INDEX media_by_hash ON media (hash) WHERE hash <> '';
CREATE INDEX media_pending ON media (expires_ts) WHERE expires_ts <> 0;
CREATE INDEX media_remote ON media (accessed_ts) WHERE user_id = '';
