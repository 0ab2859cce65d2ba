"""Owns the content of the live board: the game in six tables, the last changes, and the exporter's state.

The look of the board is `web`. A snapshot is small whatever the game holds, because tables and changes have a maximum
length.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import inf

from msgspec import Struct
from msgspec.structs import replace

from mfg_notify.core import catalogue
from mfg_notify.core.capped_totals import OTHER
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
from mfg_notify.core.live_state import HOUR, Labels, Samples, moving_gauges, ship_owners
from mfg_notify.core.progress import Progress, waits_for
from mfg_notify.core.series import View, silent_players

CHANGES_MAXIMUM = 50
"""Change events that the board shows at most."""
ROWS_MAXIMUM = 200
"""Rows that a table has at most. `Game.left_out` counts the others."""

TREND_BARS = 30
"""Bars of the trend of the last hour, each of the same time."""

Row = tuple[str | float | None, ...]
Fact = tuple[str, float | None, str]
"""A number about the exporter: its name, its value, and its unit: `s`, `at` (epoch seconds) or ''."""


class LastChanges:
    """The counted change events with the highest ids that say something to people: not those that only touch times.

    Each appears once, whether a payload or a fold brought it.

    An event that a payload brought stays unconfirmed until a fold confirms it, or until the journal proves not to have
    it.
    """

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._unconfirmed: set[int] = set()

    def announce(self, events: Iterable[Event]) -> None:
        """Add events that payloads brought, as unconfirmed."""
        for event in filter(says_something, events):
            self._events[event.id] = event
            self._unconfirmed.add(event.id)
        self._trim()

    def settle(self, events: Iterable[Event]) -> None:
        """Add events that a fold brought. They replace whatever was announced under the same ids."""
        for event in events:
            if says_something(event):
                self._events[event.id] = event
            else:
                self._events.pop(event.id, None)
            self._unconfirmed.discard(event.id)
        self._trim()

    def forget_unconfirmed(self, pending: frozenset[int]) -> None:
        """Forget announced events that no fold has confirmed and that are no longer pending."""
        for number in self._unconfirmed - pending:
            del self._events[number]
        self._unconfirmed &= pending

    def clear(self) -> None:
        """Forget everything, because ids may be reused after a rewind of the database."""
        self._events.clear()
        self._unconfirmed.clear()

    def newest(self) -> list[Event]:
        """Return the events, newest first."""
        return [self._events[number] for number in nlargest(CHANGES_MAXIMUM, self._events)]

    def _trim(self) -> None:
        # Every event passes here, so sort only when twice the maximum has gathered.
        if len(self._events) > 2 * CHANGES_MAXIMUM:
            self._events = {event.id: event for event in self.newest()}
            self._unconfirmed &= self._events.keys()


def says_something(event: Event) -> bool:
    """Tell whether an event has changed more than times."""
    old, new = event.change.old, event.change.new
    # Every event passes here, so ask for the words only if the status has not changed.
    if old is None or new is None or _status(old) != _status(new):
        return True
    return bool(describe_change(event).remark)


def _status(image: PipelineImage | TaskImage | FactoryImage) -> str | None:
    return image.current_supply if isinstance(image, FactoryImage) else image.status


@dataclass(frozen=True, slots=True)
class Run:
    """One live pipeline, and its progress as of the last reconciliation; None if it is younger."""

    key: str
    row: PipelineImage
    progress: Progress | None

    def sort_key(self) -> tuple[float, str]:
        """Return what sorts the oldest first, so that rows keep their places."""
        created_at = self.progress.created_at if self.progress else None
        return (inf if created_at is None else created_at), self.key


class ChangeSummary(Struct, frozen=True):
    """One change for people.

    `at` is epoch microseconds of the database's clock; `before` and `after` are a status or a supply level.
    """

    id: str
    at: int
    player: str
    """The id, until `name_players` has replaced it. Empty if all rows of all players are removed."""
    kind: str
    key: str
    subject: str
    before: str | None
    after: str | None
    remark: str
    ship: str


class GameSummary(Struct, frozen=True):
    """The game's main numbers, summed over all players."""

    pipelines: float
    tasks: float
    ships_assigned: float
    ships_idle: float
    factories_ready: float
    credits_an_hour: float
    completed: list[int]
    """Pipelines completed in the last hour, in bars of equal time; the last one is not over yet."""
    profit: list[int]
    """Their profit in credits."""


class Game(Struct, frozen=True):
    """The game at one moment: its summary, the rows of each table, and the number of rows that each table left out.

    Every row begins with the player: the id, until `name_players` has replaced it. The other columns are:

    - `players`: pipelines planned, pipelines executing, open tasks, ships assigned, ships idle, utilization in percent,
      factories ready, credits an hour;
    - `runs`: product, pipeline, status, when it was created, what it waits for, and since when (epoch microseconds):
      the live pipelines, the oldest first;
    - `pipelines`: product, number of pipelines by status;
    - `tasks`: type, number of tasks pending, ready and executing, number of finished tasks by outcome;
    - `factories`: symbol, good, supply from 1 to 5, share of the inputs that have been delivered, cycles;
    - `sites`: construction site, material, units delivered, units needed, their share from 0 to 1. By player, then by
      site, and the materials of a site with the lowest share first.
    """

    summary: GameSummary
    tables: dict[str, list[Row]]
    left_out: dict[str, int]


class BoardSnapshot(Struct, frozen=True):
    """Everything that the board shows at one moment."""

    version: str
    state: str
    """`live`, `standby` or `waiting`."""
    ready: bool
    status_text: str
    known_at: int | None
    """Epoch microseconds at which the numbers were last current. None while they are live, and if they never were."""
    game: Game | None
    changes: list[ChangeSummary]
    exporter: list[Fact]
    active_at: int | None = None
    """Epoch microseconds at which a player last changed something."""


def last_activity(view: View) -> int | None:
    """Return when a player last changed something, in epoch microseconds of the database's clock."""
    return max((at for (kind, *_), at in view.activity.latest.items() if kind == "player"), default=None)


def build_game(view: View, now: int, runs: Sequence[Run] = ()) -> Game:
    """Build the board's view of the game; `now` is the database's clock in epoch microseconds."""
    live, activity = view.gauges, view.activity
    silent = silent_players(view, now)
    recent_players = {completion.player_id for completion in activity.recent.values()}
    known_players = live.players | ship_owners(live, activity, now) | recent_players
    players = frozenset(player for player in known_players if str(player) not in silent)
    names = [str(player) for player in sorted(players)]
    gauges = {**live.samples, **moving_gauges(live, activity, players, now)}
    totals: dict[str, dict[Labels, int]] = {metric.name: {} for metric in _TOTALS}
    for (name, labels), n in view.totals.items():
        if name in totals and labels[0] not in silent:
            totals[name][labels] = n

    def gauge(metric: Metric, labels: Labels) -> float:
        return float(gauges[metric.name].get(labels, 0))

    def total(metric: Metric, *labels: str) -> float:
        return float(totals[metric.name].get(labels, 0))

    def shown(known: Iterable[Labels]) -> set[Labels]:
        return {labels for labels in known if labels[0] not in silent}

    def delivered_share(material: Labels) -> float:
        needed = gauge(catalogue.CONSTRUCTION_TARGET, material)
        delivered = gauge(catalogue.CONSTRUCTION_DELIVERED, material)
        return min(1.0, max(0.0, delivered / needed)) if needed > 0 else 1.0

    executing = _by_player(gauges[catalogue.PIPELINE_RUNNING.name])
    planning = _by_player(gauges[catalogue.PIPELINE_QUEUE_DEPTH.name]) - executing
    open_tasks = sum((_by_player(gauges[metric.name]) for metric in _OPEN), Counter[str]())
    products = shown(live.products) | {labels[:2] for labels in totals[catalogue.PIPELINE_COMPLETED.name]}
    types = shown(live.task_types) | {labels[:2] for labels in totals[catalogue.TASKS_COMPLETED.name]}
    tables: dict[str, list[Row]] = {
        "players": [
            (
                *(name, planning[name], executing[name], open_tasks[name]),
                *(gauge(metric, (name,)) for metric in _OF_PLAYER),
            )
            for name in names
        ],
        "runs": [
            _run(run, int(gauge(catalogue.SHIPS_IDLE, (str(run.row.player_id),))))
            for run in runs
            if str(run.row.player_id) not in silent
        ],
        # Live products come first, so that the limit does not leave them out.
        "pipelines": [
            (
                *product,
                *(gauge(catalogue.PIPELINES, (*product, status)) for status in PIPELINE_LIVE),
                *(total(catalogue.PIPELINE_COMPLETED, *product, status) for status in TERMINAL),
            )
            for product in sorted(products, key=lambda labels: (labels not in live.products, _sort_key(labels)))
        ],
        "tasks": [
            (
                *kind,
                *(gauge(metric, kind) for metric in _OPEN),
                *(total(catalogue.TASKS_COMPLETED, *kind, outcome) for outcome in TASK_OUTCOMES.values()),
            )
            for kind in sorted(types, key=lambda labels: (labels not in live.task_types, _sort_key(labels)))
        ],
        "factories": [
            (
                *factory,
                gauges[catalogue.FACTORY_SUPPLY_ORDINAL.name].get(factory),
                gauge(catalogue.FACTORY_INPUTS_DELIVERED, factory),
                total(catalogue.FACTORY_CYCLES, *factory),
            )
            for factory in sorted(shown(live.factories), key=_sort_key)
        ],
        "sites": [
            (
                *material,
                gauge(catalogue.CONSTRUCTION_DELIVERED, material),
                gauge(catalogue.CONSTRUCTION_TARGET, material),
                delivered_share(material),
            )
            for material in sorted(
                shown(gauges[catalogue.CONSTRUCTION_TARGET.name]),
                key=lambda labels: (_sort_key(labels[:2]), delivered_share(labels), labels),
            )
        ],
    }

    def sum_over_players(metric: Metric) -> float:
        return sum(gauge(metric, (name,)) for name in names)

    return Game(
        GameSummary(
            sum_over_players(catalogue.PIPELINE_QUEUE_DEPTH),
            sum(open_tasks[name] for name in names),
            sum_over_players(catalogue.SHIPS_ASSIGNED),
            sum_over_players(catalogue.SHIPS_IDLE),
            sum_over_players(catalogue.FACTORY_READY),
            sum_over_players(catalogue.PROFIT_RATE),
            *_trend(view, now),
        ),
        {name: rows[:ROWS_MAXIMUM] for name, rows in tables.items()},
        {name: max(0, len(rows) - ROWS_MAXIMUM) for name, rows in tables.items()},
    )


def _run(run: Run, idle_ships: int) -> Row:
    row, progress = run.row, run.progress
    words, since = ("not read yet", None) if progress is None else waits_for(progress, row.status, idle_ships)
    created_at = progress.created_at if progress else row.started_at
    return str(row.player_id), row.product_good, run.key, row.status, created_at, words, since


def _trend(view: View, now: int) -> tuple[list[int], list[int]]:
    """Return the pipelines completed in the last hour and their profit, by bar."""
    width = HOUR // TREND_BARS
    completed, profit = [0] * TREND_BARS, [0] * TREND_BARS
    # Bars end at whole multiples of their width, so that a snapshot does not change as time goes by.
    last = now // width
    for done in view.activity.recent.values():
        bar = TREND_BARS - 1 - (last - done.completed_at // width)
        if done.profit is not None and 0 <= bar < TREND_BARS:
            completed[bar] += 1
            profit[bar] += done.profit
    return completed, profit


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


def _sort_key(labels: Labels) -> tuple[float, Labels]:
    # What the cap on series has summed over all players comes last.
    return inf if labels[0] == OTHER else int(labels[0]), labels[1:]


def describe_change(event: Event) -> ChangeSummary:
    """Summarize what an event changed."""
    change = event.change
    image = change.new or change.old
    if image is None:
        return ChangeSummary(str(event.id), event.at, "", event.table, "", "", None, None, "all rows removed", "")
    match change:
        case PipelineChange(old=old, new=new):
            subject, status, remark = _pipeline(old, new)
        case TaskChange(old=old, new=new):
            subject, status, remark = _task(old, new)
        case FactoryChange(old=old, new=new):
            subject, status, remark = _factory(old, new)
    return ChangeSummary(
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


def name_players(snapshot: BoardSnapshot, agents: Mapping[int, str]) -> BoardSnapshot:
    """Show players by the names of their agents, and by their ids where these are not known.

    Names may be equal, for every universe has new players. Where two players that are shown would look alike, the id
    follows: `TORWIND (3)`.
    """
    game, changes = snapshot.game, snapshot.changes
    tables = game.tables if game is not None else {}
    ids = {str(row[0]) for table in tables.values() for row in table} | {change.player for change in changes}
    named = {player: agent for number, agent in agents.items() if (player := str(number)) in ids}
    shown = {player: named.get(player, player) for player in ids}
    # A name may also look like an id, or like the name of another player with the id.
    while alike := {text for text, n in Counter(shown.values()).items() if n > 1}:
        shown |= {player: f"{agent} ({player})" for player, agent in named.items() if shown[player] in alike}
    if game is not None:
        named_tables = {name: [(shown[str(row[0])], *row[1:]) for row in table] for name, table in tables.items()}
        game = replace(game, tables=named_tables)
    return replace(snapshot, game=game, changes=[replace(change, player=shown[change.player]) for change in changes])


_RISES_MAXIMUM = 5
"""Materials that the summary of one change names at most."""
_Description = tuple[str, tuple[str | None, str | None], str]
"""The subject of the row; its status or supply before and after; what else has changed."""


def _pipeline(old: PipelineImage | None, new: PipelineImage | None) -> _Description:
    row = new or old
    remarks = []
    if old is not None and new is not None:
        if new.net_profit != old.net_profit:
            remarks.append(f"profit {new.net_profit:+,}")
        delivered = {good: units for good, units, _ in old.materials}
        rises = [
            f"{good} +{rise:,}" for good, units, _ in new.materials if (rise := units - delivered.get(good, 0)) > 0
        ]
        remarks += rises[:_RISES_MAXIMUM]
        if (more := len(rises) - _RISES_MAXIMUM) > 0:
            remarks.append(f"and {more} more")
    return (
        row.product_good if row else "",
        (old.status if old else None, new.status if new else None),
        ", ".join(remarks),
    )


def _task(old: TaskImage | None, new: TaskImage | None) -> _Description:
    row = new or old
    remarks = []
    if old is not None and new is not None:
        if new.retry_count > old.retry_count:
            remarks.append(f"retry {new.retry_count}")
        if new.total_cost > old.total_cost:
            remarks.append(f"spent {new.total_cost - old.total_cost:,}")
        if new.total_revenue > old.total_revenue:
            remarks.append(f"earned {new.total_revenue - old.total_revenue:,}")
        if (moved := (new.actual_quantity or 0) - (old.actual_quantity or 0)) > 0:
            remarks.append(f"moved {moved:,}")
    return row.task_type if row else "", (old.status if old else None, new.status if new else None), ", ".join(remarks)


def _factory(old: FactoryImage | None, new: FactoryImage | None) -> _Description:
    row = new or old
    remarks = []
    if old is not None and new is not None:
        if new.ready_for_collection != old.ready_for_collection:
            remarks.append("ready for collection" if new.ready_for_collection else "collected")
        if new.inputs_delivered != old.inputs_delivered:
            remarks.append(f"{new.inputs_delivered} of {new.inputs_required} inputs")
    subject = f"{row.factory_symbol} {row.output_good}" if row else ""
    return subject, (old.current_supply if old else None, new.current_supply if new else None), ", ".join(remarks)
