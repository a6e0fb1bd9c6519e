-- The ledger: which migrations have run.
CREATE TABLE {schema}.threadline_migration (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row per session. `incarnation` is a random number that tells a session from an earlier one
-- with the same id. The ids stand here once, in UTF-8: text cannot hold every id (it refuses
-- NUL), and bytes compare the same under every collation. Other tables hold keys made of them.
-- Lists are ordered by `updated`, but the index has it in slots of 32 seconds: an append that
-- stays in its session's slot changes no column of an index, so no index is written and the row's
-- old version is cleared away by the next one (a HOT update). The inner floor() is for times next
-- to zero, which a division alone would refuse.
CREATE TABLE {schema}.threadline_session (
    owner        bytea            NOT NULL,
    session      bytea            NOT NULL,
    app_key      bytea            NOT NULL,
    incarnation  bigint           NOT NULL,
    revision     bigint           NOT NULL DEFAULT 0,
    updated      double precision NOT NULL,
    updated_slot double precision NOT NULL GENERATED ALWAYS AS (floor(floor(updated) / 32)) STORED,
    created      double precision NOT NULL,
    expires      double precision,
    app          bytea            NOT NULL,
    "user"       bytea            NOT NULL,
    id           bytea            NOT NULL,
    display_name bytea,
    labels       bytea,
    PRIMARY KEY (owner, session)
) WITH (fillfactor = 80);
CREATE INDEX threadline_session_of_app_by_id ON {schema}.threadline_session (app_key, session);
CREATE INDEX threadline_session_by_updated ON {schema}.threadline_session (app_key, updated_slot);
CREATE INDEX threadline_session_of_user_by_updated
    ON {schema}.threadline_session (owner, updated_slot);
CREATE INDEX threadline_session_by_created ON {schema}.threadline_session (app_key, created);
CREATE INDEX threadline_session_of_user_by_created ON {schema}.threadline_session (owner, created);

-- One row per event. `id_key` is made of the event's id; the id itself is in the body.
CREATE TABLE {schema}.threadline_event (
    owner     bytea            NOT NULL,
    session   bytea            NOT NULL,
    seq       bigint           NOT NULL,
    timestamp double precision NOT NULL,
    id_key    bytea            NOT NULL,
    body      bytea            NOT NULL,
    PRIMARY KEY (owner, session, seq),
    CONSTRAINT threadline_event_by_id UNIQUE (owner, session, id_key)
);

-- One row per key. `session` is empty for a user's state, and for an app's, whose owner key is
-- made of the app alone. A value is NULL only inside of a transaction that patches it.
CREATE TABLE {schema}.threadline_state (
    owner   bytea NOT NULL,
    session bytea NOT NULL,
    key     bytea NOT NULL,
    value   bytea,
    PRIMARY KEY (owner, session, key)
) WITH (fillfactor = 80);

-- For people who query by hand. Ids and keys with a NUL, which no text can hold, are shown
-- escaped; times that no timestamp can hold are NULL.
CREATE VIEW {schema}.threadline_sessions AS
SELECT CASE WHEN position('\x00'::bytea IN app) > 0 THEN encode(app, 'escape')
            ELSE convert_from(app, 'UTF8') END AS app_name,
       CASE WHEN position('\x00'::bytea IN "user") > 0 THEN encode("user", 'escape')
            ELSE convert_from("user", 'UTF8') END AS user_id,
       CASE WHEN position('\x00'::bytea IN id) > 0 THEN encode(id, 'escape')
            ELSE convert_from(id, 'UTF8') END AS session_id,
       CASE WHEN position('\x00'::bytea IN display_name) > 0 THEN encode(display_name, 'escape')
            ELSE convert_from(display_name, 'UTF8') END AS display_name,
       convert_from(labels, 'UTF8') AS labels,
       revision,
       CASE WHEN abs(created) < 1e11 THEN to_timestamp(created) END AS created_at,
       CASE WHEN abs(updated) < 1e11 THEN to_timestamp(updated) END AS updated_at,
       CASE WHEN abs(expires) < 1e11 THEN to_timestamp(expires) END AS expires_at,
       owner, session
  FROM {schema}.threadline_session;

CREATE VIEW {schema}.threadline_events AS
SELECT s.app_name, s.user_id, s.session_id, e.seq,
       CASE WHEN abs(e.timestamp) < 1e11 THEN to_timestamp(e.timestamp) END AS happened_at,
       convert_from(e.body, 'UTF8') AS event
  FROM {schema}.threadline_event AS e
  JOIN {schema}.threadline_sessions AS s ON s.owner = e.owner AND s.session = e.session;

CREATE VIEW {schema}.threadline_session_state AS
SELECT s.app_name, s.user_id, s.session_id,
       CASE WHEN position('\x00'::bytea IN t.key) > 0 THEN encode(t.key, 'escape')
            ELSE convert_from(t.key, 'UTF8') END AS key,
       convert_from(t.value, 'UTF8') AS value
  FROM {schema}.threadline_state AS t
  JOIN {schema}.threadline_sessions AS s ON s.owner = t.owner AND s.session = t.session;
