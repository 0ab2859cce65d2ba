"""How changes travel: all SQL and all of psycopg. What a change means is `core`."""
