-- The fold: it moves events from the journal into the totals, in one transaction. Used by journal.py.

-- name: begin_fold
-- Lock the lease (the mutex of folds) and advance the generation (the fencing token). No row: this exporter is not the
-- leader. Returns the generation, this transaction, the oldest open transaction, and the last id of the journal.
UPDATE mfg_notify.lease SET generation = generation + 1, renewed_at = clock_timestamp()
WHERE holder = %(holder)s
RETURNING generation, pg_current_xact_id()::text::bigint, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
          (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM mfg_notify.event_id_seq)

-- name: disable_notify
-- Disable NOTIFY: the triggers only write the journal from now on. Sent within a fold, so that only the leader can do
-- it. A sequence is not transactional: it takes effect at once in every transaction, even if this one rolls back.
SELECT setval('mfg_notify.notify_disabled', 1) FROM mfg_notify.lease WHERE holder = %(holder)s

-- name: enable_notify
-- Enable NOTIFY again.
SELECT setval('mfg_notify.notify_disabled', 0)

-- name: take_events
-- Take the oldest events with ids above `after` out of the journal.
SELECT id, xid, at, body FROM mfg_notify.take_events(%(version)s::integer, %(after)s::bigint, %(chunk)s::integer)

-- name: add_dead_letters
-- Set aside journal rows that are not events. An id may come again after the database was restored.
INSERT INTO mfg_notify.dead_letter (id, xid, at, body, reason)
SELECT id, xid::text::xid8, to_timestamp(at / 1000000.0), left(body, 10000), reason
FROM unnest(%(ids)s::bigint[], %(xids)s::bigint[], %(at)s::bigint[], %(bodies)s::text[], %(reasons)s::text[])
     AS d (id, xid, at, body, reason)
ON CONFLICT (id) DO NOTHING

-- name: forget_dead_letters
-- Delete all but the newest of them.
DELETE FROM mfg_notify.dead_letter
WHERE id <= (SELECT id FROM mfg_notify.dead_letter ORDER BY id DESC OFFSET %(kept)s LIMIT 1)

-- name: end_fold
-- Send the barrier in the fold's transaction: when it arrives, every notification of an event that was folded up to now
-- has arrived before it. Also store the id up to which everything is folded: the triggers read it to bound the backlog.
-- It never goes back. It is not transactional and need not be.
SELECT pg_notify(%(channel)s, %(barrier)s),
       CASE WHEN %(id)s > last_value THEN setval('mfg_notify.folded', %(id)s) END
FROM mfg_notify.folded

-- name: count_abandoned
-- Count the buffers that were not written at their COMMIT as lost.
SELECT mfg_notify.count_abandoned()
