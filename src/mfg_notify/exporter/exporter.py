"""The exporter: serves HTTP, keeps a session with the database alive, and stops in order."""

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import anyio
import structlog
from anyio.abc import TaskStatus
from starlette.middleware import Middleware
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from mfg_notify import __version__
from mfg_notify.core.board import BoardSnapshot, build_game, describe_change, last_activity, name_players
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.fold_pace import FoldPace
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.series import View
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import DatabaseError, ListenerSilent, NoAnswer
from mfg_notify.exporter.health import HealthReporter
from mfg_notify.exporter.market_reader import MarketReader
from mfg_notify.exporter.session import Services, Session
from mfg_notify.exporter.settings import Settings
from mfg_notify.exporter.status import State, Status
from mfg_notify.exposition import Page, facts
from mfg_notify.postgres.connection import complete_conninfo
from mfg_notify.postgres.servers import Servers
from mfg_notify.web import server
from mfg_notify.web.access import BasicAuthMiddleware
from mfg_notify.web.application import make_application
from mfg_notify.web.board import Board

log = structlog.get_logger(__name__)


class Exporter:
    """One exporter. `run` it in an event loop; `stop` ends it after a last fold. `clock` returns monotonic seconds."""

    def __init__(
        self, settings: Settings, clock: Callable[[], float] = time.monotonic, tuning: Tuning | None = None
    ) -> None:
        tuning = tuning or Tuning()
        servers = Servers(complete_conninfo(settings.dsn))
        # Until the database's clock is known, this machine's stands in for it.
        clock_offset = time.time_ns() // 1000 - round(clock() * MICROSECONDS_PER_SECOND)
        self._settings = settings
        self._clock = clock
        self.ledger = Ledger(clock, clock_offset, tuning)
        self.page = Page(self.exposed_view, self.ledger.now, settings.series_maximum)
        self.telemetry = self.page.telemetry
        self._status = Status(self.telemetry)
        self._market_reader = MarketReader(servers, settings.schema, self._status, tuning.market_timeout)
        self._services = Services(
            settings=settings,
            servers=servers,
            instance_id=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
            clock=clock,
            tuning=tuning,
            ledger=self.ledger,
            status=self._status,
            telemetry=self.telemetry,
            health=HealthReporter(self.telemetry, tuning),
            fold_pace=FoldPace(tuning),
            market_reader=self._market_reader,
        )
        self._session: Session | None = None
        self._stopping = False
        self._connecting: anyio.CancelScope | None = None

    # --------------------------------------------------------------------------------------------- what it shows --

    @property
    def state(self) -> State:
        """The state at this moment."""
        return self._status.state

    async def wait_until(self, condition: Callable[[State], bool]) -> State:
        """Wait until the state meets the condition, and return it."""
        return await self._status.wait_until(condition)

    def readiness(self) -> tuple[bool, str]:
        """Return whether the exporter is ready, and its state in a few words."""
        return self.state.ready, self.state.status_text

    def exposed_view(self) -> View | None:
        """Return everything that a scrape shows of the game; None while there is nothing exact to show.

        None also while this exporter cannot prove that it leads: another may show the same series, and sums would
        count the game twice.
        """
        view = self.ledger.view() if self.ledger.proves_lead else None
        return None if view is None else replace(view, market=self._market_reader.market)

    def board_snapshot(self) -> BoardSnapshot:
        """Return what the board shows now."""
        live = self.state.connected and self.state.leader and self.state.reconciled
        view = self.ledger.view()
        snapshot = BoardSnapshot(
            version=__version__,
            state="live" if live else "standby" if self.state.standby else "waiting",
            ready=self.state.ready,
            status_text=self.state.status_text,
            known_at=None if live else self.ledger.current_at,
            active_at=None if view is None else last_activity(view),
            game=None if view is None else build_game(view, self.ledger.now(), self.ledger.runs()),
            changes=[describe_change(event) for event in self.ledger.last_changes()],
            exporter=facts(self.telemetry),
        )
        return name_players(snapshot, {} if view is None else view.players.names)

    # ---------------------------------------------------------------------------------------------- what it does --

    async def run(self, sockets: Sequence[socket.socket] = (), *, handle_signals: bool = False) -> None:
        """Export until `stop` is called, serving HTTP on the given sockets. Reconnects for as long as it runs."""
        board = Board(self.board_snapshot, self.ledger.row_details, self._clock, self._settings.grafana_url)
        access = self._settings.access
        application = make_application(
            self.page,
            self.readiness,
            self._settings.telemetry_path,
            board if self._settings.board else None,
            [] if access is None else [Middleware(BasicAuthMiddleware, access)],
            self._settings.limits,
        )
        if access is not None:
            access.on_failure = self.telemetry.web_config_failures.inc
            # A viewer admitted under the old rules may have no right under the new ones.
            access.on_change = board.end_streams
        serving = server.Server(
            application,
            access,
            self._settings.limits,
            count_response=lambda status: self.telemetry.http_responses.labels(status).inc(),
            count_dropped=lambda reason: self.telemetry.http_connections_dropped.labels(reason).inc(),
        )
        async with anyio.create_task_group() as tasks:
            if handle_signals:
                # Install signal handlers before the first log line, which supervisors may take as readiness.
                await tasks.start(self._stop_on_signal)
            if sockets:
                tasks.start_soon(serving.serve, list(sockets))
                await serving.started_serving.wait()
                await self._status.update(serving=True)
                for listening in sockets:
                    address = server.address_of(listening, access.scheme if access else "http")
                    log.info("serving", address=address, version=__version__)
            await self._keep_connected()
            board.close()
            serving.should_exit = True
            tasks.cancel_scope.deadline = anyio.current_time() + server.GRACE + 0.5
            if handle_signals and not sockets:
                tasks.cancel_scope.cancel()
        log.info("stopped")

    def stop(self) -> None:
        """Fold once more, release the lease, and end."""
        self._stopping = True
        if self._session is not None:
            self._session.stop()
        if self._connecting is not None:
            # Give up connecting at once; a session has a last fold to do, if the database answers soon.
            timeout = self._services.tuning.final_fold_timeout if self._session is not None else 0.0
            self._connecting.deadline = anyio.current_time() + timeout

    async def _stop_on_signal(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                await self._status.update(stopping=True)
                self.stop()
                return

    async def _keep_connected(self) -> None:
        """Run one session after another until `stop`; back off while none gets to work."""

        async def report(attempt: RetryCallState) -> None:
            error = attempt.outcome.exception() if attempt.outcome is not None else None
            if isinstance(error, DatabaseError):
                await self._status.report_error(error)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(DatabaseError),
            wait=wait_random_exponential(multiplier=0.1, max=self._services.tuning.retry_maximum),
            before_sleep=report,
        )
        with anyio.CancelScope() as self._connecting:
            while not self._stopping:
                await retrying(self._run_session)

    async def _run_session(self) -> None:
        """Open a session and run it. Raise `DatabaseError` if it did not get to work."""
        session = self._session = await Session.open(self._services)
        error: DatabaseError | None = None
        try:
            await session.run()
        except* DatabaseError as group:
            error = _first(group)
            if group.subgroup((NoAnswer, ListenerSilent)) is not None:
                # It may be a primary that nobody follows any more: it accepts sessions, and no COMMIT.
                self._services.servers.avoid(session.server)
        finally:
            self._session = None
            await session.close()
            self.ledger.disconnect()
            await self._status.update(connected=False, leader=False, standby=False)
        if error is not None and not self._stopping:
            self.telemetry.reconnects.labels(error.reason).inc()
            if not session.has_worked:
                raise error
            await self._status.report_error(error)


def _first(group: BaseExceptionGroup[DatabaseError]) -> DatabaseError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
