"""Journal → totals, in one transaction → ledger.

What a fold means is decided in `core.ledger`, and which part of the journal it need not read in `core.scan_horizon`.
"""

from collections.abc import Callable

import structlog

from mfg_notify.core.fold_pace import FoldPace
from mfg_notify.core.ledger import Fold, Ledger, Outcome
from mfg_notify.core.notify_mode import NotifyMode
from mfg_notify.core.scan_horizon import ScanHorizon
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import DatabaseError
from mfg_notify.exporter.deadline import in_time
from mfg_notify.exporter.health import HealthReporter
from mfg_notify.exporter.metering import EventMeter
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres import journal
from mfg_notify.postgres.connection import Connection

log = structlog.get_logger(__name__)


class Folding:
    """Folds of one session."""

    def __init__(
        self,
        connection: Connection,
        channel: str,
        instance_id: str,
        series_maximum: int,
        ledger: Ledger,
        notify_mode: NotifyMode,
        meter: EventMeter,
        health: HealthReporter,
        telemetry: Telemetry,
        pace: FoldPace,
        clock: Callable[[], float],
        tuning: Tuning,
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._instance_id = instance_id
        self._series_maximum = series_maximum
        self._ledger = ledger
        self._notify_mode = notify_mode
        self._meter = meter
        self._health = health
        self._telemetry = telemetry
        self._pace = pace
        self._clock = clock
        self._tuning = tuning
        self._horizon = ScanHorizon()
        self._full_scan_due = clock()

    @property
    def folded_up_to(self) -> int:
        """The id up to which the journal holds nothing, as far as it is known."""
        return self._horizon.folded_up_to

    def lead(self) -> None:
        """Forget what was known of the triggers' mode and of the journal: another exporter may have led meanwhile.

        It may have disabled and enabled NOTIFY, so that a writer from before is still silent; and the database may have
        been rewound under it, so that ids are handed out a second time.
        """
        self._notify_mode.invalidate()
        self._horizon.reset()

    async def fold(self) -> Fold | None:
        """Fold one chunk and switch the triggers' notify mode if need be. Return None if the lease is lost.

        Raise `DatabaseError` if the connection breaks; the outcome of the COMMIT is unknown then. The reply must be
        passed to `settle`.
        """
        number = self._ledger.begin_fold()
        started = self._clock()
        # A full scan during reconciliation is the safety net for the scan horizon. It visits every row that was folded
        # while somebody holds a snapshot open, so it is made the more rarely the longer it takes.
        full_scan = self._ledger.reconciling and started >= self._full_scan_due
        after = -1 if full_scan else self._horizon.folded_up_to
        try:
            fold = await in_time(self._pace.timeout, self._fold_and_set_notify_mode(number, after))
        except DatabaseError:
            self._pace.failed(self._clock() - started)
            raise
        ended = self._clock()
        if full_scan:
            self._full_scan_due = ended + (ended - started) / self._tuning.full_scan_share
        if fold is not None:
            self._ledger.prove_lead(started)
            self._pace.answered(ended - started)
            self._notify_mode.folded(fold.xid, fold.xmin)
            self._horizon.folded(fold.xid, fold.xmin, drained=fold.drained, last_id=fold.last_id)
        return fold

    async def settle(self, fold: Fold) -> Outcome:
        """Settle a committed fold; read the totals first if it does not follow the last one that is known."""
        outcome = self._ledger.settle(fold)
        rewound, restarted = outcome.rewound, outcome.restarted
        if outcome.needs_totals:
            reading = journal.read_totals(self._connection, self._series_maximum)
            outcome = self._ledger.resync(await in_time(self._tuning.snapshot_timeout, reading))
        if rewound or outcome.rewound:
            self._health.report_rewind()
            self._horizon.reset()
        elif restarted or outcome.restarted:
            log.warning("the triggers were installed anew: all totals start again")
            self._horizon.reset()
        self._telemetry.events_replayed.inc(outcome.replayed)
        self._meter.record(outcome.news)
        if fold.malformed:
            self._telemetry.events_rejected.labels("malformed").inc(fold.malformed)
        if outcome.unconfirmed:
            self._health.report_unconfirmed(outcome.unconfirmed)
        if outcome.drained:
            self._telemetry.fold_last_success.set_to_current_time()
        return outcome

    async def follow(self) -> None:
        """Read the totals of the exporter that leads: what it shows must not be lost if this one takes over."""
        tuning, heard = self._tuning, self._ledger.heard()
        reading = journal.follow(self._connection, self._series_maximum, heard, tuning.unheard_ids)
        if self._ledger.follow(*await in_time(tuning.snapshot_timeout, reading)):
            self._health.report_rewind()

    async def _fold_and_set_notify_mode(self, number: int, after: int) -> Fold | None:
        mode = self._notify_mode
        disable_notify = mode.needs_update and mode.wants_polling
        if mode.needs_update and not disable_notify:
            await journal.enable_notify(self._connection)
            mode.record_applied(polling=False)
        fold = await journal.fold(
            self._connection,
            self._instance_id,
            self._channel,
            self._pace.chunk,
            number=number,
            parts=self._tuning.fold_parts,
            after=after,
            disable_notify=disable_notify,
        )
        if disable_notify and fold is not None:
            mode.record_applied(polling=True)
        self._telemetry.polling.set(mode.polling)
        return fold
