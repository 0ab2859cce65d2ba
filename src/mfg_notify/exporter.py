"""The exporter: one task group that listens, folds, reconciles, pings and serves; and who is leader.

Owns time and order: what is done when, and what a broken connection means. What is done is in `postgres`, what it
means is in `core`.
"""

import math
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskStatus
from starlette.middleware import Middleware
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from mfg_notify import __version__
from mfg_notify.core.board import BoardSnapshot, LastChanges, build_game, describe_change
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.counters import Arrival, Counters
from mfg_notify.core.events import Event, decode_payload
from mfg_notify.core.live_state import LiveState, RecentActivity
from mfg_notify.core.notify_mode import NotifyMode, Policy
from mfg_notify.core.series import SERIES_MAXIMUM, Market, View
from mfg_notify.core.xmin_horizon import XminHorizon
from mfg_notify.errors import (
    DatabaseError,
    DatabaseUnavailable,
    ListenerSilent,
    MalformedEvent,
    SchemaNotReady,
    SchemaTooNew,
)
from mfg_notify.exposition import Page, facts
from mfg_notify.postgres import journal, market, migrations, snapshot
from mfg_notify.postgres.connection import Connection, complete_conninfo, connect, describe, translated_errors
from mfg_notify.postgres.listener import FOLD, PING, Listener
from mfg_notify.postgres.queries import QUERY
from mfg_notify.web import server
from mfg_notify.web.access import Access, BasicAuthMiddleware
from mfg_notify.web.application import make_application
from mfg_notify.web.board import Board

FOLD_DELAY = 0.02
"""Seconds from a notification that could not be counted by itself to the fold that it asks for."""
CONFIRM_DELAY = 2.0
"""Seconds from a payload that was counted to the fold that settles it."""
CONFIRM_AT = 250
"""Payloads counted since the last fold that are settled at once: while many are, what comes has to wait."""
EMPTY_REST = 0.25
"""Seconds of rest after a fold that found nothing: whoever knows the channel may ask for folds without end."""
SNAPSHOT_REST = 1.0
"""Seconds of rest after a snapshot that events have asked for, at least."""
TICK_INTERVAL = 1.0
"""Seconds between pings, which are also the beats of the lease."""
SILENCE = 5.0
"""Seconds without an answer, to a ping or to a statement, after which a connection counts as broken."""
OPEN_PATIENCE = 15.0
"""Seconds that connecting and looking at the schema may take."""
SNAPSHOT_PATIENCE = 25.0
"""Seconds that the first snapshot of a connection may take, and reading all totals."""
LAST_FOLD_PATIENCE = 3.0
"""Seconds that stopping waits for the database."""
MARKET_INTERVAL = 60.0
"""Seconds between two readings of the markets, where they are asked for."""
MARKET_PATIENCE = 20.0
"""Seconds that one may take."""
RETRY_CAP = 2.0
"""Seconds between two tries to connect, at most."""

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `mfg-notify run` was asked to do; durations in seconds."""

    dsn: str = ""
    schema: str = "public"
    reconcile_interval: float = 30.0
    telemetry_path: str = "/metrics"
    series_maximum: int = SERIES_MAXIMUM
    market_interval: float | None = None
    """None: the markets are not read."""
    notify: Policy = Policy.ADAPTIVE
    """When the triggers notify; never where the migration has found that they must not."""
    board: bool = True
    """Show the live board at /."""
    access: Access | None = None
    """Who may ask, and over what; None: everyone, over HTTP."""


@dataclass(frozen=True, slots=True)
class State:
    """How the exporter is. `folds` and `reconciles` count those that succeeded, `market_looks` all."""

    serving: bool = False
    stopping: bool = False
    connected: bool = False
    leader: bool = False
    standby: bool = False
    drained: bool = False
    """The journal has been drained at least once since this exporter became leader."""
    reconciled: bool = False
    problem: str | None = None
    folds: int = 0
    reconciles: int = 0
    market_looks: int = 0

    @property
    def ready(self) -> bool:
        """Connected, with exact numbers to show or as a standby that need not."""
        return self.connected and self.problem is None and (self.standby or (self.drained and self.reconciled))

    @property
    def words(self) -> str:
        """The state for people."""
        if self.stopping:
            return "stopping"
        if self.problem is not None:
            return self.problem
        if not self.connected:
            return "connecting to the database"
        if self.standby:
            return "standby: another exporter is active"
        if not self.drained:
            return "folding the events that came while no exporter ran"
        return "ready" if self.reconciled else "reading the live rows"


@dataclass(slots=True)
class _Session:
    """Two connections: one only listens, the other works."""

    listening: Connection
    working: Connection
    listener: Listener
    channel: str
    notify: bool
    backend_pid: int
    """Of the working connection: what it notifies counts as our own."""
    attention: NotifyMode
    works: bool = False
    """It has come so far as to export, or to stand by."""
    problem: str | None = None
    """What is wrong with the database although everything works."""
    ping_number: int = 0
    ping_sent: float | None = None
    """When the ping that has not come back was sent."""
    fold_due: float = 0.0
    """When the next fold is due, if nothing comes."""
    unconfirmed: int = 0
    """Payloads that were counted since the last fold began."""
    suspects: frozenset[int] | None = None
    """What was pending when the draining of the journal began that is under way."""
    snapshot_patience: float = SNAPSHOT_PATIENCE
    """Seconds that the next snapshot may take: much at first, then a few times what they do take."""
    rest_until: float = 0.0
    """When payloads may have a fold again; 0 where the last one had something to do."""
    snapshot_rest_until: float = 0.0
    """When events may have a snapshot again."""
    ships_query: snapshot.ShipsQuery | None = None
    folded_up_to: int = -1
    """No event with this id or a lower one will ever be in the journal again."""
    next_up_to: int = -1
    """The same, once every transaction is over that had begun before this id was the last."""
    begun_before: XminHorizon = field(default_factory=XminHorizon)
    taken: snapshot.Snapshot | None = None
    """Live rows that wait until everything that they show has been heard of."""
    taken_barrier: int | None = None
    """The barrier that says so; None until the fold that sends it."""

    async def close(self) -> None:
        await self.listening.close()
        await self.working.close()


class Exporter:
    """One exporter. `run` it in an event loop; `stop` ends it after a last fold."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._conninfo = complete_conninfo(settings.dsn)
        self._clock = clock
        self._who = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.page = Page(self._read_view, self.database_now, settings.series_maximum)
        self.telemetry = self.page.telemetry
        self.state = State()
        self._changed = anyio.Condition()
        self._wake = anyio.Event()
        self._hearing: _Session | None = None
        self._stopping = False
        self._keeping: anyio.CancelScope | None = None
        self._serving = False

        self._trouble_known: str | None = None
        self._triggers_known: dict[str, int] = {}
        self._ghosts_known = self._ghosts_came = False
        self._newer_known = False
        self._counters = Counters()
        self._memory = RecentActivity()
        self._floor = LiveState()
        self._market: Market | None = None
        self._market_trouble: str | None = None
        self._presentable = False
        self._changes = LastChanges()
        self._known_at: int | None = None
        self._database_ahead = time.time_ns() // 1000 - round(clock() * MICROSECONDS_PER_SECOND)

    # ------------------------------------------------------------------------------------------ outside --

    def database_now(self) -> int:
        """Return the database's clock in epoch microseconds, as far as it is known."""
        return round(self._clock() * MICROSECONDS_PER_SECOND) + self._database_ahead

    def readiness(self) -> tuple[bool, str]:
        """Say whether the exporter is ready, and how it is in a few words."""
        return self.state.ready, self.state.words

    def picture(self) -> BoardSnapshot:
        """Return what the board shows now."""
        live = self.state.connected and self.state.leader and self.state.reconciled
        view = self._read_view()
        return BoardSnapshot(
            version=__version__,
            state="live" if live else "standby" if self.state.standby else "waiting",
            ready=self.state.ready,
            words=self.state.words,
            known_at=None if live else self._known_at,
            game=None if view is None else build_game(view, self.database_now()),
            changes=[describe_change(event) for event in self._changes.newest()],
            exporter=facts(self.telemetry),
        )

    def stop(self) -> None:
        """Fold once more, release the lease, and end."""
        self._stopping = True
        self._wake.set()
        if self._keeping is not None:
            # Connecting is given up at once; a session has a last fold to do, if the database answers soon.
            patience = LAST_FOLD_PATIENCE if self._serving else 0.0
            self._keeping.deadline = anyio.current_time() + patience

    async def wait_until(self, condition: Callable[[State], bool]) -> State:
        """Wait until the state is as asked for. For tests and embedding programs."""
        async with self._changed:
            while not condition(self.state):
                await self._changed.wait()
            return self.state

    async def run(self, sockets: Sequence[socket.socket] = (), *, handle_signals: bool = False) -> None:
        """Export until `stop` is called, serving HTTP on the given sockets. Broken connections are mended."""
        board, access = Board(self.picture, self._clock), self._settings.access
        application = make_application(
            self.page.render,
            self.readiness,
            self._settings.telemetry_path,
            board if self._settings.board else None,
            [] if access is None else [Middleware(BasicAuthMiddleware, access)],
        )
        if access is not None:
            access.on_failure = self.telemetry.web_config_failures.inc
            # Who was let in under the old rules may have no right under the new ones.
            access.on_change = board.end_streams
        serving = server.Server(application, None if access is None else access.context)
        async with anyio.create_task_group() as tasks:
            if handle_signals:
                # From before the first line of the log: whoever reads it may send a signal.
                await tasks.start(self._stop_on_signal)
            if sockets:
                tasks.start_soon(serving.serve, list(sockets))
                await serving.started_serving.wait()
                await self._change(serving=True)
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

    async def _stop_on_signal(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                await self._change(stopping=True)
                self.stop()
                return

    # ---------------------------------------------------------------------------------------- connection --

    async def _keep_connected(self) -> None:
        """Open a session again and again, sooner if the last one worked, until `stop`."""

        async def report(attempt: RetryCallState) -> None:
            error = attempt.outcome.exception() if attempt.outcome is not None else None
            if isinstance(error, DatabaseError):
                await self._trouble(error)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(DatabaseError),
            wait=wait_random_exponential(multiplier=0.1, max=RETRY_CAP),
            before_sleep=report,
        )
        with anyio.CancelScope() as self._keeping:
            while not self._stopping:
                await retrying(self._one_session)

    async def _one_session(self) -> None:
        """Connect and serve. Raise `DatabaseError` if it did not come so far as to work."""
        session = await _in_time(OPEN_PATIENCE, self._open())
        self._serving = True
        error: DatabaseError | None = None
        try:
            await self._serve(session)
        except* DatabaseError as group:
            error = _first(group)
        finally:
            self._serving = False
            await session.close()
            # The outcome of a COMMIT that was under way is unknown: read the totals again.
            self._counters.disconnect()
            await self._change(connected=False, leader=False, standby=False)
        if error is not None and not self._stopping:
            self.telemetry.reconnects.labels(error.reason).inc()
            if not session.works:
                raise error
            await self._trouble(error)

    async def _open(self) -> _Session:
        listening = await connect(self._conninfo)
        try:
            working = await connect(self._conninfo)
        except BaseException:
            await listening.close()
            raise
        try:
            channel, notify, backend_pid = await self._check_schema(working)
            listener = Listener(listening, backend_pid, self._on_arrival)
            await listener.listen(channel)
        except BaseException:
            await listening.close()
            await working.close()
            raise
        attention = NotifyMode(self._settings.notify if notify else Policy.NEVER, self._clock())
        return _Session(listening, working, listener, channel, notify, backend_pid, attention)

    async def _check_schema(self, connection: Connection) -> tuple[str, bool, int]:
        with translated_errors():
            exists = await (await connection.execute(QUERY["schema_exists"])).fetchone()
            if exists is None or not exists[0]:
                raise SchemaNotReady("the triggers are not installed in this database; run `mfg-notify migrate up`")
            row = await (await connection.execute(QUERY["settings"])).fetchone()
            missing = [name for (name,) in await (await connection.execute(QUERY["missing_columns"])).fetchall()]
        if row is None:
            raise SchemaNotReady("mfg_notify.settings has lost its row; run `mfg-notify migrate down`, then up")
        version, channel, notify, backend_pid = row
        if version < migrations.latest_version():
            raise SchemaNotReady(
                f"the database has schema version {version}, this exporter needs {migrations.latest_version()}; "
                "run `mfg-notify migrate up`"
            )
        if version > migrations.latest_version():
            raise SchemaTooNew(
                f"the database has schema version {version}, this exporter knows {migrations.latest_version()}; "
                "upgrade mfg-notify"
            )
        if missing:
            raise SchemaNotReady(f"the game's tables lack what is needed: {', '.join(missing)}")
        return channel, notify, backend_pid

    async def _serve(self, session: _Session) -> None:
        await self._change(connected=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.listener.pump)
            tasks.start_soon(self._watch_pings, session)
            if self._settings.market_interval is not None:
                tasks.start_soon(self._watch_markets, self._settings.market_interval)
            await self._work(session)
            tasks.cancel_scope.cancel()

    async def _watch_pings(self, session: _Session) -> None:
        # Keepalives do not notice a proxy that stalls, nor a pooler that gives LISTEN and NOTIFY different servers.
        while True:
            await anyio.sleep(TICK_INTERVAL / 2)
            if session.ping_sent is not None and self._clock() - session.ping_sent > SILENCE:
                raise ListenerSilent(
                    f"an own notification did not come back within {SILENCE:.0f} s: the network stalls, or a pooler "
                    "in transaction mode (PgBouncer) is in the way; connect to PostgreSQL itself"
                )

    async def _watch_markets(self, interval: float) -> None:
        """Read the markets while this exporter is the active one. However slow that is, nothing else waits for it."""
        while True:
            await self.wait_until(lambda state: state.leader)
            try:
                reading = market.read_market(self._conninfo, self._settings.schema)
                self._market = await _in_time(MARKET_PATIENCE, reading)
                if self._market_trouble is not None:
                    log.info("metrics of the markets again")
                self._market_trouble = None
            except DatabaseError as error:
                # What cannot be read is not shown: old numbers would look like the markets of now.
                self._market = None
                if self._market_trouble != error.reason:
                    log.warning("no metrics of the markets", reason=error.reason, error=str(error))
                self._market_trouble = error.reason
            await self._change(market_looks=self.state.market_looks + 1)
            await anyio.sleep(interval)

    # ---------------------------------------------------------------------------------------------- work --

    async def _work(self, session: _Session) -> None:
        """Do what is due, one thing at a time, until `stop`."""
        tick_due = session.fold_due = reconcile_due = self._clock()
        while not self._stopping:
            self._wake = anyio.Event()
            self._receive(session)
            now = self._clock()
            if self._floor.wants_snapshot and session.taken is None:
                reconcile_due = min(reconcile_due, session.snapshot_rest_until)
            if now >= tick_due:
                was_leader = self.state.leader
                await self._tick(session)
                tick_due = now + TICK_INTERVAL
                if self.state.leader and not was_leader:
                    session.fold_due = reconcile_due = now
            # Not before what has waited is folded: all that came meanwhile would have to be kept.
            if self.state.leader and self.state.drained and now >= reconcile_due and session.taken is None:
                await self._take_snapshot(session)
                reconcile_due = now + self._settings.reconcile_interval
                session.fold_due = now
            if self.state.leader and now >= session.fold_due:
                session.fold_due, session.unconfirmed = math.inf, 0
                done = await self._fold(session)
                # What was heard meanwhile may want one sooner.
                wanted = max(session.fold_due, session.rest_until)
                session.fold_due = min(wanted, self._clock() + self._next_fold(session, now)) if done else now
            if session.taken_barrier is not None and self._counters.barrier >= session.taken_barrier:
                await self._reconcile(session)
            due = tick_due
            if self.state.leader:
                due = min(due, session.fold_due, math.inf if session.taken is not None else reconcile_due)
            with self._all_ears(session), anyio.move_on_after(max(0.0, due - self._clock())):
                await self._wake.wait()
        await self._finish(session)

    @contextmanager
    def _all_ears(self, session: _Session) -> Iterator[None]:
        """Count what comes meanwhile at once: waking up for it would cost more than that."""
        self._hearing = session
        try:
            yield
        finally:
            self._hearing = None

    def _on_arrival(self) -> None:
        session = self._hearing
        if session is not None:
            due = session.fold_due
            self._receive(session)
            if session.fold_due >= due and session.taken_barrier is None and not self._floor.wants_snapshot:
                return
        self._wake.set()

    def _receive(self, session: _Session) -> None:
        """Count what has been notified, and say when a fold is due for it."""
        due = math.inf
        own = session.backend_pid
        events: list[Event] = []
        for notification in session.listener.take():
            payload = notification.payload
            # The server says who sent it, and nobody can forge that.
            if notification.pid == own and payload.startswith(journal.BARRIER):
                self._counters.receive_barrier(int(payload.removeprefix(journal.BARRIER)))
            elif notification.pid == own and payload.startswith(PING):
                if int(payload.removeprefix(PING)) == session.ping_number and session.ping_sent is not None:
                    self.telemetry.listener_roundtrip.observe(self._clock() - session.ping_sent)
                    session.ping_sent = None
            elif self.state.leader and not payload.startswith((PING, journal.BARRIER)):
                due = min(due, self._receive_payload(payload, events))
        if events:
            self._account(session, events)
            self._changes.announce(events)
            session.unconfirmed += len(events)
            if session.unconfirmed >= CONFIRM_AT:
                due = 0.0
        if skipped := session.listener.take_skipped():
            self.telemetry.notifications_received.inc(skipped)
            due = min(due, FOLD_DELAY)
        now = self._clock()
        session.attention.count(0, now)
        session.fold_due = min(session.fold_due, max(now + due, session.rest_until))
        if session.attention.must_tell:
            session.fold_due = min(session.fold_due, now)

    def _receive_payload(self, payload: str, counted: list[Event]) -> float:
        self.telemetry.notifications_received.inc()
        if payload == FOLD:
            return FOLD_DELAY
        try:
            event = decode_payload(payload)
        except MalformedEvent:
            self.telemetry.events_rejected.labels("malformed").inc()
            return CONFIRM_DELAY
        match self._counters.receive(event):
            case Arrival.COUNTED:
                self._floor.apply(event)
                counted.append(event)
                return CONFIRM_DELAY
            case Arrival.DUPLICATE:
                self.telemetry.events_duplicate.inc()
                return CONFIRM_DELAY
            case Arrival.LEFT_TO_FOLD:
                return FOLD_DELAY

    async def _tick(self, session: _Session) -> None:
        if not self.state.leader and await _in_time(SILENCE, journal.acquire_lease(session.working, self._who)):
            # Not again at each try of a session that never works.
            (log.debug if self._trouble_known else log.info)("became the active exporter")
            self._counters.disconnect()
            self._floor.ignore_next_difference()
            await self._change(leader=True, standby=False, drained=False, reconciled=False)
        if session.ping_sent is None:
            session.ping_sent = self._clock()
            session.ping_number += 1
        parameters = {"holder": self._who, "channel": session.channel, "ping": f"{PING}{session.ping_number}"}

        async def send() -> tuple[bool, bool]:
            with translated_errors():
                # The commit by itself, to see how long one takes that notifies.
                async with session.working.transaction():
                    sent = self._clock()
                    rows = await (await session.working.execute(QUERY["tick"], parameters)).fetchall()
                    answered = self._clock()
            session.attention.committed(self._clock() - answered)
            _, holds_lease, clock, quiet = rows[0]
            # The server read its clock somewhere between sending and the answer.
            self._database_ahead = clock - round((sent + answered) / 2 * MICROSECONDS_PER_SECOND)
            return holds_lease, quiet

        holds_lease, quiet = await _in_time(SILENCE, send())
        if quiet != session.attention.quiet:
            session.attention.doubt()
        if self.state.leader and not holds_lease:
            await self._step_down(session)
        elif self.state.leader and self.state.reconciled:
            self._known_at = self.database_now()
        elif not self.state.leader and not self.state.standby:
            log.info("standing by: another exporter is active")
            self._presentable = False
            await self._change(standby=True, problem=None)
            self._note_that_it_works(session)

    async def _step_down(self, session: _Session) -> None:
        log.warning("another exporter has taken over; standing by")
        self._counters.disconnect()
        self._floor = LiveState()
        self._presentable = False
        session.taken = session.taken_barrier = session.suspects = None
        await self._change(leader=False, standby=True, drained=False, reconciled=False)

    async def _fold(self, session: _Session) -> bool:
        """Fold one chunk; False if another fold must follow at once."""
        started = self._clock()
        if session.suspects is None:
            session.suspects = self._counters.pending()
        with self._all_ears(session):
            fold = await _in_time(SILENCE, self._fold_and_tell(session))
        if fold is None:
            await self._step_down(session)
            return True
        self._note_what_is_over(session, fold)
        if self._counters.is_rewind(fold.generation):
            log.error(
                "the database was set back: an older copy was restored, a failover lost commits, or the triggers were "
                "installed anew; counters stand still until the truth has caught up"
            )
            self.telemetry.rewinds.inc()
            # What was thought to be over may come again.
            session.folded_up_to = session.next_up_to = -1
            session.begun_before.draw()
            fold = replace(fold, drained=False)
            self._changes.clear()
            if session.taken_barrier is not None:
                # The barrier that the snapshot waits for may never come: take another.
                session.taken = session.taken_barrier = None
                self._floor.doubt()
        followed = self._counters.follows(fold.generation)
        if followed:
            news = self._counters.confirm(fold.events, fold.settlement, fold.generation)
            self._memory.add(fold.settlement)
            self.telemetry.events_replayed.inc(len(news))
        else:
            settled = await _in_time(SNAPSHOT_PATIENCE, journal.read_settled(session.working))
            self._counters.resync(settled.totals, settled.generation, fold.events)
            self._memory = settled.memory
            news = fold.events
        if self.state.drained:  # before that, the snapshot is still to come
            for event in fold.events:
                self._floor.apply(event)
        self._account(session, news)
        self._changes.settle(fold.events)
        session.rest_until = 0.0 if fold.events else self._clock() + EMPTY_REST
        if fold.malformed:
            self.telemetry.events_rejected.labels("malformed").inc(fold.malformed)
        if fold.drained:
            ghosts = self._counters.discard_unconfirmed(session.suspects)
            if ghosts:
                # Whoever knows the channel could fill the log with this: not again before a reconciliation without.
                if not self._ghosts_known:
                    log.warning(
                        "notifications without an event: forged, or lost in a crash of the server", events=ghosts
                    )
                self._ghosts_known = self._ghosts_came = True
                self.telemetry.events_rejected.labels("ghost").inc(ghosts)
                self._floor.doubt()
            self._changes.forget_unconfirmed(self._counters.pending())
            session.suspects = None
            if session.taken is not None and session.taken_barrier is None:
                session.taken_barrier = fold.generation
            self.telemetry.fold_last_success.set_to_current_time()
            if fold.events and session.ships_query is not None:
                query = session.ships_query
                self._floor.see_ships(await _in_time(SILENCE, snapshot.read_ships(session.working, query)))
        self.telemetry.fold_duration.observe(self._clock() - started)
        await self._change(folds=self.state.folds + 1, drained=self.state.drained or fold.drained)
        return fold.drained and followed

    async def _fold_and_tell(self, session: _Session) -> journal.Fold | None:
        """Fold, and tell the triggers whether to notify where they have been told something else."""
        attention = session.attention
        disable_notify = attention.must_tell and attention.wants_quiet
        if attention.must_tell and not disable_notify:
            await journal.enable_notify(session.working)
            attention.told(quiet=False)
        # The fold that goes with a snapshot looks everywhere: the last net under all that is thought to be proven.
        after = session.folded_up_to if session.taken is None else -1
        fold = await journal.fold(
            session.working, self._who, session.channel, after=after, disable_notify=disable_notify
        )
        if disable_notify and fold is not None:
            attention.told(quiet=True)
        self.telemetry.polling.set(attention.quiet)
        return fold

    def _note_what_is_over(self, session: _Session, fold: journal.Fold) -> None:
        session.attention.folded(fold.xid, fold.oldest)
        # Whoever was given an id had a transaction number by then.
        if session.begun_before.folded(fold.xid, fold.oldest) and fold.drained:
            session.folded_up_to = session.next_up_to
            session.next_up_to = fold.last_id
            session.begun_before.draw()

    def _next_fold(self, session: _Session, begun: float) -> float:
        if session.attention.may_sleep:
            return self._settings.reconcile_interval
        return session.attention.next_look(self._clock() - begun)

    def _account(self, session: _Session, events: Sequence[Event]) -> None:
        session.attention.count(len(events), self._clock())
        now = self.database_now()
        for (table, operation), n in Counter((event.table, event.change.operation) for event in events).items():
            self.telemetry.events_applied.labels(table, operation).inc(n)
        self.telemetry.event_delay.observe(max(0, now - event.at) for event in events)

    async def _take_snapshot(self, session: _Session) -> None:
        """Read the live rows; they wait for the barrier of the next fold."""
        started = self._clock()
        schema = self._settings.schema
        self._floor.record()
        patience = session.snapshot_patience
        # The game may have changed its tables, somebody may have upgraded or removed ours: say so in plain words.
        channel, notify, _ = await _in_time(SILENCE, self._check_schema(session.working))
        if (channel, notify) != (session.channel, session.notify):
            raise SchemaNotReady("mfg_notify.settings has changed; connecting again")
        session.taken = await _in_time(patience, snapshot.read_snapshot(session.working, schema))
        session.taken_barrier = None
        session.ships_query = session.taken.ships_query
        await _in_time(SILENCE, journal.prune(session.working))
        self._watch_over(session, await _in_time(patience, snapshot.read_health(session.working, schema)))
        took = self._clock() - started
        session.snapshot_patience = max(SILENCE, 5 * took)
        session.snapshot_rest_until = self._clock() + max(SNAPSHOT_REST, 5 * took)
        self.telemetry.reconcile_duration.observe(took)

    async def _reconcile(self, session: _Session) -> None:
        """Swap the live rows: everything that the snapshot shows has been heard of, in whatever way."""
        if session.taken is None:
            return
        corrections = self._floor.reconcile(session.taken.rows, session.taken.sees)
        session.taken = session.taken_barrier = None
        for name, number in corrections.items():
            self.telemetry.reconcile_corrections.labels(name).inc(number)
        if corrections:
            log.warning("the gauges were wrong: events were missed", **corrections)
        self._ghosts_known, self._ghosts_came = self._ghosts_came, False
        self._memory.prune(self.database_now())
        self._presentable = True
        self._known_at = self.database_now()
        self.telemetry.reconcile_last_success.set_to_current_time()
        await self._change(reconciled=True, reconciles=self.state.reconciles + 1, problem=session.problem)
        self._note_that_it_works(session)

    def _note_that_it_works(self, session: _Session) -> None:
        if not session.works:
            session.works = True
            log.info("connected", database=describe(self._conninfo), notify=session.notify)

    def _watch_over(self, session: _Session, health: snapshot.Health) -> None:
        self.telemetry.journal_rows.set(health.journal_rows)
        self.telemetry.journal_oldest_age.set(health.journal_oldest_age)
        self.telemetry.queue_usage.set(health.queue_usage)
        seen = self.telemetry.lost_changes
        if health.lost_changes > (seen or 0):
            log.warning("the triggers gave up some changes of the game", changes=health.lost_changes)
        self.telemetry.lost_changes = max(health.lost_changes, seen or 0)
        for table, count in health.triggers.items():
            complete = migrations.TRIGGERS // 3
            known = self._triggers_known.get(table, complete)
            if count < complete and known != count:
                log.error("triggers are missing or disabled; run `mfg-notify migrate up`", table=table, enabled=count)
            elif count == complete and known != count:
                log.info("all triggers are enabled again", table=table)
            self._triggers_known[table] = count
            self.telemetry.triggers_installed.labels(table).set(count)
        session.problem = None
        if health.unknown_versions:
            session.problem = f"{health.unknown_versions} events are of a newer version; upgrade mfg-notify"
            if not self._newer_known:
                log.error("events are of a newer version; upgrade mfg-notify", events=health.unknown_versions)
        self._newer_known = bool(health.unknown_versions)

    def _read_view(self) -> View | None:
        if not self._presentable:
            return None
        memory = self._memory.copy()
        for settlement in self._counters.announced():
            memory.add(settlement)
        return View(self._counters.exposed(), self._floor.survey(), memory, self._market)

    async def _finish(self, session: _Session) -> None:
        """Fold what is there and hand the lease on, if the database answers soon."""
        if not self.state.leader:
            return
        try:
            session.attention.leave()
            while not await self._fold(session):
                pass
            await _in_time(SILENCE, journal.release_lease(session.working, self._who))
        except DatabaseError as error:
            log.warning("the last fold did not happen; the next start does it", error=str(error))

    # --------------------------------------------------------------------------------------------- state --

    async def _trouble(self, error: DatabaseError) -> None:
        # One line a change of state, not one a try.
        if self._trouble_known != error.reason:
            log.warning("waiting for the database", reason=error.reason, error=str(error))
        self._trouble_known = error.reason
        await self._change(problem=str(error))

    async def _change(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        if self.state.problem is None:
            self._trouble_known = None
        self.telemetry.connected.set(self.state.connected)
        self.telemetry.leader.set(self.state.leader)
        self.telemetry.standby.set(self.state.standby)
        self.telemetry.ready.set(self.state.ready)
        async with self._changed:
            self._changed.notify_all()


async def _in_time(seconds: float, answer: Awaitable[Result]) -> Result:
    """Wait for an answer of the database. Raise `DatabaseUnavailable` if it takes too long: the connection is lost."""
    try:
        with anyio.fail_after(seconds):
            return await answer
    except TimeoutError as error:
        raise DatabaseUnavailable(f"the database did not answer within {seconds:.0f} s") from error


def _first(group: BaseExceptionGroup[DatabaseError]) -> DatabaseError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
