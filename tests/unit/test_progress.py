"""What a live pipeline waits for, in words, and which inputs a factory lacks whatever the game's JSON holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfg_notify.core.progress import FactoryNeeds, OpenTasks, Progress, missing_inputs, waits_for

CREATED, PENDING, READY, STARTED = 10, 20, 30, 40
LACKS_FIVE = FactoryNeeds("X1-F", "RIFLES", "HIGH", ("A", "B", "C", "D", "E"))
LACKS_ONE = FactoryNeeds("X1-G", "STEEL", "SCARCE", ("IRON",))
SATISFIED = FactoryNeeds("X1-H", "TIN", "HIGH", ())
SCARCE = FactoryNeeds("X1-I", "GOLD", "SCARCE", ())
UNSEEN = FactoryNeeds("X1-J", "ICE", None, ())


@pytest.mark.parametrize(
    ("progress", "status", "idle_ships", "expected"),
    [
        (
            Progress(CREATED, OpenTasks(3, PENDING), OpenTasks(2, READY), OpenTasks(1, STARTED), [LACKS_ONE]),
            "EXECUTING", 0, ("1 task under way", STARTED),
        ),
        (Progress(CREATED, ready=OpenTasks(2, READY)), "EXECUTING", 0, ("2 tasks ready, no idle ship", READY)),
        (Progress(CREATED, ready=OpenTasks(1, READY)), "EXECUTING", 1, ("1 task ready, 1 idle ship", READY)),
        (Progress(CREATED, ready=OpenTasks(1, READY)), "EXECUTING", 4, ("1 task ready, 4 idle ships", READY)),
        (
            Progress(CREATED, OpenTasks(2, PENDING), factories=[SATISFIED, LACKS_ONE]),
            "EXECUTING", 4, ("X1-G lacks IRON", PENDING),
        ),
        (Progress(CREATED, factories=[LACKS_FIVE]), "EXECUTING", 4, ("X1-F lacks A, B, C, D and 1 more", CREATED)),
        (
            Progress(CREATED, OpenTasks(2, PENDING), factories=[SATISFIED, SCARCE]),
            "EXECUTING", 4, ("GOLD at X1-I is SCARCE", PENDING),
        ),
        (Progress(CREATED, factories=[UNSEEN]), "EXECUTING", 4, ("ICE at X1-J is not seen yet", CREATED)),
        (
            Progress(CREATED, OpenTasks(2, PENDING), factories=[SATISFIED]),
            "EXECUTING", 4, ("2 tasks pending", PENDING),
        ),
        (Progress(CREATED), "PLANNING", 4, ("its start", CREATED)),
        (Progress(None), "EXECUTING", 4, ("no open task", None)),
    ],
)  # fmt: skip
def test_what_a_pipeline_waits_for(
    progress: Progress, status: str, idle_ships: int, expected: tuple[str, int | None]
) -> None:
    assert waits_for(progress, status, idle_ships) == expected


@pytest.mark.parametrize(
    ("required", "delivered", "missing"),
    [
        ('["IRON", "TIN"]', '{"IRON": {"delivered": true}, "TIN": {"delivered": false}}', ("TIN",)),
        ('["IRON"]', "{}", ("IRON",)),
        ('["IRON"]', None, ("IRON",)),
        ("[]", '{"GOLD": {"delivered": false}}', ()),
        ('["IRON", 7, null, ["TIN"]]', '{"IRON": true}', ("IRON",)),
        ('{"IRON": 1}', "{}", ()),
        ('["IRON"]', "[]", ()),
        ('["IR', "{}", ()),
        ("[" * 20_000, "{}", ()),
        (None, None, ()),
    ],
)
def test_missing_inputs(required: str | None, delivered: str | None, missing: tuple[str, ...]) -> None:
    assert missing_inputs(required, delivered) == missing


@given(st.text(), st.text())
def test_nothing_in_the_games_json_is_an_error(required: str, delivered: str) -> None:
    missing_inputs(required, delivered)
