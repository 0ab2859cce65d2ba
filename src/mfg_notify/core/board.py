"""What the live board shows: the game in four short tables, the last changes, and how the exporter is.

Owns what is said, not how it looks. Whatever the rows hold, a picture is small: a table ends after so many rows.
"""

from collections import Counter
from collections.abc import Iterable
from heapq import nlargest

from msgspec import Struct

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import PIPELINE_LIVE, TASK_OUTCOMES, TERMINAL, Metric
from mfg_notify.core.events import (
    Event,
    FactoryChange,
    FactoryImage,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
)
from mfg_notify.core.live_state import Labels, Samples, moving_gauges, ship_owners
from mfg_notify.core.series import View, silent_players

CHANGES_MAXIMUM = 50
"""Change events that are remembered for the board."""
ROWS_MAXIMUM = 200
"""Rows that a table has at most; how many it has no room for is said."""

Row = tuple[str | float | None, ...]
Fact = tuple[str, float | None, str]
"""A number of the exporter about itself: what to call it, the number, its unit: `s`, `at` (epoch seconds) or none."""


class LastChanges:
    """The change events with the highest ids of those that were counted, each once, whichever way they came.

    What a payload has brought is believed until a fold confirms it, or the journal turns out not to have it.
    """

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._unconfirmed: set[int] = set()

    def announce(self, events: Iterable[Event]) -> None:
        """Take in events that payloads have brought."""
        for event in events:
            self._events[event.id] = event
            self._unconfirmed.add(event.id)
        self._trim()

    def settle(self, events: Iterable[Event]) -> None:
        """Take in events that a fold has brought: they are true, whatever was announced under their ids."""
        for event in events:
            self._events[event.id] = event
            self._unconfirmed.discard(event.id)
        self._trim()

    def forget_unconfirmed(self, pending: frozenset[int]) -> None:
        """Forget what was announced, was in no fold, and is not pending any more."""
        for number in self._unconfirmed - pending:
            del self._events[number]
        self._unconfirmed &= pending

    def clear(self) -> None:
        """Forget everything: the database was set back, and ids begin again."""
        self._events.clear()
        self._unconfirmed.clear()

    def newest(self) -> list[Event]:
        """Return them, the newest first."""
        return [self._events[number] for number in nlargest(CHANGES_MAXIMUM, self._events)]

    def _trim(self) -> None:
        # Not at every event: this is on the way of each of them.
        if len(self._events) > 2 * CHANGES_MAXIMUM:
            self._events = {event.id: event for event in self.newest()}
            self._unconfirmed &= self._events.keys()


class Line(Struct, frozen=True):
    """One change: `at` in epoch microseconds of the database's clock, `before` and `after` a status or a supply."""

    id: str
    at: int
    player: str
    kind: str
    key: str
    subject: str
    before: str | None
    after: str | None
    remark: str
    ship: str


class Summary(Struct, frozen=True):
    """All players together."""

    pipelines: float
    tasks: float
    ships_assigned: float
    ships_idle: float
    factories_ready: float
    credits_an_hour: float


class Game(Struct, frozen=True):
    """The game at a moment: the rows of each table, and how many more there are than it has room for.

    All begin with the player. What follows in `players`: pipelines planned and executing, open tasks, ships assigned,
    idle, utilization in percent, factories ready, credits an hour; `pipelines`: product, how many of each status;
    `tasks`: type, how many pending, ready, executing, and finished by outcome; `factories`: symbol, good, supply from 1
    to 5, share of the inputs that are there, cycles.
    """

    summary: Summary
    tables: dict[str, list[Row]]
    left_out: dict[str, int]


class BoardSnapshot(Struct, frozen=True):
    """Everything on the board."""

    version: str
    state: str
    """`live`, `standby` or `waiting`."""
    ready: bool
    words: str
    known_at: int | None
    """When the numbers were last known, epoch microseconds; None while they are live, or never were known."""
    game: Game | None
    changes: list[Line]
    exporter: list[Fact]


def build_game(view: View, now: int) -> Game:
    """Lay the game out for people; `now` is the database's clock in epoch microseconds."""
    live = view.gauges
    silent = silent_players(view, now)
    known = live.players | ship_owners(live, view.activity, now) | {c.player_id for c in view.activity.recent.values()}
    players = frozenset(player for player in known if str(player) not in silent)
    gauges = {**live.samples, **moving_gauges(live, view.activity, players, now)}
    totals: dict[str, dict[Labels, int]] = {metric.name: {} for metric in _TOTALS}
    for (name, labels), n in view.totals.items():
        if name in totals and labels[0] not in silent:
            totals[name][labels] = n

    def gauge(metric: Metric, labels: Labels) -> float:
        return float(gauges[metric.name].get(labels, 0))

    def total(metric: Metric, *labels: str) -> float:
        return float(totals[metric.name].get(labels, 0))

    executing = _by_player(gauges[catalogue.PIPELINE_RUNNING.name])
    planning = _by_player(gauges[catalogue.PIPELINE_QUEUE_DEPTH.name]) - executing
    open_tasks = sum((_by_player(gauges[metric.name]) for metric in _OPEN), Counter[str]())
    products = live.products | {labels[:2] for labels in totals[catalogue.PIPELINE_COMPLETED.name]}
    types = live.task_types | {labels[:2] for labels in totals[catalogue.TASKS_COMPLETED.name]}
    everything: dict[str, list[Row]] = {
        "players": [
            (
                *(name, planning[name], executing[name], open_tasks[name]),
                *(gauge(metric, (name,)) for metric in _OF_PLAYER),
            )
            for name in map(str, sorted(players))
        ],
        # What is live comes first, and is not left out.
        "pipelines": [
            (
                *product,
                *(gauge(catalogue.PIPELINES, (*product, status)) for status in PIPELINE_LIVE),
                *(total(catalogue.PIPELINE_COMPLETED, *product, status) for status in TERMINAL),
            )
            for product in sorted(products, key=lambda labels: (labels not in live.products, _in_order(labels)))
        ],
        "tasks": [
            (
                *kind,
                *(gauge(metric, kind) for metric in _OPEN),
                *(total(catalogue.TASKS_COMPLETED, *kind, word) for word in TASK_OUTCOMES.values()),
            )
            for kind in sorted(types, key=lambda labels: (labels not in live.task_types, _in_order(labels)))
        ],
        "factories": [
            (
                *factory,
                gauges[catalogue.FACTORY_SUPPLY_ORDINAL.name].get(factory),
                gauge(catalogue.FACTORY_INPUTS_DELIVERED, factory),
                total(catalogue.FACTORY_CYCLES, *factory),
            )
            for factory in sorted(live.factories, key=_in_order)
        ],
    }

    def all_of(metric: Metric) -> float:
        return sum(gauge(metric, (str(player),)) for player in players)

    return Game(
        Summary(
            all_of(catalogue.PIPELINE_QUEUE_DEPTH),
            open_tasks.total(),
            all_of(catalogue.SHIPS_ASSIGNED),
            all_of(catalogue.SHIPS_IDLE),
            all_of(catalogue.FACTORY_READY),
            all_of(catalogue.PROFIT_RATE),
        ),
        {name: rows[:ROWS_MAXIMUM] for name, rows in everything.items()},
        {name: max(0, len(rows) - ROWS_MAXIMUM) for name, rows in everything.items()},
    )


_OPEN = (catalogue.TASKS_PENDING, catalogue.TASKS_READY, catalogue.TASKS_EXECUTING)
_OF_PLAYER = (
    catalogue.SHIPS_ASSIGNED,
    catalogue.SHIPS_IDLE,
    catalogue.SHIP_UTILIZATION,
    catalogue.FACTORY_READY,
    catalogue.PROFIT_RATE,
)
_TOTALS = (catalogue.PIPELINE_COMPLETED, catalogue.TASKS_COMPLETED, catalogue.FACTORY_CYCLES)


def _by_player(samples: Samples) -> Counter[str]:
    summed: Counter[str] = Counter()
    for labels, n in samples.items():
        summed[labels[0]] += int(n)
    return summed


def _in_order(labels: Labels) -> tuple[int, Labels]:
    return int(labels[0]), labels[1:]


def describe_change(event: Event) -> Line:
    """Say in a line what an event has changed."""
    change = event.change
    image = change.new or change.old
    if image is None:
        return Line(str(event.id), event.at, "", event.table, "", "", None, None, "all rows removed", "")
    match change:
        case PipelineChange(old=old, new=new):
            subject, status, remark = _pipeline(old, new)
        case TaskChange(old=old, new=new):
            subject, status, remark = _task(old, new)
        case FactoryChange(old=old, new=new):
            subject, status, remark = _factory(old, new)
    return Line(
        id=str(event.id),
        at=event.at,
        player=str(image.player_id),
        kind=event.table,
        key=change.key,
        subject=subject,
        before=status[0],
        after=status[1],
        remark=remark if change.operation == "U" else {"I": "new", "D": "deleted"}[change.operation],
        ship=image.assigned_ship or "" if isinstance(image, TaskImage) else "",
    )


_Said = tuple[str, tuple[str | None, str | None], str]
"""What the row is about; its status, or its supply, before and after; what else has changed."""


def _pipeline(old: PipelineImage | None, new: PipelineImage | None) -> _Said:
    row = new or old
    remarks = []
    if old is not None and new is not None and new.net_profit != old.net_profit:
        remarks.append(f"profit {new.net_profit:+,}")
    return (
        row.product_good if row else "",
        (old.status if old else None, new.status if new else None),
        ", ".join(remarks),
    )


def _task(old: TaskImage | None, new: TaskImage | None) -> _Said:
    row = new or old
    remarks = []
    if old is not None and new is not None:
        if new.retry_count > old.retry_count:
            remarks.append(f"retry {new.retry_count}")
        if new.total_cost > old.total_cost:
            remarks.append(f"spent {new.total_cost - old.total_cost:,}")
        if new.total_revenue > old.total_revenue:
            remarks.append(f"earned {new.total_revenue - old.total_revenue:,}")
    return row.task_type if row else "", (old.status if old else None, new.status if new else None), ", ".join(remarks)


def _factory(old: FactoryImage | None, new: FactoryImage | None) -> _Said:
    row = new or old
    remarks = []
    if old is not None and new is not None:
        if new.ready_for_collection != old.ready_for_collection:
            remarks.append("ready for collection" if new.ready_for_collection else "collected")
        if new.inputs_delivered != old.inputs_delivered:
            remarks.append(f"{new.inputs_delivered} of {new.inputs_required} inputs")
    subject = f"{row.factory_symbol} {row.output_good}" if row else ""
    return subject, (old.current_supply if old else None, new.current_supply if new else None), ", ".join(remarks)
