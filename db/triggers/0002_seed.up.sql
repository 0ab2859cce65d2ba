-- mfg-notify 0002: what was there before the triggers. Revenue and cost of the pipelines COMPLETED so far (the
-- margin is over all of history), those of the last hour (profit rate), the last start of each task type, the last
-- task of each ship, and the first entry of the books. Reads the game's history once. Safe to repeat: it works only the first
-- time.

BEGIN ISOLATION LEVEL REPEATABLE READ, READ WRITE;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
-- An error if policies would hide rows of the game from the role that runs this.
SET LOCAL row_security = off;
-- However long it takes to read the history. Not every version has both settings.
DO $$
BEGIN
    PERFORM set_config(name, '0', true) FROM unnest('{statement_timeout,transaction_timeout}'::text[]) AS name
    WHERE current_setting(name, true) IS NOT NULL;
END
$$;

-- No fold while this looks: a lock taken before the snapshot is.
LOCK TABLE mfg_notify.lease IN SHARE ROW EXCLUSIVE MODE;

-- Total = all COMPLETED pipelines in this snapshot, less what the journal holds in the same snapshot: the fold will
-- add that. Whatever a fold has added before is part of the sum and is written over.
--
-- A row that no event could describe is left out, here and below: without player or product, or with credits that no
-- bigint can hold (BETWEEN is false for NaN and infinities).
WITH completed AS (
    SELECT p.player_id::bigint AS player_id, left(p.product_good::text, 128) AS product_good,
           round(greatest(coalesce(p.total_revenue, 0), 0)::numeric) AS revenue,
           round(greatest(coalesce(p.total_cost, 0), 0)::numeric) AS cost
    FROM public.manufacturing_pipelines p
    WHERE p.status = 'COMPLETED' AND p.player_id IS NOT NULL AND p.product_good IS NOT NULL
      AND coalesce(p.total_revenue, 0)::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
      AND coalesce(p.total_cost, 0)::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
  UNION ALL
    -- Texts are [old status, id, product, status]; numbers [old cost, revenue, profit, player, cost, revenue, profit].
    SELECT round((numbers ->> 3)::numeric)::bigint, texts ->> 2,
           - greatest(coalesce(round((numbers ->> 5)::numeric), 0) - counted * coalesce(round((numbers ->> 1)::numeric), 0), 0),
           - greatest(coalesce(round((numbers ->> 4)::numeric), 0) - counted * coalesce(round((numbers ->> 0)::numeric), 0), 0)
    FROM (SELECT e.body::jsonb -> 1 AS operation, e.body::jsonb -> 2 AS texts, e.body::jsonb -> 3 AS numbers,
                 (e.body::jsonb -> 1 = '"U"' AND e.body::jsonb -> 2 ->> 0 = 'COMPLETED')::integer AS counted
          FROM mfg_notify.event e WHERE e.version = 1 AND starts_with(e.body, '["pipeline"')) journal
    WHERE texts ->> 3 = 'COMPLETED' AND operation IN ('"I"', '"U"')
      AND numbers ->> 3 IS NOT NULL AND texts ->> 2 IS NOT NULL
      AND NOT EXISTS (SELECT FROM jsonb_array_elements_text(numbers) AS n
                      WHERE n::numeric NOT BETWEEN -9223372036854775808 AND 9223372036854775807)
)
INSERT INTO mfg_notify.total (metric, labels, n, seed)
SELECT metric, labels, n, n
FROM (SELECT metric, labels, greatest(least(n, 9223372036854775807), -9223372036854775808)::bigint AS n FROM (
    SELECT 'manufacturing_pipeline_revenue_credits_total' AS metric,
           jsonb_build_object('player_id', player_id::text, 'product_good', product_good) AS labels,
           sum(revenue) AS n
    FROM completed GROUP BY player_id, product_good
  UNION ALL
    SELECT 'manufacturing_pipeline_cost_credits_total',
           jsonb_build_object('player_id', player_id::text, 'product_good', product_good), sum(cost)
    FROM completed GROUP BY player_id, product_good
) summed) seed
WHERE NOT (SELECT seeded FROM mfg_notify.settings)
ORDER BY labels, metric
ON CONFLICT (metric, labels) DO UPDATE SET n = greatest(total.n, excluded.n), seed = excluded.seed;

-- The game's clock may be ahead of this one, but a pipeline that is COMPLETED in a year would stay in the last hour for
-- as long.
INSERT INTO mfg_notify.recent (pipeline_id, player_id, completed_at, profit)
SELECT p.id, p.player_id, least(p.completed_at, now()),
       greatest(least(round(profit), 9223372036854775807), -9223372036854775808)::bigint
FROM public.manufacturing_pipelines p
CROSS JOIN LATERAL (SELECT coalesce(p.total_revenue, 0)::numeric - coalesce(p.total_cost, 0)::numeric AS profit) earned
WHERE p.status = 'COMPLETED' AND p.completed_at > now() - interval '1 hour' AND p.completed_at < now() + interval '1 hour'
  AND p.player_id IS NOT NULL AND p.product_good IS NOT NULL
  AND coalesce(p.total_revenue, 0)::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
  AND coalesce(p.total_cost, 0)::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
  AND NOT (SELECT seeded FROM mfg_notify.settings)
ON CONFLICT DO NOTHING;

-- A start in the future would hide starvation until then.
INSERT INTO mfg_notify.latest (kind, player_id, key, at)
SELECT 'task_type', t.player_id, left(t.task_type::text, 128), least(max(t.started_at), now())
FROM public.manufacturing_tasks t
WHERE isfinite(t.started_at) AND t.started_at > '1970-01-01 00:00:00+00'
  AND t.player_id IS NOT NULL AND t.task_type IS NOT NULL
  AND NOT (SELECT seeded FROM mfg_notify.settings)
GROUP BY 2, 3
UNION ALL
SELECT 'ship', t.player_id, left(t.assigned_ship::text, 128),
       least(max(greatest(t.ready_at, t.started_at, t.completed_at)), now())
FROM public.manufacturing_tasks t
WHERE t.assigned_ship <> '' AND isfinite(greatest(t.ready_at, t.started_at, t.completed_at))
  AND greatest(t.ready_at, t.started_at, t.completed_at) > now() - interval '24 hours'
  AND t.player_id IS NOT NULL
  AND NOT (SELECT seeded FROM mfg_notify.settings)
GROUP BY 2, 3
ON CONFLICT (kind, player_id, key) DO UPDATE SET at = greatest(latest.at, excluded.at);

-- The first entry = the live rows in this snapshot, less what the journal holds in the same snapshot. After a TRUNCATE in the
-- journal, a fold starts from 0. (core/books.py has the same rules for a fold.)
DELETE FROM mfg_notify.entry WHERE NOT (SELECT seeded FROM mfg_notify.settings);
WITH live AS (
    SELECT 'pipeline' AS source, player_id::numeric AS player_id, status::text AS status, 1 AS n
    FROM public.manufacturing_pipelines WHERE status IN ('PLANNING', 'EXECUTING')
  UNION ALL
    SELECT 'task', player_id::numeric, status::text, 1
    FROM public.manufacturing_tasks WHERE status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')
  UNION ALL
    SELECT 'factory', player_id::numeric, current_supply::text, 1 FROM public.manufacturing_factory_states
), journal AS (
    SELECT e.body::jsonb ->> 0 AS source, e.body::jsonb ->> 1 AS operation,
           e.body::jsonb -> 2 AS texts, e.body::jsonb -> 3 AS numbers
    FROM mfg_notify.event e WHERE e.version = 1
), entries AS (
    SELECT source, player_id, status, n FROM live
  UNION ALL
    -- The old status is the first text. A deleted row stands in the place of the new one.
    SELECT source, (numbers ->> place.player)::numeric, texts ->> 0, 1
    FROM journal JOIN (VALUES ('pipeline', 3), ('task', 4), ('factory', 1)) AS place (source, player) USING (source)
    WHERE operation = 'U'
  UNION ALL
    SELECT source, (numbers ->> place.player)::numeric, texts ->> place.status, CASE operation WHEN 'D' THEN 1 ELSE -1 END
    FROM journal JOIN (VALUES ('pipeline', 3, 3), ('task', 4, 4), ('factory', 1, 4)) AS place (source, player, status)
         USING (source)
    WHERE operation IN ('I', 'U', 'M', 'D')
), accounts AS (
    SELECT source, round(player_id) AS player_id,
           CASE WHEN source <> 'factory' OR status IN ('SCARCE', 'LIMITED', 'MODERATE', 'HIGH', 'ABUNDANT')
                THEN status ELSE '' END AS status, sum(n) AS n
    FROM entries
    WHERE player_id BETWEEN -9223372036854775808 AND 9223372036854775807
      AND CASE source WHEN 'pipeline' THEN status IN ('PLANNING', 'EXECUTING')
                      WHEN 'task' THEN status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING') ELSE true END
    GROUP BY 1, 2, 3
)
INSERT INTO mfg_notify.entry (body)
SELECT json_build_object(
    'rows', (SELECT coalesce(json_agg(json_build_array(source, player_id, status, n)), '[]') FROM accounts
             WHERE n <> 0 AND source NOT IN (SELECT journal.source FROM journal WHERE operation = 'T')),
    'sums', (SELECT coalesce(json_object_agg(metric, n), '{}')
             FROM (SELECT metric, sum(n) AS n FROM mfg_notify.total GROUP BY metric) AS sum))::text
WHERE NOT (SELECT seeded FROM mfg_notify.settings);

UPDATE mfg_notify.settings SET
    version = 2, seeded = true,
    applied = applied || '{"2": "6e776393740b68413b3ba211763883e31b6e1e48aaa4b744bdd0524857e384f5"}',
    objects = mfg_notify.object_hashes();

COMMIT;
