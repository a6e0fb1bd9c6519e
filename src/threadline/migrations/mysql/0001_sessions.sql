-- MySQL commits after every statement of this kind, so each can be run again: a migration that
-- was interrupted starts anew and ends the same. Keys are bytes: no collation has a say in them.

-- The ledger: which migrations have run.
CREATE TABLE IF NOT EXISTS threadline_migration (
    version    INT          NOT NULL PRIMARY KEY,
    name       VARCHAR(100) NOT NULL,
    applied_at TIMESTAMP    NOT NULL DEFAULT CURRENT_TIMESTAMP
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- One row per session. `incarnation` is drawn at random, so it tells a session from an earlier
-- one with the same id. The ids stand here once, in UTF-8; other tables hold keys made of them.
-- The indexes carry what a listing is sorted by, so that a page is read and nothing is sorted.
CREATE TABLE IF NOT EXISTS threadline_session (
    owner        BINARY(16)     NOT NULL,
    session      BINARY(16)     NOT NULL,
    incarnation  BIGINT         NOT NULL,
    revision     INT UNSIGNED   NOT NULL DEFAULT 0,
    updated      DOUBLE         NOT NULL,
    created      DOUBLE         NOT NULL,
    expires      DOUBLE         NULL,
    app_key      BINARY(16)     NOT NULL,
    app          VARBINARY(512) NOT NULL,
    user         VARBINARY(512) NOT NULL,
    id           VARBINARY(512) NOT NULL,
    display_name LONGBLOB       NULL,
    labels       LONGBLOB       NULL,
    PRIMARY KEY (owner, session),
    KEY of_app_by_id (app_key, session),
    KEY of_user_by_updated (owner, updated, id),
    KEY of_user_by_created (owner, created, id),
    KEY of_app_by_updated (app_key, updated, user, id),
    KEY of_app_by_created (app_key, created, user, id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4;

-- One row per event, a session's together and in order. `id_key` is made of the event's id; the
-- id itself is in the body.
CREATE TABLE IF NOT EXISTS threadline_event (
    owner     BINARY(16)   NOT NULL,
    session   BINARY(16)   NOT NULL,
    seq       INT UNSIGNED NOT NULL,
    id_key    BINARY(16)   NOT NULL,
    timestamp DOUBLE       NOT NULL,
    body      LONGBLOB     NOT NULL,
    PRIMARY KEY (owner, session, seq),
    UNIQUE KEY by_id (owner, session, id_key)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4;

-- One row per key. `session` is empty for a user's state, and for an app's, whose owner key is
-- made of the app alone.
CREATE TABLE IF NOT EXISTS threadline_state (
    owner   BINARY(16)      NOT NULL,
    session VARBINARY(16)   NOT NULL,
    name    VARBINARY(1024) NOT NULL,
    value   LONGBLOB        NOT NULL,
    PRIMARY KEY (owner, session, name)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4;

-- For people who query by hand.
CREATE OR REPLACE VIEW threadline_sessions AS
SELECT CONVERT(app USING utf8mb4) AS app_name, CONVERT(user USING utf8mb4) AS user_id,
       CONVERT(id USING utf8mb4) AS session_id,
       CONVERT(display_name USING utf8mb4) AS display_name,
       CONVERT(labels USING utf8mb4) AS labels, revision,
       FROM_UNIXTIME(created) AS created_at, FROM_UNIXTIME(updated) AS updated_at,
       FROM_UNIXTIME(expires) AS expires_at
  FROM threadline_session;

CREATE OR REPLACE VIEW threadline_events AS
SELECT CONVERT(s.app USING utf8mb4) AS app_name, CONVERT(s.user USING utf8mb4) AS user_id,
       CONVERT(s.id USING utf8mb4) AS session_id, e.seq,
       FROM_UNIXTIME(e.timestamp) AS happened_at, CONVERT(e.body USING utf8mb4) AS event
  FROM threadline_event AS e
  JOIN threadline_session AS s ON s.owner = e.owner AND s.session = e.session;

CREATE OR REPLACE VIEW threadline_session_state AS
SELECT CONVERT(s.app USING utf8mb4) AS app_name, CONVERT(s.user USING utf8mb4) AS user_id,
       CONVERT(s.id USING utf8mb4) AS session_id, CONVERT(t.name USING utf8mb4) AS `key`,
       CONVERT(t.value USING utf8mb4) AS value
  FROM threadline_state AS t
  JOIN threadline_session AS s ON s.owner = t.owner AND s.session = t.session;
