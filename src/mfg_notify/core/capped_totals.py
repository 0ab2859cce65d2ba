"""Totals under the cap on series: the first label sets to arrive have their own series, the rest goes under `other`.

The database keeps every total and numbers label sets in the order of their arrival. This module holds those that have a
place and sums up the others, so memory and the cost of a scrape are bounded, and a restart gives the same places.
"""

from collections.abc import Iterable, Mapping

from mfg_notify.core import catalogue
from mfg_notify.core.rules import SampleKey

OTHER = "other"
"""The label value of what is summed up."""
SERIES_MAXIMUM = 50_000
"""Series shown at most, unless the user says otherwise."""
OTHER_MAXIMUM = 5_000
"""Series beyond these that may say `other` for a single player; what comes then is `other` for all players."""

WEIGHT = {metric.name: len(metric.buckets) + 3 for metric in catalogue.HISTOGRAMS}
"""Series of one histogram: its buckets, +Inf, sum and count."""
_PARTS = {f"{metric.name}_{part}": metric.name for metric in catalogue.HISTOGRAMS for part in ("bucket", "sum")}


def series_of(key: SampleKey) -> SampleKey:
    """Return the metric and labels of what a total is a part of: a counter itself, or a whole histogram."""
    name, labels = key
    if name in _PARTS:
        return _PARTS[name], labels[:-1] if name.endswith("_bucket") else labels
    return key


def limited(n: int) -> int:
    """Return a total as the database stores it: it stops at the ends of bigint. Otherwise a restart would show less."""
    return n if -(2**63) <= n < 2**63 else max(-(2**63), min(n, 2**63 - 1))


class CappedTotals:
    """Totals by sample, of label sets that together are at most `maximum` series, and of `other`."""

    def __init__(self, maximum: int = SERIES_MAXIMUM, totals: Mapping[SampleKey, int] | None = None) -> None:
        """Start with `totals`, in the order in which their label sets have arrived."""
        self._maximum = maximum
        self._used = self._used_by_other = 0
        self._placed: set[SampleKey] = set()
        self._announced: dict[SampleKey, int] = {}
        """Series that `announce` has allowed and that have no place yet, with their weight."""
        self._totals: dict[SampleKey, int] = {}
        self._full = False
        for key, n in (totals or {}).items():
            self.add(key, n)

    @property
    def full(self) -> bool:
        """Tell whether the cap has been reached: a label set that is new is summed under `other`."""
        return self._full

    def add(self, key: SampleKey, n: int) -> None:
        """Add to a total. A label set that is new takes the next place, if there is one."""
        place = key if key in self._totals else self._take_place(key)
        self._totals[place] = limited(self._totals.get(place, 0) + n)

    def place(self, key: SampleKey) -> SampleKey:
        """Return under which key a total is shown, without taking a place."""
        if key in self._totals or not self._full or series_of(key) in self._placed:
            return key
        return self._other(key)

    def announce(self, keys: Iterable[SampleKey]) -> bool:
        """Return whether these totals may be shown before they are settled: where `place` says, they will be settled.

        Label sets are settled in another order than they are announced, so the order must not matter: either each of
        them has its place or finds none, or all that are announced fit into half of the maximum.
        """
        if self._full:
            return True
        new = {
            series: WEIGHT.get(series[0], 1)
            for key in keys
            if key not in self._totals and (series := series_of(key)) not in self._placed
        }
        announced = self._announced | new
        if new and 2 * (self._used + sum(announced.values())) > self._maximum:
            return False
        self._announced = announced
        return True

    def lack(self, known: Mapping[SampleKey, int]) -> bool:
        """Tell whether a total is lower than it was known to be; False under the cap, where nobody knows."""
        # Sums may fall: some profits are losses.
        return not self._full and any(
            n > self._totals.get(key, 0) for key, n in known.items() if not key[0].endswith("_sum")
        )

    def copy(self) -> dict[SampleKey, int]:
        """Return the totals as they are shown, label sets in order of arrival."""
        return dict(self._totals)

    def _take_place(self, key: SampleKey) -> SampleKey:
        series = series_of(key)
        self._announced.pop(series, None)
        if series in self._placed:
            return key
        weight = WEIGHT.get(series[0], 1)
        # Once a label set finds no place, none that comes later does: places must not depend on which of them fit.
        if not self._full and self._used + weight <= self._maximum:
            self._used += weight
            self._placed.add(series)
            return key
        self._full = True
        other = self._other(key)
        place = series_of(other)
        if place not in self._placed and place[1][0] != OTHER:
            self._used_by_other += weight
            self._placed.add(place)
        return other

    def _other(self, key: SampleKey) -> SampleKey:
        name, labels = key
        le = labels[-1:] if name.endswith("_bucket") else ()
        own = labels[: len(labels) - len(le)]
        if len(own) > 1:
            place = (own[0], *(OTHER for _ in own[1:]))
            metric = series_of(key)[0]
            if (metric, place) in self._placed or self._used_by_other + WEIGHT.get(metric, 1) <= OTHER_MAXIMUM:
                return name, (*place, *le)
        return name, (*(OTHER for _ in own), *le)
