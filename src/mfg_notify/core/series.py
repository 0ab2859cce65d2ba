"""Which series exist, and their values at a moment: the totals and the gauges, laid out by metric.

A counter's first step must be visible to rate() and increase(), so counters and histograms exist at 0 as soon as
their player, product, task type, good or factory is known: labels of the totals and of the live rows together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from operator import sub
from typing import TypeVar

from mfg_notify.core import catalogue
from mfg_notify.core.capped_totals import OTHER, SERIES_MAXIMUM, WEIGHT, series_of
from mfg_notify.core.catalogue import (
    COST_TYPES,
    MICROSECONDS_PER_SECOND,
    SUPPLY_LEVELS,
    TASK_OUTCOMES,
    TERMINAL,
    Kind,
    Metric,
)
from mfg_notify.core.exemplars import Exemplar
from mfg_notify.core.live_state import HOUR, Gauges, Labels, RecentActivity, Samples, moving_gauges, ship_owners
from mfg_notify.core.rules import SampleKey

SILENT_AFTER = 24 * HOUR
"""Microseconds without an event after which a player without a live row is not shown."""
RETURN_HOLD = HOUR // 60
"""Microseconds for which the counters of a player who comes back stand still, so that every Prometheus sees where they
rise from: `increase()` ignores what a series has counted when it appears."""
Value = TypeVar("Value")
ADJACENT_LEVELS = (*pairwise(SUPPLY_LEVELS), *pairwise(reversed(SUPPLY_LEVELS)))

Market = Mapping[str, Samples]
"""The two distributions of markets by metric name; the player is '' where the game's cache belongs to all of them."""


@dataclass(frozen=True, slots=True)
class Players:
    """What the game knows of its players in tables that are optional."""

    names: Mapping[int, str] = field(default_factory=dict)
    """The agent of a player."""
    closed_at: Mapping[int, int] = field(default_factory=dict)
    """When the era of a player was closed, if it was: epoch microseconds."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a scrape shows of the game at one moment; immutable, so a scrape never sees it torn."""

    totals: Mapping[SampleKey, int]
    gauges: Gauges
    activity: RecentActivity
    market: Market | None = None
    players: Players = field(default_factory=Players)
    epoch: int = 0
    """Rises if all totals start again; only views of one epoch can be compared."""
    capped: bool = False
    """The cap on series is reached: some totals are summed under `other`, and nothing else has a place."""
    exemplars: Mapping[SampleKey, Exemplar] = field(default_factory=dict)
    """The last observation by bucket, as far as it is known."""
    floor: Mapping[SampleKey, int] | None = None
    """Totals that count as shown: another exporter may have shown them."""


@dataclass(slots=True)
class Distribution:
    """One histogram series in stored units: observations by `le`, each in one bucket only, and their sum."""

    buckets: dict[str, int] = field(default_factory=dict)
    total: int = 0
    exemplars: dict[str, Exemplar] = field(default_factory=dict)
    """The last observation of a bucket by `le`, as far as it is known."""

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.buckets.values())


Values = Mapping[Labels, int] | Mapping[Labels, float] | Mapping[Labels, Distribution]
"""The series of one metric: a counter's, a gauge's or a histogram's."""


@dataclass(frozen=True, slots=True)
class Series:
    """All series by metric name; label values in the catalogue's order."""

    counters: dict[str, dict[Labels, int]]
    histograms: dict[str, dict[Labels, Distribution]]
    gauges: dict[str, Samples]
    dropped: int = 0
    """Series at 0, gauges and series that are no more for which there was no room."""
    silent: frozenset[str] = frozenset()
    """Players that are not shown, see `silent_players`. Their counters are here all the same: they may come back."""

    @property
    def number(self) -> int:
        """How many there are, with every bucket, sum and count."""
        return (
            sum(map(len, self.counters.values()))
            + sum(len(shown) * WEIGHT[name] for name, shown in self.histograms.items())
            + sum(map(len, self.gauges.values()))
        )

    def of(self, metric: Metric) -> Values:
        """Return the series of one metric."""
        match metric.kind:
            case Kind.COUNTER:
                return self.counters[metric.name]
            case Kind.HISTOGRAM:
                return self.histograms[metric.name]
            case Kind.GAUGE:
                return self.gauges[metric.name]


class _Budget:
    """How many series may still be shown."""

    def __init__(self, maximum: int) -> None:
        self._left = maximum
        self.dropped = 0

    @property
    def exhausted(self) -> bool:
        """Tell whether nothing more is allowed."""
        return self._left <= 0

    def allows(self, series: int) -> bool:
        """Take that many, if there are so many; once refused, nothing more is allowed."""
        self._left = self._left - series if self._left >= series else -1
        return self._left >= 0

    def allows_or_drops(self, series: int) -> bool:
        allowed = self.allows(series)
        if not allowed:
            self.dropped += series
        return allowed


class Presentation:
    """What scrapes have shown so far, and what the next one may show."""

    def __init__(self, maximum: int = SERIES_MAXIMUM) -> None:
        """Show at most `maximum` series, beside those labelled `other`."""
        self._maximum = maximum
        self._before: Series | None = None
        self._floor: Mapping[SampleKey, int] | None = None
        self._epoch = 0
        self._returning: dict[str, _Returning] = {}

    def present(self, view: View, now: int) -> Series:
        """Return the series to show; `now` is the database's clock in epoch microseconds."""
        if view.epoch != self._epoch:
            self._before, self._epoch, self._returning = None, view.epoch, {}
        if view.floor is not None and view.floor is not self._floor:
            self._before = self._hold(view.floor)
        self._floor = view.floor
        before, series = self._before, lay_out(view, now, self._maximum)
        if before is not None:
            left_out = never_fall(before, series, self._maximum)
            series = replace(series, dropped=series.dropped + left_out)
            for player in before.silent - series.silent:
                self._returning[player] = _Returning(now, *_of_player(before, player))
        self._before = series
        self._returning = {player: held for player, held in self._returning.items() if held.holds(now)}
        if not series.silent and not self._returning:
            return series
        counters = {name: _without(series.silent, found) for name, found in series.counters.items()}
        histograms = {name: _without(series.silent, found) for name, found in series.histograms.items()}
        for player, held in self._returning.items():
            # A label set that is new begins at 0.
            for name, counted in counters.items():
                counted |= {labels: held.counters[name].get(labels, 0) for labels in counted if labels[0] == player}
            for name, observed in histograms.items():
                observed |= {
                    labels: held.histograms[name].get(labels, Distribution())
                    for labels in observed
                    if labels[0] == player
                }
        return replace(series, counters=counters, histograms=histograms)

    def _hold(self, floor: Mapping[SampleKey, int]) -> Series:
        """Return what counts as shown before, with these totals."""
        before = self._before or _empty(frozenset())
        held = _empty(before.silent)
        _add_totals(floor, held.counters, held.histograms)
        never_fall(before, held, self._maximum)
        return held


@dataclass(frozen=True, slots=True)
class _Returning:
    """A player who has come back, and the counters and histograms as they were before."""

    since: int
    counters: Mapping[str, Mapping[Labels, int]]
    histograms: Mapping[str, Mapping[Labels, Distribution]]

    def holds(self, now: int) -> bool:
        # The database's clock may have been set back.
        return self.since <= now < self.since + RETURN_HOLD


def _empty(silent: frozenset[str]) -> Series:
    counters: dict[str, dict[Labels, int]] = {metric.name: {} for metric in catalogue.COUNTERS}
    histograms: dict[str, dict[Labels, Distribution]] = {metric.name: {} for metric in catalogue.HISTOGRAMS}
    return Series(counters, histograms, {}, silent=silent)


def _of_player(
    series: Series, player: str
) -> tuple[dict[str, dict[Labels, int]], dict[str, dict[Labels, Distribution]]]:
    def of(found: Mapping[Labels, Value]) -> dict[Labels, Value]:
        return {labels: value for labels, value in found.items() if labels[0] == player}

    return (
        {name: of(found) for name, found in series.counters.items()},
        {name: of(found) for name, found in series.histograms.items()},
    )


def _without(players: frozenset[str], found: Mapping[Labels, Value]) -> dict[Labels, Value]:
    return {labels: value for labels, value in found.items() if labels[0] not in players}


def lay_out(view: View, now: int, maximum: int = SERIES_MAXIMUM) -> Series:
    """Lay out every series of the view; `now` is the database's clock in epoch microseconds.

    What the totals leave of `maximum` goes to series at 0, then to gauges; the rest of those is dropped. Silent players
    have totals and nothing else.
    """
    counters: dict[str, dict[Labels, int]] = {metric.name: {} for metric in catalogue.COUNTERS}
    histograms: dict[str, dict[Labels, Distribution]] = {metric.name: {} for metric in catalogue.HISTOGRAMS}
    silent = silent_players(view, now)
    _add_totals(view.totals, counters, histograms)
    for key, exemplar in view.exemplars.items():
        family, place = series_of(key)
        histograms[family][place].exemplars[key[1][-1]] = exemplar
    budget = _Budget(0 if view.capped else maximum - Series(counters, histograms, {}).number)
    players = _add_zeros(view, silent, now, budget, counters, histograms)
    gauges = {**view.gauges.samples, **moving_gauges(view.gauges, view.activity, players, now)}
    gauges[catalogue.MARGIN.name] = _margins(counters)
    gauges[catalogue.PLAYER_INFO.name] = {
        (str(player), view.players.names[player]): 1 for player in players & view.players.names.keys()
    }
    gauges[catalogue.PLAYER_LAST_EVENT.name] = {
        (str(player),): at / MICROSECONDS_PER_SECOND
        for (kind, player, _), at in view.activity.latest.items()
        if kind == "player"
    }
    if silent:
        gauges = {name: _without(silent, samples) for name, samples in gauges.items()}
    gauges |= _of_players(view.market or {}, players, silent)
    shown = {
        metric.name: {
            labels: value for labels, value in sorted(gauges[metric.name].items()) if budget.allows_or_drops(1)
        }
        for metric in catalogue.GAUGES
    }
    return Series(counters, histograms, shown, budget.dropped, silent)


def never_fall(before: Series, series: Series, maximum: int = SERIES_MAXIMUM) -> int:
    """Keep counters and histograms of `series` from falling below what was shown `before`.

    They fall when the database was restored or lost commits, and for a moment after a reconnect: then they stand still
    until the truth has caught up. A histogram does so bucket by bucket, of the cumulative ones, so that no bucket
    falls and they still rise with their bounds; its sum goes with the greater count.

    A series that is no more (its events were forged, say) is kept where the `maximum` has room for it. Return how many
    had to go.
    """
    budget = _Budget(maximum - series.number)
    for name, shown in before.counters.items():
        now = series.counters[name]
        for labels, n in shown.items():
            if n <= now.get(labels, 0):
                continue
            if labels in now or budget.allows_or_drops(1):
                now[labels] = n
    for metric in catalogue.HISTOGRAMS:
        observed = series.histograms[metric.name]
        for labels, old in before.histograms[metric.name].items():
            if old == (new := observed.get(labels)):
                continue
            if new is not None:
                observed[labels] = _at_least(metric, old, new)
            elif old.buckets and budget.allows_or_drops(WEIGHT[metric.name]):
                observed[labels] = Distribution(old.buckets, old.total)
    return budget.dropped


def _at_least(metric: Metric, old: Distribution, new: Distribution) -> Distribution:
    bounds = (*map(str, metric.buckets), "+Inf")

    def cumulative(distribution: Distribution) -> Iterator[int]:
        return accumulate(distribution.buckets.get(le, 0) for le in bounds)

    counts = list(map(max, cumulative(old), cumulative(new)))
    buckets = {le: n for le, n in zip(bounds, map(sub, counts, (0, *counts[:-1])), strict=True) if n}
    if old.count > new.count:
        return Distribution(buckets, old.total, new.exemplars)
    # The sum of durations rises; the sum of profits may fall with every loss.
    return Distribution(buckets, max(old.total, new.total) if metric.scale != 1 else new.total, new.exemplars)


def silent_players(view: View, now: int) -> frozenset[str]:
    """Return the players that are not shown.

    Those without a live row whose last event was a day ago; and those whose era is closed, from then until an event of
    theirs comes. A reset of the universe leaves the rows of a player live for ever.
    """
    last_event = {player: at for (kind, player, _), at in view.activity.latest.items() if kind == "player"}
    closed_at = view.players.closed_at
    silent = {
        player
        for player, at in last_event.items()
        if at < now - SILENT_AFTER and (player not in view.gauges.players or player in closed_at)
    }
    silent |= {player for player, at in closed_at.items() if last_event.get(player, at) <= at}
    return frozenset(map(str, silent))


def _add_totals(
    totals: Mapping[SampleKey, int],
    counters: dict[str, dict[Labels, int]],
    histograms: dict[str, dict[Labels, Distribution]],
) -> None:
    for key, n in totals.items():
        name, labels = key
        family, place = series_of(key)
        if family in counters:
            counters[family][place] = n
            continue
        distribution = histograms[family].setdefault(place, Distribution())
        if name.endswith("_bucket"):
            distribution.buckets[labels[-1]] = n
        else:
            distribution.total = n


def _add_zeros(
    view: View,
    silent: frozenset[str],
    now: int,
    budget: _Budget,
    counters: dict[str, dict[Labels, int]],
    histograms: dict[str, dict[Labels, Distribution]],
) -> frozenset[int]:
    """Add the series that must exist at 0; return all players that have anything."""
    live = view.gauges
    players: set[Labels] = {(str(player),) for player in live.players | ship_owners(live, view.activity, now)}
    products, task_types, factories = set(live.products), set(live.task_types), set(live.factories)
    goods: set[Labels] = {(player, good) for player, _, good in factories}
    materials = set(live.materials)
    for known in (players, products, task_types, factories, goods, materials):
        known -= {labels for labels in known if labels[0] in silent}
    for name, labels in view.totals:
        if labels[0] in silent or labels[0] == OTHER:
            continue
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
        shown: dict[Labels, int] | dict[Labels, Distribution] = (
            histograms[metric.name] if metric.buckets else counters[metric.name]
        )
        if budget.exhausted:
            # Only how many would be missing: there may be very many.
            rests, width = set(more), len(metric.labels) - len(more[0])
            present = sum(place[:width] in known and place[width:] in rests for place in shown)
            budget.dropped += (len(known) * len(more) - present) * WEIGHT.get(metric.name, 1)
            return
        for labels in sorted(known):
            for rest in more:
                place = (*labels, *rest)
                if place in shown or not budget.allows_or_drops(WEIGHT.get(metric.name, 1)):
                    continue
                if metric.buckets:
                    histograms[metric.name][place] = Distribution()
                else:
                    counters[metric.name][place] = 0

    at_zero(catalogue.COST, players, tuple((word,) for word in COST_TYPES))
    at_zero(catalogue.REVENUE, players)
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
    if live.counts_units:
        at_zero(catalogue.TASK_UNITS, task_types)
    at_zero(catalogue.CONSTRUCTION_UNITS, materials)
    at_zero(catalogue.FACTORY_CYCLES, factories)
    at_zero(catalogue.SUPPLY_TRANSITIONS, goods, ADJACENT_LEVELS)
    return frozenset(int(player) for (player,) in players)


def _margins(counters: Mapping[str, dict[Labels, int]]) -> Samples:
    costs = counters[catalogue.PIPELINE_COST.name]
    return {
        labels: 100 * (revenue - costs.get(labels, 0)) / revenue
        for labels, revenue in counters[catalogue.PIPELINE_REVENUE.name].items()
        if revenue
    }


def _of_players(market: Market, players: frozenset[int], silent: frozenset[str]) -> dict[str, Samples]:
    everyone = [str(player) for player in players]
    return {
        name: {
            (player, *rest): markets
            for (owner, *rest), markets in distribution.items()
            for player in ([owner] if owner else everyone)
            if player not in silent
        }
        for name, distribution in market.items()
    }


def _samples_of(*labels: str) -> frozenset[str]:
    return frozenset(name for name, names in catalogue.SETTLED_LABELS.items() if names[: len(labels)] == labels)


_OF_PRODUCT = _samples_of("player_id", "product_good")
_OF_TASK_TYPE = _samples_of("player_id", "task_type")
