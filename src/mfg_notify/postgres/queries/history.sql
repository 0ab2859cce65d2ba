-- The past: rows of the game in the order in which their series are laid out, and the journal. Used by history.py. Unlike
-- all others these read the whole history, once for each time that somebody asks for it.

-- name: history_session
-- Let the server sort the history for as long as that takes.
SET statement_timeout = 0

-- name: installed_at
-- When the triggers were created, in epoch microseconds: they have seen everything since, and nothing before.
SELECT (date_part('epoch', installed_at) * 1000000)::bigint FROM mfg_notify.settings

-- name: seeds
-- The totals that did not begin at 0, and where they began.
SELECT metric, labels::text, seed FROM mfg_notify.total WHERE seed <> 0

-- name: history_players
-- Of each player: the first and the last time in its rows (epoch microseconds), the pipelines, the tasks, and how many of
-- both are finished and do not say when.
SELECT player_id::bigint, (date_part('epoch', min(least(created, started, completed))) * 1000000)::bigint,
       (date_part('epoch', max(greatest(started, completed))) * 1000000)::bigint,
       count(*) FILTER (WHERE source = 'pipeline'), count(*) FILTER (WHERE source = 'task'),
       count(*) FILTER (WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND completed IS NULL)
FROM (SELECT source, player_id, status::text,
             CASE WHEN isfinite(created_at) AND created_at >= '1970-01-01 00:00:00+00' THEN created_at END AS created,
             CASE WHEN isfinite(started_at) AND started_at >= '1970-01-01 00:00:00+00' THEN started_at END AS started,
             CASE WHEN isfinite(completed_at) AND completed_at >= '1970-01-01 00:00:00+00' THEN completed_at END AS completed
      FROM (SELECT 'pipeline' AS source, player_id, status::text, created_at::timestamptz, started_at::timestamptz,
                   completed_at::timestamptz FROM {pipelines}
            UNION ALL
            SELECT 'task', player_id, status::text, NULL, started_at::timestamptz, completed_at::timestamptz
            FROM {tasks}) AS given) AS dated
WHERE player_id IS NOT NULL
GROUP BY player_id

-- name: history_pipelines
-- The pipelines that tell something of a time, as `live_pipelines` writes them but without materials, whose deliveries
-- have no time; and when they were created. An hour earlier there may be profit that counts for the profit rate.
SELECT json_build_array(
    'pipeline', 'I',
    ARRAY[NULL, p.id::varchar(128), p.product_good::varchar(128), p.status::varchar(128)],
    ARRAY[NULL, NULL, NULL, p.player_id, p.total_cost, p.total_revenue, p.net_profit],
    ARRAY[p.started_at::timestamptz, p.completed_at::timestamptz], NULL, NULL)::text,
    CASE WHEN isfinite(p.created_at) THEN (date_part('epoch', p.created_at::timestamptz) * 1000000)::bigint END
FROM {pipelines} p
WHERE (p.completed_at IS NULL OR p.completed_at >= to_timestamp(%(since)s / 1000000.0) - interval '1 hour')
  AND least(p.created_at, p.started_at, p.completed_at) < to_timestamp(%(until)s / 1000000.0)
ORDER BY p.player_id, p.product_good::varchar(128)

-- name: history_tasks
-- The tasks that tell something of a time, as `live_tasks` writes them.
SELECT json_build_array(
    'task', 'I',
    ARRAY[NULL, NULL, t.id::varchar(128), t.task_type::varchar(128), t.status::varchar(128),
          t.assigned_ship::varchar(128)],
    ARRAY[NULL, NULL, NULL, NULL, t.player_id, t.retry_count, t.total_cost, t.total_revenue, {actual_quantity}],
    ARRAY[t.ready_at::timestamptz, t.started_at::timestamptz, t.completed_at::timestamptz])::text, NULL
FROM {tasks} t
WHERE (t.completed_at IS NULL OR t.completed_at >= to_timestamp(%(since)s / 1000000.0))
  AND least(t.started_at, t.completed_at) < to_timestamp(%(until)s / 1000000.0)
ORDER BY t.player_id, t.task_type::varchar(128)

-- name: outage
-- The last heartbeat of an exporter, or the installation if there was none, and the clock. Both in epoch microseconds.
SELECT (date_part('epoch', CASE WHEN isfinite(l.renewed_at) THEN l.renewed_at ELSE s.installed_at END) * 1000000)::bigint,
       (date_part('epoch', clock_timestamp()) * 1000000)::bigint
FROM mfg_notify.lease AS l, mfg_notify.settings AS s

-- name: journal
-- The events that no exporter has folded, in any order.
SELECT id, xid::text::bigint, (date_part('epoch', at) * 1000000)::bigint, body
FROM mfg_notify.event WHERE version = %(version)s
