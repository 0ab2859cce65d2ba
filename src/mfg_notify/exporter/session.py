"""One session with the database: two connections, and what is due when.

One connection only listens, the other works. The session creates the pieces, hands each what it needs, and runs one
step at a time. Nothing here knows what a step does; when it is due is decided in `core.schedule`.

    open ─▶ heartbeat (every second) ─▶ leader? ─▶ fold until the journal is drained ─▶ snapshot ─▶ fold ─▶ barrier ─▶
    swap the live rows; then folds as notifications ask for them, and a snapshot every reconciliation interval
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import anyio
import structlog

from mfg_notify.core.fold_pace import FoldPace
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.notify_mode import NotifyMode, Policy
from mfg_notify.core.schedule import Schedule, Situation, Step
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import DatabaseError, DatabaseUnavailable, NoAnswer
from mfg_notify.exporter.deadline import in_time
from mfg_notify.exporter.folding import Folding
from mfg_notify.exporter.health import HealthReporter
from mfg_notify.exporter.intake import Intake
from mfg_notify.exporter.leadership import Leadership
from mfg_notify.exporter.market_reader import MarketReader
from mfg_notify.exporter.metering import EventMeter
from mfg_notify.exporter.reconciling import Reconciling
from mfg_notify.exporter.settings import Settings
from mfg_notify.exporter.status import Status
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres.connection import Connection, connect, describe, of_same_server
from mfg_notify.postgres.installation import Installation, check_installation, check_same_server, read_whereabouts
from mfg_notify.postgres.listener import Listener
from mfg_notify.postgres.servers import Servers

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """What outlives a session: the exporter's own parts, which every session is given."""

    settings: Settings
    servers: Servers
    instance_id: str
    clock: Callable[[], float]
    tuning: Tuning
    ledger: Ledger
    status: Status
    telemetry: Telemetry
    health: HealthReporter
    fold_pace: FoldPace
    market_reader: MarketReader


class Session:
    """One session. `open` it, `run` it until `stop`, and `close` it."""

    def __init__(
        self,
        services: Services,
        server: str,
        listening: Connection,
        working: Connection,
        listener: Listener,
        installation: Installation,
    ) -> None:
        clock, tuning = services.clock, services.tuning
        ledger, status, telemetry = services.ledger, services.status, services.telemetry
        policy = services.settings.notify if installation.notify else Policy.NEVER
        self.server = server
        """The one of the servers that it is connected to."""
        self._connections = (listening, working)
        self._clock = clock
        self._services = services
        self._listener = listener
        self._may_notify = installation.notify
        self._stopping = False
        self._woken = anyio.Event()
        self.has_worked = False
        """It has come as far as exporting or standing by."""
        self._notify_mode = NotifyMode(policy, clock(), tuning)
        self._schedule = Schedule(services.settings.reconcile_interval, clock(), tuning)
        meter = EventMeter(ledger, self._notify_mode, telemetry, clock)
        self._leadership = Leadership(
            working,
            listener,
            installation.channel,
            services.instance_id,
            ledger,
            self._notify_mode,
            status,
            services.health,
            telemetry,
            clock,
            tuning,
        )
        self._intake = Intake(
            listener,
            installation.backend_pid,
            ledger,
            self._schedule,
            self._notify_mode,
            self._leadership,
            meter,
            telemetry,
            clock,
            tuning,
            self.wake,
        )
        self._folding = Folding(
            working,
            installation.channel,
            services.instance_id,
            services.settings.series_maximum,
            ledger,
            self._notify_mode,
            meter,
            services.health,
            telemetry,
            services.fold_pace,
            clock,
            tuning,
        )
        self._reconciling = Reconciling(
            working,
            installation,
            services.settings.schema,
            ledger,
            services.health,
            telemetry,
            services.instance_id,
            self._keep_lead,
            clock,
            tuning,
            board=services.settings.board,
        )

    @classmethod
    async def open(cls, services: Services) -> Self:
        """Connect twice to the first server that works, check the installation, and listen. Raise `DatabaseError`."""
        failures: dict[str, DatabaseError] = {}
        for server in services.servers.in_order():
            try:
                session = await cls._open(services, server)
            except DatabaseError as error:
                failures[describe(server)] = error
                if isinstance(error, NoAnswer):
                    services.servers.avoid(server)
            else:
                services.servers.prefer(server)
                return session
        errors = list(failures.values())
        # That a server is no primary says less than that one misses something.
        worst = next((error for error in errors if not isinstance(error, DatabaseUnavailable)), errors[0])
        if len(errors) == 1:
            raise worst
        raise type(worst)("; ".join(f"{server}: {error}" for server, error in failures.items())) from worst

    @classmethod
    async def _open(cls, services: Services, server: str) -> Self:
        timeout = services.tuning.open_timeout
        listening = await in_time(timeout, connect(server))
        try:
            working = await in_time(timeout, connect(of_same_server(server, listening)))
            try:
                return await in_time(timeout, cls._check_and_listen(services, server, listening, working))
            except BaseException:
                await working.close()
                raise
        except BaseException:
            await listening.close()
            raise

    @classmethod
    async def _check_and_listen(
        cls, services: Services, server: str, listening: Connection, working: Connection
    ) -> Self:
        await check_same_server(listening, working)
        installation = await check_installation(working, services.settings.schema)
        whereabouts = await read_whereabouts(working)
        services.health.report_whereabouts(whereabouts)
        services.ledger.attach(installation.channel, whereabouts)
        listener = Listener(listening, installation.backend_pid, services.tuning.waiting_maximum)
        await listener.listen(installation.channel)
        return cls(services, server, listening, working, listener, installation)

    async def close(self) -> None:
        """Close both connections."""
        for connection in self._connections:
            await connection.close()

    def wake(self) -> None:
        """Wake up the loop: something may be due."""
        self._woken.set()

    def stop(self) -> None:
        """End `run` after a last fold."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Serve until `stop`. Raise `DatabaseError` (in an exception group) if a connection breaks."""
        await self._services.status.update(connected=True)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listener.pump, self._intake.on_arrival)
                tasks.start_soon(self._watch_pings)
                if (interval := self._services.settings.market_interval) is not None:
                    tasks.start_soon(self._services.market_reader.run, interval)
                await self._work()
                tasks.cancel_scope.cancel()
        finally:
            # A server that dies may have sent more while a step was under way: another exporter may have shown it.
            self._intake.drain()

    async def _watch_pings(self) -> None:
        while True:
            await anyio.sleep(self._services.tuning.heartbeat_interval / 2)
            self._leadership.check_ping()

    async def _work(self) -> None:
        """Do what is due, one step at a time."""
        while not self._stopping:
            self._woken = anyio.Event()
            self._intake.drain()
            if self._reconciling.finish():
                await self._report_reconciled()
            match self._schedule.next_step(self._clock(), self._situation()):
                case Step.HEARTBEAT:
                    await self._heartbeat()
                case Step.SNAPSHOT:
                    duration = await self._reconciling.take_snapshot(self._folding.folded_up_to)
                    self._schedule.snapshot_ends(self._clock(), duration)
                case Step.FOLD:
                    await self._fold()
                case Step.FOLLOW:
                    started = self._clock()
                    with self._intake.count_on_arrival():
                        await self._folding.follow()
                    self._schedule.followed(self._clock(), self._clock() - started)
                case None:
                    delay = self._schedule.delay(self._clock(), self._situation())
                    with self._intake.count_on_arrival(), anyio.move_on_after(delay):
                        await self._woken.wait()
        await self._finish()

    def _situation(self) -> Situation:
        ledger = self._services.ledger
        return Situation(ledger.leading, ledger.drained, ledger.reconciling, ledger.needs_snapshot, ledger.presentable)

    async def _heartbeat(self) -> None:
        self._schedule.heartbeat_begins(self._clock())
        if await self._leadership.acquire():
            self._schedule.lead(self._clock())
            self._folding.lead()
        await self._leadership.heartbeat()
        if self._services.status.state.standby:
            self._report_working()

    async def _keep_lead(self) -> None:
        """Send the heartbeat that has become due in the middle of a step: it proves that this exporter leads."""
        self._intake.drain()
        if self._schedule.next_step(self._clock(), self._situation()) is Step.HEARTBEAT:
            await self._heartbeat()

    async def _fold(self) -> bool:
        """Fold one chunk. Return whether that was the last for now."""
        status, started = self._services.status, self._clock()
        self._schedule.fold_begins()
        with self._intake.count_on_arrival():
            fold = await self._folding.fold()
        if fold is None:
            await self._leadership.step_down()
            return True
        outcome = await self._folding.settle(fold)
        if outcome.drained and fold.events:
            await self._reconciling.refresh_ships()
        ended = self._clock()
        duration = ended - started
        self._services.telemetry.fold_duration.observe(duration)
        if outcome.settled:
            self._services.fold_pace.settled(ended, duration, len(fold.events))
        sleeps = self._notify_mode.may_sleep
        delay = self._services.settings.reconcile_interval if sleeps else self._notify_mode.poll_delay(duration)
        self._schedule.fold_ends(
            self._clock(),
            settled=outcome.settled,
            empty=not fold.events,
            poll_delay=delay,
            pause=self._services.fold_pace.pause,
        )
        await status.update(folds=status.state.folds + 1, drained=self._services.ledger.drained)
        return outcome.settled

    async def _report_reconciled(self) -> None:
        status = self._services.status
        await status.update(reconciled=True, reconciles=status.state.reconciles + 1, problem=self._reconciling.problem)
        self._report_working()

    def _report_working(self) -> None:
        if not self.has_worked:
            self.has_worked = True
            log.info("connected", database=describe(self.server), notify=self._may_notify)

    async def _finish(self) -> None:
        """Fold what is there and hand over the lease, if the database answers soon."""
        if not self._services.ledger.leading:
            return
        try:
            self._notify_mode.prepare_stop()
            while not await self._fold():
                pass
            await self._leadership.release()
        except DatabaseError as error:
            log.warning("the last fold did not happen; the next start does it", error=str(error))
