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

-- name: foreign_owner
-- The owner of the installed schema if that is another role, the current role, and whether it can read the settings.
SELECT quote_ident(pg_get_userbyid(n.nspowner)), quote_ident(current_user),
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'settings'
WHERE n.nspname = 'mfg_notify' AND pg_get_userbyid(n.nspowner) <> current_user

-- name: statements_for_an_administrator
-- What role.sql needs and the current role may not do, as statements in their order. A role that does not exist yet will
-- have the rights of PUBLIC.
WITH role AS (
    SELECT %(role)s::name AS name, EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s) AS found),
exporter AS (SELECT quote_ident(name) AS quoted, found, CASE WHEN found THEN name ELSE 'public' END AS rights_of FROM role)
SELECT format('CREATE ROLE %%s LOGIN', quoted) FROM exporter
WHERE NOT found AND NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)
UNION ALL
SELECT format('GRANT CONNECT ON DATABASE %%I TO %%s', current_database(), quoted) FROM exporter
WHERE NOT has_database_privilege(rights_of, current_database(), 'CONNECT')
  AND NOT has_database_privilege(current_database(), 'CONNECT WITH GRANT OPTION')
UNION ALL
SELECT format('GRANT USAGE ON SCHEMA %%I TO %%s', n.nspname, quoted) FROM exporter, pg_namespace n
WHERE n.nspname = %(schema)s AND NOT has_schema_privilege(rights_of, n.oid, 'USAGE')
  AND NOT has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION')

-- name: has_granted_roles
-- Tell whether role.sql has ever been applied.
SELECT to_regclass('mfg_notify.granted') IS NOT NULL

-- name: granted_roles
-- The exporters' roles, as far as they exist.
SELECT DISTINCT role::text FROM mfg_notify.granted WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = role) ORDER BY 1
