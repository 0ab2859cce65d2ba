-- The books: the entries, and what they are checked against. Used by books.py.

-- name: live_pipeline_accounts
-- Number of live pipelines by account. Rows without a player that a bigint can hold are in no account.
SELECT 'pipeline', round(player_id::numeric)::bigint, status::text, count(*) FROM {pipelines}
WHERE status IN ('PLANNING', 'EXECUTING') AND player_id::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
GROUP BY 2, 3

-- name: live_task_accounts
-- The same of the live tasks.
SELECT 'task', round(player_id::numeric)::bigint, status::text, count(*) FROM {tasks}
WHERE status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')
  AND player_id::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
GROUP BY 2, 3

-- name: factory_accounts
-- The same of all rows of factories, by supply level. It reads the whole table.
SELECT 'factory', round(player_id::numeric)::bigint, CASE WHEN current_supply::text IN (
           'SCARCE', 'LIMITED', 'MODERATE', 'HIGH', 'ABUNDANT') THEN current_supply::text ELSE '' END, count(*)
FROM {factories} WHERE player_id::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
GROUP BY 2, 3

-- name: snapshot_identity
-- The snapshot of this transaction, and the clock as ISO 8601.
SELECT pg_current_snapshot()::text, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')

-- name: entries
-- All entries in order.
SELECT body FROM mfg_notify.entry ORDER BY id

-- name: sums_of_totals
-- The sum of the totals of each metric, and whether one of them has stopped at the end of bigint.
SELECT metric, sum(n)::text, bool_or(n IN (-9223372036854775808, 9223372036854775807)) FROM mfg_notify.total GROUP BY metric

-- name: lost_changes
-- How many changes the triggers have given up.
SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost

-- name: journal_bodies
-- What the journal holds above an id, oldest first: whether this version can read it, and the event.
SELECT version = {version}, body FROM mfg_notify.event WHERE id > {after} ORDER BY id LIMIT {at_most}

-- name: take_entries
-- Take all entries in order.
WITH taken AS (DELETE FROM mfg_notify.entry RETURNING id, body)
SELECT body FROM taken ORDER BY id

-- name: add_entry
-- Store an entry.
INSERT INTO mfg_notify.entry (body) VALUES (%(entry)s)

-- name: lock_lease
-- Keep everyone else from folding: the lease's row lock is the mutex of folds. No row: `holder` (NULL is anyone) does not
-- hold it.
SELECT 1 FROM mfg_notify.lease WHERE holder = %(holder)s::text OR %(holder)s::text IS NULL FOR UPDATE
