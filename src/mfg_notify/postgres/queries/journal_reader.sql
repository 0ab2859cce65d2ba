-- Reading the journal without folding it, for `mfg-notify tail`. Used by journal_reader.py.

-- name: journal_position
-- The highest id that any event has, and whether NOTIFY is disabled. Ask this before journal_marker, whose own
-- transaction is then younger than every transaction that was given such an id.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END, (SELECT last_value = 1 FROM mfg_notify.notify_disabled)
FROM mfg_notify.event_id_seq

-- name: journal_marker
-- The oldest open transaction, this transaction, and a ping to this session. (A snapshot's xmax would not do instead of
-- this transaction: younger ones may be open.) When the ping arrives, everything that transactions older than the
-- oldest open one have notified has arrived before it.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_current_xact_id()::text::bigint,
       pg_notify(%(channel)s, %(ping)s)

-- name: journal_events
-- Events in the journal, oldest first.
SELECT id, xid::text::bigint, (date_part('epoch', at) * 1000000)::bigint, body
FROM mfg_notify.event WHERE id > %(after)s ORDER BY id LIMIT %(chunk)s
