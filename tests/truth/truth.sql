-- The truth: every counter and histogram recounted from audit.change, every gauge from the live tables.
-- Runs after audit.sql, on PostgreSQL 14 and later. Assumes that the audit began on empty tables.

-- What exists, under its name without the prefix. A histogram's bounds are in the unit in which it is
-- summed (microseconds, credits); `unit` of these make one second or one credit.
CREATE TABLE audit.family (
    metric text PRIMARY KEY,
    kind   text NOT NULL CHECK (kind IN ('counter', 'gauge', 'histogram')),
    unit   bigint NOT NULL DEFAULT 1,
    bounds bigint[]
);

INSERT INTO audit.family (metric, kind)
SELECT 'manufacturing_' || name, kind
FROM (VALUES
    ('pipeline_completed_total', 'counter'),
    ('pipeline_revenue_credits_total', 'counter'),
    ('pipeline_cost_credits_total', 'counter'),
    ('tasks_completed_total', 'counter'),
    ('task_retry_total', 'counter'),
    ('task_assignments_total', 'counter'),
    ('factory_cycles_total', 'counter'),
    ('supply_transitions_total', 'counter'),
    ('construction_units_total', 'counter'),
    ('task_units_total', 'counter'),
    ('cost_total', 'counter'),
    ('revenue_total', 'counter'),
    ('pipeline_running_total', 'gauge'),
    ('pipeline_queue_depth', 'gauge'),
    ('pipelines', 'gauge'),
    ('tasks_pending_total', 'gauge'),
    ('tasks_ready_total', 'gauge'),
    ('tasks_executing_total', 'gauge'),
    ('construction_delivered_units', 'gauge'),
    ('construction_target_units', 'gauge'),
    ('factory_supply_level', 'gauge'),
    ('factory_supply_ordinal', 'gauge'),
    ('factory_inputs_delivered', 'gauge'),
    ('factory_ready_total', 'gauge'),
    ('ships_assigned_total', 'gauge'),
    ('ships_idle_total', 'gauge'),
    ('ship_utilization_percent', 'gauge'),
    ('profit_rate', 'gauge'),
    ('margin_percent', 'gauge')
) AS f (name, kind);

INSERT INTO audit.family (metric, kind) VALUES ('player_info', 'gauge');

INSERT INTO audit.family (metric, kind, unit, bounds)
SELECT 'manufacturing_' || name, 'histogram', unit, ARRAY(SELECT b * unit FROM unnest(bounds) AS b ORDER BY b)
FROM (VALUES
    ('pipeline_duration_seconds', 1000000::bigint, ARRAY[60, 120, 300, 600, 900, 1200, 1800, 3600]),
    ('pipeline_profit_credits', 1, ARRAY[1000, 5000, 10000, 50000, 100000, 500000]),
    ('task_duration_seconds', 1000000, ARRAY[10, 30, 60, 120, 300, 600]),
    ('ship_task_duration_seconds', 1000000, ARRAY[10, 30, 60, 120, 300, 600]),
    ('task_wait_seconds', 1000000, ARRAY[1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600])
) AS h (name, unit, bounds);

-- Where a level stands among the five: null for anything else, also before the first look ('' or NULL).
CREATE FUNCTION audit.supply_ordinal(level text) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
    SELECT array_position(ARRAY['SCARCE', 'LIMITED', 'MODERATE', 'HIGH', 'ABUNDANT'], level)
$$;

-- A time that is one: infinity is none, and the daemon's language writes 0001-01-01 for 'no time'.
CREATE FUNCTION audit.moment(t timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN isfinite(t) AND t >= timestamptz '1970-01-01 00:00:00+00' THEN t END
$$;

-- Whole microseconds between two moments: at least 0, null where either is missing.
CREATE FUNCTION audit.elapsed(since timestamptz, until timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN since < until
                THEN ((extract(epoch FROM until) - extract(epoch FROM since)) * 1000000)::bigint
                WHEN since >= until THEN 0 END
$$;

-- The units of each good that a list of materials names.
CREATE FUNCTION audit.material(materials jsonb) RETURNS TABLE (good text, delivered bigint, target bigint)
LANGUAGE sql IMMUTABLE AS $$
    SELECT left(m.value->>'tradeSymbol', 128), sum((m.value->>'deliveredQuantity')::bigint)::bigint,
           sum((m.value->>'targetQuantity')::bigint)::bigint
    FROM jsonb_array_elements(CASE WHEN jsonb_typeof(materials) = 'array' THEN materials ELSE '[]' END) AS m
    WHERE m.value->>'tradeSymbol' <> '' GROUP BY 1
$$;

-- Each rise of the units of a good that were delivered to a construction site.
CREATE VIEW audit.construction_step AS
SELECT c.id AS change_id, c.new->>'player_id' AS player_id, now.good, now.delivered - coalesce(before.delivered, 0) AS units
FROM audit.change AS c
CROSS JOIN LATERAL audit.material(CASE WHEN c.new->>'pipeline_type' = 'CONSTRUCTION' THEN c.new->'materials' END) AS now
LEFT JOIN LATERAL audit.material(CASE WHEN c.old->>'pipeline_type' = 'CONSTRUCTION' THEN c.old->'materials' END) AS before
    ON before.good = now.good
WHERE c.source = 'pipeline' AND c.op IN ('I', 'U') AND now.delivered > coalesce(before.delivered, 0);

-- Each INSERT and UPDATE of a pipeline, with what it means. A DELETE counts nothing.
CREATE VIEW audit.pipeline_step AS
SELECT c.id AS change_id, new.id AS pipeline_id, new.player_id,
       jsonb_build_object('player_id', new.player_id, 'product_good', left(new.product_good, 128)) AS labels,
       new.status,
       new.status IN ('COMPLETED', 'FAILED', 'CANCELLED')
           AND (c.op = 'I' OR old.status IN ('PLANNING', 'EXECUTING')) AS ended,
       audit.elapsed(audit.moment(new.started_at), audit.moment(new.completed_at)) AS duration,
       CASE WHEN audit.moment(new.completed_at) IS NOT NULL THEN least(new.completed_at, c.at) END AS completed_at,
       coalesce(new.net_profit, 0) AS net_profit,
       coalesce(new.total_revenue, 0) - coalesce(new.total_cost, 0) AS profit,
       greatest(0, CASE WHEN new.status = 'COMPLETED' THEN coalesce(new.total_revenue, 0) ELSE 0 END
                 - CASE WHEN old.status = 'COMPLETED' THEN coalesce(old.total_revenue, 0) ELSE 0 END)
           AS revenue_rise,
       greatest(0, CASE WHEN new.status = 'COMPLETED' THEN coalesce(new.total_cost, 0) ELSE 0 END
                 - CASE WHEN old.status = 'COMPLETED' THEN coalesce(old.total_cost, 0) ELSE 0 END)
           AS cost_rise
FROM audit.change AS c
CROSS JOIN LATERAL jsonb_to_record(c.new) AS new (
    id text, player_id text, product_good text, status text, started_at timestamptz, completed_at timestamptz,
    net_profit bigint, total_revenue bigint, total_cost bigint)
CROSS JOIN LATERAL jsonb_to_record(coalesce(c.old, '{}')) AS old (
    status text, total_revenue bigint, total_cost bigint)
WHERE c.source = 'pipeline' AND c.op IN ('I', 'U');

-- Each INSERT and UPDATE of a task, with what it means.
CREATE VIEW audit.task_step AS
SELECT c.id AS change_id, new.player_id,
       jsonb_build_object('player_id', new.player_id, 'task_type', left(new.task_type, 128)) AS labels,
       CASE WHEN new.task_type ^@ 'ACQUIRE' OR new.task_type ^@ 'STORAGE_ACQUIRE' THEN 'acquire'
            WHEN new.task_type ^@ 'DELIVER' THEN 'deliver'
            WHEN new.task_type ^@ 'COLLECT' THEN 'collect'
            WHEN new.task_type ^@ 'LIQUIDATE' THEN 'liquidate'
            ELSE 'other' END AS cost_type,
       CASE WHEN c.op = 'I' OR old.status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')
            THEN CASE new.status WHEN 'COMPLETED' THEN 'success'
                                 -- A cancellation is FAILED, too, and counts no retry.
                                 WHEN 'FAILED' THEN CASE WHEN coalesce(new.retry_count, 0) > coalesce(old.retry_count, 0)
                                                         THEN 'failure' ELSE 'cancelled' END
                                 WHEN 'CANCELLED' THEN 'cancelled' END END AS outcome,  -- null: no terminal move
       audit.elapsed(audit.moment(new.started_at), audit.moment(new.completed_at)) AS duration,
       coalesce(new.assigned_ship, '') <> '' AS by_ship,
       new.status = 'ASSIGNED' AND (c.op = 'I' OR old.status <> 'ASSIGNED')
           OR c.op = 'U' AND old.status IN ('PENDING', 'READY')
              AND (new.status IN ('EXECUTING', 'COMPLETED')
                   OR new.status = 'FAILED' AND coalesce(new.retry_count, 0) > coalesce(old.retry_count, 0)) AS assigned,
       -- least() passes over what is null, but an attempt without a start has no wait.
       audit.elapsed(audit.moment(new.ready_at), CASE WHEN new.status = 'ASSIGNED' THEN c.at
           WHEN audit.moment(new.started_at) IS NOT NULL THEN least(new.started_at, c.at) END) AS wait,
       greatest(0, coalesce(new.retry_count, 0) - coalesce(old.retry_count, 0)) AS retry_rise,
       greatest(0, coalesce(new.total_cost, 0) - coalesce(old.total_cost, 0)) AS cost_rise,
       greatest(0, coalesce(new.total_revenue, 0) - coalesce(old.total_revenue, 0)) AS revenue_rise,
       greatest(0, coalesce(new.actual_quantity, 0) - coalesce(old.actual_quantity, 0)) AS units_rise
FROM audit.change AS c
CROSS JOIN LATERAL jsonb_to_record(c.new) AS new (
    player_id text, task_type text, status text, assigned_ship text, ready_at timestamptz,
    started_at timestamptz, completed_at timestamptz, retry_count bigint, total_cost bigint, total_revenue bigint,
    actual_quantity bigint)
CROSS JOIN LATERAL jsonb_to_record(coalesce(c.old, '{}')) AS old (
    status text, retry_count bigint, total_cost bigint, total_revenue bigint, actual_quantity bigint)
WHERE c.source = 'task' AND c.op IN ('I', 'U');

-- Each UPDATE of the row that spoke for its factory: a cycle and a transition need an old image.
CREATE VIEW audit.factory_step AS
SELECT c.id AS change_id, new.player_id, left(new.factory_symbol, 128) AS factory_symbol, left(new.output_good, 128) AS output_good,
       coalesce(new.ready_for_collection, false) AND NOT coalesce(old.ready_for_collection, false) AS cycle,
       old.current_supply AS from_level,
       new.current_supply AS to_level,
       coalesce(audit.supply_ordinal(old.current_supply) <> audit.supply_ordinal(new.current_supply), false)
           AS transition
FROM audit.change AS c
CROSS JOIN LATERAL jsonb_to_record(c.new) AS new (
    player_id text, factory_symbol text, output_good text, current_supply text, ready_for_collection boolean)
CROSS JOIN LATERAL jsonb_to_record(c.old) AS old (current_supply text, ready_for_collection boolean)
WHERE c.source = 'factory' AND c.op = 'U' AND c.is_current;

-- What the histograms observed: microseconds or credits.
CREATE VIEW audit.observation AS
WITH pipeline AS MATERIALIZED (SELECT change_id, labels, duration, net_profit FROM audit.pipeline_step WHERE ended),
     task AS MATERIALIZED (SELECT change_id, labels, outcome, duration, by_ship, assigned, wait FROM audit.task_step)
SELECT change_id, 'manufacturing_pipeline_duration_seconds' AS metric, labels, duration AS value
FROM pipeline WHERE duration IS NOT NULL
UNION ALL
SELECT change_id, 'manufacturing_pipeline_profit_credits', labels, net_profit FROM pipeline
UNION ALL
SELECT change_id, 'manufacturing_task_duration_seconds', labels, duration
FROM task WHERE outcome IS NOT NULL AND duration IS NOT NULL
UNION ALL
SELECT change_id, 'manufacturing_ship_task_duration_seconds', labels, duration
FROM task WHERE outcome IS NOT NULL AND duration IS NOT NULL AND by_ship
UNION ALL
SELECT change_id, 'manufacturing_task_wait_seconds', labels, wait FROM task WHERE assigned AND wait IS NOT NULL;

-- What each change adds to which settled total. A histogram is bucket rows that do not add up (each observation is in
-- one) and a sum row.
CREATE VIEW audit.increment AS
SELECT change_id, metric, counted.labels, n::bigint AS n
FROM audit.pipeline_step AS step
CROSS JOIN LATERAL (VALUES
    ('manufacturing_pipeline_completed_total', labels || jsonb_build_object('status', status), ended::integer),
    ('manufacturing_pipeline_revenue_credits_total', labels, revenue_rise),
    ('manufacturing_pipeline_cost_credits_total', labels, cost_rise)) AS counted (metric, labels, n)
WHERE n > 0
UNION ALL
SELECT change_id, metric, counted.labels, n
FROM audit.task_step AS step
CROSS JOIN LATERAL (VALUES
    ('manufacturing_tasks_completed_total', labels || jsonb_build_object('status', outcome),
     (outcome IS NOT NULL)::integer),
    ('manufacturing_task_retry_total', labels, retry_rise),
    ('manufacturing_task_assignments_total', labels, assigned::integer),
    ('manufacturing_task_units_total', labels, units_rise),
    ('manufacturing_cost_total', jsonb_build_object('player_id', player_id, 'cost_type', cost_type), cost_rise),
    ('manufacturing_revenue_total', jsonb_build_object('player_id', player_id), revenue_rise))
    AS counted (metric, labels, n)
WHERE n > 0
UNION ALL
SELECT change_id, 'manufacturing_construction_units_total',
       jsonb_build_object('player_id', player_id, 'good_symbol', good), units
FROM audit.construction_step
UNION ALL
SELECT change_id, metric, counted.labels, 1
FROM audit.factory_step AS step
CROSS JOIN LATERAL (VALUES
    ('manufacturing_factory_cycles_total',
     jsonb_build_object('player_id', player_id, 'factory_symbol', factory_symbol, 'output_good', output_good), cycle),
    ('manufacturing_supply_transitions_total',
     jsonb_build_object('player_id', player_id, 'good_symbol', output_good,
                        'from_level', from_level, 'to_level', to_level), transition)) AS counted (metric, labels, moved)
WHERE moved
UNION ALL
-- width_bucket() counts the bounds <= its operand; values are whole, so those below value are <= value - 1.
SELECT change_id, metric || '_bucket', labels || jsonb_build_object('le', coalesce(
           (bounds[width_bucket(value - 1, bounds) + 1] / unit)::text, '+Inf')), 1
FROM audit.observation JOIN audit.family USING (metric)
UNION ALL
SELECT change_id, metric || '_sum', labels, value FROM audit.observation;

-- The settled totals. The wait is not among them: it is measured to the moment an event is written, and the
-- exporter's event is written microseconds from the audit's.
CREATE VIEW audit.counter AS
SELECT metric, labels, sum(n)::bigint AS n
FROM audit.increment WHERE NOT starts_with(metric, 'manufacturing_task_wait_seconds') GROUP BY metric, labels;

-- The wait, right to the few milliseconds between two clocks' looks; its count is exact.
CREATE VIEW audit.approximate_counter AS
SELECT metric, labels, sum(n)::bigint AS n
FROM audit.increment WHERE starts_with(metric, 'manufacturing_task_wait_seconds') GROUP BY metric, labels;

CREATE VIEW audit.wait_count AS
SELECT labels, count(*) AS n FROM audit.task_step WHERE assigned AND wait IS NOT NULL GROUP BY labels;

-- The live tables, read through functions: a view on a table would make the game's own ALTER TABLE fail.
CREATE FUNCTION audit.live_pipeline() RETURNS TABLE (id text, player_id text, product_good text, status text)
LANGUAGE sql STABLE AS $$
    SELECT id::text, player_id::text, left(product_good, 128), status::text
    FROM public.manufacturing_pipelines WHERE status IN ('PLANNING', 'EXECUTING')
$$;

CREATE FUNCTION audit.live_task() RETURNS TABLE (player_id text, task_type text, status text, ship text)
LANGUAGE sql STABLE AS $$
    SELECT player_id::text, left(task_type, 128), status::text, left(nullif(assigned_ship, ''), 128)
    FROM public.manufacturing_tasks WHERE status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')
$$;

CREATE FUNCTION audit.live_factory_row() RETURNS TABLE (
    id bigint, player_id text, factory_symbol text, output_good text, current_supply text, ready boolean,
    required_inputs jsonb, delivered_inputs jsonb)
LANGUAGE sql STABLE AS $$
    SELECT f.id::bigint, f.player_id::text, left(f.factory_symbol, 128), left(f.output_good, 128),
           f.current_supply::text, coalesce(f.ready_for_collection, false), f.required_inputs, f.delivered_inputs
    FROM public.manufacturing_factory_states AS f
    WHERE f.pipeline_id IS NULL
       OR f.pipeline_id IN (SELECT p.id FROM public.manufacturing_pipelines AS p
                            WHERE p.status IN ('PLANNING', 'EXECUTING'))
$$;

CREATE FUNCTION audit.live_material() RETURNS TABLE (labels jsonb, delivered bigint, target bigint)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'public.manufacturing_pipelines'::regclass
               AND attname = 'materials' AND NOT attisdropped) THEN
        RETURN QUERY EXECUTE $query$
            SELECT jsonb_build_object('player_id', p.player_id::text, 'construction_site', coalesce(p.construction_site, ''),
                                      'good_symbol', m.good), sum(m.delivered)::bigint, sum(m.target)::bigint
            FROM public.manufacturing_pipelines AS p CROSS JOIN LATERAL audit.material(p.materials::jsonb) AS m
            WHERE p.status IN ('PLANNING', 'EXECUTING') AND p.pipeline_type = 'CONSTRUCTION' GROUP BY 1
        $query$;
    END IF;
END
$$;

-- The agents by player, and the players whose last era is closed and of whom no change has come since: they are hidden.
CREATE FUNCTION audit.agent() RETURNS TABLE (player_id text, agent_symbol text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF to_regclass('public.players') IS NOT NULL THEN
        RETURN QUERY EXECUTE 'SELECT id::text, left(agent_symbol, 128) FROM public.players WHERE agent_symbol <> '''' ';
    END IF;
END
$$;

CREATE FUNCTION audit.hidden_player() RETURNS TABLE (player_id text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF to_regclass('public.eras') IS NOT NULL THEN
        RETURN QUERY EXECUTE $query$
            SELECT e.player_id::text FROM public.eras AS e GROUP BY e.player_id
            HAVING count(*) = count(e.closed_at)
               AND NOT EXISTS (SELECT FROM audit.change AS c WHERE coalesce(c.new, c.old)->>'player_id' = e.player_id::text
                                                               AND c.at > max(e.closed_at))
        $query$;
    END IF;
END
$$;

-- The ships of each player, from the first source that this database has. A function's text is checked when
-- it is made and a table may be missing, so the choice is made once, here.
DO $$
DECLARE
    source text;
BEGIN
    SELECT format('SELECT player_id::text, left(ship_symbol, 128), coalesce(%I = %L, false) AND %s FROM public.%I',
                  t.status_column, 'idle',
                  CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('public.' || t.name)
                                    AND attname = 'cargo_capacity' AND NOT attisdropped)
                       THEN 'cargo_capacity > 0' ELSE 'true' END, t.name)
    INTO source
    FROM (VALUES (1, 'ships', 'assignment_status'), (2, 'ship_assignments', 'status'))
         AS t (rank, name, status_column)
    WHERE (SELECT count(*) FROM pg_catalog.pg_attribute AS a
           WHERE a.attrelid = to_regclass('public.' || t.name) AND NOT a.attisdropped
             AND a.attname IN ('player_id', 'ship_symbol', t.status_column)) = 3
    ORDER BY t.rank LIMIT 1;
    -- Neither: the ships that tasks named in the last 24 hours.
    EXECUTE format('CREATE FUNCTION audit.ship() RETURNS TABLE (player_id text, ship text, idle boolean)'
                   ' LANGUAGE sql STABLE AS %L', coalesce(source, $body$
        SELECT DISTINCT c.new->>'player_id', left(c.new->>'assigned_ship', 128), true
        FROM audit.change AS c
        WHERE c.source = 'task' AND c.new->>'assigned_ship' <> '' AND c.at > now() - interval '24 hours'
    $body$));
END
$$;

-- What the gauges must be at now(). Left out: starvation and the market's, which need more than these tables.
CREATE VIEW audit.gauge AS
WITH pipeline AS MATERIALIZED (SELECT * FROM audit.live_pipeline()),
     product AS (
         SELECT jsonb_build_object('player_id', player_id, 'product_good', product_good) AS labels,
                count(*) FILTER (WHERE status = 'PLANNING') AS planning,
                count(*) FILTER (WHERE status = 'EXECUTING') AS executing
         FROM pipeline GROUP BY player_id, product_good),
     task AS MATERIALIZED (SELECT * FROM audit.live_task()),
     task_type AS (
         SELECT jsonb_build_object('player_id', player_id, 'task_type', task_type) AS labels,
                count(*) FILTER (WHERE status = 'PENDING') AS pending,
                count(*) FILTER (WHERE status = 'READY') AS ready,
                count(*) FILTER (WHERE status IN ('ASSIGNED', 'EXECUTING')) AS executing
         FROM task GROUP BY player_id, task_type),
     factory AS MATERIALIZED (  -- the current row of each factory
         SELECT DISTINCT ON (player_id, factory_symbol, output_good)
                player_id,
                jsonb_build_object('player_id', player_id, 'factory_symbol', factory_symbol,
                                   'output_good', output_good) AS labels,
                current_supply, ready, required_inputs, delivered_inputs
         FROM audit.live_factory_row()
         ORDER BY player_id, factory_symbol, output_good, id DESC),
     assigned AS MATERIALIZED (
         SELECT DISTINCT player_id, ship FROM task
         WHERE status IN ('ASSIGNED', 'EXECUTING') AND ship IS NOT NULL),
     ship AS MATERIALIZED (SELECT * FROM audit.ship()),
     fleet AS (
         SELECT player_id, sum(assigned)::bigint AS assigned, sum(idle)::bigint AS idle
         FROM (
             SELECT player_id, 1 AS assigned, 0 AS idle FROM assigned
             UNION ALL
             SELECT s.player_id, 0, 1 FROM ship AS s
             WHERE s.idle AND NOT EXISTS (SELECT FROM assigned AS a
                                          WHERE a.player_id = s.player_id AND a.ship = s.ship)
         ) AS each_ship
         GROUP BY player_id),
     counter AS MATERIALIZED (SELECT metric, labels, n FROM audit.counter),
     renamed AS (
         SELECT old->>'id' AS pipeline_id, max(id) AS change_id FROM audit.change
         WHERE source = 'pipeline' AND op = 'U' AND old->>'id' <> new->>'id' GROUP BY 1),
     hour AS (  -- by the last image of each pipeline: a DELETE leaves what was earned
         SELECT player_id, sum(profit) AS profit
         FROM (SELECT DISTINCT ON (pipeline_id) player_id, status, completed_at, profit, pipeline_id, change_id
               FROM audit.pipeline_step ORDER BY pipeline_id, change_id DESC) AS last_image
         WHERE status = 'COMPLETED' AND completed_at > now() - interval '1 hour'
           AND NOT EXISTS (SELECT FROM renamed
                           WHERE renamed.pipeline_id = last_image.pipeline_id AND renamed.change_id > last_image.change_id)
         GROUP BY player_id),
     player AS (
         (SELECT player_id FROM pipeline
          UNION SELECT player_id FROM task
          UNION SELECT player_id FROM factory
          UNION SELECT player_id FROM ship
          UNION SELECT labels->>'player_id' FROM counter)
         EXCEPT SELECT player_id FROM audit.hidden_player()),
     by_player AS (
         SELECT jsonb_build_object('player_id', player_id) AS labels,
                (SELECT count(*) FROM pipeline AS p WHERE p.player_id = player.player_id) AS queue_depth,
                (SELECT count(*) FROM factory AS f WHERE f.player_id = player.player_id AND f.ready) AS ready,
                coalesce(fleet.assigned, 0) AS assigned, coalesce(fleet.idle, 0) AS idle,
                coalesce(hour.profit, 0) AS profit
         FROM player LEFT JOIN fleet USING (player_id) LEFT JOIN hour USING (player_id)),
     margin AS (
         SELECT labels,
                coalesce(sum(n) FILTER (WHERE metric = 'manufacturing_pipeline_revenue_credits_total'), 0) AS revenue,
                coalesce(sum(n) FILTER (WHERE metric = 'manufacturing_pipeline_cost_credits_total'), 0) AS cost
         FROM counter
         WHERE metric IN ('manufacturing_pipeline_revenue_credits_total',
                          'manufacturing_pipeline_cost_credits_total')
         GROUP BY labels),
     measured (metric, labels, value) AS (
         SELECT 'pipeline_running_total', labels, executing::double precision FROM product
         UNION ALL
         SELECT 'pipelines', labels || '{"status": "PLANNING"}', planning FROM product
         UNION ALL
         SELECT 'pipelines', labels || '{"status": "EXECUTING"}', executing FROM product
         UNION ALL
         SELECT 'tasks_pending_total', labels, pending FROM task_type
         UNION ALL
         SELECT 'tasks_ready_total', labels, ready FROM task_type
         UNION ALL
         SELECT 'tasks_executing_total', labels, executing FROM task_type
         UNION ALL
         SELECT 'construction_delivered_units', labels, delivered FROM audit.live_material()
         UNION ALL
         SELECT 'construction_target_units', labels, target FROM audit.live_material()
         UNION ALL
         SELECT 'factory_supply_level', labels || jsonb_build_object('supply_level', level),
                CASE WHEN current_supply = level THEN 1 ELSE 0 END
         FROM factory
         CROSS JOIN unnest(ARRAY['SCARCE', 'LIMITED', 'MODERATE', 'HIGH', 'ABUNDANT']) AS level
         UNION ALL
         SELECT 'factory_supply_ordinal', labels, audit.supply_ordinal(current_supply)
         FROM factory WHERE audit.supply_ordinal(current_supply) IS NOT NULL
         UNION ALL
         SELECT 'factory_inputs_delivered', labels, coalesce(
             CASE WHEN jsonb_typeof(required_inputs) = 'array' THEN
                 (SELECT avg(CASE WHEN delivered_inputs->(good #>> '{}')->'delivered' = 'true' THEN 1 ELSE 0 END)
                  FROM jsonb_array_elements(required_inputs) AS good) END,
             1)  -- none required
         FROM factory
         UNION ALL
         SELECT 'pipeline_queue_depth', labels, queue_depth FROM by_player
         UNION ALL
         SELECT 'factory_ready_total', labels, ready FROM by_player
         UNION ALL
         SELECT 'ships_assigned_total', labels, assigned FROM by_player
         UNION ALL
         SELECT 'ships_idle_total', labels, idle FROM by_player
         UNION ALL
         SELECT 'ship_utilization_percent', labels, coalesce(100.0 * assigned / nullif(assigned + idle, 0), 0)
         FROM by_player
         UNION ALL
         SELECT 'profit_rate', labels, profit FROM by_player
         UNION ALL
         SELECT 'margin_percent', labels, 100.0 * (revenue - cost) / revenue FROM margin WHERE revenue <> 0
     )
SELECT 'manufacturing_' || metric AS metric, labels, value FROM measured
WHERE labels->>'player_id' NOT IN (SELECT player_id FROM audit.hidden_player())
UNION ALL
SELECT 'player_info', jsonb_build_object('player_id', player_id, 'agent_symbol', agent_symbol), 1
FROM audit.agent() JOIN player USING (player_id);
