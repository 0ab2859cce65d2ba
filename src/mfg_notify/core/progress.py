"""What each live pipeline waits for, and since when: for the board alone, no metric depends on it.

Events do not say which pipeline a task belongs to, so this is as old as the last reconciliation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import DecodeError, json

GOODS_MAXIMUM = 4
"""Missing inputs that are named at most."""


@dataclass(frozen=True, slots=True)
class OpenTasks:
    """The tasks of one pipeline in one state, and since when the first of them has been in it (epoch microseconds)."""

    number: int = 0
    since: int | None = None


@dataclass(frozen=True, slots=True)
class FactoryNeeds:
    """A factory as one pipeline sees it."""

    symbol: str
    good: str
    supply: str | None
    missing: tuple[str, ...]
    """Inputs that have not been delivered."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One live pipeline."""

    created_at: int | None
    pending: OpenTasks = field(default_factory=OpenTasks)
    ready: OpenTasks = field(default_factory=OpenTasks)
    executing: OpenTasks = field(default_factory=OpenTasks)
    factories: Sequence[FactoryNeeds] = ()


def missing_inputs(required: str | None, delivered: str | None) -> tuple[str, ...]:
    """Return the goods of `required` (a JSON array) that `delivered` (a JSON object by good) does not say are there.

    The game owns these columns, so nothing is taken for granted: what cannot be read misses nothing.
    """
    try:
        goods, there = json.decode(required or "[]"), json.decode(delivered or "{}")
    except (DecodeError, RecursionError):
        return ()
    if not isinstance(goods, list) or not isinstance(there, Mapping):
        return ()
    return tuple(
        good[:128]
        for good in goods
        if isinstance(good, str)
        and not (isinstance(input_ := there.get(good), Mapping) and input_.get("delivered") is True)
    )


def waits_for(progress: Progress, status: str, idle_ships: int) -> tuple[str, int | None]:
    """Return what a pipeline waits for in a few words, and since when (epoch microseconds).

    `idle_ships` are those of its player. Tasks that are ready or under way come first, then the factories. Pending
    tasks come last, because they wait for a factory's inputs or supply.
    """
    executing, ready, pending = progress.executing, progress.ready, progress.pending
    if executing.number:
        return f"{_tasks(executing)} under way", executing.since
    if ready.number:
        ships = f"{idle_ships} idle ships" if idle_ships > 1 else "1 idle ship" if idle_ships else "no idle ship"
        return f"{_tasks(ready)} ready, {ships}", ready.since
    since = pending.since or progress.created_at
    for factory in progress.factories:
        if factory.missing:
            named = ", ".join(factory.missing[:GOODS_MAXIMUM])
            more = len(factory.missing) - GOODS_MAXIMUM
            return f"{factory.symbol} lacks {named}{f' and {more} more' if more > 0 else ''}", since
    for factory in progress.factories:
        if factory.supply not in ("HIGH", "ABUNDANT"):
            return f"{factory.good} at {factory.symbol} is {factory.supply or 'not seen yet'}", since
    if pending.number:
        return f"{_tasks(pending)} pending", since
    return ("its start" if status == "PLANNING" else "no open task"), progress.created_at


def _tasks(tasks: OpenTasks) -> str:
    return "1 task" if tasks.number == 1 else f"{tasks.number} tasks"
