-- name: insert_session
-- One round trip: the session if its id is free, its state, and what it sees of the user's and
-- the app's state as it was before. No row of part 0 says that the id is taken.
WITH made AS (
    INSERT INTO {schema}.threadline_session
           (owner, session, app_key, incarnation, updated, created, expires,
            app, "user", id, display_name, labels)
    VALUES ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT DO NOTHING
    RETURNING 1
), kept AS (
    INSERT INTO {schema}.threadline_state AS kept (owner, session, key, value)
    SELECT d.owner, d.session, d.key, d.value
      FROM unnest($12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[])
           AS d (owner, session, key, value)
     WHERE EXISTS (SELECT FROM made)
    ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value
)
SELECT 0 AS part, NULL::bytea AS key, NULL::bytea AS value FROM made
 UNION ALL
SELECT 1, key, value FROM {schema}.threadline_state WHERE owner = $3 AND session = ''
 UNION ALL
SELECT 2, key, value FROM {schema}.threadline_state WHERE owner = $1 AND session = ''

-- name: lock_session
-- Whoever changes a session's events or state holds its row. Expired rows come too: create has
-- to clear them away.
SELECT app, "user", id, incarnation, revision, created, updated, expires, display_name, labels
  FROM {schema}.threadline_session
 WHERE owner = $1 AND session = $2
   FOR UPDATE

-- name: append_next
-- One event that sets no state, as most are. The compare and the writes are one statement, so
-- two writers cannot both pass, and one transaction. Without a row nothing was written; a
-- repeated event id is an error of the index.
WITH head AS (
    UPDATE {schema}.threadline_session
       SET revision = $4 + 1, updated = $5
     WHERE owner = $1 AND session = $2 AND incarnation = $3 AND revision = $4
       AND (expires IS NULL OR expires > $6)
    RETURNING revision
)
INSERT INTO {schema}.threadline_event (owner, session, seq, timestamp, id_key, body)
SELECT $1, $2, revision, $5, $7, $8 FROM head
RETURNING 1

-- name: append_next_with_state
-- The same for several events, or such as set state. The state's keys come in order, so that two
-- transactions that set the same ones do not wait for each other.
WITH head AS (
    UPDATE {schema}.threadline_session
       SET revision = $4 + cardinality($8::bytea[]), updated = $5
     WHERE owner = $1 AND session = $2 AND incarnation = $3 AND revision = $4
       AND (expires IS NULL OR expires > $6)
    RETURNING 1
), log AS (
    INSERT INTO {schema}.threadline_event (owner, session, seq, timestamp, id_key, body)
    SELECT $1, $2, $4 + e.n, e.timestamp, e.id_key, e.body
      FROM head,
           unnest($7::double precision[], $8::bytea[], $9::bytea[])
           WITH ORDINALITY AS e (timestamp, id_key, body, n)
), kept AS (
    INSERT INTO {schema}.threadline_state AS kept (owner, session, key, value)
    SELECT d.owner, d.session, d.key, d.value
      FROM head,
           unnest($10::bytea[], $11::bytea[], $12::bytea[], $13::bytea[])
           AS d (owner, session, key, value)
    ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value
)
SELECT 1 FROM head

-- name: append_rebased
-- The same at whatever revision the session is, which comes back as it is then. A repeated event
-- id is an error of the index here, too.
WITH head AS (
    UPDATE {schema}.threadline_session
       SET revision = revision + cardinality($7::bytea[]), updated = $4
     WHERE owner = $1 AND session = $2 AND incarnation = $3
       AND (expires IS NULL OR expires > $5)
    RETURNING revision
), log AS (
    INSERT INTO {schema}.threadline_event (owner, session, seq, timestamp, id_key, body)
    SELECT $1, $2, head.revision - cardinality($7::bytea[]) + e.n, e.timestamp, e.id_key, e.body
      FROM head,
           unnest($6::double precision[], $7::bytea[], $8::bytea[])
           WITH ORDINALITY AS e (timestamp, id_key, body, n)
), kept AS (
    INSERT INTO {schema}.threadline_state AS kept (owner, session, key, value)
    SELECT d.owner, d.session, d.key, d.value
      FROM head,
           unnest($9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[])
           AS d (owner, session, key, value)
    ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value
)
SELECT revision FROM head

-- name: append_batch
-- Appends to many sessions in one transaction, each of which passes or fails alone; returns the
-- numbers of those that passed. A session that somebody else holds is passed over, not waited
-- for: one that waits must not make the others wait.
WITH free AS (
    SELECT w.n, w.owner, w.session, w.revision, w.updated
      FROM unnest($1::int[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[],
                  $7::double precision[])
           AS w (n, owner, session, incarnation, known, revision, updated)
     CROSS JOIN LATERAL (
           SELECT FROM {schema}.threadline_session AS s
            WHERE s.owner = w.owner AND s.session = w.session
              AND s.incarnation = w.incarnation AND s.revision = w.known
              AND (s.expires IS NULL OR s.expires > $8)
              FOR UPDATE SKIP LOCKED
           ) AS s
), head AS (
    UPDATE {schema}.threadline_session AS s
       SET revision = free.revision, updated = free.updated
      FROM free
     WHERE s.owner = free.owner AND s.session = free.session
    RETURNING free.n, s.owner, s.session
), log AS (
    INSERT INTO {schema}.threadline_event (owner, session, seq, timestamp, id_key, body)
    SELECT head.owner, head.session, e.seq, e.timestamp, e.id_key, e.body
      FROM unnest($9::int[], $10::bigint[], $11::double precision[], $12::bytea[], $13::bytea[])
           AS e (n, seq, timestamp, id_key, body)
      JOIN head ON head.n = e.n
), kept AS (
    INSERT INTO {schema}.threadline_state AS kept (owner, session, key, value)
    SELECT d.owner, d.session, d.key, d.value
      FROM unnest($14::int[], $15::bytea[], $16::bytea[], $17::bytea[], $18::bytea[])
           AS d (n, owner, session, key, value)
      JOIN head ON head.n = d.n
     ORDER BY d.owner, d.session, d.key
    ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value
)
SELECT n FROM head

-- name: append_to_locked
-- The caller holds the session's row and has read it.
WITH head AS (
    UPDATE {schema}.threadline_session SET revision = $3, updated = $4
     WHERE owner = $1 AND session = $2
), log AS (
    INSERT INTO {schema}.threadline_event (owner, session, seq, timestamp, id_key, body)
    SELECT $1, $2, e.seq, e.timestamp, e.id_key, e.body
      FROM unnest($5::bigint[], $6::double precision[], $7::bytea[], $8::bytea[])
           AS e (seq, timestamp, id_key, body)
)
INSERT INTO {schema}.threadline_state AS kept (owner, session, key, value)
SELECT d.owner, d.session, d.key, d.value
  FROM unnest($9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[])
       AS d (owner, session, key, value)
ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value

-- name: select_events_by_id
-- Which of the events are there already.
SELECT id_key, seq, body
  FROM {schema}.threadline_event
 WHERE owner = $1 AND session = $2 AND id_key = ANY ($3::bytea[])

-- name: select_events
-- What a stale handle has missed: a range of the primary key.
SELECT seq, body
  FROM {schema}.threadline_event
 WHERE owner = $1 AND session = $2 AND seq > $3 AND seq <= $4
 ORDER BY seq

-- name: load
-- One statement sees one moment: the session (part 0), the state of app, user and session
-- (1 to 3) and the events in the window (4), which are read from either end ({direction}).
WITH found AS MATERIALIZED (
    SELECT app, "user", id, incarnation, revision, created, updated, expires,
           display_name, labels
      FROM {schema}.threadline_session
     WHERE owner = $1 AND session = $2 AND (expires IS NULL OR expires > $4)
)
SELECT 0 AS part, NULL::bigint AS seq, NULL::bytea AS key, NULL::bytea AS value, found.*
  FROM found
 UNION ALL
SELECT 1, NULL, key, value, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM {schema}.threadline_state
 WHERE owner = $3 AND session = '' AND $5 AND EXISTS (SELECT FROM found)
 UNION ALL
SELECT 2, NULL, key, value, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM {schema}.threadline_state
 WHERE owner = $1 AND session = '' AND $5 AND EXISTS (SELECT FROM found)
 UNION ALL
SELECT 3, NULL, key, value, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM {schema}.threadline_state
 WHERE owner = $1 AND session = $2 AND $5 AND EXISTS (SELECT FROM found)
 UNION ALL
(SELECT 4, seq, NULL, body, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
   FROM {schema}.threadline_event
  WHERE owner = $1 AND session = $2 AND seq > $6 AND seq < $7 AND timestamp >= $8
    AND EXISTS (SELECT FROM found)
  ORDER BY seq {direction}
  LIMIT $9)

-- name: select_heads
-- Where many sessions are; n is the place in the arrays. OFFSET 0 keeps it a look-up by primary
-- key for each, whatever the planner thinks of the number of them.
SELECT asked.n, found.incarnation, found.revision
  FROM unnest($1::bytea[], $2::bytea[]) WITH ORDINALITY AS asked (owner, session, n)
 CROSS JOIN LATERAL (
       SELECT incarnation, revision FROM {schema}.threadline_session AS s
        WHERE s.owner = asked.owner AND s.session = asked.session
          AND (s.expires IS NULL OR s.expires > $3) OFFSET 0) AS found

-- name: tell
-- A transaction that notifies holds a lock of the whole database while it commits, so this is
-- never part of an append; and its commit waits neither for the disk nor for a standby, since
-- what is lost is seen by the next poll.
SELECT pg_notify($1, message), set_config('synchronous_commit', 'off', true)
  FROM unnest($2::text[]) AS message

-- name: select_backend
-- Which server process answers: another one than was connected to, behind a pooler.
SELECT pg_backend_pid()

-- name: select_sessions
-- {scope} is app_key or owner, {time} is updated or created; each pair has its index, of {indexed}
-- (updated_slot or created), which gives the order; the rows of one slot, and ties, are sorted as
-- they come. The first comparison is the one an index can use. State comes in the same statement, and so as of the
-- same moment; OFFSET 0 keeps it a look-up for each session of the page.
WITH page AS MATERIALIZED (
    SELECT owner, session,
           app, "user", id, incarnation, revision, created, updated, expires,
           display_name, labels
      FROM {schema}.threadline_session
     WHERE {scope} = $1
       AND {indexed} {beyond}= {place} AND ({time}, "user", id) {beyond} ($2, $3::bytea, $4::bytea)
       AND (expires IS NULL OR expires > $5)
     ORDER BY {indexed} {direction}, {time} {direction}, "user" {direction}, id {direction}
     LIMIT $6
)
SELECT 0 AS part, NULL::bytea AS key, NULL::bytea AS value, page.* FROM page
 UNION ALL
SELECT 1, key, value, owner, session,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM {schema}.threadline_state
 WHERE owner = $7 AND session = '' AND $8
 UNION ALL
SELECT 2, t.key, t.value, u.owner, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM (SELECT DISTINCT owner FROM page) AS u
 CROSS JOIN LATERAL (
       SELECT key, value FROM {schema}.threadline_state AS s
        WHERE s.owner = u.owner AND s.session = '' OFFSET 0) AS t
 WHERE $8
 UNION ALL
SELECT 3, t.key, t.value, page.owner, page.session,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM page
 CROSS JOIN LATERAL (
       SELECT key, value FROM {schema}.threadline_state AS s
        WHERE s.owner = page.owner AND s.session = page.session OFFSET 0) AS t
 WHERE $8

-- name: select_by_id
-- Whoever knows an id and not whose it is; as a rule there is one.
SELECT app, "user", id, incarnation, revision, created, updated, expires, display_name, labels
  FROM {schema}.threadline_session
 WHERE app_key = $1 AND session = $2 AND id = $3 AND (expires IS NULL OR expires > $4)

-- name: select_apps
-- From one app to the next through the index by app, one look-up for each.
WITH RECURSIVE step AS (
    (SELECT app_key, app FROM {schema}.threadline_session ORDER BY app_key LIMIT 1)
     UNION ALL
    SELECT next.app_key, next.app
      FROM step
     CROSS JOIN LATERAL (
           SELECT app_key, app FROM {schema}.threadline_session AS s
            WHERE s.app_key > step.app_key ORDER BY s.app_key LIMIT 1) AS next
)
SELECT app FROM step

-- name: describe_session
-- What is not set stays. No event, so neither the revision nor the time changes.
UPDATE {schema}.threadline_session
   SET display_name = CASE WHEN $4 THEN $5::bytea ELSE display_name END,
       labels = CASE WHEN $6 THEN $7::bytea ELSE labels END,
       expires = CASE WHEN $8 THEN $9::double precision ELSE expires END
 WHERE owner = $1 AND session = $2 AND (expires IS NULL OR expires > $3)
RETURNING 1

-- name: select_state
-- One scope's keys: the primary key's first two columns.
SELECT key, value FROM {schema}.threadline_state WHERE owner = $1 AND session = $2

-- name: lock_state
-- What a patch computes with. A key that is not there is put there without a value, so that
-- whoever sets it has to wait; the keys come in order, as in every statement that sets some.
INSERT INTO {schema}.threadline_state AS kept (owner, session, key)
SELECT $1, $2, k.key FROM unnest($3::bytea[]) AS k (key)
ON CONFLICT (owner, session, key) DO UPDATE SET value = kept.value
RETURNING key, value

-- name: write_state
-- Returns what select_outcome needs to be asked later whether this was committed.
WITH gone AS (
    DELETE FROM {schema}.threadline_state
     WHERE owner = $1 AND session = $2 AND key = ANY ($3::bytea[])
), kept AS (
    INSERT INTO {schema}.threadline_state AS kept (owner, session, key, value)
    SELECT $1, $2, d.key, d.value FROM unnest($4::bytea[], $5::bytea[]) AS d (key, value)
    ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value
)
SELECT txid_current(), pg_postmaster_start_time(), now()

-- name: select_outcome
-- 'committed', 'aborted' or 'in progress'; NULL if nobody knows. A server that crashed since (its
-- statistics begin anew then), or that took over, gives the numbers of the transactions that were
-- lost to later ones: there "committed" may be another's. A standby may only not know it yet.
SELECT CASE
       WHEN pg_is_in_recovery() THEN NULL
       WHEN pg_postmaster_start_time() = $2 AND pg_stat_get_bgwriter_stat_reset_time() < $3
       THEN txid_status($1)
       WHEN $1 >= txid_snapshot_xmax(txid_current_snapshot()) THEN 'aborted'
       WHEN txid_status($1) <> 'committed' THEN 'aborted'
       END

-- name: confirm
-- Changes nothing, but has a commit that waits for what commits wait for, such as a standby: and so
-- for everything that was committed before it.
SELECT pg_logical_emit_message(true, 'threadline', '')

-- name: delete_session
-- The caller holds the session's row, so no event comes after this has looked. The state of
-- user and app lives on.
WITH log AS (
    DELETE FROM {schema}.threadline_event WHERE owner = $1 AND session = $2
), kept AS (
    DELETE FROM {schema}.threadline_state WHERE owner = $1 AND session = $2
)
DELETE FROM {schema}.threadline_session WHERE owner = $1 AND session = $2

-- name: lock_sessions_of_user
-- No event comes to what is held. In order, so that two that erase do not wait for each other.
SELECT session FROM {schema}.threadline_session WHERE owner = $1 ORDER BY session FOR UPDATE

-- name: lock_state_of_user
-- Who makes a session or appends to one may set these too, and waits, or is waited for.
SELECT key FROM {schema}.threadline_state
 WHERE owner = $1 AND session = '' ORDER BY key FOR UPDATE

-- name: delete_user
-- What the caller holds, and nothing that came since: the sessions with their events and their
-- state, and the keys of the user's own.
WITH gone AS (
    DELETE FROM {schema}.threadline_session
     WHERE owner = $1 AND session = ANY ($2::bytea[]) RETURNING 1
), log AS (
    DELETE FROM {schema}.threadline_event
     WHERE owner = $1 AND session = ANY ($2::bytea[]) RETURNING 1
), kept AS (
    DELETE FROM {schema}.threadline_state
     WHERE owner = $1 AND session = ANY ($2::bytea[]) RETURNING 1
), shared AS (
    DELETE FROM {schema}.threadline_state
     WHERE owner = $1 AND session = '' AND key = ANY ($3::bytea[]) RETURNING 1
)
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM log),
       (SELECT count(*) FROM kept) + (SELECT count(*) FROM shared)

-- name: select_ledger
-- Whether the ledger is there; the first migration makes it.
SELECT to_regclass($1) IS NOT NULL

-- name: select_version
-- The newest migration that has run.
SELECT max(version) FROM {schema}.threadline_migration

-- name: lock_migrations
-- One runner at a time; the end of the transaction lets go.
SELECT pg_advisory_xact_lock(hashtextextended($1, 0))

-- name: select_schema
-- CREATE SCHEMA IF NOT EXISTS asks for the right to create even where nothing is to be created.
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)

-- name: create_schema
-- For a schema of its own; `public` is always there.
CREATE SCHEMA {schema}
