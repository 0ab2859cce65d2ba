"""The listening connection: LISTEN, and notifications in the order in which they come.

It only listens, always outside a transaction: a listener in a transaction would pin the server's queue.
"""

from collections import deque
from collections.abc import Callable
from contextlib import aclosing

from psycopg import Notify, sql

from mfg_notify.postgres.connection import Connection, translated_errors

PING = "ping "
"""Payloads of ours that ask for an answer from ourselves: `ping ` and a number. They count from one's own backend."""
FOLD = "fold"
"""Payload that only says: look into the journal."""
LONGEST = 2000
"""Characters of a payload that is kept. What the triggers send is shorter."""
TOO_LONG = "too long"
"""What is kept of a longer one."""
WAITING_MAXIMUM = 20_000
"""Notifications that may wait to be taken; a bound on memory, whoever floods the channel."""


class Listener:
    """Notifications of one channel, queued until someone takes them; `on_arrival` is called for each.

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
        """Queue notifications until the connection breaks. Raise `DatabaseUnavailable` then."""
        # The generator is read to its end: leaving it early would lose the rest of a packet. So nothing is done in
        # the loop but to append.
        waiting = self._waiting
        with translated_errors():
            async with aclosing(self._connection.notifies()) as notifications:
                async for notification in notifications:
                    if len(waiting) >= WAITING_MAXIMUM and notification.pid != self._own:
                        self._skipped += 1
                    elif len(notification.payload) > LONGEST:
                        waiting.append(notification._replace(payload=TOO_LONG))
                    else:
                        waiting.append(notification)
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
