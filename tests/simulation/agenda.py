"""Time: what happens next, in model seconds. Owns the order of everything and the trace of what has happened."""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

TRACE_LENGTH = 40
NOTES_LENGTH = 25

Action = Callable[..., object]


class InvariantError(AssertionError):
    """An invariant does not hold."""


class Agenda:
    """Actions by the time at which they are due; those of one moment run in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._added = 0
        self._trace: deque[tuple[float, Action, tuple[Any, ...]]] = deque(maxlen=TRACE_LENGTH)
        self._notes: deque[tuple[float, str]] = deque(maxlen=NOTES_LENGTH)

    def after(self, delay: float, action: Action, *arguments: object) -> None:
        """Let something happen in so many seconds."""
        self._added += 1
        heappush(self._heap, (self.now + delay, self._added, action, arguments))

    def at(self, time: float, action: Action, *arguments: object) -> None:
        """Let something happen at that time, or now if the time has passed."""
        self._added += 1
        heappush(self._heap, (max(time, self.now), self._added, action, arguments))

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, action, arguments = heappop(self._heap)
        self.steps += 1
        self._trace.append((self.now, action, arguments))
        action(*arguments)

    def note(self, text: str) -> None:
        """Add a line to the notes, which go back further than the trace."""
        self._notes.append((self.now, text))

    def trace(self) -> str:
        """Return the notes and the last steps, one a line."""
        notes = [f"{at:10.4f}  {text}" for at, text in self._notes]
        steps = [
            f"{at:10.4f}  {action.__qualname__.rpartition('.')[2].strip('_')} {' '.join(map(_brief, arguments))}"
            for at, action, arguments in self._trace
        ]
        return "\n".join(["notes:", *notes, "last steps:", *steps])


def _brief(value: object) -> str:
    text = value.__qualname__ if callable(value) and hasattr(value, "__qualname__") else str(value)
    return text if len(text) <= 90 else f"{text[:89]}…"
