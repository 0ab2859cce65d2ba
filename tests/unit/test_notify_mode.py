"""When the triggers are told to be quiet, and that no event is left behind when they are told to notify again."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfg_notify.core.notify_mode import (
    BUSY_SHARE,
    COMMITS,
    EVENTS_A_LOOK,
    HIGH_WATER_RATE,
    LOW_WATER_RATIO,
    MAX_POLL_INTERVAL_UNDER_LOAD,
    POLL_LONGEST,
    POLL_SHORTEST,
    QUIET_EXIT_WINDOWS,
    WINDOW,
    NotifyMode,
    Policy,
)


class Hours:
    """An attention, and the windows that have gone by."""

    def __init__(self, policy: Policy = Policy.ADAPTIVE) -> None:
        self.attention = NotifyMode(policy, now=100.0)
        self.now = 100.0

    def window(self, rate: float) -> bool:
        """Let events come at that rate for one window; return whether quiet is wanted after it."""
        self.now += WINDOW
        self.attention.count(round(rate * WINDOW), self.now)
        return self.attention.wants_quiet

    def commits_take(self, seconds: float) -> None:
        """Let commits that notify take that long now."""
        for _ in range(COMMITS):
            self.attention.committed(seconds)


def test_quiet_when_changes_come_fast_loud_when_slowly_and_not_between() -> None:
    hours = Hours()
    between = HIGH_WATER_RATE * (1 + LOW_WATER_RATIO) / 2
    assert not hours.window(between)
    assert hours.window(HIGH_WATER_RATE + 10)
    assert all(hours.window(between) for _ in range(3 * QUIET_EXIT_WINDOWS))
    assert all(hours.window(0) for _ in range(QUIET_EXIT_WINDOWS - 1))
    assert not hours.window(0)
    assert not hours.window(between)


def test_one_slow_window_is_not_calm() -> None:
    hours = Hours()
    hours.window(HIGH_WATER_RATE * 2)
    for _ in range(5):
        assert all(hours.window(0) for _ in range(QUIET_EXIT_WINDOWS - 1))
        assert hours.window(HIGH_WATER_RATE * 2)


def test_slow_commits_make_quiet_at_a_lower_rate() -> None:
    hours = Hours()
    hours.commits_take(0.005)
    limit = BUSY_SHARE / 0.005
    assert not hours.window(limit * 0.9)
    assert hours.window(limit * 1.1)


def test_a_single_slow_commit_says_nothing() -> None:
    hours = Hours()
    hours.attention.committed(10.0)
    hours.attention.committed(0.0001)
    assert not hours.window(1000)
    hours.commits_take(0.0001)
    hours.attention.committed(10.0)
    assert not hours.window(1000)


def test_the_first_commits_count_already() -> None:
    hours = Hours()
    hours.attention.committed(0.005)
    hours.attention.committed(0.006)
    assert hours.window(BUSY_SHARE / 0.005 * 1.1)


@pytest.mark.parametrize("policy", [Policy.ALWAYS, Policy.NEVER])
def test_what_the_user_wants_stands_whatever_comes(policy: Policy) -> None:
    hours = Hours(policy)
    for rate in (0, 100_000, 0):
        assert hours.window(rate) is (policy is Policy.NEVER)


@pytest.mark.parametrize("policy", list(Policy))
def test_who_leaves_wants_quiet_unless_notifications_are_always_wanted(policy: Policy) -> None:
    attention = NotifyMode(policy, now=0.0)
    attention.leave()
    assert attention.wants_quiet is (policy is not Policy.ALWAYS)


def test_the_triggers_are_told_in_the_beginning_and_when_somebody_else_has_told_them() -> None:
    attention = NotifyMode(Policy.ADAPTIVE, now=0.0)
    assert attention.must_tell
    attention.told(quiet=False)
    told = attention.must_tell
    attention.doubt()
    assert (told, attention.must_tell, attention.may_sleep) == (False, True, False)


def test_how_often_the_journal_is_looked_into() -> None:
    hours = Hours(Policy.NEVER)
    hours.attention.told(quiet=True)
    assert hours.attention.next_look(0.001) == POLL_LONGEST
    hours.window(HIGH_WATER_RATE * 2)
    assert hours.attention.next_look(0.001) == POLL_SHORTEST
    # A fold that takes longer is followed by a longer rest.
    assert hours.attention.next_look(0.2) == 0.1
    hours.window(100)
    assert hours.attention.next_look(0.001) == pytest.approx(EVENTS_A_LOOK / 100, rel=0.1)
    hours.window(0)
    assert hours.attention.next_look(0.001) == POLL_LONGEST
    hours.attention.told(quiet=False)
    looks = [hours.attention.next_look(0.001) for _ in range(10)]
    assert looks == sorted(looks)
    assert looks[0] < 0.1
    assert looks[-1] == POLL_LONGEST


def test_a_lull_in_a_hurry_is_not_slept_through() -> None:
    hours = Hours()
    assert hours.window(HIGH_WATER_RATE * 2)
    hours.attention.told(quiet=True)
    assert hours.window(0)
    assert hours.attention.next_look(0.001) == MAX_POLL_INTERVAL_UNDER_LOAD


# ---------------------------------------------------------------------------------------- no event is left behind --


@dataclass
class Writer:
    """A transaction of the game: it has a number, then looks at the flag, writes, and commits much later."""

    xid: int
    silent: bool | None = None


@dataclass
class Server:
    """Numbers, the flag, who is open, and which events are committed and not folded yet."""

    next_xid: int = 10
    latest_completed: int = 9
    quiet: bool = True
    open: list[Writer] = field(default_factory=list)
    committed_in_silence: int = 0

    def begin(self) -> Writer:
        """Give a transaction its number."""
        writer = Writer(self.next_xid)
        self.next_xid += 1
        self.open.append(writer)
        return writer

    def end(self, writer: Writer) -> None:
        """Commit."""
        self.open.remove(writer)
        self.latest_completed = max(self.latest_completed, writer.xid)
        self.committed_in_silence += writer.silent is True

    def oldest(self) -> int:
        """Return a snapshot's xmin."""
        return min((writer.xid for writer in self.open), default=self.latest_completed + 1)


XminHorizon = Callable[[Server, int], tuple[int, int]]
"""What is told to `folded`, of a server and the fold's own number."""
RULES: dict[str, XminHorizon] = {
    "as it is": lambda server, xid: (xid, server.oldest()),
    "taken out": lambda _, xid: (xid, xid),
    "the highest number of a snapshot": lambda server, _: (server.latest_completed + 1, server.oldest()),
}


def left_behind(steps: list[int], rule: XminHorizon) -> bool:
    """Play the steps; tell whether the exporter went to sleep while somebody could still commit in silence."""
    server = Server()
    attention = NotifyMode(Policy.ADAPTIVE, now=0.0)
    attention.told(quiet=True)
    for step in steps:
        kind, which = step % 5, step // 5
        if kind == 0:
            server.begin()
        elif kind == 1 and server.open:
            writer = server.open[which % len(server.open)]
            if writer.silent is None:
                writer.silent = server.quiet
        elif kind == 2 and server.open:
            server.end(server.open[which % len(server.open)])
        elif kind == 3 and server.quiet:
            server.quiet = False
            attention.told(quiet=False)
        elif kind == 4:
            known = rule(server, server.next_xid)
            fold = server.begin()
            server.committed_in_silence = 0
            server.end(fold)
            attention.folded(*known)
        if attention.may_sleep and (server.committed_in_silence or any(writer.silent for writer in server.open)):
            return True
    return False


STEPS = st.lists(st.integers(0, 24), max_size=40)


@given(STEPS)
def test_whoever_may_be_silent_is_waited_for(steps: list[int]) -> None:
    assert not left_behind(steps, RULES["as it is"])


BEGIN, LOOK, COMMIT, SPEAK_UP, FOLD = range(5)


@pytest.mark.parametrize(
    ("rule", "loses"), [("as it is", False), ("taken out", True), ("the highest number of a snapshot", True)]
)
def test_without_the_rule_a_wake_up_is_lost(rule: str, *, loses: bool) -> None:
    # An open writer above every number that has ended: it looks, is silent, and the order is taken back.
    assert left_behind([BEGIN, LOOK, SPEAK_UP, FOLD, FOLD, COMMIT], RULES[rule]) is loses
