-- The ledger: which migrations have run.
CREATE TABLE threadline_migration (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- One row per session. `no` is never used again (AUTOINCREMENT), so it tells a session from an
-- earlier one with the same id. The ids stand here once; other tables hold keys made of them.
CREATE TABLE threadline_session (
    no           INTEGER PRIMARY KEY AUTOINCREMENT,
    app_key      BLOB    NOT NULL,
    owner        BLOB    NOT NULL,
    session      BLOB    NOT NULL,
    revision     INTEGER NOT NULL DEFAULT 0,
    updated      REAL    NOT NULL,
    created      REAL    NOT NULL,
    expires      REAL,
    app          TEXT    NOT NULL,
    user         TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    display_name TEXT,
    labels       TEXT
);
CREATE UNIQUE INDEX threadline_session_by_id ON threadline_session (owner, session);
CREATE INDEX threadline_session_of_app_by_id ON threadline_session (app_key, session);
CREATE INDEX threadline_session_by_updated ON threadline_session (app_key, updated);
CREATE INDEX threadline_session_of_user_by_updated ON threadline_session (owner, updated);
CREATE INDEX threadline_session_by_created ON threadline_session (app_key, created);
CREATE INDEX threadline_session_of_user_by_created ON threadline_session (owner, created);

-- One row per event. `place` is the session's no and the event's seq in one integer
-- (no * 2^32 + seq): a session's events lie together in order, in a table without a second
-- tree for its key. `id_key` is made of the event's id; the id itself is in the body.
CREATE TABLE threadline_event (
    place     INTEGER PRIMARY KEY,
    id_key    BLOB    NOT NULL,
    timestamp REAL    NOT NULL,
    body      BLOB    NOT NULL
);
CREATE UNIQUE INDEX threadline_event_by_id ON threadline_event (place >> 32, id_key);

-- One row per key. `session` is empty for a user's state, and for an app's, whose owner key is
-- made of the app alone.
CREATE TABLE threadline_state (
    owner   BLOB NOT NULL,
    session BLOB NOT NULL,
    key     TEXT NOT NULL,
    value   BLOB NOT NULL,
    PRIMARY KEY (owner, session, key)
) WITHOUT ROWID;

-- For people who query by hand.
CREATE VIEW threadline_sessions AS
SELECT app AS app_name, user AS user_id, id AS session_id, display_name, labels, revision,
       datetime(created, 'unixepoch') AS created_at, datetime(updated, 'unixepoch') AS updated_at,
       datetime(expires, 'unixepoch') AS expires_at
  FROM threadline_session;

CREATE VIEW threadline_events AS
SELECT s.app AS app_name, s.user AS user_id, s.id AS session_id, e.place & 4294967295 AS seq,
       datetime(e.timestamp, 'unixepoch') AS happened_at, CAST(e.body AS TEXT) AS event
  FROM threadline_event AS e
  JOIN threadline_session AS s ON s.no = e.place >> 32;

CREATE VIEW threadline_session_state AS
SELECT s.app AS app_name, s.user AS user_id, s.id AS session_id, t.key,
       CAST(t.value AS TEXT) AS value
  FROM threadline_state AS t
  JOIN threadline_session AS s ON s.owner = t.owner AND s.session = t.session;
