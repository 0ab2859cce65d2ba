"""Which series exist, and their values at a moment: the settled totals and the floor, laid out by metric.

A counter's first step must be visible to rate() and increase(), so counters and histograms exist at 0 as soon as
their player, product, task type, good or factory is known: labels of the totals and of the live rows together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import COST_TYPES, SUPPLY_LEVELS, TASK_OUTCOMES, TERMINAL, Metric
from mfg_notify.core.factory_floor import Floor, Labels, Memory, Samples, moving_gauges, ship_owners
from mfg_notify.core.rules import SampleKey

ADJACENT_LEVELS = (*pairwise(SUPPLY_LEVELS), *pairwise(reversed(SUPPLY_LEVELS)))


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a scrape shows of the game at one moment; immutable, so a scrape never sees it torn."""

    totals: Mapping[SampleKey, int]
    floor: Floor
    memory: Memory


@dataclass(slots=True)
class Distribution:
    """One histogram series in stored units: observations by `le`, each in one bucket only, and their sum."""

    buckets: dict[str, int] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """All series by metric name; label values in the catalogue's order."""

    counters: Mapping[str, dict[Labels, int]]
    histograms: Mapping[str, dict[Labels, Distribution]]
    gauges: Mapping[str, Samples]


def lay_out(view: View, now: int) -> Series:
    """Lay out every series of the view; `now` is the database's clock in epoch microseconds."""
    counters: dict[str, dict[Labels, int]] = {metric.name: {} for metric in catalogue.COUNTERS}
    histograms: dict[str, dict[Labels, Distribution]] = {metric.name: {} for metric in catalogue.HISTOGRAMS}
    _add_zeros(view, now, counters, histograms)
    for (name, labels), n in view.totals.items():
        if name in counters:
            counters[name][labels] = n
        elif (family := name.removesuffix("_sum")) in histograms:
            histograms[family].setdefault(labels, Distribution()).total = n
        elif (family := name.removesuffix("_bucket")) in histograms:
            distribution = histograms[family].setdefault(labels[:-1], Distribution())
            distribution.buckets[labels[-1]] = n
    gauges = dict(view.floor.gauges)
    players = frozenset(int(labels[0]) for labels in counters[catalogue.REVENUE.name])
    gauges.update(moving_gauges(view.floor, view.memory, players, now))
    gauges[catalogue.MARGIN.name] = _margins(counters)
    return Series(counters, histograms, gauges)


def _add_zeros(
    view: View,
    now: int,
    counters: Mapping[str, dict[Labels, int]],
    histograms: Mapping[str, dict[Labels, Distribution]],
) -> None:
    floor = view.floor
    players: set[Labels] = {(str(player),) for player in floor.players | ship_owners(floor, view.memory, now)}
    products, task_types, factories = set(floor.products), set(floor.task_types), set(floor.factories)
    goods: set[Labels] = {(player, good) for player, _, good in factories}
    for name, labels in view.totals:
        players.add(labels[:1])
        if name in _OF_PRODUCT:
            products.add(labels[:2])
        elif name in _OF_TASK_TYPE:
            task_types.add(labels[:2])
        elif name == catalogue.FACTORY_CYCLES.name:
            factories.add(labels)
            goods.add((labels[0], labels[2]))
        elif name == catalogue.SUPPLY_TRANSITIONS.name:
            goods.add((labels[0], labels[1]))

    def at_zero(metric: Metric, known: set[Labels], more: tuple[Labels, ...] = ((),)) -> None:
        if metric.buckets:
            for labels in known:
                histograms[metric.name][labels] = Distribution()
        else:
            for labels in known:
                for rest in more:
                    counters[metric.name][*labels, *rest] = 0

    at_zero(catalogue.PIPELINE_COMPLETED, products, tuple((status,) for status in TERMINAL))
    at_zero(catalogue.PIPELINE_DURATION, products)
    at_zero(catalogue.PIPELINE_PROFIT, products)
    at_zero(catalogue.PIPELINE_REVENUE, products)
    at_zero(catalogue.PIPELINE_COST, products)
    at_zero(catalogue.TASKS_COMPLETED, task_types, tuple((word,) for word in TASK_OUTCOMES.values()))
    at_zero(catalogue.TASK_DURATION, task_types)
    at_zero(catalogue.SHIP_TASK_DURATION, task_types)
    at_zero(catalogue.TASK_RETRY, task_types)
    at_zero(catalogue.TASK_ASSIGNMENTS, task_types)
    at_zero(catalogue.TASK_WAIT, task_types)
    at_zero(catalogue.FACTORY_CYCLES, factories)
    at_zero(catalogue.SUPPLY_TRANSITIONS, goods, ADJACENT_LEVELS)
    at_zero(catalogue.COST, players, tuple((word,) for word in COST_TYPES))
    at_zero(catalogue.REVENUE, players)


def _margins(counters: Mapping[str, dict[Labels, int]]) -> Samples:
    costs = counters[catalogue.PIPELINE_COST.name]
    return {
        labels: 100 * (revenue - costs.get(labels, 0)) / revenue
        for labels, revenue in counters[catalogue.PIPELINE_REVENUE.name].items()
        if revenue
    }


def _samples_of(*labels: str) -> frozenset[str]:
    return frozenset(name for name, names in catalogue.SETTLED_LABELS.items() if names[: len(labels)] == labels)


_OF_PRODUCT = _samples_of("player_id", "product_good")
_OF_TASK_TYPE = _samples_of("player_id", "task_type")
