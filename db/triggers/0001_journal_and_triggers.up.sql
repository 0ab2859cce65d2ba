-- mfg-notify 0001: the journal, the settled totals, and the triggers that feed them.
--
-- Plain SQL for PostgreSQL 14 to 18; `psql -f` and golang-migrate can apply it as it stands. It is safe to repeat.
-- The game's tables are looked for in schema public; `mfg-notify migrate sql --game-schema NAME` prints it for another.
--
-- It takes a brief lock on the game's three tables. If the lock is not free within 50 ms the whole file is rolled
-- back and nothing has changed: run it again (`mfg-notify migrate up` does so by itself).

BEGIN READ WRITE;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

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

CREATE SCHEMA IF NOT EXISTS mfg_notify;
COMMENT ON SCHEMA mfg_notify IS 'mfg-notify: journal of manufacturing events and their settled totals';

-- The columns that we watch, each once. An event holds them in this order, grouped by kind (core/events.py reads it):
-- of the new row all, of the old row those that a rule, the board or tail asks for. Numbers are written as they are,
-- so that integers need no cast; the other casts are free if the column has that type already, and varchar(128) cuts
-- a text only if its column does not. An optional column that is not there, or has a type of another kind, is NULL.
CREATE OR REPLACE FUNCTION mfg_notify.watched_columns()
RETURNS TABLE (source text, col text, kind text, old_row_too boolean, optional boolean) LANGUAGE sql IMMUTABLE AS $$
    VALUES
        ('pipeline', 'id',                   'text',   false, false),
        ('pipeline', 'product_good',         'text',   false, false),
        ('pipeline', 'status',               'text',   true,  false),
        ('pipeline', 'player_id',            'number', false, false),
        ('pipeline', 'total_cost',           'number', true,  false),
        ('pipeline', 'total_revenue',        'number', true,  false),
        ('pipeline', 'net_profit',           'number', true,  false),
        ('pipeline', 'started_at',           'time',   false, false),
        ('pipeline', 'completed_at',         'time',   false, false),
        ('pipeline', 'pipeline_type',        'word',   false, true),
        ('pipeline', 'construction_site',    'word',   false, true),
        ('pipeline', 'materials',            'json',   false, true),

        ('task',     'id',                   'text',   false, false),
        ('task',     'task_type',            'text',   false, false),
        ('task',     'status',               'text',   true,  false),
        ('task',     'assigned_ship',        'text',   true,  false),
        ('task',     'player_id',            'number', false, false),
        ('task',     'retry_count',          'number', true,  false),
        ('task',     'total_cost',           'number', true,  false),
        ('task',     'total_revenue',        'number', true,  false),
        ('task',     'actual_quantity',      'number', true,  true),
        ('task',     'ready_at',             'time',   false, false),
        ('task',     'started_at',           'time',   false, false),
        ('task',     'completed_at',         'time',   false, false),

        ('factory',  'factory_symbol',       'text',   false, false),
        ('factory',  'output_good',          'text',   false, false),
        ('factory',  'pipeline_id',          'text',   false, false),
        ('factory',  'current_supply',       'text',   true,  false),
        ('factory',  'id',                   'number', false, false),
        ('factory',  'player_id',            'number', false, false),
        ('factory',  'ready_for_collection', 'flag',   true,  false),
        ('factory',  'required_inputs',      'inputs', false, false),
        ('factory',  'delivered_inputs',     'inputs', false, false)
$$;

-- The watched columns that the game has, with their types.
CREATE OR REPLACE FUNCTION mfg_notify.present_columns()
RETURNS TABLE (source text, col text, type name) LANGUAGE sql STABLE AS $$
    SELECT source, col, t.typname
    FROM mfg_notify.watched_columns()
    JOIN (VALUES ('pipeline', 'public.manufacturing_pipelines'), ('task', 'public.manufacturing_tasks'),
                 ('factory', 'public.manufacturing_factory_states')) AS game (source, relation) USING (source)
    JOIN pg_attribute AS a ON a.attrelid = to_regclass(relation) AND a.attname = col AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE NOT optional OR CASE kind WHEN 'word' THEN t.typcategory IN ('S', 'E')
                                    WHEN 'number' THEN t.typname IN ('int2', 'int4', 'int8', 'numeric')
                                    ELSE t.typname IN ('json', 'jsonb') END
$$;

-- The optional columns that the triggers of this installation read, as "source.column".
DO $$
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION mfg_notify.optional_columns() RETURNS text[] LANGUAGE sql IMMUTABLE AS %L',
        format('SELECT %L::text[]', ARRAY(
            SELECT source || '.' || col FROM mfg_notify.present_columns() JOIN mfg_notify.watched_columns() USING (source, col)
            WHERE optional ORDER BY 1)));
END
$$;

-- Columns of the game that are missing, as "table.column"; none if all is well. The exporter asks when it starts and at
-- every reconciliation. An optional column is missing if the triggers read it; applying this file again mends that.
CREATE OR REPLACE FUNCTION mfg_notify.missing_columns() RETURNS SETOF text
LANGUAGE sql STABLE AS $$
    SELECT DISTINCT relation || CASE WHEN to_regclass(relation) IS NULL THEN ' (the table is missing)'
                                     WHEN optional THEN '.' || col || ' (optional: run mfg-notify migrate up)'
                                     ELSE '.' || col END
    FROM mfg_notify.watched_columns() AS watched
    JOIN (VALUES ('pipeline', 'public.manufacturing_pipelines'), ('task', 'public.manufacturing_tasks'),
                 ('factory', 'public.manufacturing_factory_states')) AS game (source, relation) USING (source)
    WHERE (NOT optional OR source || '.' || col = ANY (mfg_notify.optional_columns()))
      AND (source, col) NOT IN (SELECT p.source, p.col FROM mfg_notify.present_columns() AS p)
    ORDER BY 1
$$;

DO $$
DECLARE
    game    constant text[] := ARRAY['public.manufacturing_pipelines', 'public.manufacturing_tasks',
                                     'public.manufacturing_factory_states'];
    missing constant text   := (SELECT string_agg(c, ', ') FROM mfg_notify.missing_columns() AS c);
BEGIN
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'mfg-notify needs columns that are not there: %', missing USING ERRCODE = 'undefined_column';
    END IF;
    -- A row that moves to another partition fires the triggers of a DELETE and an INSERT, and would count again.
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (game::regclass[]) AND (c.relkind <> 'r' OR c.relispartition)) THEN
        RAISE EXCEPTION 'mfg-notify works on plain tables, not on partitioned tables, partitions or views: %',
            (SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class c
             WHERE c.oid = ANY (game::regclass[]) AND (c.relkind <> 'r' OR c.relispartition))
            USING ERRCODE = 'wrong_object_type';
    END IF;
    -- It would publish our tables too, and a subscriber that does not have them stops applying all changes.
    IF to_regclass('mfg_notify.settings') IS NULL AND EXISTS (SELECT FROM pg_publication WHERE puballtables)
       AND current_setting('mfg_notify.published', true) IS DISTINCT FROM 'yes' THEN
        RAISE EXCEPTION 'publication % is FOR ALL TABLES: replication to subscribers without the tables of mfg_notify '
            'would stop; see "In other surroundings" in the documentation',
            (SELECT string_agg(quote_ident(pubname), ', ') FROM pg_publication WHERE puballtables)
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF to_regclass('mfg_notify.settings') IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass('mfg_notify.settings') AND a.attname = 'objects') THEN
        RAISE EXCEPTION 'an unreleased version of mfg-notify is installed; apply db/triggers/0001_*.down.sql first'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- A trigger may be made with less, but only the owner can take it away again.
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (game::regclass[]) AND NOT pg_has_role(c.relowner, 'USAGE')) THEN
        RAISE EXCEPTION 'install as the role that owns the game''s tables, %; % does not',
            (SELECT string_agg(DISTINCT quote_ident(pg_get_userbyid(c.relowner)), ', ') FROM pg_class c
             WHERE c.oid = ANY (game::regclass[])), quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- ---------------------------------------------------------------------------------------------- tables --

-- The journal (an outbox): a trigger adds a row in the game's own transaction, a fold takes it away. The body is JSON as
-- text: ["task", operation, [texts], [numbers], [times]], see watched_columns(). Operations are I, U and D; M for an
-- update that changes the key or the player, after a D of the old row; T for a TRUNCATE. Two repeat what other events
-- say, because the events of a row came out of order: R a row as it is, X the end of a row.
CREATE TABLE IF NOT EXISTS mfg_notify.event (
    id      bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME mfg_notify.event_id_seq) PRIMARY KEY,
    xid     xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    version smallint NOT NULL DEFAULT 1,
    body    text NOT NULL
) WITH (
    -- Rows live for milliseconds; vacuum by count of dead rows, whatever the table's size is at the moment.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
    -- To give room back at the end of the file, vacuum would lock the triggers out; and it is needed again.
    vacuum_truncate = false
);

-- Rows of the journal that are not events: they count as nothing. The exporter keeps the last 1,000 for inspection.
CREATE TABLE IF NOT EXISTS mfg_notify.dead_letter (
    id           bigint PRIMARY KEY,
    xid          xid8 NOT NULL,
    at           timestamptz NOT NULL,
    body         text NOT NULL,
    reason       text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now()
);

-- Settled counters: every event that has left the journal is in here, once. Labels are {"name": "value"}. A
-- histogram is its bucket rows (metric …_bucket with label le, each observation in one bucket only: not cumulative)
-- and one …_sum row. Durations are microseconds, credits are credits, so that sums are exact.
CREATE TABLE IF NOT EXISTS mfg_notify.total (
    metric  text NOT NULL,
    labels  jsonb NOT NULL,
    n       bigint NOT NULL,
    seed    bigint NOT NULL DEFAULT 0,            -- what n began with, where that was not 0
    arrival bigint GENERATED ALWAYS AS IDENTITY,  -- order of first appearance; the cap on series goes by it
    PRIMARY KEY (metric, labels)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The books, by which `mfg-notify verify` checks that every change was recorded. Each fold adds an entry; now and then one
-- entry takes the place of all. The body is JSON as text: {"truncated": [source, …], "rows": [[source, player, status, n],
-- …], "sums": {metric: n, …}, "unrecorded": {source: n, …}, "accepted": {metric: n, …}}. The rows add up to the number of
-- live rows by table (source), player and status, as the events that have left the journal say: +1 for the new row, -1 for
-- the old one. All rows of factories count, by supply level; '' stands for none. The sums are what was added to the totals
-- of a metric. Unrecorded are the rows that somebody has changed without an event, counted when a check found them; accepted
-- is what somebody has changed in the totals of a metric, when `verify --accept` took it over.
CREATE TABLE IF NOT EXISTS mfg_notify.entry (
    id   bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME mfg_notify.entry_id_seq) PRIMARY KEY,
    body text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- Pipelines COMPLETED in the last hour: what the profit rate is made of.
CREATE TABLE IF NOT EXISTS mfg_notify.recent (
    pipeline_id  text PRIMARY KEY,
    player_id    bigint NOT NULL,
    completed_at timestamptz NOT NULL,
    profit       bigint NOT NULL
);

-- When something was last seen: kind task_type (last start), kind ship (last on a task), kind player (last event).
CREATE TABLE IF NOT EXISTS mfg_notify.latest (
    kind      text NOT NULL,
    player_id bigint NOT NULL,
    key       text NOT NULL,
    at        timestamptz NOT NULL,
    PRIMARY KEY (kind, player_id, key)
);

-- One row: which exporter folds. Its row lock is the mutex of folds, its generation the fencing token.
CREATE TABLE IF NOT EXISTS mfg_notify.lease (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation  bigint NOT NULL DEFAULT 0,
    holder      text,
    backend_pid integer,
    renewed_at  timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);
INSERT INTO mfg_notify.lease DEFAULT VALUES ON CONFLICT DO NOTHING;

-- One row that hardly changes, because every trigger that notifies reads it. The channel is a secret: any role may
-- NOTIFY any channel, so its name is the key.
CREATE TABLE IF NOT EXISTS mfg_notify.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  integer NOT NULL,
    channel  text NOT NULL,
    notify   boolean NOT NULL,
    seeded   boolean NOT NULL DEFAULT false,
    installed_at timestamptz,              -- when the triggers were created for the first time
    applied  jsonb NOT NULL DEFAULT '{}',  -- number of each migration → its hash, by which a release is recognised
    objects  jsonb NOT NULL DEFAULT '{}'   -- what object_hashes() returned when the last one had been applied
);
INSERT INTO mfg_notify.settings (version, channel, notify)
VALUES (
    1,
    'mfg_notify_' || left(encode(sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea), 'hex'), 32),
    true
) ON CONFLICT DO NOTHING;

-- A row for each transaction that has buffered events: its deferred trigger writes them at the COMMIT and deletes the
-- row. So a row that another transaction can see is a buffer that was lost: somebody made the transaction READ ONLY, or
-- disabled the trigger. The exporter counts such rows as losses. (A deferred trigger on the game's own tables would
-- forbid ALTER TABLE in the same transaction.)
CREATE UNLOGGED TABLE IF NOT EXISTS mfg_notify.pending_commit (xid xid8 NOT NULL DEFAULT pg_current_xact_id())
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false);

-- Changes of rows whose events were given up. A sequence, because nextval survives the rollback of the trigger's work.
CREATE SEQUENCE IF NOT EXISTS mfg_notify.lost MINVALUE 0 START 0;
-- Every id up to this one has left the journal, as the last fold that drained it knows: the journal's own sequence minus
-- this one bounds the backlog.
CREATE SEQUENCE IF NOT EXISTS mfg_notify.folded MINVALUE 0 START 0;
-- 1: the triggers write the journal and do not notify; 0: they notify. A sequence, because setval takes effect at once,
-- in running transactions too. The exporter that holds the lease sets it.
CREATE SEQUENCE IF NOT EXISTS mfg_notify.notify_disabled MINVALUE 0 MAXVALUE 1 START 0;
-- pg_sequence_last_value is NULL until a sequence has been used.
DO $$
BEGIN
    PERFORM setval(name, 0) FROM unnest('{mfg_notify.folded,mfg_notify.notify_disabled}'::regclass[]) AS name
    WHERE pg_sequence_last_value(name) IS NULL;
END
$$;

-- Our functions and triggers by name, with a hash of each, and our tables and sequences: what `migrate` and `doctor`
-- compare with settings.objects. (The table `granted` belongs to the exporter's role.)
CREATE OR REPLACE FUNCTION mfg_notify.object_hashes() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_object_agg(name, hash) FROM (
        SELECT 'function ' || p.proname AS name,
               md5(concat_ws(' ', p.prosrc, p.proconfig, p.prosecdef, p.provolatile, p.proowner::regrole)) AS hash
        FROM pg_proc AS p WHERE p.pronamespace = 'mfg_notify'::regnamespace
        UNION ALL
        SELECT format('trigger %s on %s', t.tgname, c.relname), md5(concat_ws(' ', t.tgtype, p.proname, t.tgargs, t.tgqual))
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE p.pronamespace = 'mfg_notify'::regnamespace
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.relname, ''
        FROM pg_class AS c
        WHERE c.relnamespace = 'mfg_notify'::regnamespace AND c.relkind IN ('r', 'S') AND c.relname <> 'granted') AS object
$$;

REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM PUBLIC;
REVOKE ALL ON SCHEMA mfg_notify FROM PUBLIC;

-- -------------------------------------------------------------------------------------------- triggers --
-- The game comes first. Whatever fails here is caught, counted in mfg_notify.lost and forgotten. Nothing waits longer
-- than 25 ms (less would lose events without need: the server itself holds the lock that extends the journal's file for
-- over 10 ms on a busy machine). A circuit breaker makes a transaction pay for a failure once: after the first one its
-- triggers only count. One error is passed on: after a serialization failure a SERIALIZABLE transaction has to retry.
--
-- The first event of a transaction is written at once, because most transactions have no other. Later ones are buffered
-- in a transaction-local setting and flushed at the COMMIT: a write within an EXCEPTION block is a subtransaction with
-- an id of its own, which is too much for each of 100,000 rows. Two settings hold the state of a transaction:
--
--   mfg_notify.buffered      nothing: no event yet · -7: 7 may have been announced, none is buffered ·
--                            +123 7 and a line for each event: those that transaction 123 has buffered
--   mfg_notify.circuit_open  123 count: transaction 123 has failed · 123 silent: even the counter cannot be had
--
-- The transaction's id guards against settings that somebody has made for a whole session.
--
-- No string here has a backslash, except those with E: sessions with standard_conforming_strings = off read it otherwise.
--
-- A trigger's cost is mostly the set-up of its expressions, once a transaction each. So there are few of them, arrays
-- of columns are compared and converted as one, and what is conversion is left to the exporter
-- (benchmarks/count_instructions.py counts the instructions).

-- These functions of one expression are inlined.
CREATE OR REPLACE FUNCTION mfg_notify.backlog() RETURNS bigint LANGUAGE sql AS $$
    SELECT pg_sequence_last_value('mfg_notify.event_id_seq') - pg_sequence_last_value('mfg_notify.folded')
$$;

-- Immutable, so that it is evaluated once a plan: the setting cannot change while a session lives.
CREATE OR REPLACE FUNCTION mfg_notify.transactions_can_be_prepared() RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT current_setting('max_prepared_transactions')::integer > 0
$$;

-- With a full notification queue, the COMMIT of a transaction that notifies fails, and no EXCEPTION block can catch that.
-- PREPARE TRANSACTION refuses a transaction that has notified.
CREATE OR REPLACE FUNCTION mfg_notify.can_notify() RETURNS boolean LANGUAGE sql AS $$
    SELECT NOT mfg_notify.transactions_can_be_prepared() AND pg_notification_queue_usage() < 0.25
$$;

-- Other encodings may not convert to the listener's, which is UTF8.
CREATE OR REPLACE FUNCTION mfg_notify.database_is_utf8() RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT getdatabaseencoding() = 'UTF8'
$$;

-- The payload of an event: its row of the journal, or just 'fold' if that is long.
CREATE OR REPLACE FUNCTION mfg_notify.payload(id bigint, xid xid8, at timestamptz, body text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN octet_length(body) < 1900 AND (mfg_notify.database_is_utf8() OR body !~ '[^[:ascii:]]')
                THEN format('[1,%s,%s,%s,%s]', id, xid, to_json(at), body) ELSE 'fold' END
$$;

-- Writes events, one a line, and announces them if they are no more than 100 with those that their transaction has
-- announced already; else it says 'fold' once. 100 payloads of 2,000 bytes fit into three quarters of the smallest
-- queue there can be. Returns how many the transaction has announced.
CREATE OR REPLACE FUNCTION mfg_notify.write_events(events text, announced integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    sum_total constant integer := announced + 1 + octet_length(events) - octet_length(replace(events, E'\n', ''));
    sent bigint;
BEGIN
    -- An exporter that never comes back must not fill the disk.
    IF mfg_notify.backlog() > 5000000 THEN
        RAISE EXCEPTION 'the journal holds 5000000 events that no exporter has folded';
    END IF;
    IF sum_total <= 100 AND mfg_notify.can_notify()
       AND pg_sequence_last_value('mfg_notify.notify_disabled') = 0 THEN
        WITH written AS (
            INSERT INTO mfg_notify.event (body) SELECT * FROM string_to_table(events, E'\n') RETURNING id, xid, at, body)
        SELECT count(pg_notify(s.channel, mfg_notify.payload(w.id, w.xid, w.at, w.body))) INTO sent
        FROM written AS w, mfg_notify.settings AS s WHERE s.notify;
    ELSE
        INSERT INTO mfg_notify.event (body) SELECT * FROM string_to_table(events, E'\n');
        PERFORM pg_notify(s.channel, 'fold') FROM mfg_notify.settings AS s
        WHERE s.notify AND mfg_notify.can_notify() AND pg_sequence_last_value('mfg_notify.notify_disabled') = 0;
    END IF;
    RETURN least(sum_total, 101);
END
$$;

-- How many inputs of a factory have come, and how many it requires, as JSON. A key exists in `delivered` from the start,
-- so only delivered = true counts; what is not an array requires nothing. One look-up for each required good, in values
-- that || has taken out of TOAST before: otherwise each look-up would do that again.
CREATE OR REPLACE FUNCTION mfg_notify.count_inputs(required jsonb, delivered jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    goods constant jsonb   := CASE jsonb_typeof(required) WHEN 'array' THEN required || '[]' ELSE '[]' END;
    held  constant jsonb   := CASE jsonb_typeof(delivered) WHEN 'object' THEN delivered || '{}' ELSE '{}' END;
    n     constant integer := jsonb_array_length(goods);
    found integer := 0;
BEGIN
    FOR i IN 0 .. n - 1 LOOP
        IF held -> (goods ->> i) -> 'delivered' = 'true' THEN
            found := found + 1;
        END IF;
    END LOOP;
    RETURN format('[%s,%s]', found, n);
END
$$;

-- A construction pipeline as JSON: its site and, of each material, the units delivered and the units that the site needs,
-- summed if a good comes twice. What is not an array has no materials, what is not a number is 0. It never fails, because
-- the columns are optional; and it returns one line.
CREATE OR REPLACE FUNCTION mfg_notify.construction(site text, materials text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    listed text;
BEGIN
    BEGIN
        SELECT string_agg(json_build_array(good, least(delivered, 9e18)::bigint, least(target, 9e18)::bigint)::text,
                          ',' ORDER BY good) INTO listed
        FROM (SELECT left(material ->> 'tradeSymbol', 128) AS good,
                     sum(CASE jsonb_typeof(material -> 'deliveredQuantity') WHEN 'number'
                         THEN greatest((material -> 'deliveredQuantity')::numeric, 0) ELSE 0 END) AS delivered,
                     sum(CASE jsonb_typeof(material -> 'targetQuantity') WHEN 'number'
                         THEN greatest((material -> 'targetQuantity')::numeric, 0) ELSE 0 END) AS target
              FROM jsonb_array_elements(CASE jsonb_typeof(materials::jsonb) WHEN 'array' THEN materials::jsonb ELSE '[]' END)
                   WITH ORDINALITY AS given (material, place)
              WHERE material ->> 'tradeSymbol' <> '' AND place <= 100
              GROUP BY good) AS needed;
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN format('[%s,[%s]]', coalesce(to_json(left(site, 128)), '""'), listed);
END
$$;

-- Makes the row functions pipeline_changed, task_changed and factory_changed, and table_truncated. Their text is the
-- template, with what belongs to a table in place of the words in braces.
DO $install$
DECLARE
    row_function constant text := $template$
CREATE OR REPLACE FUNCTION mfg_notify.{name}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '25ms' {settings} AS $body$
DECLARE
    event    text;
    buffered text;
    mine     text;
    reason   text;
    replan   boolean;
    {variables}
BEGIN
    LOOP
        BEGIN
            {observe}
            mine := pg_current_xact_id()::text || ' ';
            buffered := coalesce(current_setting('mfg_notify.buffered', true), '');
            IF starts_with(current_setting('mfg_notify.circuit_open', true), mine) THEN
                EXIT;
            ELSIF buffered = '' AND strpos(event, E'\n') = 0 THEN
                buffered := set_config('mfg_notify.buffered', '-' || mfg_notify.write_events(event, 0), true);
            ELSIF NOT starts_with(buffered, '+' || mine) THEN
                buffered := set_config('mfg_notify.buffered', format(E'+%s%s\n%s', mine,
                    CASE WHEN buffered ~ '^-[0-9]{1,3}$' THEN substr(buffered, 2) ELSE '1' END, event), true);
                -- Last: after SET CONSTRAINTS ALL IMMEDIATE this flushes at once.
                INSERT INTO mfg_notify.pending_commit DEFAULT VALUES;
            ELSIF octet_length(buffered) < 4000 THEN
                buffered := set_config('mfg_notify.buffered', buffered || E'\n' || event, true);
            ELSE
                -- There will be many: from now on only 'fold' is sent.
                PERFORM mfg_notify.write_events(substr(buffered, strpos(buffered, E'\n') + 1), 101);
                buffered := set_config('mfg_notify.buffered', format(E'+%s101\n%s', mine, event), true);
            END IF;
            RETURN NULL;
        EXCEPTION
            WHEN serialization_failure THEN
                RAISE;
            WHEN OTHERS THEN
                -- A plan of this session knows a column by the type that it had: once more, with new plans.
                replan := SQLSTATE = '42804' AND reason IS NULL;
                reason := SQLERRM;
                EXIT WHEN NOT replan;
                BEGIN
                    DISCARD PLANS;
                EXCEPTION WHEN OTHERS THEN
                    EXIT;
                END;
        END;
    END LOOP;

    -- Given up. What follows uses nothing of ours but the counter, for anything of ours may be what has failed.
    mine := pg_current_xact_id()::text || ' ';
    IF current_setting('mfg_notify.circuit_open', true) = mine || 'silent' THEN
        RETURN NULL;
    ELSIF NOT coalesce(starts_with(current_setting('mfg_notify.circuit_open', true), mine), false) THEN
        BEGIN
            RAISE WARNING 'mfg-notify did not record a change of %: %', TG_TABLE_NAME, reason;
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- the encoding of the game's client has no letters for it; it is counted below
        END;
    END IF;
    BEGIN
        PERFORM nextval('mfg_notify.lost');
        buffered := set_config('mfg_notify.circuit_open', mine || 'count', true);
    EXCEPTION WHEN OTHERS THEN
        -- The counter is locked or gone: it is not waited for again in this transaction.
        buffered := set_config('mfg_notify.circuit_open', mine || 'silent', true);
    END;
    IF coalesce(current_setting('mfg_notify.buffered', true), '') = '' THEN
        buffered := set_config('mfg_notify.buffered', '-1', true);  -- where the next change looks at the circuit
    END IF;
    RETURN NULL;
END
$body$
$template$;
    observe_row constant text := $observe${return_if_unchanged}
            {look}
            IF (OLD.id = NEW.id AND OLD.player_id = NEW.player_id) IS NOT TRUE OR NEW.xmax <> '0'
               OR current_setting('mfg_notify.buffered', true) <> '' OR mfg_notify.backlog() > 5000000 THEN
                IF TG_OP = 'DELETE' THEN
                    IF NOT ({live}) THEN
                        RETURN NULL;  -- the end of a finished row moves no number
                    END IF;
                    event := {delete};
                ELSIF TG_OP = 'INSERT' THEN
                    event := {insert};
                ELSIF OLD.id = NEW.id AND OLD.player_id IS NOT DISTINCT FROM NEW.player_id THEN
                    event := {update};
                ELSE
                    -- The row goes on under another key, or as another player's. Without a player it was in no balance.
                    event := concat_ws(E'\n', CASE WHEN OLD.player_id IS NOT NULL THEN {delete} END, {move});
                END IF;
                IF NEW.xmax <> '0' THEN
                    -- Another session has locked the new row, or a trigger of the game that fires before ours has changed
                    -- it again. The event of that change comes before this one, so repeat the row as it is now.
                    SELECT t.*, t.ctid AS place INTO latest FROM {relation} AS t WHERE t.id = NEW.id;
                    IF row_security_active('{relation}'::regclass) THEN
                        RAISE EXCEPTION 'row-level security hides rows of %', TG_TABLE_NAME;
                    ELSIF latest.place IS NULL AND {live_new} THEN
                        event := event || E'\n' || {gone};
                    ELSIF latest.place <> NEW.ctid THEN
                        event := event || E'\n' || {again};
                    END IF;
                END IF;
            ELSE
                -- The usual case, in as few expressions as can be: an UPDATE that is its transaction's first event.
                IF pg_sequence_last_value('mfg_notify.notify_disabled') = 1 THEN
                    INSERT INTO mfg_notify.event (body) VALUES ({update});
                ELSE
                    INSERT INTO mfg_notify.event AS e (body) VALUES ({update})
                    RETURNING (SELECT pg_notify(s.channel, mfg_notify.payload(e.id, e.xid, e.at, e.body))
                               FROM mfg_notify.settings AS s WHERE s.notify AND mfg_notify.can_notify())
                    INTO buffered;
                END IF;
                buffered := set_config('mfg_notify.buffered', '-1', true);
                RETURN NULL;
            END IF;$observe$;
    -- A factory event says how many inputs have come and, for a change of supply or readiness, whether the row is the
    -- current one of its factory: the newest whose pipeline is live, or which has none. Several rows, one a pipeline,
    -- describe a factory at once, and rows of finished pipelines stay behind. If only a few rows of all factories are
    -- newer, they are looked through. Else the search goes from the live pipelines into the indexes of the factory rows.
    -- Neither grows with history; LIMIT and OFFSET 0 keep the planner from ways that do.
    look_at_factory constant text := $look$IF TG_OP <> 'DELETE' THEN
                inputs := mfg_notify.count_inputs(NEW.required_inputs::jsonb, NEW.delivered_inputs::jsonb);
            END IF;
            IF TG_OP <> 'INSERT' AND (ARRAY[OLD.required_inputs::jsonb, OLD.delivered_inputs::jsonb]
                                      = ARRAY[NEW.required_inputs::jsonb, NEW.delivered_inputs::jsonb]) IS NOT TRUE THEN
                old_inputs := mfg_notify.count_inputs(OLD.required_inputs::jsonb, OLD.delivered_inputs::jsonb);
            END IF;
            IF TG_OP = 'UPDATE' AND (OLD.current_supply, OLD.ready_for_collection)
                                    IS DISTINCT FROM (NEW.current_supply, NEW.ready_for_collection) THEN
                IF row_security_active('public.manufacturing_factory_states'::regclass)
                   OR row_security_active('public.manufacturing_pipelines'::regclass) THEN
                    RAISE EXCEPTION 'row-level security hides rows of manufacturing_factory_states';
                END IF;
                is_current := NEW.pipeline_id IS NULL OR EXISTS (
                    SELECT FROM public.manufacturing_pipelines AS p
                    WHERE p.id = NEW.pipeline_id AND p.status IN ('PLANNING', 'EXECUTING'));
                IF is_current AND (SELECT f.id FROM public.manufacturing_factory_states AS f
                                   ORDER BY f.id DESC LIMIT 1) - NEW.id <= 100 THEN
                    is_current := NOT EXISTS (
                        SELECT FROM (SELECT f.factory_symbol, f.output_good, f.player_id, f.pipeline_id
                                     FROM public.manufacturing_factory_states AS f
                                     WHERE f.id > NEW.id ORDER BY f.id DESC LIMIT 100) AS newer
                        WHERE newer.factory_symbol = NEW.factory_symbol AND newer.output_good = NEW.output_good
                          AND newer.player_id = NEW.player_id
                          AND (newer.pipeline_id IS NULL
                               OR EXISTS (SELECT FROM public.manufacturing_pipelines AS p
                                          WHERE p.id = newer.pipeline_id AND p.status IN ('PLANNING', 'EXECUTING')
                                          OFFSET 0)));
                ELSIF is_current THEN
                    is_current := NOT EXISTS (
                        SELECT FROM (SELECT f.factory_symbol, f.output_good, f.player_id, f.id
                                     FROM public.manufacturing_factory_states AS f
                                     WHERE f.pipeline_id = ANY (ARRAY(SELECT p.id FROM public.manufacturing_pipelines AS p
                                                                      WHERE p.status IN ('PLANNING', 'EXECUTING')))
                                     OFFSET 0) AS other
                        WHERE other.factory_symbol = NEW.factory_symbol AND other.output_good = NEW.output_good
                          AND other.player_id = NEW.player_id AND other.id > NEW.id)
                    AND NOT EXISTS (
                        SELECT FROM public.manufacturing_factory_states AS f
                        WHERE f.factory_symbol = NEW.factory_symbol AND f.output_good = NEW.output_good
                          AND f.pipeline_id IS NULL AND f.player_id + 0 = NEW.player_id AND f.id + 0 > NEW.id OFFSET 0);
                END IF;
            END IF;$look$;
    return_if_unchanged constant text := $look$IF {unchanged} THEN
                RETURN NULL;
            END IF;$look$;
    -- The event of a construction pipeline has its site and materials, of the old row and of the new one. All others are
    -- spared the comparison. The type may be an enum that does not know the word.
    return_if_construction_unchanged constant text := $look$IF NEW.pipeline_type::text = 'CONSTRUCTION'
               OR OLD.pipeline_type::text = 'CONSTRUCTION' THEN
                was := CASE WHEN OLD.pipeline_type::text = 'CONSTRUCTION'
                            THEN mfg_notify.construction({old_site}, OLD.materials::text) ELSE 'null' END;
                construction := CASE WHEN NEW.pipeline_type::text = 'CONSTRUCTION'
                                     THEN mfg_notify.construction({new_site}, NEW.materials::text) ELSE 'null' END;
                IF construction = was AND {unchanged} THEN
                    RETURN NULL;
                END IF;
                construction := format('%s,%s', was, construction);
            ELSIF {unchanged} THEN
                RETURN NULL;
            END IF;$look$;
    has_construction constant boolean := (
        SELECT count(*) = 2 FROM mfg_notify.present_columns() WHERE col IN ('pipeline_type', 'materials'));
    has_site constant boolean := EXISTS (SELECT FROM mfg_notify.present_columns() WHERE col = 'construction_site');
    t        record;
    word     text;
    meant    text;
    function text;
BEGIN
    FOR t IN
        WITH columns AS (
            SELECT source, kind, old_row_too, n, type IS NOT NULL AS present,
                   format(cast_to, 'OLD.' || col) AS was, format(cast_to, 'NEW.' || col) AS becomes,
                   format(cast_to, CASE WHEN type IS NULL THEN 'NULL' ELSE '{row}.' || col END) AS written
            FROM mfg_notify.watched_columns() WITH ORDINALITY AS w (source, col, kind, old_row_too, optional, n)
            LEFT JOIN mfg_notify.present_columns() AS p USING (source, col)
            JOIN (VALUES ('text', '%s::varchar(128)'), ('number', '%s'), ('time', '%s::timestamptz'),
                         ('flag', '%s::boolean'), ('inputs', '%s::jsonb'), ('word', NULL), ('json', NULL)) AS k (kind, cast_to)
                USING (kind)
        ), kinds AS (
            -- The columns of a kind, of the old row and of the new one, as lists for ARRAY[…].
            SELECT source, kind, min(n) AS n,
                   string_agg(was, ', ' ORDER BY n) FILTER (WHERE present) AS old_row,
                   string_agg(becomes, ', ' ORDER BY n) FILTER (WHERE present) AS new_row,
                   string_agg(replace(written, '{row}', 'OLD') || ', ', '' ORDER BY n) FILTER (WHERE old_row_too) AS kept,
                   string_agg('NULL, ', '') FILTER (WHERE old_row_too) AS nothing,
                   string_agg(replace(written, '{row}', 'OLD'), ', ' ORDER BY n) AS old_values,
                   string_agg(replace(written, '{row}', 'NEW'), ', ' ORDER BY n) AS new_values
            FROM columns GROUP BY source, kind
        ), events AS (
            SELECT source, string_agg(format('ARRAY[%s] = ARRAY[%s]', old_row, new_row), ' AND ' ORDER BY n)
                       FILTER (WHERE kind NOT IN ('word', 'json')) AS unchanged,
                   string_agg('%s', ',') FILTER (WHERE kind IN ('text', 'number', 'time', 'flag')) AS places,
                   string_agg(format('array_to_json(ARRAY[%s%s])', kept, new_values), ', ' ORDER BY n)
                       FILTER (WHERE kind IN ('text', 'number', 'time', 'flag')) AS changed,
                   string_agg(format('array_to_json(ARRAY[%s%s])', nothing, old_values), ', ' ORDER BY n)
                       FILTER (WHERE kind IN ('text', 'number', 'time', 'flag')) AS gone
            FROM kinds GROUP BY source
        )
        SELECT *, format('format(''["%s","{operation}",%s%s]'', %s%s)', source, places, more_places, changed, more) AS event,
               format('format(''["%s","D",%s%s]'', %s%s)', source, places, more_places, gone, more) AS farewell,
               format('format(''["%s","X",%s%s]'', %s%s)', source, places, more_places, gone, more) AS gone_event,
               format('format(''["%s","R",%s%s]'', %s%s)', source, places, more_places, changed, more_again) AS again
        FROM events JOIN (VALUES
            ('pipeline', 'public.manufacturing_pipelines', $$OLD.status IN ('PLANNING', 'EXECUTING')$$,
             CASE WHEN has_construction THEN return_if_construction_unchanged ELSE return_if_unchanged END,
             '', $$construction text := 'null,null'; was text;$$, '', ',%s', ', construction', ', construction'),
            ('task', 'public.manufacturing_tasks', $$OLD.status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')$$,
             return_if_unchanged, '', '', '', '', '', ''),
            ('factory', 'public.manufacturing_factory_states', 'true', return_if_unchanged,
             look_at_factory, $$is_current boolean; old_inputs text := 'null'; inputs text := 'null';$$,
             'SET plan_cache_mode = force_generic_plan', ',%s,%s,%s', $$, coalesce(is_current::text, 'null'), old_inputs, inputs$$,
             $$, 'null', 'null', mfg_notify.count_inputs(NEW.required_inputs::jsonb, NEW.delivered_inputs::jsonb)$$)
        ) AS game (source, relation, live, return_if_unchanged, look, variables, settings, more_places, more, more_again) USING (source)
    LOOP
        function := row_function;
        FOR word, meant IN VALUES
            ('{name}', t.source || '_changed'), ('{settings}', t.settings), ('{variables}', 'latest record; ' || t.variables),
            ('{observe}', observe_row), ('{return_if_unchanged}', t.return_if_unchanged),
            ('{old_site}', CASE WHEN has_site THEN 'OLD.construction_site::text' ELSE 'NULL' END),
            ('{new_site}', CASE WHEN has_site THEN 'NEW.construction_site::text' ELSE 'NULL' END),
            ('{unchanged}', t.unchanged), ('{look}', t.look), ('{live}', t.live), ('{live_new}', replace(t.live, 'OLD.', 'NEW.')),
            ('{relation}', t.relation), ('{update}', replace(t.event, '{operation}', 'U')),
            ('{insert}', replace(t.event, '{operation}', 'I')), ('{move}', replace(t.event, '{operation}', 'M')),
            ('{delete}', t.farewell), ('{gone}', replace(t.gone_event, 'OLD.', 'NEW.')),
            ('{again}', replace(replace(t.again, 'OLD.', 'latest.'), 'NEW.', 'latest.'))
        LOOP
            function := replace(function, word, meant);
        END LOOP;
        EXECUTE function;
    END LOOP;

    function := row_function;
    FOR word, meant IN VALUES
        ('{name}', 'table_truncated'), ('{settings}', ''), ('{variables}', ''),
        ('{observe}', $$event := rpad(format('["%s","T"]', TG_ARGV[0]), 64);$$)
    LOOP
        function := replace(function, word, meant);
    END LOOP;
    EXECUTE function;
END
$install$;

-- Writes what a transaction has buffered, at its end. It finds nothing if somebody has reset the settings in between:
-- then it counts what a buffer can hold, 4,000 bytes of events of at least 64. If it cannot even count (in a transaction
-- that was made READ ONLY), it leaves the row behind, for the exporter to count.
CREATE OR REPLACE FUNCTION mfg_notify.flush_at_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '25ms' AS $$
DECLARE
    mine     constant text := pg_current_xact_id()::text || ' ';
    buffered text := coalesce(current_setting('mfg_notify.buffered', true), '');
    header   constant text := substring(buffered FROM '^[+]' || mine || E'([0-9]{1,3})\n.');
    events   constant text := substr(buffered, strpos(buffered, E'\n') + 1);
    reason   text;
BEGIN
    IF NOT coalesce(starts_with(current_setting('mfg_notify.circuit_open', true), mine), false) THEN
        BEGIN
            IF header IS NULL THEN
                RAISE EXCEPTION 'the settings of the transaction have been reset';
            END IF;
            buffered := set_config('mfg_notify.buffered', '-' || mfg_notify.write_events(events, header::integer), true);
            DELETE FROM mfg_notify.pending_commit WHERE ctid = NEW.ctid;
            RETURN NULL;
        EXCEPTION
            WHEN serialization_failure THEN
                RAISE;
            WHEN OTHERS THEN
                reason := SQLERRM;
        END;
        BEGIN
            RAISE WARNING 'mfg-notify did not record the changes of a transaction: %', reason;
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- the encoding of the game's client has no letters for it; it is counted below
        END;
    END IF;
    BEGIN
        PERFORM nextval('mfg_notify.lost') FROM generate_series(1,
            CASE WHEN header IS NULL THEN 64 ELSE cardinality(string_to_array(events, E'\n')) END);
        DELETE FROM mfg_notify.pending_commit WHERE ctid = NEW.ctid;
        buffered := set_config('mfg_notify.buffered', '-1', true);
        buffered := set_config('mfg_notify.circuit_open', mine || 'count', true);
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the counter is locked or gone, or the transaction is READ ONLY by now
    END;
    RETURN NULL;
END
$$;

-- The exporter's role has no right to delete from the journal, because with it comes the right to lock it. It calls
-- these. Journal rows are never updated, so a ctid identifies a row while the fold holds its lock on the lease. Up to the
-- id `after` there are only dead rows, which the scan of the index skips.
CREATE OR REPLACE FUNCTION mfg_notify.take_events(of_version integer, after bigint, at_most integer)
RETURNS TABLE (id bigint, xid bigint, at bigint, body text)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_sort = off  -- without statistics the planner might sort the whole journal
AS $$
    DELETE FROM mfg_notify.event AS taken
    WHERE taken.ctid = ANY (ARRAY(SELECT e.ctid FROM mfg_notify.event AS e WHERE e.version = of_version AND e.id > after
                                  ORDER BY e.id LIMIT at_most))
    RETURNING taken.id, taken.xid::text::bigint, (date_part('epoch', taken.at) * 1000000)::bigint, taken.body
$$;

-- Counts the buffers that were not written at their COMMIT: the flush deletes its row, so a visible row is a lost buffer,
-- which holds at most 64 events.
CREATE OR REPLACE FUNCTION mfg_notify.count_abandoned() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH abandoned AS (DELETE FROM mfg_notify.pending_commit RETURNING xid)
    SELECT count(nextval('mfg_notify.lost')) FROM abandoned, generate_series(1, 64)
$$;

-- Otherwise anyone could hang these on a table of theirs and forge events.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA mfg_notify FROM PUBLIC;

-- The trigger functions run as a role of this database that can do nothing else, if the installer may create one; else
-- as the installer. A role that somebody else has made, or that others are members of, is not used.
DO $$
DECLARE
    owner constant name := 'mfg_notify_owner_' || (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
    made  constant text := 'owner of the trigger functions of mfg-notify, made by its migration';
    installer constant regrole := to_regrole(quote_ident(current_user));
    statement text;
    function  text;
BEGIN
    BEGIN
        IF to_regrole(owner) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', owner);
            EXECUTE format('COMMENT ON ROLE %I IS %L', owner, made);
        ELSIF shobj_description(to_regrole(owner), 'pg_authid') IS DISTINCT FROM made
              OR EXISTS (SELECT FROM pg_auth_members AS m WHERE m.roleid = to_regrole(owner) AND m.member <> installer)
              OR EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = to_regrole(owner)
                         AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication)) THEN
            RAISE EXCEPTION 'role % has other members or was not made by this migration', owner
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        IF NOT pg_has_role(owner, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %I', owner, current_user);
        END IF;
        FOREACH statement IN ARRAY ARRAY[
            'GRANT USAGE, CREATE ON SCHEMA mfg_notify TO %I',
            'GRANT SELECT, INSERT ON mfg_notify.event TO %I',
            'GRANT SELECT, INSERT, DELETE ON mfg_notify.pending_commit TO %I',
            'GRANT SELECT ON mfg_notify.settings TO %I',
            'GRANT USAGE, SELECT ON mfg_notify.event_id_seq, mfg_notify.lost, mfg_notify.folded, mfg_notify.notify_disabled TO %I',
            'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mfg_notify TO %I',
            'REVOKE EXECUTE ON FUNCTION mfg_notify.take_events, mfg_notify.count_abandoned FROM %I',
            'GRANT USAGE ON SCHEMA public TO %I',
            'GRANT SELECT ON public.manufacturing_pipelines TO %I',
            'GRANT SELECT ON public.manufacturing_tasks TO %I',
            'GRANT SELECT ON public.manufacturing_factory_states TO %I'] LOOP
            EXECUTE format(statement, owner);
        END LOOP;
        -- GRANT only warns a role that has these rights without the grant option.
        IF NOT has_schema_privilege(owner, (SELECT c.relnamespace FROM pg_class c
                                            WHERE c.oid = 'public.manufacturing_pipelines'::regclass), 'USAGE')
           OR NOT has_table_privilege(owner, 'public.manufacturing_pipelines', 'SELECT')
           OR NOT has_table_privilege(owner, 'public.manufacturing_tasks', 'SELECT')
           OR NOT has_table_privilege(owner, 'public.manufacturing_factory_states', 'SELECT') THEN
            RAISE EXCEPTION 'the installer may not share its rights on the game''s tables'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        FOR function IN SELECT p.oid::regprocedure FROM pg_proc AS p
                        WHERE p.pronamespace = 'mfg_notify'::regnamespace AND p.prorettype = 'trigger'::regtype LOOP
            EXECUTE format('ALTER FUNCTION %s OWNER TO %I', function, owner);
        END LOOP;
        EXECUTE format('REVOKE CREATE ON SCHEMA mfg_notify FROM %I', owner);
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'the trigger functions run as %, and everything works; they have no role of their own: %',
            current_user, SQLERRM;
        FOR function IN SELECT p.oid::regprocedure FROM pg_proc AS p
                        WHERE p.pronamespace = 'mfg_notify'::regnamespace AND p.proowner <> installer LOOP
            EXECUTE format('ALTER FUNCTION %s OWNER TO %I', function, current_user);
        END LOOP;
    END;
END
$$;

-- Skip it if it already exists: re-creating it would block writers. ENABLE ALWAYS, because a row in this table must
-- always trigger the flush.
DO $$
DECLARE
    state "char" := (SELECT t.tgenabled FROM pg_trigger t
                     WHERE t.tgrelid = 'mfg_notify.pending_commit'::regclass AND t.tgname = 'mfg_notify_flush');
BEGIN
    IF state IS NULL THEN
        CREATE CONSTRAINT TRIGGER mfg_notify_flush AFTER INSERT ON mfg_notify.pending_commit
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mfg_notify.flush_at_commit();
    END IF;
    IF state IS DISTINCT FROM 'A' THEN
        ALTER TABLE mfg_notify.pending_commit ENABLE ALWAYS TRIGGER mfg_notify_flush;
    END IF;
END
$$;

-- Last, because it locks the game's tables: not for longer than it takes, and never in a queue behind a long
-- transaction (everyone else would have to queue behind us).
SET LOCAL lock_timeout = '50ms';
-- What the game sends from now on waits for the lock, and then fires the triggers.
UPDATE mfg_notify.settings SET installed_at = coalesce(installed_at, clock_timestamp());
LOCK TABLE public.manufacturing_pipelines, public.manufacturing_tasks, public.manufacturing_factory_states
    IN SHARE ROW EXCLUSIVE MODE;

CREATE OR REPLACE TRIGGER mfg_notify_insert AFTER INSERT ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.pipeline_changed();
CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.pipeline_changed();
CREATE OR REPLACE TRIGGER mfg_notify_delete AFTER DELETE ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.pipeline_changed();
CREATE OR REPLACE TRIGGER mfg_notify_statement AFTER TRUNCATE ON public.manufacturing_pipelines
    FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.table_truncated('pipeline');

CREATE OR REPLACE TRIGGER mfg_notify_insert AFTER INSERT ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.task_changed();
CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.task_changed();
CREATE OR REPLACE TRIGGER mfg_notify_delete AFTER DELETE ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.task_changed();
CREATE OR REPLACE TRIGGER mfg_notify_statement AFTER TRUNCATE ON public.manufacturing_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.table_truncated('task');

CREATE OR REPLACE TRIGGER mfg_notify_insert AFTER INSERT ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.factory_changed();
CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.factory_changed();
CREATE OR REPLACE TRIGGER mfg_notify_delete AFTER DELETE ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.factory_changed();
CREATE OR REPLACE TRIGGER mfg_notify_statement AFTER TRUNCATE ON public.manufacturing_factory_states
    FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.table_truncated('factory');

-- The hash is that of this file without the hash itself. A released file never changes.
UPDATE mfg_notify.settings SET
    applied = applied || '{"1": "e345b477e9baca50f4472dceab9f45643285d5576aca5e02a8205d58ee25fbb0"}',
    objects = mfg_notify.object_hashes();

COMMIT;
