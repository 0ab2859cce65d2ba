"""One pipeline or task on the board: live ones, those that ended last, and what it says of all others."""

from tests.unit.builders import NOW, SECOND, event, factory, pipeline, task

from mfg_notify.core.board import CHANGES_MAXIMUM
from mfg_notify.core.capped_totals import CappedTotals
from mfg_notify.core.counters import settle
from mfg_notify.core.events import Event
from mfg_notify.core.ledger import Fold, Ledger, Snapshot, Totals
from mfg_notify.core.live_state import LiveRows, RecentActivity
from mfg_notify.core.progress import OpenTasks, Progress
from mfg_notify.core.row_details import ENDED_MAXIMUM, RowDetails
from mfg_notify.core.series import Players
from mfg_notify.core.tuning import Tuning
from mfg_notify.core.visibility import Visibility

STARTED = pipeline("EXECUTING", started_at=NOW)
ENDED = pipeline(
    "COMPLETED", started_at=NOW, completed_at=NOW + 90 * SECOND, total_revenue=900, total_cost=200, net_profit=700
)


class Known:
    """A ledger in step."""

    def __init__(self, rows: LiveRows | None = None) -> None:
        self.ledger = Ledger(lambda: 0.0, NOW, Tuning())
        self.generation = 0
        self.ledger.attach("one")
        self.ledger.lead()
        self.fold()
        self.ledger.resync(Totals(1, CappedTotals(), RecentActivity()))
        self.ledger.receive_barrier(1)
        self.fold()
        self.ledger.begin_reconciliation()
        self.ledger.reconcile(Snapshot(rows or LiveRows(), Visibility(0, frozenset())))
        self.fold()
        self.ledger.receive_barrier(3)
        assert self.ledger.finish_reconciliation() is not None

    def fold(self, *events: Event) -> None:
        """Fold events that no other exporter has folded."""
        self.generation += 1
        number = self.ledger.begin_fold()
        self.ledger.settle(Fold(number, self.generation, events, settle(events), 0, True, 0, 0, 0))

    def facts(self, key: str, kind: str = "pipeline") -> dict[str, object]:
        """Return the facts of a row by name."""
        return {name: value for name, value, _ in self.ledger.row_details(kind, key).facts}


def test_a_live_pipeline() -> None:
    known = Known(LiveRows({"p": STARTED}))
    progress = Progress(NOW - SECOND, pending=OpenTasks(3), ready=OpenTasks(2), executing=OpenTasks(1))
    known.ledger.set_progress({"p": progress})
    assert known.facts("p") == {
        "Player": "1",
        "Product": "RIFLES",
        "Status": "EXECUTING",
        "Age": NOW - SECOND,
        "Tasks pending": 3,
        "Tasks ready": 2,
        "Tasks executing": 1,
        "Started": NOW,
    }
    known.ledger.set_players(Players({1: "TORWIND"}))
    assert known.facts("p")["Player"] == "TORWIND (1)"


def test_a_pipeline_that_has_ended() -> None:
    known = Known(LiveRows({"p": STARTED}))
    known.ledger.set_progress({"p": Progress(NOW)})
    announced = event(STARTED, ENDED, number=7, key="p")
    expected = {
        "Player": "1",
        "Product": "RIFLES",
        "Status": "COMPLETED",
        "Started": NOW,
        "Ended": NOW + 90 * SECOND,
        "Revenue": 900,
        "Cost": 200,
        "Profit": 700,
    }
    known.ledger.announce(announced)
    assert known.facts("p") == expected
    known.fold(announced)
    assert known.facts("p") == expected
    [change] = known.ledger.row_details("pipeline", "p").changes
    assert (change.before, change.after, change.remark) == ("EXECUTING", "COMPLETED", "profit +700")
    # It stays known when the last changes are about others.
    others = [event(None, task(), number=10 + n, key=f"t{n}") for n in range(3 * CHANGES_MAXIMUM)]
    known.fold(*others)
    assert known.facts("p") == expected
    assert known.ledger.row_details("pipeline", "p").changes == [change]


def test_a_task() -> None:
    ready = task("READY", ready_at=NOW)
    known = Known(LiveRows(tasks={"t": ready}))
    assert known.facts("t", "task")["Status"] == "READY"
    failed = task("FAILED", ready_at=NOW, started_at=NOW, completed_at=NOW, retry_count=1, assigned_ship="S", units=4)
    known.fold(event(ready, failed, number=1, key="t"))
    assert known.facts("t", "task") == {
        "Player": "1",
        "Type": "COLLECT_SELL",
        "Status": "FAILED",
        "Ship": "S",
        "Ready": NOW,
        "Started": NOW,
        "Ended": NOW,
        "Retries": 1,
        "Revenue": 0,
        "Cost": 0,
        "Units moved": 4,
    }
    # It is tried again.
    known.fold(event(failed, ready, number=2, key="t"))
    assert known.facts("t", "task")["Status"] == "READY"


def test_a_row_is_known_by_its_table_and_id() -> None:
    known = Known(LiveRows({"same": STARTED}, {"same": task()}, {1: factory()}))
    known.fold(event(factory(), factory("HIGH"), number=1, key="1"))
    assert "Product" in known.facts("same")
    assert "Type" in known.facts("same", "task")
    for kind, key in (("pipeline", "other"), ("task", ""), ("pipeline", "1"), ("task", "1")):
        assert known.ledger.row_details(kind, key).facts == []


def ends(*numbers: int) -> list[Event]:
    return [event(STARTED, ENDED, number=n, key=f"p-{n}", at=NOW + n) for n in numbers]


def test_what_ended_long_ago_is_forgotten_and_it_says_so() -> None:
    known = Known()
    assert known.ledger.row_details("pipeline", "p-1") == RowDetails([], [], None)
    known.fold(*ends(*range(1, ENDED_MAXIMUM + 1)))
    assert known.facts("p-1") != {}
    assert known.ledger.row_details("pipeline", "older").complete_since == NOW + 1
    # The first one ended again meanwhile, so the second and the third are the oldest.
    known.fold(*ends(1), *ends(2_000, 2_001))
    assert known.facts("p-1") != {}
    assert known.facts("p-4") != {}
    for forgotten in ("p-2", "p-3"):
        assert known.ledger.row_details("pipeline", forgotten) == RowDetails([], [], NOW + 3)
    assert known.ledger.row_details("task", "t").complete_since == NOW + 1


def test_after_a_takeover_nothing_of_before_is_known() -> None:
    known = Known(LiveRows({"live": STARTED}))
    known.fold(*ends(1))
    known.ledger.step_down()
    for key in ("live", "p-1"):
        assert known.ledger.row_details("pipeline", key) == RowDetails([], [], None)


def test_after_a_rewind_nothing_that_has_ended_is_known() -> None:
    known = Known()
    known.fold(*ends(1))
    known.generation = 0
    known.fold()
    assert known.ledger.row_details("pipeline", "p-1") == RowDetails([], [], None)


def test_a_deleted_row_is_known_from_its_last_change() -> None:
    known = Known(LiveRows({"p": STARTED}))
    known.fold(event(STARTED, None, number=1, key="p"))
    assert known.facts("p")["Status"] == "EXECUTING"
    [change] = known.ledger.row_details("pipeline", "p").changes
    assert change.remark == "deleted"
