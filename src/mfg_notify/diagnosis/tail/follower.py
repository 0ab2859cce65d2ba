"""Follows the change events of a game database: it listens on the exporters' channel and reads the journal.

It only reads. Most events arrive by NOTIFY. If a transaction changes many rows, if a text is not ASCII, or if NOTIFY is
disabled, the triggers notify no content. The follower then reads the journal, but an exporter may fold an event away
before that; `gaps` counts such events.
"""

import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import anyio

from mfg_notify.core.events import decode_payload
from mfg_notify.diagnosis.tail.gaps import Gap, Item, ShownEvents
from mfg_notify.errors import DatabaseError, DatabaseUnavailable, ListenerSilent, MalformedEvent, SchemaNotReady
from mfg_notify.postgres.connection import Connection, connect, describe
from mfg_notify.postgres.installation import read_installation
from mfg_notify.postgres.journal import BARRIER
from mfg_notify.postgres.journal_reader import read_page, read_position, send_marker
from mfg_notify.postgres.listener import FOLD, PING, Listener

POLL_INTERVAL = 1.0
"""Seconds between two polls of the journal."""
POLL_INTERVAL_UNNOTIFIED = 0.2
"""Seconds between two polls while events arrive that the triggers do not notify."""
TIMEOUT = 5.0
"""Seconds that an answer of the database or a ping to this session may take."""
RETRY_INTERVAL = 1.0
"""Seconds between two attempts to connect."""
REASON_POLLS = 5
"""Polls for which a reason is remembered: a gap is only found some polls after its cause."""
QUEUE_SIZE = 20_000
"""Notifications that may wait to be shown. It bounds the memory if someone floods the channel."""
PAGE_SIZE = 10_000
"""Journal rows to read at once."""

Show: TypeAlias = Callable[[Sequence[Item]], Awaitable[None]]
"""Shows items. It is also called without items now and then, so that it notices when its reader is gone."""
Report: TypeAlias = Callable[[str], None]
"""Receives one sentence about the state of the connection."""


async def run(conninfo: str, schema: str, show: Show, report: Report) -> None:
    """Follow until SIGINT or SIGTERM arrives or the reader of the output is gone. Raises what `follow` raises."""
    error: DatabaseError | None = None
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow, conninfo, schema, show, report)
                async for _ in signals:
                    tasks.cancel_scope.cancel()
        except* BrokenPipeError:
            pass  # the reader is gone, which is a normal end
        except* DatabaseError as group:
            error = _first(group)
    if error is not None:
        raise error


async def follow(conninfo: str, schema: str, show: Show, report: Report) -> None:
    """Show what happens to the game in `schema` from now on, until cancelled.

    If the connection breaks, connect again, and show or count what happened meanwhile. Raise `DatabaseError` if the
    first connection fails, and whatever `show` raises.
    """
    shown: ShownEvents | None = None
    established = False
    last_reason: str | None = None

    def report_established(session: _Session) -> None:
        nonlocal established, last_reason
        report("connected again" if established else f"following {describe(conninfo)}")
        if not session.notify:
            report(
                "NOTIFY is switched off in this database: events are read from the journal, and those that an exporter "
                "folds first are counted"
            )
        established, last_reason = True, None

    while True:
        error: DatabaseError | None = None
        try:
            async with (
                await connect(conninfo, read_only=True) as listening,
                await connect(conninfo, read_only=True) as reading,
            ):
                session = _Session(listening, reading, schema, show, report_established)
                shown = await session.begin(shown)
                await session.run()
        except* DatabaseError as group:
            error = _first(group)
        if error is not None:
            if not established:
                raise error
            # One report per change of state, not one per attempt.
            if error.reason != last_reason:
                report(f"{error}; trying again")
            last_reason = error.reason
        await anyio.sleep(RETRY_INTERVAL)


class _Session:
    """Two connections: one listens, the other polls the journal."""

    def __init__(
        self,
        listening: Connection,
        reading: Connection,
        schema: str,
        show: Show,
        on_established: Callable[["_Session"], None],
    ) -> None:
        """Prepare a session. It calls `on_established` with itself as soon as its first ping has come back."""
        self.notify = True
        """False: this installation never notifies."""
        self._notify_disabled = False
        """The leader has disabled NOTIFY for now."""
        self._established = False
        self._on_established = on_established
        self._listening = listening
        self._reading = reading
        self._schema = schema
        self._show = show
        self._own_channel = f"mfg_notify_tail_{secrets.token_hex(8)}"
        self._polls = 0
        self._oldest_running: dict[int, int] = {}
        """The oldest transaction that was open at each poll whose ping has not come back."""
        self._answered_at = anyio.current_time()
        self._journal_requested = True
        """A payload has asked to read the journal."""
        self._reasons: dict[str, int] = {}
        """Why events may be missing, with the last poll for which that was true."""

    async def begin(self, shown: ShownEvents | None) -> ShownEvents:
        """Listen, and return the record of what is shown: the given one if the journal continues it."""
        with _time_limit():
            self._installation = await read_installation(self._reading, self._schema)
            self.notify = self._installation.notify
            self._listener = Listener(self._listening, self._installation.backend_pid, QUEUE_SIZE)
            await self._listener.listen(self._own_channel)
            await self._listener.listen(self._installation.channel)
            last_id = (await read_position(self._reading)).last_id
        if shown is None or last_id < shown.floor:
            shown = ShownEvents(last_id)
        elif last_id > shown.floor:
            self._reasons["they came while there was no connection"] = 0
        self._shown = shown
        return shown

    async def run(self) -> None:
        """Show events until the connection breaks. Raise `DatabaseError` then, in a group."""
        self._wake = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listener.pump, lambda: self._wake.set())
            await self._work()

    async def _work(self) -> None:
        poll_due = rest_until = anyio.current_time()
        while True:
            self._wake = anyio.Event()
            await self._show_notifications()
            now = anyio.current_time()
            if now >= poll_due:
                await self._poll()
                found = await self._show_journal()
                unnotified = found or self._notify_disabled or not self.notify
                poll_due = now + (POLL_INTERVAL_UNNOTIFIED if unnotified else POLL_INTERVAL)
            elif self._journal_requested and now >= rest_until:
                found = await self._show_journal()
                # Anyone who knows the channel can send such requests without end: rest after one that found nothing.
                rest_until = now if found else now + POLL_INTERVAL_UNNOTIFIED
            due = min(poll_due, rest_until) if self._journal_requested else poll_due
            with anyio.move_on_after(max(0.0, due - anyio.current_time())):
                await self._wake.wait()

    async def _show_notifications(self) -> None:
        items: list[Item] = []
        for notification in self._listener.take():
            payload = notification.payload
            if notification.channel == self._own_channel:
                if notification.pid == self._installation.backend_pid:
                    self._answered_at = anyio.current_time()
                    if not self._established:
                        self._established = True
                        self._on_established(self)
                    items.extend(self._settle(int(payload.removeprefix(PING))))
            elif payload == FOLD:
                self._journal_requested = True
                self._add_reason("notified without content, and folded before they could be read")
            elif not payload.startswith((PING, BARRIER)):
                try:
                    event = decode_payload(payload)
                except MalformedEvent:
                    self._add_reason("not events of this version")
                else:
                    if self._shown.add(event.id):
                        items.append(event)
        if self._listener.take_skipped():
            self._add_reason("they came faster than they could be shown")
        await self._show(items)

    async def _poll(self) -> None:
        """Ask how far the journal has come, and ping this session."""
        with _time_limit():
            if await read_installation(self._reading, self._schema) != self._installation:
                raise SchemaNotReady("mfg_notify.settings has changed")
            position = await read_position(self._reading)
            self._polls += 1
            marker = await send_marker(self._reading, self._own_channel, f"{PING}{self._polls}")
        self._shown.observe(position.last_id, marker.own)
        self._notify_disabled = position.notify_disabled
        if self._notify_disabled:
            self._add_reason("NOTIFY is disabled while changes come fast, and an exporter folded them first")
        self._oldest_running[self._polls] = marker.oldest_running
        # Count polls as well as seconds: a reader that pauses our output stops this process, not the database.
        unanswered = len(self._oldest_running) > TIMEOUT / POLL_INTERVAL
        if unanswered and anyio.current_time() - self._answered_at > TIMEOUT:
            raise ListenerSilent(
                f"an own notification did not come back within {TIMEOUT:.0f} s: the network stalls, or a pooler in "
                "transaction mode (PgBouncer) is in the way; connect to PostgreSQL itself"
            )

    async def _show_journal(self) -> bool:
        """Show the events in the journal that were not notified; return False if there were none."""
        self._journal_requested = False
        with _time_limit():
            page = await read_page(self._reading, self._shown.floor, PAGE_SIZE)
        if page.malformed:
            self._add_reason("not events of this version")
        items = [event for event in page.events if self._shown.add(event.id)]
        await self._show(items)
        return bool(items)

    def _add_reason(self, reason: str) -> None:
        self._reasons[reason] = self._polls

    def _settle(self, poll: int) -> list[Gap]:
        reason = " or ".join(self._reasons) or (
            "not notified and gone from the journal, or rolled back"
            if self.notify
            else "folded before they could be read, or rolled back"
        )
        gap = self._shown.settle(self._oldest_running[poll], reason)
        self._oldest_running = {number: xid for number, xid in self._oldest_running.items() if number > poll}
        self._reasons = {reason: last for reason, last in self._reasons.items() if last + REASON_POLLS > poll}
        return [gap] if gap is not None else []


@contextmanager
def _time_limit() -> Iterator[None]:
    try:
        with anyio.fail_after(TIMEOUT):
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable(f"the database did not answer within {TIMEOUT:.0f} s") from error


def _first(group: BaseExceptionGroup[DatabaseError]) -> DatabaseError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
