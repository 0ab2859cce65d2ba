"""Interrupt when idle, poll when busy: whether the triggers should notify, and whether the exporter may sleep.

A transaction that notifies holds a lock of the whole server while it commits, so commits that notify go through one by
one. When they come fast the exporter tells the triggers to be quiet, and looks into the journal by itself, until they
come slowly again. Owns that decision, and the proof that no event is left behind: a writer that has seen the order to
be quiet may commit at any later time and will not say so.
"""

from collections import deque
from enum import StrEnum

from mfg_notify.core.xmin_horizon import XminHorizon

HIGH_WATER_RATE = 2500.0
"""Events a second from which on the triggers are quiet."""
LOW_WATER_RATIO = 0.6
"""What is left of that rate when they notify again."""
BUSY_SHARE = 0.8
"""Part of the time in which commits that notify may be under way before the triggers are quiet, whatever the rate."""
WINDOW = 0.25
"""Seconds over which events are counted, at least, before a rate is made of them."""
EVENTS_A_LOOK = 20
"""While the triggers are quiet, a fold waits until about so many events have come."""
POLL_SHORTEST = 0.015
"""Seconds from a fold to the next at least, however fast they come."""
POLL_LONGEST = 1.0
"""And at most."""
MAX_POLL_INTERVAL_UNDER_LOAD = 0.25
"""At most, where hurry has made them quiet: a lull is then a pause of the server, and what it held up comes."""
COMMITS = 8
"""Commits of ours that tell how long one takes now: the quickest of them. What else held one up says nothing."""
QUIET_EXIT_WINDOWS = 8
"""Windows in a row without hurry before the triggers notify again: each change of mind costs a few folds."""


class Policy(StrEnum):
    """What the user wants."""

    ALWAYS = "always"
    ADAPTIVE = "adaptive"
    NEVER = "never"


class NotifyMode:
    """What the triggers were told, and what follows for the exporter. Times are seconds of any steady clock.

    In the beginning nobody knows what the triggers were told last, so they are told anew.
    """

    def __init__(self, policy: Policy, now: float) -> None:
        self._policy = policy
        self._since = now
        self._events = 0
        self._rate = 0.0
        self._commits: deque[float] = deque(maxlen=COMMITS)
        self._hurry = False
        self._calm = 0
        self._told: bool | None = None
        self._frontier = XminHorizon()
        self._pause = POLL_SHORTEST

    @property
    def quiet(self) -> bool:
        """Tell whether the triggers were told to be quiet."""
        return self._told is True

    @property
    def wants_quiet(self) -> bool:
        """Tell whether they should be."""
        return self._policy is Policy.NEVER or (self._policy is Policy.ADAPTIVE and self._hurry)

    @property
    def must_tell(self) -> bool:
        """Tell whether the triggers were told something else, or nothing that is known of."""
        return self._told is not self.wants_quiet

    @property
    def may_sleep(self) -> bool:
        """Tell whether every event from now on comes with a notification."""
        return self._told is False and self._frontier.passed

    def count(self, events: int, now: float) -> None:
        """Take note of events that have come, and think again once a window is full."""
        self._events += events
        elapsed = now - self._since
        if elapsed < WINDOW:
            return
        self._rate = rate = self._events / elapsed
        self._events, self._since = 0, now
        limit = HIGH_WATER_RATE
        if self._commits:
            limit = min(limit, BUSY_SHARE / min(self._commits))
        if rate > limit:
            self._hurry = True
        self._calm = self._calm + 1 if rate < limit * LOW_WATER_RATIO else 0
        if self._calm >= QUIET_EXIT_WINDOWS:
            self._hurry = False

    def committed(self, seconds: float) -> None:
        """Take note of how long a commit of ours took that notified."""
        self._commits.append(max(seconds, 1e-6))

    def told(self, *, quiet: bool) -> None:
        """Take note that the triggers have been told, from now on."""
        self._told = quiet
        self._frontier.draw()
        self._pause = POLL_SHORTEST

    def leave(self) -> None:
        """Want quiet from now on: nobody will listen, unless the user wants notifications always."""
        if self._policy is not Policy.ALWAYS:
            self._policy = Policy.NEVER

    def doubt(self) -> None:
        """Forget what the triggers were told: somebody else has told them something else."""
        self._told = None

    def folded(self, xid: int, oldest: int) -> None:
        """Take note of a fold: its transaction, and the oldest one that was open when it began to look.

        A writer that has seen the order to be quiet had a number by then. Once all such have ended, and were folded,
        whoever writes says so.
        """
        self._frontier.folded(xid, oldest)

    def next_look(self, took: float) -> float:
        """Return the seconds from a fold that took that long to the next; only where the exporter may not sleep."""
        if self._told is False:
            # A transaction may stay open for hours: look less and less often.
            self._pause = min(2 * self._pause, POLL_LONGEST)
            return self._pause
        longest = POLL_LONGEST if self._policy is Policy.NEVER else MAX_POLL_INTERVAL_UNDER_LOAD
        wait = min(EVENTS_A_LOOK / self._rate, longest) if self._rate else longest
        return min(max(wait, took / 2, POLL_SHORTEST), POLL_LONGEST)
