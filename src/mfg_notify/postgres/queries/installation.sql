-- What is installed in a game database. Used by installation.py, and by snapshot.py for the triggers.

-- name: is_installed
-- Tell whether the schema mfg_notify is installed. The catalogs answer without any right on the schema.
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'mfg_notify' AND c.relname = 'settings')

-- name: settings
-- The settings, with the backend that this session's notifications name as their sender: behind a pooler the client
-- knows a different process id. The triggers do not notify if transactions can be prepared, because PREPARE TRANSACTION
-- refuses a transaction that has notified.
SELECT version, channel, notify AND current_setting('max_prepared_transactions') = '0', pg_backend_pid()
FROM mfg_notify.settings

-- name: missing_objects
-- Names of the relations and functions that a migration makes and that do not exist. Triggers are counted separately.
SELECT name FROM unnest(%(relations)s::text[]) name WHERE to_regclass('mfg_notify.' || name) IS NULL
UNION ALL
SELECT name FROM unnest(%(functions)s::text[]) name
WHERE NOT EXISTS (SELECT FROM pg_proc WHERE proname = name AND pronamespace = to_regnamespace('mfg_notify'))

-- name: missing_columns
-- Columns of the game's tables that the triggers need and that do not exist.
SELECT * FROM mfg_notify.missing_columns()

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
