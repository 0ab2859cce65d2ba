"""The board's content: the last changes, each once; the tables; and how often a snapshot is built."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import NOW, SECOND, Image, event, factory, pipeline, samples, task

from mfg_notify.core.board import (
    CHANGES_MAXIMUM,
    ROWS_MAXIMUM,
    TREND_BARS,
    BoardSnapshot,
    Game,
    GameSummary,
    LastChanges,
    Row,
    Run,
    build_game,
    describe_change,
    last_activity,
    name_players,
)
from mfg_notify.core.events import Event, Material, PipelineImage, TaskChange
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.live_state import HOUR, LiveRows, RecentActivity, compute_gauges
from mfg_notify.core.progress import OpenTasks, Progress
from mfg_notify.core.rules import Completion, SampleKey
from mfg_notify.core.series import Players, View
from mfg_notify.core.tuning import Tuning
from mfg_notify.web.board import HEARTBEAT, INTERVAL, SHARE, TENURE, VIEWERS_MAXIMUM, Board, Viewer

LEDGER = Ledger(lambda: 0.0, NOW, Tuning())
"""Knows nothing."""


def change(number: int, status: str = "READY") -> Event:
    return event(None, task(status), number=number)


def ids(changes: LastChanges) -> list[int]:
    return [found.id for found in changes.newest()]


@given(
    st.lists(
        st.tuples(st.booleans(), st.sets(st.integers(1, 250), max_size=120).map(sorted)),
        max_size=12,
    )
)
def test_each_change_appears_once_however_it_comes(arrivals: list[tuple[bool, list[int]]]) -> None:
    changes = LastChanges()
    arrived: set[int] = set()
    for by_fold, numbers in arrivals:
        (changes.settle if by_fold else changes.announce)(map(change, numbers))
        arrived |= set(numbers)
    assert ids(changes) == sorted(arrived, reverse=True)[:CHANGES_MAXIMUM]


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (task("READY"), task("READY", ready_at=NOW), False),
        (task("READY"), task("READY", retry_count=1), True),
        (pipeline("EXECUTING"), pipeline("EXECUTING", total_cost=7), False),
        (pipeline("EXECUTING"), pipeline("EXECUTING", net_profit=7), True),
        (factory("HIGH"), factory("HIGH", is_current=True), False),
        (factory("HIGH"), factory("HIGH", ready=True), True),
        (None, task("READY"), True),
    ],
)
def test_a_change_that_only_touches_times_is_not_shown(old: Image | None, new: Image | None, *, shown: bool) -> None:
    for take in (LastChanges.announce, LastChanges.settle):
        changes = LastChanges()
        take(changes, [event(old, new, number=7)])
        assert ids(changes) == [7] * shown
    # A forged payload said something under its id, and the fold knows better.
    changes.announce([event(None, task("READY"), number=7)])
    changes.settle([event(old, new, number=7)])
    assert ids(changes) == [7] * shown


def test_an_announced_event_without_a_row_is_forgotten() -> None:
    changes = LastChanges()
    changes.announce([change(1), change(2), change(10**18)])
    changes.settle([change(1)])
    changes.forget_unconfirmed(frozenset({2}))
    assert ids(changes) == [2, 1]
    changes.settle([change(2)])
    changes.forget_unconfirmed(frozenset())
    assert ids(changes) == [2, 1]


def test_a_fold_replaces_what_was_announced_under_its_id() -> None:
    changes = LastChanges()
    changes.announce([change(1, "FORGED")])
    changes.settle([change(1, "READY")])
    changes.forget_unconfirmed(frozenset())
    assert [describe_change(found).after for found in changes.newest()] == ["READY"]


def test_after_a_rewind_ids_begin_again() -> None:
    changes = LastChanges()
    changes.announce([change(900)])
    changes.clear()
    changes.settle([change(1)])
    changes.forget_unconfirmed(frozenset())
    assert ids(changes) == [1]


@pytest.mark.parametrize(
    ("old", "new", "summary"),
    [
        (None, task(assigned_ship="S-1"), ("task", "COLLECT_SELL", None, "PENDING", "new", "S-1")),
        (
            task("READY"),
            task("ASSIGNED", assigned_ship="S-1"),
            ("task", "COLLECT_SELL", "READY", "ASSIGNED", "", "S-1"),
        ),
        (task(assigned_ship="S-1"), None, ("task", "COLLECT_SELL", "PENDING", None, "deleted", "S-1")),
        (
            task("EXECUTING", retry_count=0, total_cost=5),
            task("READY", retry_count=2, total_cost=1505, total_revenue=7),
            ("task", "COLLECT_SELL", "EXECUTING", "READY", "retry 2, spent 1,500, earned 7", ""),
        ),
        (
            pipeline("EXECUTING"),
            pipeline("COMPLETED", net_profit=-1200),
            ("pipeline", "RIFLES", "EXECUTING", "COMPLETED", "profit -1,200", ""),
        ),
        (
            pipeline(site="I52", materials=(("GOLD", 5, 9), ("IRON", 5, 9), ("TIN", 5, 9))),
            pipeline(site="I52", materials=(("FAB_MATS", 1060, 1600), ("GOLD", 4, 9), ("IRON", 6, 9), ("TIN", 5, 8))),
            ("pipeline", "RIFLES", "EXECUTING", "EXECUTING", "FAB_MATS +1,060, IRON +1", ""),
        ),
        (
            pipeline(),
            pipeline(site="I52", materials=(("IRON", 6, 9),)),
            ("pipeline", "RIFLES", "EXECUTING", "EXECUTING", "IRON +6", ""),
        ),
        (
            pipeline(site="I52"),
            pipeline(site="I52", materials=tuple((f"G{n}", n, 9) for n in range(8))),
            ("pipeline", "RIFLES", "EXECUTING", "EXECUTING", "G1 +1, G2 +2, G3 +3, G4 +4, G5 +5, and 2 more", ""),
        ),
        (
            task("EXECUTING", assigned_ship="S-1"),
            task("COMPLETED", total_revenue=7, units=1040),
            ("task", "COLLECT_SELL", "EXECUTING", "COMPLETED", "earned 7, moved 1,040", ""),
        ),
        (
            task("EXECUTING", units=20),
            task("EXECUTING", units=60),
            ("task", "COLLECT_SELL", "EXECUTING", "EXECUTING", "moved 40", ""),
        ),
        (
            task("EXECUTING", units=60),
            task("PENDING", units=0),
            ("task", "COLLECT_SELL", "EXECUTING", "PENDING", "", ""),
        ),
        (
            factory("HIGH", delivered=1, required=4),
            factory("ABUNDANT", ready=True, delivered=2, required=4),
            ("factory", "X1-F IRON", "HIGH", "ABUNDANT", "ready for collection, 2 of 4 inputs", ""),
        ),
        (factory(ready=True), factory(), ("factory", "X1-F IRON", None, None, "collected", "")),
    ],
)
def test_the_summary_of_a_change(old: Image | None, new: Image | None, summary: tuple[str | None, ...]) -> None:
    found = describe_change(event(old, new, number=7, key="12"))
    assert (found.kind, found.subject, found.before, found.after, found.remark, found.ship) == summary
    assert (found.id, found.at, found.player, found.key) == ("7", NOW, "1", "12")


def test_the_summary_of_a_truncate() -> None:
    found = describe_change(Event(7, 7, NOW, TaskChange("T", "", None, None)))
    assert (found.kind, found.player, found.remark) == ("task", "", "all rows removed")


def test_the_tables() -> None:
    rows = LiveRows(
        {"a": pipeline("PLANNING"), "b": pipeline("EXECUTING"), "c": pipeline("EXECUTING", product_good="DRUGS")},
        {
            "a": task("PENDING"),
            "b": task("READY"),
            "c": task("EXECUTING", assigned_ship="S-1"),
            "d": task("READY", player_id=2, task_type="LIQUIDATE"),
        },
        {1: factory("HIGH", ready=True, delivered=1, required=4), 2: factory(None, output_good="GOLD")},
        {(1, "S-1"): True, (1, "S-2"): True, (2, "S-3"): False},
    )
    totals = samples(
        """
        pipeline_completed_total 1 RIFLES COMPLETED 7
        pipeline_completed_total 1 MEDICINE FAILED 2
        tasks_completed_total 1 COLLECT_SELL success 5
        tasks_completed_total 1 COLLECT_SELL failure 1
        factory_cycles_total 1 X1-F IRON 3
        revenue_total 1 99
        """
    )
    activity = RecentActivity({"x": Completion("x", 1, NOW - SECOND, 500), "y": Completion("y", 2, NOW - SECOND, -700)})
    game = build_game(View(totals, compute_gauges(rows), activity), NOW)
    assert game.tables == {
        "runs": [],
        "players": [("1", 1, 2, 3, 1, 1, 50, 1, 500), ("2", 0, 0, 1, 0, 0, 0, 0, -700)],
        "pipelines": [
            ("1", "DRUGS", 0, 1, 0, 0, 0),
            ("1", "RIFLES", 1, 1, 7, 0, 0),
            ("1", "MEDICINE", 0, 0, 0, 2, 0),
        ],
        "tasks": [("1", "COLLECT_SELL", 1, 1, 1, 5, 1, 0), ("2", "LIQUIDATE", 0, 1, 0, 0, 0, 0)],
        "factories": [("1", "X1-F", "GOLD", None, 1, 0), ("1", "X1-F", "IRON", 4, 0.25, 3)],
        "sites": [],
    }
    assert msgspec.structs.astuple(game.summary)[:6] == (3, 4, 1, 1, 1, -200)
    assert set(game.left_out.values()) == {0}


def test_live_pipelines_keep_places_and_say_what_they_await() -> None:
    rows = LiveRows({"b": pipeline("EXECUTING"), "a": pipeline("PLANNING"), "new": pipeline("EXECUTING", player_id=2)})
    progress = {"a": Progress(20), "b": Progress(10, ready=OpenTasks(2, 15)), "gone": Progress(5)}
    ledger = Ledger(lambda: 0.0, NOW, Tuning())
    ledger._live.reconcile(rows, lambda _: True)
    ledger.set_progress(progress)
    view = View({}, compute_gauges(rows), RecentActivity())
    game = build_game(view, NOW, ledger.runs())
    assert game.tables["runs"] == [
        ("1", "RIFLES", "b", "EXECUTING", 10, "2 tasks ready, no idle ship", 15),
        ("1", "RIFLES", "a", "PLANNING", 20, "its start", 20),
        ("2", "RIFLES", "new", "EXECUTING", None, "not read yet", None),
    ]
    ledger.set_progress(None)
    assert [(run.key, run.progress) for run in ledger.runs()] == [("a", None), ("b", None), ("new", None)]


def test_the_trend_of_the_last_hour() -> None:
    bar = HOUR // TREND_BARS
    now = NOW // bar * bar + bar // 2
    done = {
        "now": Completion("now", 1, now - SECOND, 700),
        "too": Completion("too", 1, now - SECOND, -100),
        "first": Completion("first", 1, now - 29 * bar, 5),
        "too old": Completion("too old", 1, now - 30 * bar, 9),
        "of the future": Completion("of the future", 1, now + bar, 9),
    }
    summary = build_game(View({}, compute_gauges(LiveRows()), RecentActivity(done)), now).summary
    assert (summary.completed[0], summary.completed[-1], sum(summary.completed)) == (1, 2, 3)
    assert (summary.profit[0], summary.profit[-1], sum(summary.profit)) == (5, 600, 605)


def test_when_a_player_last_changed_something() -> None:
    latest = {("player", 1, ""): 5, ("player", 2, ""): 9, ("ship", 1, "S"): 99}
    assert last_activity(View({}, compute_gauges(LiveRows()), RecentActivity({}, latest))) == 9
    assert last_activity(View({}, compute_gauges(LiveRows()), RecentActivity())) is None


def test_construction_sites_and_what_they_lack_most_first() -> None:
    def site(name: str, *materials: Material, player_id: int = 1, status: str = "EXECUTING") -> PipelineImage:
        return pipeline(status, player_id=player_id, site=name, materials=materials)

    rows = LiveRows(
        {
            "a": site("X1-I52", ("CIRCUITS", 80, 400), ("FAB_MATS", 100, 1600), ("SURPLUS", 9, 3), ("NOTHING", 0, 0)),
            "b": site("X1-A1", ("GOLD", 1, 2), ("IRON", 1, 2)),
            # A second pipeline for the same material of the same site.
            "c": site("X1-I52", ("CIRCUITS", 0, 400), status="PLANNING"),
            "d": site("X1-A1", ("IRON", 0, 7), player_id=10),
            "e": site("X1-A1", ("IRON", 0, 7), player_id=9),
            "f": site("X1-DONE", ("IRON", 7, 7), status="COMPLETED"),
            "g": pipeline(),
        }
    )
    assert build_game(View({}, compute_gauges(rows), RecentActivity()), NOW).tables["sites"] == [
        ("1", "X1-A1", "GOLD", 1, 2, 0.5),
        ("1", "X1-A1", "IRON", 1, 2, 0.5),
        ("1", "X1-I52", "FAB_MATS", 100, 1600, 0.0625),
        ("1", "X1-I52", "CIRCUITS", 80, 800, 0.1),
        ("1", "X1-I52", "NOTHING", 0, 0, 1),
        ("1", "X1-I52", "SURPLUS", 9, 3, 1),
        ("9", "X1-A1", "IRON", 0, 7, 0),
        ("10", "X1-A1", "IRON", 0, 7, 0),
    ]


def test_players_that_have_been_silent_for_a_day_are_not_shown() -> None:
    activity = RecentActivity({}, {("player", 1, ""): NOW - 25 * HOUR, ("player", 2, ""): NOW - HOUR})
    totals = samples("pipeline_completed_total 1 RIFLES COMPLETED 1 \n pipeline_completed_total 2 RIFLES COMPLETED 1")
    game = build_game(View(totals, compute_gauges(LiveRows()), activity), NOW)
    assert game.tables["pipelines"] == [("2", "RIFLES", 0, 0, 1, 0, 0)]


def everything_of(player_id: int) -> LiveRows:
    """Return live rows that give a player a row in every table."""
    return LiveRows(
        {f"p{player_id}": pipeline(player_id=player_id, site="I52", materials=(("IRON", 5, 9),))},
        {f"t{player_id}": task("EXECUTING", player_id=player_id, assigned_ship="S")},
        {player_id: factory("HIGH", ready=True, player_id=player_id)},
        {(player_id, "S"): True, (player_id, "T"): True},
    )


def test_a_player_of_a_closed_era_has_no_row() -> None:
    old, new = everything_of(1), everything_of(2)
    rows = LiveRows(
        {**old.pipelines, **new.pipelines},
        {**old.tasks, **new.tasks},
        {**old.factories, **new.factories},
        {**(old.ships or {}), **(new.ships or {})},
    )
    activity = RecentActivity({"x": Completion("x", 1, NOW - SECOND, 500), "y": Completion("y", 2, NOW - SECOND, 70)})
    players = Players(closed_at={1: NOW})
    game = build_game(View({}, compute_gauges(rows), activity, players=players), NOW, runs_of(rows))
    assert all([row[0] for row in table] == ["2"] for table in game.tables.values())
    assert msgspec.structs.astuple(game.summary)[:6] == (1, 1, 1, 1, 1, 70)


def test_what_is_summed_over_all_players_comes_last() -> None:
    totals = samples("pipeline_completed_total other other FAILED 9 \n pipeline_completed_total 12 other FAILED 1")
    game = build_game(View(totals, compute_gauges(LiveRows()), RecentActivity()), NOW)
    assert game.tables["pipelines"] == [("12", "other", 0, 0, 0, 1, 0), ("other", "other", 0, 0, 0, 9, 0)]


def runs_of(rows: LiveRows) -> list[Run]:
    return [Run(key, row, None) for key, row in rows.pipelines.items()]


def snapshot_of(tables: dict[str, list[Row]], changes: list[Event]) -> BoardSnapshot:
    game = Game(GameSummary(0, 0, 0, 0, 0, 0, [], []), tables, dict.fromkeys(tables, 0))
    return BoardSnapshot("1", "live", True, "", None, game, list(map(describe_change, changes)), [])


@pytest.mark.parametrize(
    ("agents", "shown"),
    [
        ({}, ["1", "2", "3"]),
        ({1: "TORWIND", 2: "B", 9: "TORWIND"}, ["TORWIND", "B", "3"]),
        ({1: "TORWIND", 2: "B", 3: "TORWIND"}, ["TORWIND (1)", "B", "TORWIND (3)"]),
        ({1: "3", 2: "B"}, ["3 (1)", "B", "3"]),
        ({1: "A", 2: "A", 3: "A (1)"}, ["A (1)", "A (2)", "A (1) (3)"]),
        ({1: "A", 2: "A (1)", 3: "A (1) (2)"}, ["A", "A (1)", "A (1) (2)"]),
    ],
)
def test_players_are_shown_by_their_agents(agents: dict[int, str], shown: list[str]) -> None:
    first, second, third = shown
    ids = snapshot_of(
        {"players": [("1", 7, "1"), ("2", None)], "pipelines": [("2", "1")]},
        [
            event(None, task(player_id=3)),
            event(task(player_id=1), None),
            Event(7, 7, NOW, TaskChange("T", "", None, None)),
        ],
    )
    named = name_players(ids, agents)
    assert named.game is not None
    assert named.game.tables == {"players": [(first, 7, "1"), (second, None)], "pipelines": [(second, "1")]}
    assert [change.player for change in named.changes] == [third, first, ""]
    assert msgspec.structs.replace(named, game=ids.game, changes=ids.changes) == ids


@given(st.dictionaries(st.integers(1, 9), st.sampled_from(["1", "2", "A", "A (1)", "A (2)", "A (1) (2)", "other", ""])))
def test_no_two_players_look_alike(agents: dict[int, str]) -> None:
    rows: list[Row] = [(player,) for player in (*map(str, range(1, 12)), "other")]
    named = name_players(snapshot_of({"players": rows}, []), agents).game
    assert named is not None
    assert len(set(named.tables["players"])) == len(rows)


def test_without_a_game_changes_have_names() -> None:
    alone = BoardSnapshot("1", "waiting", False, "", None, None, [describe_change(change(1))], [])
    named = name_players(alone, {1: "A"})
    assert (named.game, named.changes[0].player) == (None, "A")


def test_a_snapshot_is_small_however_large_the_game_is() -> None:
    many = ROWS_MAXIMUM + 300
    rows = LiveRows(
        {
            str(n): pipeline(product_good=f"LIVE{n}", player_id=n, site=f"S{n}", materials=(("IRON", n, many),))
            for n in range(many)
        },
        {str(n): task(task_type=f"T{n}") for n in range(many)},
        {n: factory("HIGH", output_good=f"G{n}") for n in range(many)},
    )
    totals: dict[SampleKey, int] = {
        ("manufacturing_pipeline_completed_total", ("0", f"OLD{n}", "FAILED")): 2**70 for n in range(many)
    }
    game = build_game(View(totals, compute_gauges(rows), RecentActivity()), NOW, runs_of(rows))
    for name, table in game.tables.items():
        assert len(table) == ROWS_MAXIMUM
        assert game.left_out[name] == (2 * many if name == "pipelines" else many) - ROWS_MAXIMUM
    # The limit leaves out finished products, never live ones.
    assert all(str(row[1]).startswith("LIVE") for row in game.tables["pipelines"])
    assert game.summary.pipelines == many
    assert msgspec.json.encode(game)


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


class SnapshotSource:
    """Builds snapshots with the given text, takes `seconds` for each, and counts them."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        self.built = 0
        self.status_text = ""
        self._clock = clock
        self._seconds = seconds

    def __call__(self) -> BoardSnapshot:
        """Build a snapshot."""
        self.built += 1
        self._clock.now += self._seconds
        return BoardSnapshot("1", "live", True, self.status_text, None, None, [], [])


@pytest.mark.anyio
async def test_all_viewers_share_one_snapshot() -> None:
    clock = Clock()
    source = SnapshotSource(clock)
    board = Board(source, LEDGER.row_details, clock)
    viewers = [watch(board) for _ in range(9)]
    first = [await anext(viewer) for viewer in viewers]
    assert source.built == 1
    assert len(set(first)) == 1
    source.status_text = "another text"
    clock.now += INTERVAL
    second = [await anext(viewer) for viewer in viewers]
    assert source.built == 2
    assert b"another text" in second[0]
    assert len(set(second)) == 1


@pytest.mark.anyio
async def test_a_snapshot_that_takes_long_is_built_less_often() -> None:
    clock = Clock()
    source = SnapshotSource(clock, seconds=2.0)
    board = Board(source, LEDGER.row_details, clock)
    await anext(watch(board))
    clock.now += 2.0 / SHARE - 2.0 - 0.01
    await anext(watch(board))
    assert source.built == 1
    clock.now += 0.01
    await anext(watch(board))
    assert source.built == 2


@pytest.mark.anyio
async def test_a_viewer_gets_changes_then_heartbeats_then_the_end() -> None:
    clock = Clock()
    source = SnapshotSource(clock)
    board = Board(source, LEDGER.row_details, clock)
    viewer = watch(board)
    assert (await anext(viewer)).startswith(b"data: {")
    # A slow viewer gets the latest snapshot and misses the ones before it.
    for text in ("one", "two", "three"):
        source.status_text = text
        clock.now += INTERVAL
        await anext(watch(board))
    assert b'"three"' in await anext(viewer)
    clock.now += HEARTBEAT
    assert (await anext(viewer)).startswith(b"event: heartbeat\n")
    board.close()
    assert [event async for event in _rest(viewer)] == []


@pytest.mark.anyio
async def test_a_new_viewer_evicts_the_oldest() -> None:
    clock = Clock()
    board = Board(SnapshotSource(clock), LEDGER.row_details, clock)
    viewers = []
    for _ in range(VIEWERS_MAXIMUM):
        viewers.append(admit(board))
        clock.now += 0.1
    assert board.admit() is None
    # A free place can be taken at once.
    board.dismiss(viewers.pop())
    viewers.append(admit(board))
    clock.now = viewers[0].admitted_at + TENURE
    admit(board)
    assert [viewer.ended.is_set() for viewer in viewers] == [True] + [False] * (VIEWERS_MAXIMUM - 1)
    assert board.admit() is None


def admit(board: Board) -> Viewer:
    viewer = board.admit()
    assert viewer is not None
    return viewer


def watch(board: Board) -> AsyncIterator[bytes]:
    return board.watch(admit(board))


async def _rest(viewer: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for frame in viewer:
        yield frame


def test_only_the_newest_changes_are_kept() -> None:
    changes = LastChanges()
    numbers = range(1, 3 * CHANGES_MAXIMUM)
    changes.announce(map(change, numbers))
    assert ids(changes) == list(numbers)[-CHANGES_MAXIMUM:][::-1]
    assert len(changes._events) == CHANGES_MAXIMUM
    changes.forget_unconfirmed(frozenset())
    assert ids(changes) == []
