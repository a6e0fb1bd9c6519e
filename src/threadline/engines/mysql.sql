-- name: prepare_connection
-- The escapes of our literals and the refusal of a NULL need this mode. Under READ COMMITTED no
-- gap is locked, so writers of neighbouring rows do not wait for each other.
SET NAMES utf8mb4;
SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1,
    innodb_lock_wait_timeout = %(lock_timeout_s)s;
SET SESSION TRANSACTION ISOLATION LEVEL {isolation};
SHOW GLOBAL VARIABLES WHERE Variable_name IN ('max_allowed_packet', 'read_only', 'wsrep_on')

-- name: catch_up
-- Wait until a Galera node has applied what the cluster had committed by now: who comes from
-- another node finds here what was acknowledged there.
SET SESSION wsrep_sync_wait = 1;
SELECT 1;
SET SESSION wsrep_sync_wait = DEFAULT

-- name: begin
-- A write; its first read is one that locks, so whatever it reads later is as new.
START TRANSACTION

-- name: begin_read
-- All that a read returns is of one moment; only REPEATABLE READ has such a snapshot.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY

-- name: commit
-- Sent with the last statements of a transaction, in one packet.
COMMIT

-- name: rollback
-- Sent first where an attempt in the same connection may have left a transaction open.
ROLLBACK

-- name: insert_session
-- The first writer of an id wins: the second gets a duplicate key.
INSERT INTO threadline_session
       (owner, session, incarnation, updated, created, expires, app_key, app, user, id,
        display_name, labels)
VALUES (%(owner)s, %(session)s, %(incarnation)s, %(created)s, %(created)s, %(expires)s,
        %(app_key)s, %(app)s, %(user)s, %(id)s, %(display_name)s, %(labels)s)

-- name: select_session
-- Expired rows come too: create has to clear them away.
SELECT app, user, id, incarnation, revision, created, updated, expires, display_name, labels
  FROM threadline_session
 WHERE owner = %(owner)s AND session = %(session)s

-- name: select_heads
-- Where some hundred sessions are: a look-up by primary key for each.
SELECT owner, session, incarnation, revision
  FROM threadline_session FORCE INDEX (PRIMARY)
 WHERE (owner, session) IN (%(keys)s) AND (expires IS NULL OR expires > %(now)s)

-- name: lock_session
-- The same, and nobody else writes the session until the transaction ends.
SELECT app, user, id, incarnation, revision, created, updated, expires, display_name, labels
  FROM threadline_session
 WHERE owner = %(owner)s AND session = %(session)s
   FOR UPDATE

-- name: bump_known_session
-- The compare and the write are one statement, so two writers cannot both pass.
UPDATE threadline_session SET revision = %(head)s, updated = %(updated)s
 WHERE owner = %(owner)s AND session = %(session)s AND incarnation = %(incarnation)s
   AND revision = %(revision)s AND (expires IS NULL OR expires > %(now)s)

-- name: insert_next_event
-- Right behind bump_known_session: where that found no row, the owner is NULL, which is an
-- error, and the server runs nothing of the packet that comes after an error.
INSERT INTO threadline_event (owner, session, seq, id_key, timestamp, body)
VALUES (IF(ROW_COUNT() = 1, %(owner)s, NULL), %(session)s, %(seq)s, %(id_key)s, %(timestamp)s,
        %(body)s)

-- name: insert_events
-- A place or an id that is taken is a duplicate key.
INSERT INTO threadline_event (owner, session, seq, id_key, timestamp, body) VALUES %(rows)s

-- name: bump_session
-- The caller has locked and read the row.
UPDATE threadline_session SET revision = %(head)s, updated = %(updated)s
 WHERE owner = %(owner)s AND session = %(session)s

-- name: select_events_by_id
-- Which ids are repeated ones.
SELECT id_key, seq, body
  FROM threadline_event
 WHERE owner = %(owner)s AND session = %(session)s AND id_key IN (%(id_keys)s)

-- name: upsert_state
-- A key is replaced whole; keys that a delta does not name are not touched. MySQL 8.0.20 wants
-- an alias instead of VALUES(), which MariaDB does not know; both take this.
INSERT INTO threadline_state (owner, session, name, value) VALUES %(rows)s
    ON DUPLICATE KEY UPDATE value = VALUES(value)

-- name: lock_state_key
-- Lock a key whether it is there or not: a missing row cannot be locked, so it is put there.
-- One row is affected if it was missing, none if it was there.
INSERT INTO threadline_state (owner, session, name, value)
VALUES (%(owner)s, %(session)s, %(name)s, '')
    ON DUPLICATE KEY UPDATE value = value

-- name: select_state
-- One scope's keys: the primary key's first two columns.
SELECT name, value FROM threadline_state WHERE owner = %(owner)s AND session = %(session)s

-- name: select_merged_state
-- What a session sees; the number says whose a key is, in the order of StateRows.
SELECT 0, name, value FROM threadline_state WHERE owner = %(app_key)s AND session = ''
 UNION ALL
SELECT 1, name, value FROM threadline_state WHERE owner = %(owner)s AND session = ''
 UNION ALL
SELECT 2, name, value FROM threadline_state WHERE owner = %(owner)s AND session = %(session)s

-- name: select_state_keys
-- What a patch computes with.
SELECT name, value
  FROM threadline_state
 WHERE owner = %(owner)s AND session = %(session)s AND name IN (%(names)s)

-- name: delete_state_keys
-- Only a patch removes keys; no delta does.
DELETE FROM threadline_state
 WHERE owner = %(owner)s AND session = %(session)s AND name IN (%(names)s)

-- name: select_events
-- A range of the primary key, read from either end.
SELECT seq, body
  FROM threadline_event
 WHERE owner = %(owner)s AND session = %(session)s
   AND seq > %(after)s AND seq < %(before)s AND timestamp >= %(since)s
 ORDER BY seq
 LIMIT %(limit)s

-- name: select_newest_events
-- The same from the other end.
SELECT seq, body
  FROM threadline_event
 WHERE owner = %(owner)s AND session = %(session)s
   AND seq > %(after)s AND seq < %(before)s AND timestamp >= %(since)s
 ORDER BY seq DESC
 LIMIT %(limit)s

-- name: session_columns
-- What a listing returns of a session.
app, user, id, incarnation, revision, created, updated, expires, display_name, labels,
       owner, session

-- name: select_sessions_of_app
-- {columns} are session_columns, or the keys alone for the {page} of statements below; {time} is
-- updated or created. Each has its index, in which a page lies in order, and the first
-- comparison is the one it can use.
SELECT {columns}
  FROM threadline_session FORCE INDEX (of_app_by_{time})
 WHERE app_key = %(app_key)s
   AND {time} {beyond}= %(time)s
   AND ({time}, user, id) {beyond} (%(time)s, %(user)s, %(id)s)
   AND (expires IS NULL OR expires > %(now)s)
 ORDER BY {time} {direction}, user {direction}, id {direction}
 LIMIT %(limit)s

-- name: select_sessions_of_user
-- An owner is one user, so (time, id) is their order; a position may name another user.
SELECT {columns}
  FROM threadline_session FORCE INDEX (of_user_by_{time})
 WHERE owner = %(owner)s
   AND {time} {beyond}= %(time)s
   AND ({time}, user, id) {beyond} (%(time)s, %(user)s, %(id)s)
   AND (expires IS NULL OR expires > %(now)s)
 ORDER BY {time} {direction}, id {direction}
 LIMIT %(limit)s

-- name: select_by_id
-- Whoever knows an id and not whose it is; as a rule there is one.
SELECT app, user, id, incarnation, revision, created, updated, expires, display_name, labels
  FROM threadline_session
 WHERE app_key = %(app_key)s AND session = %(session)s AND id = %(id)s
   AND (expires IS NULL OR expires > %(now)s)

-- name: select_next_app
-- One step through the index by app, from one app to the next.
SELECT app_key, app FROM threadline_session WHERE app_key > %(after)s ORDER BY app_key LIMIT 1

-- name: describe_session
-- What is not set stays. No event, so neither the revision nor the time changes.
UPDATE threadline_session
   SET display_name = IF(%(sets_display_name)s, %(display_name)s, display_name),
       labels = IF(%(sets_labels)s, %(labels)s, labels),
       expires = IF(%(sets_expires)s, %(expires)s, expires)
 WHERE owner = %(owner)s AND session = %(session)s

-- name: select_state_of_sessions
-- The own state of each session of a page, which {page} reads again in the same snapshot. The
-- order and the index are given, since nobody knows beforehand how few rows a page has.
SELECT t.owner, t.session, t.name, t.value
  FROM ({page}) AS p STRAIGHT_JOIN threadline_state AS t FORCE INDEX (PRIMARY)
    ON t.owner = p.owner AND t.session = p.session

-- name: select_state_of_users
-- The state of each user of a page, once.
SELECT t.owner, t.session, t.name, t.value
  FROM (SELECT DISTINCT q.owner FROM ({page}) AS q) AS p
       STRAIGHT_JOIN threadline_state AS t FORCE INDEX (PRIMARY)
    ON t.owner = p.owner AND t.session = ''

-- name: delete_events
-- All of a session: one range of the primary key.
DELETE FROM threadline_event WHERE owner = %(owner)s AND session = %(session)s

-- name: delete_state
-- The session's own scope; the user's and the app's live on.
DELETE FROM threadline_state WHERE owner = %(owner)s AND session = %(session)s

-- name: delete_session
-- Last of the three, in one transaction.
DELETE FROM threadline_session WHERE owner = %(owner)s AND session = %(session)s

-- name: lock_sessions_of_user
-- No event comes to what is locked. In order, so that two that erase do not wait for each other.
SELECT session FROM threadline_session FORCE INDEX (PRIMARY)
 WHERE owner = %(owner)s ORDER BY session FOR UPDATE

-- name: lock_state_of_user
-- Who makes a session or appends to one may set these too, and waits, or is waited for.
SELECT name FROM threadline_state
 WHERE owner = %(owner)s AND session = '' ORDER BY name FOR UPDATE

-- name: lock_migrations
-- One runner at a time; the lock ends with the connection, so none is left behind.
SELECT GET_LOCK(%(lock)s, %(lock_timeout_s)s)

-- name: unlock_migrations
-- The next runner finds nothing to do.
SELECT RELEASE_LOCK(%(lock)s)

-- name: select_version
-- The ledger is made by the first migration.
SELECT MAX(version) FROM threadline_migration
