"""When an id can never come up in the journal again."""

import pytest

from mfg_notify.core.scan_horizon import ScanHorizon

Fold = tuple[int, int, bool, int]
"""xid, xmin, drained, last_id."""


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        pytest.param([], -1, id="nothing is known at first"),
        pytest.param([(10, 10, True, 5)] * 3, -1, id="the first candidate comes from a fold, not from before it"),
        pytest.param(
            [(10, 10, True, 5), (11, 11, True, 6), (12, 12, True, 7), (13, 13, True, 8)],
            6,
            id="an id is given up two marks after it was handed out",
        ),
        pytest.param(
            [(10, 10, True, 5), (11, 11, True, 6), (12, 12, True, 7), (13, 11, True, 8)],
            -1,
            id="not while a transaction from then is still running",
        ),
        pytest.param(
            [(10, 10, True, 5), (11, 11, True, 6), (12, 12, True, 7), (13, 13, False, 8)],
            -1,
            id="not by a fold that left something behind",
        ),
        pytest.param(
            [(10, 10, True, 5), (11, 11, True, 6), (12, 12, True, 7), (13, 13, False, 8), (14, 14, True, 9)],
            6,
            id="but by the next that leaves nothing",
        ),
    ],
)
def test_folded_up_to(folds: list[Fold], expected: int) -> None:
    horizon = ScanHorizon()
    for xid, xmin, drained, last_id in folds:
        horizon.folded(xid, xmin, drained=drained, last_id=last_id)
    assert horizon.folded_up_to == expected


def test_a_reset_forgets_the_candidate_too() -> None:
    horizon = ScanHorizon()
    for xid in range(10, 15):
        horizon.folded(xid, xid, drained=True, last_id=xid)
    assert horizon.folded_up_to > 0
    horizon.reset()
    assert horizon.folded_up_to == -1
    for xid in (15, 16):
        horizon.folded(xid, xid, drained=True, last_id=3)
    assert horizon.folded_up_to == -1
    for xid in (17, 18):
        horizon.folded(xid, xid, drained=True, last_id=3)
    assert horizon.folded_up_to == 3
