"""What `mfg-notify tail` does: change events as they happen, in words or as JSON, and what could not be shown.

It only looks: it listens on the exporters' channel, reads the journal, and never writes. Events come by NOTIFY. Where
the triggers announce no content (many rows in one transaction, a text that does not travel, load, NOTIFY switched off)
it reads the journal, before an exporter folds the event away if it is quick enough. What it could not show it counts:
every event has a number, so what is missing is known.
"""

import json
import os
import secrets
import select
import signal
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import anyio
import msgspec
from rich.text import Text

from mfg_notify.core.board import describe_change
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.events import (
    Event,
    FactoryImage,
    PipelineImage,
    TaskImage,
    decode_change,
    decode_payload,
)
from mfg_notify.errors import DatabaseError, DatabaseUnavailable, ListenerSilent, MalformedEvent, SchemaNotReady
from mfg_notify.postgres.connection import Connection, connect, describe, translated_errors
from mfg_notify.postgres.journal import BARRIER
from mfg_notify.postgres.listener import FOLD, PING, Listener
from mfg_notify.postgres.queries import QUERY

WAITING_MAXIMUM = 20_000
"""Notifications that may wait to be shown; a bound on memory under a flood."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks at how far the journal has come."""
LOOK_INTERVAL_UNANNOUNCED = 0.2
"""The same where events come that nobody has announced."""
PATIENCE = 5.0
"""Seconds that the database may take to answer, or an own notification to come back."""
RETRY_INTERVAL = 1.0
"""Seconds between two tries to connect again."""
REASON_LOOKS = 5
"""Looks for which it is remembered why events may be missing: a gap is only known some looks later."""
CHUNK = 10_000
"""Journal rows read at once."""
REMEMBERED_MAXIMUM = 200_000
"""Events remembered as shown; beyond that a transaction that is still under way is no longer waited for."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that were not shown: how many, within which numbers, and why."""

    events: int
    first: int
    last: int
    reason: str


Item: TypeAlias = Event | Gap
Image: TypeAlias = PipelineImage | TaskImage | FactoryImage
Show: TypeAlias = Callable[[Sequence[Item]], Awaitable[None]]
"""Takes what there is to show. It is called now and then with nothing, to find out whether anyone still reads."""


class Account:
    """Which events have been shown, and which never will be: pure bookkeeping by their numbers.

    An event that is not shown is missing once its transaction has ended for certain and everything that it announced
    has been heard: `look` notes how far the journal has come and which transactions are under way, `settle` is told,
    later, that all that were announced by those older than `oldest_running` have been heard of.
    """

    def __init__(self, position: int) -> None:
        """Begin after the event with this number."""
        self.floor = position
        self._shown: set[int] = set()
        self._looks: deque[tuple[int, int]] = deque()

    def take(self, number: int) -> bool:
        """Note that an event is shown; False if it was before."""
        if number in self._shown:
            return False
        self._shown.add(number)
        return True

    def look(self, position: int, transaction: int) -> None:
        """Note that the journal has come to `position`, all of it by transactions older than `transaction`."""
        self._looks.append((position, transaction))

    def settle(self, oldest_running: int, reason: str) -> Gap | None:
        """Return what is missing among the events of transactions that have ended."""
        decided = self.floor
        while self._looks and (self._looks[0][1] <= oldest_running or len(self._shown) > REMEMBERED_MAXIMUM):
            decided = max(decided, self._looks.popleft()[0])
        numbers = range(self.floor + 1, decided + 1)
        missing = len(numbers) - sum(number in numbers for number in self._shown)
        gap = None
        if missing:
            first = next(number for number in numbers if number not in self._shown)
            last = next(number for number in reversed(numbers) if number not in self._shown)
            gap = Gap(missing, first, last, reason)
        self.floor = decided
        self._shown = {number for number in self._shown if number > decided}
        return gap


# -------------------------------------------------------------------------------------------- following --


async def follow(conninfo: str, show: Show, remark: Callable[[str], None]) -> None:
    """Show what happens from now on until cancelled; `remark` is told what to know about it, in a sentence.

    A connection that breaks is made again, and what came meanwhile is shown or counted. Raise `DatabaseError` where
    the first one cannot be had, and whatever `show` raises.
    """
    account: Account | None = None
    works = False
    known: str | None = None

    def note(session: _Session) -> None:
        nonlocal works, known
        remark("connected again" if works else f"following {describe(conninfo)}")
        if not session.notify:
            remark(
                "NOTIFY is switched off in this database: events are read from the journal, and those that an exporter "
                "folds first are counted"
            )
        works, known = True, None

    while True:
        error: DatabaseError | None = None
        try:
            async with await _connect(conninfo) as listening, await _connect(conninfo) as reading:
                session = _Session(listening, reading, show, note)
                account = await session.begin(account)
                await session.run()
        except* DatabaseError as group:
            error = _first(group)
        if error is not None:
            if not works:
                raise error
            # One remark a change of state, not one a try.
            if error.reason != known:
                remark(f"{error}; trying again")
            known = error.reason
        await anyio.sleep(RETRY_INTERVAL)


async def _connect(conninfo: str) -> Connection:
    connection = await connect(conninfo)
    with translated_errors():
        await connection.execute(QUERY["read_only_session"])
    return connection


class _Session:
    """Two connections: one listens, the other looks."""

    def __init__(
        self, listening: Connection, reading: Connection, show: Show, note: Callable[["_Session"], None]
    ) -> None:
        """Take what is shown to `show`, and this to `note` as soon as an own notification has come: then it works."""
        self.notify = True
        self._quiet = False
        """The triggers are told not to notify for now."""
        self._works = False
        self._note_that_it_works = note
        self._listening = listening
        self._reading = reading
        self._show = show
        self._own_channel = f"mfg_notify_tail_{secrets.token_hex(8)}"
        self._look_number = 0
        self._oldest: dict[int, int] = {}
        """The oldest transaction that was under way at each look whose ping has not come back."""
        self._answered = anyio.current_time()
        self._asked = True
        """Someone has asked to look into the journal."""
        self._reasons: dict[str, int] = {}
        """Why events may be missing, with the look at which that was last so."""

    async def begin(self, account: Account | None) -> Account:
        """Listen; return the account of what is shown, which is the given one if that can be gone on with."""
        with translated_errors(), _in_time():
            if await self._ask("is_installed") != [(True,)]:
                raise SchemaNotReady("the triggers are not installed in this database; run `mfg-notify migrate up`")
            self._settings = await self._ask("settings")
            if not self._settings:
                raise SchemaNotReady("mfg_notify.settings has lost its row; run `mfg-notify migrate down`, then up")
            _, channel, self.notify, self._backend_pid = self._settings[0]
            self._listener = Listener(self._listening, self._backend_pid, WAITING_MAXIMUM)
            await self._listener.listen(self._own_channel)
            await self._listener.listen(channel)
            [(position, _)] = await self._ask("tail_position")
        if account is None or position < account.floor:
            account = Account(position)
        elif position > account.floor:
            self._reasons["they came while there was no connection"] = 0
        self._account = account
        return account

    async def run(self) -> None:
        """Show what comes until the connection breaks. Raise `DatabaseError` then, in a group."""
        self._wake = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listener.pump, lambda: self._wake.set())
            await self._work()

    async def _work(self) -> None:
        look_due = rest_until = anyio.current_time()
        while True:
            self._wake = anyio.Event()
            await self._show_what_came()
            now = anyio.current_time()
            if now >= look_due:
                await self._look()
                found = await self._read_journal()
                look_due = now + (
                    LOOK_INTERVAL_UNANNOUNCED if found or self._quiet or not self.notify else LOOK_INTERVAL
                )
            elif self._asked and now >= rest_until:
                found = await self._read_journal()
                # Whoever knows the channel may ask without end.
                rest_until = now if found else now + LOOK_INTERVAL_UNANNOUNCED
            due = min(look_due, rest_until) if self._asked else look_due
            with anyio.move_on_after(max(0.0, due - anyio.current_time())):
                await self._wake.wait()

    async def _show_what_came(self) -> None:
        items: list[Item] = []
        for notification in self._listener.take():
            payload = notification.payload
            if notification.channel == self._own_channel:
                if notification.pid == self._backend_pid:
                    self._answered = anyio.current_time()
                    if not self._works:
                        self._works = True
                        self._note_that_it_works(self)
                    items.extend(self._settle(int(payload.removeprefix(PING))))
            elif payload == FOLD:
                self._asked = True
                self._note("announced without content, and folded before they could be read")
            elif not payload.startswith((PING, BARRIER)):
                try:
                    event = decode_payload(payload)
                except MalformedEvent:
                    self._note("not events of this version")
                else:
                    if self._account.take(event.id):
                        items.append(event)
        if self._listener.take_skipped():
            self._note("they came faster than they could be shown")
        await self._show(items)

    async def _look(self) -> None:
        """Ask how far the journal has come."""
        with translated_errors(), _in_time():
            if await self._ask("settings") != self._settings:
                raise SchemaNotReady("mfg_notify.settings has changed")
            [(position, self._quiet)] = await self._ask("tail_position")
            self._look_number += 1
            ping = f"{PING}{self._look_number}"
            [(oldest, own, _)] = await self._ask("tail_look", channel=self._own_channel, ping=ping)
        self._account.look(position, own)
        if self._quiet:
            self._note("the triggers announce nothing while changes come fast, and an exporter folded them first")
        self._oldest[self._look_number] = oldest
        # In looks as well: whoever pauses what we print stops the clock for us, not for the database.
        if len(self._oldest) > PATIENCE / LOOK_INTERVAL and anyio.current_time() - self._answered > PATIENCE:
            raise ListenerSilent(
                f"an own notification did not come back within {PATIENCE:.0f} s: the network stalls, or a pooler in "
                "transaction mode (PgBouncer) is in the way; connect to PostgreSQL itself"
            )

    async def _read_journal(self) -> bool:
        """Show what is in the journal and was not announced yet; False if there was nothing."""
        self._asked = False
        with translated_errors(), _in_time():
            rows = await self._ask("tail_journal", after=self._account.floor, chunk=CHUNK)
        items: list[Item] = []
        for number, xid, at, body in rows:
            try:
                event = Event(number, xid, at, decode_change(body))
            except MalformedEvent:
                self._note("not events of this version")
            else:
                if self._account.take(number):
                    items.append(event)
        await self._show(items)
        return bool(items)

    def _note(self, reason: str) -> None:
        self._reasons[reason] = self._look_number

    def _settle(self, look: int) -> list[Gap]:
        reason = " or ".join(self._reasons) or (
            "not announced and gone from the journal, or rolled back"
            if self.notify
            else "folded before they could be read, or rolled back"
        )
        gap = self._account.settle(self._oldest[look], reason)
        self._oldest = {number: oldest for number, oldest in self._oldest.items() if number > look}
        self._reasons = {reason: noted for reason, noted in self._reasons.items() if noted + REASON_LOOKS > look}
        return [gap] if gap is not None else []

    async def _ask(self, name: str, **parameters: object) -> list[tuple[Any, ...]]:
        return await (await self._reading.execute(QUERY[name], parameters or None)).fetchall()


@contextmanager
def _in_time() -> Iterator[None]:
    try:
        with anyio.fail_after(PATIENCE):
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable(f"the database did not answer within {PATIENCE:.0f} s") from error


def _first(group: BaseExceptionGroup[DatabaseError]) -> DatabaseError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def run(conninfo: str, output: "Output", remark: Callable[[str], None]) -> None:
    """Follow until SIGINT or SIGTERM, or until nobody reads the output any more. Raise as `follow` does."""
    error: DatabaseError | None = None
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow, conninfo, output.show, remark)
                async for _ in signals:
                    tasks.cancel_scope.cancel()
        except* BrokenPipeError:
            pass  # nobody reads any more: that is the end
        except* DatabaseError as group:
            error = _first(group)
    if error is not None:
        raise error


# ------------------------------------------------------------------------------------------------- looks --


def printable(text: str) -> str:
    """Return the text without what a terminal would obey: others have written it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


_OPERATIONS = {"I": "insert", "U": "update", "D": "delete", "T": "truncate"}
_STYLES = {"COMPLETED": "green", "FAILED": "red", "CANCELLED": "red"}


def as_json(item: Item) -> str:
    """Return the item as a JSON object without line breaks: an event with the names of its columns, or a gap."""
    if isinstance(item, Gap):
        gap = {"events": item.events, "first_id": item.first, "last_id": item.last, "reason": item.reason}
        return json.dumps({"not_shown": gap}, ensure_ascii=False)
    change = item.change
    image = change.new or change.old
    found = {
        "id": item.id,
        "xid": item.xid,
        "at": _time(item.at).isoformat(timespec="microseconds"),
        "table": item.table,
        "operation": _OPERATIONS[change.operation],
        "key": change.key,
        "player_id": image.player_id if image is not None else None,
        "old": None if change.old is None else _columns(change.old, times=False),
        "new": None if change.new is None else _columns(change.new, times=True),
    }
    return json.dumps(found, ensure_ascii=False)


def _columns(image: Image, *, times: bool) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(image).items():
        if not name.endswith("_at"):
            columns[name] = value
        elif times:
            columns[name] = None if value is None else _time(value).isoformat(timespec="microseconds")
    return columns


def as_line(item: Item) -> Text:
    """Return the item as a line for people."""
    if isinstance(item, Gap):
        one = item.events == 1
        numbers = f"number {item.first}" if one else f"within numbers {item.first} to {item.last}"
        return Text(
            f"… {item.events} {'event is' if one else 'events are'} not shown ({numbers}): {item.reason}", "dim"
        )
    said = describe_change(item)
    operation = item.change.operation
    line = Text()
    line.append(f"{_time(item.at).astimezone():%H:%M:%S.%f}"[:-3], "dim")
    if operation == "T":
        return line.append(f"  {said.kind}  {said.remark}")
    line.append(f"  player {said.player}  {said.kind:<8}  {printable(said.key)}  {printable(said.subject)}")
    before = "new" if operation == "I" else said.before or "unknown"
    after = "deleted" if operation == "D" else said.after or "unknown"
    status = after if before == after else f"{before} → {after}"
    # Of a factory it is the supply; all else is known by its own words.
    words = f"supply {status}" if said.kind == "factory" else status
    line.append("  ").append(printable(words), "dim" if before == after else _STYLES.get(after, "yellow"))
    if said.ship:
        line.append(f"  ship {printable(said.ship)}")
    if operation == "U" and said.remark:
        line.append(f"  {printable(said.remark)}", "bold")
    return line


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / MICROSECONDS_PER_SECOND, UTC)


class Output:
    """Writes lines to a file descriptor; however slowly they are read, the event loop does not wait in a write."""

    def __init__(self, descriptor: int, line: Callable[[Item], str]) -> None:
        self._descriptor = descriptor
        self._line = line
        self._poll = select.poll()
        self._poll.register(descriptor, 0)
        # A file takes everything at once, and cannot be waited for.
        self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)

    async def show(self, items: Sequence[Item]) -> None:
        """Write the items. Raise `BrokenPipeError` when nobody reads any more, even where there is nothing to write."""
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in self._poll.poll(0)):
            raise BrokenPipeError
        text = "".join(f"{self._line(item)}\n" for item in items).encode()
        while text:
            if self._waits:
                await anyio.wait_writable(self._descriptor)
            # A pipe that can be written to takes this much without making us wait.
            text = text[os.write(self._descriptor, text[: select.PIPE_BUF]) :]
