"""Snapshot of the live rows → ledger; and the database's health, which is read with it.

Owns how long a snapshot may take and how the game's ships are read. When the snapshot may replace the live rows is
decided in `core.ledger`.
"""

from collections.abc import Awaitable, Callable

from mfg_notify.core.ledger import Ledger
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import SchemaNotReady
from mfg_notify.exporter.deadline import in_time
from mfg_notify.exporter.health import HealthReporter
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres import books, journal, players, progress, snapshot
from mfg_notify.postgres.connection import Connection
from mfg_notify.postgres.installation import Installation, check_installation


class Reconciling:
    """Reconciliations of one session."""

    def __init__(
        self,
        connection: Connection,
        installation: Installation,
        schema: str,
        ledger: Ledger,
        health: HealthReporter,
        telemetry: Telemetry,
        instance_id: str,
        keep_lead: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        tuning: Tuning,
        *,
        board: bool,
    ) -> None:
        self._connection = connection
        self._installation = installation
        self._schema = schema
        self._board = board
        self._ledger = ledger
        self._health = health
        self._telemetry = telemetry
        self._instance_id = instance_id
        self._keep_lead = keep_lead
        self._factories_due = clock()
        self._clock = clock
        self._tuning = tuning
        self._timeout = tuning.snapshot_timeout
        """For the next snapshot: long at first, then a few times what the last one took."""
        self._ships_query: snapshot.ShipsQuery | None = None
        self.problem: str | None = None
        """What is wrong with the database although everything works; it keeps the exporter from being ready."""

    async def take_snapshot(self, folded_up_to: int) -> float:
        """Read the live rows, the books and the health of the database. Return how many seconds it took.

        The journal holds nothing up to the id `folded_up_to`.

        Raise `SchemaNotReady` or `SchemaTooNew` if the game has changed its tables or someone has upgraded or removed
        ours, `DatabaseError` for anything else.
        """
        started = self._clock()
        self._ledger.begin_reconciliation()
        timeout = self._timeout
        installation = await in_time(self._tuning.answer_timeout, check_installation(self._connection, self._schema))
        known = self._installation
        if (installation.channel, installation.notify) != (known.channel, known.notify):
            raise SchemaNotReady("mfg_notify.settings has changed; connecting again")
        try:
            reading = await in_time(timeout, snapshot.read_snapshot(self._connection, self._schema))
        except SchemaNotReady:
            # The game may have changed its tables since the check: that says in plain words what is missing.
            await in_time(self._tuning.answer_timeout, check_installation(self._connection, self._schema))
            raise
        self._ships_query = reading.ships_query
        self._ledger.reconcile(reading.snapshot)
        self._health.report_unreadable(reading.unreadable)
        # While somebody holds a snapshot open, each of these may take seconds.
        await self._keep_lead()
        found = await in_time(timeout, players.read_players(self._connection, self._schema))
        self._ledger.set_players(found.players)
        errors = dict(found.errors)
        if reading.ships_error is not None:
            errors["ships"] = reading.ships_error
        if self._board:
            await self._keep_lead()
            progressing = await in_time(timeout, progress.read_progress(self._connection, self._schema))
            self._ledger.set_progress(progressing.progress)
            if progressing.error is not None:
                errors["progress of pipelines, for the board"] = progressing.error
        self._health.report_optional_tables(errors)
        await self._keep_lead()
        await self._check_books(folded_up_to)
        await self._keep_lead()
        await in_time(self._tuning.answer_timeout, journal.prune(self._connection))
        health = await in_time(timeout, snapshot.read_health(self._connection, self._schema))
        self.problem = self._health.report(health)
        duration = self._clock() - started
        self._timeout = max(self._tuning.answer_timeout, 5 * duration)
        self._telemetry.reconcile_duration.observe(duration)
        return duration

    async def _check_books(self, folded_up_to: int) -> None:
        """Check that books and journal explain the live rows; enter a difference, so that it is counted once.

        The table of factories is read whole, so it is read the more rarely the longer that takes.
        """
        started = self._clock()
        factories = started >= self._factories_due
        checking = books.check(
            self._connection,
            self._schema,
            after=folded_up_to,
            journal_maximum=self._tuning.books_journal_maximum,
            factories=factories,
            totals=False,
            statement_timeout=self._tuning.books_timeout,
        )
        found = await in_time(self._tuning.snapshot_timeout, checking)
        if factories:
            ended = self._clock()
            self._factories_due = ended + (ended - started) / self._tuning.factory_count_share
        if found is not None and found.unknown_versions:
            found = None
        carrying = books.carry_forward(self._connection, self._instance_id, found)
        entered = await in_time(self._tuning.answer_timeout, carrying)
        if found is not None:
            self._health.report_books(found, entered.unrecorded)

    def finish(self) -> bool:
        """Swap the live rows if everything that the snapshot shows has been applied. Return whether it was done."""
        corrections = self._ledger.finish_reconciliation()
        if corrections is None:
            return False
        self._health.report_corrections(corrections)
        self._telemetry.reconcile_last_success.set_to_current_time()
        return True

    async def refresh_ships(self) -> None:
        """Read the game's ships again: no trigger reports them, and a fold has brought changes."""
        if self._ships_query is not None:
            reading = snapshot.read_ships(self._connection, self._ships_query)
            self._ledger.set_ships(await in_time(self._tuning.answer_timeout, reading))
