-- What applying a migration has to know. Used by migrations.py.

-- name: oldest_lock_holder
-- The longest open transaction that locks one of the game's tables. Its query may contain secrets and is not read.
SELECT a.pid, a.application_name, date_part('epoch', clock_timestamp() - a.xact_start)
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
  AND l.relation IN (SELECT c.oid FROM pg_class c WHERE c.relname IN (
      'manufacturing_pipelines', 'manufacturing_tasks', 'manufacturing_factory_states'))
ORDER BY a.xact_start LIMIT 1

-- name: role_exists
-- Tell whether the server has a role of this name.
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s)

-- name: has_granted_roles
-- Tell whether role.sql has ever been applied.
SELECT to_regclass('mfg_notify.granted') IS NOT NULL

-- name: granted_roles
-- The exporters' roles, as far as they exist.
SELECT DISTINCT role::text FROM mfg_notify.granted WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = role) ORDER BY 1
