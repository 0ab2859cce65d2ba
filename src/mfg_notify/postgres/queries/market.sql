-- The game's markets, which are optional. Used by market.py.

-- name: market_columns
-- The columns of the table of markets. The table is optional, and in older databases all players share it.
SELECT a.attname FROM pg_attribute a
WHERE a.attrelid = to_regclass(format('%%I.market_data', %(schema)s::text)) AND a.attnum > 0 AND NOT a.attisdropped

-- name: market
-- The number of markets by good, supply and activity. Each row of a good is one market. One pass counts both levels,
-- because the table may be large.
SELECT {player}::text, left(good_symbol::text, 128), left(supply::text, 128), left(activity::text, 128), count(*)
FROM {market} WHERE good_symbol <> '' GROUP BY 1, 2, 3, 4
