"""When NOTIFY is disabled and enabled again, and that no event is left behind when it is enabled."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfg_notify.core.notify_mode import NotifyMode, Policy
from mfg_notify.core.tuning import Tuning

TUNING = Tuning()
HIGH_WATER, LOW_WATER = TUNING.high_water_rate, TUNING.high_water_rate * TUNING.low_water_ratio


class Rates:
    """A notify mode, and the windows that have gone by."""

    def __init__(self, policy: Policy = Policy.ADAPTIVE) -> None:
        self.mode = NotifyMode(policy, 100.0, TUNING)
        self.now = 100.0

    def window(self, rate: float) -> bool:
        """Let events come at that rate for one window; return whether polling is wanted after it."""
        self.now += TUNING.rate_window
        self.mode.count(round(rate * TUNING.rate_window), self.now)
        return self.mode.wants_polling

    def commits_take(self, seconds: float) -> None:
        """Let notifying commits take that long now."""
        for _ in range(TUNING.commit_samples):
            self.mode.measure_commit(seconds)


def test_hysteresis_between_high_and_low_water() -> None:
    rates = Rates()
    between = (HIGH_WATER + LOW_WATER) / 2
    assert not rates.window(between)
    assert rates.window(HIGH_WATER + 10)
    assert all(rates.window(between) for _ in range(3 * TUNING.quiet_exit_windows))
    assert all(rates.window(0) for _ in range(TUNING.quiet_exit_windows - 1))
    assert not rates.window(0)
    assert not rates.window(between)


def test_a_single_slow_window_changes_nothing() -> None:
    rates = Rates()
    rates.window(HIGH_WATER * 2)
    for _ in range(5):
        assert all(rates.window(0) for _ in range(TUNING.quiet_exit_windows - 1))
        assert rates.window(HIGH_WATER * 2)


def test_slow_commits_lower_the_high_water_rate() -> None:
    rates = Rates()
    rates.commits_take(0.005)
    limit = TUNING.busy_ratio / 0.005
    assert not rates.window(limit * 0.9)
    assert rates.window(limit * 1.1)


def test_a_single_slow_commit_changes_nothing() -> None:
    rates = Rates()
    rates.mode.measure_commit(10.0)
    rates.mode.measure_commit(0.0001)
    assert not rates.window(1000)
    rates.commits_take(0.0001)
    rates.mode.measure_commit(10.0)
    assert not rates.window(1000)


def test_the_first_commits_already_count() -> None:
    rates = Rates()
    rates.mode.measure_commit(0.005)
    rates.mode.measure_commit(0.006)
    assert rates.window(TUNING.busy_ratio / 0.005 * 1.1)


def test_rare_folds_are_no_burst() -> None:
    rates = Rates()
    assert rates.window(HIGH_WATER * 2)
    rates.mode.record_applied(polling=True)
    # Somebody holds a snapshot open, so folds have become slow: the next one comes after eight seconds.
    for _ in range(32):
        rates.now += TUNING.rate_window
        rates.mode.count_silence(rates.now)
        assert rates.mode.wants_polling, "the triggers are silent, so silence says nothing"
    rates.mode.count(8 * 500, rates.now, span=8.0)
    assert not rates.mode.wants_polling, "eight seconds were quiet"
    rates.mode.record_applied(polling=False)
    rates.now += TUNING.rate_window
    rates.mode.count(8 * 500, rates.now, span=8.0)
    assert not rates.mode.wants_polling, "the events of eight seconds that come at once are no burst"


@pytest.mark.parametrize("policy", [Policy.ALWAYS, Policy.NEVER])
def test_a_fixed_policy_ignores_the_rate(policy: Policy) -> None:
    rates = Rates(policy)
    for rate in (0, 100_000, 0):
        assert rates.window(rate) is (policy is Policy.NEVER)


@pytest.mark.parametrize("policy", list(Policy))
def test_stopping_wants_polling_unless_the_policy_is_always(policy: Policy) -> None:
    mode = NotifyMode(policy, 0.0, TUNING)
    mode.prepare_stop()
    assert mode.wants_polling is (policy is not Policy.ALWAYS)


def test_an_unknown_mode_needs_an_update() -> None:
    mode = NotifyMode(Policy.ADAPTIVE, 0.0, TUNING)
    assert mode.needs_update
    mode.record_applied(polling=False)
    known = mode.needs_update
    mode.invalidate()
    assert (known, mode.needs_update, mode.may_sleep) == (False, True, False)


def test_how_often_the_journal_is_polled() -> None:
    rates = Rates(Policy.NEVER)
    rates.mode.record_applied(polling=True)
    assert rates.mode.poll_delay(0.001) == TUNING.poll_interval_maximum
    rates.window(HIGH_WATER * 2)
    assert rates.mode.poll_delay(0.001) == TUNING.poll_interval_minimum
    # A fold that takes longer is followed by a longer pause.
    assert rates.mode.poll_delay(0.2) == 0.1
    rates.window(100)
    assert rates.mode.poll_delay(0.001) == pytest.approx(TUNING.events_per_poll / 100, rel=0.1)
    rates.window(0)
    assert rates.mode.poll_delay(0.001) == TUNING.poll_interval_maximum
    rates.mode.record_applied(polling=False)
    delays = [rates.mode.poll_delay(0.001) for _ in range(10)]
    assert delays == sorted(delays)
    assert delays[0] < 0.1
    assert delays[-1] == TUNING.poll_interval_maximum


def test_a_pause_under_load_is_polled_soon() -> None:
    rates = Rates()
    assert rates.window(HIGH_WATER * 2)
    rates.mode.record_applied(polling=True)
    assert rates.window(0)
    assert rates.mode.poll_delay(0.001) == TUNING.poll_interval_under_load


# ---------------------------------------------------------------------------------------- no event is left behind --


@dataclass
class Writer:
    """A transaction of the game: it gets an xid, then reads the flag, writes, and commits much later."""

    xid: int
    silent: bool | None = None


@dataclass
class Server:
    """Transaction ids, the flag, running transactions, and how many silent events are committed and not folded."""

    next_xid: int = 10
    latest_completed: int = 9
    notify_disabled: bool = True
    open: list[Writer] = field(default_factory=list)
    committed_in_silence: int = 0

    def begin(self) -> Writer:
        """Give a transaction its xid."""
        writer = Writer(self.next_xid)
        self.next_xid += 1
        self.open.append(writer)
        return writer

    def end(self, writer: Writer) -> None:
        """Commit."""
        self.open.remove(writer)
        self.latest_completed = max(self.latest_completed, writer.xid)
        self.committed_in_silence += writer.silent is True

    def xmin(self) -> int:
        """Return a snapshot's xmin."""
        return min((writer.xid for writer in self.open), default=self.latest_completed + 1)


Rule = Callable[[Server, int], tuple[int, int]]
"""What `folded` is given, from a server and the fold's own xid."""
RULES: dict[str, Rule] = {
    "as it is": lambda server, xid: (xid, server.xmin()),
    "taken out": lambda _, xid: (xid, xid),
    "the xmax of a snapshot": lambda server, _: (server.latest_completed + 1, server.xmin()),
}


def left_behind(steps: list[int], rule: Rule) -> bool:
    """Play the steps; return whether the exporter went to sleep while a silent commit was still possible."""
    server = Server()
    mode = NotifyMode(Policy.ADAPTIVE, 0.0, TUNING)
    mode.record_applied(polling=True)
    for step in steps:
        kind, which = step % 5, step // 5
        if kind == 0:
            server.begin()
        elif kind == 1 and server.open:
            writer = server.open[which % len(server.open)]
            if writer.silent is None:
                writer.silent = server.notify_disabled
        elif kind == 2 and server.open:
            server.end(server.open[which % len(server.open)])
        elif kind == 3 and server.notify_disabled:
            server.notify_disabled = False
            mode.record_applied(polling=False)
        elif kind == 4:
            known = rule(server, server.next_xid)
            fold = server.begin()
            server.committed_in_silence = 0
            server.end(fold)
            mode.folded(*known)
        if mode.may_sleep and (server.committed_in_silence or any(writer.silent for writer in server.open)):
            return True
    return False


STEPS = st.lists(st.integers(0, 24), max_size=40)


@given(STEPS)
def test_every_possibly_silent_writer_is_awaited(steps: list[int]) -> None:
    assert not left_behind(steps, RULES["as it is"])


BEGIN, LOOK, COMMIT, ENABLE, FOLD = range(5)


@pytest.mark.parametrize(
    ("rule", "loses"), [("as it is", False), ("taken out", True), ("the xmax of a snapshot", True)]
)
def test_without_the_rule_a_wake_up_is_lost(rule: str, *, loses: bool) -> None:
    # A running writer with an xid above every completed one reads the flag and is silent; then NOTIFY is enabled.
    assert left_behind([BEGIN, LOOK, ENABLE, FOLD, FOLD, COMMIT], RULES[rule]) is loses
