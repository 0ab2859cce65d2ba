-- Factories: 50 live pipelines with 4 factory rows each, and 15,000 stale rows that finished pipelines left behind. Half
-- of the stale rows are older than the live rows, half are newer: 75 for each factory.
UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now() WHERE substr(id, 2)::int > 50;
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status, completed_at)
SELECT 'done' || g, 1 + g % 5, 'GOOD_' || g % 20, 'X1-AB12-C3', 10, 'COMPLETED', now() FROM generate_series(1, 3750) g;
INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id, required_inputs,
                                          current_supply)
SELECT 'X1-AB12-F' || factory, 'GOOD_' || factory % 20, 1 + pipeline % 5, state || pipeline, '["IRON", "COPPER"]',
       'MODERATE'
FROM (SELECT 1 AS age, 'done' AS state, generate_series(1, 1875) AS pipeline
      UNION ALL SELECT 2, 'p', generate_series(1, 50)
      UNION ALL SELECT 3, 'done', generate_series(1876, 3750)) owner,
     LATERAL (SELECT 1 + (pipeline - 1) % 50 + 50 * g AS factory FROM generate_series(0, 3) g) f
ORDER BY age, pipeline, factory;
