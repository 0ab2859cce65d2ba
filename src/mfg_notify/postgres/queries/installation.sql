-- What is installed in a game database. Used by installation.py, and by snapshot.py for the triggers.

-- name: is_installed
-- Tell whether the schema mfg_notify is installed. The catalogs answer without any right on the schema.
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'mfg_notify' AND c.relname = 'settings')

-- name: is_ours
-- Tell whether the schema mfg_notify belongs to somebody who may have installed it: this role, a superuser, or a role that
-- has the rights of the owner of the game's tables. Anyone with CREATE on the database could make a schema of this name,
-- and its views and functions would run with the rights of this session.
SELECT NOT EXISTS (
    SELECT FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner
    WHERE n.nspname = 'mfg_notify' AND NOT r.rolsuper AND r.rolname <> current_user AND NOT EXISTS (
        SELECT FROM pg_class AS c
        WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relname = 'manufacturing_tasks'
          AND pg_has_role(r.oid, c.relowner, 'USAGE')))

-- name: settings
-- The settings, with the backend that this session's notifications name as their sender: behind a pooler the client
-- knows a different process id. The triggers do not notify if transactions can be prepared, because PREPARE TRANSACTION
-- refuses a transaction that has notified. Versions before the first release did not store what they applied.
SELECT version, channel, notify AND current_setting('max_prepared_transactions') = '0', pg_backend_pid(),
       to_jsonb(s) -> 'applied'
FROM mfg_notify.settings AS s

-- name: whereabouts
-- Which server, timeline and database this is. A promotion begins a new timeline, and a copy of a database has another oid.
SELECT (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END,
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database())

-- name: server_process
-- What no other server process has. The client cannot read a timestamp in every DateStyle.
SELECT (SELECT system_identifier FROM pg_control_system()), date_part('epoch', pg_postmaster_start_time())

-- name: can_compare
-- Whether the function exists that hashes the installed objects.
SELECT to_regprocedure('mfg_notify.object_hashes()') IS NOT NULL

-- name: different_objects
-- The objects that are not as they were installed, and whether they exist.
SELECT name, actual.hash IS NOT NULL
FROM mfg_notify.settings AS s CROSS JOIN LATERAL jsonb_each_text(s.objects) AS installed (name, hash)
LEFT JOIN jsonb_each_text(mfg_notify.object_hashes()) AS actual (name, hash) USING (name)
WHERE actual.hash IS DISTINCT FROM installed.hash ORDER BY name

-- name: missing_columns
-- Columns of the game's tables that the triggers need and that do not exist.
SELECT * FROM mfg_notify.missing_columns()

-- name: new_columns
-- Optional columns of the game that the triggers could read and do not, because they have come since the installation.
SELECT source || '.' || col FROM mfg_notify.present_columns() JOIN mfg_notify.watched_columns() USING (source, col)
WHERE optional AND source || '.' || col <> ALL (mfg_notify.optional_columns()) ORDER BY 1

-- name: unsupported_tables
-- The tables on which the triggers cannot see every change, and why: of the game's tables, by their names, and of those
-- that have our triggers. A subscription applies changes as session_replication_role = replica, in which triggers do not
-- fire. For a trigger, a row that moves to another partition is deleted and inserted.
SELECT c.oid::regclass::text, reason
FROM pg_class c CROSS JOIN LATERAL (
    SELECT 'is filled by the subscription ' || quote_ident(s.subname)
    FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
    WHERE r.srrelid = c.oid AND s.subenabled
    UNION ALL
    SELECT CASE WHEN c.relispartition THEN 'is a partition' ELSE 'is partitioned' END
    WHERE c.relispartition OR c.relkind = 'p') AS found (reason)
WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s))
      AND c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states')
   OR EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
              WHERE t.tgrelid = c.oid AND p.pronamespace = to_regnamespace('mfg_notify')
                AND starts_with(t.tgname, 'mfg_notify_'))
ORDER BY 1, 2

-- name: triggers
-- Number of enabled triggers on each of the game's tables ('O' fires in ordinary sessions, 'A' always). The count is 0
-- while the trigger that flushes a transaction's buffered events is disabled: without it the others lose events.
SELECT c.relname::text, count(*) FILTER (WHERE t.tgenabled IN ('O', 'A'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal AND starts_with(t.tgname, 'mfg_notify_')
    AND EXISTS (SELECT FROM pg_trigger rest JOIN pg_class u ON u.oid = rest.tgrelid
                WHERE u.relnamespace = to_regnamespace('mfg_notify') AND u.relname = 'pending_commit'
                  AND rest.tgname = 'mfg_notify_flush' AND rest.tgenabled IN ('O', 'A'))
WHERE n.nspname = %(schema)s
  AND c.relname IN ('manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states')
GROUP BY c.relname
