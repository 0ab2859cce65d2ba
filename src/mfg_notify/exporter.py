"""The exporter: one task group that listens, folds, reconciles, pings and serves; and who is leader.

Owns time and order: what is done when, and what a broken connection means. What is done is in `postgres`, what it
means is in `core`.
"""

import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from mfg_notify import web
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.counters import Settlement, Totals
from mfg_notify.core.factory_floor import HOUR, Floor, Memory, survey
from mfg_notify.core.series import View
from mfg_notify.errors import DatabaseError, DatabaseUnavailable, ListenerSilent, SchemaNotReady, SchemaTooNew
from mfg_notify.exposition import GameCollector, Telemetry, make_registry
from mfg_notify.postgres import journal, migrations, snapshot
from mfg_notify.postgres.connection import Connection, complete_conninfo, connect, describe, translated_errors
from mfg_notify.postgres.listener import PING, Listener
from mfg_notify.postgres.queries import QUERY

FOLD_DELAY = 0.02
"""Seconds from a notification to the fold that it asks for: those that come together are folded together."""
FOLD_INTERVAL_WITHOUT_NOTIFY = 1.0
"""Seconds between folds where the triggers may not notify."""
SNAPSHOT_INTERVAL_MINIMUM = 1.0
"""Seconds: a fold that brought events brings the next snapshot forward, but not nearer than this."""
TICK_INTERVAL = 1.0
"""Seconds between pings, which are also the beats of the lease."""
SILENCE = 5.0
"""Seconds without an answer, to a ping or to a statement, after which a connection counts as broken."""
SNAPSHOT_PATIENCE = 25.0
"""Seconds that a snapshot may take."""
LAST_FOLD_PATIENCE = 3.0
"""Seconds that stopping waits for the database."""
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


@dataclass(frozen=True, slots=True)
class State:
    """How the exporter is. `folds` and `reconciles` count those that succeeded."""

    connected: bool = False
    leader: bool = False
    standby: bool = False
    drained: bool = False
    """The journal has been drained at least once since this exporter became leader."""
    reconciled: bool = False
    problem: str | None = "connecting to the database"
    folds: int = 0
    reconciles: int = 0

    @property
    def ready(self) -> bool:
        """Connected, with exact numbers to show or as a standby that need not."""
        return self.connected and self.problem is None and (self.standby or (self.drained and self.reconciled))

    @property
    def words(self) -> str:
        """The state for people."""
        if self.problem is not None:
            return self.problem
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
    ping_number: int = 0
    ping_sent: float | None = None
    """When the ping that has not come back was sent."""

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
        self.registry = make_registry()
        self.telemetry = Telemetry(self.registry)
        self.registry.register(GameCollector(lambda: self._view, self.database_now, self.telemetry))
        self.state = State()
        self._changed = anyio.Condition()
        self._wake = anyio.Event()
        self._stopping = False
        self._connecting: anyio.CancelScope | None = None

        self._trouble_known: str | None = None
        self._triggers_known: dict[str, int] = {}
        self._totals = Totals()
        self._memory = Memory()
        self._floor: Floor | None = None
        self._view: View | None = None
        self._database_ahead = time.time_ns() // 1000 - round(clock() * MICROSECONDS_PER_SECOND)

    # ------------------------------------------------------------------------------------------ outside --

    def database_now(self) -> int:
        """Return the database's clock in epoch microseconds, as far as it is known."""
        return round(self._clock() * MICROSECONDS_PER_SECOND) + self._database_ahead

    def readiness(self) -> tuple[bool, str]:
        """Say whether the exporter is ready, and how it is in a few words."""
        return self.state.ready, self.state.words

    def stop(self) -> None:
        """Fold once more, release the lease, and end."""
        self._stopping = True
        self._wake.set()
        if self._connecting is not None:
            self._connecting.cancel()

    async def wait_until(self, condition: Callable[[State], bool]) -> State:
        """Wait until the state is as asked for. For tests and embedding programs."""
        async with self._changed:
            while not condition(self.state):
                await self._changed.wait()
            return self.state

    async def run(self, sockets: Sequence[socket.socket] = (), *, handle_signals: bool = False) -> None:
        """Export until `stop` is called, serving HTTP on the given sockets. Broken connections are mended."""
        server = web.Server(web.make_application(self.registry, self.readiness, self._settings.telemetry_path))
        async with anyio.create_task_group() as tasks:
            if handle_signals:
                tasks.start_soon(self._stop_on_signal)
            if sockets:
                tasks.start_soon(server.serve, list(sockets))
                for listening in sockets:
                    log.info("serving", address=web.address_of(listening))
            await self._keep_connected()
            server.should_exit = True
            tasks.cancel_scope.deadline = anyio.current_time() + web.GRACE + 0.5
            if handle_signals and not sockets:
                tasks.cancel_scope.cancel()

    async def _stop_on_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                self.stop()
                return

    # ---------------------------------------------------------------------------------------- connection --

    async def _keep_connected(self) -> None:
        while not self._stopping:
            session = await self._connect()
            if session is None:
                return
            try:
                await self._serve(session)
            except* DatabaseError as group:
                error = _first(group)
                if not self._stopping:
                    self.telemetry.reconnects.labels(error.reason).inc()
                    await self._trouble(error)
            finally:
                await session.close()
                # The outcome of a COMMIT that was under way is unknown: read the totals again.
                self._totals.forget()
                await self._change(connected=False, leader=False, standby=False)

    async def _connect(self) -> _Session | None:
        async def report(attempt: RetryCallState) -> None:
            error = attempt.outcome.exception() if attempt.outcome is not None else None
            if isinstance(error, DatabaseError):
                await self._trouble(error)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(DatabaseError),
            wait=wait_random_exponential(multiplier=0.1, max=RETRY_CAP),
            before_sleep=report,
        )
        with anyio.CancelScope() as scope:
            self._connecting = scope
            try:
                return await retrying(self._open)
            finally:
                self._connecting = None
        return None

    async def _open(self) -> _Session:
        listening = await connect(self._conninfo)
        try:
            working = await connect(self._conninfo)
        except BaseException:
            await listening.close()
            raise
        try:
            channel, notify = await self._check_schema(working)
            listener = Listener(listening, lambda: self._wake.set())
            await listener.listen(channel)
        except BaseException:
            await listening.close()
            await working.close()
            raise
        return _Session(listening, working, listener, channel, notify)

    async def _check_schema(self, connection: Connection) -> tuple[str, bool]:
        with translated_errors():
            exists = await (await connection.execute(QUERY["schema_exists"])).fetchone()
            if exists is None or not exists[0]:
                raise SchemaNotReady("the triggers are not installed in this database; run `mfg-notify migrate up`")
            row = await (await connection.execute(QUERY["settings"])).fetchone()
            missing = [name for (name,) in await (await connection.execute(QUERY["missing_columns"])).fetchall()]
        if row is None:
            raise SchemaNotReady("mfg_notify.settings has lost its row; run `mfg-notify migrate down`, then up")
        version, channel, notify = row
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
        return channel, notify

    async def _serve(self, session: _Session) -> None:
        log.info("connected", database=describe(self._conninfo), notify=session.notify)
        await self._change(connected=True, problem=None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.listener.pump)
            tasks.start_soon(self._watch_pings, session)
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

    # ---------------------------------------------------------------------------------------------- work --

    async def _work(self, session: _Session) -> None:
        """Do what is due, one thing at a time, until `stop`."""
        tick_due = fold_due = reconcile_due = last_snapshot = self._clock()
        last_snapshot -= SNAPSHOT_INTERVAL_MINIMUM
        while not self._stopping:
            self._wake = anyio.Event()
            now = self._clock()
            if self._receive(session):
                fold_due = min(fold_due, now + FOLD_DELAY)
            if now >= tick_due:
                was_leader = self.state.leader
                await self._tick(session)
                tick_due = now + TICK_INTERVAL
                if self.state.leader and not was_leader:
                    fold_due = reconcile_due = now
            if self.state.leader and now >= fold_due:
                events, drained = await self._fold(session)
                idle = FOLD_INTERVAL_WITHOUT_NOTIFY if not session.notify else self._settings.reconcile_interval
                fold_due = self._clock() + idle if drained else now
                if events:
                    reconcile_due = min(reconcile_due, max(now, last_snapshot + SNAPSHOT_INTERVAL_MINIMUM))
            if self.state.leader and self.state.drained and now >= reconcile_due:
                await self._reconcile(session)
                last_snapshot = self._clock()
                reconcile_due = last_snapshot + self._settings.reconcile_interval
                fold_due = min(fold_due, last_snapshot)
            due = min(tick_due, fold_due, reconcile_due) if self.state.leader else tick_due
            with anyio.move_on_after(max(0.0, due - self._clock())):
                await self._wake.wait()
        await self._finish(session)

    def _receive(self, session: _Session) -> bool:
        """Look at what has been notified; True if something calls for a fold."""
        received = 0
        for payload in session.listener.take():
            if payload == f"{PING}{self._who} {session.ping_number}" and session.ping_sent is not None:
                self.telemetry.listener_roundtrip.observe(self._clock() - session.ping_sent)
                session.ping_sent = None
            elif not payload.startswith(PING):
                received += 1
        self.telemetry.notifications_received.inc(received)
        return received > 0

    async def _tick(self, session: _Session) -> None:
        if not self.state.leader and await _in_time(SILENCE, journal.acquire_lease(session.working, self._who)):
            log.info("became the active exporter")
            self._totals.forget()
            await self._change(leader=True, standby=False, drained=False, reconciled=False)
        session.ping_number += 1
        sent = self._clock()
        if session.ping_sent is None:
            session.ping_sent = sent
        ping = f"{PING}{self._who} {session.ping_number}"
        parameters = {"who": self._who, "channel": session.channel, "ping": ping}

        async def send() -> tuple[bool, int]:
            with translated_errors():
                rows = await (await session.working.execute(QUERY["tick"], parameters)).fetchall()
                _, holds_lease, clock = rows[0]
                return holds_lease, clock

        holds_lease, clock = await _in_time(SILENCE, send())
        # The server read its clock somewhere between sending and now.
        self._database_ahead = clock - round((sent + self._clock()) / 2 * MICROSECONDS_PER_SECOND)
        if self.state.leader and not holds_lease:
            await self._step_down()
        elif not self.state.leader and not self.state.standby:
            log.info("standing by: another exporter is active")
            await self._change(standby=True)

    async def _step_down(self) -> None:
        log.warning("another exporter has taken over; standing by")
        self._totals.forget()
        self._floor = self._view = None
        await self._change(leader=False, standby=True, drained=False, reconciled=False)

    async def _fold(self, session: _Session) -> tuple[int, bool]:
        """Fold one chunk; return how many events came and whether the journal is drained."""
        started = self._clock()
        fold = await _in_time(SILENCE, journal.fold(session.working, self._who))
        if fold is None:
            await self._step_down()
            return 0, True
        if self._totals.follows(fold.generation):
            self._totals.add(fold.settlement, fold.generation)
            self._memory = _remember(self._memory, fold.settlement, self.database_now())
        else:
            settled = await _in_time(SNAPSHOT_PATIENCE, journal.read_settled(session.working))
            self._totals.replace(settled.totals, settled.generation)
            self._memory = settled.memory
        self._account(fold)
        self.telemetry.checkpoint_duration.observe(self._clock() - started)
        if fold.drained:
            self.telemetry.checkpoint_last_success.set_to_current_time()
        if fold.drained or self.state.drained:
            self._publish()
        await self._change(folds=self.state.folds + 1, drained=self.state.drained or fold.drained)
        return len(fold.events), fold.drained

    def _account(self, fold: journal.Fold) -> None:
        now = self.database_now()
        for (table, operation), n in Counter((e.table, e.change.operation) for e in fold.events).items():
            self.telemetry.events_applied.labels(table, operation).inc(n)
        for event in fold.events:
            self.telemetry.event_delay.observe(max(0, now - event.at) / MICROSECONDS_PER_SECOND)
        if fold.malformed:
            self.telemetry.events_rejected.labels("malformed").inc(fold.malformed)

    async def _reconcile(self, session: _Session) -> None:
        started = self._clock()
        rows, memory = await _in_time(SNAPSHOT_PATIENCE, snapshot.read_floor(session.working, self._settings.schema))
        self._floor, self._memory = survey(rows), memory
        health = await _in_time(SNAPSHOT_PATIENCE, snapshot.read_health(session.working, self._settings.schema))
        self.telemetry.reconcile_duration.observe(self._clock() - started)
        self.telemetry.reconcile_last_success.set_to_current_time()
        self.telemetry.journal_rows.set(health.journal_rows)
        self.telemetry.journal_oldest_age.set(health.journal_oldest_age)
        self.telemetry.queue_usage.set(health.queue_usage)
        self._watch_health(health)
        self._publish()
        problem = None
        if health.unknown_versions:
            problem = f"{health.unknown_versions} events are of a newer version; upgrade mfg-notify"
        await self._change(reconciled=True, reconciles=self.state.reconciles + 1, problem=problem)

    def _watch_health(self, health: snapshot.Health) -> None:
        seen = self.telemetry.lost_statements
        if health.lost_statements > (seen or 0):
            log.warning("the triggers gave up the events of some statements", statements=health.lost_statements)
        self.telemetry.lost_statements = max(health.lost_statements, seen or 0)
        for table, count in health.triggers.items():
            if count < migrations.TRIGGERS // 3 and self._triggers_known.get(table) != count:
                log.error("triggers are missing or disabled; run `mfg-notify migrate up`", table=table, enabled=count)
            self._triggers_known[table] = count
            self.telemetry.triggers_installed.labels(table).set(count)

    def _publish(self) -> None:
        if self._floor is not None:
            self._view = View(self._totals.snapshot(), self._floor, self._memory)

    async def _finish(self, session: _Session) -> None:
        """Fold what is there and hand the lease on, if the database answers soon."""
        if not self.state.leader:
            return
        try:
            drained = False
            while not drained:
                _, drained = await _in_time(LAST_FOLD_PATIENCE, self._fold(session))
            await _in_time(LAST_FOLD_PATIENCE, journal.release_lease(session.working, self._who))
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


def _remember(memory: Memory, settlement: Settlement, now: int) -> Memory:
    # What the tables `recent` and `latest` hold now, without reading them; what is too old leaves with the next
    # reconciliation.
    if not settlement.completions and not settlement.sightings:
        return memory
    recent = {key: done for key, done in memory.recent.items() if done.completed_at > now - HOUR}
    for key, done in settlement.completions.items():
        if done.profit is None:
            recent.pop(key, None)
        else:
            recent[key] = done
    latest = dict(memory.latest)
    for place, at in settlement.sightings.items():
        latest[place] = max(at, latest.get(place, at))
    return Memory(recent, latest)


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
