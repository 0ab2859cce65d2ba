-- The settled totals, the completions of the last hour and the last changes. Used by journal.py.

-- name: add_totals
-- Add increments to the totals, and store the entry of the fold (NULL: none). Addition stays exact even if two exporters
-- fold. A sum beyond bigint stops at its limit.
WITH entry AS (INSERT INTO mfg_notify.entry (body) SELECT %(entry)s::text WHERE %(entry)s::text IS NOT NULL)
INSERT INTO mfg_notify.total AS t (metric, labels, n)
SELECT * FROM unnest(%(metrics)s::text[], %(labels)s::jsonb[], %(n)s::bigint[])
ON CONFLICT (metric, labels) DO UPDATE
SET n = least(greatest(t.n::numeric + excluded.n, -9223372036854775808), 9223372036854775807)::bigint

-- name: add_recent
-- Store the completed pipelines of the last hour, for the profit rate.
INSERT INTO mfg_notify.recent (pipeline_id, player_id, completed_at, profit)
SELECT id, player_id, to_timestamp(completed_at / 1000000.0), profit
FROM unnest(%(ids)s::text[], %(players)s::bigint[], %(completed)s::bigint[], %(profits)s::bigint[])
     AS r (id, player_id, completed_at, profit)
WHERE to_timestamp(completed_at / 1000000.0) > now() - interval '1 hour'
ON CONFLICT (pipeline_id) DO UPDATE
SET player_id = excluded.player_id, completed_at = excluded.completed_at, profit = excluded.profit

-- name: forget_recent
-- Delete completions that were undone or are older than an hour.
DELETE FROM mfg_notify.recent WHERE pipeline_id = ANY (%(ids)s::text[]) OR completed_at < now() - interval '1 hour'

-- name: add_latest
-- Store when a ship or a player was last seen.
INSERT INTO mfg_notify.latest AS l (kind, player_id, key, at)
SELECT kind, player_id, key, to_timestamp(at / 1000000.0)
FROM unnest(%(kinds)s::text[], %(players)s::bigint[], %(keys)s::text[], %(at)s::bigint[])
     AS s (kind, player_id, key, at)
ON CONFLICT (kind, player_id, key) DO UPDATE SET at = excluded.at WHERE excluded.at > l.at

-- name: forget_latest
-- Delete ships that were last seen more than a day ago. Players stay, so that an inactive one is known as such.
DELETE FROM mfg_notify.latest WHERE kind = 'ship' AND at < now() - interval '24 hours'

-- name: lock_totals
-- Keep these tables from being rewritten, before there is a snapshot: an older one shows a rewritten table as empty.
LOCK TABLE mfg_notify.total, mfg_notify.recent, mfg_notify.latest IN ACCESS SHARE MODE

-- name: totals
-- All totals, in the order in which their label sets were first seen.
SELECT metric, labels::text, n FROM mfg_notify.total ORDER BY arrival

-- name: recent
-- The completed pipelines of the last hour.
SELECT pipeline_id, player_id, (date_part('epoch', completed_at) * 1000000)::bigint, profit
FROM mfg_notify.recent WHERE completed_at > now() - interval '1 hour'

-- name: latest
-- When each ship and each player was last seen.
SELECT kind, player_id, key, (date_part('epoch', at) * 1000000)::bigint FROM mfg_notify.latest

-- name: generation
-- The generation of the last fold, which the totals belong to. No row: the lease has lost its row.
SELECT generation FROM mfg_notify.lease

-- name: heard
-- Those of some events that are in the journal.
SELECT id FROM mfg_notify.event WHERE id = ANY (%(ids)s::bigint[])

-- name: unheard
-- The newest of the others. Without a bound, this would visit every row that was folded while somebody holds a snapshot.
SELECT id, xid::text::bigint, (date_part('epoch', at) * 1000000)::bigint, body FROM mfg_notify.event
WHERE version = %(version)s AND id > (SELECT last_value FROM mfg_notify.event_id_seq) - %(newest)s
      AND id <> ALL (%(ids)s::bigint[])
ORDER BY id

-- name: visibility
-- Which transactions the snapshot of this transaction shows.
SELECT pg_snapshot_xmax(s)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) x)
FROM pg_current_snapshot() s
