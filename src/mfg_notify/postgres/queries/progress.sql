-- What live pipelines wait for, for the board. Used by progress.py.

-- name: pipeline_progress
-- Live pipelines, the oldest first, and the numbers of their open tasks. Starts at the open tasks, never at the finished
-- ones.
SELECT p.id::varchar(128), (date_part('epoch', p.created_at::timestamptz) * 1000000)::bigint,
       coalesce(t.pending, 0), (date_part('epoch', t.pending_since) * 1000000)::bigint,
       coalesce(t.ready, 0), (date_part('epoch', t.ready_since) * 1000000)::bigint,
       coalesce(t.executing, 0), (date_part('epoch', t.executing_since) * 1000000)::bigint
FROM {pipelines} p
LEFT JOIN (
    SELECT pipeline_id,
           count(*) FILTER (WHERE status = 'PENDING') AS pending,
           min(created_at::timestamptz) FILTER (WHERE status = 'PENDING') AS pending_since,
           count(*) FILTER (WHERE status = 'READY') AS ready,
           min(ready_at::timestamptz) FILTER (WHERE status = 'READY') AS ready_since,
           count(*) FILTER (WHERE status IN ('ASSIGNED', 'EXECUTING')) AS executing,
           min(started_at::timestamptz) FILTER (WHERE status IN ('ASSIGNED', 'EXECUTING')) AS executing_since
    FROM {tasks} WHERE status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING') GROUP BY pipeline_id) t
    ON t.pipeline_id = p.id
WHERE p.status IN ('PLANNING', 'EXECUTING')
ORDER BY p.created_at, p.id LIMIT {maximum}

-- name: factory_needs
-- The factories of the same pipelines. Inputs are decoded by the reader, because the game's JSON may be anything.
SELECT f.pipeline_id::varchar(128), f.factory_symbol::varchar(128), f.output_good::varchar(128),
       f.current_supply::varchar(128), left(f.required_inputs::text, 20000), left(f.delivered_inputs::text, 20000)
FROM {factories} f
WHERE f.pipeline_id = ANY (ARRAY(SELECT p.id FROM {pipelines} p WHERE p.status IN ('PLANNING', 'EXECUTING')
                                 ORDER BY p.created_at, p.id LIMIT {maximum}))
ORDER BY f.id
