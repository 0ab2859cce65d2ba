"""Payloads, folds, broken connections and two exporters in any order, against a model PostgreSQL that keeps the truth.

The model knows order and nothing else: ids are given when an event is written, notifications go out when it commits,
to every listener in the same order, and a fold's barrier is part of the fold's commit. The exporters drive the real
`Ledger`; what they do between its methods is what `mfg_notify.exporter.session` does: talk to the database.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import event as note
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.builders import NOW, SECOND, Image, event, pipeline, task

from mfg_notify.core.capped_totals import CappedTotals
from mfg_notify.core.counters import Arrival, Counters, Waiting, settle
from mfg_notify.core.events import Event
from mfg_notify.core.ledger import Fold, Ledger, Outcome, Snapshot, Totals
from mfg_notify.core.live_state import LiveRows, RecentActivity, compute_gauges
from mfg_notify.core.rules import Increment, SampleKey, increments
from mfg_notify.core.series import Distribution, Series, View, lay_out, never_fall
from mfg_notify.core.tuning import Tuning
from mfg_notify.core.visibility import Visibility

Sums = dict[SampleKey, int]
FOLD = "fold"
"""What a trigger says when it may not send the event itself."""


@dataclass(frozen=True, slots=True)
class Notification:
    """What a listener gets: an event, the number of a fold (a barrier), or FOLD."""

    sender: int
    said: Event | int | str


def add(totals: Sums, found: Iterable[Increment]) -> None:
    for key, n in found:
        totals[key] = totals.get(key, 0) + n


class _Database:
    """Committed state, and a queue of notifications a listener."""

    def __init__(self) -> None:
        self.journal: dict[int, Event] = {}
        self.folded: set[int] = set()
        self.totals: Sums = {}
        self.truth: Sums = {}
        self.generation = 0
        self.holder: str | None = None
        self.listeners: dict[int, deque[Notification]] = {}
        self.last_id = self.last_backend = 0

    def write(self, old: Image | None, new: Image | None) -> Event:
        """Give an event its id; the transaction may commit after those of higher ids."""
        self.last_id += 1
        return event(old, new, number=self.last_id)

    def commit(self, written: Mapping[int, tuple[Event, bool]]) -> None:
        """Make events visible, then notify: each event itself, or FOLD where it is not announced."""
        for number, (one, _) in written.items():
            self.journal[number] = one
            add(self.truth, increments(one))
        for one, announced in written.values():
            self.notify(0, one if announced else FOLD)

    def notify(self, sender: int, said: Event | int | str) -> None:
        for queue in self.listeners.values():
            queue.append(Notification(sender, said))

    def listen(self) -> int:
        self.last_backend += 1
        self.listeners[self.last_backend] = deque()
        return self.last_backend

    def fold(self, holder: str, backend: int, chunk: int, number: int) -> Fold | None:
        if self.holder != holder:
            return None
        self.generation += 1
        events = [self.journal.pop(number) for number in sorted(self.journal)[:chunk]]
        self.folded.update(one.id for one in events)
        settlement = settle(events)
        add(self.totals, settlement.increments.items())
        self.notify(backend, number)
        drained = len(events) < chunk
        return Fold(number, self.generation, events, settlement, 0, drained, xid=0, xmin=0, last_id=self.last_id)


EMPTY = Snapshot(LiveRows(), Visibility(0, frozenset()))


class _Exporter:
    """One exporter; its ledger lasts from `start` to `start`."""

    def __init__(self, database: _Database, name: str, tuning: Tuning | None = None) -> None:
        self.database = database
        self.name = name
        self.tuning = tuning or Tuning()
        self.least: Sums = {}
        """What was exposed last and must not fall, not even over restarts."""
        self.unconfirmed = self.replayed = 0
        self.backend: int | None = None
        self.start()

    def start(self) -> None:
        """Start anew after a crash."""
        self.hang_up()
        self.ledger = Ledger(lambda: 0.0, NOW, self.tuning)
        self.shown: Series | None = None

    def hang_up(self) -> None:
        if self.backend is not None:
            del self.database.listeners[self.backend]
        self.backend = None
        self.reply: Fold | None = None
        self.read: tuple[Totals, frozenset[int]] | None = None

    def connect(self) -> None:
        if self.backend is None:
            self.backend = self.database.listen()

    def disconnect(self) -> None:
        """Lose both connections; if a fold has committed, its reply is lost too."""
        self.hang_up()
        self.ledger.disconnect()

    def step_in(self) -> None:
        """Take the lease."""
        self.connect()
        if not self.ledger.leading:
            self.database.holder = self.name
            self.ledger.lead()
            self.ledger.prove_lead(0.0)

    @property
    def queue(self) -> deque[Notification]:
        """What has been notified and not delivered."""
        return self.database.listeners[self.backend] if self.backend is not None else deque()

    def deliver(self, number: int = 1) -> list[Arrival]:
        """Take notifications off the queue; return what became of the payloads."""
        arrivals = []
        for _ in range(min(number, len(self.queue))):
            notification = self.queue.popleft()
            match notification.said:
                case int() as number:
                    if notification.sender == self.backend:
                        self.ledger.receive_barrier(number)
                        self.ledger.finish_reconciliation()
                case Event() as one if self.ledger.leading:
                    arrivals.append(self.ledger.announce(one))
        return arrivals

    def begin_fold(self, chunk: int = 100) -> None:
        """Commit a fold; the reply is on its way."""
        assert self.backend is not None
        assert self.reply is None
        if self.ledger.drained and self.ledger.view() is None and not self.ledger.reconciling:
            self.ledger.begin_reconciliation()
            self.ledger.reconcile(EMPTY)
        number = self.ledger.begin_fold()
        self.reply = self.database.fold(self.name, self.backend, chunk, number)
        if self.reply is None:
            self.ledger.step_down()

    def answer(self) -> None:
        """Receive the next answer of the database: to a fold's COMMIT, or to the reading of the totals."""
        if self.reply is None:
            return
        if self.read is not None:
            totals, folded = self.read
            if self.ledger._counters.pending() - folded:
                note("resync over a part of the journal")
                self.least = {}
            outcome = self.ledger.resync(totals)
        else:
            outcome = self.ledger.settle(self.reply)
            if outcome.needs_totals:
                database = self.database
                totals = Totals(database.generation, CappedTotals(totals=database.totals), RecentActivity())
                self.read = (totals, frozenset(database.folded))
                return
        self.reply = self.read = None
        self.replayed += outcome.replayed
        self.unconfirmed += outcome.unconfirmed
        self.ledger.finish_reconciliation()

    def fold(self, chunk: int = 100) -> None:
        """Fold once, with every answer."""
        self.begin_fold(chunk)
        while self.reply is not None:
            self.answer()

    def deliver_all(self) -> list[Arrival]:
        return self.deliver(len(self.queue))

    def exposed(self) -> Sums:
        """Return what is exposed."""
        view = self.ledger.view()
        assert view is not None
        return dict(view.totals)

    @property
    def synced(self) -> bool:
        return self.ledger._counters.synced


NO_ROWS = compute_gauges(LiveRows())
NUMBERS = st.integers(0, 9)
Change = tuple[Image | None, Image | None]
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(lambda n: (None, task(total_revenue=n)), NUMBERS),
    st.builds(lambda n, m: (task(total_cost=3), task(total_cost=n, retry_count=m)), NUMBERS, NUMBERS),
    st.builds(
        lambda n: (
            task("EXECUTING"),
            task("COMPLETED", assigned_ship="S", started_at=NOW, completed_at=NOW + 15 * n * SECOND),
        ),
        NUMBERS,
    ),
    st.builds(lambda n: (pipeline(), pipeline("COMPLETED", total_revenue=n, net_profit=900 * (n - 5))), NUMBERS),
    st.just((pipeline(), None)),
)


@dataclass(frozen=True, slots=True)
class Write:
    """A transaction writes events, announced or not; then it ends, or stays open."""

    writer: int
    written: list[tuple[Change, bool]]
    end: str


@dataclass(frozen=True, slots=True)
class Work:
    """An exporter does something; the answers to a fold may come later, or all at once."""

    which: int
    what: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something happens to an exporter."""

    which: int
    what: str


WRITTEN = st.lists(st.tuples(CHANGES, st.sampled_from([True, True, True, False])), min_size=1, max_size=3)
WHICH = st.sampled_from([0, 0, 0, 1])
WRITES = st.builds(Write, st.integers(0, 2), WRITTEN, st.sampled_from(["commit", "commit", "", "roll back"]))
WORKS = st.builds(
    Work,
    WHICH,
    st.sampled_from(["deliver", "deliver", "deliver all", "fold", "begin to fold", "answer"]),
    st.sampled_from([1, 2, 3, 100]),
)
TROUBLES = st.builds(
    Trouble, WHICH, st.sampled_from(["repeat"] * 4 + ["fold in between"] * 3 + ["connect", "disconnect", "crash"])
)
EVERYTHING = 1000


def falls(key: SampleKey) -> bool:
    """Tell whether the key may fall: profits are sometimes losses."""
    return key[0].endswith("profit_credits_sum")


class _Protocol(RuleBasedStateMachine):
    """Everything that an honest database and a broken network can do to one or two exporters."""

    honest = True

    @initialize(two=st.booleans())
    def begin(self, two: bool) -> None:
        self.database = _Database()
        self.exporters = [_Exporter(self.database, name) for name in ("one", "two")[: 1 + two]]
        self.open: dict[int, dict[int, tuple[Event, bool]]] = {}
        self.exporters[0].step_in()
        for _ in range(2):  # the second one confirms the live rows
            self.exporters[0].fold()
            self.exporters[0].deliver_all()

    # One rule, as hypothesis leaves whole rules out of a run, and every run needs all three.
    @rule(step=WRITES | WORKS | WORKS.map(lambda work: work) | TROUBLES)
    def step(self, step: Write | Work | Trouble) -> None:
        match step:
            case Write(writer, written, end):
                self.write(writer, written, end)
            case Work(which, work, chunk):
                self.work(self.exporters[which % len(self.exporters)], work, chunk)
            case Trouble(which, trouble):
                self.get_into_trouble(self.exporters[which % len(self.exporters)], trouble)

    def write(self, writer: int, written: list[tuple[Change, bool]], end: str) -> None:
        transaction = self.open.setdefault(writer, {})
        for (old, new), announced in written:
            one = self.database.write(old, new)
            transaction[one.id] = (one, announced)
        if end:
            self.open.pop(writer)
        if end == "commit":
            self.database.commit(transaction)

    def work(self, exporter: _Exporter, work: str, chunk: int) -> None:
        match work:
            case "deliver" | "deliver all":
                for arrival in exporter.deliver(1 if work == "deliver" else EVERYTHING):
                    note(arrival.name)
            case "fold" | "begin to fold" if not exporter.ledger.leading:
                exporter.step_in()
            case "fold" | "begin to fold" if exporter.reply is None:
                exporter.begin_fold(chunk)
                note("fold" if exporter.ledger.leading else "found another leader")
            case "answer" if exporter.reply is not None:
                note("barrier before reply" if exporter.ledger._counters.barrier >= exporter.reply.number else "reply")
                exporter.answer()
        while work == "fold" and exporter.reply is not None:
            exporter.answer()

    def get_into_trouble(self, exporter: _Exporter, trouble: str) -> None:
        if trouble in {"crash", "disconnect"} and exporter.reply is not None:
            note("COMMIT of unknown outcome")
        match trouble:
            case "crash":
                exporter.start()
            case "disconnect":
                exporter.disconnect()
            case "connect":
                exporter.connect()
            case "repeat":
                # NOTIFY never repeats a payload; where it is still pending it would do no harm.
                said = exporter.queue[0].said if exporter.queue else None
                if exporter.deliver() == [Arrival.COUNTED] and isinstance(said, Event):
                    assert exporter.ledger.announce(said) is Arrival.DUPLICATE
            case "fold in between" if exporter.ledger.leading and exporter.reply is None:
                # The other folds, and the lease comes back before this one has noticed: the generations have a gap.
                other = self.exporters[0] if exporter is self.exporters[-1] else self.exporters[-1]
                if other is not exporter and other.reply is None:
                    other.ledger.step_down()
                    other.step_in()
                    other.fold(2)
                    self.database.holder = exporter.name

    # What must hold after every step.

    @invariant()
    def totals_and_journal_are_the_truth(self) -> None:
        database = self.database
        found = dict(database.totals)
        for one in database.journal.values():
            add(found, increments(one))
        assert found == database.truth

    @invariant()
    def nothing_falls_and_nothing_is_ahead_of_the_truth(self) -> None:
        truth = lay_out(View(self.database.truth, NO_ROWS, RecentActivity()), NOW)
        for exporter in self.exporters:
            if exporter.ledger.view() is None:
                continue
            exposed = exporter.exposed()
            if self.honest:
                for key, n in exposed.items():
                    assert n <= self.database.truth.get(key, 0) or falls(key), key
                # Without the help of `never_fall`, unless a resync found only a part of the journal folded.
                for key, n in exporter.least.items():
                    assert exposed.get(key, 0) >= n or falls(key), key
                exporter.least = exposed
            series = lay_out(View(exposed, NO_ROWS, RecentActivity()), NOW)
            if exporter.shown is not None:
                never_fall(exporter.shown, series)
                assert_not_less(series, exporter.shown)
            if self.honest:
                assert_not_less(truth, series, buckets=True)
            exporter.shown = series

    def teardown(self) -> None:
        if not hasattr(self, "database"):
            return
        for transaction in self.open.values():
            self.database.commit(transaction)
        leading = (one for one in self.exporters if one.ledger.leading and one.name == self.database.holder)
        active = next(leading, None)
        active = active or self.exporters[0]
        active.step_in()
        self.database.holder = active.name
        while active.reply is not None:
            active.answer()
        active.deliver_all()
        for _ in range(3):
            active.fold()
            active.deliver_all()
        self.nothing_falls_and_nothing_is_ahead_of_the_truth()
        assert not self.database.journal
        assert active.exposed() == self.database.truth == self.database.totals
        assert not active.ledger._counters.pending()
        assert not active.ledger._counters._settled_before_announced
        assert active.synced
        if self.honest:
            assert not any(exporter.unconfirmed for exporter in self.exporters)


def assert_not_less(more: Series, less: Series, *, buckets: bool = False) -> None:
    """Compare counters by value, histograms by their count or by every bucket."""
    for name, counted in less.counters.items():
        for labels, n in counted.items():
            assert more.counters[name].get(labels, 0) >= n, (name, labels)
    for name, observed in less.histograms.items():
        for labels, found in observed.items():
            other = more.histograms[name].get(labels, Distribution())
            assert other.count >= found.count, (name, labels)
            for le, n in found.buckets.items() if buckets else ():
                assert other.buckets.get(le, 0) >= n, (name, labels, le)


class _ForgedProtocol(_Protocol):
    """Someone who knows the channel: payloads come twice and late, and payloads of events that never were."""

    honest = False

    @rule(change=CHANGES, ahead=st.integers(-5, 5), again=st.booleans())
    def forge(self, change: Change, ahead: int, again: bool) -> None:
        """Send an event with the id of one that was, that will be, or never; or repeat what was said."""
        queued = [one.said for exporter in self.exporters for one in exporter.queue if isinstance(one.said, Event)]
        forged = event(*change, number=max(1, self.database.last_id + ahead))
        self.database.notify(0, queued[0] if again and queued else forged)


TestProtocol = _Protocol.TestCase
TestProtocol.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestForgedProtocol = _ForgedProtocol.TestCase
TestForgedProtocol.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


COUNTED, DUPLICATE, DEFERRED = Arrival.COUNTED, Arrival.DUPLICATE, Arrival.DEFERRED
REVENUE = ("manufacturing_revenue_total", ("1",))


class _Script:
    """One exporter in step with an empty journal, and another that has not begun."""

    def __init__(self, pending_maximum: int = 20_000) -> None:
        self.database = _Database()
        tuning = Tuning(pending_maximum=pending_maximum)
        self.one, self.two = _Exporter(self.database, "one", tuning), _Exporter(self.database, "two", tuning)
        self.one.step_in()
        for _ in range(2):
            self.one.fold()
            self.one.deliver_all()
        assert self.one.synced

    def earn(self, credits_: int, *, announced: bool = True) -> Event:
        """Commit one event that adds to the revenue."""
        one = self.database.write(None, task(total_revenue=credits_))
        self.database.commit({one.id: (one, announced)})
        return one

    def revenue(self, exporter: _Exporter | None = None) -> int:
        """Return what is exposed."""
        return (exporter or self.one).exposed().get(REVENUE, 0)


@pytest.fixture
def script() -> _Script:
    return _Script()


def test_a_payload_counts_at_once_and_the_fold_confirms_it(script: _Script) -> None:
    one = script.earn(5)
    assert script.one.deliver_all() == [COUNTED]
    assert script.revenue() == 5
    assert script.one.ledger._counters.pending() == {one.id}
    script.one.fold()
    assert (script.revenue(), script.one.ledger._counters.pending(), script.one.replayed) == (5, frozenset(), 0)
    assert script.database.totals == {REVENUE: 5}


def test_the_fold_is_faster_than_the_payload(script: _Script) -> None:
    script.earn(5)
    script.one.fold()
    assert (script.revenue(), script.one.replayed) == (5, 1)
    assert script.one.deliver() == [DUPLICATE]
    assert script.revenue() == 5


def test_the_barrier_arrives_before_the_reply(script: _Script) -> None:
    script.earn(5)
    script.earn(7, announced=False)
    script.one.begin_fold()
    script.earn(9)
    assert script.one.deliver_all() == [COUNTED, COUNTED]
    assert script.revenue() == 14
    script.one.answer()
    assert (script.revenue(), script.one.replayed, script.one.ledger._counters._settled_before_announced) == (21, 1, {})
    script.one.fold()
    script.one.deliver_all()
    assert (script.revenue(), script.one.unconfirmed) == (21, 0)


def test_a_lost_notification_waits_for_fold_and_barrier(script: _Script) -> None:
    one = script.earn(5, announced=False)
    assert script.one.deliver_all() == []
    script.one.fold()
    assert script.revenue() == 5
    assert script.one.ledger._counters._settled_before_announced.keys() == {one.id}
    script.one.deliver_all()
    assert not script.one.ledger._counters._settled_before_announced


def test_ids_are_not_in_the_order_of_commits(script: _Script) -> None:
    late = script.database.write(None, task(total_revenue=5))
    script.earn(7)
    script.one.deliver_all()
    script.one.fold()
    script.one.deliver_all()
    script.database.commit({late.id: (late, True)})
    assert script.one.deliver_all() == [COUNTED]
    script.one.fold()
    assert script.revenue() == 12


@pytest.mark.parametrize("number", [1, 99], ids=["folded long ago", "never was"])
def test_a_drained_journal_drops_unconfirmed_events(script: _Script, number: int) -> None:
    script.earn(5)
    script.one.deliver_all()
    script.one.fold()
    script.one.deliver_all()
    script.database.notify(0, event(None, task(total_revenue=1000), number=number))
    assert script.one.deliver_all() == [COUNTED]
    assert script.revenue() == 1005
    script.earn(7)
    script.one.fold(chunk=1)
    assert script.one.unconfirmed == 0
    script.one.fold(chunk=1)
    assert (script.revenue(), script.one.unconfirmed, script.one.deliver_all()) == (12, 1, [DUPLICATE])


def test_the_second_fold_of_a_backlog_confirms_what_came_between(script: _Script) -> None:
    """No other fold needs to follow, so nothing else would drop it soon."""
    for _ in range(3):
        script.earn(5)
    script.one.fold(chunk=2)
    script.one.deliver_all()
    script.database.notify(0, event(None, task(total_revenue=1000), number=99))
    assert script.one.deliver_all() == [COUNTED]
    script.one.fold(chunk=2)
    assert (script.revenue(), script.one.unconfirmed) == (15, 1)


def test_a_payload_with_the_id_of_another_event_is_unconfirmed(script: _Script) -> None:
    script.database.notify(0, event(None, task(total_revenue=1000), number=1))
    script.one.deliver_all()
    script.earn(5)
    # The true payload looks like a repetition, and is left to the fold.
    assert (script.one.deliver_all(), script.revenue()) == ([DUPLICATE], 1000)
    script.one.fold()
    assert (script.revenue(), script.one.unconfirmed, script.one.replayed) == (5, 1, 1)
    script.one.fold()
    assert script.one.unconfirmed == 1


def test_what_an_unconfirmed_event_announced_is_forgotten(script: _Script) -> None:
    forged = event(None, task("EXECUTING", assigned_ship="S"), number=99, at=NOW + 10**15)
    script.database.notify(0, forged)
    script.one.deliver_all()
    assert [found.last_seen for found in script.one.ledger._counters.announced()] == [settle((forged,)).last_seen]
    script.one.fold()
    assert (list(script.one.ledger._counters.announced()), script.one.unconfirmed) == ([], 1)


def test_what_comes_during_the_draining_is_not_unconfirmed(script: _Script) -> None:
    script.earn(5)
    script.one.begin_fold(chunk=1)
    script.earn(7)
    script.one.deliver_all()
    script.one.answer()
    assert (script.one.unconfirmed, script.one.ledger._counters.pending()) == (0, frozenset({2}))
    script.one.fold(chunk=1)
    script.earn(9)
    script.one.deliver_all()
    script.one.fold(chunk=2)
    script.one.deliver_all()
    assert (script.revenue(), script.one.unconfirmed) == (21, 0)


def test_another_exporter_folded_in_between(script: _Script) -> None:
    script.earn(5)
    script.two.step_in()
    script.two.fold()
    assert script.two.deliver_all() == []
    script.earn(7)
    # The first goes on: it believes that it leads, until its next fold.
    assert script.one.deliver_all() == [COUNTED, COUNTED]
    assert script.revenue() == 12
    script.one.begin_fold()
    assert (script.one.ledger.leading, script.one.synced) == (False, False)
    script.two.fold()
    assert script.two.replayed == 1
    assert script.two.deliver_all() == [DUPLICATE]
    assert script.revenue(script.two) == 12


def test_a_gap_in_the_generations_is_read_over(script: _Script) -> None:
    script.earn(5)
    script.two.step_in()
    script.two.fold()
    script.database.holder = "one"
    script.earn(7)
    script.one.begin_fold()
    script.one.answer()
    script.one.answer()
    # The totals hold 5 and 7; their payloads come before the own barrier and are not counted again.
    assert (script.revenue(), script.one.synced) == (12, False)
    assert script.one.deliver(3) == [DEFERRED, DEFERRED]
    assert script.one.deliver_all() == []
    assert script.one.synced
    script.one.fold()
    assert script.revenue() == 12


def test_a_fold_of_another_between_the_reply_and_the_reading(script: _Script) -> None:
    script.one.disconnect()
    script.one.step_in()
    script.one.begin_fold()
    script.two.step_in()
    script.earn(5)
    script.two.fold()
    script.database.holder = "one"
    script.one.answer()
    script.one.answer()
    assert script.revenue() == 5
    # The totals are of the other's generation, so the barrier of the fold before them proves nothing.
    assert script.one.deliver_all() == [DEFERRED]
    assert not script.one.synced
    script.one.fold()
    script.one.deliver_all()
    assert (script.one.synced, script.revenue()) == (True, 5)


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_of_unknown_outcome(script: _Script, committed: bool) -> None:
    script.earn(5)
    script.one.deliver_all()
    if committed:
        script.one.begin_fold()
    script.one.disconnect()
    assert (script.revenue(), script.one.synced, script.one.ledger._counters.follows(3)) == (5, False, False)
    script.earn(7)
    script.one.step_in()
    script.earn(9)
    assert script.one.deliver_all() == [DEFERRED]
    script.one.fold()
    assert script.revenue() == 21
    script.one.fold()
    script.one.deliver_all()
    assert (script.revenue(), script.one.synced) == (21, True)


def test_a_barrier_of_an_earlier_connection_proves_nothing(script: _Script) -> None:
    for _ in range(3):
        script.one.fold()
    script.one.deliver_all()
    script.one.disconnect()
    script.one.step_in()
    script.one.fold()
    assert not script.one.synced
    script.one.deliver_all()
    assert script.one.synced


def test_a_barrier_from_before_a_rewind_proves_nothing(script: _Script) -> None:
    for _ in range(5):
        script.one.fold()
    script.one.deliver_all()
    script.database.generation = 0
    script.one.fold()
    script.one.deliver_all()
    script.earn(5)
    # The fold is quicker than the payload: that comes late, and must not count again.
    script.one.fold()
    assert script.one.deliver_all() == [DUPLICATE]
    assert script.revenue() == 5


def test_too_much_is_left_to_the_fold() -> None:
    script = _Script(pending_maximum=2)
    for _ in range(3):
        script.earn(5)
    assert script.one.deliver_all() == [COUNTED, COUNTED, DEFERRED]
    script.one.fold()
    script.one.deliver_all()
    assert (script.revenue(), script.one.ledger._counters._settled_before_announced) == (15, {})


def test_a_payload_is_counted_once_while_it_is_pending(script: _Script) -> None:
    one = script.earn(5)
    script.one.deliver_all()
    assert script.one.ledger.announce(one) is DUPLICATE
    assert script.revenue() == 5


def test_what_is_exposed_is_a_copy(script: _Script) -> None:
    script.earn(5)
    exposed = script.one.exposed()
    script.one.deliver_all()
    script.one.fold()
    assert (exposed, script.revenue()) == ({}, 5)


def test_a_late_barrier_from_before_a_rewind_proves_nothing(script: _Script) -> None:
    for _ in range(5):
        script.one.fold()
    script.database.generation = 0
    script.one.begin_fold()
    while script.one.reply is not None:
        script.one.answer()
    assert not script.one.synced
    # The barriers of the folds from before arrive only now, and then that of the new one.
    script.one.deliver(5)
    assert not script.one.synced
    script.one.deliver_all()
    assert script.one.synced


# --------------------------------------------------------------------------------------- clock, ships, the rest --


def test_the_clock_is_the_databases_own_once_it_is_known() -> None:
    seconds = [10.0]
    ledger = Ledger(lambda: seconds[0], NOW, Tuning())
    assert ledger.now() == NOW + 10 * SECOND
    ledger.set_clock(NOW - 5 * SECOND, asked_at=12.0)
    seconds[0] = 13.5
    assert ledger.now() == NOW - 5 * SECOND + 1_500_000


def test_what_is_shown_is_as_old_as_the_last_proof_of_lead() -> None:
    seconds = [0.0]
    ledger = Ledger(lambda: seconds[0], NOW, Tuning())
    proofs = [ledger.current_at]
    for seconds[0] in (0.0, 3.0):
        ledger.confirm_current()
        proofs.append(ledger.current_at)
    assert proofs == [None, NOW, NOW + 3 * SECOND]


def test_a_lease_proves_the_lead_until_it_ends() -> None:
    seconds = [100.0]
    ledger = Ledger(lambda: seconds[0], NOW, Tuning(lease_duration=5))
    ledger.lead()
    assert not ledger.proves_lead
    ledger.prove_lead(at=98.0)
    ledger.prove_lead(at=97.0)  # a fold that began before the last heartbeat
    proved = []
    for seconds[0] in (102.9, 103.0):
        proved.append(ledger.proves_lead)
        ledger.disconnect()  # a standby waits for the lease to expire, so nothing changes
    for end in (ledger.release_lead, ledger.step_down):
        ledger.prove_lead(at=103.0)
        proved.append(ledger.proves_lead)
        end()
        proved.append(ledger.proves_lead)
    assert proved == [True, False, True, False, True, False]


@pytest.mark.parametrize("expired", [False, True])
def test_after_its_lease_has_expired_it_shows_nothing_at_first(*, expired: bool) -> None:
    seconds = [0.0]
    ledger = Ledger(lambda: seconds[0], NOW, Tuning(lease_duration=5))
    ledger.lead()
    ledger.prove_lead(0.0)
    ledger._presentable = True
    ledger.disconnect()
    seconds[0] = 5.0 if expired else 4.9
    ledger.lead()
    ledger.prove_lead(seconds[0])
    # Another exporter may have led and shown more, so its own last numbers would make the counters fall.
    assert ledger.presentable is not expired


def test_ships_are_taken_over(script: _Script) -> None:
    script.one.ledger.set_ships({(1, "S"): True})
    view = script.one.ledger.view()
    assert view is not None
    assert view.gauges.ships == {(1, "S"): True}


def test_totals_that_nobody_has_asked_for_are_refused(script: _Script) -> None:
    with pytest.raises(ValueError, match="no fold is waiting"):
        script.one.ledger.resync(Totals(9, CappedTotals(), RecentActivity()))


def test_a_reconciliation_step_by_step(script: _Script) -> None:
    ledger = script.one.ledger

    def state() -> tuple[bool, bool]:
        return ledger.reconciling, ledger.awaits_barrier

    assert state() == (False, False)
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(LiveRows(tasks={"t": task("READY")}), Visibility(0, frozenset())))
    assert (state(), ledger.finish_reconciliation()) == ((True, False), None)
    script.one.begin_fold()
    script.one.answer()
    assert (state(), ledger.finish_reconciliation()) == ((True, True), None)
    assert ledger._live._tasks == {}
    script.one.deliver_all()
    assert (state(), ledger.finish_reconciliation()) == ((False, False), None)
    assert ledger._live._tasks.keys() == {"t"}


# ------------------------------------------------------------------------------ live rows, when folds are missed --


def reconciled(script: _Script, rows: LiveRows) -> None:
    """Read a snapshot that shows these rows, and swap it in."""
    ledger = script.one.ledger
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(rows, Visibility(0, frozenset())))
    script.one.fold()
    script.one.deliver_all()
    assert not ledger.reconciling
    assert not ledger.needs_snapshot


def test_a_rewind_asks_for_another_snapshot(script: _Script) -> None:
    for _ in range(5):
        script.one.fold()
    reconciled(script, LiveRows())
    script.database.generation = 0
    script.one.fold()
    assert script.one.ledger.needs_snapshot


@pytest.mark.parametrize("barrier_known", [False, True])
def test_a_snapshot_from_before_a_rewind_is_dropped(script: _Script, *, barrier_known: bool) -> None:
    for _ in range(5):
        script.one.fold()
    ledger = script.one.ledger
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(LiveRows(tasks={"gone": task()}), Visibility(0, frozenset())))
    if barrier_known:
        script.one.fold()
    script.database.generation = 0
    script.one.fold()
    assert (ledger.reconciling, ledger.needs_snapshot) == (False, True)
    script.one.fold()
    script.one.deliver_all()
    assert ledger._live._tasks == {}


def test_folds_of_another_exporter_ask_for_another_snapshot(script: _Script) -> None:
    """Their events may never have been announced, so the live rows lack them."""
    reconciled(script, LiveRows())
    script.earn(5, announced=False)
    script.two.step_in()
    script.two.fold()
    script.database.holder = "one"
    script.one.fold()
    assert script.one.ledger.needs_snapshot
    assert script.revenue() == 5


def test_an_exporter_that_steps_down_forgets_what_is_pending(script: _Script) -> None:
    """Long after, the generations of a restored database may reach its own again, and ids stand for other events."""
    script.earn(5)
    script.one.deliver_all()
    script.one.ledger.step_down()
    assert script.one.ledger._counters.pending() == frozenset()


def test_an_exporter_that_steps_down_forgets_the_last_changes(script: _Script) -> None:
    """Those that follow are folded by another, and some of these may be lost in a failover meanwhile."""
    script.earn(5)
    script.one.fold()
    assert [change.id for change in script.one.ledger.last_changes()] == [1]
    script.one.ledger.step_down()
    assert script.one.ledger.last_changes() == []


# ------------------------------------------------------------------------- what else a fold and a rewind bring along --

STARTED = settle([event(task("ASSIGNED"), task("EXECUTING", assigned_ship="S"))])


def activity(script: _Script) -> RecentActivity:
    view = script.one.ledger.view()
    assert view is not None
    return view.activity


def start_task(script: _Script, *, announced: bool) -> None:
    one = script.database.write(task("ASSIGNED"), task("EXECUTING", assigned_ship="S"))
    script.database.commit({one.id: (one, announced)})


@pytest.mark.parametrize("announced", [False, True])
def test_recent_activity_is_shown_once_announced_and_stays(script: _Script, *, announced: bool) -> None:
    start_task(script, announced=announced)
    script.one.deliver_all()
    assert activity(script).latest == (STARTED.last_seen if announced else {})
    script.one.fold()
    script.one.deliver_all()
    assert activity(script).latest == STARTED.last_seen


def test_recent_activity_comes_with_the_totals(script: _Script) -> None:
    start_task(script, announced=True)
    script.one.fold()
    script.one.disconnect()
    script.one.step_in()
    script.one.fold()
    # The database of these tests keeps none.
    assert activity(script).latest == {}


def test_a_reconciliation_prunes_activity_and_is_current() -> None:
    seconds = [0.0]
    ledger = Ledger(lambda: seconds[0], NOW, Tuning())
    ledger.lead()
    ledger.begin_fold()
    first = Fold(1, 1, [], settle([]), 0, drained=True, xid=0, xmin=0, last_id=0)
    assert ledger.settle(first).needs_totals
    ledger.resync(Totals(1, CappedTotals(), RecentActivity({}, {("ship", 1, "gone"): NOW - 24 * 3600 * SECOND})))
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(LiveRows(), Visibility(0, frozenset())))
    ledger.begin_fold()
    ledger.settle(Fold(2, 2, [], settle([]), 0, drained=True, xid=0, xmin=0, last_id=0))
    assert (ledger.current_at, ledger.view()) == (None, None)
    seconds[0] = 7.0
    ledger.receive_barrier(2)
    assert ledger.finish_reconciliation() == {}
    view = ledger.view()
    assert view is not None
    assert (view.activity.latest, ledger.current_at) == ({}, NOW + 7 * SECOND)


def test_a_lost_connection_drops_what_was_under_way(script: _Script) -> None:
    ledger = script.one.ledger
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(LiveRows(), Visibility(0, frozenset())))
    assert ledger.reconciling
    script.one.disconnect()
    assert (ledger.reconciling, ledger.awaits_barrier, ledger.leading) == (False, False, False)


def test_totals_that_a_lost_connection_asked_for_are_refused(script: _Script) -> None:
    script.one.disconnect()
    script.one.step_in()
    script.one.begin_fold()
    script.one.answer()
    script.one.disconnect()
    with pytest.raises(ValueError, match="no fold is waiting"):
        script.one.ledger.resync(Totals(9, CappedTotals(), RecentActivity()))


def test_the_last_changes_end_with_a_rewind(script: _Script) -> None:
    script.earn(5)
    script.one.fold()
    script.database.generation = 0
    script.one.fold()
    assert script.one.ledger.last_changes() == []


def test_the_last_changes_do_not_keep_what_is_unconfirmed(script: _Script) -> None:
    script.database.notify(0, event(None, task(), number=99))
    script.one.deliver_all()
    assert [change.id for change in script.one.ledger.last_changes()] == [99]
    script.one.fold()
    assert script.one.ledger.last_changes() == []


@pytest.mark.parametrize(
    ("xid", "seen"), [(7, False), (8, True), (9, False), (10, False)], ids=["running", "ended", "next", "later"]
)
def test_which_transactions_a_snapshot_shows(xid: int, *, seen: bool) -> None:
    assert Visibility(next_xid=9, in_progress=frozenset({7})).sees(xid) is seen


def test_a_new_ledger_leads_nothing_and_shows_nothing() -> None:
    ledger = Ledger(lambda: 0.0, NOW, Tuning())
    assert (ledger.leading, ledger.drained, ledger.needs_snapshot, ledger.view()) == (False, False, False, None)


def test_a_difference_after_a_takeover_is_no_correction(script: _Script) -> None:
    reconciled(script, LiveRows())
    ledger = script.one.ledger
    script.one.disconnect()
    script.one.step_in()
    script.one.fold()
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(LiveRows(tasks={"t": task("READY")}), Visibility(0, frozenset())))
    script.one.fold()
    ledger.receive_barrier(script.database.generation)
    assert ledger.finish_reconciliation() == {}
    assert ledger._live._tasks.keys() == {"t"}


def test_a_rewind_by_a_single_fold_is_noticed(script: _Script) -> None:
    script.database.generation -= 1
    script.one.begin_fold()
    assert script.one.reply is not None
    assert script.one.ledger.settle(script.one.reply).rewound


def test_what_a_new_connection_finds_folded_is_confirmed(script: _Script) -> None:
    script.earn(5)
    script.one.deliver_all()
    script.one.disconnect()
    script.one.step_in()
    script.one.fold()
    assert (script.revenue(), script.one.unconfirmed, script.one.ledger._counters.pending()) == (5, 0, frozenset())


def test_a_barrier_that_came_before_a_lost_commit_proves_nothing(script: _Script) -> None:
    """Its fold never was, and the next one has the same generation."""
    before = script.database.generation
    script.one.begin_fold()
    script.one.deliver_all()
    script.one.disconnect()
    script.database.generation = before
    script.one.step_in()
    script.one.fold()
    assert not script.one.synced
    script.one.deliver_all()
    assert script.one.synced


def replaced(
    script: _Script, revenue: int, later: int = 1000, installation: str | None = None
) -> tuple[Outcome, Outcome]:
    """Put another database in the place of one in which 5 were earned; return what the next fold means.

    It is so many generations `later`, and may be of another installation.
    """
    script.earn(5)
    script.one.deliver_all()
    script.one.fold()
    script.one.disconnect()
    if installation is not None:
        script.one.ledger.attach(installation)
    script.database.generation += later
    script.database.totals = {REVENUE: revenue} if revenue else {}
    script.one.step_in()
    script.one.begin_fold()
    assert script.one.reply is not None
    asked = script.one.ledger.settle(script.one.reply)
    totals = Totals(script.database.generation, CappedTotals(totals=script.database.totals), RecentActivity())
    return asked, script.one.ledger.resync(totals)


@pytest.mark.parametrize(("revenue", "rewound"), [(0, True), (4, True), (5, False), (6, False)])
def test_lower_totals_show_a_rewind_whatever_the_generation(script: _Script, revenue: int, *, rewound: bool) -> None:
    asked, answered = replaced(script, revenue)
    assert (asked.needs_totals, asked.rewound) == (True, False)
    assert answered.rewound is rewound
    assert answered.drained is not rewound
    assert not answered.settled
    assert script.revenue() == revenue


def test_what_asks_for_totals_says_nothing_else(script: _Script) -> None:
    asked, _ = replaced(script, 5)
    assert (asked.news, asked.replayed, asked.unconfirmed, asked.rewound, asked.drained, asked.settled) == (
        (), 0, 0, False, False, False
    )  # fmt: skip


def test_lower_totals_without_a_gap_ask_for_another_snapshot(script: _Script) -> None:
    reconciled(script, LiveRows())
    _, answered = replaced(script, 4, later=0)
    assert answered.rewound
    assert script.one.ledger.needs_snapshot


def test_a_rewind_is_not_found_twice(script: _Script) -> None:
    script.earn(5)
    script.one.fold()
    script.database.generation, script.database.totals = 0, {}
    script.one.begin_fold()
    assert script.one.reply is not None
    assert script.one.ledger.settle(script.one.reply).rewound
    answered = script.one.ledger.resync(Totals(1, CappedTotals(), RecentActivity()))
    # What was pending may be in the database that took the other's place.
    assert (answered.rewound, answered.drained) == (False, False)


def test_a_new_installation_has_the_same_limit() -> None:
    ledger = Ledger(lambda: 0.0, NOW, Tuning(pending_maximum=3))
    for generation, installation in ((5, "a"), (1, "b")):
        ledger.attach(installation)
        number = ledger.begin_fold()
        ledger.settle(Fold(number, generation, [], settle([]), 0, drained=True, xid=0, xmin=0, last_id=0))
        ledger.resync(Totals(generation, CappedTotals(), RecentActivity()))
    assert ledger._epoch == 1
    assert ledger._counters._pending_maximum == 3


def test_a_new_installation_starts_everything_again(script: _Script) -> None:
    ledger = script.one.ledger
    ledger.attach("a")
    reconciled(script, LiveRows(tasks={"t": task("READY")}))
    script.earn(5)
    script.one.deliver_all()
    view = ledger.view()
    assert view is not None
    assert (view.totals, view.epoch) == ({REVENUE: 5}, 0)
    script.one.disconnect()
    ledger.attach("b")
    script.database.generation, script.database.totals = 0, {}
    script.database.journal.clear()
    script.one.step_in()
    script.one.begin_fold()
    assert script.one.reply is not None
    # Its generations begin anew, and that is no rewind.
    asked = ledger.settle(script.one.reply)
    assert (asked.rewound, asked.restarted, asked.needs_totals) == (False, True, True)
    assert (ledger.view(), ledger.drained, ledger.last_changes()) == (None, False, [])
    answered = ledger.resync(Totals(1, CappedTotals(), RecentActivity()))
    assert (answered.rewound, answered.restarted) == (False, False)
    script.one.reply = None
    reconciled(script, LiveRows())
    view = ledger.view()
    assert view is not None
    assert (view.totals, view.epoch) == ({}, 1)


def test_settings_that_were_restored_start_nothing_again(script: _Script) -> None:
    ledger = script.one.ledger
    ledger.attach("a")
    script.earn(5)
    script.one.deliver_all()
    script.one.fold()
    for installation in ("b", "b"):
        script.one.disconnect()
        ledger.attach(installation)
        script.one.step_in()
        script.one.fold()
        assert script.revenue() == 5
    # From here on it is the installation that is known.
    script.database.generation = 0
    script.one.begin_fold()
    assert script.one.reply is not None
    asked = ledger.settle(script.one.reply)
    assert (asked.rewound, asked.restarted) == (True, False)


def test_a_new_installation_long_folded_by_others_starts_again(script: _Script) -> None:
    script.one.ledger.attach("a")
    asked, answered = replaced(script, 4, installation="b")
    assert (asked.rewound, asked.restarted) == (False, False)
    assert (answered.rewound, answered.restarted) == (False, True)
    assert script.one.ledger.view() is None
    assert script.one.ledger._counters.exposed() == {REVENUE: 4}


def test_unconfirmed_events_ask_for_another_snapshot(script: _Script) -> None:
    reconciled(script, LiveRows())
    script.earn(5)
    script.one.deliver_all()
    script.database.journal.clear()
    script.one.fold()
    assert script.one.unconfirmed == 1
    assert script.one.ledger.needs_snapshot


def test_a_snapshot_waits_for_the_first_fold_after_it(script: _Script) -> None:
    reconciled(script, LiveRows())
    ledger = script.one.ledger
    script.one.fold()
    assert not ledger.awaits_barrier
    ledger.begin_reconciliation()
    ledger.reconcile(Snapshot(LiveRows(), Visibility(0, frozenset())))
    first = ledger.begin_fold()
    ledger.settle(script.database.fold("one", script.one.backend or 0, 100, first) or pytest.fail("not the leader"))
    second = ledger.begin_fold()
    ledger.settle(script.database.fold("one", script.one.backend or 0, 100, second) or pytest.fail("not the leader"))
    ledger.receive_barrier(first)
    assert ledger.finish_reconciliation() == {}


def test_a_new_leader_has_drained_nothing(script: _Script) -> None:
    assert script.one.ledger.drained
    script.one.disconnect()
    script.one.step_in()
    assert not script.one.ledger.drained


def test_an_ordinary_fold_shows_no_rewind(script: _Script) -> None:
    script.one.begin_fold()
    assert script.one.reply is not None
    assert not script.one.ledger.settle(script.one.reply).rewound


# ------------------------------------------------------------------------------ following, takeovers, failovers --


def follow(script: _Script, asked: frozenset[int] | None = None, running: Collection[int] = ()) -> bool:
    """Let the second exporter read totals and journal, as a standby does; return whether they show a rewind.

    The transaction of an event has the same number; those that are `running` are not seen.
    """
    database, ledger = script.database, script.two.ledger
    asked = ledger.heard() if asked is None else asked
    seen = {number: event for number, event in database.journal.items() if number not in running}
    return ledger.follow(
        Totals(database.generation, CappedTotals(totals=database.totals), RecentActivity()),
        Waiting(
            Visibility(database.last_id + 1, frozenset(running)),
            asked,
            asked & seen.keys(),
            [event for number, event in seen.items() if number not in asked],
        ),
    )


def take_over(script: _Script) -> list[bool]:
    """Let the second exporter lead and drain the journal; return which of its folds have shown a rewind."""
    ledger = script.two.ledger
    rewinds = [ledger.observe(script.database.generation)]
    script.two.step_in()
    for _ in range(2):
        script.two.begin_fold()
        assert script.two.reply is not None
        outcome = ledger.settle(script.two.reply)
        if outcome.needs_totals:
            rewinds.append(outcome.rewound)
            totals = Totals(script.database.generation, CappedTotals(totals=script.database.totals), RecentActivity())
            outcome = ledger.resync(totals)
        rewinds.append(outcome.rewound)
        script.two.reply = None
    return rewinds


def known(script: _Script) -> int:
    """Return the revenue that the second exporter knows of."""
    return script.two.ledger._counters.exposed().get(REVENUE, 0)


def floor(script: _Script) -> int:
    """Return below which revenue the second exporter does not fall."""
    return (script.two.ledger._floor or {}).get(REVENUE, 0)


def test_a_standby_knows_what_the_leader_shows(script: _Script) -> None:
    script.earn(1)
    script.one.fold()
    script.earn(2)
    script.two.connect()
    assert not follow(script)
    assert script.two.ledger.hear(script.earn(4))
    # The 2 were in the journal when the totals were read, so nobody has to tell this standby of them.
    assert known(script) == 7
    assert take_over(script) == [False] * 4
    assert (floor(script), known(script)) == (7, 7)


def test_what_a_standby_has_heard_is_counted_once(script: _Script) -> None:
    follow(script)
    folded, waiting = script.earn(1), script.earn(2)
    for heard in (folded, waiting):
        assert script.two.ledger.hear(heard)
        assert not script.two.ledger.hear(heard)
    script.database.journal.pop(waiting.id)
    script.one.fold()
    script.database.journal[waiting.id] = waiting
    asked = script.two.ledger.heard()
    late = script.earn(4)
    assert script.two.ledger.hear(late)  # after the standby has asked, before the answer
    follow(script, asked)
    assert known(script) == 7
    assert not any(map(script.two.ledger.hear, (folded, waiting, late)))


def test_a_standby_hears_what_was_running_when_it_read(script: _Script) -> None:
    script.earn(1)
    script.one.fold()
    follow(script)
    early, running, unheard = script.earn(2), script.earn(4), script.earn(8)
    assert script.two.ledger.hear(early)
    script.database.journal.pop(running.id)
    script.one.fold()
    script.database.journal[running.id] = running
    assert not follow(script, running={running.id})
    assert known(script) == 11
    # Neither does the totals' generation tell, nor its id, which is lower than one that was folded.
    assert script.two.ledger.hear(running)
    assert known(script) == 15
    script.one.fold()
    assert not follow(script)
    assert not any(map(script.two.ledger.hear, (early, running, unheard)))
    assert known(script) == 15


def test_a_snapshot_tells_nothing_in_the_next_session(script: _Script) -> None:
    for _ in range(3):
        script.earn(1)
    follow(script)
    script.two.ledger.disconnect()
    # An older copy of the data was put back meanwhile, so ids and xids are handed out again.
    for number in (1, 4):
        assert not script.two.ledger.hear(event(None, task(total_revenue=8), number=number))
    assert known(script) == 3
    follow(script)
    assert script.two.ledger.hear(script.earn(16))


def test_a_forged_payload_is_forgotten_with_the_next_totals(script: _Script) -> None:
    follow(script)
    script.two.ledger.hear(event(None, task(total_revenue=99), number=1000))
    follow(script)
    assert known(script) == 0


def test_a_standby_hears_no_more_than_may_be_pending() -> None:
    script = _Script(pending_maximum=1)
    follow(script)
    assert [script.two.ledger.hear(script.earn(1)) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("later", "revenue", "rewinds"),
    [
        (-1, 1, [True, False, False, False]),
        (0, 2, [False, False, True, False]),
        (0, 3, [False, False, True, False]),
        (0, 7, [False, False, False, False]),
    ],
    ids=["a fold is lost", "totals are lower", "events that were not folded are lost", "nothing is lost"],
)
def test_a_takeover_after_lost_commits_finds_the_rewind_once(
    script: _Script, later: int, revenue: int, rewinds: list[bool]
) -> None:
    script.earn(3)
    script.one.fold()
    follow(script)
    assert script.two.ledger.hear(script.earn(4))
    script.database.journal.clear()
    script.database.generation += later
    script.database.totals = {REVENUE: revenue}
    assert take_over(script) == rewinds
    assert (floor(script), known(script)) == (7, revenue)


@pytest.mark.parametrize(("revenue", "rewound"), [(3, True), (7, False)])
def test_a_standby_on_the_new_primary_still_finds_the_rewind(script: _Script, revenue: int, *, rewound: bool) -> None:
    script.two.ledger.attach("a", (1, 1))
    script.earn(3)
    script.one.fold()
    follow(script)
    assert script.two.ledger.hear(script.earn(4))
    script.two.ledger.attach("a", (1, 2))
    script.database.journal.clear()
    assert not follow(script)  # the 4 may be in the journal
    script.database.totals = {REVENUE: revenue}
    assert any(take_over(script)) is rewound
    assert (floor(script), known(script)) == (7, revenue)


def test_a_standby_holds_what_was_shown_above_lower_totals(script: _Script) -> None:
    script.earn(5)
    script.one.fold()
    follow(script)
    script.database.totals = {REVENUE: 3}
    assert [follow(script), follow(script)] == [True, False]
    script.database.generation = 0
    assert [follow(script), follow(script)] == [True, False]
    assert take_over(script) == [False] * 4
    assert (floor(script), known(script)) == (5, 3)


def test_a_leader_that_reconnects_compares_the_generation(script: _Script) -> None:
    script.one.fold()
    script.one.disconnect()
    ledger, known = script.one.ledger, script.database.generation
    assert [ledger.observe(known), ledger.observe(known + 3), ledger.observe(known), ledger.observe(known)] == [
        False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("revenue", "rewinds"), [(0, [True, False]), (7, [False, False])])
def test_what_was_not_folded_before_a_promotion_is_compared(script: _Script, revenue: int, rewinds: list[bool]) -> None:
    ledger, database = script.one.ledger, script.database
    ledger.attach("a", (1, 1))
    script.earn(5)
    script.one.deliver_all()
    script.one.disconnect()
    ledger.attach("a", (1, 2))
    # Perhaps another exporter has folded there already: the generation goes on as if there were no gap.
    database.journal.clear()
    database.totals = {REVENUE: revenue} if revenue else {}
    script.one.step_in()
    found = []
    for _ in rewinds:
        fold = database.fold("one", script.one.backend or 0, 100, ledger.begin_fold())
        assert fold is not None
        outcome = ledger.settle(fold)
        if outcome.needs_totals:
            outcome = ledger.resync(Totals(fold.generation, CappedTotals(totals=database.totals), RecentActivity()))
        found.append(outcome.rewound)
        assert (script.revenue(), outcome.unconfirmed) == (revenue, 0)
    assert found == rewinds
    assert ledger._floor == {REVENUE: 5}


def test_a_new_installation_has_no_floor(script: _Script) -> None:
    script.two.ledger.attach("a", (1, 1))
    script.earn(5)
    script.one.fold()
    follow(script)
    script.two.ledger.attach("b", (1, 2))
    script.database.generation, script.database.totals = 0, {}
    assert not follow(script)
    assert take_over(script) == [False] * 4
    assert (floor(script), script.two.ledger._epoch) == (0, 1)


# ----------------------------------------------------------------------------------------- the counters alone --

DONE = event(None, task("COMPLETED"), number=7)
FEW: dict[SampleKey, int] = {("manufacturing_revenue_total", (player,)): 5 for player in "12"}


def test_nothing_is_counted_before_the_first_barrier() -> None:
    counters = Counters(pending_maximum=10)
    counters.resync(CappedTotals(), 5, barrier=1)
    arrivals = [counters.announce(DONE)]
    counters.receive_barrier(1)
    assert [*arrivals, counters.announce(DONE)] == [Arrival.DEFERRED, Arrival.COUNTED]


def test_nothing_is_announced_near_the_cap() -> None:
    counters = Counters(pending_maximum=10)
    counters.resync(CappedTotals(maximum=3, totals=FEW), 5, barrier=1)
    counters.receive_barrier(1)
    assert (counters.announce(DONE), counters.capped) == (Arrival.DEFERRED, False)


@pytest.mark.parametrize(("known", "read"), [(1, 9), (9, 1)])
def test_totals_of_which_some_are_summed_up_show_no_rewind(known: int, read: int) -> None:
    counters = Counters(pending_maximum=10)
    counters.resync(CappedTotals(known, FEW), 5, barrier=1)
    lower = dict.fromkeys(FEW, 1)
    assert not counters.exceed(CappedTotals(read, lower))
    counters.resync(CappedTotals(9, FEW), 5, barrier=1)
    assert counters.exceed(CappedTotals(9, lower))
    assert not counters.exceed(CappedTotals(9, FEW))
