-- mfg-notify 0002: what was there before the triggers. Revenue and cost of the pipelines COMPLETED so far (the
-- margin is over all of history), those of the last hour (profit rate), the last start of each task type and the
-- last task of each ship. Reads the game's history once. Safe to repeat: it works only the first time.

BEGIN ISOLATION LEVEL REPEATABLE READ;

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
-- An error if policies would hide rows of the game from the role that runs this.
SET LOCAL row_security = off;

-- No fold while this looks: a lock taken before the snapshot is.
LOCK TABLE mfg_notify.lease IN SHARE ROW EXCLUSIVE MODE;

-- Total = all COMPLETED pipelines in this snapshot, less what the journal holds in the same snapshot: the fold will
-- add that. Whatever a fold has added before is part of the sum and is written over.
WITH completed AS (
    SELECT p.player_id::bigint AS player_id, left(p.product_good, 128) AS product_good,
           round(greatest(coalesce(p.total_revenue, 0), 0)::numeric) AS revenue,
           round(greatest(coalesce(p.total_cost, 0), 0)::numeric) AS cost
    FROM public.manufacturing_pipelines p
    WHERE p.status = 'COMPLETED'
  UNION ALL
    -- Texts are [old status, id, product, status]; numbers [old cost, revenue, profit, player, cost, revenue, profit].
    SELECT round((numbers ->> 3)::numeric)::bigint, texts ->> 2,
           - greatest(coalesce(round((numbers ->> 5)::numeric), 0) - counted * coalesce(round((numbers ->> 1)::numeric), 0), 0),
           - greatest(coalesce(round((numbers ->> 4)::numeric), 0) - counted * coalesce(round((numbers ->> 0)::numeric), 0), 0)
    FROM (SELECT e.body::jsonb -> 1 AS operation, e.body::jsonb -> 2 AS texts, e.body::jsonb -> 3 AS numbers,
                 (e.body::jsonb -> 1 = '"U"' AND e.body::jsonb -> 2 ->> 0 = 'COMPLETED')::integer AS counted
          FROM mfg_notify.event e WHERE e.version = 1 AND starts_with(e.body, '["pipeline"')) journal
    WHERE texts ->> 3 = 'COMPLETED' AND operation IN ('"I"', '"U"')
)
INSERT INTO mfg_notify.total (metric, labels, n)
SELECT metric, labels, n FROM (
    SELECT 'manufacturing_pipeline_revenue_credits_total' AS metric,
           jsonb_build_object('player_id', player_id::text, 'product_good', product_good) AS labels,
           sum(revenue)::bigint AS n
    FROM completed GROUP BY player_id, product_good
  UNION ALL
    SELECT 'manufacturing_pipeline_cost_credits_total',
           jsonb_build_object('player_id', player_id::text, 'product_good', product_good), sum(cost)::bigint
    FROM completed GROUP BY player_id, product_good
) seed
WHERE NOT (SELECT seeded FROM mfg_notify.settings)
ORDER BY labels, metric
ON CONFLICT (metric, labels) DO UPDATE SET n = greatest(total.n, excluded.n);

INSERT INTO mfg_notify.recent (pipeline_id, player_id, completed_at, profit)
SELECT p.id, p.player_id, p.completed_at, coalesce(p.total_revenue, 0)::bigint - coalesce(p.total_cost, 0)::bigint
FROM public.manufacturing_pipelines p
WHERE p.status = 'COMPLETED' AND p.completed_at > now() - interval '1 hour' AND isfinite(p.completed_at)
  AND NOT (SELECT seeded FROM mfg_notify.settings)
ON CONFLICT DO NOTHING;

INSERT INTO mfg_notify.latest (kind, player_id, key, at)
SELECT 'task_type', t.player_id, left(t.task_type, 128), max(t.started_at)
FROM public.manufacturing_tasks t
WHERE isfinite(t.started_at) AND t.started_at > '1970-01-01 00:00:00+00'
  AND NOT (SELECT seeded FROM mfg_notify.settings)
GROUP BY 2, 3
UNION ALL
SELECT 'ship', t.player_id, left(t.assigned_ship, 128),
       least(max(greatest(t.ready_at, t.started_at, t.completed_at)), now())
FROM public.manufacturing_tasks t
WHERE t.assigned_ship <> '' AND isfinite(greatest(t.ready_at, t.started_at, t.completed_at))
  AND greatest(t.ready_at, t.started_at, t.completed_at) > now() - interval '24 hours'
  AND NOT (SELECT seeded FROM mfg_notify.settings)
GROUP BY 2, 3
ON CONFLICT (kind, player_id, key) DO UPDATE SET at = greatest(latest.at, excluded.at);

UPDATE mfg_notify.settings SET
    version = 2, seeded = true,
    applied = applied || '{"2": "049baefc3eaaec20658d4f65288e7893c87c6f5f118669067ecccf985e16b470"}',
    objects = mfg_notify.object_hashes();

COMMIT;
