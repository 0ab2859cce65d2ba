"""Builders for rows of the game: a test names the columns that matter to it, and the others have a default.

Columns without a default here have the one of the game's schema (`mfg_notify/demo/game_schema.sql`). A value may be an
expression in SQL, such as `ago("2 hours")`.
"""

from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg
from psycopg import sql

Connection = psycopg.Connection[Any]

TASK: dict[str, object] = {"player_id": 1, "task_type": "SELL", "good": "G"}
NOW = sql.SQL("now()")


def ago(interval: str) -> sql.Composed:
    """Return the expression for a moment that long before the transaction began."""
    return sql.SQL("now() - {}::interval").format(interval)


def insert(connection: Connection, table: str, **columns: object) -> psycopg.Cursor[Any]:
    """Insert one row; the cursor returns it."""
    return _insert(connection, table, "VALUES ({})", columns)


def _insert(
    connection: Connection, table: str, source: LiteralString, columns: Mapping[str, object], **more: object
) -> psycopg.Cursor[Any]:
    statement = sql.SQL("INSERT INTO {} ({}) " + source + " RETURNING *").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        # An expression stands in the statement itself, a value is passed beside it.
        sql.SQL(", ").join(
            value if isinstance(value, sql.Composable) else sql.Placeholder(column) for column, value in columns.items()
        ),
        **more,
    )
    return connection.execute(
        statement, {column: value for column, value in columns.items() if not isinstance(value, sql.Composable)}
    )


def add_player(connection: Connection, agent_symbol: str = "A", **columns: object) -> int:
    """Insert a player; return the id: 1 for the first one in a database."""
    given = {"token": "x"} | columns
    [(player, *_)] = insert(connection, "players", agent_symbol=agent_symbol, **given).fetchall()
    return int(player)


def add_pipeline(connection: Connection, key: str = "p", **columns: object) -> None:
    """Insert a pipeline, of player 1 and PLANNING by default."""
    given = {"player_id": 1, "product_good": "IRON", "sell_market": "M", "expected_price": 1} | columns
    insert(connection, "manufacturing_pipelines", id=key, **given)


def add_task(connection: Connection, key: str = "t", **columns: object) -> None:
    """Insert a task, of player 1 and PENDING by default."""
    insert(connection, "manufacturing_tasks", id=key, **(TASK | columns))


def add_tasks(connection: Connection, count: int, **columns: object) -> None:
    """Insert tasks in one statement. Their ids are t1, t2, … unless `id` is another expression, of the number n."""
    given = {"id": sql.SQL("'t' || n")} | TASK | columns
    _insert(connection, "manufacturing_tasks", "SELECT {} FROM generate_series(1, {count}) AS n", given, count=count)


def add_factory(connection: Connection, factory_symbol: str = "F", **columns: object) -> int:
    """Insert the state of a factory, of player 1 by default; return its id."""
    given = {"player_id": 1, "output_good": "IRON", "required_inputs": "[]"} | columns
    row = insert(connection, "manufacturing_factory_states", factory_symbol=factory_symbol, **given)
    [(factory, *_)] = row.fetchall()
    return int(factory)


def add_ship(connection: Connection, ship_symbol: str = "S-1", **columns: object) -> None:
    """Insert an idle ship that can carry cargo, of player 1 by default."""
    insert(connection, "ships", ship_symbol=ship_symbol, **({"player_id": 1, "cargo_capacity": 40} | columns))
