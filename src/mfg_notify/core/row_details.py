"""Owns what the board shows of one pipeline or task: those that are live, and those that ended last.

Memory is bounded. What ended earlier is not known here, and nothing is read from the database.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct

from mfg_notify.core.board import ChangeSummary, describe_change
from mfg_notify.core.catalogue import TERMINAL
from mfg_notify.core.events import Event, FactoryImage, PipelineImage, TaskImage
from mfg_notify.core.progress import Progress

ENDED_MAXIMUM = 1_000
"""Pipelines that have ended and are remembered, and as many tasks."""
KINDS = ("pipeline", "task")
"""What can be asked for."""
_TERMINAL = frozenset(TERMINAL)

Fact = tuple[str, str | float | None, str]
"""A name, a value, and how it looks: as `words`, a `number`, a `time` or an `age` (both epoch microseconds)."""


class RowDetails(Struct, frozen=True):
    """One pipeline or task."""

    facts: list[Fact]
    """Empty if it is not known."""
    changes: list[ChangeSummary]
    """Newest first, as far as they are known."""
    complete_since: int | None
    """Everything that has ended since then is known (epoch microseconds); None if nothing has been counted yet."""


class EndedRows:
    """The last event of the pipelines and tasks that ended last, as folds have brought it."""

    def __init__(self) -> None:
        self._pipelines: OrderedDict[str, Event] = OrderedDict()
        self._tasks: OrderedDict[str, Event] = OrderedDict()
        self._began_at: int | None = None
        self._forgotten_until: dict[str, int] = {}

    def settle(self, events: Sequence[Event]) -> None:
        """Add the events of a fold; the ids of one row must rise."""
        if self._began_at is None and events:
            self._began_at = min(event.at for event in events)
        for event in events:
            new = event.change.new
            if new is None or isinstance(new, FactoryImage) or new.status not in _TERMINAL:
                continue
            ended = self._tasks if isinstance(new, TaskImage) else self._pipelines
            ended[event.change.key] = event
            ended.move_to_end(event.change.key)
            if len(ended) > ENDED_MAXIMUM:
                self._forgotten_until[event.table] = ended.popitem(last=False)[1].at

    def find(self, kind: str, key: str) -> Event | None:
        """Return the last event of a row that has ended, if it is known."""
        return (self._tasks if kind == "task" else self._pipelines).get(key)

    def complete_since(self, kind: str) -> int | None:
        """Return since when all that ended are known, in epoch microseconds; None if nothing has been counted yet."""
        return self._forgotten_until.get(kind, self._began_at)


def describe_row(
    live: PipelineImage | TaskImage | None,
    changes: Sequence[Event],
    complete_since: int | None,
    progress: Progress | None = None,
    agents: Mapping[int, str] = MappingProxyType({}),
) -> RowDetails:
    """Describe a row as it is if it is live, else as its last change has left it. `changes` are newest first."""
    image: PipelineImage | TaskImage | FactoryImage | None = live
    if image is None and changes:
        image, progress = changes[0].change.new or changes[0].change.old, None
    facts: list[Fact] = []
    match image:
        case PipelineImage():
            facts = list(_pipeline(image, progress))
        case TaskImage():
            facts = list(_task(image))
    if image is not None:
        agent = agents.get(image.player_id)
        player = str(image.player_id) if agent is None else f"{agent} ({image.player_id})"
        facts.insert(0, ("Player", player, "words"))
    known = [fact for fact in facts if fact[1] is not None]
    return RowDetails(known, [describe_change(event) for event in changes], complete_since)


def _pipeline(row: PipelineImage, progress: Progress | None) -> Iterator[Fact]:
    yield "Product", row.product_good, "words"
    yield "Status", row.status, "words"
    if progress is not None:
        yield "Age", progress.created_at, "age"
        yield "Tasks pending", progress.pending.number, "number"
        yield "Tasks ready", progress.ready.number, "number"
        yield "Tasks executing", progress.executing.number, "number"
    yield "Started", row.started_at, "time"
    yield "Ended", row.completed_at, "time"
    if row.status in _TERMINAL:
        yield "Revenue", row.total_revenue, "number"
        yield "Cost", row.total_cost, "number"
        yield "Profit", row.net_profit, "number"
    yield "Construction site", row.construction_site, "words"


def _task(row: TaskImage) -> Iterator[Fact]:
    yield "Type", row.task_type, "words"
    yield "Status", row.status, "words"
    yield "Ship", row.assigned_ship, "words"
    yield "Ready", row.ready_at, "time"
    yield "Started", row.started_at, "time"
    yield "Ended", row.completed_at, "time"
    yield "Retries", row.retry_count, "number"
    yield "Revenue", row.total_revenue, "number"
    yield "Cost", row.total_cost, "number"
    yield "Units moved", row.actual_quantity, "number"
