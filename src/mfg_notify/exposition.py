"""How it looks: the view of the game, and the exporter's own numbers, as prometheus_client families.

Reads memory only: a scrape never touches the database. What a number is, is `core`.
"""

import platform
from collections.abc import Callable, Iterator
from itertools import accumulate

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
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from mfg_notify import __version__
from mfg_notify.core import catalogue
from mfg_notify.core.catalogue import EXPORTER_METRICS, SELF_PREFIX, Kind, Metric
from mfg_notify.core.series import Distribution, Series, View, lay_out

LOST = "lost_statements_total"
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
        self.ready = gauge("ready")
        self.series = gauge("series")
        self.events_applied = counter("events_applied_total")
        self.notifications_received = counter("notifications_received_total")
        self.events_rejected = counter("events_rejected_total")
        self.event_delay = histogram("event_delay_seconds")
        self.listener_roundtrip = histogram("listener_roundtrip_seconds")
        self.reconnects = counter("reconnects_total")
        self.reconcile_duration = histogram("reconcile_duration_seconds")
        self.reconcile_last_success = gauge("reconcile_last_success_timestamp_seconds")
        self.checkpoint_duration = histogram("checkpoint_duration_seconds")
        self.checkpoint_last_success = gauge("checkpoint_last_success_timestamp_seconds")
        self.journal_rows = gauge("journal_rows")
        self.journal_oldest_age = gauge("journal_oldest_age_seconds")
        self.queue_usage = gauge("notification_queue_usage_ratio")
        self.triggers_installed = gauge("triggers_installed")
        self.lost_statements: int | None = None
        registry.register(_LostStatements(self))


class _LostStatements(Collector):
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._help = next(metric.help for metric in EXPORTER_METRICS if metric.name == LOST)

    def describe(self) -> Iterator[Family]:
        yield CounterMetricFamily(SELF_PREFIX + LOST, self._help)

    def collect(self) -> Iterator[Family]:
        # Absent until the database was asked: a start at 0 would look like a loss to increase() at every restart.
        yield CounterMetricFamily(SELF_PREFIX + LOST, self._help, value=self._telemetry.lost_statements)


class GameCollector(Collector):
    """The metrics of the game, made anew from an immutable view at each scrape.

    `read_view` gives the view, or None while there is nothing exact to show; `now` is the database's clock in epoch
    microseconds.
    """

    def __init__(self, read_view: Callable[[], View | None], now: Callable[[], int], telemetry: Telemetry) -> None:
        self._read_view = read_view
        self._now = now
        self._telemetry = telemetry

    def describe(self) -> Iterator[Family]:
        """Name the families without reading anything."""
        return (_family(metric) for metric in catalogue.CATALOGUE)

    def collect(self) -> Iterator[Family]:
        """Yield every family of the catalogue with all its series."""
        view = self._read_view()
        if view is None:
            self._telemetry.series.set(0)
            return
        series = lay_out(view, self._now())
        number = 0
        for metric in catalogue.CATALOGUE:
            family = _family(metric)
            _fill(family, metric, series)
            number += len(family.samples)
            yield family
        self._telemetry.series.set(number)


def _family(metric: Metric) -> Family:
    match metric.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(metric.full_name, metric.help, labels=metric.labels)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(metric.full_name, metric.help, labels=metric.labels)
        case Kind.GAUGE:
            return GaugeMetricFamily(metric.full_name, metric.help, labels=metric.labels)


def _fill(family: Family, metric: Metric, series: Series) -> None:
    # Sorted, so that a page is the same for the same state.
    if isinstance(family, CounterMetricFamily):
        for labels, n in sorted(series.counters[metric.name].items()):
            family.add_metric(labels, n / metric.scale if metric.scale != 1 else n)
    elif isinstance(family, HistogramMetricFamily):
        for labels, distribution in sorted(series.histograms[metric.name].items(), key=lambda item: item[0]):
            family.add_metric(labels, _cumulative(metric, distribution), distribution.total / metric.scale)
    elif isinstance(family, GaugeMetricFamily):
        for labels, value in sorted(series.gauges[metric.name].items()):
            family.add_metric(labels, value)


def _cumulative(metric: Metric, distribution: Distribution) -> list[tuple[str, float]]:
    stored = [*map(str, metric.buckets), "+Inf"]
    shown = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]  # as prometheus_client prints bounds
    return list(zip(shown, accumulate(distribution.buckets.get(le, 0) for le in stored), strict=True))


def make_registry() -> CollectorRegistry:
    """Return a registry with process_* and python_info; the exporter adds its own collectors."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each of ours, and nobody asks
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
