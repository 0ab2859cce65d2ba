"""Owns the selectors: no query names a metric or a label that is not declared, or forgets job and player_id.

Declares what the game's daemon exports, as far as a dashboard shows it. Knows nothing of panels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mfg_notify.core.catalogue import EXPORTER_METRICS, PREFIX, SELF_PREFIX, Kind, Metric

HISTOGRAM_PARTS = ("bucket", "sum", "count")


@dataclass(frozen=True, slots=True)
class DaemonMetric:
    """A market metric of the game's own daemon: there when the daemon's metrics are on."""

    name: str
    kind: Kind
    labels: tuple[str, ...]

    @property
    def full_name(self) -> str:
        """The name as Prometheus sees it."""
        return PREFIX + self.name


_SYSTEM = ("player_id", "system_symbol")
_GOOD = ("player_id", "good_symbol")

MARKET_SCANS = DaemonMetric("market_scans_total", Kind.COUNTER, ("player_id", "waypoint_symbol", "status"))
MARKET_SCAN_DURATION = DaemonMetric("market_scan_duration_seconds", Kind.HISTOGRAM, ("player_id", "waypoint_symbol"))
MARKET_SCANNER_ERRORS = DaemonMetric("market_scanner_errors_total", Kind.COUNTER, ("player_id", "error_type"))
MARKET_COVERAGE = DaemonMetric("market_coverage_total", Kind.GAUGE, _SYSTEM)
MARKET_COVERAGE_FRESH = DaemonMetric("market_coverage_fresh", Kind.GAUGE, (*_SYSTEM, "age_threshold"))
MARKET_DATA_AGE = DaemonMetric("market_data_age_seconds", Kind.HISTOGRAM, _SYSTEM)
MARKET_PRICE_SPREAD = DaemonMetric("market_price_spread", Kind.HISTOGRAM, _GOOD)
MARKET_BEST_SPREAD = DaemonMetric("market_best_spread", Kind.GAUGE, (*_GOOD, "system_symbol"))
MARKET_EFFICIENCY = DaemonMetric("market_efficiency_percent", Kind.HISTOGRAM, _GOOD)
MARKET_LIQUIDITY = DaemonMetric("market_liquidity", Kind.GAUGE, ("player_id", "waypoint_symbol", "good_symbol"))
MARKET_BEST_PRICE = DaemonMetric("market_best_price", Kind.GAUGE, (*_GOOD, "system_symbol", "type"))
TRADE_OPPORTUNITIES = DaemonMetric("trade_opportunities_total", Kind.GAUGE, (*_SYSTEM, "min_margin"))

DAEMON_METRICS = (
    MARKET_SCANS,
    MARKET_SCAN_DURATION,
    MARKET_SCANNER_ERRORS,
    MARKET_COVERAGE,
    MARKET_COVERAGE_FRESH,
    MARKET_DATA_AGE,
    MARKET_PRICE_SPREAD,
    MARKET_BEST_SPREAD,
    MARKET_EFFICIENCY,
    MARKET_LIQUIDITY,
    MARKET_BEST_PRICE,
    TRADE_OPPORTUNITIES,
)
"""Those that the daemon alone exports: `catalogue.MARKET` comes from it or from the exporter's `--collect-market`."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the variables of a dashboard narrow: `job` names one variable, `variables` maps a label to its own.

    `of` narrows a metric by each of those labels that it has.
    """

    job: str
    variables: Mapping[str, str]

    def of(self, metric: Metric | DaemonMetric, part: str = "", **matchers: str) -> str:
        """Return a selector: the metric, or a part of a histogram, for the job and what the variables say.

        Further matchers are `label="value"`; a value that begins with ~ is a regular expression, with ! an inequality.
        """
        if (part != "") is not (metric.kind is Kind.HISTOGRAM) or (part and part not in HISTOGRAM_PARTS):
            raise ValueError(f"{metric.name} is a {metric.kind}: part {part!r}")
        if unknown := matchers.keys() - {*metric.labels, *(("le",) if part == "bucket" else ())}:
            raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}")
        name = f"{metric.full_name}_{part}" if part else metric.full_name
        narrowed = [f'job=~"${self.job}"']
        narrowed += [
            f'{label}=~"${self.variables[label]}"'
            for label in metric.labels
            if label in self.variables and label not in matchers
        ]
        return _selector(name, narrowed + [_matcher(label, value) for label, value in matchers.items()])

    def own(self, name: str, part: str = "", **matchers: str) -> str:
        """Return a selector of a metric of the exporter about itself, which knows no player."""
        metric = next((metric for metric in EXPORTER_METRICS if metric.name == name), None)
        if metric is None:
            raise ValueError(f"the exporter has no metric {name}")
        if (part != "") is not (metric.kind is Kind.HISTOGRAM):
            raise ValueError(f"{name} is a {metric.kind}: part {part!r}")
        full_name = SELF_PREFIX + (f"{name}_{part}" if part else name)
        narrowed = [_matcher(label, value) for label, value in matchers.items()]
        return _selector(full_name, [f'job=~"${self.job}"', *narrowed])

    def process(self, name: str) -> str:
        """Return a selector of what Prometheus or the client library says of the exporter's process."""
        return _selector(name, [f'job=~"${self.job}"'])


def _matcher(label: str, value: str) -> str:
    operator = {"~": "=~", "!": "!="}.get(value[:1], "=")
    return f'{label}{operator}"{value.lstrip("~!")}"'


def _selector(name: str, matchers: list[str]) -> str:
    return f"{name}{{{', '.join(matchers)}}}"
