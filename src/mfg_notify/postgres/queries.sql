-- Every statement that the exporter sends, by name. {pipelines}, {tasks}, {factories} and {ships} stand for the
-- game's tables, {…} for identifiers in general. Nothing here may cost more as the game's history grows.

-- name: configure_session
-- Own settings, whatever the role or database has for defaults. No JIT: these are small queries that run often.
SELECT set_config(name, value, false)
FROM (VALUES ('search_path', 'pg_catalog, pg_temp'), ('timezone', 'UTC'), ('jit', 'off'),
             ('default_transaction_isolation', 'read committed'), ('default_transaction_read_only', 'off'),
             ('synchronous_commit', 'on'), ('statement_timeout', '30s'), ('lock_timeout', '10s'),
             ('idle_in_transaction_session_timeout', '5s'), ('tcp_user_timeout', '10s'),
             -- An error if policies would hide rows of the game.
             ('row_security', 'off')) AS s (name, value)

-- name: schema_exists
SELECT to_regclass('mfg_notify.settings') IS NOT NULL

-- name: settings
-- With the backend that a notification of mine will name as its sender: a pooler tells the client another number. The
-- triggers do not notify if transactions can be prepared: PREPARE TRANSACTION refuses one that has notified.
SELECT version, channel, notify AND current_setting('max_prepared_transactions') = '0', pg_backend_pid()
FROM mfg_notify.settings

-- name: missing_objects
-- What a migration makes and is not there; its triggers are counted by themselves.
SELECT name FROM unnest(%(relations)s::text[]) name WHERE to_regclass('mfg_notify.' || name) IS NULL
UNION ALL
SELECT name FROM unnest(%(functions)s::text[]) name
WHERE NOT EXISTS (SELECT FROM pg_proc WHERE proname = name AND pronamespace = to_regnamespace('mfg_notify'))

-- name: missing_columns
SELECT * FROM mfg_notify.missing_columns()

-- name: tick
-- Once a second: a ping to myself through NOTIFY, proof of life for the lease, the database's clock, and what the
-- triggers are told.
WITH heartbeat AS (
    UPDATE mfg_notify.lease SET renewed_at = clock_timestamp(), backend_pid = pg_backend_pid()
    WHERE holder = %(holder)s RETURNING 1)
SELECT pg_notify(%(channel)s, %(ping)s), EXISTS (SELECT FROM heartbeat),
       (date_part('epoch', clock_timestamp()) * 1000000)::bigint, (SELECT last_value = 1 FROM mfg_notify.notify_disabled)

-- name: acquire_lease
-- Free, mine, silent for 5 s, or its backend is gone (a stopped process keeps its backend, so both are needed). The
-- clock is the database's; when that was set back, a heartbeat from the future is no sign of life either.
UPDATE mfg_notify.lease SET holder = %(holder)s, backend_pid = pg_backend_pid(), renewed_at = clock_timestamp()
WHERE only_row IN (
    SELECT l.only_row FROM mfg_notify.lease l
    WHERE holder IS NULL OR holder = %(holder)s
       OR renewed_at NOT BETWEEN clock_timestamp() - interval '5 seconds' AND clock_timestamp() + interval '5 seconds'
       OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.backend_pid)
    FOR UPDATE SKIP LOCKED)
RETURNING generation

-- name: dislodge
-- The holder is silent and keeps the row locked: its process was stopped in the middle of a fold, which the next fold
-- does again. The server's own time-out would end it, but not while its clock is set back. Nobody else locks this table.
SELECT pg_terminate_backend(a.pid)
FROM mfg_notify.lease l JOIN pg_stat_activity a ON a.pid = l.backend_pid
WHERE l.renewed_at NOT BETWEEN clock_timestamp() - interval '5 seconds' AND clock_timestamp() + interval '5 seconds'
  AND a.pid <> pg_backend_pid() AND pg_has_role(a.usesysid, 'MEMBER')
  AND EXISTS (SELECT FROM pg_locks k WHERE k.pid = a.pid AND k.granted AND k.mode = 'RowExclusiveLock'
                                       AND k.relation = 'mfg_notify.lease'::regclass)

-- name: release_lease
UPDATE mfg_notify.lease SET holder = NULL WHERE holder = %(holder)s

-- name: begin_fold
-- The row lock is the mutex of folds, the generation the fencing token. No row: I am not the leader. Then this
-- transaction, the oldest one that is open, the last id of the journal, and up to which id it is known to be drained.
UPDATE mfg_notify.lease SET generation = generation + 1, renewed_at = clock_timestamp()
WHERE holder = %(holder)s
RETURNING generation, pg_current_xact_id()::text::bigint, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
          (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM mfg_notify.event_id_seq),
          (SELECT last_value FROM mfg_notify.folded)

-- name: disable_notify
-- Within a fold, so that only the holder of the lease can do it: the triggers stop notifying. It takes effect at
-- once, in every transaction, and whatever becomes of this one.
SELECT setval('mfg_notify.notify_disabled', 1) FROM mfg_notify.lease WHERE holder = %(holder)s

-- name: enable_notify
-- The triggers are to notify.
SELECT setval('mfg_notify.notify_disabled', 0)

-- name: take_events
-- Journal rows are never updated, so a ctid names the same row for as long as the fold's lock is held. Up to the id
-- `after` there are only dead rows, which need not be passed over once more.
DELETE FROM mfg_notify.event
WHERE ctid = ANY (ARRAY(SELECT ctid FROM mfg_notify.event WHERE version = %(version)s AND id > %(after)s
                        ORDER BY id LIMIT %(chunk)s))
RETURNING id, xid::text::bigint, (date_part('epoch', at) * 1000000)::bigint, body

-- name: add_totals
-- Additive, so it stays exact even if two exporters fold. A sum that no bigint can hold stops at the end of bigint.
INSERT INTO mfg_notify.total AS t (metric, labels, n)
SELECT * FROM unnest(%(metrics)s::text[], %(labels)s::jsonb[], %(n)s::bigint[])
ON CONFLICT (metric, labels) DO UPDATE
SET n = least(greatest(t.n::numeric + excluded.n, -9223372036854775808), 9223372036854775807)::bigint

-- name: add_recent
INSERT INTO mfg_notify.recent (pipeline_id, player_id, completed_at, profit)
SELECT id, player_id, to_timestamp(completed_at / 1000000.0), profit
FROM unnest(%(ids)s::text[], %(players)s::bigint[], %(completed)s::bigint[], %(profits)s::bigint[])
     AS r (id, player_id, completed_at, profit)
WHERE to_timestamp(completed_at / 1000000.0) > now() - interval '1 hour'
ON CONFLICT (pipeline_id) DO UPDATE
SET player_id = excluded.player_id, completed_at = excluded.completed_at, profit = excluded.profit

-- name: forget_recent
DELETE FROM mfg_notify.recent WHERE pipeline_id = ANY (%(ids)s::text[]) OR completed_at < now() - interval '1 hour'

-- name: add_latest
INSERT INTO mfg_notify.latest AS l (kind, player_id, key, at)
SELECT kind, player_id, key, to_timestamp(at / 1000000.0)
FROM unnest(%(kinds)s::text[], %(players)s::bigint[], %(keys)s::text[], %(at)s::bigint[]) AS s (kind, player_id, key, at)
ON CONFLICT (kind, player_id, key) DO UPDATE SET at = excluded.at WHERE excluded.at > l.at

-- name: forget_latest
-- Players are kept, so that a silent one is known as such.
DELETE FROM mfg_notify.latest WHERE kind = 'ship' AND at < now() - interval '24 hours'

-- name: count_abandoned
-- Transactions whose buffered events were not written at their COMMIT (the row is deleted when they are): a buffer holds
-- up to 64.
WITH abandoned AS (DELETE FROM mfg_notify.pending_commit RETURNING xid)
SELECT count(nextval('mfg_notify.lost')) FROM abandoned, generate_series(1, 64)

-- name: mark_folded
-- What the triggers read to bound the backlog: the last id that was handed out before a fold that drained the journal,
-- for ids of transactions that were rolled back never come. It never goes back. Not transactional, and need not be.
SELECT setval('mfg_notify.folded', greatest(%(id)s, last_value)) FROM mfg_notify.folded

-- name: barrier
-- In the fold's transaction: when it comes back, every notification of an event folded up to now has come.
SELECT pg_notify(%(channel)s, %(barrier)s)

-- name: totals
SELECT metric, labels::text, n FROM mfg_notify.total ORDER BY arrival

-- name: generation
SELECT generation FROM mfg_notify.lease

-- name: recent
SELECT pipeline_id, player_id, (date_part('epoch', completed_at) * 1000000)::bigint, profit
FROM mfg_notify.recent WHERE completed_at > now() - interval '1 hour'

-- name: latest
SELECT kind, player_id, key, (date_part('epoch', at) * 1000000)::bigint FROM mfg_notify.latest

-- name: visible
-- Which transactions the snapshot of this transaction shows.
SELECT pg_snapshot_xmax(s)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) x)
FROM pg_current_snapshot() s

-- name: live_pipelines
-- Live rows as the triggers would write their INSERT, so that a row looks the same in an event and in a snapshot.
SELECT json_build_array('pipeline', 'I', ARRAY[NULL, p.id::varchar(128), p.product_good::varchar(128), p.status::varchar(128)],
                        ARRAY[NULL, NULL, NULL, p.player_id, p.total_cost, p.total_revenue, p.net_profit],
                        ARRAY[p.started_at::timestamptz, p.completed_at::timestamptz])::text
FROM {pipelines} p WHERE p.status IN ('PLANNING', 'EXECUTING')

-- name: live_tasks
SELECT json_build_array('task', 'I', ARRAY[NULL, NULL, t.id::varchar(128), t.task_type::varchar(128), t.status::varchar(128),
                                           t.assigned_ship::varchar(128)],
                        ARRAY[NULL, NULL, NULL, t.player_id, t.retry_count, t.total_cost, t.total_revenue],
                        ARRAY[t.ready_at::timestamptz, t.started_at::timestamptz, t.completed_at::timestamptz])::text
FROM {tasks} t WHERE t.status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')

-- name: live_factories
-- From the live pipelines into their factory rows: the rows of finished pipelines stay behind, and they are many.
SELECT json_build_array('factory', 'I', ARRAY[NULL, f.factory_symbol::varchar(128), f.output_good::varchar(128),
                                              f.pipeline_id::varchar(128), f.current_supply::varchar(128)],
                        ARRAY[f.id, f.player_id], ARRAY[NULL, f.ready_for_collection::boolean], NULL, NULL,
                        mfg_notify.count_inputs(f.required_inputs::jsonb, f.delivered_inputs::jsonb)::json)::text
FROM {factories} f
WHERE f.pipeline_id IS NULL
   OR f.pipeline_id = ANY (ARRAY(SELECT p.id FROM {pipelines} p WHERE p.status IN ('PLANNING', 'EXECUTING')))

-- name: ship_columns
-- The table of ships is optional, and older databases have it under another name. Columns that this role may read.
SELECT c.relname, array_agg(a.attname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = %(schema)s AND c.relname IN ('ships', 'ship_assignments') AND c.relkind IN ('r', 'p', 'v', 'm')
  AND a.attnum > 0 AND NOT a.attisdropped AND has_column_privilege(c.oid, a.attnum, 'SELECT')
GROUP BY c.relname

-- name: ships
SELECT player_id, ship_symbol::text, {status} = 'idle' FROM {ships} WHERE ship_symbol <> ''

-- name: market_columns
-- The table of markets is optional, and in older databases all players share it.
SELECT a.attname FROM pg_attribute a
WHERE a.attrelid = to_regclass(format('%%I.market_data', %(schema)s::text)) AND a.attnum > 0 AND NOT a.attisdropped

-- name: market
-- Rows of one good at one level are as many markets. Both levels in one pass, since the table may be large.
SELECT {player}::text, left(good_symbol::text, 128), left(supply::text, 128), left(activity::text, 128), count(*)
FROM {market} WHERE good_symbol <> '' GROUP BY 1, 2, 3, 4

-- name: health
-- The exporter about the database, at every reconciliation.
SELECT (SELECT count(*) FROM mfg_notify.event),
       (SELECT greatest(date_part('epoch', clock_timestamp() - min(at)), 0) FROM mfg_notify.event),
       (SELECT count(*) FROM mfg_notify.event WHERE version <> %(version)s),
       pg_notification_queue_usage(),
       (SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost),
       (date_part('epoch', clock_timestamp()) * 1000000)::bigint

-- name: triggers
-- Enabled triggers of ours by table: 'O' fires in ordinary sessions, 'A' always. None is whole without the one that
-- writes what a transaction has kept.
SELECT c.relname::text, count(*) FILTER (WHERE t.tgenabled IN ('O', 'A'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal AND starts_with(t.tgname, 'mfg_notify_')
    AND EXISTS (SELECT FROM pg_trigger rest JOIN pg_class u ON u.oid = rest.tgrelid
                WHERE u.relnamespace = to_regnamespace('mfg_notify') AND u.relname = 'pending_commit'
                  AND rest.tgname = 'mfg_notify_flush' AND rest.tgenabled IN ('O', 'A'))
WHERE n.nspname = %(schema)s
  AND c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states')
GROUP BY c.relname

-- name: oldest_lock_holder
SELECT a.pid, a.application_name, date_part('epoch', clock_timestamp() - a.xact_start)
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
  AND l.relation IN (SELECT c.oid FROM pg_class c WHERE c.relname IN (
      'manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states'))
ORDER BY a.xact_start LIMIT 1

-- name: role_exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s)

-- name: read_only_session
-- For commands that only look: the server itself sees to it.
SET default_transaction_read_only = on

-- name: doctor_server
-- A pooler tells the client another backend's number than the server does.
SELECT current_setting('server_version'), pg_is_in_recovery(), pg_backend_pid(), current_user::text,
       current_setting('max_prepared_transactions')::integer

-- name: doctor_clock
SELECT date_part('epoch', clock_timestamp())

-- name: doctor_queue
SELECT pg_notification_queue_usage()

-- name: doctor_probe
-- On a channel of the doctor's own, so that no exporter hears of it.
SELECT pg_notify(%(channel)s, %(ping)s)

-- name: doctor_game
-- The schemas in which one of the game's tables is, and which: the catalogs need no rights.
SELECT n.nspname::text, array_agg(c.relname::text ORDER BY c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states')
  AND c.relkind = 'r'
GROUP BY n.nspname ORDER BY count(*) DESC, n.nspname

-- name: doctor_triggers
SELECT c.relname::text, t.tgname::text, t.tgenabled::text
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND starts_with(t.tgname, 'mfg_notify_')
  AND (c.relnamespace = to_regnamespace('mfg_notify') AND c.relname = 'pending_commit'
       OR c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
          AND c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states'))

-- name: doctor_installed
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'mfg_notify' AND c.relname = 'settings')

-- name: doctor_missing_rights
-- What role.sql grants and this role does not have, in the words of GRANT, and whether an exporter cannot do without
-- it. Asked of the catalogs, so that no right is needed to ask.
SELECT 'USAGE ON SCHEMA ' || n.nspname, true
FROM pg_namespace n
WHERE n.nspname IN ('mfg_notify', %(schema)s) AND NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT string_agg(allowed, ', ') || ' ON mfg_notify.' || c.relname, true
FROM (VALUES ('settings', 'SELECT'), ('lease', 'SELECT UPDATE'), ('event', 'SELECT DELETE'), ('event_id_seq', 'SELECT'),
             ('total', 'SELECT INSERT UPDATE'), ('recent', 'SELECT INSERT UPDATE DELETE'),
             ('latest', 'SELECT INSERT UPDATE DELETE'), ('pending_commit', 'SELECT DELETE'),
             ('folded', 'SELECT UPDATE'), ('notify_disabled', 'SELECT UPDATE'), ('lost', 'SELECT UPDATE')) AS ours (name, rights)
CROSS JOIN LATERAL string_to_table(ours.rights, ' ') AS allowed
JOIN pg_class c ON c.relname = ours.name AND c.relnamespace = to_regnamespace('mfg_notify')
WHERE NOT has_table_privilege(c.oid, allowed)
GROUP BY c.relname
UNION ALL
SELECT 'EXECUTE ON FUNCTION mfg_notify.' || p.proname, true
FROM pg_proc p
WHERE p.pronamespace = to_regnamespace('mfg_notify') AND NOT has_function_privilege(p.oid, 'EXECUTE')
  AND p.proname IN ('missing_columns', 'watched_columns', 'count_inputs')
UNION ALL
SELECT format('SELECT (%%s) ON %%I.%%I', string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
              %(schema)s, c.relname),
       starts_with(c.relname, 'manufacturing_')
FROM (VALUES
    ('manufacturing_pipelines',
     'id player_id product_good status total_cost total_revenue net_profit started_at completed_at'),
    ('manufacturing_tasks',
     'id player_id task_type status assigned_ship retry_count total_cost total_revenue ready_at started_at'
     ' completed_at'),
    ('manufacturing_factory_states',
     'id player_id factory_symbol output_good pipeline_id required_inputs delivered_inputs current_supply'
     ' ready_for_collection'),
    ('ships', 'player_id ship_symbol assignment_status'),
    ('ship_assignments', 'player_id ship_symbol status'),
    ('market_data', 'player_id good_symbol supply activity')) AS game (name, columns)
CROSS JOIN LATERAL string_to_table(game.columns, ' ') AS needed
JOIN pg_class c ON c.relname = game.name AND c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = needed AND a.attnum > 0 AND NOT a.attisdropped
WHERE NOT has_column_privilege(c.oid, a.attnum, 'SELECT')
GROUP BY c.relname

-- name: doctor_excess_rights
-- Whether this role is a superuser; whether it can read players; which of the game's tables it can write.
WITH game AS (
    SELECT c.oid, c.relname::text FROM pg_class c
    WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relkind IN ('r', 'p')
      AND c.relname IN ('players', 'manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states',
                        'ships', 'ship_assignments', 'market_data'))
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       EXISTS (SELECT FROM game WHERE relname = 'players' AND has_any_column_privilege(oid, 'SELECT')),
       ARRAY(SELECT relname FROM game
             WHERE has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                OR has_any_column_privilege(oid, 'INSERT, UPDATE') ORDER BY relname)

-- name: doctor_moved
-- Metrics that have counted anything since the installation, and how many events there were.
SELECT ARRAY(SELECT DISTINCT metric FROM mfg_notify.total WHERE n <> 0),
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM mfg_notify.event_id_seq)

-- name: doctor_quiet
-- Whether the exporter has told the triggers not to notify for now.
SELECT last_value = 1 FROM mfg_notify.notify_disabled

-- name: doctor_lease
-- Who folds, and for how many seconds that exporter has been silent (NULL: it has never been heard of).
SELECT holder, CASE WHEN isfinite(renewed_at) THEN date_part('epoch', clock_timestamp() - renewed_at) END FROM mfg_notify.lease

-- name: tail_position
-- The highest number given to an event so far, and whether the triggers are told to be quiet. Asked before tail_look,
-- whose own transaction is younger than all that have such numbers.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END, (SELECT last_value = 1 FROM mfg_notify.notify_disabled)
FROM mfg_notify.event_id_seq

-- name: tail_look
-- The oldest transaction that is under way, and this one (a snapshot's xmax would not do: younger ones may be under way),
-- with a ping to myself on a channel of my own: when it comes, all that transactions older than the oldest have
-- announced has come before it.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_current_xact_id()::text::bigint,
       pg_notify(%(channel)s, %(ping)s)

-- name: tail_journal
-- What waits in the journal and may not have been announced.
SELECT id, xid::text::bigint, (date_part('epoch', at) * 1000000)::bigint, body
FROM mfg_notify.event WHERE id > %(after)s ORDER BY id LIMIT %(chunk)s
