"""The page of /metrics: a view of the game and the exporter's own numbers, in one of two text formats.

Owns how numbers are written; `core` decides what they mean. Reads memory only and never touches the database.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from threading import Lock
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
from prometheus_client import exposition as text
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as ExposedExemplar

from mfg_notify import __version__
from mfg_notify.core import catalogue
from mfg_notify.core.board import Fact
from mfg_notify.core.capped_totals import SERIES_MAXIMUM
from mfg_notify.core.catalogue import EXPORTER_METRICS, MICROSECONDS_PER_SECOND, SELF_PREFIX, Kind, Metric
from mfg_notify.core.history import Points
from mfg_notify.core.series import Distribution, Presentation, Series, Values, View

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The content types of the two formats that a page comes in."""
LOST = "lost_changes_total"
UNRECORDED = "unrecorded_changes_total"
DELAY = "event_delay_seconds"
EXEMPLAR_MAXIMUM = 128
"""Characters that the label of an exemplar may have, its name and its value together: OpenMetrics allows no more."""
RANGES_MAXIMUM = 20
"""Media ranges of an Accept header that are read. Prometheus sends five."""

_ENCODERS: dict[str, Callable[[CollectorRegistry], bytes]] = {
    TEXT: text.generate_latest,
    OPENMETRICS: openmetrics.generate_latest,
}


def choose_format(accept: str) -> str:
    """Return the content type that an Accept header prefers: always `TEXT` or `OPENMETRICS`.

    OpenMetrics must be named, without a version or with 1.0.0, and wins a tie. Invalid ranges are ignored.
    """
    weights = {TEXT: 0.0, OPENMETRICS: 0.0}
    for media_range in accept.split(",", RANGES_MAXIMUM)[:RANGES_MAXIMUM]:
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        form = TEXT
        if media_type == "application/openmetrics-text":
            if given.get("version", "1.0.0") != "1.0.0":
                continue
            form = OPENMETRICS
        weights[form] = max(weights[form], _quality(given.get("q", "1")))
    return OPENMETRICS if weights[OPENMETRICS] and weights[OPENMETRICS] >= weights[TEXT] else TEXT


def _quality(given: str) -> float:
    # At most four digits, as in HTTP: float() would also accept "nan" and "1_0".
    whole, _, fraction = given.partition(".")
    digits = whole + fraction
    return int(digits) / 10 ** len(fraction) if digits.isascii() and digits.isdigit() and len(digits) <= 4 else 0.0


class Telemetry:
    """The exporter about itself: one prometheus_client object for each metric of `EXPORTER_METRICS`."""

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
        for reason in ("malformed", "unconfirmed"):
            self.events_rejected.labels(reason)  # at 0, so that increase() sees the first one
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
        self.imbalance_rows = gauge("imbalance_rows")
        self.books_last_balanced = gauge("books_last_balanced_timestamp_seconds")
        self.unreadable_rows = gauge("unreadable_rows")
        self.oldest_snapshot_age = gauge("oldest_snapshot_age_seconds")
        self.triggers_installed = gauge("triggers_installed")
        self.web_config_failures = counter("web_config_failures_total")
        self.http_responses = counter("http_responses_total")
        self.http_connections_dropped = counter("http_connections_dropped_total")
        self.lost_changes: int | None = None
        self.unrecorded_changes: dict[str, int] = {}
        registry.register(_Stored(self))


class _Delays(Collector):
    """The histogram of event delays. Every event is observed, so it takes many at once, in whole microseconds."""

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
        bounds = [*(str(float(bound)) for bound in self._declared.buckets), "+Inf"]
        # Copied at once, because events may be observed while another thread renders.
        counts, total = self._counts.copy(), self._sum
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        yield HistogramMetricFamily(
            SELF_PREFIX + DELAY, self._declared.help, buckets, sum_value=total / MICROSECONDS_PER_SECOND
        )


class _Stored(Collector):
    """The counters that the database keeps: shown as they were read there, never counted here.

    They are absent until then: starting at 0 would make increase() see all of it again at every restart.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._declared = {metric.name: metric for metric in EXPORTER_METRICS}

    def describe(self) -> Iterator[Family]:
        yield CounterMetricFamily(SELF_PREFIX + LOST, self._declared[LOST].help)
        yield CounterMetricFamily(SELF_PREFIX + UNRECORDED, self._declared[UNRECORDED].help, labels=("table",))

    def collect(self) -> Iterator[Family]:
        yield CounterMetricFamily(SELF_PREFIX + LOST, self._declared[LOST].help, value=self._telemetry.lost_changes)
        unrecorded = CounterMetricFamily(
            SELF_PREFIX + UNRECORDED, self._declared[UNRECORDED].help, labels=self._declared[UNRECORDED].labels
        )
        for table, n in sorted(self._telemetry.unrecorded_changes.items()):
            unrecorded.add_metric((table,), n)
        yield unrecorded


def facts(telemetry: Telemetry) -> list[Fact]:
    """Return those of the exporter's own numbers that the board shows."""

    def read(metric: Collector, suffix: str = "") -> float:
        return sum(
            sample.value for family in metric.collect() for sample in family.samples if sample.name.endswith(suffix)
        )

    def mean(metric: Collector) -> float | None:
        count = read(metric, "_count")
        return read(metric, "_sum") / count if count else None

    # Nothing is known of the database before the first reconciliation, nor on a standby.
    reconciled = read(telemetry.reconcile_last_success) > 0
    return [
        ("Events counted since the start", read(telemetry.events_applied, "_total"), ""),
        ("Mean delay of an event", mean(telemetry.event_delay), "s"),
        ("Mean round trip of the own ping", mean(telemetry.listener_roundtrip), "s"),
        ("Events in the journal", read(telemetry.journal_rows) if reconciled else None, ""),
        ("Journal last drained", read(telemetry.fold_last_success), "at"),
        ("Live rows last read", read(telemetry.reconcile_last_success), "at"),
        ("Books last balanced", read(telemetry.books_last_balanced), "at"),
        ("Changes without an event", sum(telemetry.unrecorded_changes.values()) if reconciled else None, ""),
        ("Gauges corrected", read(telemetry.reconcile_corrections, "_total"), ""),
        ("Notifications that were no events", read(telemetry.events_rejected, "_total"), ""),
        ("Connections given up", read(telemetry.reconnects, "_total"), ""),
        ("Changes the triggers gave up", telemetry.lost_changes, ""),
        ("Triggers enabled", read(telemetry.triggers_installed) if reconciled else None, ""),
    ]


Rendering = Callable[[str], bytes]
"""Renders the page as of one moment, as a content type."""


class Page:
    """The page of /metrics: the game's families from an immutable view, and the exporter's own numbers.

    `read_view` returns the view, or None while there is nothing exact to show; `now` is the database's clock in epoch
    microseconds. `begin` calls both in the event loop. The view is rendered later in another thread, so it must be
    immutable.
    """

    def __init__(
        self,
        read_view: Callable[[], View | None],
        now: Callable[[], int],
        series_maximum: int = SERIES_MAXIMUM,
    ) -> None:
        self._read_view = read_view
        self._now = now
        self._presentation = Presentation(series_maximum)
        self._lock = Lock()
        self._rendered: dict[tuple[str, str], tuple[Values, bytes]] = {}
        """The last text of each family, by format and metric."""
        self._own = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one series more for each of ours, used by nobody
        ProcessCollector(registry=self._own)
        PlatformCollector(registry=self._own)
        self.telemetry = Telemetry(self._own)

    def choose_format(self, accept: str) -> str:
        """Return the content type that an Accept header prefers."""
        return choose_format(accept)

    def begin(self) -> Rendering:
        """Read the view in the event loop; return the function that renders it in any thread and in any format."""
        view, now = self._read_view(), self._now()
        series: Series | None = None

        def render(content_type: str) -> bytes:
            nonlocal series
            with self._lock:
                if view is None:
                    self.telemetry.series.set(0)
                    game = b""
                else:
                    series = series or self._present(view, now)
                    game = self._render_game(view, series, content_type)
                # Last, because the number of series is known only now.
                return game + _ENCODERS[content_type](self._own)

        return render

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page in the format that an Accept header prefers, and its content type."""
        content_type = choose_format(accept)
        return self.begin()(content_type), content_type

    def render_game(self, content_type: str = TEXT) -> bytes:
        """Return the game's families alone, without the end mark of OpenMetrics."""
        view = self._read_view()
        if view is None:
            return b""
        with self._lock:
            return self._render_game(view, self._present(view, self._now()), content_type)

    def _present(self, view: View, now: int) -> Series:
        series = self._presentation.present(view, now)
        self.telemetry.series.set(series.number)
        self.telemetry.series_dropped.set(series.dropped)
        return series

    def _render_game(self, view: View, series: Series, content_type: str) -> bytes:
        families = []
        for metric in catalogue.CATALOGUE:
            if view.market is None and metric in catalogue.MARKET:
                continue
            values = series.of(metric)
            place = (content_type, metric.name)
            before = self._rendered.get(place)
            # Most families have not changed since the last scrape, and rendering is what costs.
            if before is None or before[0] != values:
                family = _ENCODERS[content_type](
                    _Only(_make_family(metric, values, exemplars=content_type == OPENMETRICS))
                )
                before = self._rendered[place] = (values, family.removesuffix(b"# EOF\n"))
            families.append(before[1])
        return b"".join(families)


def render_head(metric: Metric) -> str:
    """Return what OpenMetrics says of a family before its samples."""
    family = _ENCODERS[OPENMETRICS](_Only(_make_family(metric, {}, exemplars=False)))
    return family.removesuffix(b"# EOF\n").decode()


def render_points(points: Points, more: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the samples of a series as OpenMetrics, those of one moment at a time; `more` are labels of all of them."""
    metric = points.metric
    pairs = [*zip(metric.labels, points.labels, strict=True), *more]
    parts = [("", pairs)]
    if metric.kind is Kind.HISTOGRAM:
        bounds = [bucket[0] for bucket in _cumulative(metric, Distribution())]
        parts = [("_bucket", [*pairs, ("le", bound)]) for bound in bounds] + [("_count", pairs), ("_sum", pairs)]
    names = []
    for part, labels in parts:
        written = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
        names.append(f"{metric.full_name}{part}{{{written}}}")
    for at, values in points.samples:
        time = f"{at // MICROSECONDS_PER_SECOND}.{at // 1000 % 1000:03d}"
        if metric.scale != 1:
            values = (*values[:-1], values[-1] / metric.scale)
        yield "".join([f"{name} {value} {time}\n" for name, value in zip(names, values, strict=True)])


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class _Only(CollectorRegistry):
    """A registry of one family."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterator[Family]:
        yield self._family


def _make_family(metric: Metric, values: Values, *, exemplars: bool) -> Family:
    # Sorted, so that the same state always gives the same page.
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
                if exemplars and distribution.exemplars:
                    buckets = _with_exemplars(metric, distribution, buckets)
                family.add_metric(labels, buckets, distribution.total / metric.scale)
        case Kind.GAUGE:
            family = GaugeMetricFamily(metric.full_name, metric.help, labels=metric.labels)
            for labels, value in sorted(values.items()):
                family.add_metric(labels, cast(float, value))
    return family


Bucket = tuple[str, float] | tuple[str, float, ExposedExemplar]


def _cumulative(metric: Metric, distribution: Distribution) -> Sequence[Bucket]:
    printed = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]  # as prometheus_client prints bounds
    return list(zip(printed, accumulate(distribution.buckets.get(le, 0) for le in _stored_bounds(metric)), strict=True))


def _with_exemplars(metric: Metric, distribution: Distribution, buckets: Sequence[Bucket]) -> Sequence[Bucket]:
    exposed = list(buckets)
    for number, le in enumerate(_stored_bounds(metric)):
        if le in distribution.exemplars:
            at, key, value = distribution.exemplars[le]
            if len(metric.exemplar_label) + len(key) <= EXEMPLAR_MAXIMUM:
                labels, seconds = {metric.exemplar_label: key}, at / MICROSECONDS_PER_SECOND
                exposed[number] = (*buckets[number][:2], ExposedExemplar(labels, value / metric.scale, seconds))
    return exposed


def _stored_bounds(metric: Metric) -> list[str]:
    return [*map(str, metric.buckets), "+Inf"]
