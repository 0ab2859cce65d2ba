-- Settings of a new session. Used by connection.py and inspection.py.

-- name: send_any_bytes
-- Send text as it is stored. A server refuses to send what is not UTF-8 to a client that asks for UTF-8, which fails the
-- whole statement.
SET client_encoding TO SQL_ASCII

-- name: configure_session
-- Pin the settings that the code relies on, whatever the defaults of the role and the database are. JIT is off because
-- the queries are small and run often. Row security is off: a query that a policy would hide rows from raises an error.
-- No time-out for an idle session, because the one that listens is always idle. Older servers lack transaction_timeout.
SELECT set_config(name, value, false)
FROM (VALUES ('search_path', 'pg_catalog, pg_temp'), ('timezone', 'UTC'), ('jit', 'off'),
             ('default_transaction_isolation', 'read committed'), ('default_transaction_read_only', 'off'),
             ('synchronous_commit', 'on'), ('statement_timeout', '30s'), ('lock_timeout', '10s'),
             ('idle_in_transaction_session_timeout', '5s'), ('tcp_user_timeout', '10s'),
             ('idle_session_timeout', '0'), ('transaction_timeout', '0'), ('standard_conforming_strings', 'on'),
             ('extra_float_digits', '1'), ('row_security', 'off')) AS s (name, value)
WHERE current_setting(name, true) IS NOT NULL

-- name: read_only_session
-- Let the server itself refuse every write of a command that only reads.
SET default_transaction_read_only = on
