"""Owns the dashboard row about the exporter itself: connection, lease, triggers, journal, delays and corrections.

The row is collapsed. Not needed at run time.
"""

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.models import common as styles

from mfg_notify.dashboards import panels
from mfg_notify.dashboards.panels import GREEN, ORANGE, RED, YELLOW, Frame, Panel, now, query
from mfg_notify.dashboards.selectors import RANGE, RATE, Scope

NO_EXPORTER = "No exporter answers, or Prometheus scrapes none"


def exporter_health_row(scope: Scope, y: int) -> Row:
    """Return the collapsed row with its panels; `y` is its place, `scope` selects the exporter's job."""
    row = panels.row("Exporter Health", y)
    for panel in _panels(scope, y + 1):
        row = row.with_panel(panel)
    return row


def _panels(scope: Scope, y: int) -> Iterator[Panel]:
    delay = scope.own("event_delay_seconds", "bucket")
    upper, middle, lower = y, y + 5, y + 13
    backlog = panels.lines(
        Frame(
            "Journal Backlog",
            "Events that wait in the journal, and the age of the oldest. The exporter folds them within two seconds.",
            NO_EXPORTER,
            at=(8, middle, 8, 8),
        ),
        query(f"max({scope.own('journal_rows')})", "Events"),
        query(f"max({scope.own('journal_oldest_age_seconds')})", "Oldest"),
    )
    yield panels.single(
        Frame(
            "Database",
            "Whether an exporter answers, and whether both its connections to the database work.",
            NO_EXPORTER,
            at=(0, upper, 4, 5),
        ),
        now(f"min({scope.own('connected')}) or 0 * max({scope.target('up')} == 0) - 1"),
    ).mappings(
        panels.value_mappings(
            {"-1": ("No exporter answers", RED), "0": ("Not connected", RED), "1": ("Connected", GREEN)}
        )
    )
    yield panels.single(
        Frame(
            "Active Exporters",
            "Exporters that hold the lease and count events. There should be exactly one; the others are standbys.",
            NO_EXPORTER,
            at=(4, upper, 4, 5),
            steps=((None, RED), (1, GREEN), (2, ORANGE)),
        ),
        now(f"sum({scope.own('leader')}) or 0 * max({scope.target('up')} == 0)"),
    )
    yield panels.single(
        Frame(
            "Triggers",
            "Enabled triggers on the three tables of the game. Twelve are needed.",
            NO_EXPORTER,
            at=(8, upper, 4, 5),
            steps=((None, RED), (12, GREEN)),
        ),
        now(f"sum(max by (table) ({scope.own('triggers_installed')}))"),
    )
    yield panels.single(
        Frame(
            "Gauges Last Read",
            "Time since the last reconciliation of the gauges with the live rows. Half a minute is normal.",
            NO_EXPORTER,
            at=(12, upper, 4, 5),
            unit=panels.SECONDS,
            decimals=0,
            steps=((None, GREEN), (90, YELLOW), (300, RED)),
        ),
        now(f"time() - max({scope.own('reconcile_last_success_timestamp_seconds')})"),
    )
    yield panels.single(
        Frame(
            "Lost Changes",
            "Changed rows that the triggers gave up in the selected time range rather than fail or delay the game. "
            "The counters lack them.",
            "Prometheus scrapes no exporter, or the exporter has not asked the database yet",
            at=(16, upper, 4, 5),
            steps=((None, GREEN), (1, RED)),
            decimals=0,
        ),
        now(f"max(increase({scope.own('lost_changes_total')}{RANGE}))"),
    )
    yield panels.single(
        Frame(
            "Notification Queue",
            "How full the server's notification queue is. The triggers stop notifying at a quarter.",
            NO_EXPORTER,
            at=(20, upper, 4, 5),
            unit="percentunit",
            steps=((None, GREEN), (0.1, YELLOW), (0.4, RED)),
        ),
        now(f"max({scope.own('notification_queue_usage_ratio')})"),
    )
    yield panels.lines(
        Frame(
            "Event Delay",
            "Time from the write in the database until the exporter has counted the event.",
            "No event came in this time range",
            at=(0, middle, 8, 8),
            unit=panels.SECONDS,
        ),
        *(
            query(f"histogram_quantile({quantile}, sum by (le) (rate({delay}{RATE})))", name)
            for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ),
    )
    yield panels.restyle(backlog, "/Oldest/", {"unit": "s", "custom.axisPlacement": "right"})
    yield panels.lines(
        Frame(
            "Events Counted",
            "Change events per second, by table and operation.",
            "No event came yet",
            at=(16, middle, 8, 8),
            unit="count:/s",
        ),
        query(f"sum by (table, op) (rate({scope.own('events_applied_total')}{RATE}))", "{{table}} {{op}}"),
        stack=styles.StackingMode.NORMAL,
    )
    yield panels.lines(
        Frame(
            "Time of the Exporter's Work",
            "95th percentile of the time that the exporter takes to read the live rows, to fold the journal, and to "
            "receive its own ping through NOTIFY.",
            NO_EXPORTER,
            at=(0, lower, 8, 8),
            unit=panels.SECONDS,
        ),
        *(
            query(f"histogram_quantile(0.95, sum by (le) (rate({scope.own(name, 'bucket')}{RATE})))", work)
            for name, work in (
                ("reconcile_duration_seconds", "Reading"),
                ("fold_duration_seconds", "Folding"),
                ("listener_roundtrip_seconds", "Ping"),
            )
        ),
    )
    yield panels.events(
        Frame(
            "Corrections and Trouble",
            "What should not happen: gauges that a reconciliation had to correct, rejected events, reconnects, and "
            "rows that were changed without an event.",
            "Nothing of the kind happened in this time range",
            at=(8, lower, 8, 8),
        ),
        query(
            f"sum by (metric) (increase({scope.own('reconcile_corrections_total')}{RATE})) > 0",
            "corrected {{metric}}",
        ),
        query(f"sum by (reason) (increase({scope.own('events_rejected_total')}{RATE})) > 0", "rejected: {{reason}}"),
        query(f"sum by (reason) (increase({scope.own('reconnects_total')}{RATE})) > 0", "reconnected: {{reason}}"),
        query(
            f"max by (table) (increase({scope.own('unrecorded_changes_total')}{RATE})) > 0",
            "changed without an event: {{table}}",
        ),
    )
    yield panels.lines(
        Frame(
            "Series",
            "Series of the game that the exporter exposes, and series that the limit (--max-series) left out.",
            NO_EXPORTER,
            at=(16, lower, 8, 8),
        ),
        query(f"max({scope.own('series')})", "Exposed"),
        query(f"max({scope.own('series_dropped')})", "Left out"),
    )
