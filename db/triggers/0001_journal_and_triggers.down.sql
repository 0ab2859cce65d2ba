-- mfg-notify 0001, taken back: triggers, journal and totals go. Nothing is left in the game database; the role is
-- the cluster's, and is dropped only where no other database uses it.
--
-- It takes a brief lock on the game's three tables. If the lock is not free within 50 ms the whole file is rolled
-- back and nothing has changed: run it again (`mfg-notify migrate down` does so by itself).

BEGIN;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '50ms';

-- The tables may be gone by now.
DO $$
DECLARE
    tab   text;
    event text;
BEGIN
    FOREACH tab IN ARRAY ARRAY['public.manufacturing_pipelines', 'public.manufacturing_tasks',
                               'public.manufacturing_factory_states'] LOOP
        IF to_regclass(tab) IS NOT NULL THEN
            FOREACH event IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
                EXECUTE format('DROP TRIGGER IF EXISTS mfg_notify_%s ON %s', event, tab);
            END LOOP;
        END IF;
    END LOOP;
END
$$;

DROP SCHEMA IF EXISTS mfg_notify CASCADE;

SET LOCAL client_min_messages = notice;
DO $$
BEGIN
    IF to_regrole('mfg_notify_owner') IS NOT NULL THEN
        DROP OWNED BY mfg_notify_owner;  -- its rights on the game's tables
        BEGIN
            DROP ROLE mfg_notify_owner;
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE NOTICE 'role mfg_notify_owner stays: another database uses it';
        END;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'role mfg_notify_owner stays: not allowed to drop it';
END
$$;

COMMIT;
