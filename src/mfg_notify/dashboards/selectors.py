"""Owns the selectors of all queries: they name declared metrics and labels only, and carry job, database and player.

Declares the metrics of the game's daemon that a dashboard shows. Knows nothing about panels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mfg_notify.core.catalogue import (
    EXPORTER_METRICS,
    PIPELINE_QUEUE_DEPTH,
    PLAYER_INFO,
    PREFIX,
    SELF_PREFIX,
    Kind,
    Metric,
)

RATE = "[$__rate_interval]"
RANGE = "[$__range]"
"""The two windows of all queries. Grafana chooses both, so that they fit the time range and the scrape interval."""
HISTOGRAM_PARTS = ("bucket", "sum", "count")


@dataclass(frozen=True, slots=True)
class DaemonMetric:
    """A market metric of the game's daemon. It exists only if the daemon's metrics are turned on."""

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
"""Metrics that only the daemon exports. `catalogue.MARKET` comes from the daemon or from `--collect-market`."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The variables of a dashboard: the names of those of the job and of the database, and label → variable.

    `database` is a label of the exporters' targets. The daemon's targets need not have it, so with `unlabelled` series
    without it are selected, too.
    """

    job: str
    database: str
    variables: Mapping[str, str]
    unlabelled: bool = False

    @property
    def _target(self) -> list[str]:
        return [f'job=~"${self.job}"', f'database=~"${self.database}{"|" if self.unlabelled else ""}"']

    def of(self, metric: Metric | DaemonMetric, part: str = "", **matchers: str) -> str:
        """Return a selector of a metric, or of a part of a histogram, for the job and the variables of its labels.

        Further matchers are `label="value"`. A value that begins with ~ is a regular expression, one that begins with
        ! an inequality.
        """
        if (part != "") is not (metric.kind is Kind.HISTOGRAM) or (part and part not in HISTOGRAM_PARTS):
            raise ValueError(f"{metric.name} is a {metric.kind}: part {part!r}")
        if unknown := matchers.keys() - {*metric.labels, *(("le",) if part == "bucket" else ())}:
            raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}")
        name = f"{metric.full_name}_{part}" if part else metric.full_name
        narrowed = self._target + [
            f'{label}=~"${self.variables[label]}"'
            for label in metric.labels
            if label in self.variables and label not in matchers
        ]
        return _selector(name, narrowed + [_matcher(label, value) for label, value in matchers.items()])

    def agents(self, *, ever: bool = False) -> str:
        """Return an expression that is 1 for each player; its `agent_symbol` is the id if the agent is unknown.

        With `ever` for each who was there in the time range, else for those who are there now.
        """
        info, depth = (
            f"last_over_time({selected}{RANGE})" if ever else selected
            for selected in (self.of(PLAYER_INFO), self.of(PIPELINE_QUEUE_DEPTH))
        )
        named = f"group by (player_id, agent_symbol) ({info})"
        unnamed = f"group by (player_id) ({depth})"
        return f'({named} or on (player_id) label_join({unnamed}, "agent_symbol", "", "player_id"))'

    def with_agent(self, expr: str) -> str:
        """Return an expression whose series have the label `agent_symbol` besides `player_id`."""
        return f"{expr} * on (player_id) group_left (agent_symbol) {self.agents()}"

    def own(self, name: str, part: str = "", **matchers: str) -> str:
        """Return a selector of a metric of the exporter about itself, which has no player."""
        metric = next((metric for metric in EXPORTER_METRICS if metric.name == name), None)
        if metric is None:
            raise ValueError(f"the exporter has no metric {name}")
        if (part != "") is not (metric.kind is Kind.HISTOGRAM):
            raise ValueError(f"{name} is a {metric.kind}: part {part!r}")
        full_name = SELF_PREFIX + (f"{name}_{part}" if part else name)
        narrowed = [_matcher(label, value) for label, value in matchers.items()]
        return _selector(full_name, self._target + narrowed)

    def target(self, name: str) -> str:
        """Return a selector of a metric about the target: one of the client library's about the process, or `up`."""
        return _selector(name, self._target)


def _matcher(label: str, value: str) -> str:
    operator = {"~": "=~", "!": "!="}.get(value[:1], "=")
    return f'{label}{operator}"{value.lstrip("~!")}"'


def _selector(name: str, matchers: list[str]) -> str:
    return f"{name}{{{', '.join(matchers)}}}"
