-- Creates the exporter's role, with the rights that the exporter's statements need and no others.
--
-- Run this as the role that installed the triggers. It is safe to repeat. Repeat it after an upgrade, and when the game
-- adds a table of ships, markets, players or eras. A new role has no password: set one with \password in psql.

BEGIN READ WRITE;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '50ms';
SET LOCAL mfg_notify.role = {name};
SET LOCAL mfg_notify.game_schema = {schema};

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

-- Roles belong to the whole cluster. The comment marks this one as created here, so that the last `down` drops it.
DO $$
DECLARE
    role constant name := current_setting('mfg_notify.role');
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
        EXECUTE format('CREATE ROLE %I LOGIN', role);
        EXECUTE format('COMMENT ON ROLE %I IS %L', role, 'exporter of mfg-notify, made by its migration');
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION '% may not create roles: let an administrator run CREATE ROLE % LOGIN, then repeat this',
        current_user, quote_ident(role) USING ERRCODE = 'insufficient_privilege';
END
$$;

-- Rights on the schema mfg_notify. The role can take events out of the journal but not add any.
GRANT USAGE ON SCHEMA mfg_notify TO {role};
GRANT SELECT ON mfg_notify.settings TO {role};
GRANT SELECT, UPDATE ON mfg_notify.lease TO {role};
GRANT SELECT ON mfg_notify.event TO {role};
GRANT SELECT, INSERT, UPDATE ON mfg_notify.total TO {role};
GRANT SELECT, INSERT, DELETE ON mfg_notify.dead_letter, mfg_notify.entry TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON mfg_notify.recent, mfg_notify.latest TO {role};
GRANT SELECT, UPDATE ON SEQUENCE mfg_notify.folded, mfg_notify.notify_disabled TO {role};
GRANT SELECT ON SEQUENCE mfg_notify.event_id_seq, mfg_notify.lost TO {role};
GRANT EXECUTE ON FUNCTION mfg_notify.missing_columns, mfg_notify.watched_columns, mfg_notify.object_hashes,
    mfg_notify.present_columns, mfg_notify.optional_columns, mfg_notify.count_inputs, mfg_notify.construction,
    mfg_notify.take_events, mfg_notify.count_abandoned TO {role};

-- Records what is granted below: `down` revokes that, and nothing that the role had before. A row without a relation
-- stands for USAGE on the schema, a row without a schema for CONNECT on the database.
CREATE TABLE IF NOT EXISTS mfg_notify.granted (
    role     name NOT NULL,
    schema   name NOT NULL DEFAULT '',
    relation name NOT NULL DEFAULT '',
    col      name NOT NULL DEFAULT '',
    PRIMARY KEY (role, schema, relation, col)
);

-- Rights on the game's tables: only those that the role lacks, column by column.
DO $$
DECLARE
    role   constant name := current_setting('mfg_notify.role');
    game   constant name := current_setting('mfg_notify.game_schema');
    needed record;
BEGIN
    IF NOT has_database_privilege(role, current_database(), 'CONNECT') THEN
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
        INSERT INTO mfg_notify.granted (role) VALUES (role) ON CONFLICT DO NOTHING;
    END IF;
    IF NOT has_schema_privilege(role, game, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', game, role);
        INSERT INTO mfg_notify.granted (role, schema) VALUES (role, game) ON CONFLICT DO NOTHING;
    END IF;
    FOR needed IN
        SELECT a.attrelid AS relation, c.relname, a.attname
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
            ('market_data', 'player_id good_symbol supply activity')) AS read (tab, cols)
        CROSS JOIN LATERAL string_to_table(read.cols, ' ') AS col
        JOIN pg_class c ON c.relname = tab
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = game
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = col AND a.attnum > 0 AND NOT a.attisdropped
        WHERE NOT has_column_privilege(role, c.oid, a.attnum, 'SELECT')
    LOOP
        EXECUTE format('GRANT SELECT (%I) ON %I.%I TO %I', needed.attname, game, needed.relname, role);
        INSERT INTO mfg_notify.granted VALUES (role, game, needed.relname, needed.attname) ON CONFLICT DO NOTHING;
        -- If the current user may not grant, PostgreSQL only warns. Make it an error if the exporter cannot do without.
        IF NOT has_column_privilege(role, needed.relation, needed.attname, 'SELECT') THEN
            IF starts_with(needed.relname, 'manufacturing_') THEN
                RAISE EXCEPTION '% may not grant SELECT on %.%: run this as its owner', current_user, game, needed.relname
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            RAISE WARNING '% may not grant SELECT (%) on %.%: the metrics that need it are left out', current_user,
                needed.attname, game, needed.relname;
        END IF;
    END LOOP;
    IF NOT has_schema_privilege(role, game, 'USAGE')
       OR NOT has_database_privilege(role, current_database(), 'CONNECT') THEN
        RAISE EXCEPTION '% may not let the role in: let an administrator run GRANT CONNECT ON DATABASE % TO %;'
            ' GRANT USAGE ON SCHEMA % TO %; then repeat this', current_user, quote_ident(current_database()),
            quote_ident(role), quote_ident(game), quote_ident(role) USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF EXISTS (SELECT FROM pg_attribute AS a
               WHERE a.attrelid = to_regclass(format('%I.players', game)) AND a.attnum > 0 AND NOT a.attisdropped
                 AND a.attname NOT IN ('id', 'agent_symbol') AND has_column_privilege(role, a.attrelid, a.attnum, 'SELECT')) THEN
        RAISE WARNING 'role % can read more of %.players than id and agent_symbol; the API tokens are there: revoke that',
            role, game;
    END IF;
END
$$;

COMMIT;
