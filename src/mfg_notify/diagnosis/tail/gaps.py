"""Which events were shown and which never will be: pure bookkeeping by event id."""

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from mfg_notify.core.events import Event

REMEMBERED_MAXIMUM = 200_000
"""Shown events to remember; if there are more, gaps are reported without waiting for open transactions."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that were not shown: how many, between which ids, and why."""

    events: int
    first: int
    last: int
    reason: str


Item: TypeAlias = Event | Gap


class ShownEvents:
    """Finds the gaps between the events that were shown.

    Every event has an id, and ids are consecutive. An id that was not shown is missing for certain once its transaction
    has ended and everything that this transaction notified has arrived. `observe` records how far the journal has come
    and which transactions are open; `settle` is called later, when every notification of the transactions older than
    `oldest_running` has arrived.
    """

    def __init__(self, position: int) -> None:
        """Start after the event with this id."""
        self.floor = position
        """Every event up to this id was shown or is part of a gap that was reported."""
        self._shown: set[int] = set()
        self._observed: deque[tuple[int, int]] = deque()

    def add(self, number: int) -> bool:
        """Record that an event is shown; return False if it was shown before."""
        if number in self._shown:
            return False
        self._shown.add(number)
        return True

    def observe(self, position: int, transaction: int) -> None:
        """Record that only transactions older than `transaction` have ids up to `position`."""
        self._observed.append((position, transaction))

    def settle(self, oldest_running: int, reason: str) -> Gap | None:
        """Return what is missing among the events of transactions that have ended."""
        settled = self.floor
        while self._observed and (self._observed[0][1] <= oldest_running or len(self._shown) > REMEMBERED_MAXIMUM):
            settled = max(settled, self._observed.popleft()[0])
        numbers = range(self.floor + 1, settled + 1)
        missing = len(numbers) - sum(number in numbers for number in self._shown)
        gap = None
        if missing:
            first = next(number for number in numbers if number not in self._shown)
            last = next(number for number in reversed(numbers) if number not in self._shown)
            gap = Gap(missing, first, last, reason)
        self.floor = settled
        self._shown = {number for number in self._shown if number > settled}
        return gap
