"""Owns the playing of the simulated game: several players' worlds on a real database, as the bot's daemon would.

One connection per player. It never reads or changes a row that it did not write. `world` decides what happens, and
`commands` has the SQL.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, cast

import anyio
import psycopg
from anyio.abc import TaskStatus
from psycopg import sql
from tenacity import AsyncRetrying, RetryError, retry_if_exception, wait_random_exponential

from mfg_notify.demo.classic import ClassicWorld
from mfg_notify.demo.commands import QUERY, Command, CommandRenderer, count_changes
from mfg_notify.demo.construction import ConstructionWorld
from mfg_notify.demo.statements import Enter, Transaction, name_move
from mfg_notify.demo.world import Daemon, GameOptions, World

WORLDS: Final[Mapping[Daemon, type[World]]] = MappingProxyType({
    "classic": ClassicWorld, "construction": ConstructionWorld,
})  # fmt: skip
PROGRESS_SECONDS: Final = 0.25
MAX_LAG_SECONDS: Final = 5.0
"""A player that has fallen behind by more, because the database was away, does not catch up."""


@dataclass(frozen=True, slots=True)
class GameProgress:
    """What has been committed so far.

    `moves` counts the effects of statements by name, such as `task READY → ASSIGNED`. `game_seconds` is the clock of
    the player who is furthest ahead. `slowest_seconds` is the duration of the slowest transaction, without the time
    during which its connection was lost.
    """

    statements: int = 0
    transactions: int = 0
    reconnects: int = 0
    slowest_seconds: float = 0.0
    game_seconds: float = 0.0
    player_ids: tuple[int, ...] = ()
    moves: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


async def create_tables(connection: psycopg.AsyncConnection[Any], schema: str = "public") -> None:
    """Create a schema and the game's tables in it. What already exists stays as it is."""
    script = files("mfg_notify.demo").joinpath("game_schema.sql").read_text(encoding="utf-8")
    async with connection.transaction():
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        await connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(schema)))
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

    Raises psycopg's errors: OperationalError if a connection is lost. With `reconnect` it reconnects instead, however
    long that takes, and replays the interrupted transaction. The outcome of that transaction is unknown, so the replay
    is idempotent. Errors that leave the connection intact are raised with `reconnect` too.
    """
    tally = _Tally(duration, statements, on_progress)
    pace = _Pace(options)
    try:
        async with anyio.create_task_group() as group:
            for index in range(options.players):
                player = _Player(conninfo, schema, options.seed, tally, reconnect=reconnect)
                # Players enter one by one, so that the same game on an empty database gets the same ids.
                await group.start(player.play, WORLDS[options.daemon](options, index), pace)
    except BaseExceptionGroup as errors:
        database_errors = errors.subgroup(psycopg.Error)
        if database_errors is None:
            raise
        raise _first(database_errors) from errors
    return tally.progress()


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    inner: BaseException = errors.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


class _Tally:
    """Counts what all players have committed, and knows when the game is over."""

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
            self._on_progress(self.progress())

    def progress(self) -> GameProgress:
        return GameProgress(
            self._statements, self._transactions, self.reconnects, self.slowest_seconds, self._game_seconds,
            tuple(self._player_ids), MappingProxyType(dict(sorted(self._moves.items()))),
        )  # fmt: skip


class _Pace:
    """Decides when the next transaction is due, by the monotonic clock."""

    def __init__(self, options: GameOptions) -> None:
        self._speed = options.speed
        self._rate = options.rate
        self._next = time.monotonic()

    def due(self, started: float, at: float, statements: int) -> float:
        """Return when to play a transaction; `started` is the time at which the player's game time was 0."""
        if self._rate is None:
            return started + at / self._speed
        if self._rate <= 0 or math.isinf(self._rate):
            return 0.0
        due = max(self._next, time.monotonic() - MAX_LAG_SECONDS)
        self._next = due + statements / self._rate
        return due


class _Player:
    """One player's connection: sends the transactions of its world when they are due, and reconnects if allowed to."""

    def __init__(self, conninfo: str, schema: str, seed: int, tally: _Tally, *, reconnect: bool) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._tally = tally
        self._reconnect = reconnect
        self._renderer = CommandRenderer(seed)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._backend: tuple[int, datetime] | None = None
        self._clock_offset = timedelta()

    async def play(self, world: World, pace: _Pace, *, task_status: TaskStatus[None]) -> None:
        """Play a world until the game is over. Reports `started` once the player has entered, or never will."""
        entered = False
        started = time.monotonic()
        try:
            for transaction in world.transactions():
                statements = sum(map(count_changes, transaction.statements))
                due = pace.due(started, transaction.at, statements)
                lag = time.monotonic() - due
                if lag > MAX_LAG_SECONDS and due > 0:
                    started += lag
                # A sleep of 0 still yields to the other players and to the caller.
                await anyio.sleep(max(0.0, min(due, self._tally.deadline) - time.monotonic()))
                if self._tally.over or not await self._perform(transaction):
                    break
                self._tally.add(transaction, statements, self._renderer.player_id)
                if not entered:
                    entered = True
                    task_status.started()
            if not entered:
                task_status.started()
        finally:
            await self._disconnect()

    async def _perform(self, transaction: Transaction) -> bool:
        """Commit a transaction; return False if the game was over before the database came back."""
        commands: list[Command] = []
        try:
            await self._attempt(transaction, commands)
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
                await retrying(self._attempt, transaction, commands)
            except RetryError:
                return False
        self._renderer.forget_finished(transaction)
        return True

    async def _attempt(self, transaction: Transaction, commands: list[Command]) -> None:
        """Send a transaction once. Commands that are given were sent before with an unknown outcome; else fill them in.

        The caller keeps the list, so that every replay sends the same values.
        """
        replay = bool(commands)
        try:
            connection = self._connection or await self._connect()
            commands[:] = commands or await self._render(connection, transaction)
            started = time.monotonic()
            await _send(connection, commands, replay=replay, rolled_back=transaction.rolled_back)
            self._tally.slowest_seconds = max(self._tally.slowest_seconds, time.monotonic() - started)
        except psycopg.OperationalError:
            await self._disconnect()
            raise

    async def _render(self, connection: psycopg.AsyncConnection[Any], transaction: Transaction) -> list[Command]:
        async def next_id(table: str) -> int:
            cursor = await connection.execute(QUERY["next_id"], {"table": table})
            return int(cast("tuple[int]", await cursor.fetchone())[0])

        return await self._renderer.render(transaction, datetime.now(UTC) + self._clock_offset, next_id)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        try:
            await connection.execute(QUERY["use_schema"], {"schema": self._schema})
            if self._backend is not None:
                pid, backend_start = self._backend
                await connection.execute(QUERY["end_backend"], {"pid": pid, "backend_start": backend_start})
            cursor = await connection.execute(QUERY["identify_backend"])
            found = await cursor.fetchone()
        except BaseException:
            await connection.close()
            raise
        if found is not None:
            pid, backend_start, database_now = found
            self._backend = (pid, backend_start)
            self._clock_offset = database_now - datetime.now(UTC)
        self._connection = connection
        return connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def is_lost(error: BaseException) -> bool:
    """Tell whether an error means that the connection is lost: refused, cut, or a server that stops or starts."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    # An error without SQLSTATE comes from libpq. Class 57P means shutdown or start-up, class 08 a broken connection.
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))


async def _send(
    connection: psycopg.AsyncConnection[Any], commands: list[Command], *, replay: bool, rolled_back: bool
) -> None:
    """Send a transaction in one packet, and in a second one the INSERTs of those Saves that found no row."""
    if len(commands) == 1 and not rolled_back:
        # A single statement is its own transaction, and so is the INSERT after an UPDATE that found no row.
        (command,) = commands
        cursor = await connection.execute((replay and command.on_replay) or command.query, command.values)
        if command.if_unchanged is not None and cursor.rowcount == 0:
            await connection.execute(command.if_unchanged, command.values)
        return
    async with connection.pipeline() as pipeline:
        await connection.execute("BEGIN")
        cursors = [
            await connection.execute((replay and command.on_replay) or command.query, command.values)
            for command in commands
        ]
        if any(command.if_unchanged is not None for command in commands):
            await pipeline.sync()
            for command, cursor in zip(commands, cursors, strict=True):
                if command.if_unchanged is not None and cursor.rowcount == 0:
                    await connection.execute(command.if_unchanged, command.values)
        # After an error the server skips the rest of the pipeline, including this COMMIT.
        await connection.execute("ROLLBACK" if rolled_back else "COMMIT")
