"""How it looks: the view of the game, and the exporter's own numbers, as prometheus_client families.

Reads memory only: a scrape never touches the database. What a number is, is `core`.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from mfg_notify import __version__
from mfg_notify.core import catalogue
from mfg_notify.core.board import Fact
from mfg_notify.core.catalogue import EXPORTER_METRICS, MICROSECONDS_PER_SECOND, SELF_PREFIX, Kind, Metric
from mfg_notify.core.series import SERIES_MAXIMUM, Distribution, Series, Values, View, lay_out, never_fall, with_silent

LOST = "lost_changes_total"
DELAY = "event_delay_seconds"
"""Kept by the database, so it is shown as read there and never counted here."""


class Telemetry:
    """The exporter about itself: one prometheus_client object a metric of `EXPORTER_METRICS`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        declared = {metric.name: metric for metric in EXPORTER_METRICS}

        def gauge(name: str) -> Gauge:
            metric = declared[name]
            return Gauge(SELF_PREFIX + name, metric.help, metric.labels, registry=registry)

        def counter(name: str) -> Counter:
            metric = declared[name]
            return Counter(SELF_PREFIX + name, metric.help, metric.labels, registry=registry)

        def histogram(name: str) -> Histogram:
            metric = declared[name]
            return Histogram(SELF_PREFIX + name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)

        gauge("build_info").labels(__version__, platform.python_version()).set(1)
        self.connected = gauge("connected")
        self.leader = gauge("leader")
        self.standby = gauge("standby")
        self.polling = gauge("polling")
        self.ready = gauge("ready")
        self.series = gauge("series")
        self.series_dropped = gauge("series_dropped")
        self.events_applied = counter("events_applied_total")
        self.notifications_received = counter("notifications_received_total")
        self.events_rejected = counter("events_rejected_total")
        self.events_replayed = counter("events_replayed_total")
        self.events_duplicate = counter("events_duplicate_total")
        self.event_delay = _Delays(registry)
        self.listener_roundtrip = histogram("listener_roundtrip_seconds")
        self.reconnects = counter("reconnects_total")
        self.rewinds = counter("rewinds_total")
        self.reconcile_duration = histogram("reconcile_duration_seconds")
        self.reconcile_corrections = counter("reconcile_corrections_total")
        self.reconcile_last_success = gauge("reconcile_last_success_timestamp_seconds")
        self.fold_duration = histogram("fold_duration_seconds")
        self.fold_last_success = gauge("fold_last_success_timestamp_seconds")
        self.journal_rows = gauge("journal_rows")
        self.journal_oldest_age = gauge("journal_oldest_age_seconds")
        self.queue_usage = gauge("notification_queue_usage_ratio")
        self.triggers_installed = gauge("triggers_installed")
        self.web_config_failures = counter("web_config_failures_total")
        self.lost_changes: int | None = None
        registry.register(_LostChanges(self))


class _Delays(Collector):
    """The histogram of event delays. Each event is observed, so it takes many at once, as whole microseconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._declared = next(metric for metric in EXPORTER_METRICS if metric.name == DELAY)
        self._bounds = [round(bound * MICROSECONDS_PER_SECOND) for bound in self._declared.buckets]
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0
        registry.register(self)

    def observe(self, delays: Iterable[int]) -> None:
        """Observe delays in microseconds, none of them negative."""
        counts, bounds = self._counts, self._bounds
        for delay in delays:
            counts[bisect_left(bounds, delay)] += 1
            self._sum += delay

    def describe(self) -> Iterator[Family]:
        yield HistogramMetricFamily(SELF_PREFIX + DELAY, self._declared.help)

    def collect(self) -> Iterator[Family]:
        shown = [*(str(float(bound)) for bound in self._declared.buckets), "+Inf"]
        buckets = list(zip(shown, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(
            SELF_PREFIX + DELAY, self._declared.help, buckets, sum_value=self._sum / MICROSECONDS_PER_SECOND
        )


class _LostChanges(Collector):
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._help = next(metric.help for metric in EXPORTER_METRICS if metric.name == LOST)

    def describe(self) -> Iterator[Family]:
        yield CounterMetricFamily(SELF_PREFIX + LOST, self._help)

    def collect(self) -> Iterator[Family]:
        # Absent until the database was asked: a start at 0 would look like a loss to increase() at every restart.
        yield CounterMetricFamily(SELF_PREFIX + LOST, self._help, value=self._telemetry.lost_changes)


def facts(telemetry: Telemetry) -> list[Fact]:
    """Return the exporter's own numbers that people look at first, as the board shows them."""

    def read(metric: Collector, suffix: str = "") -> float:
        return sum(
            sample.value for family in metric.collect() for sample in family.samples if sample.name.endswith(suffix)
        )

    def mean(metric: Collector) -> float | None:
        count = read(metric, "_count")
        return read(metric, "_sum") / count if count else None

    # Of the database nothing is known before the first reading, and nothing by a standby.
    looked = read(telemetry.reconcile_last_success) > 0
    return [
        ("Events counted since the start", read(telemetry.events_applied, "_total"), ""),
        ("Mean delay of an event", mean(telemetry.event_delay), "s"),
        ("Mean round trip of the own ping", mean(telemetry.listener_roundtrip), "s"),
        ("Events in the journal", read(telemetry.journal_rows) if looked else None, ""),
        ("Journal last drained", read(telemetry.fold_last_success), "at"),
        ("Live rows last read", read(telemetry.reconcile_last_success), "at"),
        ("Gauges corrected", read(telemetry.reconcile_corrections, "_total"), ""),
        ("Notifications that were no events", read(telemetry.events_rejected, "_total"), ""),
        ("Connections given up", read(telemetry.reconnects, "_total"), ""),
        ("Changes the triggers gave up", telemetry.lost_changes, ""),
        ("Triggers enabled", read(telemetry.triggers_installed) if looked else None, ""),
    ]


class Page:
    """The page of /metrics: the game's families, made anew from an immutable view at each scrape, and our own.

    `read_view` gives the view, or None while there is nothing exact to show; `now` is the database's clock in epoch
    microseconds.
    """

    def __init__(
        self,
        read_view: Callable[[], View | None],
        now: Callable[[], int],
        series_maximum: int = SERIES_MAXIMUM,
    ) -> None:
        self._read_view = read_view
        self._now = now
        self._series_maximum = series_maximum
        self._shown: Series | None = None
        self._rendered: dict[tuple[str, str], tuple[object, bytes]] = {}
        self._own = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each of ours, and nobody asks
        ProcessCollector(registry=self._own)
        PlatformCollector(registry=self._own)
        self.telemetry = Telemetry(self._own)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page in the form that an Accept header asks for, and its content type."""
        encoder, content_type = choose_encoder(accept)
        families = list(self.render_game(accept))
        # Last, because the numbers of series are known only now.
        return b"".join((*families, encoder(self._own))), content_type

    def render_game(self, accept: str = "") -> Iterator[bytes]:
        """Yield the game's families one by one, without the end mark of OpenMetrics."""
        encoder, content_type = choose_encoder(accept)
        view = self._read_view()
        if view is None:
            self.telemetry.series.set(0)
            return
        series = lay_out(view, self._now(), self._series_maximum, self._shown)
        left_out = never_fall(self._shown, series, self._series_maximum) if self._shown is not None else 0
        self._shown = series if self._shown is None else with_silent(self._shown, series)
        for metric in catalogue.CATALOGUE:
            if view.market is None and metric in catalogue.MARKET:
                continue
            values = series.of(metric)
            place = (content_type, metric.name)
            before = self._rendered.get(place)
            # Most families are as they were at the last scrape, and rendering is what costs.
            if before is None or before[0] != values:
                before = (values, encoder(_Only(_make_family(metric, values))).removesuffix(b"# EOF\n"))
                self._rendered[place] = before
            yield before[1]
        self.telemetry.series.set(series.number)
        self.telemetry.series_dropped.set(series.dropped + left_out)


class _Only(CollectorRegistry):
    """A registry of one family."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterator[Family]:
        yield self._family


def _make_family(metric: Metric, values: Values) -> Family:
    # Sorted, so that a page is the same for the same state.
    family: Family
    match metric.kind:
        case Kind.COUNTER:
            family = CounterMetricFamily(metric.full_name, metric.help, labels=metric.labels)
            for labels, n in sorted(values.items()):
                family.add_metric(labels, cast(int, n))
        case Kind.HISTOGRAM:
            family = HistogramMetricFamily(metric.full_name, metric.help, labels=metric.labels)
            for labels in sorted(values):
                distribution = cast(Distribution, values[labels])
                buckets = _cumulative(metric, distribution)
                family.add_metric(labels, buckets, distribution.total / metric.scale)
        case Kind.GAUGE:
            family = GaugeMetricFamily(metric.full_name, metric.help, labels=metric.labels)
            for labels, value in sorted(values.items()):
                family.add_metric(labels, cast(float, value))
    return family


def _cumulative(metric: Metric, distribution: Distribution) -> list[tuple[str, float]]:
    stored = [*map(str, metric.buckets), "+Inf"]
    shown = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]  # as prometheus_client prints bounds
    return list(zip(shown, accumulate(distribution.buckets.get(le, 0) for le in stored), strict=True))
