"""The listening connection: LISTEN, and notifications in the order in which they arrive.

It never opens a transaction: a listener in a transaction keeps the server's notification queue from being emptied.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from psycopg import Notify, sql

from mfg_notify.postgres.connection import Connection, translated_errors

PING = "ping "
"""Payload that a session sends to itself: `ping ` and a number. It counts only if the own backend sent it."""
FOLD = "fold"
"""Payload by which a trigger asks for a fold without announcing an event."""
LONGEST = 2000
"""Bytes of the longest payload that is passed on. The triggers send shorter ones."""
TOO_LONG = "too long"
"""Replaces a longer payload."""


class Listener:
    """Notifications of one channel, queued until someone takes them.

    Backpressure: while `waiting_maximum` are queued, only those of the backend `own` are added and the others counted.
    An event among them is in the journal, too.
    """

    def __init__(self, connection: Connection, own: int, waiting_maximum: int) -> None:
        self._connection = connection
        self._own = own
        self._waiting_maximum = waiting_maximum
        self._waiting: deque[Notify] = deque()
        self._skipped = 0

    async def listen(self, channel: str) -> None:
        """Start to listen; nothing is missed after this returns.

        Notifications that arrive before that are discarded: their events are in the journal, and the first fold is
        still to come. (Under a flood the server sends many of them before it confirms the LISTEN.)
        """
        with translated_errors():
            # psycopg would decode and buffer what is received during LISTEN.
            self._connection.pgconn.notify_handler = None
            await self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    async def pump(self, on_arrival: Callable[[], None]) -> None:
        """Queue notifications, and call `on_arrival` after each batch, until the connection breaks.

        Raise `DatabaseUnavailable` then, or whatever `on_arrival` raises.
        """
        # Not psycopg's notifies(): waiting anew for each packet costs more than counting what is in it.
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        socket = self._connection.fileno()

        def read() -> None:
            try:
                if self._read():
                    on_arrival()
            except Exception as error:  # noqa: BLE001 - the event loop would only log it
                loop.remove_reader(socket)
                # The other connection may have broken in the same iteration, and have cancelled this one.
                if not ended.done():
                    ended.set_exception(error)

        loop.add_reader(socket, read)
        try:
            with translated_errors():
                await ended
        finally:
            loop.remove_reader(socket)

    def _read(self) -> bool:
        server = self._connection.pgconn
        server.consume_input()
        before = len(self._waiting) + self._skipped
        while one := server.notifies():
            if len(self._waiting) >= self._waiting_maximum and one.be_pid != self._own:
                self._skipped += 1
                continue
            # A SQL_ASCII database sends whatever bytes it was given.
            payload = one.extra.decode(errors="replace") if len(one.extra) <= LONGEST else TOO_LONG
            self._waiting.append(Notify(one.relname.decode(errors="replace"), payload, one.be_pid))
        return len(self._waiting) + self._skipped > before

    def take(self) -> list[Notify]:
        """Return the notifications since the last call, oldest first."""
        notifications = list(self._waiting)
        self._waiting.clear()
        return notifications

    def holds(self, payload: str) -> bool:
        """Tell whether an own notification with this payload is queued."""
        return any(one.pid == self._own and one.payload == payload for one in self._waiting)

    def take_skipped(self) -> int:
        """Return how many notifications were not queued since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped
