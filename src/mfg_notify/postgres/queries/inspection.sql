-- What `mfg-notify doctor` asks. Used by inspection.py. All of it only reads.

-- name: server
-- The server, and the backend that answers: behind a pooler the client knows a different process id.
SELECT current_setting('server_version'), pg_is_in_recovery(), pg_backend_pid(), current_user::text,
       current_setting('max_prepared_transactions')::integer

-- name: clock
-- The database's clock, in epoch seconds.
SELECT date_part('epoch', clock_timestamp())

-- name: queue_usage
-- How full the server's notification queue is, from 0 to 1.
SELECT pg_notification_queue_usage()

-- name: probe_delivery
-- Notify a channel of the doctor's own, which no exporter listens to.
SELECT pg_notify(%(channel)s, %(ping)s)

-- name: game_schemas
-- The schemas that contain tables of the game, and which tables. The catalogs answer without any right.
SELECT n.nspname::text, array_agg(c.relname::text ORDER BY c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states')
  AND c.relkind = 'r'
GROUP BY n.nspname ORDER BY count(*) DESC, n.nspname

-- name: missing_rights
-- What role.sql grants and this role lacks, written as in GRANT, and whether an exporter cannot work without it. The
-- catalogs answer without any right.
SELECT 'USAGE ON SCHEMA ' || n.nspname, true
FROM pg_namespace n
WHERE n.nspname IN ('mfg_notify', %(schema)s) AND NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT string_agg(allowed, ', ') || ' ON mfg_notify.' || c.relname, true
FROM (VALUES ('settings', 'SELECT'), ('lease', 'SELECT UPDATE'), ('event', 'SELECT'), ('event_id_seq', 'SELECT'),
             ('dead_letter', 'SELECT INSERT DELETE'), ('total', 'SELECT INSERT UPDATE'), ('recent', 'SELECT INSERT UPDATE DELETE'),
             ('latest', 'SELECT INSERT UPDATE DELETE'),
             ('entry', 'SELECT INSERT DELETE'), ('folded', 'SELECT UPDATE'),
             ('notify_disabled', 'SELECT UPDATE'), ('lost', 'SELECT')) AS ours (name, rights)
CROSS JOIN LATERAL string_to_table(ours.rights, ' ') AS allowed
JOIN pg_class c ON c.relname = ours.name AND c.relnamespace = to_regnamespace('mfg_notify')
WHERE NOT has_table_privilege(c.oid, allowed)
GROUP BY c.relname
UNION ALL
SELECT 'EXECUTE ON FUNCTION mfg_notify.' || p.proname, true
FROM pg_proc p
WHERE p.pronamespace = to_regnamespace('mfg_notify') AND NOT has_function_privilege(p.oid, 'EXECUTE')
  AND p.proname IN ('missing_columns', 'watched_columns', 'present_columns', 'optional_columns', 'object_hashes',
                    'count_inputs', 'construction', 'take_events', 'count_abandoned')
UNION ALL
SELECT format('SELECT (%%s) ON %%I.%%I', string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
              %(schema)s, c.relname),
       -- An optional column is needed once the triggers read it. Some are for the board alone.
       bool_or(starts_with(c.relname, 'manufacturing_')
               AND needed <> 'created_at' AND (c.relname, needed) <> ('manufacturing_tasks', 'pipeline_id')
               AND (needed NOT IN ('pipeline_type', 'construction_site', 'materials', 'actual_quantity')
                    OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = to_regnamespace('mfg_notify')
                               AND p.proname = 'optional_columns' AND strpos(p.prosrc, '.' || needed) > 0)))
FROM (VALUES
    ('manufacturing_pipelines',
     'id player_id product_good status total_cost total_revenue net_profit started_at completed_at pipeline_type'
     ' construction_site materials created_at'),
    ('manufacturing_tasks',
     'id player_id task_type status assigned_ship retry_count total_cost total_revenue ready_at started_at'
     ' completed_at actual_quantity pipeline_id created_at'),
    ('manufacturing_factory_states',
     'id player_id factory_symbol output_good pipeline_id required_inputs delivered_inputs current_supply'
     ' ready_for_collection'),
    ('players', 'id agent_symbol'),
    ('eras', 'player_id closed_at'),
    ('ships', 'player_id ship_symbol assignment_status cargo_capacity'),
    ('ship_assignments', 'player_id ship_symbol status'),
    ('market_data', 'player_id good_symbol supply activity')) AS game (name, columns)
CROSS JOIN LATERAL string_to_table(game.columns, ' ') AS needed
JOIN pg_class c ON c.relname = game.name AND c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = needed AND a.attnum > 0 AND NOT a.attisdropped
WHERE NOT has_column_privilege(c.oid, a.attnum, 'SELECT')
GROUP BY c.relname

-- name: excess_rights
-- Whether this role is a superuser, which columns of the players it can read beside the two that have the agents, and
-- which of the game's tables it can write.
WITH game AS (
    SELECT c.oid, c.relname::text FROM pg_class c
    WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relkind IN ('r', 'p')
      AND c.relname IN ('players', 'manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states',
                        'ships', 'ship_assignments', 'market_data', 'eras'))
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       ARRAY(SELECT a.attname::text FROM game JOIN pg_attribute a ON a.attrelid = game.oid
             WHERE relname = 'players' AND a.attnum > 0 AND NOT a.attisdropped AND a.attname NOT IN ('id', 'agent_symbol')
               AND has_column_privilege(game.oid, a.attnum, 'SELECT') ORDER BY a.attname = 'token' DESC, a.attnum),
       ARRAY(SELECT relname FROM game
             WHERE has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                OR has_any_column_privilege(oid, 'INSERT, UPDATE') ORDER BY relname)

-- name: installation_owner
-- The role that has installed the schema mfg_notify, quoted.
SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace WHERE nspname = 'mfg_notify'

-- name: trigger_states
-- Every trigger of mfg-notify, with its table and whether it is enabled: 'O' fires in ordinary sessions, 'A' always, 'R'
-- only while replicated changes are applied.
SELECT c.relname::text, t.tgname::text, t.tgenabled IN ('O', 'A')
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND starts_with(t.tgname, 'mfg_notify_')
  AND (c.relnamespace = to_regnamespace('mfg_notify') AND c.relname = 'pending_commit'
       OR c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
          AND c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states'))

-- name: replica_settings
-- Where session_replication_role is set to replica, in which triggers do not fire: for this session, and for roles and
-- databases.
SELECT 'this session' WHERE current_setting('session_replication_role') = 'replica'
UNION ALL
SELECT concat_ws(' in ', 'role ' || quote_ident(r.rolname), 'database ' || quote_ident(d.datname))
FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
WHERE 'session_replication_role=replica' = ANY (s.setconfig)
  AND (s.setdatabase = 0 OR d.datname = current_database())

-- name: publications_of_all_tables
-- The publications that publish our tables, too.
SELECT pubname::text FROM pg_publication WHERE puballtables ORDER BY 1

-- name: policies
-- The roles from which row-level security hides rows of the game, whether the first is the session's own, and the
-- tables. The other is the role that the triggers run as. The catalogs answer without any right.
SELECT quote_ident(r.rolname), r.rolname = current_user, array_agg(c.relname::text ORDER BY c.relname)
FROM pg_class c JOIN pg_roles r ON r.rolname = current_user OR r.oid IN (
    SELECT p.proowner FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace('mfg_notify') AND p.prorettype = 'trigger'::regtype)
WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
  AND c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states')
  AND c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
  AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))
GROUP BY r.rolname ORDER BY 2 DESC, 1

-- name: statuses
-- The values that a column of statuses has, at most 100. It jumps from one value to the next in the index on it,
-- because the table may be large.
WITH RECURSIVE found AS (
    (SELECT t.status FROM {table} t WHERE t.status IS NOT NULL ORDER BY t.status LIMIT 1)
    UNION ALL
    SELECT (SELECT t.status FROM {table} t WHERE t.status > found.status ORDER BY t.status LIMIT 1)
    FROM found WHERE found.status IS NOT NULL)
SELECT status::text FROM found WHERE status IS NOT NULL LIMIT 100

-- name: notify_disabled
-- Whether the leader has disabled NOTIFY for now.
SELECT last_value = 1 FROM mfg_notify.notify_disabled

-- name: lease_holder
-- The lease's holder, and the seconds since its last heartbeat (NULL: there was none).
SELECT holder,
       CASE WHEN isfinite(renewed_at) THEN date_part('epoch', clock_timestamp() - renewed_at) END
FROM mfg_notify.lease

-- name: dead_letters
-- The number of journal rows that were not events, and the last of them with its reason.
SELECT count(*), max(id), (SELECT reason FROM mfg_notify.dead_letter ORDER BY id DESC LIMIT 1)
FROM mfg_notify.dead_letter

-- name: moved_metrics
-- The metrics that have counted anything since the installation, and the number of events.
SELECT ARRAY(SELECT DISTINCT metric FROM mfg_notify.total WHERE n <> 0),
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM mfg_notify.event_id_seq)
