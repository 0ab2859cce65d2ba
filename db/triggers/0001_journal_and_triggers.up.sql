-- mfg-notify 0001: the journal, the settled totals, and the triggers that feed them.
--
-- Plain SQL for PostgreSQL 14 to 18; `psql -f` and golang-migrate can apply it as it stands. It is safe to repeat.
-- The game's tables are looked for in schema public; `mfg-notify migrate sql --game-schema NAME` prints it for another.
--
-- It takes a brief lock on the game's three tables. If the lock is not free within 50 ms the whole file is rolled
-- back and nothing has changed: run it again (`mfg-notify migrate up` does so by itself).

BEGIN;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

CREATE SCHEMA IF NOT EXISTS mfg_notify;
COMMENT ON SCHEMA mfg_notify IS 'mfg-notify: journal of manufacturing events and their settled totals';

-- What is needed of the game's tables and is not there, as "table.column"; nothing where all is well. The exporter
-- asks again when it starts and at every reconciliation.
CREATE OR REPLACE FUNCTION mfg_notify.missing_columns() RETURNS SETOF text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN to_regclass(needed.tab) IS NULL THEN needed.tab || ' (the table is missing)'
                ELSE needed.tab || '.' || col END
    FROM (VALUES
        ('public.manufacturing_pipelines',
         'id player_id product_good status total_cost total_revenue net_profit created_at started_at completed_at'),
        ('public.manufacturing_tasks',
         'id player_id task_type status assigned_ship retry_count total_cost total_revenue created_at ready_at'
         ' started_at completed_at'),
        ('public.manufacturing_factory_states',
         'id factory_symbol output_good player_id pipeline_id required_inputs delivered_inputs all_inputs_delivered'
         ' current_supply previous_supply ready_for_collection')) AS needed (tab, cols)
    CROSS JOIN LATERAL string_to_table(needed.cols, ' ') AS col
    LEFT JOIN pg_attribute a
        ON a.attrelid = to_regclass(needed.tab) AND a.attname = col AND a.attnum > 0 AND NOT a.attisdropped
    WHERE a.attname IS NULL
    GROUP BY 1 ORDER BY 1
$$;
DO $$
DECLARE
    missing text := (SELECT string_agg(c, ', ') FROM mfg_notify.missing_columns() c);
BEGIN
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'mfg-notify needs columns that are not there: %', missing USING ERRCODE = 'undefined_column';
    END IF;
    IF EXISTS (SELECT FROM pg_class c WHERE c.relkind <> 'r' AND c.oid IN (
            'public.manufacturing_pipelines'::regclass, 'public.manufacturing_tasks'::regclass,
            'public.manufacturing_factory_states'::regclass)) THEN
        RAISE EXCEPTION 'mfg-notify works on plain tables, not on partitioned tables or views'
            USING ERRCODE = 'wrong_object_type';
    END IF;
    -- A trigger may be made with less, but only the owner can take it away again.
    IF EXISTS (SELECT FROM pg_class c WHERE NOT pg_has_role(c.relowner, 'USAGE') AND c.oid IN (
            'public.manufacturing_pipelines'::regclass, 'public.manufacturing_tasks'::regclass,
            'public.manufacturing_factory_states'::regclass)) THEN
        RAISE EXCEPTION 'install as the role that owns the game''s tables; % does not', current_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- ---------------------------------------------------------------------------------------------- tables --

-- The journal. A trigger adds a row in the game's own transaction, a fold takes it away. The body is text, built
-- once, and is also the payload: ["pipeline"|"task"|"factory", "I"|"U"|"D"|"T", row key, old image, new image].
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

-- Settled counters: every event that has left the journal is in here, once. Labels are {"name": "value"}. A
-- histogram is its bucket rows (metric …_bucket with label le, each observation in one bucket only: not cumulative)
-- and one …_sum row. Durations are microseconds, credits are credits, so that sums are exact.
CREATE TABLE IF NOT EXISTS mfg_notify.total (
    metric  text NOT NULL,
    labels  jsonb NOT NULL,
    n       bigint NOT NULL,
    arrival bigint GENERATED ALWAYS AS IDENTITY,  -- order of first appearance; the cap on series goes by it
    PRIMARY KEY (metric, labels)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

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

-- One row that hardly changes, because every trigger reads it. The channel is a secret: any role may NOTIFY any
-- channel, so its name is the key. NOTIFY is off where prepared transactions are on: PREPARE TRANSACTION refuses a
-- transaction that has notified.
CREATE TABLE IF NOT EXISTS mfg_notify.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  integer NOT NULL,
    channel  text NOT NULL,
    notify   boolean NOT NULL,
    seeded   boolean NOT NULL DEFAULT false
);
INSERT INTO mfg_notify.settings (version, channel, notify)
VALUES (
    1,
    'mfg_notify_' || left(encode(sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea), 'hex'), 32),
    current_setting('max_prepared_transactions')::integer = 0
) ON CONFLICT DO NOTHING;

-- A row for each transaction that keeps events for its end: the trigger on it fires there. It is not on the game's own
-- tables because a trigger that waits forbids ALTER TABLE. The exporter clears the rows; a crash may.
CREATE UNLOGGED TABLE IF NOT EXISTS mfg_notify.pending_commit (xid xid8 NOT NULL DEFAULT pg_current_xact_id())
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false);

-- Changes of rows whose events were given up. A sequence, because nextval survives the rollback of the trigger's work.
CREATE SEQUENCE IF NOT EXISTS mfg_notify.lost MINVALUE 0 START 0;
-- Highest id that a fold has taken out of the journal: with the journal's sequence it bounds the backlog.
CREATE SEQUENCE IF NOT EXISTS mfg_notify.folded MINVALUE 0 START 0;
-- 1: the triggers are to write the journal and not to notify; 0: they notify. A sequence, because setval is in force at
-- once, for transactions that have begun before, too. The exporter that holds the lease sets it.
CREATE SEQUENCE IF NOT EXISTS mfg_notify.notify_disabled MINVALUE 0 MAXVALUE 1 START 0;

REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM PUBLIC;
REVOKE ALL ON SCHEMA mfg_notify FROM PUBLIC;

-- ---------------------------------------------------------------------------------------------- images --
-- SQL functions of one expression: the planner writes them into the calling query. The exporter reads the live rows
-- through the same ones, so that a row looks the same in an event and in a snapshot.

-- Epoch microseconds; NULL where there is no sensible time: infinite, or Go's zero time of year 1.
CREATE OR REPLACE FUNCTION mfg_notify.microseconds(t timestamptz) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN t >= '1970-01-01 00:00:00+00' AND t < '10000-01-01 00:00:00+00'
                THEN (date_part('epoch', t) * 1000000)::bigint END
$$;

CREATE OR REPLACE FUNCTION mfg_notify.pipeline_image(
    player_id bigint, product_good text, status text,
    total_cost bigint, total_revenue bigint, net_profit bigint,
    started_at timestamptz, completed_at timestamptz
) RETURNS json
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT json_build_array(
        player_id, left(product_good, 128), left(status, 128),
        coalesce(total_cost, 0), coalesce(total_revenue, 0), coalesce(net_profit, 0),
        mfg_notify.microseconds(started_at), mfg_notify.microseconds(completed_at))
$$;

CREATE OR REPLACE FUNCTION mfg_notify.task_image(
    player_id bigint, task_type text, status text, assigned_ship text,
    retry_count bigint, total_cost bigint, total_revenue bigint,
    ready_at timestamptz, started_at timestamptz, completed_at timestamptz
) RETURNS json
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT json_build_array(
        player_id, left(task_type, 128), left(status, 128), left(nullif(assigned_ship, ''), 128),
        coalesce(retry_count, 0), coalesce(total_cost, 0), coalesce(total_revenue, 0),
        mfg_notify.microseconds(ready_at), mfg_notify.microseconds(started_at),
        mfg_notify.microseconds(completed_at))
$$;

-- Required inputs that have come, and required inputs. A key exists in delivered_inputs from the start, so only
-- delivered = true counts; what is not an array requires nothing.
CREATE OR REPLACE FUNCTION mfg_notify.factory_image(
    player_id bigint, factory_symbol text, output_good text, pipeline_id text,
    required_inputs jsonb, delivered_inputs jsonb,
    current_supply text, ready_for_collection boolean, is_current boolean
) RETURNS json
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT json_build_array(
        player_id, left(factory_symbol, 128), left(output_good, 128), left(pipeline_id, 128),
        (SELECT count(*) FILTER (WHERE delivered_inputs -> good -> 'delivered' = 'true')
         FROM jsonb_array_elements_text(
             CASE jsonb_typeof(required_inputs) WHEN 'array' THEN required_inputs ELSE '[]' END) AS good),
        CASE jsonb_typeof(required_inputs) WHEN 'array' THEN jsonb_array_length(required_inputs) ELSE 0 END,
        left(nullif(current_supply, ''), 128), coalesce(ready_for_collection, false), is_current)
$$;

-- The same images of a row as JSON, whatever the types of its columns.
CREATE OR REPLACE FUNCTION mfg_notify.pipeline_image_of(r jsonb) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT mfg_notify.pipeline_image(
        (r ->> 'player_id')::bigint, r ->> 'product_good', r ->> 'status', (r ->> 'total_cost')::bigint,
        (r ->> 'total_revenue')::bigint, (r ->> 'net_profit')::bigint, (r ->> 'started_at')::timestamptz,
        (r ->> 'completed_at')::timestamptz)
    WHERE r IS NOT NULL
$$;

CREATE OR REPLACE FUNCTION mfg_notify.task_image_of(r jsonb) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT mfg_notify.task_image(
        (r ->> 'player_id')::bigint, r ->> 'task_type', r ->> 'status', r ->> 'assigned_ship',
        (r ->> 'retry_count')::bigint, (r ->> 'total_cost')::bigint, (r ->> 'total_revenue')::bigint,
        (r ->> 'ready_at')::timestamptz, (r ->> 'started_at')::timestamptz, (r ->> 'completed_at')::timestamptz)
    WHERE r IS NOT NULL
$$;

CREATE OR REPLACE FUNCTION mfg_notify.factory_image_of(r jsonb, is_current boolean) RETURNS json
LANGUAGE sql STABLE AS $$
    SELECT mfg_notify.factory_image(
        (r ->> 'player_id')::bigint, r ->> 'factory_symbol', r ->> 'output_good', r ->> 'pipeline_id',
        (r ->> 'required_inputs')::jsonb, (r ->> 'delivered_inputs')::jsonb, r ->> 'current_supply',
        (r ->> 'ready_for_collection')::boolean, is_current)
    WHERE r IS NOT NULL
$$;

-- Does this row speak for its factory: is its pipeline live, or none, and no newer such row there? Several rows, one
-- a pipeline, describe a factory at once, and rows of finished pipelines stay. It goes from the player's live
-- pipelines into the unique index of the factory rows, so its cost does not grow with history. LIMIT and the + 0 keep
-- the planner on that road: without statistics it prefers other indexes and walks through all of history.
CREATE OR REPLACE FUNCTION mfg_notify.is_current_row(
    row_id bigint, of_player bigint, symbol text, good text, of_pipeline text
) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT (of_pipeline IS NULL OR EXISTS (
                SELECT FROM public.manufacturing_pipelines p
                WHERE p.id = of_pipeline AND p.status IN ('PLANNING', 'EXECUTING')))
       AND NOT EXISTS (
                SELECT FROM public.manufacturing_factory_states f
                WHERE f.factory_symbol = symbol AND f.output_good = good AND f.pipeline_id IS NULL
                  AND f.player_id + 0 = of_player AND f.id + 0 > row_id)
       AND NOT EXISTS (
                SELECT FROM public.manufacturing_pipelines p
                CROSS JOIN LATERAL (
                    SELECT FROM public.manufacturing_factory_states f
                    WHERE f.factory_symbol = symbol AND f.output_good = good AND f.pipeline_id = p.id
                      AND f.player_id + 0 = of_player AND f.id + 0 > row_id
                    LIMIT 1) newer
                WHERE p.status IN ('PLANNING', 'EXECUTING') AND p.player_id + 0 = of_player)
$$;

-- -------------------------------------------------------------------------------------------- triggers --
-- The game comes first. Whatever goes wrong in here is caught, counted in mfg_notify.lost and forgotten; nothing
-- waits longer than 25 ms; and after one failure the rest of that transaction only counts (the breaker), so that a
-- locked journal is paid for once a transaction and not once a statement. Less than 25 ms would lose events without
-- need: the server's own lock, to make the journal's file longer, is held for over 10 ms on a busy machine.
--
-- One error is not ours to hide: a serialization failure, which only SERIALIZABLE transactions meet, is meant for them,
-- may have come at any statement of theirs, and says that they must try again.
--
-- The breaker is a setting that ends with the transaction: its number and ':count', or ':silent' where not even the
-- counter can be had. What follows a failure uses nothing of ours, for that may be what has failed.
--
-- A trigger looks at each row and writes the first event of a transaction at once, for most have no other. Others it
-- keeps, in a setting that ends with the transaction, for a trigger at the COMMIT: each write is a subtransaction with
-- a number of its own, and a trigger that wrote them all would need one for each row. A trigger at the end of each
-- statement costs a sixth more, for the statement of one row too, which nearly all are, and a third more where nothing
-- watched changes; with transition tables yet more. What is dear is to set up functions and expressions, once a
-- transaction each. So there are few, the first of them says alone that nothing watched has changed (after a failure it
-- does not look, for looking can fail), and of an old image the times, which no number asks for, are left out
-- (docs/performance.md).

-- How many events no exporter has folded, NULL before the first.
CREATE OR REPLACE FUNCTION mfg_notify.backlog() RETURNS bigint
LANGUAGE sql AS $$
    SELECT pg_sequence_last_value('mfg_notify.event_id_seq') - coalesce(pg_sequence_last_value('mfg_notify.folded'), 0)
$$;

-- Writes events, one a line, to the journal, and announces them unless that could hurt the game: a full notification
-- queue fails the COMMIT of a transaction that notifies, where nothing can be caught any more. So nothing is sent while a
-- quarter of the queue or more is in use. What this very transaction is about to send is not in the queue yet, so a
-- transaction sends at most 100 payloads of less than 2,000 bytes, and one 'fold' for all further events: that fits into
-- the rest of the smallest queue there can be. A transaction whose events are written in portions only says 'fold'.
CREATE OR REPLACE FUNCTION mfg_notify.write_events(events text, more_follow boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    one       record;
    channel   text;
    payload   text;
    -- How many events this transaction has announced, in a setting that ends with it: its number, ':', that many.
    me        text := pg_current_xact_id()::text || ':';
    setting   text := current_setting('mfg_notify.announced', true);
    announced bigint := 1 + octet_length(events) - octet_length(replace(events, E'\n', ''));
BEGIN
    -- An exporter that never comes back must not fill the disk.
    IF mfg_notify.backlog() > 5000000 THEN
        RAISE EXCEPTION 'the journal holds 5000000 events that no exporter has folded';
    END IF;
    IF pg_sequence_last_value('mfg_notify.notify_disabled') = 1 OR pg_notification_queue_usage() >= 0.25 THEN
        INSERT INTO mfg_notify.event (body) SELECT * FROM string_to_table(events, E'\n');
        RETURN;
    END IF;
    IF starts_with(setting, me) THEN
        announced := announced + substr(setting, length(me) + 1)::bigint;
    END IF;
    IF more_follow THEN
        announced := greatest(announced, 101);
    END IF;
    setting := set_config('mfg_notify.announced', me || announced, true);
    -- None where the installation does not notify.
    SELECT s.channel INTO channel FROM mfg_notify.settings s WHERE s.notify;
    IF channel IS NULL OR announced > 100 THEN
        INSERT INTO mfg_notify.event (body) SELECT * FROM string_to_table(events, E'\n');
        PERFORM pg_notify(channel, 'fold') WHERE channel IS NOT NULL;
        RETURN;
    END IF;
    FOR one IN INSERT INTO mfg_notify.event (body) SELECT * FROM string_to_table(events, E'\n')
               RETURNING id, xid, at, version, body LOOP
        payload := '[' || one.version || ',' || one.id || ',' || one.xid::text || ','
                   || mfg_notify.microseconds(one.at) || ',' || one.body || ']';
        -- A payload is ASCII and short, or just says 'fold'.
        PERFORM pg_notify(channel, CASE WHEN octet_length(payload) < 2000 AND payload !~ '[^[:ascii:]]'
                                        THEN payload ELSE 'fold' END);
    END LOOP;
END
$$;

-- Takes the event of a row. The first one of a transaction is written at once. The others are kept until it ends, or
-- until they are long. The setting is '-' when one has been written and none is buffered, and '+' and a line for each event
-- that is kept. Here and in its callers stands an assignment wherever it can, because PERFORM is a query with an executor
-- of its own; and octet_length, because length reads all that is buffered, at each row.
CREATE OR REPLACE FUNCTION mfg_notify.buffer_event(event json) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    buffered text := current_setting('mfg_notify.buffered', true);
BEGIN
    IF buffered = '-' THEN
        buffered := set_config('mfg_notify.buffered', E'+\n' || event, true);
        -- Last: after SET CONSTRAINTS ALL IMMEDIATE it is the end already.
        INSERT INTO mfg_notify.pending_commit DEFAULT VALUES;
    ELSIF buffered IS NULL OR NOT starts_with(buffered, '+') THEN
        PERFORM mfg_notify.write_events(event::text, false);
        buffered := set_config('mfg_notify.buffered', '-', true);
    ELSIF octet_length(buffered) > 4000 THEN
        PERFORM mfg_notify.write_events(substr(buffered, 3), true);
        buffered := set_config('mfg_notify.buffered', E'+\n' || event, true);
    ELSE
        buffered := set_config('mfg_notify.buffered', buffered || E'\n' || event, true);
    END IF;
END
$$;

-- Writes what a transaction has buffered, at its end. It finds nothing where somebody has reset the settings in between.
CREATE OR REPLACE FUNCTION mfg_notify.flush_at_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '25ms' AS $$
DECLARE
    me      text := pg_current_xact_id()::text || ':';
    buffered text := coalesce(current_setting('mfg_notify.buffered', true), '');
    breaker text := coalesce(current_setting('mfg_notify.circuit_open', true), '');
    reason  text;
BEGIN
    IF NOT starts_with(breaker, me) THEN
        BEGIN
            IF NOT starts_with(buffered, '+') THEN
                RAISE EXCEPTION 'the settings of the transaction have been reset';
            END IF;
            PERFORM mfg_notify.write_events(substr(buffered, 3), false);
            buffered := set_config('mfg_notify.buffered', '-', true);
            RETURN NULL;
        EXCEPTION WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            breaker := set_config('mfg_notify.circuit_open', me || 'count', true);
            reason := SQLERRM;
            BEGIN
                RAISE WARNING 'mfg-notify did not record the changes of a transaction: %', reason;
            EXCEPTION WHEN OTHERS THEN
                NULL;  -- the encoding of the game's client has no letters for it; it is counted below
            END;
        END;
    END IF;
    IF breaker <> me || 'silent' THEN
        BEGIN
            PERFORM nextval('mfg_notify.lost') FROM string_to_table(coalesce(nullif(substr(buffered, 3), ''), '?'), E'\n');
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- the counter itself is locked or gone
        END;
    END IF;
    buffered := set_config('mfg_notify.buffered', '-', true);
    RETURN NULL;
END
$$;

-- Takes the event of a row that is given as JSON: slower, and whatever the types of its columns. A changed key is a
-- delete and an insert.
CREATE OR REPLACE FUNCTION mfg_notify.buffer_pipeline(op text, old_row jsonb, new_row jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    old_image json;
    new_image json;
BEGIN
    IF NOT coalesce(new_row, old_row) ?& string_to_array(
            'id player_id product_good status total_cost total_revenue net_profit started_at completed_at', ' ') THEN
        RAISE EXCEPTION 'a column is missing';
    END IF;
    old_image := mfg_notify.pipeline_image_of(old_row - '{started_at,completed_at}'::text[]);
    new_image := mfg_notify.pipeline_image_of(new_row);
    IF old_row ->> 'id' <> new_row ->> 'id' THEN
        PERFORM mfg_notify.buffer_event(json_build_array('pipeline', 'D', old_row ->> 'id', old_image, NULL));
        PERFORM mfg_notify.buffer_event(json_build_array('pipeline', 'I', new_row ->> 'id', NULL, new_image));
    ELSIF mfg_notify.pipeline_image_of(old_row)::text IS DISTINCT FROM new_image::text THEN
        PERFORM mfg_notify.buffer_event(
            json_build_array('pipeline', op, coalesce(new_row, old_row) ->> 'id', old_image, new_image));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION mfg_notify.pipeline_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '25ms' AS $$
DECLARE
    event  json;
    buffered text;
    reason text;
BEGIN
    IF coalesce(current_setting('mfg_notify.circuit_open', true), '') = '' AND TG_OP = 'UPDATE'
       AND (OLD.id, OLD.player_id, OLD.product_good, OLD.status, OLD.total_cost, OLD.total_revenue, OLD.net_profit,
            OLD.started_at, OLD.completed_at)
           IS NOT DISTINCT FROM
           (NEW.id, NEW.player_id, NEW.product_good, NEW.status, NEW.total_cost, NEW.total_revenue, NEW.net_profit,
            NEW.started_at, NEW.completed_at) THEN
        RETURN NULL;
    END IF;
    IF current_setting('mfg_notify.circuit_open', true) <> '' THEN
        IF current_setting('mfg_notify.circuit_open', true) = pg_current_xact_id()::text || ':count' THEN
            BEGIN
                PERFORM nextval('mfg_notify.lost');
            EXCEPTION WHEN OTHERS THEN
                buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':silent', true);
            END;
            RETURN NULL;
        ELSIF current_setting('mfg_notify.circuit_open', true) = pg_current_xact_id()::text || ':silent' THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD.id <> NEW.id THEN
            PERFORM mfg_notify.buffer_pipeline('U', to_jsonb(OLD), to_jsonb(NEW));
            RETURN NULL;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        -- The end of a finished row changes no number.
        IF OLD.status NOT IN ('PLANNING', 'EXECUTING') THEN
            RETURN NULL;
        END IF;
    ELSIF TG_OP = 'TRUNCATE' THEN
        PERFORM mfg_notify.buffer_event(json_build_array('pipeline', 'T', '', NULL, NULL));
        RETURN NULL;
    END IF;
    event := json_build_array(
        'pipeline', left(TG_OP, 1), coalesce(NEW.id, OLD.id),
        CASE WHEN TG_OP <> 'INSERT' THEN mfg_notify.pipeline_image(
            OLD.player_id, OLD.product_good, OLD.status, OLD.total_cost, OLD.total_revenue, OLD.net_profit,
            NULL, NULL) END,
        CASE WHEN TG_OP <> 'DELETE' THEN mfg_notify.pipeline_image(
            NEW.player_id, NEW.product_good, NEW.status, NEW.total_cost, NEW.total_revenue, NEW.net_profit,
            NEW.started_at, NEW.completed_at) END);
    IF coalesce(current_setting('mfg_notify.buffered', true), '') = '' AND mfg_notify.backlog() <= 5000000
            AND pg_sequence_last_value('mfg_notify.notify_disabled') = 1 THEN
        -- What keep() comes to then, without the calls.
        INSERT INTO mfg_notify.event (body) VALUES (event);
        buffered := set_config('mfg_notify.buffered', '-', true);
    ELSE
        buffered := mfg_notify.buffer_event(event);
    END IF;
    RETURN NULL;
EXCEPTION WHEN serialization_failure THEN
    RAISE;
WHEN OTHERS THEN
    reason := SQLERRM;
    -- A column has got another type since this session has planned the above. By way of JSON types do not matter.
    IF SQLSTATE = '42804' THEN
        BEGIN
            PERFORM mfg_notify.buffer_pipeline(
                left(TG_OP, 1), CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
                CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
            RETURN NULL;
        EXCEPTION WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            reason := SQLERRM;
        END;
    END IF;
    BEGIN
        RAISE WARNING 'mfg-notify did not record a change of %: %', TG_TABLE_NAME, reason;
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the encoding of the game's client has no letters for it; it is counted below
    END;
    buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':silent', true);
    BEGIN
        PERFORM nextval('mfg_notify.lost');
        buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':count', true);
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the counter itself is locked or gone: it is not waited for again in this transaction
    END;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION mfg_notify.buffer_task(op text, old_row jsonb, new_row jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    old_image json;
    new_image json;
BEGIN
    IF NOT coalesce(new_row, old_row) ?& string_to_array(
            'id player_id task_type status assigned_ship retry_count total_cost total_revenue ready_at'
            ' started_at completed_at', ' ') THEN
        RAISE EXCEPTION 'a column is missing';
    END IF;
    old_image := mfg_notify.task_image_of(old_row - '{ready_at,started_at,completed_at}'::text[]);
    new_image := mfg_notify.task_image_of(new_row);
    IF old_row ->> 'id' <> new_row ->> 'id' THEN
        PERFORM mfg_notify.buffer_event(json_build_array('task', 'D', old_row ->> 'id', old_image, NULL));
        PERFORM mfg_notify.buffer_event(json_build_array('task', 'I', new_row ->> 'id', NULL, new_image));
    ELSIF mfg_notify.task_image_of(old_row)::text IS DISTINCT FROM new_image::text THEN
        PERFORM mfg_notify.buffer_event(
            json_build_array('task', op, coalesce(new_row, old_row) ->> 'id', old_image, new_image));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION mfg_notify.task_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '25ms' AS $$
DECLARE
    event  json;
    buffered text;
    reason text;
BEGIN
    IF coalesce(current_setting('mfg_notify.circuit_open', true), '') = '' AND TG_OP = 'UPDATE'
       AND (OLD.id, OLD.player_id, OLD.task_type, OLD.status, OLD.assigned_ship, OLD.retry_count, OLD.total_cost,
            OLD.total_revenue, OLD.ready_at, OLD.started_at, OLD.completed_at)
           IS NOT DISTINCT FROM
           (NEW.id, NEW.player_id, NEW.task_type, NEW.status, NEW.assigned_ship, NEW.retry_count, NEW.total_cost,
            NEW.total_revenue, NEW.ready_at, NEW.started_at, NEW.completed_at) THEN
        RETURN NULL;
    END IF;
    IF current_setting('mfg_notify.circuit_open', true) <> '' THEN
        IF current_setting('mfg_notify.circuit_open', true) = pg_current_xact_id()::text || ':count' THEN
            BEGIN
                PERFORM nextval('mfg_notify.lost');
            EXCEPTION WHEN OTHERS THEN
                buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':silent', true);
            END;
            RETURN NULL;
        ELSIF current_setting('mfg_notify.circuit_open', true) = pg_current_xact_id()::text || ':silent' THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD.id <> NEW.id THEN
            PERFORM mfg_notify.buffer_task('U', to_jsonb(OLD), to_jsonb(NEW));
            RETURN NULL;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        -- The end of a finished row changes no number.
        IF OLD.status NOT IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING') THEN
            RETURN NULL;
        END IF;
    ELSIF TG_OP = 'TRUNCATE' THEN
        PERFORM mfg_notify.buffer_event(json_build_array('task', 'T', '', NULL, NULL));
        RETURN NULL;
    END IF;
    event := json_build_array(
        'task', left(TG_OP, 1), coalesce(NEW.id, OLD.id),
        CASE WHEN TG_OP <> 'INSERT' THEN mfg_notify.task_image(
            OLD.player_id, OLD.task_type, OLD.status, OLD.assigned_ship, OLD.retry_count, OLD.total_cost,
            OLD.total_revenue, NULL, NULL, NULL) END,
        CASE WHEN TG_OP <> 'DELETE' THEN mfg_notify.task_image(
            NEW.player_id, NEW.task_type, NEW.status, NEW.assigned_ship, NEW.retry_count, NEW.total_cost,
            NEW.total_revenue, NEW.ready_at, NEW.started_at, NEW.completed_at) END);
    IF coalesce(current_setting('mfg_notify.buffered', true), '') = '' AND mfg_notify.backlog() <= 5000000
            AND pg_sequence_last_value('mfg_notify.notify_disabled') = 1 THEN
        -- What keep() comes to then, without the calls.
        INSERT INTO mfg_notify.event (body) VALUES (event);
        buffered := set_config('mfg_notify.buffered', '-', true);
    ELSE
        buffered := mfg_notify.buffer_event(event);
    END IF;
    RETURN NULL;
EXCEPTION WHEN serialization_failure THEN
    RAISE;
WHEN OTHERS THEN
    reason := SQLERRM;
    -- A column has got another type since this session has planned the above. By way of JSON types do not matter.
    IF SQLSTATE = '42804' THEN
        BEGIN
            PERFORM mfg_notify.buffer_task(
                left(TG_OP, 1), CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
                CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
            RETURN NULL;
        EXCEPTION WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            reason := SQLERRM;
        END;
    END IF;
    BEGIN
        RAISE WARNING 'mfg-notify did not record a change of %: %', TG_TABLE_NAME, reason;
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the encoding of the game's client has no letters for it; it is counted below
    END;
    buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':silent', true);
    BEGIN
        PERFORM nextval('mfg_notify.lost');
        buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':count', true);
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the counter itself is locked or gone: it is not waited for again in this transaction
    END;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION mfg_notify.buffer_factory(op text, old_row jsonb, new_row jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    old_image json;
    new_image json;
    is_current    boolean;
BEGIN
    IF NOT coalesce(new_row, old_row) ?& string_to_array(
            'id player_id factory_symbol output_good pipeline_id required_inputs delivered_inputs'
            ' current_supply ready_for_collection', ' ') THEN
        RAISE EXCEPTION 'a column is missing';
    END IF;
    IF op = 'U' AND (old_row ->> 'current_supply', old_row ->> 'ready_for_collection')
            IS DISTINCT FROM (new_row ->> 'current_supply', new_row ->> 'ready_for_collection') THEN
        is_current := mfg_notify.is_current_row(
            (new_row ->> 'id')::bigint, (new_row ->> 'player_id')::bigint, new_row ->> 'factory_symbol',
            new_row ->> 'output_good', new_row ->> 'pipeline_id');
    END IF;
    old_image := mfg_notify.factory_image_of(old_row, NULL);
    new_image := mfg_notify.factory_image_of(new_row, is_current);
    IF old_row ->> 'id' <> new_row ->> 'id' THEN
        PERFORM mfg_notify.buffer_event(json_build_array('factory', 'D', old_row ->> 'id', old_image, NULL));
        PERFORM mfg_notify.buffer_event(json_build_array('factory', 'I', new_row ->> 'id', NULL, new_image));
    ELSIF (old_image::text, old_row -> 'required_inputs', old_row -> 'delivered_inputs')
            IS DISTINCT FROM (new_image::text, new_row -> 'required_inputs', new_row -> 'delivered_inputs') THEN
        PERFORM mfg_notify.buffer_event(
            json_build_array('factory', op, coalesce(new_row, old_row) ->> 'id', old_image, new_image));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION mfg_notify.factory_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '25ms' AS $$
DECLARE
    event  json;
    is_current boolean;
    buffered text;
    reason text;
BEGIN
    IF coalesce(current_setting('mfg_notify.circuit_open', true), '') = '' AND TG_OP = 'UPDATE'
       AND (OLD.id, OLD.player_id, OLD.factory_symbol, OLD.output_good, OLD.pipeline_id, OLD.required_inputs::jsonb,
            OLD.delivered_inputs::jsonb, OLD.current_supply, OLD.ready_for_collection)
           IS NOT DISTINCT FROM
           (NEW.id, NEW.player_id, NEW.factory_symbol, NEW.output_good, NEW.pipeline_id, NEW.required_inputs::jsonb,
            NEW.delivered_inputs::jsonb, NEW.current_supply, NEW.ready_for_collection) THEN
        RETURN NULL;
    END IF;
    IF current_setting('mfg_notify.circuit_open', true) <> '' THEN
        IF current_setting('mfg_notify.circuit_open', true) = pg_current_xact_id()::text || ':count' THEN
            BEGIN
                PERFORM nextval('mfg_notify.lost');
            EXCEPTION WHEN OTHERS THEN
                buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':silent', true);
            END;
            RETURN NULL;
        ELSIF current_setting('mfg_notify.circuit_open', true) = pg_current_xact_id()::text || ':silent' THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD.id <> NEW.id THEN
            PERFORM mfg_notify.buffer_factory('U', to_jsonb(OLD), to_jsonb(NEW));
            RETURN NULL;
        END IF;
        -- Whether the row is current matters to transitions and cycles only; the many other saves do not pay for the question.
        IF (OLD.current_supply, OLD.ready_for_collection)
                IS DISTINCT FROM (NEW.current_supply, NEW.ready_for_collection) THEN
            is_current := mfg_notify.is_current_row(NEW.id, NEW.player_id, NEW.factory_symbol, NEW.output_good, NEW.pipeline_id);
        END IF;
    ELSIF TG_OP = 'TRUNCATE' THEN
        PERFORM mfg_notify.buffer_event(json_build_array('factory', 'T', '', NULL, NULL));
        RETURN NULL;
    END IF;
    event := json_build_array(
        'factory', left(TG_OP, 1), coalesce(NEW.id, OLD.id)::text,
        CASE WHEN TG_OP <> 'INSERT' THEN mfg_notify.factory_image(
            OLD.player_id, OLD.factory_symbol, OLD.output_good, OLD.pipeline_id, OLD.required_inputs::jsonb,
            OLD.delivered_inputs::jsonb, OLD.current_supply, OLD.ready_for_collection, NULL) END,
        CASE WHEN TG_OP <> 'DELETE' THEN mfg_notify.factory_image(
            NEW.player_id, NEW.factory_symbol, NEW.output_good, NEW.pipeline_id, NEW.required_inputs::jsonb,
            NEW.delivered_inputs::jsonb, NEW.current_supply, NEW.ready_for_collection, is_current) END);
    IF coalesce(current_setting('mfg_notify.buffered', true), '') = '' AND mfg_notify.backlog() <= 5000000
            AND pg_sequence_last_value('mfg_notify.notify_disabled') = 1 THEN
        -- What keep() comes to then, without the calls.
        INSERT INTO mfg_notify.event (body) VALUES (event);
        buffered := set_config('mfg_notify.buffered', '-', true);
    ELSE
        buffered := mfg_notify.buffer_event(event);
    END IF;
    RETURN NULL;
EXCEPTION WHEN serialization_failure THEN
    RAISE;
WHEN OTHERS THEN
    reason := SQLERRM;
    -- A column has got another type since this session has planned the above. By way of JSON types do not matter.
    IF SQLSTATE = '42804' THEN
        BEGIN
            PERFORM mfg_notify.buffer_factory(
                left(TG_OP, 1), CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
                CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
            RETURN NULL;
        EXCEPTION WHEN serialization_failure THEN
            RAISE;
        WHEN OTHERS THEN
            reason := SQLERRM;
        END;
    END IF;
    BEGIN
        RAISE WARNING 'mfg-notify did not record a change of %: %', TG_TABLE_NAME, reason;
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the encoding of the game's client has no letters for it; it is counted below
    END;
    buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':silent', true);
    BEGIN
        PERFORM nextval('mfg_notify.lost');
        buffered := set_config('mfg_notify.circuit_open', pg_current_xact_id()::text || ':count', true);
    EXCEPTION WHEN OTHERS THEN
        NULL;  -- the counter itself is locked or gone: it is not waited for again in this transaction
    END;
    RETURN NULL;
END
$$;

-- Otherwise anyone could hang these on a table of theirs and forge events.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA mfg_notify FROM PUBLIC;

-- The trigger functions run as a role that can do nothing else, where the installer may make one; else as the
-- installer.
DO $$
BEGIN
    IF to_regrole('mfg_notify_owner') IS NULL THEN
        BEGIN
            CREATE ROLE mfg_notify_owner NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database of the cluster was quicker
        END;
    END IF;
    IF NOT pg_has_role('mfg_notify_owner', 'USAGE') THEN
        EXECUTE format('GRANT mfg_notify_owner TO %I', current_user);
    END IF;
    GRANT USAGE, CREATE ON SCHEMA mfg_notify TO mfg_notify_owner;
    GRANT SELECT, INSERT ON mfg_notify.event TO mfg_notify_owner;
    GRANT INSERT ON mfg_notify.pending_commit TO mfg_notify_owner;
    GRANT SELECT ON mfg_notify.settings TO mfg_notify_owner;
    GRANT USAGE, SELECT ON mfg_notify.event_id_seq, mfg_notify.lost, mfg_notify.folded, mfg_notify.notify_disabled
        TO mfg_notify_owner;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA mfg_notify TO mfg_notify_owner;
    GRANT USAGE ON SCHEMA public TO mfg_notify_owner;
    GRANT SELECT ON public.manufacturing_pipelines, public.manufacturing_factory_states TO mfg_notify_owner;
    -- Who may use these but not share them is told so by a warning only.
    IF NOT has_schema_privilege('mfg_notify_owner', (SELECT c.relnamespace FROM pg_class c
                                                     WHERE c.oid = 'public.manufacturing_pipelines'::regclass), 'USAGE')
       OR NOT has_table_privilege('mfg_notify_owner', 'public.manufacturing_pipelines', 'SELECT')
       OR NOT has_table_privilege('mfg_notify_owner', 'public.manufacturing_factory_states', 'SELECT') THEN
        RAISE insufficient_privilege;
    END IF;
    ALTER FUNCTION mfg_notify.pipeline_changed() OWNER TO mfg_notify_owner;
    ALTER FUNCTION mfg_notify.task_changed() OWNER TO mfg_notify_owner;
    ALTER FUNCTION mfg_notify.factory_changed() OWNER TO mfg_notify_owner;
    ALTER FUNCTION mfg_notify.flush_at_commit() OWNER TO mfg_notify_owner;
    REVOKE CREATE ON SCHEMA mfg_notify FROM mfg_notify_owner;
EXCEPTION WHEN insufficient_privilege THEN
    -- Not allowed to make the role, or to give it these rights: the functions stay with the installer.
    RAISE NOTICE 'mfg-notify: the trigger functions run as %', current_user;
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
LOCK TABLE public.manufacturing_pipelines, public.manufacturing_tasks, public.manufacturing_factory_states
    IN SHARE ROW EXCLUSIVE MODE;

CREATE OR REPLACE TRIGGER mfg_notify_insert AFTER INSERT ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.pipeline_changed();
CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.pipeline_changed();
CREATE OR REPLACE TRIGGER mfg_notify_delete AFTER DELETE ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.pipeline_changed();
CREATE OR REPLACE TRIGGER mfg_notify_statement AFTER TRUNCATE ON public.manufacturing_pipelines
    FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.pipeline_changed();

CREATE OR REPLACE TRIGGER mfg_notify_insert AFTER INSERT ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.task_changed();
CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.task_changed();
CREATE OR REPLACE TRIGGER mfg_notify_delete AFTER DELETE ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.task_changed();
CREATE OR REPLACE TRIGGER mfg_notify_statement AFTER TRUNCATE ON public.manufacturing_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.task_changed();

CREATE OR REPLACE TRIGGER mfg_notify_insert AFTER INSERT ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.factory_changed();
CREATE OR REPLACE TRIGGER mfg_notify_update AFTER UPDATE ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.factory_changed();
CREATE OR REPLACE TRIGGER mfg_notify_delete AFTER DELETE ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION mfg_notify.factory_changed();
CREATE OR REPLACE TRIGGER mfg_notify_statement AFTER TRUNCATE ON public.manufacturing_factory_states
    FOR EACH STATEMENT EXECUTE FUNCTION mfg_notify.factory_changed();

-- What it did is done by the triggers above now.
DROP FUNCTION IF EXISTS mfg_notify.statement_ended();

COMMIT;
