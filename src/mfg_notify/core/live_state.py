"""The live rows, kept current by events and replaced by snapshots, and the gauges that follow from them.

Gauges are functions of the live rows, of the recent activity and of the database's clock. Nothing here counts events.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND, PIPELINE_LIVE, SUPPLY_LEVELS, TASK_LIVE
from mfg_notify.core.counters import Settlement
from mfg_notify.core.events import Event, FactoryChange, FactoryImage, PipelineChange, PipelineImage, TaskImage
from mfg_notify.core.rules import Completion

Labels = tuple[str, ...]
Samples = dict[Labels, float]
"""One gauge: label values in the catalogue's order → value in base units."""

HOUR = 3600 * MICROSECONDS_PER_SECOND
SHIP_MEMORY = 24 * HOUR
"""Microseconds for which a ship counts as existing after its last task, if the game has no table of ships."""

_HOLDS_A_SHIP = frozenset({"ASSIGNED", "EXECUTING"})


@dataclass(frozen=True, slots=True)
class LiveRows:
    """One consistent snapshot of the live rows; finished rows among them are ignored."""

    pipelines: Mapping[str, PipelineImage] = field(default_factory=dict)
    tasks: Mapping[str, TaskImage] = field(default_factory=dict)
    factories: Mapping[int, FactoryImage] = field(default_factory=dict)
    ships: Mapping[tuple[int, str], bool] | None = None
    """(player, ship) → whether the game calls it idle; None if the game has no usable table of ships."""
    counts_units: bool = False
    """The game has the optional column that counts the units a task moves, and the triggers read it."""


@dataclass(slots=True)
class RecentActivity:
    """What gauges need beyond the live rows; times are epoch microseconds of the database's clock."""

    recent: dict[str, Completion] = field(default_factory=dict)
    latest: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def add(self, settlement: Settlement) -> None:
        """Take over what events have brought. Idempotent."""
        for key, done in settlement.completions.items():
            if done.profit is None:
                self.recent.pop(key, None)
            else:
                self.recent[key] = done
        for place, at in settlement.last_seen.items():
            self.latest[place] = max(at, self.latest.get(place, at))

    def prune(self, now: int) -> None:
        """Drop what no gauge needs any more."""
        self.recent = {key: done for key, done in self.recent.items() if done.completed_at > now - HOUR}
        self.latest = {place: at for place, at in self.latest.items() if place[0] != "ship" or at > now - SHIP_MEMORY}

    def copy(self) -> "RecentActivity":
        """Return a copy that later events do not change."""
        return RecentActivity(dict(self.recent), dict(self.latest))


@dataclass(frozen=True, slots=True)
class Gauges:
    """The gauges that change only when rows do, and what the others need. Made by `compute_gauges`, then immutable."""

    samples: Mapping[str, Samples]
    """By metric name: every gauge of the catalogue except those that move with the clock or the counters."""
    players: frozenset[int]
    products: frozenset[Labels]
    task_types: frozenset[Labels]
    factories: frozenset[Labels]
    materials: frozenset[Labels]
    """(player, good) of every good that a live construction pipeline needs."""
    counts_units: bool
    """Whether the game counts the units that tasks move."""
    oldest_ready: Mapping[tuple[int, str], int | None]
    """(player, task type) with a live task → ready_at of its oldest READY task; None if none is READY."""
    assigned: Mapping[int, frozenset[str]]
    ships: Mapping[tuple[int, str], bool] | None


def compute_gauges(rows: LiveRows) -> Gauges:
    """Compute the gauges of the live rows."""
    live_pipelines = {key: row for key, row in rows.pipelines.items() if row.status in PIPELINE_LIVE}
    live_tasks = [row for row in rows.tasks.values() if row.status in TASK_LIVE]
    factories = _current_rows(rows.factories, live_pipelines)
    players: set[int] = set()
    samples: dict[str, Samples] = {metric.name: {} for metric in catalogue.GAUGES}

    products = {(str(row.player_id), row.product_good) for row in live_pipelines.values()}
    by_status = Counter((str(row.player_id), row.product_good, row.status) for row in live_pipelines.values())
    for product in products:
        samples[catalogue.PIPELINE_RUNNING.name][product] = by_status[*product, "EXECUTING"]
        for status in PIPELINE_LIVE:
            samples[catalogue.PIPELINES.name][*product, status] = by_status[*product, status]
    players.update(row.player_id for row in live_pipelines.values())

    materials: set[Labels] = set()
    delivered, target = (
        samples[metric.name] for metric in (catalogue.CONSTRUCTION_DELIVERED, catalogue.CONSTRUCTION_TARGET)
    )
    for pipeline in live_pipelines.values():
        if pipeline.construction_site is not None:
            for good, units, needed in pipeline.materials:
                material = (str(pipeline.player_id), pipeline.construction_site, good)
                materials.add((material[0], good))
                delivered[material] = delivered.get(material, 0) + units
                target[material] = target.get(material, 0) + needed

    task_counts = Counter((row.player_id, row.task_type, row.status) for row in live_tasks)
    oldest_ready: dict[tuple[int, str], int | None] = {}
    assigned: defaultdict[int, set[str]] = defaultdict(set)
    for row in live_tasks:
        kind = (row.player_id, row.task_type)
        oldest = oldest_ready.setdefault(kind, None)
        if row.status == "READY" and row.ready_at is not None and (oldest is None or row.ready_at < oldest):
            oldest_ready[kind] = row.ready_at
        if row.status in _HOLDS_A_SHIP and row.assigned_ship is not None:
            assigned[row.player_id].add(row.assigned_ship)
    for player_id, task_type in oldest_ready:
        kind_labels = (str(player_id), task_type)
        samples[catalogue.TASKS_PENDING.name][kind_labels] = task_counts[player_id, task_type, "PENDING"]
        samples[catalogue.TASKS_READY.name][kind_labels] = task_counts[player_id, task_type, "READY"]
        samples[catalogue.TASKS_EXECUTING.name][kind_labels] = sum(
            task_counts[player_id, task_type, status] for status in _HOLDS_A_SHIP
        )
    players.update(player_id for player_id, _ in oldest_ready)

    ready: Counter[int] = Counter()
    for labels, factory in factories.items():
        for level in SUPPLY_LEVELS:
            samples[catalogue.FACTORY_SUPPLY_LEVEL.name][*labels, level] = factory.current_supply == level
        if factory.current_supply in SUPPLY_LEVELS:
            ordinal = SUPPLY_LEVELS.index(factory.current_supply) + 1
            samples[catalogue.FACTORY_SUPPLY_ORDINAL.name][labels] = ordinal
        samples[catalogue.FACTORY_INPUTS_DELIVERED.name][labels] = (
            factory.inputs_delivered / factory.inputs_required if factory.inputs_required else 1.0
        )
        ready[factory.player_id] += factory.ready_for_collection
    players.update(ready)

    queue = Counter(row.player_id for row in live_pipelines.values())
    for player_id in players:
        samples[catalogue.PIPELINE_QUEUE_DEPTH.name][str(player_id),] = queue[player_id]
        samples[catalogue.FACTORY_READY.name][str(player_id),] = ready[player_id]

    return Gauges(
        samples=samples,
        players=frozenset(players),
        products=frozenset(products),
        task_types=frozenset((str(player_id), task_type) for player_id, task_type in oldest_ready),
        materials=frozenset(materials),
        counts_units=rows.counts_units,
        factories=frozenset(factories),
        oldest_ready=oldest_ready,
        assigned={player_id: frozenset(ships) for player_id, ships in assigned.items()},
        ships=rows.ships,
    )


class LiveState:
    """The live rows as events have left them since the last snapshot.

    For one row, ids follow the order of its changes, because the row lock orders them: an event with a lower id than
    the last one for its row is stale, whichever way it came. Deleted rows are remembered until the next snapshot for
    the same reason.
    """

    def __init__(self) -> None:
        self._pipelines: dict[str, PipelineImage] = {}
        self._tasks: dict[str, TaskImage] = {}
        self._factories: dict[int, FactoryImage] = {}
        self._ships: Mapping[tuple[int, str], bool] | None = None
        self._counts_units = False
        self._last: dict[tuple[type, str], int] = {}
        self._truncated: dict[type, int] = {}
        self._recorded: list[Event] | None = None
        self._reconciled_before = False
        self._pipeline_unknown = False
        """A pipeline has changed whose factory rows are not held."""
        self._resync_requested = False
        self._resync_under_way = False
        """The snapshot that is being taken answers an earlier `request_resync`."""
        self._gauges: Gauges | None = None

    @property
    def needs_snapshot(self) -> bool:
        """Tell whether something happened that only another snapshot can settle."""
        return bool(self._truncated) or self._pipeline_unknown or self._resync_requested

    def apply(self, event: Event) -> None:
        """Bring the row of an event up to date; events may come late, twice, and out of order."""
        change = event.change
        table = type(change)
        place = (table, change.key)
        # Record it whatever its id: ids of transactions that a crash has lost are handed out again.
        if self._recorded is not None:
            self._recorded.append(event)
        if event.id <= max(self._last.get(place, 0), self._truncated.get(table, 0)):
            if isinstance(change, PipelineChange) and _revives(change):
                # A later event has asked for the snapshot that reads its factory rows: nothing was missed.
                self._resync_under_way = True
            return
        self._gauges = None
        if change.operation == "T":
            self._truncated[table] = event.id
            # If it arrives late, leave alone the rows that were inserted after it.
            rows = self._rows(table)
            for key in [key for key in rows if self._last.get((table, str(key)), 0) < event.id]:
                del rows[key]
            return
        self._last[place] = event.id
        key = int(change.key) if isinstance(change, FactoryChange) else change.key
        if isinstance(change, FactoryChange):
            stays = change.new is not None
        else:
            live = PIPELINE_LIVE if isinstance(change, PipelineChange) else TASK_LIVE
            stays = change.new is not None and change.new.status in live
            # Factory rows of finished pipelines are not held here: a pipeline that becomes live again needs them read.
            if isinstance(change, PipelineChange) and stays and change.old and key not in self._pipelines:
                # It has become live again, now or by an event that comes late. Or that event was missed: if its old row
                # was live, the next snapshot is due as well, and what it corrects counts.
                self._pipeline_unknown = True
                self._resync_requested = self._resync_requested or _revives(change)
        if stays:
            self._rows(table)[key] = change.new
        else:
            self._rows(table).pop(key, None)

    def _rows(self, table: type) -> dict[Any, Any]:
        if table is PipelineChange:
            return self._pipelines
        return self._factories if table is FactoryChange else self._tasks

    def request_resync(self) -> None:
        """Ask for another snapshot: events were applied that never happened. What it corrects was not missed."""
        self._resync_requested = True

    def ignore_next_difference(self) -> None:
        """Take the next snapshot as it is: another exporter was active, so a difference is not a missed event."""
        self._reconciled_before = False

    def set_ships(self, ships: Mapping[tuple[int, str], bool]) -> None:
        """Take over the game's table of ships, which changes without events."""
        if ships != self._ships:
            self._ships, self._gauges = ships, None

    def start_recording(self) -> None:
        """Begin a reconciliation: keep the events that arrive from before the snapshot is taken."""
        self._recorded = []
        self._pipeline_unknown = False
        self._resync_under_way = self._resync_under_way or self._resync_requested
        self._resync_requested = False

    def reconcile(self, rows: LiveRows, sees: Callable[[int], bool]) -> Counter[str]:
        """Replace the rows by a snapshot and re-apply what it does not show; return changed series by gauge.

        `sees` tells whether the snapshot shows a transaction. Every event that it shows must have been applied before:
        only then is a difference a missed event. The first snapshot corrects nothing.
        """
        before = self.gauges()
        recorded = sorted(self._recorded or (), key=lambda event: event.id)
        self._pipelines, self._tasks = dict(rows.pipelines), dict(rows.tasks)
        self._factories, self._ships, self._counts_units = dict(rows.factories), rows.ships, rows.counts_units
        self._last, self._truncated, self._recorded = {}, {}, None
        self._gauges = None
        comparable = self._reconciled_before and not self._resync_under_way and not self._resync_requested
        self._reconciled_before, self._resync_under_way = True, False
        # What was unknown before the snapshot may be in it; what is not comes again.
        self._pipeline_unknown = False
        for event in recorded:
            if not sees(event.xid):
                self.apply(event)
        return _differences(before, self.gauges()) if comparable else Counter()

    def pipelines(self) -> Mapping[str, PipelineImage]:
        """Return the live pipelines by id."""
        return self._pipelines

    def tasks(self) -> Mapping[str, TaskImage]:
        """Return the live tasks by id."""
        return self._tasks

    def gauges(self) -> Gauges:
        """Return the gauges of the rows as they are; the same object until a row changes."""
        if self._gauges is None:
            rows = LiveRows(self._pipelines, self._tasks, self._factories, self._ships, self._counts_units)
            self._gauges = compute_gauges(rows)
        return self._gauges


def _revives(change: PipelineChange) -> bool:
    """Tell whether a pipeline becomes live that was finished."""
    old, new = change.old, change.new
    return old is not None and new is not None and old.status not in PIPELINE_LIVE and new.status in PIPELINE_LIVE


def _differences(before: Gauges, after: Gauges) -> Counter[str]:
    return Counter(
        {
            name: count
            for name in before.samples
            if (count := len(dict(before.samples[name].items() ^ after.samples[name].items())))
        }
    )


def _current_rows(
    rows: Mapping[int, FactoryImage], live_pipelines: Mapping[str, PipelineImage]
) -> dict[Labels, FactoryImage]:
    # A factory is (player, symbol, good), not a row: its newest live row is the current one, the others are stale.
    current: dict[Labels, FactoryImage] = {}
    for _, row in sorted(rows.items()):
        if row.pipeline_id is None or row.pipeline_id in live_pipelines:
            current[str(row.player_id), row.factory_symbol, row.output_good] = row
    return current


def moving_gauges(gauges: Gauges, activity: RecentActivity, players: frozenset[int], now: int) -> Mapping[str, Samples]:
    """Return the gauges that move with the clock: profit rate, starvation, ships.

    `players` are all that have any live row, ship or counter; each gets the player-level gauges, at 0 if need be.
    `now` is the database's clock in epoch microseconds. Queue depth and ready factories of players without a live
    row are added, too.
    """
    rate: Counter[int] = Counter()
    for done in activity.recent.values():
        if done.profit is not None and done.completed_at > now - HOUR:
            rate[done.player_id] += done.profit
    starvation: Samples = {}
    for (player_id, task_type), oldest in gauges.oldest_ready.items():
        waits = gauges.samples[catalogue.TASKS_READY.name][str(player_id), task_type] > 0
        since = activity.latest.get(("task_type", player_id, task_type), oldest)
        idle = max(0, now - since) if waits and since is not None else 0
        starvation[str(player_id), task_type] = idle / MICROSECONDS_PER_SECOND

    idle_ships = _idle_ships(gauges, activity, now)
    samples: dict[str, Samples] = {
        catalogue.PROFIT_RATE.name: {},
        catalogue.TASK_STARVATION.name: starvation,
        catalogue.SHIPS_ASSIGNED.name: {},
        catalogue.SHIPS_IDLE.name: {},
        catalogue.SHIP_UTILIZATION.name: {},
        catalogue.PIPELINE_QUEUE_DEPTH.name: dict(gauges.samples[catalogue.PIPELINE_QUEUE_DEPTH.name]),
        catalogue.FACTORY_READY.name: dict(gauges.samples[catalogue.FACTORY_READY.name]),
    }
    for player_id in players:
        labels = (str(player_id),)
        assigned, idle_now = len(gauges.assigned.get(player_id, ())), idle_ships[player_id]
        samples[catalogue.PROFIT_RATE.name][labels] = rate[player_id]
        samples[catalogue.SHIPS_ASSIGNED.name][labels] = assigned
        samples[catalogue.SHIPS_IDLE.name][labels] = idle_now
        samples[catalogue.SHIP_UTILIZATION.name][labels] = (
            100 * assigned / (assigned + idle_now) if assigned + idle_now else 0
        )
        samples[catalogue.PIPELINE_QUEUE_DEPTH.name].setdefault(labels, 0)
        samples[catalogue.FACTORY_READY.name].setdefault(labels, 0)
    return samples


def ship_owners(gauges: Gauges, activity: RecentActivity, now: int) -> frozenset[int]:
    """Return the players that own a ship, according to the game's table or to the tasks of the last day."""
    if gauges.ships is not None:
        return frozenset(player_id for player_id, _ in gauges.ships)
    return frozenset(
        player_id for (kind, player_id, _), at in activity.latest.items() if kind == "ship" and at > now - SHIP_MEMORY
    )


def _idle_ships(gauges: Gauges, activity: RecentActivity, now: int) -> Counter[int]:
    nobody: frozenset[str] = frozenset()
    if gauges.ships is not None:
        return Counter(
            player_id
            for (player_id, ship), idle in gauges.ships.items()
            if idle and ship not in gauges.assigned.get(player_id, nobody)
        )
    return Counter(
        player_id
        for (kind, player_id, ship), at in activity.latest.items()
        if kind == "ship" and at > now - SHIP_MEMORY and ship not in gauges.assigned.get(player_id, nobody)
    )
