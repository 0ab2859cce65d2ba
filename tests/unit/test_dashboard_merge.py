"""Merging our row into dashboards that users made: the row is right, and nothing else changes."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from mfg_notify.dashboards import shipped
from mfg_notify.dashboards.merge import Outcome, merge
from mfg_notify.errors import UsageError

Json = dict[str, Any]

ROW = "Manufacturing Overview"
TITLES = ["Active Manufacturing", "Supply Level Transitions", "Manufacturing Profit Rate", "HIGH Supply Markets"]
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
CHOSEN = {"type": "prometheus", "uid": "${datasource}"}
"""What the reader of the dashboard chooses."""


def ours() -> Json:
    document: Json = json.loads(shipped.read_dashboard("market-dynamics.json"))
    return document


def panel(number: int, title: str, y: int, *, x: int = 0, w: int = 12, h: int = 8, **more: object) -> Json:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"h": h, "w": w, "x": x, "y": y},
        "targets": [{"expr": "up", "refId": "A"}],
        **more,
    }


def row(number: int, title: str, y: int, *inside: Json, collapsed: bool = False) -> Json:
    place = {"h": 1, "w": 24, "x": 0, "y": y}
    return {
        "id": number, "type": "row", "title": title, "collapsed": collapsed, "gridPos": place, "panels": list(inside),
    }  # fmt: skip


def game_dashboard() -> Json:
    """Return the game's own dashboard: open rows, 45 units high, with ids like those of the specification."""
    rows = ["Market Coverage", "Price Dynamics", "Supply & Demand", "Scanner Performance", "Trading Opportunities"]
    panels = [
        each
        for number, title in enumerate(rows)
        for each in (row(100 + number, title, 9 * number), panel(number + 1, f"About {title}", 9 * number + 1, w=24))
    ]
    return {"uid": "market-dynamics", "title": "Market Dynamics", "schemaVersion": 38, "version": 7, "panels": panels}


def collapsed() -> Json:
    """Return a dashboard with collapsed rows, one of which holds the panel with the highest id."""
    return {
        "title": "Collapsed",
        "panels": [
            panel(4, "Above", 0, w=24, h=6),
            row(5, "First", 6, panel(900, "Hidden", 7), collapsed=True),
            row(6, "Second", 7, panel(8, "Hidden too", 8), collapsed=True),
        ],
        "templating": {"list": [{"name": "player_id", "type": "textbox", "current": {"value": "3"}}]},
    }


def shared_export() -> Json:
    """Return a dashboard exported for sharing: its datasource is an input, its panels have no ids."""
    source = {"type": "prometheus", "uid": "${DS_PROM}"}
    return {
        "__inputs": [{"name": "DS_PROM", "type": "datasource", "pluginId": "prometheus", "label": "Prom"}],
        "id": None,
        "title": "Shared",
        "panels": [{"type": "stat", "title": "Up", "datasource": source, "gridPos": {"h": 3, "w": 24, "x": 0, "y": 0}}],
        "templating": {"list": []},
    }


def datasource_variable() -> Json:
    """Return a dashboard whose datasource is a variable in the old form, with one panel of logs."""
    return {
        "title": "Chosen",
        "panels": [
            panel(1, "A", 0, datasource="$source", targets=[{"expr": "up", "datasource": "$source"}]),
            panel(2, "B", 0, x=12, datasource={"type": "loki", "uid": "loki"}, targets=[{"expr": "{a='b'}"}] * 9),
        ],
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
    }


def wrapped() -> Json:
    """Return a dashboard as Grafana's HTTP API wraps it."""
    return {"meta": {"slug": "x"}, "dashboard": game_dashboard()}


def resource() -> Json:
    """Return a dashboard as a resource of Grafana's newer API, with the classic model inside."""
    return {"apiVersion": "dashboard.grafana.app/v1beta1", "kind": "Dashboard", "metadata": {}, "spec": collapsed()}


def empty() -> Json:
    """Return a new dashboard, with null instead of a missing key."""
    return {"title": "New", "panels": [], "templating": {"list": None}}


FOREIGN = pytest.mark.parametrize(
    "foreign",
    [game_dashboard, collapsed, shared_export, datasource_variable, wrapped, resource, empty],
    ids=lambda it: it.__name__,
)
Make = Callable[[], Json]


def inner(document: Json) -> Json:
    """Return the dashboard inside its wrapper."""
    found: Json = document.get("dashboard") or document.get("spec") or document
    return found


def added(document: Json) -> list[Json]:
    """Return our row and its panels, found by their titles."""
    return [each for each in inner(document)["panels"] if each["title"] in {ROW, *TITLES}]


def merged(document: Json, datasource_uid: str | None = None) -> Outcome:
    return merge(document, ours(), datasource_uid)


# ----------------------------------------------------------------------------------------- the first merge --


@FOREIGN
def test_the_row_is_appended_and_nothing_else_changes(foreign: Make) -> None:
    document = foreign()
    assert merged(document) is Outcome.APPENDED
    new = added(document)
    assert [each["title"] for each in new] == [ROW, *TITLES]
    bottom = max((each["gridPos"]["y"] + each["gridPos"]["h"] for each in inner(foreign())["panels"]), default=0)
    assert [(each["gridPos"]["x"], each["gridPos"]["y"], each["gridPos"]["w"]) for each in new] == [
        (0, bottom, 24), (0, bottom + 1, 4), (4, bottom + 1, 10), (14, bottom + 1, 4), (18, bottom + 1, 6),
    ]  # fmt: skip
    assert inner(document)["panels"][-5:] == new
    dashboard, before = inner(document), inner(foreign())
    names = {"market_job", "manufacturing_job", "manufacturing_database", "player_id"}
    if added(document)[1]["datasource"] == CHOSEN:
        names.add("datasource")
    existing = before.get("templating", {}).get("list") or []
    assert dashboard["templating"]["list"][: len(existing)] == existing
    new_names = [each["name"] for each in dashboard["templating"]["list"][len(existing) :]]
    assert sorted(new_names) == sorted(names - {each["name"] for each in existing})
    del dashboard["panels"][-5:]
    dashboard.pop("templating")
    before.pop("templating", None)
    assert dashboard == before


@FOREIGN
def test_a_second_merge_changes_nothing(foreign: Make) -> None:
    document = foreign()
    merged(document)
    once = deepcopy(document)
    assert merged(document) is Outcome.UNCHANGED
    assert document == once


@FOREIGN
def test_the_new_ids_are_unused(foreign: Make) -> None:
    document = foreign()
    merged(document)
    ids = [each["id"] for each in shipped.every_panel(inner(document)["panels"]) if "id" in each]
    assert len(set(ids)) == len(ids)


def test_the_row_has_the_place_of_the_specification() -> None:
    document = game_dashboard()
    merged(document)
    assert added(document)[0]["gridPos"]["y"] == 45
    assert [each["id"] for each in added(document)] == [105, 106, 107, 108, 109]


def test_our_own_market_dashboard_already_has_the_row() -> None:
    document = ours()
    assert merged(document) is Outcome.UNCHANGED


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (game_dashboard, PROMETHEUS),
        (shared_export, {"type": "prometheus", "uid": "${DS_PROM}"}),
        (datasource_variable, "$source"),
        (empty, CHOSEN),
        (lambda: {"title": "x", "panels": [panel(1, "A", 0, datasource="Prometheus", targets=[])]}, "Prometheus"),
        (lambda: {"title": "x", "panels": [panel(1, "A", 0, datasource=None, targets=[])]}, CHOSEN),
        (lambda: {"title": "x", "panels": [panel(1, "A", 0, datasource={"type": "mysql", "uid": "m"})]}, CHOSEN),
        (
            lambda: {
                "title": "x",
                "panels": [
                    panel(1, "A", 0, datasource={"uid": "-- Mixed --"}, targets=[
                        {"datasource": {"type": "mysql", "uid": "m"}},
                        {"datasource": {"type": "prometheus", "uid": "p"}},
                    ])
                ],
            },
            {"type": "prometheus", "uid": "p"},
        ),
    ],
    ids=["its own", "input", "variable", "none", "name", "default", "another kind", "mixed"],
)  # fmt: skip
def test_the_row_uses_the_datasource_of_the_dashboard(foreign: Make, expected: object) -> None:
    document = foreign()
    merged(document)
    _, *panels = added(document)
    assert all(each["datasource"] == expected for each in panels)
    assert all(target["datasource"] == expected for each in panels for target in each["targets"])
    mine = [each for each in document["templating"]["list"] if each["name"] in {"market_job", "manufacturing_job"}]
    assert [each["datasource"] for each in mine] == [expected, expected]


@FOREIGN
def test_the_row_uses_the_datasource_that_was_asked_for(foreign: Make) -> None:
    document = foreign()
    merged(document, "mine")
    expected = {"type": "prometheus", "uid": "mine"}
    _, *panels = added(document)
    assert all(each["datasource"] == expected for each in panels)
    assert "datasource" not in {each["name"] for each in inner(document)["templating"]["list"]}
    assert merged(document, "mine") is Outcome.UNCHANGED


# ------------------------------------------------------------------------------------- an older row of ours --


def with_an_older_row(*, is_collapsed: bool = False, has_rows_below: bool = False) -> Json:
    """Return a dashboard with an older row of ours, which the user has rearranged and extended by a panel."""
    document = game_dashboard()
    old = [
        panel(31, TITLES[3], 46, x=0, w=6),
        panel(32, TITLES[0], 46, x=6, w=6),
        panel(33, TITLES[1], 46, x=12, w=6),
        panel(34, TITLES[2], 46, x=18, w=6),
        panel(35, "The user's own", 54, w=24, h=4),
    ]
    if is_collapsed:
        document["panels"].append(row(30, ROW, 45, *old, collapsed=True))
    else:
        document["panels"] += [row(30, ROW, 45), *old]
    if has_rows_below:
        below = 46 if is_collapsed else 58
        document["panels"] += [row(40, "Below", below), panel(41, "Far below", below + 1)]
    return document


@pytest.mark.parametrize("has_rows_below", [False, True])
@pytest.mark.parametrize("is_collapsed", [False, True])
def test_an_older_row_is_refreshed_in_place(*, is_collapsed: bool, has_rows_below: bool) -> None:
    document, before = (with_an_older_row(is_collapsed=is_collapsed, has_rows_below=has_rows_below) for _ in range(2))
    assert merged(document) is Outcome.REFRESHED
    old, new = (list(shipped.every_panel(each["panels"])) for each in (before, document))
    assert [(each["id"], each["title"], each["gridPos"]) for each in new] == [
        (each["id"], each["title"], each["gridPos"]) for each in old
    ]
    shipped_panels = {each["title"]: each for each in ours()["panels"]}
    for after, earlier in zip(new, old, strict=True):
        if after["title"] in TITLES:
            expected = json.loads(json.dumps(shipped_panels[after["title"]]).replace("${datasource}", "prometheus"))
            assert after == expected | {"id": earlier["id"], "gridPos": earlier["gridPos"]}
        elif after["title"] != ROW:
            assert after == earlier
    assert merged(document) is Outcome.UNCHANGED


@pytest.mark.parametrize("is_collapsed", [False, True])
def test_a_missing_panel_is_added_below_the_others(*, is_collapsed: bool) -> None:
    document = with_an_older_row(is_collapsed=is_collapsed, has_rows_below=True)
    inside = document["panels"][-3]["panels"] if is_collapsed else document["panels"]
    inside.remove(next(each for each in inside if each["title"] == TITLES[2]))
    assert merged(document) is Outcome.REFRESHED
    everything = list(shipped.every_panel(document["panels"]))
    [added_panel] = [each for each in everything if each["title"] == TITLES[2]]
    assert added_panel["gridPos"] == {"h": 8, "w": 4, "x": 14, "y": 58}
    assert added_panel["id"] == 105
    assert added_panel in (document["panels"][-3]["panels"] if is_collapsed else document["panels"])
    # Panels below an open row move down; a collapsed row needs no more space than before.
    below = {each["title"]: each["gridPos"]["y"] for each in everything if "elow" in each["title"]}
    assert below == ({"Below": 46, "Far below": 47} if is_collapsed else {"Below": 66, "Far below": 67})
    if not is_collapsed:
        assert document["panels"].index(added_panel) + 1 == [each["title"] for each in document["panels"]].index(
            "Below"
        )
    assert merged(document) is Outcome.UNCHANGED


def test_a_row_without_any_of_its_panels_gets_them_all() -> None:
    document = game_dashboard()
    document["panels"].append(row(30, ROW, 45))
    assert merged(document) is Outcome.REFRESHED
    assert [(each["title"], each["gridPos"]["y"]) for each in added(document)] == [
        (ROW, 45), *((title, 46) for title in TITLES),
    ]  # fmt: skip


def test_a_panel_without_a_position_stays_without_one() -> None:
    document = {"title": "x", "panels": [{"title": "By hand"}, {"title": ROW, "type": "row"}]}
    assert merged(document) is Outcome.REFRESHED
    assert document["panels"][0] == {"title": "By hand"}
    assert merged(document) is Outcome.UNCHANGED


def test_an_older_panel_without_an_id_gets_a_free_one() -> None:
    document = with_an_older_row()
    del next(each for each in document["panels"] if each["title"] == TITLES[0])["id"]
    merged(document)
    assert [each["id"] for each in added(document)] == [30, 31, 105, 33, 34]


def test_the_datasource_is_not_that_of_our_own_older_panels() -> None:
    document = with_an_older_row()
    user_panels = [each for each in document["panels"] if each["title"].startswith("About")]
    for each, uid in zip(user_panels, ["other", "other", "other", "loki", "loki"], strict=True):
        each["datasource"] = {"type": "loki" if uid == "loki" else "prometheus", "uid": uid}
    merged(document)
    assert {each["datasource"]["uid"] for each in added(document)[1:]} == {"other"}


def test_panels_with_the_same_title_outside_the_row_stay() -> None:
    document = game_dashboard()
    document["panels"][1]["title"] = TITLES[0]
    before = deepcopy(document["panels"][1])
    assert merged(document) is Outcome.APPENDED
    assert document["panels"][1] == before


# ----------------------------------------------------------------------------------------- refused documents --


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"apiVersion": "dashboard.grafana.app/v2beta1", "kind": "Dashboard", "spec": {"title": "x"}}, "new schema"),
        ({"elements": {}, "layout": {}, "title": "x"}, "new schema"),
        ({"spec": {"elements": {}, "layout": {}, "title": "x"}}, "new schema"),
        ({"title": "x", "rows": [{"panels": []}]}, "older than 5"),
        ({"title": "x", "panels": {"1": {}}}, "no list of panels"),
        ({"title": "x", "panels": [1]}, "no list of panels"),
        ({"compilerOptions": {}}, "no list of panels"),
    ],
)
def test_what_is_no_classic_dashboard_is_refused_unchanged(document: Json, message: str) -> None:
    before = deepcopy(document)
    with pytest.raises(UsageError, match=message):
        merged(document)
    assert document == before
