-- History: finished tasks, one finished pipeline per five tasks, one stale factory row per ten.
WITH pipelines AS (
    INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status, total_cost,
                                         total_revenue, net_profit, created_at, started_at, completed_at)
    SELECT 'old' || g, 1 + g %% 20, 'GOOD_' || g %% 30, 'M', 1, 'COMPLETED', 100, 150, 50, at, at, at + interval '1 hour'
    FROM generate_series(%(first)s::int / 5, %(last)s::int / 5 - 1) g,
         LATERAL (SELECT now() - interval '90 days' + g * interval '1 second' AS at) t
    RETURNING id, player_id, product_good),
factories AS (
    INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id, required_inputs,
                                              current_supply)
    SELECT 'F' || substr(id, 4)::int %% 200, product_good, player_id, id, '["IRON", "COPPER"]', 'HIGH'
    FROM pipelines WHERE substr(id, 4)::int %% 2 = 0)
INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, assigned_ship, created_at, ready_at,
                                 started_at, completed_at, total_cost, total_revenue)
SELECT 'old' || g, 1 + g %% 20, (ARRAY['ACQUIRE_DELIVER', 'COLLECT_SELL'])[1 + g %% 2],
       CASE WHEN g %% 20 = 0 THEN 'FAILED' ELSE 'COMPLETED' END, 'G', 'SHIP-' || g %% 400, at, at, at, at, 10, 20
FROM generate_series(%(first)s::int, %(last)s::int) g,
     LATERAL (SELECT now() - interval '90 days' + g * interval '1 second' AS at) t
