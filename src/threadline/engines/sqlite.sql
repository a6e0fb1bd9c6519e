-- name: insert_session
-- The first writer of an id wins; the row's number is the session's incarnation.
INSERT INTO threadline_session
       (app_key, owner, session, updated, created, expires, app, user, id, display_name, labels)
VALUES (:app_key, :owner, :session, :created, :created, :expires, :app, :user, :id,
        :display_name, :labels)
RETURNING app, user, id, no, revision, created, updated, expires, display_name, labels

-- name: select_session
-- Expired rows come too: create has to clear them away.
SELECT app, user, id, no, revision, created, updated, expires, display_name, labels
  FROM threadline_session
 WHERE owner = ? AND session = ?

-- name: select_head
-- Where a session is: a look-up by key.
SELECT no, revision
  FROM threadline_session
 WHERE owner = ? AND session = ? AND (expires IS NULL OR expires > ?)

-- name: select_event_by_id
-- Whether this id is a repeated one.
SELECT place & 4294967295, body FROM threadline_event WHERE place >> 32 = ? AND id_key = ?

-- name: insert_event
-- `place` is no * 2^32 + seq. Nothing is inserted if the place or the id is taken.
INSERT INTO threadline_event (place, id_key, timestamp, body) VALUES (?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- name: bump_known_session
-- The compare and the write are one statement, so two writers cannot both pass.
UPDATE threadline_session SET revision = ?, updated = ?
 WHERE no = ? AND revision = ? AND owner = ? AND session = ?
   AND (expires IS NULL OR expires > ?)

-- name: bump_session
-- The caller holds the write lock and has read the row.
UPDATE threadline_session SET revision = ?, updated = ? WHERE no = ?

-- name: upsert_state
-- A key is replaced whole; keys that a delta does not name are not touched.
INSERT INTO threadline_state (owner, session, key, value) VALUES (?, ?, ?, ?)
ON CONFLICT (owner, session, key) DO UPDATE SET value = excluded.value

-- name: select_state
-- One scope's keys: the primary key's first two columns.
SELECT key, value FROM threadline_state WHERE owner = ? AND session = ?

-- name: select_state_key
-- What a patch computes with.
SELECT value FROM threadline_state WHERE owner = ? AND session = ? AND key = ?

-- name: delete_state_key
-- Only a patch removes keys; no delta does.
DELETE FROM threadline_state WHERE owner = ? AND session = ? AND key = ?

-- name: select_events
-- A range of the primary key, read from either end; no limit is -1.
SELECT place & 4294967295, body
  FROM threadline_event
 WHERE place > :after AND place < :before AND timestamp >= :since
 ORDER BY place
 LIMIT :limit

-- name: select_newest_events
-- The same from the other end.
SELECT place & 4294967295, body
  FROM threadline_event
 WHERE place > :after AND place < :before AND timestamp >= :since
 ORDER BY place DESC
 LIMIT :limit

-- name: select_sessions
-- {scope} is app_key or owner, {time} is updated or created; each pair has its index, which
-- gives the order by time, and ties are sorted by (user, id) as they come. The first
-- comparison is the one an index can use.
SELECT app, user, id, no, revision, created, updated, expires, display_name, labels,
       owner, session
  FROM threadline_session
 WHERE {scope} = :scope
   AND {time} {beyond}= :time AND ({time}, user, id) {beyond} (:time, :user, :id)
   AND (expires IS NULL OR expires > :now)
 ORDER BY {time} {direction}, user {direction}, id {direction}
 LIMIT :limit

-- name: select_by_id
-- Whoever knows an id and not whose it is; as a rule there is one.
SELECT app, user, id, no, revision, created, updated, expires, display_name, labels
  FROM threadline_session
 WHERE app_key = ? AND session = ? AND id = ? AND (expires IS NULL OR expires > ?)

-- name: select_next_app
-- One step through the index by app, from one app to the next.
SELECT app_key, app FROM threadline_session WHERE app_key > ? ORDER BY app_key LIMIT 1

-- name: describe_session
-- What is not set stays. No event, so neither the revision nor the time changes.
UPDATE threadline_session
   SET display_name = iif(:sets_display_name, :display_name, display_name),
       labels = iif(:sets_labels, :labels, labels),
       expires = iif(:sets_expires, :expires, expires)
 WHERE owner = :owner AND session = :session AND (expires IS NULL OR expires > :now)

-- name: delete_events
-- All of a session: one range of the primary key.
DELETE FROM threadline_event WHERE place > ? AND place < ?

-- name: delete_state
-- The session's own scope; the user's and the app's live on.
DELETE FROM threadline_state WHERE owner = :owner AND session = :session

-- name: delete_session
-- Last of the three, in one transaction.
DELETE FROM threadline_session WHERE no = :no

-- name: delete_sessions_of_user
-- Their numbers lead to their events.
DELETE FROM threadline_session WHERE owner = :owner RETURNING no

-- name: delete_state_of_user
-- The user's own scope and those of all the user's sessions; the app's has another owner.
DELETE FROM threadline_state WHERE owner = :owner

-- name: select_tables
-- Which tables the file has: ours, somebody else's, or none.
SELECT name FROM sqlite_master WHERE type = 'table'

-- name: select_version
-- The ledger is made by the first migration.
SELECT max(version) FROM threadline_migration
