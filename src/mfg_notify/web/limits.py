"""How much clients may use, and the rate at which the event loop works for them.

Owns the limits and the order in which requests and connections are served. Never looks at what clients send.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may use. Durations are in seconds."""

    max_requests: int = 40
    """Scrapes in flight, as in node_exporter; more get 503. 0: no limit."""
    max_connections: int = 512
    """Open connections. A further one evicts the longest idle."""
    request_seconds: float = 5.0
    """Deadline of a request, from the opening of the connection or the end of the last response on it."""
    response_seconds: float = 10.0
    """Deadline of a response, or of each event of a stream. Prometheus' default scrape timeout is the same."""
    turns_per_second: float = 100.0
    """Sustained rate of responses and accepted connections together. 100 take about a twentieth of a core."""
    turns_burst: float = 200.0
    """How many of these may exceed the sustained rate after a quiet time."""
    rendering_share: float = 0.2
    """Sustained share of a processor that rendering the page may take: the more it costs, the less often."""
    rendering_burst: float = 0.2
    """Seconds of processor time that may exceed the sustained share after a quiet time."""


class Turns:
    """A rate limiter (token bucket) with a FIFO queue that grants at most one turn per iteration of the event loop.

    So the exporter's own work never waits for more than one turn, however many clients there are.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = limits.turns_per_second
        self._burst = self._tokens = limits.turns_burst
        self._clock = clock
        self._refilled_at = clock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def take(self) -> None:
        """Wait for a turn."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if not self._scheduled:
            self._schedule()
        await turn

    def _schedule(self) -> None:
        self._scheduled = True
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._rate)
        self._refilled_at = now
        loop = asyncio.get_running_loop()
        if self._tokens >= 1:
            loop.call_soon(self._grant)
        else:
            loop.call_later((1 - self._tokens) / self._rate, self._grant)

    def _grant(self) -> None:
        self._scheduled = False
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self._tokens -= 1
                turn.set_result(None)
                break
        if self._waiting:
            self._schedule()
