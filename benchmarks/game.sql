-- A small live game, whose rows the writers change.
INSERT INTO players (id, agent_symbol, token) SELECT g, 'P' || g, '' FROM generate_series(1, 5) g;
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
SELECT 'p' || g, 1 + g % 5, 'GOOD_' || g % 20, 'X1-AB12-C3', 10, 'EXECUTING' FROM generate_series(1, 200) g;
INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good, quantity, source_market,
                                 target_market, factory_symbol)
SELECT 't' || g, 'p' || 1 + g % 200, 1 + g % 5, (ARRAY['ACQUIRE_DELIVER', 'COLLECT_SELL', 'LIQUIDATE'])[1 + g % 3],
       'READY', 'GOOD_' || g % 20, 10, 'X1-AB12-C3', 'X1-AB12-D4', 'X1-AB12-E5'
FROM generate_series(1, :tasks) g;
