-- The lease: which exporter is the leader. Used by lease.py.

-- name: heartbeat
-- Sent once a second: a ping to this session through NOTIFY, the leader's heartbeat, the database's clock, and whether
-- NOTIFY is disabled.
WITH heartbeat AS (
    UPDATE mfg_notify.lease SET renewed_at = clock_timestamp(), backend_pid = pg_backend_pid()
    WHERE holder = %(holder)s RETURNING 1)
SELECT pg_notify(%(channel)s, %(ping)s), EXISTS (SELECT FROM heartbeat),
       (date_part('epoch', clock_timestamp()) * 1000000)::bigint,
       (SELECT last_value = 1 FROM mfg_notify.notify_disabled)

-- name: acquire_lease
-- Take the lease if it is free, already mine, or expired, and from the dead also if the holder's backend is gone. The
-- clock is the database's; after that was set back, a heartbeat from the future does not count as a sign of life.
-- Returns whether it was taken, and the generation of the last fold.
WITH taken AS (
    UPDATE mfg_notify.lease SET holder = %(holder)s, backend_pid = pg_backend_pid(), renewed_at = clock_timestamp()
    WHERE only_row IN (
        SELECT l.only_row FROM mfg_notify.lease l
        WHERE holder IS NULL OR holder = %(holder)s
           OR renewed_at NOT BETWEEN clock_timestamp() - make_interval(secs => %(duration)s)
                                 AND clock_timestamp() + make_interval(secs => %(duration)s)
           OR %(from_the_dead)s
              AND NOT EXISTS (SELECT FROM pg_stat_activity a
                              WHERE a.pid = l.backend_pid AND a.datname = current_database())
        FOR UPDATE SKIP LOCKED)
    RETURNING generation)
SELECT EXISTS (SELECT FROM taken), coalesce((SELECT generation FROM taken), l.generation) FROM mfg_notify.lease l

-- name: terminate_silent_holder
-- Disconnect a holder that sends no heartbeat and still locks the lease: its process was stopped in the middle of a
-- fold, which the next leader repeats. The server's own timeout would end it too, but not while its clock is set back.
-- Nothing else locks this table.
SELECT pg_terminate_backend(a.pid)
FROM mfg_notify.lease l JOIN pg_stat_activity a ON a.pid = l.backend_pid
WHERE l.renewed_at NOT BETWEEN clock_timestamp() - make_interval(secs => %(duration)s)
                           AND clock_timestamp() + make_interval(secs => %(duration)s)
  AND a.pid <> pg_backend_pid() AND a.datname = current_database() AND pg_has_role(a.usesysid, 'MEMBER')
  AND EXISTS (SELECT FROM pg_locks k WHERE k.pid = a.pid AND k.granted AND k.mode = 'RowExclusiveLock'
                                       AND k.relation = 'mfg_notify.lease'::regclass)

-- name: release_lease
-- Give the lease up, so that the next exporter does not have to wait for it to expire.
UPDATE mfg_notify.lease SET holder = NULL WHERE holder = %(holder)s
