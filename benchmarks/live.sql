-- Heavy live load: 20 players, 2,000 pipelines, 2,000 factory rows, 20,000 tasks.
INSERT INTO players (id, agent_symbol, token) SELECT g, 'H' || g, '' FROM generate_series(6, 20) g;
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status, started_at)
SELECT 'live' || g, 1 + g % 20, 'GOOD_' || g % 30, 'M', 1, 'EXECUTING', now() FROM generate_series(1, 2000) g;
INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good, assigned_ship, ready_at)
SELECT 'live' || g, 'live' || 1 + g % 2000, 1 + g % 20, (ARRAY['ACQUIRE_DELIVER', 'COLLECT_SELL'])[1 + g % 2],
       (ARRAY['PENDING', 'READY', 'ASSIGNED', 'EXECUTING'])[1 + g % 4], 'G',
       CASE WHEN g % 4 > 1 THEN 'SHIP-' || g END, now()
FROM generate_series(1, 20000) g;
INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id, required_inputs,
                                          delivered_inputs, current_supply)
SELECT 'F' || g % 200, 'GOOD_' || g % 30, 1 + g % 20, 'live' || g, '["IRON", "COPPER"]',
       '{"IRON": {"delivered": true, "quantity": 1}, "COPPER": {"delivered": false}}', 'MODERATE'
FROM generate_series(1, 2000) g;
