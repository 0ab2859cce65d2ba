"""What the exporter reports about the database's health: metrics, and one log line per change.

Lives as long as the exporter, so that a new session does not repeat what the log already says.
"""

from collections import Counter
from collections.abc import Mapping

import structlog

from mfg_notify.core.books import TABLES, changed_rows, describe_differences
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.tuning import Tuning
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres.books import Reading
from mfg_notify.postgres.installation import TRIGGERS_PER_TABLE, Whereabouts
from mfg_notify.postgres.snapshot import Health, SnapshotHolder

log = structlog.get_logger(__name__)


class HealthReporter:
    """Exports health and warns of what has changed since the last report."""

    def __init__(self, telemetry: Telemetry, tuning: Tuning) -> None:
        self._telemetry = telemetry
        self._tuning = tuning
        self._triggers: dict[str, int] = {}
        self._unreadable: dict[str, int] = {}
        self._optional_errors: Mapping[str, str] = {}
        self._newer_version_reported = False
        self._whereabouts: Whereabouts | None = None
        self._snapshot_held_by: tuple[str, str] | None = None
        self._snapshot_first_seen = 0
        """When this holder was first seen, by the database's clock in epoch microseconds."""
        self._snapshot_reported = False
        self._unconfirmed_reported = False
        self._unconfirmed_since_reconciliation = False

    def report_whereabouts(self, found: Whereabouts) -> None:
        """Say that this is another server, another timeline or another database than before, if it is."""
        known, self._whereabouts = self._whereabouts, found
        if known is None or known == found:
            return
        if known.system_identifier != found.system_identifier:
            log.warning("this is another server: its system identifier differs")
        elif known.timeline != found.timeline:
            log.warning(
                "the server has changed its timeline: it was promoted, or restored to a point in time",
                before=known.timeline,
                now=found.timeline,
            )
        else:
            log.warning("this is another database of the same name: restored, copied or renamed")

    def report_rewind(self) -> None:
        """Count a rewind of the database."""
        log.error(
            "the database was set back: an older copy was restored or has taken its place, or a failover lost commits; "
            "counters stand still until the truth has caught up"
        )
        self._telemetry.rewinds.inc()

    def report(self, health: Health) -> str | None:
        """Export the health of the database. Return what keeps the exporter from being ready, if anything does."""
        self._telemetry.journal_rows.set(health.journal_rows)
        self._telemetry.journal_oldest_age.set(health.journal_oldest_age)
        self._telemetry.queue_usage.set(health.queue_usage)
        self._report_lost(health.lost_changes)
        self._report_triggers(health.triggers)
        self._report_oldest_snapshot(health.oldest_snapshot, health.clock)
        return self._report_newer_version(health.unknown_versions)

    def _report_lost(self, lost: int) -> None:
        known = self._telemetry.lost_changes or 0
        if lost > known:
            log.warning("the triggers could not record some changes of the game", changes=lost)
        self._telemetry.lost_changes = max(lost, known)

    def _report_triggers(self, enabled: dict[str, int]) -> None:
        for table, count in enabled.items():
            known = self._triggers.get(table, TRIGGERS_PER_TABLE)
            if count < TRIGGERS_PER_TABLE and known != count:
                log.error("triggers are missing or disabled; run `mfg-notify migrate up`", table=table, enabled=count)
            elif count == TRIGGERS_PER_TABLE and known != count:
                log.info("all triggers are enabled again", table=table)
            self._triggers[table] = count
            self._telemetry.triggers_installed.labels(table).set(count)

    def _report_oldest_snapshot(self, holder: SnapshotHolder | None, clock: int) -> None:
        self._telemetry.oldest_snapshot_age.clear()
        held_by = None if holder is None else (holder.kind, holder.name)
        if held_by != self._snapshot_held_by or clock < self._snapshot_first_seen:
            if self._snapshot_reported:
                log.info("the old snapshot is no longer held")
            self._snapshot_held_by, self._snapshot_first_seen, self._snapshot_reported = held_by, clock, False
        if holder is None:
            return
        # Without pg_read_all_stats this role does not see when other sessions began.
        seen_for = (clock - self._snapshot_first_seen) / MICROSECONDS_PER_SECOND
        age = holder.seconds if holder.seconds is not None else seen_for
        if age >= self._tuning.old_snapshot_age:
            self._telemetry.oldest_snapshot_age.labels(holder.kind, holder.name).set(age)
        if age >= self._tuning.old_snapshot_warning and not self._snapshot_reported:
            log.warning(
                "a snapshot has been held for minutes: dead rows cannot be removed, so folds become slower and rarer",
                holder=str(holder),
                seconds=round(age),
            )
            self._snapshot_reported = True

    def report_books(self, found: Reading, unrecorded: Mapping[str, int]) -> None:
        """Export what a check of the books has found, and how many rows were changed without an event so far."""
        rows = changed_rows(found.differences)
        for source in found.sources:
            self._telemetry.imbalance_rows.labels(TABLES[source]).set(rows[source])
            if rows[source]:
                log.warning(
                    "rows were changed without an event; the counters lack what it meant. `mfg-notify doctor` shows "
                    "whether all triggers are enabled",
                    table=TABLES[source],
                    rows=rows[source],
                    accounts=describe_differences(
                        [difference for difference in found.differences if difference.account[0] == source]
                    ),
                )
        for source, table in TABLES.items():
            known = self._telemetry.unrecorded_changes.get(table, 0)
            self._telemetry.unrecorded_changes[table] = max(unrecorded.get(source, 0), known)
        if not any(rows.values()):
            self._telemetry.books_last_balanced.set_to_current_time()

    def report_unreadable(self, rows: Mapping[str, int]) -> None:
        """Export how many live rows of each table the gauges lack; warn if there are more than at the last report."""
        for table, count in rows.items():
            if count > self._unreadable.get(table, 0):
                log.warning(
                    "live rows cannot be read and are missing from the gauges; `mfg-notify doctor` names them",
                    table=table,
                    rows=count,
                )
            self._telemetry.unreadable_rows.labels(table).set(count)
        self._unreadable = dict(rows)

    def report_optional_tables(self, errors: Mapping[str, str]) -> None:
        """Warn once of each optional table that cannot be read, and say when it can be again.

        `errors` are the names of the errors by table.
        """
        for table, error in errors.items():
            if table not in self._optional_errors:
                log.warning("an optional table cannot be read; what it adds is left out", table=table, error=error)
        for table in self._optional_errors.keys() - errors.keys():
            log.info("an optional table can be read again", table=table)
        self._optional_errors = errors

    def _report_newer_version(self, events: int) -> str | None:
        if events and not self._newer_version_reported:
            log.error("events are of a newer version; upgrade mfg-notify", events=events)
        self._newer_version_reported = bool(events)
        return f"{events} events are of a newer version; upgrade mfg-notify" if events else None

    def report_unconfirmed(self, events: int) -> None:
        """Count announced events that the journal does not have.

        Rate-limited: anyone who knows the channel name could flood the log. Warns again only after a reconciliation
        without such events.
        """
        if not self._unconfirmed_reported:
            log.warning("notifications without an event: forged, or lost in a crash of the server", events=events)
        self._unconfirmed_reported = self._unconfirmed_since_reconciliation = True
        self._telemetry.events_rejected.labels("unconfirmed").inc(events)

    def report_corrections(self, corrections: Counter[str]) -> None:
        """Count the gauges that a reconciliation has corrected."""
        for name, number in corrections.items():
            self._telemetry.reconcile_corrections.labels(name).inc(number)
        if corrections:
            log.warning("the gauges were wrong: events were missed", **corrections)
        self._unconfirmed_reported = self._unconfirmed_since_reconciliation
        self._unconfirmed_since_reconciliation = False
