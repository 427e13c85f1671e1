-- Format 1. Ids are BLOBs of UTF-8: compared byte for byte, and damage in one never stops a query.

-- The last version handed out. One row for the whole file, so that no deletion can make a version repeat.
CREATE TABLE counter (version INTEGER NOT NULL);
INSERT INTO counter VALUES (0);

CREATE TABLE sessions (
    number      INTEGER PRIMARY KEY,  -- below 2^31
    tenant      BLOB NOT NULL,        -- empty: none (a tenant is never empty)
    namespace   TEXT NOT NULL,
    id          BLOB NOT NULL,
    version     INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    created_at  REAL NOT NULL,        -- instants in Unix seconds
    updated_at  REAL NOT NULL,
    expires_at  REAL,                 -- NULL: never
    first_seq   INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    known_from  INTEGER NOT NULL,     -- the ids of the items from this seq on are remembered, of gone ones too
    metadata    BLOB NOT NULL,        -- JSON
    UNIQUE (tenant, namespace, id)
);
CREATE INDEX sessions_by_activity ON sessions (tenant, namespace, version);
CREATE INDEX sessions_by_expiry ON sessions (expires_at) WHERE expires_at IS NOT NULL;

-- position is session number * 2^32 + seq: a session's items lie together, in order, and need no second key.
-- An item that is gone but whose id is still remembered keeps its row, without a body.
CREATE TABLE items (
    position    INTEGER PRIMARY KEY,
    id          BLOB NOT NULL,
    fingerprint INTEGER NOT NULL,     -- 64 bits of the content, as a signed number
    created_at  REAL NOT NULL,
    body        BLOB                  -- the caller's JSON object
);
CREATE INDEX items_by_id ON items (position >> 32, id);

-- The first answers of named removals, for those who ask again.
CREATE TABLE removals (
    session     INTEGER NOT NULL,
    operation   BLOB NOT NULL,        -- a digest of its name and its ids
    ordinal     INTEGER NOT NULL,     -- grows within the session
    answer      TEXT NOT NULL,        -- JSON: the ids removed
    PRIMARY KEY (session, operation)
) WITHOUT ROWID;

-- The same for deletions. They outlive the session, so they carry its name.
CREATE TABLE deletions (
    tenant      BLOB NOT NULL,
    namespace   TEXT NOT NULL,
    id          BLOB NOT NULL,
    op_id       BLOB NOT NULL,
    existed     INTEGER NOT NULL,
    until       REAL NOT NULL,        -- Unix seconds
    PRIMARY KEY (tenant, namespace, id, op_id)
) WITHOUT ROWID;
CREATE INDEX deletions_by_age ON deletions (until);

-- Numbers of sessions that are gone while some of their items still wait to be dropped, a bounded number at a time.
CREATE TABLE garbage (session INTEGER PRIMARY KEY);
