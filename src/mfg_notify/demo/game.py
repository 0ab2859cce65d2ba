"""Owns the playing of the simulated game: worlds of several players, put on a database as the bot's daemon would.

One connection a player, GORM's statements, the daemon's transactions. It never reads or changes a row that it did not
write; what happens in the game is `world`.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, cast
from uuid import UUID, uuid5

import anyio
import psycopg
from anyio.abc import TaskStatus
from psycopg import sql
from psycopg.types.json import Jsonb
from tenacity import AsyncRetrying, RetryError, retry_if_exception, wait_random_exponential

from mfg_notify.demo.world import (
    LIVE_PIPELINE,
    Assign,
    DeletePipeline,
    DeleteTask,
    DependencyRow,
    Enter,
    FactoryRow,
    GameOptions,
    Insert,
    MarketRow,
    PipelineRow,
    Row,
    Save,
    Scan,
    Scrub,
    ShipRow,
    Statement,
    TaskRow,
    Transaction,
    World,
    name_move,
)


@dataclass(frozen=True, slots=True)
class GameProgress:
    """What has been committed so far.

    `moves` counts by what happened, such as `task READY → ASSIGNED`; `game_seconds` is the furthest player's clock.
    `slowest_seconds` is what the slowest transaction took, without the time that its connection was lost.
    """

    statements: int = 0
    transactions: int = 0
    reconnects: int = 0
    slowest_seconds: float = 0.0
    game_seconds: float = 0.0
    player_ids: tuple[int, ...] = ()
    moves: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


# Names of pipelines and tasks are derived from the seed and the player's id: the same game on the same database twice
# has two players, hence other names.
NAMES: Final = UUID("6f0f0a52-5d0c-4c9e-9f0b-0e6c1c8f7a11")
MOMENTS: Final = frozenset({
    "created_at", "ready_at", "started_at", "completed_at", "phase_completed_at", "inputs_completed_at",
    "last_updated",
})  # fmt: skip
NAMED: Final[Mapping[str, str]] = MappingProxyType({
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
PROGRESS_SECONDS: Final = 0.25
# Who falls further behind than this, because the database was away, does not hurry to catch up.
LATE_SECONDS: Final = 5.0


async def create_tables(connection: psycopg.AsyncConnection[Any], schema: str = "public") -> None:
    """Create the game's tables in a schema, and the schema; what exists already stays as it is."""
    script = files("mfg_notify.demo").joinpath("game_schema.sql").read_text(encoding="utf-8")
    async with connection.transaction():
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        await connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(schema)))
        # The file is part of this package.
        await connection.execute(script.encode())


async def play(
    conninfo: str,
    options: GameOptions,
    *,
    schema: str = "public",
    duration: float | None = None,
    statements: int | None = None,
    on_progress: Callable[[GameProgress], None] | None = None,
    reconnect: bool = False,
) -> GameProgress:
    """Play until cancelled, for `duration` wall seconds, or until about that many row-changing statements.

    Raises psycopg's own errors, OperationalError when a connection is lost. With `reconnect` it connects again
    instead, for as long as that takes, and plays the interrupted transaction once more. Whether that had been
    committed is not known, so the replay is written to change nothing if it had. An error that leaves the connection
    whole is raised all the same.
    """
    tally = _Tally(duration, statements, on_progress)
    pace = _Pace(options)
    try:
        async with anyio.create_task_group() as group:
            for index in range(options.players):
                seat = _Seat(conninfo, schema, options.seed, tally, reconnect=reconnect)
                # One after another, so that the same game on an empty database has the same ids.
                await group.start(seat.play, World(options, index), pace)
    except BaseExceptionGroup as errors:
        lost = errors.subgroup(psycopg.Error)
        if lost is None:
            raise
        raise _first(lost) from errors
    return tally.report()


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    inner: BaseException = errors.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


class _Tally:
    """Counts what all players have committed, and knows when it is enough."""

    def __init__(
        self,
        duration: float | None,
        statements: int | None,
        on_progress: Callable[[GameProgress], None] | None,
    ) -> None:
        self.deadline = math.inf if duration is None else time.monotonic() + duration
        self._limit = math.inf if statements is None else statements
        self._on_progress = on_progress
        self._reported = time.monotonic()
        self._statements = self._transactions = 0
        self.reconnects = 0
        self.slowest_seconds = 0.0
        self._game_seconds = 0.0
        self._player_ids: list[int] = []
        self._moves: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        return self._statements >= self._limit or time.monotonic() >= self.deadline

    def add(self, transaction: Transaction, statements: int, player_id: int) -> None:
        self._statements += statements
        self._transactions += 1
        self._game_seconds = max(self._game_seconds, transaction.at)
        if transaction.rolled_back:
            self._moves["transaction rolled back"] += 1
        else:
            self._moves.update(filter(None, map(name_move, transaction.statements)))
            if isinstance(transaction.statements[0], Enter):
                self._player_ids.append(player_id)
        if self._on_progress is not None and time.monotonic() - self._reported >= PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self._on_progress(self.report())

    def report(self) -> GameProgress:
        return GameProgress(
            self._statements, self._transactions, self.reconnects, self.slowest_seconds, self._game_seconds,
            tuple(self._player_ids), MappingProxyType(dict(sorted(self._moves.items()))),
        )  # fmt: skip


class _Pace:
    """Says when the next transaction is due, by the wall's monotonic clock."""

    def __init__(self, options: GameOptions) -> None:
        self._speed = options.speed
        self._rate = options.rate
        self._next = time.monotonic()

    def due(self, started: float, at: float, statements: int) -> float:
        """Return when to play; `started` is when the player's game time was 0."""
        if self._rate is None:
            return started + at / self._speed
        if self._rate <= 0 or math.isinf(self._rate):
            return 0.0
        turn = max(self._next, time.monotonic() - LATE_SECONDS)
        self._next = turn + statements / self._rate
        return turn


@dataclass(frozen=True, slots=True)
class _Queries:
    """What is sent to one table: INSERT, UPDATE by key, and the two INSERTs that may find the row there already."""

    insert: bytes
    update: bytes
    insert_again: bytes
    upsert: bytes


@dataclass(frozen=True, slots=True)
class _Order:
    """One statement as it is sent.

    `otherwise` is sent if it changed no row; `again` takes its place in a replay.
    """

    query: bytes
    values: Mapping[str, Any]
    otherwise: bytes | None = None
    again: bytes | None = None


@dataclass(slots=True)
class _Place:
    """What a row of manufacturing_factory_states was given: its id, and the moments that were written in it."""

    id: int
    pipeline_id: int | None
    moments: dict[float, datetime]


class _Seat:
    """One player's connection: renders its transactions and plays them."""

    def __init__(self, conninfo: str, schema: str, seed: int, tally: _Tally, *, reconnect: bool) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._seed = seed
        self._tally = tally
        self._reconnect = reconnect
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._backend: tuple[int, datetime] | None = None
        self._skew = timedelta()
        self._player_id = 0
        self._places: dict[int, _Place] = {}

    async def play(self, world: World, pace: _Pace, *, task_status: TaskStatus[None]) -> None:
        """Play a world until it is enough; started once the player has entered, or will not."""
        entered = False
        started = time.monotonic()
        try:
            for transaction in world.transactions():
                statements = sum(map(_count, transaction.statements))
                due = pace.due(started, transaction.at, statements)
                late = time.monotonic() - due
                if late > LATE_SECONDS and due > 0:
                    started += late
                # A sleep of 0 still lets the other players and the caller have their turn.
                await anyio.sleep(max(0.0, min(due, self._tally.deadline) - time.monotonic()))
                if self._tally.over or not await self._perform(transaction):
                    break
                self._tally.add(transaction, statements, self._player_id)
                if not entered:
                    entered = True
                    task_status.started()
            if not entered:
                task_status.started()
        finally:
            await self._disconnect()

    async def _perform(self, transaction: Transaction) -> bool:
        """Play a transaction; False if the time was up before the database came back."""
        orders: list[_Order] = []
        try:
            await self._attempt(transaction, orders)
        except psycopg.OperationalError as error:
            if not self._reconnect or not is_lost(error):
                raise
            self._tally.reconnects += 1
            retrying = AsyncRetrying(
                retry=retry_if_exception(is_lost),
                stop=lambda _: self._tally.over,
                wait=wait_random_exponential(multiplier=0.1, max=1.0),
            )
            try:
                await retrying(self._attempt, transaction, orders)
            except RetryError:
                return False
        self._let_go(transaction)
        return True

    async def _attempt(self, transaction: Transaction, orders: list[_Order]) -> None:
        """Play a transaction once; orders that are there already have been sent before, with an outcome unknown."""
        again = bool(orders)
        try:
            connection = self._connection or await self._connect()
            orders[:] = orders or await self._render(connection, transaction)
            started = time.monotonic()
            await _send(connection, orders, again=again, rolled_back=transaction.rolled_back)
            self._tally.slowest_seconds = max(self._tally.slowest_seconds, time.monotonic() - started)
        except psycopg.OperationalError:
            await self._disconnect()
            raise

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        try:
            await connection.execute("SELECT set_config('search_path', quote_ident(%s), false)", (self._schema,))
            if self._backend is not None:
                # The server may not have noticed that the old connection is lost, and may still be working for it:
                # the replay must not be overtaken by what it replays.
                await connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE pid = %s AND backend_start = %s",
                    self._backend,
                )
            cursor = await connection.execute(
                "SELECT pid, backend_start, clock_timestamp() FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
            found = await cursor.fetchone()
        except BaseException:
            await connection.close()
            raise
        if found is not None:
            self._backend = (found[0], found[1])
            self._skew = found[2] - datetime.now(UTC)
        self._connection = connection
        return connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    # -- from rows of the world to rows of the database

    async def _render(self, connection: psycopg.AsyncConnection[Any], transaction: Transaction) -> list[_Order]:
        """Turn statements into orders, once: a replay sends the same values.

        Ids of serial columns are fetched before the transaction, so that a replay knows them too.
        """
        now = datetime.now(UTC) + self._skew
        orders: list[_Order] = []
        for statement in transaction.statements:
            if isinstance(statement, Enter):
                self._player_id = await _next_id(connection, "players")
            if isinstance(statement, Insert | Save):
                row = statement.row
                if isinstance(row, FactoryRow) and row.id not in self._places:
                    number = await _next_id(connection, TABLES[FactoryRow])
                    self._places[row.id] = _Place(number, row.pipeline_id, {})
            orders += self._orders(statement, lambda moment: now - timedelta(seconds=transaction.at - moment))
        return orders

    def _orders(self, statement: Statement, stamp: Callable[[float], datetime]) -> Iterator[_Order]:
        mine = {"player_id": self._player_id}
        match statement:
            case Enter(agent_symbol, token):
                yield _Order(ENTER, mine | {"agent": agent_symbol, "token": token}, again=ENTER)
            case Insert(row):
                queries = QUERIES[type(row)]
                yield _Order(queries.insert, self._values(row, stamp), again=queries.insert_again)
            case Save(row):
                queries = QUERIES[type(row)]
                yield _Order(queries.update, self._values(row, stamp), otherwise=queries.upsert)
            case Assign(row):
                values = self._values(row, stamp)
                yield _Order(LOCK, values)
                yield _Order(ASSIGN, values)
            case DeletePipeline(number):
                yield _Order(DELETE_PIPELINE, {"id": self._name("pipeline", number)})
            case DeleteTask(number):
                yield _Order(DELETE_TASK, {"id": self._name("task", number)})
            case Scan(waypoint_symbol, rows):
                yield _Order(FORGET_MARKET, mine | {"waypoint_symbol": waypoint_symbol})
                for row in rows:
                    yield _Order(QUERIES[MarketRow].insert, self._values(row, stamp))
            case Scrub():
                for query in SCRUB:
                    yield _Order(query, mine)

    def _values(self, row: Row, stamp: Callable[[float], datetime]) -> dict[str, Any]:
        """Return a row's columns.

        Moments lie in the past by game seconds, counted back from the database's now: so every duration reads in game
        seconds, whatever the speed, and the last change is always now.
        """
        values: dict[str, Any] = {"player_id": self._player_id}
        place = self._places[row.id] if isinstance(row, FactoryRow) else None
        for column in fields(row):
            name, value = column.name, getattr(row, column.name)
            if name in MOMENTS and value is not None:
                # A factory's moments are no durations: they stay as first written, or no poll would leave a row alone.
                value = place.moments.setdefault(value, stamp(value)) if place else stamp(value)
            elif name == "id":
                value = place.id if place else self._name("task" if isinstance(row, TaskRow) else "pipeline", value)
            elif name in NAMED and value is not None:
                value = self._name(NAMED[name], value)
            elif name == "delivered_inputs":
                value = Jsonb({
                    each.good: {"delivered": each.delivered, "quantity": each.quantity, "ship": each.ship}
                    for each in value
                })  # fmt: skip
            elif name == "required_inputs":
                value = Jsonb(list(value))
            elif name == "materials":
                value = Jsonb([{"good": good, "units": units} for good, units in value])
            values[name] = value
        return values

    def _name(self, kind: str, number: int) -> str:
        return str(uuid5(NAMES, f"{self._seed}/{self._player_id}/{kind}/{number}"))

    def _let_go(self, transaction: Transaction) -> None:
        """Forget the factory rows that will not be written again."""
        if transaction.rolled_back:
            return
        for statement in transaction.statements:
            match statement:
                case Save(PipelineRow(id=number, status=status)) if status not in LIVE_PIPELINE:
                    self._places = {key: it for key, it in self._places.items() if it.pipeline_id != number}
                case DeletePipeline(number):
                    self._places = {key: it for key, it in self._places.items() if it.pipeline_id != number}
                case Scrub():
                    self._places = {}
                case _:
                    pass


def is_lost(error: BaseException) -> bool:
    """Tell whether an error is of the connection: none to be had, cut, or a server that goes down or comes up."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    # Without a SQLSTATE it comes from libpq: class 57P are shutdowns, 08 what the server says of the connection.
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))


async def _send(
    connection: psycopg.AsyncConnection[Any], orders: list[_Order], *, again: bool, rolled_back: bool
) -> None:
    """Send a transaction in one packet, and in a second the INSERTs of those Saves that found no row."""
    if len(orders) == 1 and not rolled_back:
        # A statement alone is a transaction of its own, and so is the INSERT after an UPDATE that found no row.
        (order,) = orders
        cursor = await connection.execute((again and order.again) or order.query, order.values)
        if order.otherwise is not None and cursor.rowcount == 0:
            await connection.execute(order.otherwise, order.values)
        return
    async with connection.pipeline() as pipeline:
        await connection.execute("BEGIN")
        cursors = [await connection.execute((again and order.again) or order.query, order.values) for order in orders]
        if any(order.otherwise is not None for order in orders):
            await pipeline.sync()
            for order, cursor in zip(orders, cursors, strict=True):
                if order.otherwise is not None and cursor.rowcount == 0:
                    await connection.execute(order.otherwise, order.values)
        # After an error the server skips what follows, up to the end of the pipeline: this COMMIT too.
        await connection.execute("ROLLBACK" if rolled_back else "COMMIT")


async def _next_id(connection: psycopg.AsyncConnection[Any], table: str) -> int:
    cursor = await connection.execute("SELECT nextval(pg_get_serial_sequence(%s, 'id'))", (table,))
    found = await cursor.fetchone()
    return int(cast("tuple[int]", found)[0])


def _count(statement: Statement) -> int:
    """Return how many statements that change rows a statement becomes."""
    match statement:
        case Scan(rows=rows):
            return 1 + len(rows)
        case Scrub():
            return len(SCRUB)
        case _:
            return 1


def _compose(kind: type[Row]) -> _Queries:
    keys = KEYS[kind]
    own = ["player_id"] if kind is not DependencyRow else []
    columns = [column.name for column in fields(kind)] + own
    rest = [name for name in columns if name not in keys]
    table = sql.Identifier(TABLES[kind])
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        table, sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
    )
    one = sql.SQL("{} = {}")
    update = sql.SQL("UPDATE {} SET {} WHERE {}").format(
        table,
        sql.SQL(", ").join(one.format(sql.Identifier(name), sql.Placeholder(name)) for name in rest),
        sql.SQL(" AND ").join(one.format(sql.Identifier(name), sql.Placeholder(name)) for name in keys),
    )
    upsert = sql.SQL("{} ON CONFLICT ({}) DO UPDATE SET {}").format(
        insert,
        sql.SQL(", ").join(map(sql.Identifier, keys)),
        sql.SQL(", ").join(
            sql.SQL("{} = excluded.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in rest
        ),
    )
    again = sql.SQL("{} ON CONFLICT DO NOTHING").format(insert)
    return _Queries(insert.as_bytes(), update.as_bytes(), again.as_bytes(), upsert.as_bytes())


QUERIES: Final[Mapping[type, _Queries]] = MappingProxyType({kind: _compose(kind) for kind in TABLES})
ENTER: Final = (
    b"INSERT INTO players (id, agent_symbol, token) VALUES (%(player_id)s, %(agent)s, %(token)s) ON CONFLICT DO NOTHING"
)
LOCK: Final = b"SELECT id, status FROM manufacturing_tasks WHERE id = %(id)s FOR UPDATE"
# The earlier moments are restated so that the wait reads in game seconds.
ASSIGN: Final = (
    b"UPDATE manufacturing_tasks SET status = %(status)s, assigned_ship = %(assigned_ship)s,"
    b" created_at = %(created_at)s, ready_at = %(ready_at)s WHERE id = %(id)s"
)
DELETE_PIPELINE: Final = b"DELETE FROM manufacturing_pipelines WHERE id = %(id)s"
DELETE_TASK: Final = b"DELETE FROM manufacturing_tasks WHERE id = %(id)s"
FORGET_MARKET: Final = (
    b"DELETE FROM market_data WHERE player_id = %(player_id)s AND waypoint_symbol = %(waypoint_symbol)s"
)
SCRUB: Final = (
    b"DELETE FROM manufacturing_factory_states WHERE player_id = %(player_id)s",
    b"DELETE FROM manufacturing_pipelines WHERE player_id = %(player_id)s AND status IN ('PLANNING', 'EXECUTING')",
    b"DELETE FROM manufacturing_tasks"
    b" WHERE player_id = %(player_id)s AND status IN ('PENDING', 'READY', 'ASSIGNED', 'EXECUTING')",
    b"DELETE FROM ships WHERE player_id = %(player_id)s",
    b"DELETE FROM market_data WHERE player_id = %(player_id)s",
)
