"""The listening connection: LISTEN, and notifications in the order in which they come.

It only listens, always outside a transaction: a listener in a transaction would pin the server's queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from psycopg import Notify, sql

from mfg_notify.postgres.connection import Connection, translated_errors

PING = "ping "
"""Payloads of ours that ask for an answer from ourselves: `ping ` and a number. They count from one's own backend."""
FOLD = "fold"
"""Payload that only says: look into the journal."""
LONGEST = 2000
"""Bytes of a payload that is kept. What the triggers send is shorter."""
TOO_LONG = "too long"
"""What is kept of a longer one."""
WAITING_MAXIMUM = 20_000
"""Notifications that may wait to be taken; a bound on memory, whoever floods the channel."""


class Listener:
    """Notifications of one channel, queued until someone takes them; `on_arrival` is called when some have come.

    When too many are waiting, only those of the backend `own` are queued and the others counted: an event among them is
    in the journal too.
    """

    def __init__(self, connection: Connection, own: int, on_arrival: Callable[[], None]) -> None:
        self._connection = connection
        self._own = own
        self._on_arrival = on_arrival
        self._waiting: deque[Notify] = deque()
        self._skipped = 0

    async def listen(self, channel: str) -> None:
        """Start to listen; from here on nothing is missed.

        What comes before this returns is not kept: its events are in the journal, and the first fold is still to come.
        (Under a flood the server sends for a long time before it says that it listens.)
        """
        with translated_errors():
            self._connection.add_notify_handler(_forget)
            await self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self._connection.remove_notify_handler(_forget)

    async def pump(self) -> None:
        """Queue notifications until the connection breaks. Raise `DatabaseUnavailable` then.

        Raises what `on_arrival` raises, too.
        """
        # Not psycopg's notifies(): to wait anew for each packet costs more than to count what is in it.
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        socket = self._connection.fileno()

        def read() -> None:
            try:
                self._read()
            except Exception as error:  # noqa: BLE001 - an event loop would only log it
                loop.remove_reader(socket)
                ended.set_exception(error)

        loop.add_reader(socket, read)
        try:
            with translated_errors():
                await ended
        finally:
            loop.remove_reader(socket)

    def _read(self) -> None:
        server = self._connection.pgconn
        server.consume_input()
        before = len(self._waiting) + self._skipped
        while one := server.notifies():
            if len(self._waiting) >= WAITING_MAXIMUM and one.be_pid != self._own:
                self._skipped += 1
                continue
            # The encoding is ours, but a SQL_ASCII database sends whatever bytes it was given.
            payload = one.extra.decode(errors="replace") if len(one.extra) <= LONGEST else TOO_LONG
            self._waiting.append(Notify(one.relname.decode(errors="replace"), payload, one.be_pid))
        if len(self._waiting) + self._skipped > before:
            self._on_arrival()

    def take(self) -> list[Notify]:
        """Return what has come since the last call, oldest first: payload, and the backend that sent it."""
        notifications = list(self._waiting)
        self._waiting.clear()
        return notifications

    def take_skipped(self) -> int:
        """Return how many were not queued since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped


def _forget(_: Notify) -> None:
    """Keep psycopg from keeping it."""
