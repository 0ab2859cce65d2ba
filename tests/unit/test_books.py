"""The books: what a change enters, and what a comparison says."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import factory, pipeline, task

from mfg_notify.core.books import Account, Balance, account, changed_rows, compare, describe_differences
from mfg_notify.core.catalogue import TASK_LIVE
from mfg_notify.core.events import (
    NEITHER,
    ONLY_NEW,
    Change,
    FactoryChange,
    PipelineChange,
    TaskChange,
)

READY, ASSIGNED, DONE = (task(status) for status in ("READY", "ASSIGNED", "COMPLETED"))
ENTERED: list[tuple[str, Change, dict[Account, int]]] = [
    ("insert", TaskChange("I", "t", None, READY), {("task", 1, "READY"): 1}),
    ("insert finished", TaskChange("I", "t", None, DONE), {}),
    (
        "move",
        TaskChange("U", "t", READY, ASSIGNED),
        {("task", 1, "READY"): -1, ("task", 1, "ASSIGNED"): 1},
    ),
    ("same status", TaskChange("U", "t", READY, READY), {}),
    ("finish", TaskChange("U", "t", ASSIGNED, DONE), {("task", 1, "ASSIGNED"): -1}),
    ("start again", TaskChange("U", "t", DONE, READY), {("task", 1, "READY"): 1}),
    ("delete", TaskChange("D", "t", READY, None), {("task", 1, "READY"): -1}),
    ("told again", TaskChange("U", "t", READY, READY, NEITHER), {}),
    ("gone, told again", TaskChange("D", "t", READY, None, NEITHER), {}),
    ("under another key", TaskChange("U", "u", READY, READY, ONLY_NEW), {("task", 1, "READY"): 1}),
    (
        "pipeline",
        PipelineChange("U", "p", pipeline("PLANNING"), pipeline("EXECUTING")),
        {("pipeline", 1, "PLANNING"): -1, ("pipeline", 1, "EXECUTING"): 1},
    ),
    ("pending is no status of a pipeline", PipelineChange("I", "p", None, pipeline("PENDING")), {}),
    (
        "factory",
        FactoryChange("U", "7", factory(None), factory("HIGH")),
        {("factory", 1, ""): -1, ("factory", 1, "HIGH"): 1},
    ),
    ("an unknown level", FactoryChange("I", "7", None, factory("PLENTY")), {("factory", 1, ""): 1}),
    ("from none to an unknown level", FactoryChange("U", "7", factory(None), factory("PLENTY")), {}),
]


@pytest.mark.parametrize(("change", "expected"), [pytest.param(*case[1:], id=case[0]) for case in ENTERED])
def test_what_a_change_enters(change: Change, expected: dict[Account, int]) -> None:
    balance = Balance()
    balance.add([change])
    assert balance.accounts() == expected


def test_a_truncate_begins_the_accounts_of_its_table_anew() -> None:
    balance = Balance()
    balance.add(
        (
            TaskChange("I", "t", None, READY),
            PipelineChange("I", "p", None, pipeline("PLANNING")),
            TaskChange("T", "", None, None),
            TaskChange("I", "u", None, ASSIGNED),
        )
    )
    assert balance.accounts() == {("pipeline", 1, "PLANNING"): 1, ("task", 1, "ASSIGNED"): 1}
    assert balance.truncated == {"task"}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((None, *TASK_LIVE, "COMPLETED", "FAILED")))))
def test_the_balance_is_the_number_of_live_rows(moves: list[tuple[int, str | None]]) -> None:
    rows: dict[int, str] = {}
    balance = Balance()
    for row, status in moves:
        before = rows.pop(row, None)
        if status is not None:
            rows[row] = status
        old, new = (None if word is None else task(word) for word in (before, status))
        if old is not None or new is not None:
            balance.add([TaskChange("U", str(row), old, new)])
    live = Counter(found for status in rows.values() if (found := account("task", 1, status)) is not None)
    assert compare(balance.accounts(), live) == []


MALFORMED = {
    '["task","I",[null,null,"t","SELL","READY",null],[null,null,null,null,1,0,1e30,0,null],[]]': {"READY": 1},
    '["task","U",["READY",null,"t","SELL","ASSIGNED",null],[0,0,0,0,1,0,0,0,0],"?"]': {"READY": -1, "ASSIGNED": 1},
    '["task","D",[null,null,"t","SELL","READY",null],[0,0,0,0,1,0,0,0,0]]': {"READY": -1},
    '["task","M",["READY",null,"t","SELL","READY",null],[0,0,0,0,1,0,0,0,0]]': {"READY": 1},
    '["task","X",[null,null,"t","SELL","READY",null],[0,0,0,0,1,0,0,0,0]]': {},
    '["task","I",[null,null,"t","SELL","READY",null],[null,null,null,null,null]]': {},
    '["task","I",[null,null,"t","SELL",{},null],[0,0,0,0,1]]': {},
    '["task","I",[null,null,"t","SELL","READY",null],[0,0,0,0,true]]': {},
    '["task","I",[null,null,"t","SELL","READY",null],[0,0,0,0,99999999999999999999]]': {},
    '["task","I",["READY"],[1]]': {},
    '["ship","I",[],[]]': {},
    "{": {},
}


@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_event_enters_what_can_be_told(body: str) -> None:
    balance = Balance()
    balance.add_malformed(body)
    assert {status: n for (_, _, status), n in balance.accounts().items()} == MALFORMED[body]


def test_the_fewest_changed_rows() -> None:
    recorded = {("task", 1, "READY"): 5, ("task", 2, "READY"): 1, ("pipeline", 1, "PLANNING"): 1}
    counted = {("task", 1, "READY"): 2, ("task", 1, "ASSIGNED"): 2, ("task", 2, "READY"): 1}
    differences = compare(recorded, counted)
    assert changed_rows(differences) == {"pipeline": 1, "task": 3, "factory": 0}
    assert describe_differences(differences) == "player 1 PLANNING -1, player 1 ASSIGNED +2, player 1 READY -3"
    assert describe_differences(differences * 3).endswith("and 3 more")
