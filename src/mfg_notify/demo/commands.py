"""Owns the SQL of the simulated game: turns statements of the world into commands as the bot's daemon sends them.

Gives rows the ids and times of a real database. Never opens a connection and never sends anything: that is `game`.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID, uuid5

from psycopg import sql
from psycopg.types.json import Jsonb

from mfg_notify.demo.rows import (
    LIVE_PIPELINE_STATUSES,
    DependencyRow,
    FactoryRow,
    MarketRow,
    PipelineRow,
    Row,
    ShipRow,
    TaskRow,
)
from mfg_notify.demo.statements import (
    Assign,
    CloseEra,
    DeletePipeline,
    DeleteTask,
    Enter,
    Insert,
    Save,
    Scan,
    Scrub,
    Statement,
    Transaction,
)

KEY_NAMESPACE: Final = UUID("6f0f0a52-5d0c-4c9e-9f0b-0e6c1c8f7a11")
"""Pipeline and task ids are UUIDs made of the seed, the player's id and the world's number.

A second game with the same seed on the same database has other players, and therefore other ids.
"""
TIME_COLUMNS: Final = frozenset({
    "created_at", "ready_at", "started_at", "completed_at", "phase_completed_at", "inputs_completed_at",
    "last_updated",
})  # fmt: skip
REFERENCES: Final[Mapping[str, str]] = MappingProxyType({
    "pipeline_id": "pipeline", "task_id": "task", "depends_on_id": "task",
})  # fmt: skip
TABLES: Final[Mapping[type, str]] = MappingProxyType({
    PipelineRow: "manufacturing_pipelines", TaskRow: "manufacturing_tasks",
    DependencyRow: "manufacturing_task_dependencies", FactoryRow: "manufacturing_factory_states",
    ShipRow: "ships", MarketRow: "market_data",
})  # fmt: skip
KEYS: Final[Mapping[type, tuple[str, ...]]] = MappingProxyType({
    PipelineRow: ("id",), TaskRow: ("id",), FactoryRow: ("id",), DependencyRow: ("task_id", "depends_on_id"),
    ShipRow: ("ship_symbol", "player_id"), MarketRow: ("player_id", "waypoint_symbol", "good_symbol"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """One SQL statement with its values.

    `if_unchanged` is sent after it if it changed no row. `on_replay` takes its place if the transaction is sent again
    after an unknown outcome.
    """

    query: bytes
    values: Mapping[str, Any]
    if_unchanged: bytes | None = None
    on_replay: bytes | None = None


def count_changes(statement: Statement) -> int:
    """Return how many row-changing SQL statements a statement becomes."""
    match statement:
        case Enter():
            return 2
        case Scan(rows=rows):
            return 1 + len(rows)
        case Scrub():
            return len(SCRUB)
        case _:
            return 1


@dataclass(slots=True)
class _FactoryIdentity:
    """The id of a row of manufacturing_factory_states, and the times that have been written into it."""

    id: int
    pipeline_id: int | None
    times: dict[float, datetime]


class CommandRenderer:
    """Renders the transactions of one player's world. Remembers the player's id and the ids of live factory rows."""

    def __init__(self, seed: int) -> None:
        self.player_id = 0
        self._seed = seed
        self._factories: dict[int, _FactoryIdentity] = {}

    async def render(
        self, transaction: Transaction, now: datetime, next_id: Callable[[str], Awaitable[int]]
    ) -> list[Command]:
        """Turn a transaction into commands; `now` is the database's clock, `next_id` takes an id of a table's sequence.

        Render each transaction once: a replay must send the same values, so serial ids are taken beforehand.
        """
        commands: list[Command] = []
        for statement in transaction.statements:
            if isinstance(statement, Enter):
                self.player_id = await next_id("players")
            if isinstance(statement, Insert | Save):
                row = statement.row
                if isinstance(row, FactoryRow) and row.id not in self._factories:
                    number = await next_id(TABLES[FactoryRow])
                    self._factories[row.id] = _FactoryIdentity(number, row.pipeline_id, {})
            commands += self._commands(statement, lambda at: now - timedelta(seconds=transaction.at - at))
        return commands

    def forget_finished(self, transaction: Transaction) -> None:
        """Forget the factory rows that a committed transaction has made final or deleted."""
        if transaction.rolled_back:
            return
        for statement in transaction.statements:
            match statement:
                case Save(PipelineRow(id=number, status=status)) if status not in LIVE_PIPELINE_STATUSES:
                    self._forget_factories_of(number)
                case DeletePipeline(number):
                    self._forget_factories_of(number)
                case Scrub():
                    self._factories = {}
                case _:
                    pass

    def _forget_factories_of(self, pipeline_id: int) -> None:
        self._factories = {key: it for key, it in self._factories.items() if it.pipeline_id != pipeline_id}

    def _commands(self, statement: Statement, to_timestamp: Callable[[float], datetime]) -> Iterator[Command]:
        player = {"player_id": self.player_id}
        match statement:
            case Enter(agent_symbol, token):
                yield Command(QUERY["enter"], player | {"agent": agent_symbol, "token": token})
                yield Command(QUERY["open_era"], player)
            case Insert(row):
                queries = ROW_QUERIES[type(row)]
                yield Command(queries.insert, self._values(row, to_timestamp), on_replay=queries.insert_if_absent)
            case Save(row):
                queries = ROW_QUERIES[type(row)]
                yield Command(queries.update, self._values(row, to_timestamp), if_unchanged=queries.upsert)
            case Assign(row):
                values = self._values(row, to_timestamp)
                yield Command(QUERY["lock_task"], values)
                yield Command(QUERY["assign_task"], values)
            case DeletePipeline(number):
                yield Command(QUERY["delete_pipeline"], {"id": self._key("pipeline", number)})
            case DeleteTask(number):
                yield Command(QUERY["delete_task"], {"id": self._key("task", number)})
            case Scan(waypoint_symbol, rows):
                yield Command(QUERY["delete_market"], player | {"waypoint_symbol": waypoint_symbol})
                for row in rows:
                    yield Command(ROW_QUERIES[MarketRow].insert, self._values(row, to_timestamp))
            case CloseEra():
                yield Command(QUERY["close_era"], player)
            case Scrub():
                for query in SCRUB:
                    yield Command(query, player)

    def _values(self, row: Row, to_timestamp: Callable[[float], datetime]) -> dict[str, Any]:
        """Return a row's columns.

        Times are counted back from the database's clock in game seconds. So every duration reads in game seconds
        whatever the speed, and the latest change is always now.
        """
        values: dict[str, Any] = {"player_id": self.player_id}
        factory = self._factories[row.id] if isinstance(row, FactoryRow) else None
        for column in fields(row):
            name, value = column.name, getattr(row, column.name)
            if name in TIME_COLUMNS and value is not None:
                # No duration is measured on a factory row, so its times stay as first written. Otherwise every poll
                # would change the row.
                timestamp = to_timestamp(value)
                value = factory.times.setdefault(value, timestamp) if factory else timestamp
            elif name == "id":
                value = factory.id if factory else self._key("task" if isinstance(row, TaskRow) else "pipeline", value)
            elif name in REFERENCES and value is not None:
                value = self._key(REFERENCES[name], value)
            elif name == "delivered_inputs":
                value = Jsonb({
                    each.good: {"delivered": each.delivered, "quantity": each.quantity, "ship": each.ship}
                    for each in value
                })  # fmt: skip
            elif name == "required_inputs":
                value = Jsonb(list(value))
            elif name == "materials":
                value = Jsonb([
                    {
                        "tradeSymbol": each.trade_symbol, "targetQuantity": each.target_quantity,
                        "deliveredQuantity": each.delivered_quantity,
                    }
                    for each in value
                ])  # fmt: skip
            values[name] = value
        return values

    def _key(self, kind: str, number: int) -> str:
        return str(uuid5(KEY_NAMESPACE, f"{self._seed}/{self.player_id}/{kind}/{number}"))


# --------------------------------------------------------------------------------------------------- queries --


@dataclass(frozen=True, slots=True)
class _RowQueries:
    """The queries of one table: INSERT, UPDATE by key, and the two INSERTs that allow for an existing row."""

    insert: bytes
    update: bytes
    insert_if_absent: bytes
    upsert: bytes


def _compose(kind: type[Row]) -> _RowQueries:
    keys = KEYS[kind]
    player = ["player_id"] if kind is not DependencyRow else []
    columns = [column.name for column in fields(kind)] + player
    rest = [name for name in columns if name not in keys]
    table = sql.Identifier(TABLES[kind])
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        table, sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
    )
    assignment = sql.SQL("{} = {}")
    update = sql.SQL("UPDATE {} SET {} WHERE {}").format(
        table,
        sql.SQL(", ").join(assignment.format(sql.Identifier(name), sql.Placeholder(name)) for name in rest),
        sql.SQL(" AND ").join(assignment.format(sql.Identifier(name), sql.Placeholder(name)) for name in keys),
    )
    upsert = sql.SQL("{} ON CONFLICT ({}) DO UPDATE SET {}").format(
        insert,
        sql.SQL(", ").join(map(sql.Identifier, keys)),
        sql.SQL(", ").join(
            sql.SQL("{} = excluded.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in rest
        ),
    )
    insert_if_absent = sql.SQL("{} ON CONFLICT DO NOTHING").format(insert)
    return _RowQueries(insert.as_bytes(), update.as_bytes(), insert_if_absent.as_bytes(), upsert.as_bytes())


def _load() -> dict[str, bytes]:
    text = files(__package__).joinpath("game.sql").read_text(encoding="utf-8")
    _, *parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    bodies = (re.sub(r"^--.*\n", "", body, flags=re.MULTILINE).strip() for body in parts[1::2])
    return {name: body.encode() for name, body in zip(parts[::2], bodies, strict=True)}


ROW_QUERIES: Final[Mapping[type, _RowQueries]] = MappingProxyType({kind: _compose(kind) for kind in TABLES})
QUERY: Final[Mapping[str, bytes]] = MappingProxyType(_load())
"""Query of game.sql by name. An unknown name is a KeyError."""
SCRUB: Final = tuple(query for name, query in QUERY.items() if name.startswith("scrub_"))
