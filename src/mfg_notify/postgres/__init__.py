"""All SQL and all of psycopg: how changes travel. What a change means is decided in `core`."""
