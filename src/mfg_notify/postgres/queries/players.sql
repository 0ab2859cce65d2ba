-- What the game knows of its players in two tables that are optional. Used by players.py.

-- name: player_names
-- The agents by player. The table also has their API tokens, which nothing here asks for.
SELECT id::bigint, left(agent_symbol::text, 128) FROM {players} WHERE id IS NOT NULL AND agent_symbol::text <> ''

-- name: closed_eras
-- The players whose last era has been closed, and when, in epoch microseconds.
SELECT player_id::bigint, (date_part('epoch', max(closed_at::timestamptz)) * 1000000)::bigint
FROM {eras} WHERE player_id IS NOT NULL
GROUP BY player_id HAVING bool_and(isfinite(closed_at::timestamptz) IS TRUE)
