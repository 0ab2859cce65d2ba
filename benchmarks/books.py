"""What the books add to a fold: processor time of client and server, with and without them in turn. Linux only."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import anyio

from benchmarks.measures import Figures, Say
from benchmarks.stage import BenchmarkError, Stage
from mfg_notify.core.books import Balance
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.postgres import books, journal
from mfg_notify.postgres.connection import Connection, connect

ENTRY = "WITH entry AS ("
"""Begins the line of the statement `add_totals` that stores the entry."""
CHUNK = 20_000
REPEAT = "INSERT INTO mfg_notify.event (body) SELECT body FROM played WHERE n > %s AND n <= %s ORDER BY n"


@contextmanager
def _without_books() -> Iterator[None]:
    statement = journal.QUERY["add_totals"]
    plain = "\n".join(line for line in statement.splitlines() if not line.startswith(ENTRY))
    if plain.count("\n") != statement.count("\n") - 1:
        raise BenchmarkError(f"the statement add_totals has no line that begins with {ENTRY}")
    with ExitStack() as stack:
        stack.enter_context(patch.object(journal, "QUERY", {**journal.QUERY, "add_totals": plain}))
        stack.enter_context(patch.object(journal, "_encode_entry", lambda *_: ""))
        stack.enter_context(patch.object(Balance, "add", lambda *_: None))
        yield


def books_in_folds(stage: Stage, say: Say, *, folds: dict[int, int]) -> Figures:
    """Measure so many pairs of folds for each number of events; return the medians in microseconds."""
    stage.make_game("books", triggers=True, empty=True)
    return anyio.run(partial(_measure, stage, say, folds))


async def _measure(stage: Stage, say: Say, folds: dict[int, int]) -> Figures:
    await play(stage.dsn("books"), GameOptions(seed=5, rate=0, players=4), statements=8_000)
    found: Figures = {}
    with stage.connect("books") as game:
        game.execute("SET synchronous_commit = off")
        game.execute("UPDATE mfg_notify.lease SET holder = 'benchmark'")
        game.execute("CREATE TABLE played AS SELECT row_number() OVER (ORDER BY id) AS n, body FROM mfg_notify.event")
        game.execute("DELETE FROM mfg_notify.event")
        [(played,)] = game.execute("SELECT count(*) FROM played").fetchall()
        async with await connect(stage.dsn("books")) as connection:
            for events, pairs in folds.items():
                say(f"books: {pairs} pairs of folds of {events} events")
                spent: dict[bool, list[float]] = {True: [], False: []}
                for pair in range(pairs):
                    first = pair * events % (played - events)
                    for with_books in (True, False) if pair % 2 else (False, True):
                        game.execute(REPEAT, (first, first + events))
                        with ExitStack() as stack:
                            if not with_books:
                                stack.enter_context(_without_books())
                            spent[with_books].append(await _fold(connection, events))
                    await books.carry_forward(connection, "benchmark")
                found[str(events)] = {"with us": median(spent[True]), "without us": median(spent[False])}
    return found


async def _fold(connection: Connection, events: int) -> float:
    """Fold once; return the processor time of client and server in microseconds."""
    server = connection.info.backend_pid
    before = _time_on_cpu(server)
    fold = await journal.fold(connection, "benchmark", "benchmark", CHUNK, parts=4)
    spent = _time_on_cpu(server) - before
    if fold is None or len(fold.events) != events:
        raise BenchmarkError("a fold did not take the events that it should")
    return spent / 1000


def _time_on_cpu(server: int) -> int:
    """Return the processor time of a process and of this thread in nanoseconds."""
    return int(Path(f"/proc/{server}/schedstat").read_text(encoding="ascii").split()[0]) + time.thread_time_ns()
