-- The live rows, and the health of the database. Used by snapshot.py; inspection.py reads the health too.

-- name: visible
-- Which transactions the snapshot of this transaction shows, and whether it shows another file of a table than the one
-- that is there. An ALTER TABLE that rewrites a table, or pg_repack, writes the rows anew, so that an older snapshot does
-- not see them. Asked last: until then the table may be rewritten, because the query that reads it waits for its lock.
SELECT pg_snapshot_xmax(s)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) x),
       EXISTS (SELECT FROM pg_class c
               WHERE c.oid = ANY ({names}::regclass[]) AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid))
FROM pg_current_snapshot() s

-- name: live_pipelines
-- Pipelines that are not finished. This and the two queries below write rows as the triggers write their INSERT, so that
-- a row looks the same in an event and in a snapshot. What is in braces is NULL if the triggers do not read the column.
SELECT json_build_array(
    'pipeline', 'I',
    ARRAY[NULL, p.id::varchar(128), p.product_good::varchar(128), p.status::varchar(128)],
    ARRAY[NULL, NULL, NULL, p.player_id, p.total_cost, p.total_revenue, p.net_profit],
    ARRAY[p.started_at::timestamptz, p.completed_at::timestamptz],
    NULL, CASE WHEN {pipeline_type}::text = 'CONSTRUCTION'
               THEN mfg_notify.construction({construction_site}::text, {materials}::text)::json END)::text
FROM {pipelines} p WHERE p.status IN ('PLANNING', 'EXECUTING')

-- name: live_tasks
-- Tasks that are not finished.
SELECT json_build_array(
    'task', 'I',
    ARRAY[NULL, NULL, t.id::varchar(128), t.task_type::varchar(128), t.status::varchar(128),
          t.assigned_ship::varchar(128)],
    ARRAY[NULL, NULL, NULL, NULL, t.player_id, t.retry_count, t.total_cost, t.total_revenue, {actual_quantity}],
    ARRAY[t.ready_at::timestamptz, t.started_at::timestamptz, t.completed_at::timestamptz])::text
FROM {tasks} t WHERE t.status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')

-- name: live_factories
-- The factory rows of live pipelines. Starts at the pipelines, because the rows of finished ones stay in the table and
-- are many.
SELECT json_build_array(
    'factory', 'I',
    ARRAY[NULL, f.factory_symbol::varchar(128), f.output_good::varchar(128), f.pipeline_id::varchar(128),
          f.current_supply::varchar(128)],
    ARRAY[f.id, f.player_id],
    ARRAY[NULL, f.ready_for_collection::boolean],
    NULL, NULL, mfg_notify.count_inputs(f.required_inputs::jsonb, f.delivered_inputs::jsonb)::json)::text
FROM {factories} f
WHERE f.pipeline_id IS NULL
   OR f.pipeline_id = ANY (ARRAY(SELECT p.id FROM {pipelines} p WHERE p.status IN ('PLANNING', 'EXECUTING')))

-- name: optional_columns
-- The optional columns that the triggers read.
SELECT unnest(mfg_notify.optional_columns())

-- name: readable_columns
-- The columns that this role may read of some tables. The tables are optional, and older databases use other names.
SELECT c.relname, array_agg(a.attname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s) AND c.relkind IN ('r', 'p', 'v', 'm')
  AND a.attnum > 0 AND NOT a.attisdropped AND has_column_privilege(c.oid, a.attnum, 'SELECT')
GROUP BY c.relname

-- name: ships
-- All ships that have an owner, and whether they could take a task: the game calls them idle, and they can carry cargo.
SELECT player_id::bigint, ship_symbol::text, {status}::text = 'idle' AND {carries_cargo} FROM {ships}
WHERE ship_symbol::text <> '' AND player_id IS NOT NULL

-- name: health
-- The backlog, its age, events of a newer version, the notification queue, the lost changes and the clock.
SELECT count(*), greatest(date_part('epoch', clock_timestamp() - min(at)), 0), count(*) FILTER (WHERE version <> %(version)s),
       pg_notification_queue_usage(),
       (SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM mfg_notify.lost),
       (date_part('epoch', clock_timestamp()) * 1000000)::bigint
FROM mfg_notify.event

-- name: oldest_snapshot
-- Who keeps vacuum from removing the dead row versions of this database: the session, prepared transaction or
-- replication slot with the oldest snapshot, how many transactions have begun since, and for how many seconds it has
-- held the snapshot (NULL: this role may not see that). No row: nobody does.
SELECT kind, name, detail, transactions::bigint, seconds
FROM (
    SELECT 'session' AS kind, a.pid::text AS name,
           'role ' || coalesce(a.usename, '?') || ', application ' || coalesce(nullif(a.application_name, ''), '?') AS detail,
           greatest(age(a.backend_xmin), age(a.backend_xid)) AS transactions,
           date_part('epoch', clock_timestamp() - a.xact_start) AS seconds
    FROM pg_stat_activity AS a
    WHERE (a.datname = current_database() OR a.datname IS NULL) AND a.pid <> pg_backend_pid()
      AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
    UNION ALL
    SELECT 'prepared transaction', p.gid, 'role ' || p.owner, age(p.transaction),
           date_part('epoch', clock_timestamp() - p.prepared)
    FROM pg_prepared_xacts AS p WHERE p.database = current_database()
    UNION ALL
    SELECT 'replication slot', s.slot_name::text, CASE WHEN s.active THEN 'in use' ELSE 'not in use' END, age(s.xmin), NULL
    FROM pg_replication_slots AS s) AS holder
WHERE transactions IS NOT NULL ORDER BY transactions DESC LIMIT 1
