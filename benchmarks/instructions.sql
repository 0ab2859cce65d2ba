-- What `count_instructions` changes: 50 live pipelines, each with a task and a factory row, and between them the history
-- of 15,000 finished pipelines whose factory rows stayed behind. Rows 1 to 25 are older than those, 15026 to 15050 newer.
INSERT INTO players (id, agent_symbol, token) VALUES (1, 'P1', '');
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status, started_at)
SELECT 'p' || g, 1, 'GOOD_' || g % 20, 'X1-AB12-C3', 10,
       CASE WHEN g BETWEEN 26 AND 15025 THEN 'COMPLETED' ELSE 'EXECUTING' END, now()
FROM generate_series(1, 15050) g;
INSERT INTO manufacturing_factory_states (id, factory_symbol, output_good, player_id, pipeline_id, required_inputs,
                                          delivered_inputs, current_supply)
SELECT g, 'X1-AB12-F' || g % 3, 'GOOD_' || g % 20, 1, 'p' || g, '["IRON", "COPPER"]',
       '{"IRON": {"delivered": true, "quantity": 10, "ship": "SHIP-1"}, "COPPER": {"delivered": false}}', 'LIMITED'
FROM generate_series(1, 15050) g;
INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good, quantity, source_market,
                                 target_market, factory_symbol, ready_at)
SELECT 't' || g, 'p' || g, 1, 'COLLECT_SELL', 'READY', 'GOOD_' || g % 20, 10, 'X1-AB12-C3', 'X1-AB12-D4', 'X1-AB12-E5',
       now()
FROM generate_series(1, 25) g;
