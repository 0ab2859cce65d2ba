"""What a change event means: the one place that says which counters and histograms it moves, and by how much.

Pure functions of the event alone (old and new image), never of what happens to be in memory: two replays of the same
events give the same numbers. Gauges are not here: they are functions of the live rows (`live_state`).
"""

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import SUPPLY_LEVELS, TASK_OUTCOMES, TERMINAL, Metric
from mfg_notify.core.events import Event, FactoryImage, PipelineChange, PipelineImage, TaskChange, TaskImage

SampleKey = tuple[str, tuple[str, ...]]
"""`metric` of `mfg_notify.total` and its label values, in the order of `catalogue.SETTLED_LABELS`."""

Increment = tuple[SampleKey, int]
"""Whole numbers only: credits, counts, microseconds."""


class Completion(NamedTuple):
    """What the profit rate remembers of a pipeline; `profit` None means forget it."""

    pipeline_id: str
    player_id: int
    completed_at: int
    profit: int | None


LastSeen = tuple[tuple[str, int, str], int]
"""When something was last seen, in epoch microseconds. What: kind `task_type` (a start), `ship` (on a task) or `player`
(any event), player, key."""


_SUPPLY = frozenset(SUPPLY_LEVELS)
_PIPELINE_LIVE = frozenset(catalogue.PIPELINE_LIVE)
_TASK_LIVE = frozenset(catalogue.TASK_LIVE)
_TERMINAL = frozenset(TERMINAL)
_WAITING = frozenset(("PENDING", "READY"))
_PARTS = {
    metric.name: (f"{metric.name}_bucket", f"{metric.name}_sum", (*map(str, metric.buckets), "+Inf"))
    for metric in catalogue.HISTOGRAMS
}
"""What a histogram is stored as, by name: its two metrics, and the `le` of its buckets."""
_COST_TYPES = (
    ("ACQUIRE", "acquire"),
    ("STORAGE_ACQUIRE", "acquire"),
    ("DELIVER", "deliver"),
    ("COLLECT", "collect"),
    ("LIQUIDATE", "liquidate"),
)


def increments(event: Event) -> list[Increment]:
    """Return what the event adds to the settled totals; a key may come more than once, n may be 0.

    Only `_sum` of the profit histogram is ever negative: a credit or a retry that falls is a reset or a correction of
    the row and counts nothing. A DELETE or TRUNCATE counts nothing.
    """
    change = event.change
    if change.new is None:
        return []
    if isinstance(change, TaskChange):
        return _task(change.old, change.new, event.at)
    if isinstance(change, PipelineChange):
        return _pipeline(change.old, change.new)
    # Several rows describe one factory: only the current one counts, and only against an old image.
    if change.old is not None and change.new.is_current:
        return _factory(change.old, change.new)
    return []


def _pipeline(old: PipelineImage | None, new: PipelineImage) -> list[Increment]:
    found: list[Increment] = []
    product = (str(new.player_id), new.product_good)
    if new.status in _TERMINAL and (old is None or old.status in _PIPELINE_LIVE):
        found.append(((catalogue.PIPELINE_COMPLETED.name, (*product, new.status)), 1))
        if new.started_at is not None and new.completed_at is not None:
            found += observation(catalogue.PIPELINE_DURATION, product, new.completed_at - new.started_at)
        found += observation(catalogue.PIPELINE_PROFIT, product, new.net_profit)
    if new.status == "COMPLETED":
        # A later rise on a COMPLETED row counts.
        before = old if old is not None and old.status == "COMPLETED" else None
        if new.total_revenue > (was := before.total_revenue if before else 0):
            found.append(((catalogue.PIPELINE_REVENUE.name, product), new.total_revenue - was))
        if new.total_cost > (was := before.total_cost if before else 0):
            found.append(((catalogue.PIPELINE_COST.name, product), new.total_cost - was))
    if new.materials:
        delivered = {good: units for good, units, _ in old.materials} if old else {}
        for good, units, _ in new.materials:
            if units > (was := delivered.get(good, 0)):
                found.append(((catalogue.CONSTRUCTION_UNITS.name, (product[0], good)), units - was))
    return found


def _task(old: TaskImage | None, new: TaskImage, at: int) -> list[Increment]:
    found: list[Increment] = []
    player = str(new.player_id)
    kind = (player, new.task_type)
    if new.status in _TERMINAL and (old is None or old.status in _TASK_LIVE):
        found.append(((catalogue.TASKS_COMPLETED.name, (*kind, _outcome(old, new))), 1))
        if new.started_at is not None and new.completed_at is not None:
            duration = new.completed_at - new.started_at
            found += observation(catalogue.TASK_DURATION, kind, duration)
            if new.assigned_ship is not None:
                found += observation(catalogue.SHIP_TASK_DURATION, kind, duration)
    started = start(old, new, at)
    if started is not None:
        found.append(((catalogue.TASK_ASSIGNMENTS.name, kind), 1))
        # A daemon that does not save ASSIGNED says in started_at when the wait was over.
        if new.ready_at is not None and (new.status == "ASSIGNED" or new.started_at is not None):
            found += observation(catalogue.TASK_WAIT, kind, started - new.ready_at)
    if new.retry_count > (was := old.retry_count if old else 0):
        found.append(((catalogue.TASK_RETRY.name, kind), new.retry_count - was))
    if new.total_cost > (was := old.total_cost if old else 0):
        found.append(((catalogue.COST.name, (player, cost_type(new.task_type))), new.total_cost - was))
    if new.total_revenue > (was := old.total_revenue if old else 0):
        found.append(((catalogue.REVENUE.name, (player,)), new.total_revenue - was))
    if new.actual_quantity and new.actual_quantity > (was := (old.actual_quantity or 0) if old else 0):
        found.append(((catalogue.TASK_UNITS.name, kind), new.actual_quantity - was))
    return found


def start(old: TaskImage | None, new: TaskImage, at: int) -> int | None:
    """Return when the attempt began whose beginning this change shows; None if it shows none. Epoch microseconds.

    Each attempt begins once: with the move into ASSIGNED or, if the daemon saves neither ASSIGNED nor EXECUTING, with
    the move from PENDING or READY to EXECUTING, COMPLETED, or FAILED with a higher retry count.
    """
    if new.status == "ASSIGNED":
        return at if old is None or old.status != "ASSIGNED" else None
    if old is None or old.status not in _WAITING:
        return None
    if new.status in ("EXECUTING", "COMPLETED") or (new.status == "FAILED" and new.retry_count > old.retry_count):
        # A start in the future would hide starvation until then.
        return at if new.started_at is None else min(new.started_at, at)
    return None


def _outcome(old: TaskImage | None, new: TaskImage) -> str:
    """Return how a task has ended. The daemon writes FAILED for a cancellation too, without counting a retry."""
    if new.status == "FAILED" and new.retry_count <= (old.retry_count if old else 0):
        return TASK_OUTCOMES["CANCELLED"]
    return TASK_OUTCOMES[new.status]


def _factory(old: FactoryImage, new: FactoryImage) -> list[Increment]:
    found: list[Increment] = []
    player = str(new.player_id)
    before, after = old.current_supply, new.current_supply
    # The first look, from nothing to a level, is not a transition.
    if before != after and before in _SUPPLY and after in _SUPPLY:
        found.append(((catalogue.SUPPLY_TRANSITIONS.name, (player, new.output_good, before, after)), 1))
    if new.ready_for_collection and not old.ready_for_collection:
        found.append(((catalogue.FACTORY_CYCLES.name, (player, new.factory_symbol, new.output_good)), 1))
    return found


def observation(metric: Metric, labels: tuple[str, ...], value: int) -> list[Increment]:
    """Return one observation of `value` stored units: one bucket, and the sum.

    The daemon's clock and the database's differ, so a time histogram takes no negative value.
    """
    if metric.scale != 1:
        value = max(0, value)
    bucket_name, sum_name, _ = _PARTS[metric.name]
    return [((bucket_name, (*labels, bucket(metric, value))), 1), ((sum_name, labels), value)]


def bucket(metric: Metric, value: int) -> str:
    """Return the `le` of the smallest bucket that holds `value` stored units."""
    # Compared in stored units, as whole numbers: a value of exactly 60 s belongs to le="60".
    return _PARTS[metric.name][2][bisect_left(metric.buckets, -(-value // metric.scale))]


@lru_cache(maxsize=1_000)
def cost_type(task_type: str) -> str:
    """Return the cost_type of a task type; new task types appear, so it goes by how the word begins."""
    for prefix, kind in _COST_TYPES:
        if task_type.startswith(prefix):
            return kind
    return "other"


def completion(event: Event) -> Completion | None:
    """Return what the profit rate must remember of this event, or None.

    The pipelines COMPLETED in the last hour are those whose last image is COMPLETED. A DELETE takes nothing
    away: the credits were earned. A completed_at in the future counts as the time of the event; otherwise the profit
    would stay in the last hour until then.
    """
    change = event.change
    if not isinstance(change, PipelineChange):
        return None
    new = change.new
    if new is None:
        # A finished row ends without an event, unless it goes on under another key.
        old = change.old
        return Completion(change.key, old.player_id, 0, None) if old and old.status == "COMPLETED" else None
    if new.status == "COMPLETED" and new.completed_at is not None:
        completed_at = min(new.completed_at, event.at)
        return Completion(change.key, new.player_id, completed_at, new.total_revenue - new.total_cost)
    if change.old is not None and change.old.status == "COMPLETED":
        return Completion(change.key, new.player_id, 0, None)
    return None


def last_seen(event: Event) -> list[LastSeen]:
    """Return what was seen: the player, the ship that holds the task, the start of a task type."""
    change = event.change
    image = change.new or change.old
    if image is None:
        return []
    found = [(("player", image.player_id, ""), event.at)]
    if isinstance(change, TaskChange) and change.new is not None:
        new = change.new
        if new.assigned_ship is not None:
            found.append((("ship", new.player_id, new.assigned_ship), event.at))
        started = start(change.old, new, event.at)
        if started is not None:
            found.append((("task_type", new.player_id, new.task_type), started))
    return found
