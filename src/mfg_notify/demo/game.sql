-- Statements of the simulated game that are the same for every row type; `commands` composes the others.

-- name: use_schema
-- Sets the search path of a player's session.
SELECT set_config('search_path', quote_ident(%(schema)s), false)

-- name: end_backend
-- Ends the backend of a lost connection and waits until it is gone: the server may not have noticed the loss, and what
-- that backend still does must not overtake the replay. `backend_start` protects a process that reuses the number.
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = %(pid)s AND backend_start = %(backend_start)s

-- name: identify_backend
-- Returns what identifies this session's backend, and the database's clock.
SELECT pid, backend_start, clock_timestamp() FROM pg_stat_activity WHERE pid = pg_backend_pid()

-- name: next_id
-- Takes the next id of a serial column.
SELECT nextval(pg_get_serial_sequence(%(table)s, 'id'))

-- name: enter
-- Adds a player. A replay finds the row already there.
INSERT INTO players (id, agent_symbol, token) VALUES (%(player_id)s, %(agent)s, %(token)s) ON CONFLICT DO NOTHING

-- name: open_era
-- Opens the player's era; a player has only one. A replay finds the row already there.
INSERT INTO eras (player_id) SELECT %(player_id)s WHERE NOT EXISTS (SELECT FROM eras WHERE player_id = %(player_id)s)

-- name: close_era
-- Closes the player's era at a universe reset.
UPDATE eras SET closed_at = now() WHERE player_id = %(player_id)s AND closed_at IS NULL

-- name: lock_task
-- The first half of an assignment: the daemon locks the task's row.
SELECT id, status FROM manufacturing_tasks WHERE id = %(id)s FOR UPDATE

-- name: assign_task
-- The second half of an assignment. Restates the earlier times, so that the wait is a number of game seconds.
UPDATE manufacturing_tasks SET status = %(status)s, assigned_ship = %(assigned_ship)s,
    created_at = %(created_at)s, ready_at = %(ready_at)s WHERE id = %(id)s

-- name: delete_pipeline
-- Deletes a pipeline; its tasks and factory rows follow by cascade.
DELETE FROM manufacturing_pipelines WHERE id = %(id)s

-- name: delete_task
-- Deletes one task.
DELETE FROM manufacturing_tasks WHERE id = %(id)s

-- name: delete_market
-- The first half of a scan: deletes all rows of a waypoint.
DELETE FROM market_data WHERE player_id = %(player_id)s AND waypoint_symbol = %(waypoint_symbol)s

-- name: scrub_factories
-- The end of an era, as the classic daemon does it: this statement and the next four, in one transaction.
DELETE FROM manufacturing_factory_states WHERE player_id = %(player_id)s

-- name: scrub_pipelines
-- Finished pipelines stay.
DELETE FROM manufacturing_pipelines WHERE player_id = %(player_id)s AND status IN ('PLANNING', 'EXECUTING')

-- name: scrub_tasks
-- Finished tasks stay. Tasks of the deleted pipelines are already gone.
DELETE FROM manufacturing_tasks
    WHERE player_id = %(player_id)s AND status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')

-- name: scrub_ships
-- All ships go.
DELETE FROM ships WHERE player_id = %(player_id)s

-- name: scrub_markets
-- All market rows go.
DELETE FROM market_data WHERE player_id = %(player_id)s
