-- mfg-notify 0001, taken back: triggers, journal and totals go. Nothing is left in the game database; the role is
-- the cluster's, and is dropped only where no other database uses it.
--
-- It takes a brief lock on the game's three tables. If the lock is not free within 50 ms the whole file is rolled
-- back and nothing has changed: run it again (`mfg-notify migrate down` does so by itself).

BEGIN READ WRITE;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '50ms';

-- A trigger on a table that another role has planted in our schema would run with the rights of the role that migrates.
DO $$
DECLARE
    stranger constant name := (
        SELECT r.rolname
        FROM (SELECT n.nspowner AS owner FROM pg_namespace AS n WHERE n.nspname = 'mfg_notify'
              UNION ALL SELECT c.relowner FROM pg_class AS c WHERE c.relnamespace = to_regnamespace('mfg_notify')
              -- The trigger functions have an owner of their own, in a restored copy that of the original.
              UNION ALL SELECT p.proowner FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('mfg_notify')
                                                              AND p.prorettype <> 'trigger'::regtype) AS object
        JOIN pg_roles AS r ON r.oid = object.owner WHERE r.rolname <> current_user LIMIT 1);
BEGIN
    IF stranger IS NOT NULL THEN
        RAISE EXCEPTION 'the schema mfg_notify, or something in it, belongs to role %, not to %: migrate as the role that '
            'has installed it; if none has, DROP SCHEMA mfg_notify CASCADE', stranger, current_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- The tables may be gone by now.
DO $$
DECLARE
    tab          text;
    trigger_name name;
BEGIN
    FOREACH tab IN ARRAY ARRAY['public.manufacturing_pipelines', 'public.manufacturing_tasks',
                               'public.manufacturing_factory_states'] LOOP
        IF to_regclass(tab) IS NOT NULL THEN
            FOR trigger_name IN SELECT tgname FROM pg_trigger
                                WHERE tgrelid = tab::regclass AND NOT tgisinternal AND starts_with(tgname, 'mfg_notify_') LOOP
                EXECUTE format('DROP TRIGGER %I ON %s', trigger_name, tab);
            END LOOP;
        END IF;
    END LOOP;
END
$$;

-- The exporters' roles: what was granted to them on the game's objects is taken back; what they had before stays.
DO $$
DECLARE
    given record;
BEGIN
    IF to_regnamespace('mfg_notify') IS NULL OR to_regclass('mfg_notify.granted') IS NULL THEN
        RETURN;
    END IF;
    PERFORM set_config('mfg_notify.roles', (SELECT array_agg(rolname)::text FROM pg_roles WHERE rolname IN (
        SELECT g.role FROM mfg_notify.granted g)), true);
    FOR given IN SELECT g.* FROM mfg_notify.granted g JOIN pg_roles r ON r.rolname = g.role LOOP
        IF given.schema = '' THEN
            EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM %I', current_database(), given.role);
        ELSIF given.relation = '' AND to_regnamespace(quote_ident(given.schema)) IS NOT NULL THEN
            EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM %I', given.schema, given.role);
        ELSIF EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                      JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE n.nspname = given.schema AND c.relname = given.relation AND a.attname = given.col) THEN
            EXECUTE format('REVOKE SELECT (%I) ON %I.%I FROM %I', given.col, given.schema, given.relation, given.role);
        END IF;
    END LOOP;
END
$$;

DROP SCHEMA IF EXISTS mfg_notify CASCADE;

SET LOCAL client_min_messages = notice;
DO $$
DECLARE
    role name;
BEGIN
    FOREACH role IN ARRAY coalesce(nullif(current_setting('mfg_notify.roles', true), ''), '{}')::name[] LOOP
        IF shobj_description(to_regrole(quote_ident(role)), 'pg_authid')
           IS DISTINCT FROM 'exporter of mfg-notify, made by its migration' THEN
            RAISE NOTICE 'role % stays: it was not made by mfg-notify', role;
        ELSE
            BEGIN
                EXECUTE format('DROP ROLE %I', role);
            EXCEPTION
                WHEN dependent_objects_still_exist THEN
                    RAISE NOTICE 'role % stays: it has other rights, or another database uses it', role;
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'role % stays: % may not drop it; let an administrator run DROP ROLE %', role, current_user,
                        quote_ident(role);
            END;
        END IF;
    END LOOP;
END
$$;
DO $$
DECLARE
    owner constant name := 'mfg_notify_owner_' || (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
BEGIN
    IF shobj_description(to_regrole(owner), 'pg_authid')
       = 'owner of the trigger functions of mfg-notify, made by its migration' THEN
        EXECUTE format('DROP OWNED BY %I', owner);  -- its rights on the game's tables
        BEGIN
            EXECUTE format('DROP ROLE %I', owner);
        EXCEPTION
            WHEN dependent_objects_still_exist THEN
                RAISE NOTICE 'role % stays: another database uses it', owner;
            WHEN insufficient_privilege THEN  -- caught here, so that its rights are gone all the same
                RAISE NOTICE 'role % stays: % may not drop it; let an administrator run DROP ROLE %', owner, current_user,
                    quote_ident(owner);
        END;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'role % stays: % may not take its rights; let an administrator run DROP OWNED BY %; DROP ROLE %', owner,
        current_user, quote_ident(owner), quote_ident(owner);
END
$$;

COMMIT;
