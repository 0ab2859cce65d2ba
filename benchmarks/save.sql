-- GORM's Save when no watched column has changed: it writes every column.
\set n random(1, :tasks)
\set s random(0, 1000000)
UPDATE manufacturing_tasks SET pipeline_id = pipeline_id, player_id = player_id, task_type = task_type, status = status, good = 'GOOD_1', quantity = 10, actual_quantity = actual_quantity, source_market = 'X1-AB12-C3', target_market = 'X1-AB12-D4', factory_symbol = 'X1-AB12-E5', priority = :s, assigned_ship = assigned_ship, retry_count = retry_count, max_retries = 3, total_cost = total_cost, total_revenue = total_revenue, error_message = '', collect_phase_completed = false, acquire_phase_completed = false, created_at = '2026-01-01 00:00:00+00', ready_at = ready_at, started_at = started_at WHERE id = 't' || :n;
