"""Owns the declaration of every metric: name, type, help, labels, buckets, and the columns that feed it.

The exposition, the settled totals, the documentation, the dashboards and the alerting rules are generated from this
table or checked against it. It never computes a value: `rules` does for counters and histograms, `live_state` for
gauges.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "spacetraders_daemon_"
"""The specification's namespace and subsystem."""

MICROSECONDS_PER_SECOND = 1_000_000

PIPELINE_LIVE = ("PLANNING", "EXECUTING")
TASK_LIVE = ("PENDING", "READY", "ASSIGNED", "EXECUTING")
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")
SUPPLY_LEVELS = ("SCARCE", "LIMITED", "MODERATE", "HIGH", "ABUNDANT")
"""Lowest first."""
TASK_OUTCOMES = {"COMPLETED": "success", "FAILED": "failure", "CANCELLED": "cancelled"}
COST_TYPES = ("acquire", "deliver", "collect", "liquidate", "other")


class Kind(StrEnum):
    """A Prometheus metric type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    `name` is without prefix, as in `mfg_notify.total`. `buckets` are upper bounds in base units, without +Inf. `scale`
    is the number of stored units per exposed unit (durations are stored in microseconds). `source` names the columns
    that feed the metric, for the documentation.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    source: str
    buckets: tuple[int, ...] = ()
    scale: int = 1

    @property
    def full_name(self) -> str:
        """The name as Prometheus sees it."""
        return PREFIX + self.name

    @property
    def exemplar_label(self) -> str:
        """The label of a histogram's exemplars: which row's id it carries."""
        return "task_id" if "task_type" in self.labels else "pipeline_id"


def _seconds(name: str, labels: tuple[str, ...], buckets: tuple[int, ...], text: str, source: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, labels, text, source, buckets, MICROSECONDS_PER_SECOND)


_PRODUCT = ("player_id", "product_good")
_TASK = ("player_id", "task_type")
_FACTORY = ("player_id", "factory_symbol", "output_good")
_TASK_BUCKETS = (10, 30, 60, 120, 300, 600)

PIPELINE_RUNNING = Metric(
    "manufacturing_pipeline_running_total",
    Kind.GAUGE,
    _PRODUCT,
    "Number of currently running manufacturing pipelines",
    "pipelines.status",
)
PIPELINE_QUEUE_DEPTH = Metric(
    "manufacturing_pipeline_queue_depth",
    Kind.GAUGE,
    ("player_id",),
    "Total pipelines in planning or executing state",
    "pipelines.status",
)
PIPELINE_COMPLETED = Metric(
    "manufacturing_pipeline_completed_total",
    Kind.COUNTER,
    ("player_id", "product_good", "status"),
    "Total completed manufacturing pipelines by final status",
    "pipelines.status",
)
PIPELINE_DURATION = _seconds(
    "manufacturing_pipeline_duration_seconds",
    _PRODUCT,
    (60, 120, 300, 600, 900, 1200, 1800, 3600),
    "Pipeline execution duration",
    "pipelines.started_at, completed_at",
)
PIPELINE_PROFIT = Metric(
    "manufacturing_pipeline_profit_credits",
    Kind.HISTOGRAM,
    _PRODUCT,
    "Net profit of a finished pipeline; a loss is negative and falls in the first bucket",
    "pipelines.net_profit",
    (1000, 5000, 10000, 50000, 100000, 500000),
)
PIPELINES = Metric(
    "manufacturing_pipelines",
    Kind.GAUGE,
    ("player_id", "product_good", "status"),
    "Live pipelines by status",
    "pipelines.status",
)
PIPELINE_REVENUE = Metric(
    "manufacturing_pipeline_revenue_credits_total",
    Kind.COUNTER,
    _PRODUCT,
    "Revenue of completed pipelines, including those completed before the installation",
    "pipelines.total_revenue",
)
PIPELINE_COST = Metric(
    "manufacturing_pipeline_cost_credits_total",
    Kind.COUNTER,
    _PRODUCT,
    "Cost of completed pipelines, including those completed before the installation",
    "pipelines.total_cost",
)
TASKS_PENDING = Metric(
    "manufacturing_tasks_pending_total", Kind.GAUGE, _TASK, "Tasks waiting for dependencies", "tasks.status"
)
TASKS_READY = Metric("manufacturing_tasks_ready_total", Kind.GAUGE, _TASK, "Tasks ready to execute", "tasks.status")
TASKS_EXECUTING = Metric(
    "manufacturing_tasks_executing_total",
    Kind.GAUGE,
    _TASK,
    "Tasks currently assigned or executing",
    "tasks.status",
)
TASKS_COMPLETED = Metric(
    "manufacturing_tasks_completed_total",
    Kind.COUNTER,
    ("player_id", "task_type", "status"),
    "Finished tasks by outcome: success, failure, cancelled",
    "tasks.status, retry_count",
)
TASK_DURATION = _seconds(
    "manufacturing_task_duration_seconds",
    _TASK,
    _TASK_BUCKETS,
    "Task execution duration",
    "tasks.started_at, completed_at",
)
TASK_RETRY = Metric("manufacturing_task_retry_total", Kind.COUNTER, _TASK, "Task retries", "tasks.retry_count")
TASK_ASSIGNMENTS = Metric(
    "manufacturing_task_assignments_total",
    Kind.COUNTER,
    _TASK,
    "Starts of tasks: each attempt counts once, with the assignment of a ship or without",
    "tasks.status",
)
TASK_WAIT = _seconds(
    "manufacturing_task_wait_seconds",
    _TASK,
    (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600),
    "Time from ready to the start of the attempt",
    "tasks.ready_at, status, started_at",
)
TASK_STARVATION = Metric(
    "manufacturing_task_starvation_seconds",
    Kind.GAUGE,
    _TASK,
    "Seconds since a task of the type last started, while tasks of the type are ready and wait",
    "tasks.status, ready_at, started_at",
)
FACTORY_SUPPLY_LEVEL = Metric(
    "manufacturing_factory_supply_level",
    Kind.GAUGE,
    (*_FACTORY, "supply_level"),
    "Current supply at the factory: 1 for the current level, 0 for the others",
    "factory_states.current_supply",
)
FACTORY_SUPPLY_ORDINAL = Metric(
    "manufacturing_factory_supply_ordinal",
    Kind.GAUGE,
    _FACTORY,
    "Current supply at the factory as a number: 1 SCARCE to 5 ABUNDANT",
    "factory_states.current_supply",
)
FACTORY_INPUTS_DELIVERED = Metric(
    "manufacturing_factory_inputs_delivered",
    Kind.GAUGE,
    _FACTORY,
    "Share of the required inputs that have been delivered, 0 to 1",
    "factory_states.required_inputs, delivered_inputs",
)
FACTORY_READY = Metric(
    "manufacturing_factory_ready_total",
    Kind.GAUGE,
    ("player_id",),
    "Factories ready for collection",
    "factory_states.ready_for_collection",
)
FACTORY_CYCLES = Metric(
    "manufacturing_factory_cycles_total",
    Kind.COUNTER,
    _FACTORY,
    "Production cycles completed: times the factory became ready for collection",
    "factory_states.ready_for_collection",
)
SUPPLY_TRANSITIONS = Metric(
    "manufacturing_supply_transitions_total",
    Kind.COUNTER,
    ("player_id", "good_symbol", "from_level", "to_level"),
    "Supply level changes at factories",
    "factory_states.current_supply",
)
SHIPS_ASSIGNED = Metric(
    "manufacturing_ships_assigned_total",
    Kind.GAUGE,
    ("player_id",),
    "Ships assigned to manufacturing tasks",
    "tasks.assigned_ship, status",
)
SHIPS_IDLE = Metric(
    "manufacturing_ships_idle_total",
    Kind.GAUGE,
    ("player_id",),
    "Ships that could take a task now",
    "ships.assignment_status, tasks.assigned_ship",
)
SHIP_TASK_DURATION = _seconds(
    "manufacturing_ship_task_duration_seconds",
    _TASK,
    _TASK_BUCKETS,
    "Execution duration of tasks that had a ship",
    "tasks.started_at, completed_at, assigned_ship",
)
SHIP_UTILIZATION = Metric(
    "manufacturing_ship_utilization_percent",
    Kind.GAUGE,
    ("player_id",),
    "Ships assigned, in percent of ships assigned or idle",
    "tasks.assigned_ship, ships.assignment_status",
)
COST = Metric(
    "manufacturing_cost_total",
    Kind.COUNTER,
    ("player_id", "cost_type"),
    "Credits spent by tasks, by kind of task",
    "tasks.total_cost",
)
REVENUE = Metric(
    "manufacturing_revenue_total",
    Kind.COUNTER,
    ("player_id",),
    "Credits earned by tasks",
    "tasks.total_revenue",
)
PROFIT_RATE = Metric(
    "manufacturing_profit_rate",
    Kind.GAUGE,
    ("player_id",),
    "Profit of the pipelines completed in the last hour, in credits an hour",
    "pipelines.total_revenue, total_cost, completed_at",
)
MARGIN = Metric(
    "manufacturing_margin_percent",
    Kind.GAUGE,
    _PRODUCT,
    "Profit in percent of revenue over all completed pipelines",
    "pipelines.total_revenue, total_cost",
)
PLAYER_INFO = Metric(
    "player_info",
    Kind.GAUGE,
    ("player_id", "agent_symbol"),
    "Always 1; the agent of a player",
    "players.id, agent_symbol (optional)",
)
PLAYER_LAST_EVENT = Metric(
    "player_last_event_timestamp_seconds",
    Kind.GAUGE,
    ("player_id",),
    "Time of the last change event of a player",
    "all watched columns",
)
_MATERIAL = ("player_id", "construction_site", "good_symbol")
CONSTRUCTION_DELIVERED = Metric(
    "manufacturing_construction_delivered_units",
    Kind.GAUGE,
    _MATERIAL,
    "Units of a material that have been delivered to a construction site, of live construction pipelines",
    "pipelines.materials, construction_site, pipeline_type (optional)",
)
CONSTRUCTION_TARGET = Metric(
    "manufacturing_construction_target_units",
    Kind.GAUGE,
    _MATERIAL,
    "Units of a material that a construction site needs, of live construction pipelines",
    "pipelines.materials, construction_site, pipeline_type (optional)",
)
CONSTRUCTION_UNITS = Metric(
    "manufacturing_construction_units_total",
    Kind.COUNTER,
    ("player_id", "good_symbol"),
    "Units of materials delivered to construction sites",
    "pipelines.materials (optional)",
)
TASK_UNITS = Metric(
    "manufacturing_task_units_total",
    Kind.COUNTER,
    _TASK,
    "Units that tasks have moved",
    "tasks.actual_quantity (optional)",
)
MARKET_SUPPLY = Metric(
    "market_supply_distribution",
    Kind.GAUGE,
    ("player_id", "good_symbol", "supply_level"),
    "Number of markets at each supply level",
    "market_data.supply",
)
MARKET_ACTIVITY = Metric(
    "market_activity_distribution",
    Kind.GAUGE,
    ("player_id", "good_symbol", "activity_level"),
    "Number of markets at each activity level",
    "market_data.activity",
)

SPECIFIED = (
    PIPELINE_RUNNING,
    PIPELINE_QUEUE_DEPTH,
    PIPELINE_COMPLETED,
    PIPELINE_DURATION,
    PIPELINE_PROFIT,
    TASKS_PENDING,
    TASKS_READY,
    TASKS_EXECUTING,
    TASKS_COMPLETED,
    TASK_DURATION,
    TASK_RETRY,
    FACTORY_SUPPLY_LEVEL,
    FACTORY_INPUTS_DELIVERED,
    FACTORY_READY,
    FACTORY_CYCLES,
    SUPPLY_TRANSITIONS,
    SHIPS_ASSIGNED,
    SHIPS_IDLE,
    SHIP_TASK_DURATION,
    SHIP_UTILIZATION,
    COST,
    REVENUE,
    PROFIT_RATE,
    MARGIN,
)
"""The 24 metrics of the specification."""

EXTENSIONS = (
    PIPELINES,
    PIPELINE_REVENUE,
    PIPELINE_COST,
    TASK_ASSIGNMENTS,
    TASK_WAIT,
    TASK_STARVATION,
    FACTORY_SUPPLY_ORDINAL,
    PLAYER_INFO,
    PLAYER_LAST_EVENT,
    CONSTRUCTION_DELIVERED,
    CONSTRUCTION_TARGET,
    CONSTRUCTION_UNITS,
    TASK_UNITS,
)
"""Metrics beyond the specification that the dashboards need."""

MARKET = (MARKET_SUPPLY, MARKET_ACTIVITY)
"""Exported only with `--collect-market`, because the daemon exports the same names."""

CATALOGUE = SPECIFIED + EXTENSIONS + MARKET
BY_NAME = {metric.name: metric for metric in CATALOGUE}
"""Each metric by its name without the prefix."""

COUNTERS = tuple(metric for metric in CATALOGUE if metric.kind is Kind.COUNTER)
HISTOGRAMS = tuple(metric for metric in CATALOGUE if metric.kind is Kind.HISTOGRAM)
GAUGES = tuple(metric for metric in CATALOGUE if metric.kind is Kind.GAUGE)


def _settled_samples() -> Iterator[tuple[str, tuple[str, ...]]]:
    for metric in COUNTERS:
        yield metric.name, metric.labels
    for metric in HISTOGRAMS:
        yield f"{metric.name}_bucket", (*metric.labels, "le")
        yield f"{metric.name}_sum", metric.labels


SETTLED_LABELS = dict(_settled_samples())
"""Label names of each `metric` in `mfg_notify.total`, in the order of the values of a `SampleKey`."""


@dataclass(frozen=True, slots=True)
class SelfMetric:
    """A metric of the exporter about itself, with the prefix `mfg_notify_`. prometheus_client keeps its value."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

EXPORTER_METRICS = (
    SelfMetric(
        "build_info",
        Kind.GAUGE,
        ("version", "python_version"),
        "Always 1; the labels are the versions of the exporter and of Python",
    ),
    SelfMetric("connected", Kind.GAUGE, (), "1 while both connections to the database work"),
    SelfMetric("leader", Kind.GAUGE, (), "1 while this exporter holds the lease and folds"),
    SelfMetric("standby", Kind.GAUGE, (), "1 while another exporter holds the lease"),
    SelfMetric(
        "polling",
        Kind.GAUGE,
        (),
        "1 while the triggers do not notify because changes come fast, and the exporter polls the journal",
    ),
    SelfMetric("ready", Kind.GAUGE, (), "1 while /-/ready answers 200"),
    SelfMetric("series", Kind.GAUGE, (), "Series of the game exposed at the last scrape"),
    SelfMetric(
        "series_dropped",
        Kind.GAUGE,
        (),
        "Series at 0 and gauges that the limit on series left out at the last scrape",
    ),
    SelfMetric("events_applied_total", Kind.COUNTER, ("table", "op"), "Change events counted, by table and operation"),
    SelfMetric("notifications_received_total", Kind.COUNTER, (), "Notifications received on the channel"),
    SelfMetric(
        "events_rejected_total",
        Kind.COUNTER,
        ("reason",),
        "Journal rows and payloads rejected as events, by reason: malformed, unconfirmed",
    ),
    SelfMetric(
        "events_replayed_total",
        Kind.COUNTER,
        (),
        "Events counted from the journal because no notification brought them",
    ),
    SelfMetric("events_duplicate_total", Kind.COUNTER, (), "Notifications of events that were already counted"),
    SelfMetric(
        "event_delay_seconds",
        Kind.HISTOGRAM,
        (),
        "Time from the write in the database until the event is counted",
        _FAST,
    ),
    SelfMetric(
        "listener_roundtrip_seconds",
        Kind.HISTOGRAM,
        (),
        "Round-trip time of the exporter's own ping through NOTIFY",
        _FAST,
    ),
    SelfMetric("reconnects_total", Kind.COUNTER, ("reason",), "Reconnects to the database, by reason"),
    SelfMetric(
        "rewinds_total",
        Kind.COUNTER,
        (),
        "Rewinds of the database that were found: an older copy was restored, or a failover lost commits",
    ),
    SelfMetric("reconcile_duration_seconds", Kind.HISTOGRAM, (), "Time to read the live rows for the gauges", _FAST),
    SelfMetric(
        "reconcile_corrections_total",
        Kind.COUNTER,
        ("metric",),
        "Series of gauges that a reconciliation corrected, because events were missed",
    ),
    SelfMetric(
        "reconcile_last_success_timestamp_seconds", Kind.GAUGE, (), "Time of the last successful reconciliation"
    ),
    SelfMetric("fold_duration_seconds", Kind.HISTOGRAM, (), "Time to fold the journal into the totals", _FAST),
    SelfMetric("fold_last_success_timestamp_seconds", Kind.GAUGE, (), "Time at which the journal was last drained"),
    SelfMetric("journal_rows", Kind.GAUGE, (), "Events waiting in the journal at the last reconciliation"),
    SelfMetric(
        "journal_oldest_age_seconds",
        Kind.GAUGE,
        (),
        "Age of the oldest event in the journal at the last reconciliation",
    ),
    SelfMetric("notification_queue_usage_ratio", Kind.GAUGE, (), "Usage of the server's notification queue, 0 to 1"),
    SelfMetric(
        "lost_changes_total",
        Kind.COUNTER,
        (),
        "Changed rows of the game that the triggers gave up recording",
    ),
    SelfMetric(
        "imbalance_rows",
        Kind.GAUGE,
        ("table",),
        "Rows changed without an event that the last check of the books has found",
    ),
    SelfMetric(
        "unrecorded_changes_total",
        Kind.COUNTER,
        ("table",),
        "Rows changed without an event, as all checks of the books have found",
    ),
    SelfMetric(
        "books_last_balanced_timestamp_seconds",
        Kind.GAUGE,
        (),
        "Time at which the books last explained every live row",
    ),
    SelfMetric(
        "unreadable_rows",
        Kind.GAUGE,
        ("table",),
        "Live rows of the table that cannot be read and are missing from the gauges",
    ),
    SelfMetric(
        "oldest_snapshot_age_seconds",
        Kind.GAUGE,
        ("kind", "holder"),
        "Age of the oldest snapshot held open, which makes folds slower, and who holds it; absent below a minute",
    ),
    SelfMetric("triggers_installed", Kind.GAUGE, ("table",), "Enabled triggers of this exporter on the table"),
    SelfMetric(
        "web_config_failures_total",
        Kind.COUNTER,
        (),
        "Changes of the web configuration, or of a certificate that it names, that could not be applied",
    ),
    SelfMetric("http_responses_total", Kind.COUNTER, ("code",), "Responses to HTTP requests, by status code"),
    SelfMetric(
        "http_connections_dropped_total",
        Kind.COUNTER,
        ("reason",),
        "HTTP connections that were dropped: request_timeout, response_timeout, evicted (the longest idle of too many) "
        "or accept_failed",
    ),
)
SELF_PREFIX = "mfg_notify_"
